"""Makes a row of the ledger from a bundle: pure, no file is touched.

A row is made in two steps. `base_row` is what the bundle says by itself; `finish` adds what was
decided. Rows are plain dictionaries with the keys of `schema.Row`, in its order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autohypothesis.records.bundles import PAGE_LIMIT, Damage, Document, Records
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.layout import ID
from autohypothesis.schema import Row, finite, whole

RowDocument = dict[str, Any]

MB_PER_GB = 1024.0
DECIDED = ("keep", "discard", "crash")
IMPORTED = "imported"
"""The tag of runs that another tool made and decided, and the maker of those decisions."""
VALUELESS = ("crash", "cancelled")
"""Decisions about runs without a value."""
NOT_EVIDENCE = ("infra", "contended", "cancelled")
"""Failures that say nothing about the hypothesis."""

_EMPTY: RowDocument = {
    name: "" if field.is_required() else field.get_default(call_default_factory=True)
    for name, field in Row.model_fields.items()
}
"""No model is made of it: to build one takes as long as the fold of a thousand runs."""
_NOTHING: Document = {}


class Facts(NamedTuple):
    """The values of one experiment that other rows, the tables and the next fold need."""

    tag: str
    platform_key: str
    metric_name: str
    metric_value: float | None
    recorded_value: float | None
    """`metric_value` of a result.json that says completed; null where metrics alone have one."""
    lost_value: float | None
    """The value that a run lost because another process slowed it down."""
    direction: str
    commit: str
    parent_commit: str | None
    seed: int | None
    confirmation: str
    peak_vram_gb: float | None
    description: str
    execution_status: str
    failure_kind: str | None
    replicates: str | None
    timestamp: str
    baseline: bool
    stamp: str
    """The decision that result.json carries, and the id of the record it was stamped from."""
    stamp_id: str | None
    imported: bool
    """The stamp is the decision of the tool that made the run, which is of no search of ours."""
    stranger: list[str] | None
    """[file, id]: a file of the bundle that names another experiment."""
    damage: Sequence[Damage]


class Placement(NamedTuple):
    """The place of one experiment in the sequence of decisions."""

    ordinal: int
    delta: float | None
    status: str
    confirmation: str
    tag: str
    reason: str
    metric_value: float | None
    commit: str
    decided_by: str
    fixed: RowDocument
    """Columns that the record fixes, whatever the bundle says by now."""

    @property
    def imported(self) -> bool:
        """Whether another tool decided it, so that it ranks nowhere."""
        return self.decided_by == IMPORTED


def real(value: object, metric: str) -> float | None:
    """`value` as a score. Bits per byte are positive: 0.0 stood for a crash in older bundles."""
    number = finite(value)
    return None if number is None or (metric == "val_bpb" and number <= 0) else number


def is_import(stamp: str, decision_id: str | None, tag: str) -> bool:
    """Return whether the decision in a result.json is that of another tool, which made the run.

    A run of a search of ours has a tag, and the decision in its bundle names its record.
    """
    return stamp in (*DECIDED, "replicate") and decision_id is None and not tag


def base_row(records: Records) -> RowDocument:
    """Return the row from bundle and plan alone, without decisions."""
    row = _EMPTY.copy()
    row["id"] = records.experiment_id
    row["notes"] = []
    _from_plan(row, records.plan)
    if records.page is not None:
        name = records.source_id or records.experiment_id
        row["decision_markdown_path"] = f"research/plans/{name}.md"
        row["decision_markdown"] = records.page[:PAGE_LIMIT]
    if records.folder is None:
        return row
    metadata, result = records.metadata or _NOTHING, records.result or _NOTHING
    _from_run(row, metadata.get("run") or _NOTHING, metadata.get("runtime") or _NOTHING)
    row["timestamp"] = metadata.get("recorded_at") or row["timestamp"]
    if records.source_id:
        row["source_id"] = records.source_id
    if result:
        _from_result(row, result)
        if row["val_bpb"] is None and not row["tag"] and result["status"] == "completed":
            _from_elsewhere(row, result, metadata)
    else:
        _without_result(row, records)
    if row["status"] == "running":
        row["timestamp"] = row["timestamp"] or (records.exit or _NOTHING).get("started_at")
    _from_metrics(row, result.get("metrics") or _NOTHING, metadata.get("metrics") or _NOTHING)
    _from_config(row, records.config)
    _from_curve(row, records, metadata)
    return row


def _from_plan(row: RowDocument, plan: Document | None) -> None:
    if not plan:
        return
    hypothesis = plan["hypothesis"]
    row["timestamp"] = plan["created_at"]
    row["description"] = hypothesis["title"]
    row["rationale"] = hypothesis["rationale"]
    row["hypothesis_id"] = hypothesis["hypothesis_id"]
    row["parent_commit"] = plan["based_on_commit"] or None
    for key in ("worker_id", "tag", "seed", "replicates", "node_id", "claimed"):
        row[key] = plan[key]


def _from_run(row: RowDocument, run: Document, runtime: Document) -> None:
    if run:
        row["description"] = run["title"] or row["description"]
        for key in ("worker_id", "gpu_id", "hypothesis_id", "rationale", "tag", "node_id"):
            row[key] = run[key] or row[key]
        for key in ("seed", "replicates"):
            row[key] = run[key] if run[key] is not None else row[key]
    if runtime:
        for key in ("commit", "gpu_name", "diff_stat", "diff_hash", "code_hash", "platform_key",
                    "profile", "sandbox", "checkout_lacks"):  # fmt: skip
            row[key] = runtime[key]
        if runtime["commit"]:  # a baseline has no parent, whatever its plan was based on
            row["parent_commit"] = runtime["parent_commit"]


def _from_result(row: RowDocument, result: Document) -> None:
    row["timestamp"] = result["recorded_at"]
    row["commit"] = result["commit"] or row["commit"]
    row["parent_commit"] = result["parent_commit"] or row["parent_commit"]
    row["description"] = result["title"] or row["description"]
    row["status"] = row["execution_status"] = result["status"]
    for key in ("outcome", "failure_kind", "attested", "metric_name", "direction", "confirmation"):
        row[key] = result[key]
    if result["failure_detail"]:
        row["notes"].append(result["failure_detail"])
    remarks = result["evidence"].get("remarks")
    row["notes"] += map(str, remarks) if isinstance(remarks, list) else []
    if result["failure_kind"] == "cancelled":
        row["status"] = "cancelled"
    if result["status"] != "completed":
        return
    name = result["metric_name"]
    value = real(result["metric_value"], name)
    row["metric_value"] = real(result["metrics"].get(name), name) if value is None else value
    if name == "val_bpb":
        row["val_bpb"] = row["metric_value"]
    else:
        row["val_bpb"] = real(result["metrics"]["val_bpb"], "val_bpb")


def _from_elsewhere(row: RowDocument, result: Document, metadata: Document) -> None:
    """Take the score from where tools without tags may have left it."""
    metrics = metadata.get("metrics") or _NOTHING
    value = real(result.get("val_bpb"), "val_bpb")
    row["val_bpb"] = real(metrics.get("val_bpb"), "val_bpb") if value is None else value
    if row["metric_name"] == "val_bpb":
        row["metric_value"] = row["val_bpb"]


def _without_result(row: RowDocument, records: Records) -> None:
    status, note = "planned", ""
    if records.shim_lives:
        status = "running"
    elif records.exit:
        clean = records.exit["status"] == "exited" and not records.exit["exit_code"]
        status, note = "completed" if clean else "failed", "ended, and not collected yet"
        row["timestamp"] = records.exit["ended_at"]
    elif records.shim_seen:
        status, note = "failed", "its shim ended without a record of how"
        row["failure_kind"] = "infra"
    elif records.metadata:
        status, note = "failed", "it has no result.json"
    row["status"] = row["execution_status"] = status
    if note and not records.damage:
        row["notes"].append(note)


def _from_metrics(row: RowDocument, first: Document, second: Document) -> None:
    """The result's metrics, else the metadata's."""
    for key in (
        "num_steps", "training_seconds", "total_seconds", "mfu_percent", "total_tokens_M",
        "num_params_M", "depth", "train_bpb", "tokens_per_second",
    ):  # fmt: skip
        value = first.get(key)
        row[key] = second.get(key) if value is None else value
    peak = first.get("peak_vram_mb")
    peak = second.get("peak_vram_mb") if peak is None else peak
    if peak is not None:
        row["peak_vram_gb"] = round(peak / MB_PER_GB, 4)
    tokens, seconds = row["total_tokens_M"], row["training_seconds"]
    if row["tokens_per_second"] is None and tokens and seconds and seconds > 0:
        row["tokens_per_second"] = finite(tokens * 1e6 / seconds)
    for key in ("model_dim", "n_heads", "head_dim"):
        row[key] = whole(first.get(key))


def _from_config(row: RowDocument, config: Document) -> None:
    get = config.get
    for key in ("model_dim", "n_heads", "head_dim", "total_batch_size", "device_batch_size"):
        value = get(key)
        if value is not None:
            row[key] = whole(value)
    for key in ("matrix_lr", "embedding_lr", "weight_decay", "warmdown_ratio"):
        row[key] = finite(get(key))
    if row["depth"] is None:
        row["depth"] = whole(get("depth"))
    pattern, betas = get("window_pattern"), get("adam_betas")
    row["window_pattern"] = pattern if isinstance(pattern, str) else None
    if isinstance(betas, list):
        numbers = [finite(beta) for beta in betas[:8]]
        row["adam_betas"] = numbers if all(number is not None for number in numbers) else None


def _from_curve(row: RowDocument, records: Records, metadata: Document) -> None:
    samples = records.exit["samples"] if records.exit else None
    if not samples:
        return
    runtime = metadata.get("runtime") or _NOTHING
    seen = curve(samples, runtime.get("budget_seconds") or row["training_seconds"])
    row["bpb_at_checkpoints"] = seen.checkpoints
    row["still_improving"] = seen.still_improving
    row["improvement_rate"] = seen.rate
    if row["train_bpb"] is None:
        row["train_bpb"] = seen.last


def finish(
    row: RowDocument,
    placement: Placement | None,
    stamp: str,
    unusable: Sequence[Damage],
    disagreeing: Sequence[Damage],
) -> None:
    """Add what was decided to a row of `base_row`; what was decided stands above the bundle.

    Args:
        stamp: the decision to show where decisions.jsonl has none.
        unusable: files that could not be used.
        disagreeing: files of the bundle that say what was not decided.
    """
    if placement is not None:
        row.update(placement.fixed)
        row["metric_value"] = placement.metric_value
        if row["metric_name"] == "val_bpb":
            row["val_bpb"] = placement.metric_value
        row["status"] = row["decision_status"] = placement.status
        row["decided_by"] = placement.decided_by
        row["attested"] = row["attested"] and not placement.imported
        row["ordinal"], row["delta"] = placement.ordinal, placement.delta
        row["confirmation"] = placement.confirmation
        row["tag"] = placement.tag or row["tag"]
        row["outcome"] = row["outcome"] or placement.reason
    elif stamp:
        row["decision_status"] = stamp
        row["status"] = stamp if stamp in DECIDED else row["status"]
    if disagreeing:
        row["status"] = "damaged"
    if unusable:
        row["status"] = "artifact_invalid"
    damage = [f"{path.rpartition('/')[2]} {why}" for path, why, *_ in (*unusable, *disagreeing)]
    row["notes"] = [*row["notes"], *damage]


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Whether the row is a run of the unchanged script, or was decided as one of a reference."""
    if row.get("reason") == "baseline":
        return True
    tag = row["tag"]
    if ID.fullmatch(tag):
        return bool(row["hypothesis_id"] == baseline_id(tag))
    return str(row["hypothesis_id"]).startswith("baseline")


