"""`init`: a task for one's own repository, found in its files, with two runs of its baseline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, Json, Repo, app
from autohypothesis.commands.common import (
    open_project,
    print_json,
    remark,
    say,
    telling_what_runs_lack,
)
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.experiment import Outcome
    from autohypothesis.engine.first_task import Findings, Gap
    from autohypothesis.engine.project import Project
    from autohypothesis.engine.task import Knob

SHOWN = 5
TAIL_LINES = 8


@dataclass
class Report:
    """What was found, written, run and is missing, for people and as JSON."""

    root: Path
    file: Path
    found: Findings | None = None
    written: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    noise: float | None = None
    smallest_gain: float | None = None
    gaps: list[Gap] = field(default_factory=list)
    next: str = ""


@app.command("init")
def init(
    path: Annotated[
        Path | None, Argument(help="The repository; default: the one of the current directory.")
    ] = None,
    script: Annotated[
        str | None, Option(metavar="FILE", help="The training script; default: the likeliest.")
    ] = None,
    command: Annotated[
        str | None, Option(metavar="WORDS", help="What is run; default: the script, as pages say.")
    ] = None,
    metric: Annotated[str | None, Option(help="What is to be better, as it is printed.")] = None,
    seconds: Annotated[
        float | None, Option(min=1, help="The longest that a run may take; default: 600.")
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what was found and the file; write and run nothing.")
    ] = False,
    no_run: Annotated[bool, Option("--no-run", help="Write the file, and run nothing.")] = False,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Make a task of your own repository: find the script, its metric and its data; measure noise.

    Writes a commented task.yaml where there is none, and overwrites nothing. The baseline is run
    twice; what differs between the two is noise. Exits 1 when it has no score.
    Examples: `orchestrator.py init`, `orchestrator.py init ../my-project --dry-run`
    """
    from autohypothesis.engine.first_task import Choices, examine
    from autohypothesis.engine.shim import FOREIGN_DEADLINE_S
    from autohypothesis.engine.task_file import shipped_task
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

    folder = path or repo
    repository = Repository.find(folder)
    repository.head()  # without a commit there is nothing to run
    report = Report(repository.root, Layout(repository.root).root_task)
    tell = remark if as_json else say
    if not report.file.exists() and (shipped := shipped_task(repository)) is not None:
        report.file = shipped
    if not report.file.exists():
        choices = Choices(script, command, metric, seconds or FOREIGN_DEADLINE_S)
        report.found = examine(repository, folder, choices)
        report.found = replace(report.found, knobs=_knobs(report.found))
        _tell_findings(report.found, tell)
        report.gaps += report.found.gaps
        if dry_run:
            tell(f"{'would write':<12} {report.file}\n")
            tell(report.found.task_text())
        elif not any(gap.is_choice for gap in report.gaps):
            _write(report, report.found)
            tell(f"{'wrote':<12} {report.file}")
    else:
        _refuse_choices(report.file, script=script, command=command, metric=metric, seconds=seconds)
        tell(f"{'task':<12} {report.file} is there, and stays as it is")
    may_run = not (dry_run or no_run)
    if may_run and report.gaps:
        tell(f"{'baseline':<12} not run: it cannot start before what is missing is there")
    failed = may_run and (bool(report.gaps) or not _baselines(report, tell))
    _finish(report, folder, ran=bool(report.runs))
    if as_json:
        print_json(_document(report))
    else:
        for gap in report.gaps:
            say(f"{'missing':<12} {gap.what}: {gap.remedy}")
        say(f"{'next':<12} {report.next}")
    if failed:
        raise typer.Exit(1)


def _refuse_choices(file: Path, **choices: object) -> None:
    """Refuse what a task file that is there says itself."""
    given = [f"--{name}" for name, value in choices.items() if value is not None]
    if given:
        raise UsageError(
            f"{file} is there, and says what {' and '.join(given)} would",
            hint=f"edit it, or move it away: mv {file} {file}.old",
        )


def _knobs(found: Findings) -> dict[str, Knob]:
    """Return knobs for constants in small letters, which `search` does not take by itself."""
    from autohypothesis.proposers.knobs import discovered

    if discovered(found.sources()):
        return {}
    return {
        name: knob
        for name, knob in discovered(found.sources(), any_case=True).items()
        if name in found.constants
    }


