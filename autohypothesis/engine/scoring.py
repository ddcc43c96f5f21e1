"""Scores a finished run: three scorers, one type of answer.

`model`   the official one: weights and `build_model`, scored in a fresh process by the pristine
          evaluator. The value that the training printed is advisory; the difference is recorded.
`command` a program of the task's, run after the training; its output is read as JSON or by pattern.
`log`     a line in the training's own log. Only the training vouches for it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autohypothesis.engine.environment import resolved
from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.failures import classify, infra_reason, part_of
from autohypothesis.engine.logs import json_objects, parse_summary, read_tail
from autohypothesis.engine.metric_lines import find_metrics, is_likely_objective
from autohypothesis.engine.shim import FOREIGN_DEADLINE_S, SCORING_TIMED_OUT
from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import has_option
from autohypothesis.records.files import load_or_none, read_text
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import ExitRecord, FailureKind, finite

LOG_LIMIT = 64 << 20
"""Bytes of a log that a number is looked for in; the shim caps run.log far below."""

EVALUATOR_KINDS: Mapping[str, FailureKind] = {
    "peeking": "invalid",
    "not_finite": "nan",
    "timeout": "timeout",
}
"""Failures behind the evaluator's own refusals; any other is caused by the candidate's code."""
HOST_OPTION = "--candidate-host"
"""Option of an evaluator that asks a host, and has none of the candidate's code in its process."""

TAIL_BYTES = 4_096
LISTED_BYTES = 1 << 20
"""Bytes at the end of a log in which other metrics are looked for."""
NAMED = 6
"""Other metrics that a message names."""


@dataclass(frozen=True, slots=True)
class Score:
    """The answer of a scorer.

    Attributes:
        value: the task's metric, finite or None.
        metrics: everything else that it reported.
        attested: whether a program other than the training vouches for the value.
        problem: why there is no value, in one line, and `kind`, the failure it stands for.
    """

    value: float | None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    attested: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    kind: FailureKind | None = None


class Scorer(Protocol):
    """One way to score. A scorer inherits this class for what it does not define."""

    def command(
        self, run: RunPaths, root: Path, checkout: Path, evaluator: Path | None
    ) -> tuple[str, ...] | None:
        """Return what the shim runs after the training, under the same lease; None when nothing.

        `root` is the repository, whose `.venv` a command may name.
        """
        return None

    def host(self, checkout: Path, evaluator: Path | None) -> tuple[str, ...] | None:
        """Return the command of the process that has the candidate's code; the words that start it
        in a sandbox are to follow `command`, which then runs outside. None: all of it runs inside.
        """
        return None

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        """Return the answer, from what is on disk when training and scoring have ended."""


def scorer_for(task: Task, order: str = "") -> Scorer:
    """Return the scorer that `task` asks for; `order` is that of a score to be repeated."""
    if task.scorer.type == "model":
        return ModelScorer(task, order)
    return CommandScorer(task) if task.scorer.type == "command" else LogScorer(task)


def order_of(exit: Mapping[str, Any]) -> str:
    """Return the order of the rows that a run was scored in, by its exit record, or ""."""
    result = part_of(part_of(exit, "score"), "result")
    return str(result.get("order") or "")


@dataclass(frozen=True, slots=True)
class LogScorer(Scorer):
    """Reads the training's own words. Two different values contradict each other, unless the task
    takes the last one."""

    task: Task

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        metric, log, parse = self.task.objective.metric, self.task.run.log, self.task.scorer.parse
        metrics: Mapping[str, Any] = record.metrics
        # An exit.json of an earlier version holds the last value only.
        values, seen = (
            [*record.metric_values] or [finite(metrics.get(metric))],
            record.summaries_seen,
        )
        if log is not None and checkout is not None:
            summary = parse_summary(read_text(checkout / log, LOG_LIMIT), metric)
            metrics, seen, values = summary.metrics, summary.blocks, summary.values
        if parse.pattern is not None:
            matches = _matches(read_text(run.log, LOG_LIMIT), parse.pattern)
            numbers = [finite(number) for number in matches]
            seen, values = len(numbers), list(dict.fromkeys(reversed(numbers)))[::-1]
        evidence = {"summaries_seen": seen}
        if len(values) > 1 and parse.take == "only":
            problem = contradiction(metric, values)
            return Score(None, metrics, evidence=evidence, problem=problem, kind="invalid")
        value = value_taken(self.task, values)
        if value is None:
            text = read_tail(str(checkout / log if log and checkout else run.log), LISTED_BYTES)
            problem = f"the log holds no finite {metric}{_instead(text)}"
            return Score(None, metrics, evidence=evidence, problem=problem, kind="no_metric")
        return Score(value, {**metrics, metric: value}, evidence=evidence)