CHECKPOINTS = (0.25, 0.50, 0.75, 1.00)
"""Shares of the budget."""
_NAMES = {share: f"{share * 100:.0f}" for share in CHECKPOINTS}
_NEAR = 0.05
"""A sample this far from a checkpoint, as a share of the budget, still stands for it."""
_FEWEST = 4
"""Samples in the last quarter; fewer have no slope worth naming."""

Sample = Sequence[float | None]


class Curve(NamedTuple):
    checkpoints: dict[str, float]
    still_improving: bool | None
    rate: float | None
    """bpb per minute of budget over the last quarter, positive is improving."""
    last: float | None


def curve(samples: Sequence[Sample], budget_seconds: float | None) -> Curve:
    """The course of the training bpb, from rows of [share, loss, bpb, tokens per second]."""
    shares, values = _columns(samples)
    if not shares:
        return Curve({}, None, None, None)
    start = bisect_left(shares, CHECKPOINTS[-2])
    slope, error = _slope(shares[start:], values[start:])
    rate = None
    if slope is not None and budget_seconds and budget_seconds > 0:
        rate = round(-slope / (budget_seconds / 60), 9)
    improving = None if slope is None or error is None else -slope > 2 * error
    return Curve(_at_checkpoints(shares, values), improving, rate, values[-1])


