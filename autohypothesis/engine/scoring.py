"""Scores a finished run: three scorers, one type of answer.

`model`   the official one: weights and `build_model`, scored in a fresh process by the pristine
          evaluator. The value that the training printed is advisory; the difference is recorded.
`command` a program of the task's, run after the training; its output is read as JSON or by pattern.
`log`     a line in the training's own log. Only the training vouches for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autohypothesis.engine.environment import resolved
from autohypothesis.engine.failures import classify, infra_reason
from autohypothesis.engine.logs import json_objects, parse_summary, read_tail
from autohypothesis.engine.shim import SCORING_TIMED_OUT
from autohypothesis.engine.task import Task
from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_bytes
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import ExitRecord, FailureKind, finite

LOG_LIMIT = 64 << 20
"""Bytes of a log that a number is looked for in; the shim caps run.log far below."""

EVALUATOR_KINDS: Mapping[str, FailureKind] = {"peeking": "invalid", "not_finite": "nan"}
"""Failures behind the evaluator's own refusals; any other is caused by the candidate's code."""

TAIL_BYTES = 4_096


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

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        """Return the answer, from what is on disk when training and scoring have ended."""


def scorer_for(task: Task) -> Scorer:
    """Return the scorer that `task` asks for."""
    if task.scorer.type == "model":
        return ModelScorer(task)
    return CommandScorer(task) if task.scorer.type == "command" else LogScorer(task)


@dataclass(frozen=True, slots=True)
class LogScorer(Scorer):
    """Reads the training's own words; two different summaries contradict each other."""

    task: Task

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        metric, log = self.task.objective.metric, self.task.run.log
        metrics: Mapping[str, Any] = record.metrics
        seen = record.summaries_seen
        if log is not None and checkout is not None:
            summary = parse_summary(_text(checkout / log), metric)
            metrics, seen = summary.metrics, summary.blocks
        if pattern := self.task.scorer.parse.pattern:
            numbers = _matches(_text(run.log), pattern)
            metrics, seen = {metric: numbers[-1] if numbers else None}, len(numbers)
        value, evidence = finite(metrics.get(metric)), {"summaries_seen": seen}
        if seen > 1:
            problem = f"the log holds {seen} values of {metric}; one run has one"
            return Score(None, metrics, evidence=evidence, problem=problem, kind="invalid")
        if value is None:
            problem = f"the log holds no finite {metric}"
            return Score(None, metrics, evidence=evidence, problem=problem, kind="no_metric")
        return Score(value, metrics, evidence=evidence)


@dataclass(frozen=True, slots=True)
class CommandScorer:
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
        scores = self._printed(_text(run.score_log))
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
class ModelScorer:
    """Has the pristine evaluator load the weights and score them in a process of its own."""

    task: Task

    def command(
        self, run: RunPaths, root: Path, checkout: Path, evaluator: Path | None
    ) -> tuple[str, ...] | None:
        words = (sys.executable, str(evaluator), "--score", str(run.folder))
        return (*words, "--train", str(checkout / self.task.artifacts[0]))

    def score(self, run: RunPaths, record: ExitRecord, checkout: Path | None) -> Score:
        metric = self.task.objective.metric
        answer = record.score or {}
        result = answer.get("result") or {}
        value = finite(result.get(metric))
        if answer.get("exit_code") == 0 and value is not None:
            printed = finite(record.metrics.get(metric))
            evidence = {
                "evaluator": result,
                "printed": printed,
                "score_difference": None if printed is None else value - printed,
                "summaries_seen": record.summaries_seen,
            }
            return Score(value, record.metrics, attested=True, evidence=evidence)
        problem = result.get("error") or answer.get("error") or f"the evaluator gave no {metric}"
        # The evaluator says whose fault it is, or it failed itself.
        is_verdict = answer.get("exit_code") == 0 or {"error", "kind"} <= result.keys()
        kind = EVALUATOR_KINDS.get(str(result.get("kind")))
        return Score(
            None,
            record.metrics,
            problem=f"official scoring failed: {problem}",
            kind=kind or _kind_of(run, answer, "code_error" if is_verdict else "infra"),
            evidence={"evaluator": result},
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


def _text(path: Path) -> str:
    try:
        return read_bytes(path, LOG_LIMIT).decode("utf-8", "replace")
    except (RecordError, FileNotFoundError):
        return ""


def _matches(text: str, pattern: str) -> list[str]:
    """Return the number in each match: the group `score` where there is one, else the first."""
    matches = re.finditer(pattern, text, re.MULTILINE)
    return [match["score"] if "score" in match.re.groupindex else match[1] for match in matches]
