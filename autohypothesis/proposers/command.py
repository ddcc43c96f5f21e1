"""Any program as a proposer, a language model's command line included.

It gets the situation as one JSON document on standard input (the table in docs/fleet.md) and
answers hypotheses as JSON lines. Lines that are none are given back once, with the reason. Words
around a good line cost nothing, and a wrong field beside a good change costs that field. Its exit
status says nothing: only lines count, and a program without ideas prints `[]`. Nothing that it
writes is ever run here.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json

from autohypothesis.engine import program
from autohypothesis.engine.environment import program_environment
from autohypothesis.engine.metric_lines import without_escapes
from autohypothesis.errors import ProposerError, UsageError, faults_in
from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.plain import plain_line, templates
from autohypothesis.proposers.history import best_and_latest
from autohypothesis.proposers.knobs import knobs_of
from autohypothesis.schema import Proposal

TIMEOUT_S = 600.0
MAX_OUT = 1_000_000
"""Bytes of an answer; a program that prints more is ended."""
TAIL = 2_000
"""Characters of a failed program's output that an error shows."""


class Command:
    """`command:PROGRAM ARGS`, run in the repository's root.

    The time limit covers an answer and its corrections together. `stop` ends a program that is
    thinking; nothing that it started outlives an answer.
    """

    def __init__(self, line: str, *, root: Path, timeout_s: float = TIMEOUT_S) -> None:
        """
        Raises:
            UsageError: `line` names no program, or its quotes do not close.
        """
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise UsageError(
                f"command:{line} cannot be read: {error}", hint="close the quotes"
            ) from error
        if not self._words:
            raise UsageError("command: names no program", hint="write command:PROGRAM ARGS")
        self.name = f"command:{line}"
        self._root, self._timeout_s = root, timeout_s
        self._stopped = False

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return what the program answers, `count` proposals at most.

        Raises:
            ProposerError: it does not start, hangs, or prints nothing that can be used; with the
                end of its output.
        """
        if count < 1:
            return []
        deadline = time.monotonic() + self._timeout_s
        document = document_of(situation, count)
        answer = self._ask(document, deadline)
        good, bad = read_answer(answer.out)
        is_in_time = answer.exit_code is not None and time.monotonic() < deadline
        is_asked_again = not good or any(item.is_meant for item in bad)
        if bad and is_asked_again and is_in_time and not self._stopped:
            errors = [{"line": item.line[:MAX_SHOWN], "reason": item.reason} for item in bad]
            answer = self._ask({**document, "errors": errors}, deadline)
            corrected, worse = read_answer(answer.out)
            good = [*(good or []), *(corrected or [])]
            bad = worse or ([] if corrected is not None else bad)
        if good is None or (not good and bad):
            raise self._nothing(answer, bad)
        return good[:count]

    def stop(self) -> None:
        """End the program, from another thread; it is not asked again."""
        self._stopped = True

    def _ask(self, document: dict[str, object], deadline: float) -> program.ProgramEnd:
        if self._stopped:
            raise ProposerError("it was stopped")
        try:
            return program.run(
                self._words,
                cwd=self._root,
                environment=program_environment(os.environ),
                timeout_s=deadline - time.monotonic(),
                stdin=json.dumps(document, default=str).encode(),
                out_limit=MAX_OUT,
                cancelled=lambda: self._stopped,
            )
        except OSError as error:
            raise ProposerError(
                f"it does not start: {error}",
                hint="name a program that is on the PATH, or its path from the repository's root",
            ) from error

    def _nothing(self, answer: program.ProgramEnd, bad: Sequence[BadLine]) -> ProposerError:
        """Return why there is no proposal, with the program's own last words."""
        if self._stopped:
            why = "was stopped"
        elif answer.overflow:
            why = "answered more than can be read and was killed"
        elif answer.exit_code is None:
            why = f"did not answer within {self._timeout_s:g} s and was killed"
        elif bad:
            why = f"answered no hypothesis: {bad[0].reason}"
        else:
            why = "answered nothing; one without ideas prints []"
        words = " | ".join(
            f"{name}: {plain_line(text[-TAIL:])}"
            for name, text in (("stdout", answer.out), ("stderr", answer.err))
            if text.strip()
        )
        status = "" if answer.exit_code is None else f" (exit status {answer.exit_code})"
        return ProposerError(
            f"it {why}{status}{'; ' + words if words else ''}",
            hint="try it by hand: python orchestrator.py briefing --question 1 |"
            f" {shlex.join(self._words)}",
        )


# ── the question ────────────────────────────────────────────────────────────────────────────

MAX_TRIALS = 100
BEST = 25
"""The number of best trials among them; the others are the latest."""
MAX_SOURCES = 200_000
"""Characters of all artifacts together."""
MAX_REFUSED = 50
MAX_TEXT = 1_000


