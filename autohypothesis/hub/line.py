"""The protocol's one line about a result: written and read here, by client and server alike.

    commit:<7-char-hash> platform:<gpu> val_bpb:<value> vram_gb:<value> | <description>

A failed experiment has `---` for its numbers and says DISCARD or CRASH in its description. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autohypothesis.records.tables import harmless

Mark = Literal["", "DISCARD", "CRASH"]
"""Nothing: an improvement, or at least no failure."""

METRIC = "val_bpb"
NOTHING = "---"
LINE_LIMIT = 2_000
"""Characters of a line that may still be one."""

_NAMED = {"commit", "platform", "vram_gb"}
"""The fields beside the metric."""
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*):(\S+)")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?")
_SPOKEN = re.compile(r"\b(DISCARD|CRASH)(?:ED)?\b")
_MARKED = re.compile(r"(?:^|\s)\((DISCARD|CRASH)(?::\s*([^()]*))?\)$")


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One result, as the line can hold it: what it cannot is made to fit when one is made."""

    commit: str
    platform: str
    value: float | None
    """Of the metric; None where the run has none."""
    memory_gb: float | None
    description: str = ""
    mark: Mark = ""
    reason: str = ""
    """Of a failure, in a word or two: OOM."""
    metric: str = METRIC

    def __post_init__(self) -> None:
        spoken = _SPOKEN.sub(lambda match: match[0].lower(), harmless(self.description))
        fit = {
            "platform": "-".join(harmless(self.platform.replace("|", "-")).split()) or "device",
            "value": _rounded(self.value, 6),
            "memory_gb": _rounded(self.memory_gb, 1),
            "description": harmless(spoken),
            "reason": harmless(re.sub(r"[()]", " ", self.reason)).strip() if self.mark else "",
            "metric": _metric_name(self.metric),
        }
        for name, value in fit.items():
            object.__setattr__(self, name, value)


def write(line: ResultLine) -> str:
    """`line` as it is posted."""
    value = NOTHING if line.value is None else f"{line.value:.6f}"
    memory = NOTHING if line.memory_gb is None else f"{line.memory_gb:.1f}"
    mark = f"({line.mark}: {line.reason})" if line.reason else f"({line.mark})"
    told = " ".join(word for word in (line.description, mark if line.mark else "") if word)
    numbers = f"{line.metric}:{value} vram_gb:{memory}"
    return f"commit:{line.commit} platform:{line.platform} {numbers} | {told}".rstrip()


def parse(text: str) -> ResultLine | None:
    """The result that one line of a post tells; None where it tells none.

    People and agents write these by hand: the fields may come in any order, in back-ticks or as an
    item of a list, and the mark may stand anywhere in the description.
    """
    if len(text) > LINE_LIMIT:
        return None
    text = text.strip().lstrip("-* ")
    if text.startswith("`"):
        text = text.strip("` ")
    head, _, told = text.partition("|")
    found = [_FIELD.fullmatch(word) for word in head.split()]
    fields = {match[1]: match[2] for match in found if match}
    metric = next((name for name in fields if name not in _NAMED), "")
    if len(fields) != len(found) or fields.keys() - _NAMED != {metric}:
        return None
    if "platform" not in fields or not _COMMIT.fullmatch(fields.get("commit", "")):
        return None
    try:
        value, memory = _number(fields[metric]), _number(fields.get("vram_gb", NOTHING))
    except ValueError:
        return None
    description, mark, reason = _marked(told.strip())
    return ResultLine(
        fields["commit"], fields["platform"], value, memory, description, mark, reason, metric
    )


def results_in(post: str) -> list[ResultLine]:
    """Every result that a post tells, one a line."""
    return [found for line in _lines(post) if (found := parse(line)) is not None]


def _lines(post: str) -> Iterable[str]:
    """Lines that are somebody's own: a quoted one is another's result."""
    return (line for line in post.splitlines() if not line.lstrip().startswith(">"))


def _marked(told: str) -> tuple[str, Mark, str]:
    """Description, mark and reason."""
    end = _MARKED.search(told)
    spoken = end or _SPOKEN.search(told)
    if spoken is None:
        return told, "", ""
    mark: Mark = "CRASH" if spoken[1] == "CRASH" else "DISCARD"
    if end is None:
        return told, mark, ""
    return told[: end.start()], mark, (end[2] or "").strip()


def _number(text: str) -> float | None:
    """None for `---`; ValueError for what is no measurement: signs, NaN, infinities."""
    if set(text) == {"-"}:
        return None
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _metric_name(name: str) -> str:
    """`name` in one word, which is none of the other fields'."""
    word = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return word if re.match(r"[A-Za-z]", word) and word not in _NAMED else f"metric_{word}"


def _rounded(value: float | None, digits: int) -> float | None:
    """As the line has it. A measurement below zero, NaN or infinite is none."""
    if value is None or not math.isfinite(value) or value < 0:
        return None
    return round(value, digits)
