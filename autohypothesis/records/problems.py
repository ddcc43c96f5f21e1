"""Problems in words: those of one kind are one line, with their number and three names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from autohypothesis.plain import some_of
from autohypothesis.records.layout import Place, RunPaths
from autohypothesis.schema import Problem

LIMIT = 64 * 1024 * 1024
"""Bytes of problems.json: some 300,000 entries."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_UNREADABLE = re.compile(r"(is not (?:JSON|UTF-8)): .*")
_RUN_FILES = {place.name for place in vars(RunPaths).values() if isinstance(place, Place)}


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """Return a line for each kind of problem, in the order in which the kinds appear.

    Files of one purpose with reasons that differ in numbers and quoted names only are of one kind.
    """
    kinds: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for problem in problems:
        reason = problem.reason
        kind = _purpose(problem.path), _VARYING.sub("#", _UNREADABLE.sub(r"\1", reason))
        kinds.setdefault(kind, (reason, []))[1].append(problem.path)
    return [
        f"{paths[0]}: {reason}"
        if len(paths) == 1
        else f"{len(paths):,} files, {some_of(paths)}: {reason}"
        for reason, paths in kinds.values()
    ]


def entries_in(document: Mapping[str, Any]) -> list[Problem]:
    """Return the entries of problems.json."""
    entries = document.get("problems")
    return [
        Problem(
            path=str(entry.get("path")),
            reason=str(entry.get("reason")),
            decided_otherwise=entry.get("decided_otherwise") is True,
        )
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    ]


def _purpose(path: str) -> str:
    """Return what the file is for, without the name of its experiment, worker or hypothesis."""
    place = PurePosixPath(path)
    if place.name in _RUN_FILES or len(place.parts) == 1:
        return place.name
    return f"{place.parent}/*{place.suffix}"
