"""`init`: a task for one's own repository, found in its files, with two runs of its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
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
from autohypothesis.installation import suggested
from autohypothesis.plain import some_of

if TYPE_CHECKING:
    from autohypothesis.engine.experiment import Outcome
    from autohypothesis.engine.first_task import Findings, Gap
    from autohypothesis.engine.foreign_script import ScriptFacts
    from autohypothesis.engine.project import Project
    from autohypothesis.engine.task import Knob

SHOWN = 5
TAIL_LINES = 8


@dataclass
class Report:
    """What was found, written, run and is missing, for people and as JSON."""

    root: Path
    file: Path
    say: Callable[[str], None]
    found: Findings | None = None
    written: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    noise: float | None = None
    smallest_gain: float | None = None
    gaps: list[Gap] = field(default_factory=list)
    next: str = ""

    def tell(self, name: str, text: str) -> None:
        """Print a line at once."""
        self.say(f"{name:<12} {text}")

    def lacks(self, what: str, remedy: str) -> None:
        """Note what is missing, and what adds it."""
        from autohypothesis.engine.first_task import Gap

        self.gaps.append(Gap(what, remedy))


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
    from autohypothesis.engine.first_task import examine
    from autohypothesis.engine.shim import FOREIGN_DEADLINE_S
    from autohypothesis.engine.task_file import shipped_task
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

    folder = path or repo
    repository = Repository.find(folder)
    repository.head()  # without a commit there is nothing to run
    file = Layout(repository.root).root_task
    if not file.exists():
        file = shipped_task(repository) or file
    report = Report(repository.root, file, remark if as_json else say)
    choices = {"--script": script, "--command": command, "--metric": metric, "--seconds": seconds}
    if file.exists():
        if given := [name for name, value in choices.items() if value is not None]:
            raise UsageError(
                f"{file} is there, and says what {' and '.join(given)} would",
                hint=f"edit it, or move it away: mv {file} {file}.old",
            )
        report.tell("task", f"{file} is there, and stays as it is")
    else:
        found = examine(
            repository, folder, script=script, command=command, metric=metric,
            seconds=seconds or FOREIGN_DEADLINE_S,
        )  # fmt: skip
        report.found = found = replace(found, knobs=_knobs(found))
        _tell_findings(found, report)
        report.gaps += found.gaps
        if dry_run:
            report.tell("would write", f"{file}\n")
            report.say(found.task_text())
        elif not any(gap.is_choice for gap in report.gaps):
            _write(report, found)
            report.tell("wrote", str(file))
    may_run = not (dry_run or no_run)
    if may_run and report.gaps:
        report.tell("baseline", "not run: it cannot start before what is missing is there")
    failed = may_run and (bool(report.gaps) or not _baselines(report))
    _finish(report, folder)
    if as_json:
        print_json(_document(report))
    else:
        for gap in report.gaps:
            report.tell("missing", f"{gap.what}: {gap.remedy}")
        report.tell("next", report.next)
    if failed:
        raise typer.Exit(1)


def _knobs(found: Findings) -> dict[str, Knob]:
    """Return the knobs where some are in small letters, which `search` does not take by itself."""
    from autohypothesis.proposers.knobs import discovered

    sources = found.sources()
    every = discovered(sources, any_case=True)
    knobs = {name: knob for name, knob in every.items() if name in found.constants}
    return {} if all(map(str.isupper, knobs)) else knobs


def _tell_findings(found: Findings, report: Report) -> None:
    """Say what was found, before anything is run."""
    import shlex

    from autohypothesis.engine.constants import option_name
    from autohypothesis.proposers.knobs import budget_constants, set_twice

    facts, arguments = found.facts, {option_name(each.name) for each in found.facts.arguments}
    why = next((script.reasons for script in found.scripts if script.path == facts.path), ())
    scripts = [script.path for script in found.scripts if script.path != facts.path][:SHOWN]
    compute = budget_constants(found.sources(), any_case=True)
    twice = set_twice(found.sources(), any_case=True)
    homes = _few(f"{name} (in {' and '.join(paths)})" for name, paths in twice.items())
    lines = [
        ("repository", str(found.root)),
        ("script", f"{facts.path}: {', '.join(why) or 'as you said'}"),
        ("", scripts and f"others: {', '.join(scripts)}; --script FILE takes one"),
        ("command", shlex.join(found.command) + ("" if found.cwd == "." else f" in {found.cwd}/")),
        *(("", f"or: {shlex.join(other)}") for other in found.documented[:2]),
        *_metric_lines(found, facts.lines.get(found.metric.name if found.metric else "", "")),
        ("arguments", _few(map(str, facts.arguments))),
        ("settings", _few(f"{k} {v}" for k, v in found.constants.items() if k not in arguments)),
        ("knobs", _few(found.knobs)),
        ("left alone", compute and f"{_few(compute)}, which would buy score with compute"),
        ("left alone", twice and f"{homes}: `search` turns what one file alone sets"),
        ("config", _few([*facts.config_scripts, *facts.configs])),
        ("data", _few(map(str, found.data))),
    ]
    for title, text in lines:
        if text:
            report.tell(title, str(text))


def _metric_lines(found: Findings, where: str) -> list[tuple[str, str]]:
    """Return the lines that name the objective and the metrics beside it."""
    if (metric := found.metric) is None:
        return [("metric", "none found in the source; the baseline's log will tell")]
    lines = [("metric", f"{metric.direction} {metric.name}" + (f" ({where})" if where else ""))]
    others = [each.name for each in found.facts.metrics if each.name != metric.name][:SHOWN]
    if others:
        lines.append(("", f"others: {', '.join(others)}; --metric NAME takes one"))
    return lines


def _few(words: Iterable[str]) -> str:
    return some_of(list(words), 8)


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


def _baselines(report: Report) -> bool:
    """Run the baseline at two seeds; return whether both have a score.

    The first run may show another metric than was expected: then the file is corrected, where this
    call wrote it, and the run is made again.
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.decide import settle
    from autohypothesis.engine.experiment import FIRST_SEED, replicate_seed
    from autohypothesis.engine.project import whole_or_nothing

    project = open_project(report.root)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag()
        try:
            with telling_what_runs_lack(project):
                first = _run(project, FIRST_SEED, report)
            if (corrected := _corrected(report, project, first)) is not None:
                _write(report, corrected)
                for title, text in _metric_lines(corrected, "as the log has it"):
                    report.tell(title, text)
                project = open_project(report.root)
                first = _run(project, FIRST_SEED, report)
            if first.result.metric_value is None:
                _explain(report, project, first)
                return False
            second = _run(project, replicate_seed(None, 1), report)
            settle(project, [first.experiment_id, second.experiment_id], decided_by="init")
        finally:
            refresh(project.layout)
    if second.result.metric_value is None:
        _explain(report, project, second)
        return False
    _measure(report, project, abs(first.result.metric_value - second.result.metric_value))
    _write_what_runs_showed(report, project, first)
    return True


