"""Path patterns of a task: `*` and `?` stay in one folder, `**` crosses folders, a folder is all
that is in it. Paths are relative to the repository, with `/`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]|[^*?\[]+|\[")


def problem_with(pattern: str) -> str | None:
    """Why `pattern` cannot name files inside the repository; None when it can."""
    if not pattern or pattern.strip() != pattern:
        return "is empty, or begins or ends with a blank"
    if pattern.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", pattern):
        return "is absolute; write it relative to the repository or the task file"
    if "\\" in pattern or "\0" in pattern or "\n" in pattern:
        return "has a backslash or line break; folders are separated by '/'"
    if ".." in pattern.split("/"):
        return "leaves its folder through '..'"
    return None


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_regex(pattern) for pattern in patterns) or r"(?!)")


def _regex(pattern: str) -> str:
    """`pattern` as an expression for a whole path."""
    cleaned = pattern.removeprefix("./").rstrip("/")
    if cleaned == ".":
        return ".*"
    return "".join(_part(part) for part in _PARTS.findall(cleaned)) + "(?:/.*)?"


def _part(part: str) -> str:
    if part == "**/":
        return "(?:.*/)?"
    if part == "**":
        return ".*"
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("[") and len(part) > 1:
        inside = part[1:-1]
        negated = inside.startswith("!")
        return ("[^/" if negated else "[") + re.escape(inside[negated:]).replace(r"\-", "-") + "]"
    return re.escape(part)


def matches(path: str, patterns: Iterable[str]) -> bool:
    return _compiled(tuple(patterns)).fullmatch(path) is not None


def matching(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The `paths` that one of `patterns` names, in their order."""
    compiled = _compiled(tuple(patterns))
    return [path for path in paths if compiled.fullmatch(path)]
