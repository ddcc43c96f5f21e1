"""Refusing a hopeless candidate in seconds: what can be read from it, then the task's own test.

The task's preflight command runs in a checkout of the candidate, but with the evaluator as it was
committed. It may import the candidate; without such a command a script is parsed, never imported.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autohypothesis.engine import program
from autohypothesis.engine.constants import parse, read_constants
from autohypothesis.engine.environment import INHERITED, THREAD_VARIABLES, resolved
from autohypothesis.engine.failures import CRASHES, signal_of, why_unjudged
from autohypothesis.engine.isolation import Surroundings
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError, PreflightError, UnjudgedError

TIMEOUT_S = 120.0
TRIES = 3
"""How often a preflight is run that could not judge."""
PAUSE_S = 0.5
"""Before the second try; each later pause is longer by as much."""
TAIL = 64 * 1024
"""Bytes of what the command printed that are looked at."""


class PreflightVerdict(BaseModel):
    """The last line that a preflight command prints."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    ok: bool
    problem: str = ""
    constants: dict[str, Any] | None = None
    """Values of the script's constants, expressions evaluated."""
    num_params: int | None = None


def check_sources(sources: Mapping[str, bytes], known: Mapping[str, Any]) -> dict[str, Any]:
    """The literal constants of Python `sources`, when they parse and fit together.

    Args:
        sources: the artifacts of the candidate, by path.
        known: constants of the profile, by lower-case name.

    Raises:
        PreflightError: with file and line, or the rule that is broken.
    """
    constants: dict[str, Any] = {}
    for path, source in sources.items():
        try:
            parse(source, path)
        except ChangeError as error:
            raise PreflightError(error.problem, hint=error.hint) from error
        constants = {**read_constants(source), **constants}
    problem = shape_problem({name.lower(): value for name, value in constants.items()}, known)
    if problem:
        raise PreflightError(problem, hint="propose other sizes")
    return constants


def shape_problem(constants: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """The rule of the published recipe that literal `constants` break; None if they break none."""
    for name in ("depth", "head_dim", "total_batch_size", "device_batch_size"):
        value = constants.get(name)
        if isinstance(value, (int, float)) and (isinstance(value, bool) or not value > 0):
            return f"{name.upper()} = {value} is not a positive number"
    total, rows = constants.get("total_batch_size"), constants.get("device_batch_size")
    length = constants.get("max_seq_len", known.get("max_seq_len"))
    sizes = (total, rows, length)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        return None
    if total % (rows * length):
        return (
            f"TOTAL_BATCH_SIZE = {total} is not a multiple of DEVICE_BATCH_SIZE x MAX_SEQ_LEN"
            f" = {rows} x {length}"
        )
    return None


def run_preflight(
    task: Task,
    checkout: Path,
    root: Path,
    *,
    evaluator: Path | None = None,
    inputs: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    around: Surroundings | None = None,
) -> PreflightVerdict:
    """Run the task's preflight command in `checkout`, without any GPU.

    A command that could not judge is run again, `TRIES` times in all.

    Args:
        evaluator: the pristine file that stands for `scorer.evaluator` in the command.
        inputs: variable -> path of each located input.
        around: what the command may see and change; None: as this process.

    Raises:
        PreflightError: the candidate is refused, or the command gave no verdict in time.
        UnjudgedError: the command could not judge, each time.
    """
    words = [
        str(evaluator) if evaluator is not None and word == task.scorer.evaluator else word
        for word in resolved(task.run.preflight or (), root)
    ]
    see, environment = f"run `{' '.join(words)}` in {checkout}", _environment(task, inputs)
    environment = around.environment(environment, None) if around else environment
    confined = around.bound(around.preflight(checkout, evaluator)) if around else None
    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        try:
            ended = program.run(
                words, cwd=checkout / task.run.cwd, environment=environment, confined=confined,
                timeout_s=timeout_s, out_limit=TAIL, tail=True,
            )  # fmt: skip
        except OSError as error:
            raise PreflightError(
                f"the preflight does not start: {error}", hint="correct run.preflight of the task"
            ) from error
        verdict = _verdict(ended.out)
        why = _unjudged(ended) if verdict is None else ""
        if not why:
            return _judged(ended, verdict, timeout_s, see)
    raise UnjudgedError(f"the preflight could not judge, {TRIES} times: {why}", hint=see)


def _unjudged(ended: program.Ended) -> str:
    """Why a preflight without a verdict says nothing about the candidate; empty if it does.

    It may import the candidate, so one that crashes was crashed by it.
    """
    if not ended.exit_code or signal_of(ended.exit_code) in CRASHES:
        return ""
    return why_unjudged(ended.exit_code, None, ended.err or ended.out)


def _judged(
    ended: program.Ended, verdict: PreflightVerdict | None, timeout_s: float, see: str
) -> PreflightVerdict:
    """The verdict of a command that could judge; `see` is what shows a person why there is none."""
    if ended.exit_code is None:
        raise PreflightError(
            f"the preflight {ended.limit(timeout_s)}", hint="propose a smaller model"
        )
    if verdict is None:
        reason = ended.err.strip().splitlines()[-1:] or [f"exit code {ended.exit_code}"]
        raise PreflightError(f"the preflight gave no verdict: {reason[0][:300]}", hint=see)
    if not verdict.ok:
        raise PreflightError(
            verdict.problem or "the preflight refused it", hint="propose something else"
        )
    return verdict


def _environment(task: Task, inputs: Mapping[str, str] | None) -> dict[str, str]:
    seen = {name: value for name, value in os.environ.items() if name in INHERITED}
    return {
        **seen,
        "HOME": os.path.expanduser("~"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SEED": "0",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        **task.run.env,
        **(inputs or {}),
    }


def _verdict(out: str) -> PreflightVerdict | None:
    lines = out.strip().splitlines()
    try:
        return PreflightVerdict.model_validate(json.loads(lines[-1])) if lines else None
    except (ValueError, ValidationError, RecursionError):
        return None