def _run(project: Project, seed: int, report: Report) -> Outcome:
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine import runner
    from autohypothesis.engine.experiment import Change, Experiment

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
    came = f"{result.metric_name} {result.metric_value}"
    if result.failure_kind:
        came = f"{result.failure_kind}: {result.failure_detail}"
    took = "" if seconds is None else f", {seconds:.1f} s"
    report.tell(f"baseline {len(report.runs)}", f"{came}{took}, seed {seed}")
    return made


def _corrected(report: Report, project: Project, made: Outcome) -> Findings | None:
    """Return the findings with what the log of a run without a score has; None: nothing better."""
    from autohypothesis.engine.logs import parse_summary, read_tail
    from autohypothesis.engine.metric_lines import WINDOW

    if not (report.written and report.found):
        return None
    log = read_tail(str(project.layout.run(made.experiment_id).log), WINDOW)
    if made.result.failure_kind == "no_metric" or report.found.is_several(log):
        return report.found.corrected(log)
    is_invalid = made.result.failure_kind == "invalid" and not report.found.take
    if is_invalid and len(parse_summary(log, project.task.objective.metric).values) > 1:
        return replace(report.found, take="last")
    return None


def _explain(report: Report, project: Project, made: Outcome) -> None:
    """Show the end of the log of a run without a score, and what it says is missing."""
    from autohypothesis.engine.first_task import gaps_in_log
    from autohypothesis.engine.logs import read_tail

    log = read_tail(str(project.layout.run(made.experiment_id).log), 1 << 16)
    for line in log.splitlines()[-TAIL_LINES:]:
        report.tell("", line)
    report.gaps += gaps_in_log(log, report.root, report.found)
    if made.result.failure_kind == "timeout":
        report.lacks("a run takes longer than its limit", "init --seconds N, or fewer steps")
    if not report.gaps:
        show = f"python orchestrator.py show {made.experiment_id}"
        report.lacks("the baseline has no score", show)


def _measure(report: Report, project: Project, noise: float) -> None:
    """Say what two runs of one code differ by, and the threshold that follows from it."""
    from autohypothesis.engine.first_task import smallest_gain

    report.noise = noise
    report.smallest_gain = gain = smallest_gain(noise)
    objective = project.task.objective
    if not noise:
        report.tell("noise", f"none seen: both runs have the same {objective.metric}")
        if report.found and not report.found.facts.reads_seed:
            _tell_seed(report, report.found.facts)
        return
    report.tell("noise", f"{noise:.3g} between two runs of the same code")
    report.tell("smallest gain", f"{gain:g}: twice that; two runs tell it roughly")
    if not report.written and objective.min_delta < gain:
        report.lacks(
            f"min_delta {objective.min_delta:g} is under the noise",
            f"objective: {{min_delta: {gain:g}}} in {report.file.name}",
        )