def value_taken(task: Task, values: Sequence[float | None]) -> float | None:
    """Return which of the values that a run printed is its score: the last one, or the best one
    where the task takes that; None where it is no finite number."""
    if task.scorer.parse.take != "best":
        return values[-1] if values else None
    best = max if task.objective.direction == "maximize" else min
    return best((value for value in values if value is not None), default=None)


def contradiction(metric: str, values: Sequence[float | None]) -> str:
    """Return what is wrong with a log that holds these different values of its metric."""
    printed = ", ".join("none" if value is None else f"{value:g}" for value in values)
    return (
        f"the log holds {len(values)} different values of {metric} ({printed}); one run has one:"
        " print it once, or have the task take the last with `scorer: {parse: {take: last}}`, or"
        " the best with `take: best`"
    )


def _instead(text: str) -> str:
    """Return which other metrics a log holds, in words for the end of a message."""
    listed = [f"{metric.name} {metric.values[-1]:g}" for metric in find_metrics(text)[:NAMED]]
    return f"; it has {', '.join(listed)}" if listed else ""


def metric_advice(run: RunPaths) -> list[str]:
    """Return the lines of a task.yaml that takes the likeliest objective of a run's log, and a line
    before them; nothing where the log holds none, or a program scores."""
    spec = load_or_none(RunSpec, run.run_spec)
    if spec is None or spec.task.scorer.type != "log":
        return []
    metrics = find_metrics(read_tail(str(run.log), LISTED_BYTES))
    metric = next(filter(is_likely_objective, metrics), None)
    if metric is None:
        return []
    take = ", parse: {take: last}" if len(metric.values) > 1 else ""
    name = json.dumps(metric.name, ensure_ascii=False)
    return [
        f"if {metric.name} is what counts, this task.yaml takes it:",
        f"id: {spec.task.id}",
        f"artifacts: {json.dumps(spec.task.artifacts)}",
        f"run: {{deadline_seconds: {spec.task.run.deadline_seconds or FOREIGN_DEADLINE_S:g}}}",
        f"scorer: {{type: log{take}}}",
        f"objective: {{metric: {name}, direction: {metric.direction}}}",
    ]


@dataclass(frozen=True, slots=True)
class CommandScorer(Scorer):
    """Runs the task's own scoring program in the checkout, where only artifacts differ."""

    task: Task

    def command(
        self, run: RunPaths, root: Path, checkout: Path, evaluator: Path | None
    ) -> tuple[str, ...] | None:
        return resolved(self.task.scorer.command or (), root)

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        answer, parse = record.score or {}, self.task.scorer.parse
        error = str(answer.get("error") or "")
        if why := _unjudged(run, answer):
            return Score(None, problem=f"the scorer could not judge: {why}", kind="infra")
        if answer.get("exit_code") != 0 or (error and parse.pattern is None):
            # A candidate may keep a scorer busy for ever, so its time is the candidate's doing.
            is_late = error.startswith(SCORING_TIMED_OUT)
            kind: FailureKind = "timeout" if is_late else _kind_of(run, answer, "no_metric")
            problem = f"the scorer failed: {error or 'it did not run'}"
            return Score(None, problem=problem, kind=kind)
        scores = self._printed(read_text(run.score_log, LOG_LIMIT))
        if parse.take != "only" and scores:
            value = value_taken(self.task, [finite(score) for score, _ in scores])
            scores = [each for each in scores if finite(each[0]) == value][-1:]
        if len(scores) > 1:
            problem = f"the scorer printed {len(scores)} scores; one run has one"
            return Score(None, problem=problem, kind="invalid")
        score, reported = scores[0] if scores else (None, {})
        metrics = reported if isinstance(reported, dict) else {}
        if (value := finite(score)) is None:
            problem = f"the scorer printed no finite {self.task.objective.metric}: {score!r:.60}"
            return Score(None, metrics, problem=problem, kind="no_metric")
        return Score(value, metrics, attested=True)

    def _printed(self, text: str) -> list[tuple[object, object]]:
        parse = self.task.scorer.parse
        if parse.pattern is not None:
            return [(number, {}) for number in _matches(text, parse.pattern)]
        return [
            (printed[parse.score_field], printed.get(parse.metrics_field))
            for printed in json_objects(text)
            if parse.score_field in printed
        ]


