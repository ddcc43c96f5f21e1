"""Collects what the policy looks at for one finished run. Reads its bundle and changes nothing.

A run that another process slowed down is contaminated: no evidence, and run again. On a GPU the
shim sees foreign compute by itself. On a CPU slot nothing is visible but time: the shim times a
fixed kernel before and after the training, and here that is held against what the slot took lately.
Runs of the same diff on the same base and slot are compared by their speed as well; unlike runs
never are. A contaminated run comes back, twice at most; a third counts and is flagged, since
a machine that is always slow is the machine there is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from autohypothesis.engine.collect import finish_collection
from autohypothesis.engine.experiment import RunSpec, replicate_seed
from autohypothesis.engine.failures import is_interruption, part_of
from autohypothesis.engine.policy import MAX_INFRA_RETRIES, Evidence, Pair
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import BY_HAND, Constraint, Task
from autohypothesis.errors import RecordError, SettleError
from autohypothesis.records.files import load, load_or_none
from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.ids import slug
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import is_import, real
from autohypothesis.schema import Decision, Metadata, Plan, Result, finite

MAX_SKIPPED_SEEDS = 3
"""Seeds at which a base may fail and that are skipped."""
MAX_CONTENTION_RETRIES = 2
ALLOWED = 0.10
"""Share by which a run may be slower than its like."""
SPREADS = 3.0
ENOUGH = 3
"""Runs of a slot before it has a usual time."""
RECENT = 9
"""Runs of a slot that make its usual time. One that became slower for good costs a few runs, until
those that were kept all the same have made the new speed a usual one."""


@dataclass(frozen=True, slots=True)
class Case:
    """One finished experiment, and the task that it was made with.

    Attributes:
        flag: a remark about a result that counts although something is wrong with it.
        submitted: whether the engine ran it, so that it can run it again.
    """

    experiment_id: str
    result: Result
    metadata: Metadata
    task: Task
    flag: str = ""
    submitted: bool = True

    @property
    def base(self) -> str:
        """The commit that it changed; its own, where it changed none."""
        return self.result.parent_commit or self.result.commit


def read_case(project: Project, experiment_id: str) -> Case:
    """Read the experiment to decide.

    Raises:
        SettleError: it is unfinished, unknown, or another tag's.
        RecordError: one of its files is damaged, or of another run; the message names the file.
    """
    run = project.layout.run(experiment_id)
    if not run.result.exists():
        require_known(project.layout, experiment_id)
        raise SettleError(
            f"{experiment_id} has no result yet",
            hint=f"see how it stands: python orchestrator.py show {experiment_id}",
        )
    submitted = run.run_spec.exists()
    if submitted and not finish_collection(project.layout, experiment_id):
        raise SettleError(
            f"{experiment_id} is not collected yet, and {run.result} is not from its collector",
            hint="run `python orchestrator.py sync`, which collects what has ended",
        )
    if not run.metadata.exists():
        raise SettleError(f"{experiment_id} has no metadata.json: its tag and platform are unknown")
    metadata = load(Metadata, run.metadata)
    if (named := metadata.run.experiment_id) and slug(named) != experiment_id:
        raise RecordError(
            f"{run.metadata} is of experiment {named!r}, not of {experiment_id}",
            hint="a bundle keeps its name; move the run's folder away",
        )
    if metadata.run.tag not in ("", project.tag):
        raise SettleError(
            f"{experiment_id} belongs to tag {metadata.run.tag!r}, not to {project.tag!r}",
            hint=f"run `python orchestrator.py decide {experiment_id} --tag {metadata.run.tag}`",
        )
    task = load(RunSpec, run.run_spec).task if submitted else project.task
    result = load(Result, run.result)
    plan = load_or_none(Plan, project.layout.plan(experiment_id))
    tag = metadata.run.tag or (plan.tag if plan else "")
    if not submitted and is_import(result.decision_status, result.decision_id, tag):
        raise SettleError(
            f"{experiment_id} was decided as {result.decision_status!r} by the tool that made it:"
            " that is history, and moves nothing here",
            hint="to have its change judged here, run it: python orchestrator.py run-experiment"
            " --help",
        )
    if not submitted and result.status == "completed" and result.metric_value is None:
        value = real(getattr(result.metrics, result.metric_name, None), result.metric_name)
        result = result.model_copy(update={"metric_value": value})  # where other tools left it
    return Case(experiment_id, result, metadata, task, submitted=submitted)


def require_known(layout: Layout, experiment_id: str) -> None:
    """Refuse an id that no experiment has.

    Raises:
        SettleError: there is neither a plan nor a run of that name.
    """
    if not layout.run(experiment_id).folder.exists() and not layout.plan(experiment_id).exists():
        raise SettleError(
            f"no experiment is called {experiment_id!r}",
            hint="run `python orchestrator.py runs --all` for their ids",
        )


def with_contention(past: DecisionHistory, case: Case) -> Case:
    """Return the case as its cpu slot lets it count: contaminated, flagged, or as it is."""
    result, flag = judged(past, case.metadata, case.result)
    return replace(case, result=result, flag=flag)


def with_decided_values(case: Case, before: Decision | None) -> Case:
    """Return the case with the values that were decided before, whatever its bundle says by now.

    Raises:
        SettleError: its result.json is the copy of a decision that was never recorded.
    """
    if before is None:
        if case.result.decision_id is not None:
            raise SettleError(
                f"result.json of {case.experiment_id} names the decision"
                f" {case.result.decision_id!r}, and decisions.jsonl has none about it",
                hint="move the run's folder away; to have it decided, take decision_id out of it",
            )
        return case
    decided: dict[str, object] = {"metric_value": before.metric_value}
    if before.metric_value is not None:
        decided |= {"status": "completed", "failure_kind": None}
    if before.commit:
        decided |= {"commit": before.commit, "parent_commit": before.base_commit}
    if before.direction:
        decided["direction"] = before.direction
    if before.metric_name:
        decided["metric_name"] = before.metric_name
    return replace(case, result=case.result.model_copy(update=decided))


def gather(
    past: DecisionHistory,
    case: Case,
    reference: str,
    limits: Mapping[str, Constraint] | None = None,
    further: int = 0,
) -> Evidence:
    """Collect everything that the policy may look at.

    Args:
        past: the decisions about the other experiments.
        limits: upper limits beside the task's, the stricter of two counts.
        further: the pairs by which a near miss is judged again; 0: it is none.
    """
    result, metadata, task = case.result, case.metadata, case.task
    key, seed, base = metadata.runtime.platform_key, metadata.run.seed, case.base
    failed, unchanged = result.status == "failed", result.parent_commit is None
    repeated = bool(metadata.run.replicates)
    kept = any(run.decision_status == "keep" for run in past.runs_of(base, key))
    # The engine cannot repeat what it did not run: its value stays provisional.
    wanted = further or (task.policy.replicates if not unchanged and case.submitted else 0)
    added, removed = metadata.runtime.lines_added, metadata.runtime.lines_removed
    return Evidence(
        value=None if failed else result.metric_value,
        reference_value=_base_value(past, case),
        direction=result.direction,
        min_delta=task.objective.min_delta,
        metric=result.metric_name,
        failure=(result.failure_kind or "code_error") if failed else None,
        failure_detail=result.failure_detail,
        lines_changed=None if added is None or removed is None else added - removed,
        constraints=_stricter(task.constraints, limits or {}),
        metrics=_metrics_under_limits(result),
        base_is_reference=base == reference,
        is_baseline=unchanged and not repeated and not kept,
        is_replicate=repeated or unchanged,
        unattested=task.scorer.type == "model"
        and not (result.attested or metadata.runtime.is_unconfined),
        by_hand=key.startswith(BY_HAND),
        seed=seed,
        other_seeds=bool(past.runs_of(base, key)),
        last_improvement=past.anchor(key, seed),
        keep=task.policy.keep,
        may_retry=_may_retry(past, metadata.run.hypothesis_id, result),
        flag=case.flag,
        replicates=wanted,
        is_near_miss=further > 0,
        pairs=tuple(_pairs(past, case, wanted)),
    )


def _pairs(past: DecisionHistory, case: Case, wanted: int) -> list[Pair]:
    """Return the pairs at the seeds after the first, complete or not.

    They are derived from the decisions each time, so nothing is lost with the process that ordered
    a run, and the runs of a base serve every change that was made to it. A seed at which the base
    itself fails makes no pair, and is passed over; when that happens too often there are fewer.
    """
    key, first = case.metadata.runtime.platform_key, case.metadata.run.seed
    pairs: list[Pair] = []
    for number in range(1, wanted + MAX_SKIPPED_SEEDS + 1):
        if len(pairs) == wanted:
            break
        seed = replicate_seed(first, number)
        of_base = past.replicate_at(case.base, key, seed)
        base_value = of_base.metric_value if of_base else None
        if of_base is not None and base_value is None:
            continue
        of_change = past.replicate_at(case.result.commit, key, seed)
        value = of_change.metric_value if of_change else None
        failed = of_change is not None and (value is None or of_change.reason == "constraint")
        why = (of_change.reason, of_change.detail) if of_change and failed else ()
        pairs.append(Pair(seed, value, base_value, *why))
    return pairs


def _may_retry(past: DecisionHistory, hypothesis_id: str, result: Result) -> bool:
    if result.failure_kind == "contended":
        return len(past.with_reason(hypothesis_id, "contended")) < MAX_CONTENTION_RETRIES
    if result.failure_kind == "infra" and not is_interruption(result.failure_detail):
        lost = past.with_reason(hypothesis_id, "infra")
        return sum(not is_interruption(decision.detail) for decision in lost) < MAX_INFRA_RETRIES
    return True


def _metrics_under_limits(result: Result) -> dict[str, Any]:
    """Return the metrics that limits are held against: of memory the larger of what was printed and
    what was measured."""
    metrics = result.metrics.model_dump()
    peaks = [finite(metrics.get(name)) for name in ("peak_vram_mb", "measured_peak_mb")]
    metrics["peak_vram_mb"] = max((peak for peak in peaks if peak is not None), default=None)
    return metrics


def _stricter(
    own: Mapping[str, Constraint], more: Mapping[str, Constraint]
) -> dict[str, Constraint]:
    def least(*values: float | None) -> float | None:
        return min((value for value in values if value is not None), default=None)

    merged = dict(own)
    for name, limit in more.items():
        other = own.get(name, limit)
        hard = least(limit.hard, other.hard)
        merged[name] = Constraint(soft=least(limit.soft, other.soft, hard), hard=hard)
    return merged


def _base_value(past: DecisionHistory, case: Case) -> float | None:
    """Return the value of the run's own base at its seed, and of no later reference.

    A replicate is compared with the first run of its commit, at any seed.
    """
    key, seed = case.metadata.runtime.platform_key, case.metadata.run.seed
    value = past.value_of(case.base, key, seed)
    if value is None and case.result.parent_commit is None:
        first = next(iter(past.runs_of(case.base, key)), None)
        value = first.metric_value if first else None
    return value


# ── contaminated runs ────────────────────────────────────────────────────────────────────────


class SlotSpeed(NamedTuple):
    """The speed of the CPU slot of one run."""

    slot: str
    kernel_ms: float | None
    """The faster of the timings before and after, so that a short disturbance does not count."""
    tokens_per_second: float | None
    """Tokens per second of the training, by the clock of its budget."""


def slot_speed(metadata: Metadata, result: Result) -> SlotSpeed:
    """Return what shim and training measured; no speed of a run that was not on a CPU slot."""
    evidence = part_of(result.evidence, "contention")
    measured = [finite(evidence.get(f"kernel_{when}_ms")) for when in ("before", "after")]
    times = [time for time in measured if time is not None]
    tokens, seconds = result.metrics.total_tokens_M, result.metrics.training_seconds
    rate = tokens * 1e6 / seconds if times and tokens and seconds else None
    return SlotSpeed(metadata.run.gpu_id, min(times, default=None), finite(rate))


def judged(past: DecisionHistory, metadata: Metadata, result: Result) -> tuple[Result, str]:
    """Return the result as it counts, and what is to be said about it."""
    was_contended = result.failure_kind == "contended"
    if result.status == "failed" and not was_contended:
        return result, ""
    reason = result.failure_detail if was_contended else _slowed(past, metadata, result)
    if not reason:
        return result, ""
    if len(past.with_reason(metadata.run.hypothesis_id, "contended")) < MAX_CONTENTION_RETRIES:
        return contaminated(result, reason), ""
    return restored(result), f"contended, and kept because it was contaminated twice: {reason}"


def contaminated(result: Result, reason: str) -> Result:
    """Return `result` as no evidence; its value stays in `evidence` under `voided_value`."""
    if result.failure_kind == "contended":
        return result
    evidence = {**result.evidence, "voided_value": result.metric_value}
    failure = {"status": "failed", "failure_kind": "contended", "failure_detail": reason}
    return _with_value(result, None, evidence=evidence, **failure)


def restored(result: Result) -> Result:
    """Return a contaminated result with its value again; unchanged when it never had one."""
    value = finite(result.evidence.get("voided_value"))
    if result.failure_kind != "contended" or value is None:
        return result
    return _with_value(result, value, status="completed", failure_kind=None, failure_detail="")


def _with_value(result: Result, value: float | None, **changes: object) -> Result:
    metrics = result.metrics.model_copy(update={result.metric_name: value})
    return result.model_copy(update={**changes, "metric_value": value, "metrics": metrics})


def _slowed(past: DecisionHistory, metadata: Metadata, result: Result) -> str:
    """Return how its slot was slower than usual, in words; empty when it was not."""
    now = slot_speed(metadata, result)
    recent = [
        decision
        for decision in past.on_slot(metadata.runtime.platform_key, now.slot)
        if decision.reason != "contended"
    ]
    times = [float(each.lane_kernel_ms) for each in recent if each.lane_kernel_ms][-RECENT:]
    if now.kernel_ms is not None and len(times) >= ENOUGH:
        usual = statistics.median(times)
        if now.kernel_ms > usual + _allowance(usual, times):
            return f"{now.slot} took {now.kernel_ms:.2f} ms for what usually takes {usual:.2f} ms"
    rates = [
        float(each.tokens_per_second)
        for each in recent
        if each.tokens_per_second and _is_same_change(each, metadata, result)
    ]
    if now.tokens_per_second is not None and rates:
        usual = statistics.median(rates)
        if now.tokens_per_second < usual - _allowance(usual, rates):
            return (
                f"{now.tokens_per_second:,.0f} tokens a second on {now.slot}, where the same "
                f"change made {usual:,.0f}"
            )
    return ""


def _is_same_change(decision: Decision, metadata: Metadata, result: Result) -> bool:
    if result.parent_commit is None:
        return decision.base_commit is None and decision.commit == result.commit
    same_base = decision.base_commit == result.parent_commit
    return same_base and decision.diff_hash == metadata.runtime.diff_hash


def _allowance(usual: float, values: Sequence[float]) -> float:
    """Return what is not yet slow: ten per cent, or three spreads where the values spread more.

    The standard deviation and no robust one: a core that shares its silicon with another has two
    speeds, and both are usual.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return max(ALLOWED * usual, SPREADS * spread)