def _tell_findings(found: Findings, tell: Any) -> None:
    """Say what was found, before anything is run."""
    import shlex

    from autohypothesis.proposers.knobs import budget_constants

    facts, metric = found.facts, found.metric
    rest = [script.path for script in found.scripts if script.path != facts.path][:SHOWN]
    why = next((script.reasons for script in found.scripts if script.path == facts.path), ())
    lines = [
        ("repository", str(found.root)),
        ("script", f"{facts.path}: {', '.join(why) or 'as you said'}"),
        ("", f"others: {', '.join(rest)}; --script FILE takes one" if rest else ""),
        ("command", shlex.join(found.command) + ("" if found.cwd == "." else f" in {found.cwd}/")),
        *(("", f"or: {shlex.join(other)}") for other in found.documented[:2]),
    ]
    if metric is None:
        lines.append(("metric", "none found in the source; the baseline's log will tell"))
    else:
        line = facts.lines.get(metric.name, "")
        of_many = ", the last value of a run" if found.take == "last" else ""
        where = f" ({line})" if line else ""
        lines.append(("metric", f"{metric.direction} {metric.name}{of_many}{where}"))
        others = [each.name for each in facts.metrics if each.name != metric.name][:SHOWN]
        lines.append(
            ("", f"others: {', '.join(others)}; --metric NAME takes one" if others else "")
        )
    typed = [
        f"{each.name}{'' if each.default is None else f' {each.default}'}"
        for each in facts.arguments
    ]
    lines.append(("arguments", _few(typed)))
    lines.append(("settings", _few([f"{name} {value}" for name, value in found.constants.items()])))
    lines.append(("knobs", _few(found.knobs)))
    if compute := budget_constants(found.sources(), any_case=True):
        lines.append(("left alone", f"{_few(compute)}, which would buy score with compute"))
    lines.append(("config", _few([*facts.config_scripts, *facts.configs])))
    lines.append(("data", _few([str(entry) for entry in found.data])))
    for name, text in lines:
        if text:
            tell(f"{name:<12} {text}")


def _few(words: Any) -> str:
    listed = list(words)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more


def _write(report: Report, found: Findings) -> None:
    """Write the task file: a new one, or the one that this call wrote, with better findings."""
    from autohypothesis.records.files import write_atomic

    text = found.task_text().encode()
    if not report.written:
        with report.file.open("xb") as file:  # a file that appeared meanwhile stays
            file.write(text)
    elif report.found and report.file.read_bytes() == report.found.task_text().encode():
        write_atomic(report.file, text)
    report.found, report.written = found, True


# ── the baseline ────────────────────────────────────────────────────────────────────────────


