"""Scores bpe.py: whether it is right, and its time as a share of plain.py's.

    python tasks/fast-bpe/bench.py [CANDIDATE]

Prints one JSON line, whatever the candidate does: a child of its own imports, checks and times it,
with a limit of seconds. A candidate that is wrong, breaks or takes too long has `failures` and the
worst score. Lower is better; plain.py has 1.

plain.py and the candidate take turns on short texts, some milliseconds each. Of a block of turns
the least times count, which outlive whatever else the machine does; of the blocks the median share,
since a machine may be fast in one second and slow in the next. It is wall clock: on a virtual
machine the clock of the CPU subtracts what was stolen, sometimes all of it. The module is loaded
anew for each turn, so that remembering an answer does not help.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import math
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

sys.dont_write_bytecode = True  # a scorer leaves no file behind in the checkout

import plain  # noqa: E402
import suite  # noqa: E402

FOLDER = Path(__file__).resolve().parent
LIMIT_S = 15.0
WORST = 1000.0
BLOCKS = 5
ROUNDS = 14
TEXTS = 5
MERGES = 12
TEXT_WORDS = 40
KNOWN_WORDS = 25
MAX_BYTES = 100_000
MAX_MEMORY = 2 << 30
ALLOWED = frozenset(
    ("__future__", "array", "bisect", "collections", "functools", "heapq", "itertools", "math",
     "operator", "re", "typing")
)  # fmt: skip
"""What a candidate may import: enough to be fast, not enough to look at the clock that times it."""
FORBIDDEN = frozenset(
    ("__import__", "breakpoint", "compile", "eval", "exec", "exit", "globals", "input", "open",
     "quit", "vars", "__builtins__")
)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        return
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "bpe.py"
    answer = judged(path)
    problem = answer.pop("problem", "")
    if problem:
        print(f"bench: {problem}", file=sys.stderr)
    print(json.dumps(answer))


def judged(path: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The score of the candidate at `path`, from a child that is killed after `limit_s`."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / "bench.py"), "--child", str(path), str(writer)],
        pass_fds=(writer,), start_new_session=True, env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    problem = ""
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        problem = f"took longer than {limit_s:g} s"
    finally:
        _kill(process)
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as file:
        answer = _read(file.read(65_536) or b"")
    if answer is None or problem:
        return wrong(1, problem or f"ended with status {process.returncode} and no answer")
    return answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The child with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(data: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def wrong(failures: int, problem: str) -> dict[str, Any]:
    return {"score": WORST, "metrics": {"failures": failures}, "problem": problem[:300]}


def child(path: Path, answer: int) -> None:
    """Check and time, and write the answer to a pipe that the candidate does not know of."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(2 * LIMIT_S), int(2 * LIMIT_S)))
    result = _checked(path)
    os.write(answer, json.dumps(result).encode())
    os._exit(0)  # nothing that the candidate left to be run at exit


def _checked(path: Path) -> dict[str, Any]:
    try:
        source = path.read_bytes()[:MAX_BYTES]
        problem = refused(source)
        if problem:
            return wrong(1, problem)
        failures, first = suite.failures(loaded(source), plain)
        if failures:
            return wrong(failures, first)
        share = timed(source)
    except (Exception, SystemExit) as error:  # a candidate may raise anything anywhere
        return wrong(1, f"{type(error).__name__}: {error}")
    if share is None:
        return wrong(1, "another answer for a longer text")
    metrics = {"failures": 0, "times_faster": round(1 / share, 4)}
    return {"score": round(share, 5), "metrics": metrics}


def refused(source: bytes) -> str:
    """Why a candidate is not even loaded."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        for name in names:
            if name.split(".")[0] not in ALLOWED:
                return f"it may not import {name}"
        if isinstance(node, ast.Name) and node.id in FORBIDDEN:
            return f"it may not use {node.id}"
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            return f"it may not look at {node.attr}"
    return ""


def loaded(source: bytes) -> ModuleType:
    """The candidate as a new module: caches of an earlier one are gone."""
    module = ModuleType("bpe")
    exec(compile(source, "bpe.py", "exec"), module.__dict__)
    return module


def text_of(number: int) -> bytes:
    """Text like prose: few words are frequent, many are rare."""
    draw = random.Random(1000 + number)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(KNOWN_WORDS)]
    weights = [1 / (rank + 1) for rank in range(KNOWN_WORDS)]
    return " ".join(draw.choices(words, weights, k=TEXT_WORDS)).encode()


def timed(source: bytes) -> float | None:
    """The candidate's time as a share of plain.py's; None: an answer is wrong."""
    texts = [text_of(number) for number in range(TEXTS)]
    gc.disable()
    shares = []
    for _ in range(BLOCKS):
        share = _block(source, texts)
        if share is None:
            return None
        shares.append(share)
    return statistics.median(shares)


def _block(source: bytes, texts: list[bytes]) -> float | None:
    least = [{"plain": math.inf, "own": math.inf} for _ in texts]
    for turn in range(ROUNDS):
        for text, times in zip(texts, least, strict=True):
            sides = [("plain", plain), ("own", loaded(source))]
            answers = []
            for side, module in sides if turn % 2 else reversed(sides):
                seconds, answer = _seconds(module, text)
                times[side] = min(times[side], seconds)
                answers.append(answer)
            if answers[0] != answers[1]:
                return None
        gc.collect()
    return sum(times["own"] for times in least) / sum(times["plain"] for times in least)


def _seconds(module: ModuleType, text: bytes) -> tuple[float, Any]:
    started = time.perf_counter()
    learnt = module.learn(text, MERGES)
    tokens = module.encode(text[::-1], learnt)
    return time.perf_counter() - started, (learnt, tokens)


if __name__ == "__main__":
    main()