def document_of(situation: Situation, count: int) -> dict[str, object]:
    """Return the situation as JSON; `errors` is filled in when lines are given back."""
    trials = best_and_latest(situation.trials, situation.direction, most=MAX_TRIALS, best=BEST)
    knobs = knobs_of(situation)
    refused = list(situation.refused.items())[:MAX_REFUSED]
    return {
        "answer": _instructions(),
        "count": count,
        "tag": situation.tag,
        "charter": situation.charter,
        "objective": {
            "metric": situation.metric,
            "direction": situation.direction,
            "min_delta": situation.min_delta,
        },
        "brief": situation.brief.model_dump(mode="json"),
        "steering": situation.steering.model_dump(mode="json"),
        "knobs": {
            name: knob.model_dump(mode="json", exclude_defaults=True)
            for name, knob in knobs.items()
        },
        "reference": dict(situation.reference),
        "code_hash": situation.code_hash,
        "sources": _bounded_sources(situation.sources),
        "trials": [_trial(trial, situation) for trial in trials],
        "trials_in_all": len(situation.trials),
        "open": [
            {"hypothesis_id": hypothesis.hypothesis_id, "title": hypothesis.title}
            for hypothesis in situation.open[:MAX_TRIALS]
        ],
        "refused": {title: why[:MAX_TEXT] for title, why in refused},
        "errors": [],
        "schema": Proposal.model_json_schema(),
    }


def _trial(trial: Trial, situation: Situation) -> dict[str, object]:
    """Describe a trial by its differences to the reference: in settings, and in code."""
    reference = situation.reference
    return {
        "experiment_id": trial.experiment_id,
        "title": trial.title,
        "description": trial.description[:MAX_TEXT],
        "same_code": trial.code_hash == situation.code_hash,
        "diff_hash": trial.diff_hash,
        "code_hash": trial.code_hash,
        "differs": {
            name: value
            for name, value in trial.settings.items()
            if name not in reference or reference[name] != value
        },
        "value": trial.value,
        "status": trial.status,
        "reason": trial.reason,
        "seed": trial.seed,
        "replicates": trial.replicates,
    }


def _bounded_sources(sources: Mapping[str, str]) -> dict[str, str]:
    """Return whole files while there is room: half a file makes a patch that does not apply."""
    kept, room = {}, MAX_SOURCES
    for path, text in sources.items():
        if len(text) <= room:
            kept[path] = text
            room -= len(text)
    return kept


@cache
def _instructions() -> str:
    folder = Path(__file__).parent / "templates"
    return templates(folder).get_template("answer.md.j2").render().strip()


# ── the answer ──────────────────────────────────────────────────────────────────────────────

MAX_SHOWN = 2_000
"""Characters of a bad line that are given back."""
MAX_BAD = 50


class BadLine(NamedTuple):
    """A line that is no hypothesis."""

    line: str
    reason: str

    @property
    def is_meant(self) -> bool:
        """Return whether it begins as JSON does, and not as words do."""
        return self.line.lstrip().startswith(("{", "["))


def read_answer(text: str) -> tuple[list[Proposal] | None, list[BadLine]]:
    """Return the hypotheses in `text`, and the lines that are none.

    JSON lines, a line with a list of them, or JSON over several lines, with words before and
    behind; fences of Markdown, colours and marks of byte order are skipped. None instead of an
    empty list: the text is empty.
    """
    lines = [without_escapes(line).lstrip("\ufeff") for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("```")]
    if not lines:
        return None, []
    items = [_proposal(line, value) for line, value in _values(lines)]
    bad = [item for item in items if isinstance(item, BadLine)]
    return [item for item in items if isinstance(item, Proposal)], bad[:MAX_BAD]


def _values(lines: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (source text, JSON value or `BadLine`) for each item."""
    tries, lines = MAX_BAD, lines[::-1]
    while lines:
        line = lines.pop()
        value = _parsed(line)
        if isinstance(value, BadLine) and value.is_meant and tries:
            tries -= 1
            rest = "\n".join([line, *lines[::-1]]).lstrip()
            with suppress(ValueError, RecursionError):
                line = rest[: json.JSONDecoder().raw_decode(rest)[1]]
                value = _parsed(line)
                del lines[len(lines) - line.count("\n") :]
        if isinstance(value, list):
            yield from ((json.dumps(part), part) for part in value)
        else:
            yield line, value


def _parsed(text: str) -> Any:
    try:  # unlike `json` it refuses NaN, and half of a surrogate pair, which fits in no file
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        return BadLine(text, f"no JSON: {error}")


def _proposal(line: str, value: Any) -> Proposal | BadLine:
    if isinstance(value, BadLine):
        return value
    if not isinstance(value, dict):
        return BadLine(line, "a hypothesis is a JSON object")
    if isinstance(title := value.get("title"), str):  # it goes into lists and pages
        value = {**value, "title": plain_line(title)}
    try:
        proposal = Proposal.read(value)
    except ValidationError as error:
        return BadLine(line, faults_in(error))
    changes = proposal.config_overrides or proposal.patch or proposal.instructions
    if not changes and not proposal.replicates:
        wrong = "".join(f"; {name}: {reason}" for name, reason in proposal.left_out.items())
        nothing = "it changes nothing: give config_overrides, a patch or instructions"
        return BadLine(line, nothing + wrong)
    return proposal