def _write_what_runs_showed(report: Report, project: Project, first: Outcome) -> None:
    """Write threshold and score of the baselines into the task file that this call wrote."""
    from autohypothesis.records.files import load_or_none
    from autohypothesis.schema import ExitRecord

    record = load_or_none(ExitRecord, project.layout.run(first.experiment_id).exit)
    if not (report.written and report.found and record):
        return
    better, wrote = report.found.with_values(record.summaries_seen, record.metric_values), []
    if better.printed:
        report.tell("score", f"{better.printed} {report.file.name} takes {better.take}")
    else:
        wrote.append("no `take`, since the metric is printed once,")
    if report.noise:
        words = f"Two runs of the same code differed by {report.noise:.3g}; this is twice that."
        better = replace(better, min_delta=report.smallest_gain or 0.0, noise=words)
        wrote.append(f"min_delta {better.min_delta:g}")
    _write(report, better)
    if wrote:
        report.tell("wrote", f"{' and '.join(wrote)} in {report.file.name}")


def _tell_seed(report: Report, facts: ScriptFacts) -> None:
    """Note where the script would read its seed."""
    where, default = f"in {facts.seed_line or facts.path}", 0
    for argument in facts.arguments:
        if argument.name == "--seed":
            where, default = "as the default of --seed", argument.default or 0
    report.lacks(
        f"{facts.path} reads no SEED, so every run draws the same numbers and what chance does is"
        " not seen",
        f"int(os.environ.get('SEED', {default})) {where}",
    )


# ── what comes next ─────────────────────────────────────────────────────────────────────────


def _finish(report: Report, folder: Path) -> None:
    """Note what is missing, and the next command."""
    import shlex

    from autohypothesis.proposers.knobs import discovered
    from autohypothesis.records.git import Repository

    root, file, found = report.root.resolve(), report.file, report.found
    if file.exists() and not Repository(report.root).tracks(file):
        git = f"git -C {shlex.quote(str(report.root))}"
        remedy = f"{git} add {file.name}; {git} commit -m 'the task'"
        report.lacks(f"{file.name} is in no commit", remedy)
    if found is not None and not (found.knobs or discovered(found.sources())):
        report.lacks(*_without_knobs(found, file))
    command = "init"
    if file.exists():
        is_measured = report.noise is not None
        command = "run-loop --max 20" if is_measured else "run-experiment --baseline --decide"
    where = "" if root == Path.cwd() else f" --repo {shlex.quote(str(folder))}"
    report.next = suggested(f"python orchestrator.py {command}{where}")


def _without_knobs(found: Findings, file: Path) -> tuple[str, str]:
    """Return why `search` has nothing to turn, and what helps."""
    import shlex

    from autohypothesis.engine.constants import option_name

    lacks = f"{found.facts.path} has no numbers that `search` turns"
    numbers = {
        option_name(argument.name): argument.name
        for argument in found.facts.arguments
        if isinstance(argument.default, (int, float))
    }

    def gives_number(word: str) -> bool:
        return word.startswith("--") and option_name(word) in numbers

    given = [numbers[option_name(word)] for word in found.command if gives_number(word)]
    left = [
        word
        for before, word in pairwise(["", *found.command])
        if not gives_number(word)
        and (word.startswith("--") or "=" in before or not gives_number(before))
    ]
    if given:
        return (
            f"{lacks}: the command gives {', '.join(given)}, so that no default of it counts",
            f"mv {file.name} {file.name}.old; init --command {shlex.quote(shlex.join(left))}",
        )
    if configs := found.facts.configs:
        lacks += f"; {', '.join(configs)} has its settings, which only an edit of that file changes"
    return lacks, "name a program that has ideas: --proposer command:PROGRAM"


def _document(report: Report) -> dict[str, Any]:
    document = {
        "repository": str(report.root),
        "task_file": str(report.file),
        "written": report.written,
        "runs": report.runs,
        "noise": report.noise,
        "smallest_gain": report.smallest_gain,
        "missing": [gap._asdict() for gap in report.gaps],
        "next": report.next,
    }
    if (found := report.found) is None:
        return document
    facts, metric = found.facts, found.metric
    return document | {
        "script": facts.path,
        "candidates": [script._asdict() for script in found.scripts[:SHOWN]],
        "command": list(found.command),
        "cwd": found.cwd,
        "documented": list(map(list, found.documented)),
        "metric": metric
        and {
            "name": metric.name,
            "direction": metric.direction,
            "take": found.take or "only",
            "line": facts.lines.get(metric.name),
        },
        "metrics": [each.name for each in facts.metrics],
        "arguments": [argument._asdict() for argument in facts.arguments],
        "constants": dict(found.constants),
        "knobs": {name: knob.model_dump() for name, knob in found.knobs.items()},
        "configs": [*facts.config_scripts, *facts.configs],
        "data": [entry._asdict() for entry in found.data],
        "task": found.task_text(),
    }
