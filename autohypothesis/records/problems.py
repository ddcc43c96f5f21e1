"""Problems in words: those of one kind are one line, with their number and three names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from autohypothesis.plain import some_of
from autohypothesis.records.layout import Place, RunPaths

LIMIT = 64 * 1024 * 1024
"""Bytes of problems.json: some 300,000 entries."""
DECIDED_OTHERWISE = " was decided"
"""The end of the reason of a file that states another value than its decision."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_UNREADABLE = re.compile(r"(is not (?:JSON|UTF-8)): .*")
_RUN_FILES = {place.name for place in vars(RunPaths).values() if isinstance(place, Place)}


def problem_lines(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each kind of problem, in the order in which the kinds appear.

    Args:
        problems: path and reason, which follows the path in a sentence. Files of one purpose with
            reasons that differ in numbers and quoted names only are of one kind.
    """
    kinds: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for path, reason in problems:
        kind = _purpose(path), _VARYING.sub("#", _UNREADABLE.sub(r"\1", reason))
        kinds.setdefault(kind, (reason, []))[1].append(path)
    return [
        f"{paths[0]}: {reason}"
        if len(paths) == 1
        else f"{len(paths):,} files, {some_of(paths)}: {reason}"
        for reason, paths in kinds.values()
    ]


def entries_in(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return path and reason of each entry of problems.json."""
    entries = document.get("problems")
    return [
        (str(entry.get("path")), str(entry.get("reason")))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    ]


def _purpose(path: str) -> str:
    """Return what the file is for, without the name of its experiment, worker or hypothesis."""
    place = PurePosixPath(path)
    if place.name in _RUN_FILES or len(place.parts) == 1:
        return place.name
    return f"{place.parent}/*{place.suffix}"