def _baselines(report: Report, tell: Any) -> bool:
    """Run the baseline at two seeds; return whether both have a score.

    The first run may show another metric than was expected: then the file is corrected, where this
    call wrote it, and the run is made again.
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.decide import settle
    from autohypothesis.engine.experiment import FIRST_SEED, replicate_seed
    from autohypothesis.engine.first_task import noise_of
    from autohypothesis.engine.project import whole_or_nothing

    project = open_project(report.root)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag()
        try:
            with telling_what_runs_lack(project):
                first = _run(project, FIRST_SEED, report, tell)
            corrected = _corrected(report, project, first)
            if corrected is not None:
                _write(report, corrected)
                metric = corrected.metric
                words = "" if corrected.take == "only" else ", the last value of a run"
                tell(f"{'metric':<12} {metric.name if metric else ''}{words}, as the log has it")
                project = open_project(report.root)
                first = _run(project, FIRST_SEED, report, tell)
            if first.result.metric_value is None:
                _explain(report, project, first, tell)
                return False
            second = _run(project, replicate_seed(None, 1), report, tell)
            names = [first.experiment_id, second.experiment_id]
            settle(project, names, decided_by="init")
        finally:
            refresh(project.layout)
    values = first.result.metric_value, second.result.metric_value
    if values[1] is None:
        _explain(report, project, second, tell)
        return False
    noise = noise_of(values[0], values[1])
    report.noise, report.smallest_gain = noise
    _tell_noise(report, project, tell)
    return True


def _run(project: Project, seed: int, report: Report, tell: Any) -> Outcome:
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine import runner
    from autohypothesis.engine.experiment import Change, Experiment

    number = len(report.runs) + 1
    baseline = Experiment(Change(), title=f"baseline, seed {seed}", seed=seed)
    made = runner.run(project, baseline, watch=ProgressWatch())
    result = made.result
    seconds = result.metrics.model_dump().get("wall_seconds")
    report.runs.append(
        {
            "experiment_id": made.experiment_id,
            "seed": seed,
            "metric": result.metric_name,
            "value": result.metric_value,
            "seconds": seconds,
            "failure": result.failure_kind,
            "detail": result.failure_detail,
        }
    )
    scored = f"{result.metric_name} {result.metric_value}"
    came = f"{result.failure_kind}: {result.failure_detail}" if result.failure_kind else scored
    took = "" if seconds is None else f", {seconds:.1f} s"
    tell(f"{f'baseline {number}':<12} {came}{took}, seed {seed}")
    return made


def _corrected(report: Report, project: Project, made: Outcome) -> Findings | None:
    """Return the findings with what the log of a run without a score has; None: nothing better."""
    from autohypothesis.engine.logs import read_tail
    from autohypothesis.engine.metric_lines import WINDOW

    kind = made.result.failure_kind
    if kind not in ("no_metric", "invalid") or not (report.written and report.found):
        return None
    log = read_tail(str(project.layout.run(made.experiment_id).log), WINDOW)
    return report.found.corrected(log, several=kind == "invalid")


def _explain(report: Report, project: Project, made: Outcome, tell: Any) -> None:
    """Show the end of the log of a run without a score, and what it says is missing."""
    from autohypothesis.engine.first_task import Gap, gaps_in_log
    from autohypothesis.engine.logs import read_tail

    log = read_tail(str(project.layout.run(made.experiment_id).log), 1 << 16)
    for line in log.splitlines()[-TAIL_LINES:]:
        tell(f"{'':<12} {line}")
    gaps = list(gaps_in_log(log, report.root, report.found))
    if made.result.failure_kind == "timeout":
        gaps.append(Gap("a run takes longer than its limit", "init --seconds N, or fewer steps"))
    report.gaps += gaps or [
        Gap("the baseline has no score", f"python orchestrator.py show {made.experiment_id}")
    ]


def _tell_noise(report: Report, project: Project, tell: Any) -> None:
    """Say what two runs of one code differ by, and write the threshold where the file is ours."""
    from autohypothesis.engine.first_task import Gap

    gain, name = report.smallest_gain or 0.0, project.task.objective.metric
    if not report.noise:
        facts = report.found.facts if report.found else None
        tell(f"{'noise':<12} none seen: both runs have the same {name}")
        if facts is not None and not facts.reads_seed:
            typed = next((each for each in facts.arguments if each.name == "--seed"), None)
            edit = f"int(os.environ.get('SEED', {(typed.default if typed else None) or 0}))"
            where = "as the default of --seed" if typed else f"in {facts.seed_line or facts.path}"
            report.gaps.append(
                Gap(
                    f"{facts.path} reads no SEED, so every run draws the same numbers and what"
                    " chance does is not seen",
                    f"{edit} {where}",
                )
            )
        return
    tell(f"{'noise':<12} {report.noise:.3g} between two runs of the same code")
    tell(f"{'smallest gain':<12} {gain:g}: twice that; two runs tell it roughly")
    if report.written and report.found:
        words = f"Two runs of the same code differed by {report.noise:.3g}; this is twice that."
        _write(report, replace(report.found, min_delta=gain, noise=words))
        tell(f"{'wrote':<12} min_delta {gain:g} in {report.file.name}")
    elif project.task.objective.min_delta < gain:
        report.gaps.append(
            Gap(
                f"min_delta {project.task.objective.min_delta:g} is under the noise",
                f"objective: {{min_delta: {gain:g}}} in {report.file.name}",
            )
        )


# ── what comes next ─────────────────────────────────────────────────────────────────────────


def _finish(report: Report, folder: Path, *, ran: bool) -> None:
    """Note what is missing, and the next command."""
    import os
    import shlex

    from autohypothesis.engine.first_task import Gap
    from autohypothesis.proposers.knobs import discovered
    from autohypothesis.records.git import Repository

    root = report.root.resolve()
    where = "" if root == Path.cwd() else f" --repo {shlex.quote(os.fspath(folder))}"
    file = report.file
    if file.exists() and not Repository(report.root).tracks(file):
        report.gaps.append(
            Gap(
                f"{file.name} is in no commit",
                f"git -C {shlex.quote(str(report.root))} add {file.name}; git -C"
                f" {shlex.quote(str(report.root))} commit -m 'the task'",
            )
        )
    if (found := report.found) is not None and not (found.knobs or discovered(found.sources())):
        report.gaps.append(
            Gap(
                f"{found.facts.path} has no numbers at its top, which `search` turns",
                "name a program that has ideas: --proposer command:PROGRAM",
            )
        )
    if not file.exists():
        report.next = f"python orchestrator.py init{where}"
    elif not ran or report.noise is None:
        report.next = f"python orchestrator.py run-experiment --baseline --decide{where}"
    else:
        report.next = f"python orchestrator.py run-loop --max 20{where}"


def _document(report: Report) -> dict[str, Any]:
    found = report.found
    facts = found.facts if found else None
    return {
        "repository": str(report.root),
        "task_file": str(report.file),
        "written": report.written,
        "script": facts.path if facts else None,
        "candidates": [script._asdict() for script in found.scripts[:SHOWN]] if found else [],
        "command": list(found.command) if found else [],
        "cwd": found.cwd if found else ".",
        "documented": [list(other) for other in found.documented] if found else [],
        "metric": {
            "name": found.metric.name,
            "direction": found.metric.direction,
            "take": found.take,
            "line": facts.lines.get(found.metric.name) if facts else None,
        }
        if found and found.metric
        else None,
        "metrics": [metric.name for metric in facts.metrics] if facts else [],
        "arguments": [argument._asdict() for argument in facts.arguments] if facts else [],
        "constants": dict(found.constants) if found else {},
        "knobs": {name: knob.model_dump() for name, knob in found.knobs.items()} if found else {},
        "configs": [*facts.config_scripts, *facts.configs] if facts else [],
        "data": [entry._asdict() for entry in found.data] if found else [],
        "task": found.task_text() if found else None,
        "runs": report.runs,
        "noise": report.noise,
        "smallest_gain": report.smallest_gain,
        "missing": [gap._asdict() for gap in report.gaps],
        "next": report.next,
    }
