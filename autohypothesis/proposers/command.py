"""Any program as a proposer, a language model's command line included.

It gets one JSON document on standard input and answers hypotheses as JSON lines. Lines that are
none are given back once, with the reason. Its exit status says nothing: only lines count, and a
program without ideas says so with `[]`. What it writes is data: nothing of it is ever run here.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from autohypothesis.engine import program
from autohypothesis.engine.environment import program_environment
from autohypothesis.errors import ProposerError, UsageError
from autohypothesis.fleet.proposing import Situation
from autohypothesis.proposers.answers import Bad, read_answer
from autohypothesis.proposers.document import document_of
from autohypothesis.schema import Proposal

TIMEOUT_S = 600.0
MAX_OUT = 1_000_000
"""Bytes of an answer; a program that says more is ended."""
TAIL = 2_000
"""Characters of what a failed program said that an error shows."""


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
        """What the program answers, `count` at most.

        Raises:
            ProposerError: it does not start, hangs, or says nothing that can be used; with the
                end of what it said.
        """
        if count < 1:
            return []
        deadline = time.monotonic() + self._timeout_s
        document = document_of(situation, count)
        answer = self._ask(document, deadline)
        good, bad = read_answer(answer.out)
        if bad and self._may_correct(answer, deadline):
            answer = self._ask({**document, "errors": [one.as_json() for one in bad]}, deadline)
            corrected, worse = read_answer(answer.out)
            good = [*(good or []), *(corrected or [])]
            bad = worse or ([] if corrected is not None else bad)
        if good is None or (not good and bad):
            raise self._nothing(answer, bad)
        return good[:count]

    def stop(self) -> None:
        """End the program, from another thread; it is not asked again."""
        self._stopped = True

    def _may_correct(self, answer: program.Ended, deadline: float) -> bool:
        """Whether a second question has a chance: the first was answered, and there is time."""
        answered = answer.exit_code is not None
        return answered and not self._stopped and time.monotonic() < deadline

    def _ask(self, document: dict[str, object], deadline: float) -> program.Ended:
        if self._stopped:
            raise ProposerError(f"{self.name} was stopped")
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
                f"{self.name} does not start: {error}",
                hint="name a program that is on the PATH, or its path from the repository's root",
            ) from error

    def _nothing(self, answer: program.Ended, bad: Sequence[Bad]) -> ProposerError:
        """Why there is no proposal, in the program's own last words."""
        if self._stopped:
            said = "was stopped"
        elif answer.overflow:
            said = "answered more than can be read and was killed"
        elif answer.exit_code is None:
            said = f"did not answer within {self._timeout_s:g} s and was killed"
        elif bad:
            said = f"answered no hypothesis: {bad[0].reason}"
        else:
            said = "answered nothing; one without ideas prints []"
        words = " | ".join(
            f"{name}: {text[-TAIL:].strip()}"
            for name, text in (("stderr", answer.err), ("stdout", answer.out))
            if text.strip()
        )
        status = "" if answer.exit_code is None else f" (exit status {answer.exit_code})"
        return ProposerError(
            f"{self.name} {said}{status}{'; ' + words if words else ''}",
            hint=f"try it by hand: {shlex.join(self._words)}",
        )
