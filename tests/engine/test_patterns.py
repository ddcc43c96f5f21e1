"""Patterns that match too much let a change out; too little, and nothing can change."""

from __future__ import annotations

import pytest

from autohypothesis.engine.task import matches, pattern_problem


@pytest.mark.parametrize(
    ("pattern", "path", "does"),
    [
        ("train.py", "train.py", True),
        ("train.py", "src/train.py", False),
        ("train.py", "trainXpy", False),
        ("*.py", "train.py", True),
        ("*.py", "src/train.py", False),
        ("*", "src/train.py", True),  # the folder `src`, and so what is in it
        ("src/*.py", "src/a/b.py", False),
        ("**/*.py", "train.py", True),
        ("**/*.py", "a/b/c.py", True),
        ("**", "a/b/c", True),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("prompts", "prompts/a/b.md", True),
        ("prompts/", "prompts/a.md", True),
        ("prompts/", "prompts2/a.md", False),
        ("./train.py", "train.py", True),
        (".", "anything/at/all", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].md", "a.md", True),
        ("[!ab].md", "a.md", False),
        ("[!ab].md", "c.md", True),
        ("a+b(1).md", "a+b(1).md", True),
        ("a[", "a[", True),
        ("prömpt.md", "prömpt.md", True),
    ],
)
def test_a_pattern_names_what_people_think(pattern: str, path: str, does: bool) -> None:
    assert matches(path, [pattern]) is does


def test_no_pattern_names_nothing() -> None:
    assert not matches("", [])
    assert not matches("train.py", [])


@pytest.mark.parametrize(
    "pattern", ["", " a", "/a", "~/a", "a\\b", "../a", "a/../b", "a\nb", "c:/x"]
)
def test_a_pattern_stays_inside(pattern: str) -> None:
    assert pattern_problem(pattern)


@pytest.mark.parametrize("pattern", ["a..b", "...", ".hidden", "a b/ü.md", "~a/b"[1:]])
def test_a_harmless_name_is_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None
