"""Cases that a candidate must answer as plain.py does. The same cases every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

WORDS = (b"the", b"and", b"loss", b"low", b"lower", b"lowest", b"new", b"newer", b"banana", b"aa")
BY_HAND: tuple[tuple[bytes, int], ...] = (
    (b"", 3),
    (b"a", 3),
    (b" ", 2),
    (b"\n\n\n", 2),
    (b"  a  a  ", 4),
    (b"ab", 1),  # a pair that stands there once is no merge
    (b"ab ab", 0),
    (b"ab ab", 1),
    (b"ab ab", -1),
    (b"aaaa aaaa aaa", 5),  # pairs that overlap themselves
    (b"aaaaaaaaa", 9),
    (b"abab baba abab", 6),  # ties
    (b"ba ba ab ab", 2),
    (b"cd cd ab ab", 9),
    (b"abcabc abcabc abcd", 50),  # fewer merges than asked for
    (b"a\tb a\tb\r\na\tb", 3),  # a tab and a return end no word
    (bytes(range(256)) * 2, 4),
    ("größe größer größte".encode(), 8),
    (b"xyxyx yxyxy xyxyx", 7),
    (b"first line\nfirst line\nfirst  line \n", 12),
)


class Case(NamedTuple):
    text: bytes
    merges: int
    other: bytes
    """Text that is encoded with what was learnt from `text`."""


def cases() -> Iterator[Case]:
    """By hand, and drawn with fixed seeds: few letters make ties and overlaps, words make sense."""
    for text, merges in BY_HAND:
        yield Case(text, merges, text)
        yield Case(text, merges, b"banana " + text[::-1])
    for seed in range(40):
        draw = random.Random(seed)
        letters = b"ab c\n"[: draw.randint(2, 5)] if seed % 2 else bytes(range(256))
        text = bytes(draw.choices(letters, k=draw.randint(1, 90)))
        if seed % 4 == 0:
            text = b" ".join(draw.choices(WORDS, k=draw.randint(2, 25)))
        yield Case(text, draw.randint(1, 14), bytes(draw.choices(text + b" ", k=40)))


def failures(candidate: ModuleType, plain: ModuleType) -> tuple[int, str]:
    """How many answers are wrong, and the first of them in words."""
    wrong, first = 0, ""
    for case in cases():
        problem = _problem(candidate, plain, case)
        wrong += bool(problem)
        first = first or problem
    return wrong, first


def _problem(candidate: ModuleType, plain: ModuleType, case: Case) -> str:
    """What is wrong with the answers to one case; each question is put twice."""
    learnt = plain.learn(case.text, case.merges)
    tokens = plain.encode(case.other, learnt)
    for _ in range(2):
        problem = _differs(candidate.learn, (case.text, case.merges), learnt)
        given = list(learnt)
        problem = problem or _differs(candidate.encode, (case.other, given), tokens)
        if problem:
            return f"{problem} for {case.text[:30]!r} and {case.merges} merges"
        if given != learnt:
            return f"its argument is changed for {case.text[:30]!r}"
    return ""


def _differs(ask: Callable[..., Any], words: tuple[Any, ...], expected: list[Any]) -> str:
    try:
        answer = ask(*words)
    except Exception as error:  # whatever a candidate raises is a wrong answer
        return f"{type(error).__name__}: {error}"
    if type(answer) is not list or answer != expected:
        return f"{str(answer)[:40]} instead of {str(expected)[:40]}"
    if any(type(one) is not type(right) for one, right in zip(answer, expected, strict=True)):
        return "members of another type"
    return ""