@dataclass(frozen=True, slots=True)
class ModelScorer(Scorer):
    """Has the pristine evaluator score the weights. It asks a process with the candidate's code, or
    is of an earlier version, or of the user's, and imports that code itself."""

    task: Task
    order: str = ""
    """Of the rows, as the evaluator reported it; empty: it draws one."""

    def command(
        self, run: RunPaths, root: Path, checkout: Path, evaluator: Path | None
    ) -> tuple[str, ...] | None:
        candidate = ("--train", str(checkout / self.task.artifacts[0]))
        if self.host(checkout, evaluator) is None:
            return (sys.executable, str(evaluator), "--score", str(run.folder), *candidate)
        words = (sys.executable, "-I", str(evaluator), "--score", str(run.folder))
        order = ("--order", self.order) if self.order else ()
        return (*words, *candidate, *order, "--host")

    def host(self, checkout: Path, evaluator: Path | None) -> tuple[str, ...] | None:
        if evaluator is None or not has_option(evaluator, HOST_OPTION):
            return None
        candidate = str(checkout / self.task.artifacts[0])
        return (sys.executable, "-I", str(evaluator), HOST_OPTION, candidate)

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        metric = self.task.objective.metric
        answer = record.score or {}
        result = answer.get("result") or {}
        value = finite(result.get(metric))
        if answer.get("exit_code") == 0 and value is not None:
            printed = finite(record.metrics.get(metric))
            evidence = {
                "evaluator": result,
                "scored": answer.get("scored", "inside"),
                "printed": printed,
                "score_difference": None if printed is None else value - printed,
                "summaries_seen": record.summaries_seen,
            }
            return Score(value, record.metrics, attested=True, evidence=evidence)
        problem = result.get("error") or answer.get("error") or f"the evaluator gave no {metric}"
        # The evaluator says whose fault it is, or it failed itself.
        is_verdict = answer.get("exit_code") == 0 or {"error", "kind"} <= result.keys()
        scored = answer.get("scored", "inside")
        kind = EVALUATOR_KINDS.get(str(result.get("kind")))
        kind = kind or _kind_of(run, answer, "code_error" if is_verdict else "infra")
        if is_verdict and scored == "outside" and kind == "infra":
            # A host has no disk to fill, and what it says of the machine is no evidence.
            kind = "code_error"
        return Score(
            None,
            record.metrics,
            problem=f"official scoring failed: {problem}",
            kind=kind,
            evidence={"evaluator": result, "scored": scored},
        )


def _unjudged(run: RunPaths, answer: Mapping[str, Any]) -> str:
    """Return why a scoring is no evidence: it asks for another try itself, a signal that is not
    ours ended it, there was no room to write, or its shim could not watch it; else ""."""
    if answer.get("status") == "infra":
        return str(answer.get("error"))
    if answer.get("status") not in ("exited", "signalled") or answer.get("exit_code") == 0:
        return ""
    tail = read_tail(str(run.score_log), TAIL_BYTES)
    return infra_reason(answer.get("exit_code"), answer.get("signal"), tail)


def _kind_of(run: RunPaths, answer: Mapping[str, Any], default: FailureKind) -> FailureKind:
    """Return what a failed scoring stands for where a device, a disk or a limit ended it."""
    error = str(answer.get("error") or "")
    if answer.get("status") == "processes":
        return "code_error"
    if error.startswith(SCORING_TIMED_OUT):
        return "infra"
    tail = f"{read_tail(str(run.score_log), TAIL_BYTES)}\n{error}"
    failure = classify({"status": "exited", "exit_code": 1}, tail, None)
    return failure.kind if failure is not None and failure.kind in ("oom", "infra") else default


def _matches(text: str, pattern: str) -> list[str]:
    """Return the number in each match: the group `score` where there is one, else the first."""
    matches = re.finditer(pattern, text, re.MULTILINE)
    return [match["score"] if "score" in match.re.groupindex else match[1] for match in matches]