def _columns(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    columns = list(zip(*samples, strict=False))
    if len(columns) > 2 and None not in columns[0] and None not in columns[2]:
        shares, values = list(columns[0]), list(columns[2])
        if shares == sorted(shares):
            return shares, values
    points = sorted(
        (sample[0], sample[2])
        for sample in samples
        if len(sample) > 2 and sample[0] is not None and sample[2] is not None
    )
    return [share for share, _ in points], [value for _, value in points]


def _at_checkpoints(shares: list[float], values: list[float]) -> dict[str, float]:
    found = {}
    for checkpoint in CHECKPOINTS:
        after = min(bisect_left(shares, checkpoint), len(shares) - 1)
        before = max(after - 1, 0)
        at = before if checkpoint - shares[before] < abs(shares[after] - checkpoint) else after
        if abs(shares[at] - checkpoint) <= _NEAR:
            found[_NAMES[checkpoint]] = values[at]
    return found


def _slope(shares: list[float], values: list[float]) -> tuple[float | None, float | None]:
    """Least squares: bpb per whole budget, and the standard error of that.

    A fall counts as one only beyond twice its error: a noisy flat line is no improvement.
    """
    count = len(shares)
    if count < _FEWEST:
        return None, None
    mean_x, mean_y = sum(shares) / count, sum(values) / count
    x = [share - mean_x for share in shares]
    y = [value - mean_y for value in values]
    spread = sum([a * a for a in x])
    if not 0 < spread < math.inf:
        return None, None
    slope = sum([a * b for a, b in zip(x, y, strict=True)]) / spread
    rest = sum([b * b for b in y]) - slope * slope * spread
    if not math.isfinite(slope) or not math.isfinite(rest):
        return None, None
    return slope, math.sqrt(max(rest, 0.0) / (count - 2) / spread)
