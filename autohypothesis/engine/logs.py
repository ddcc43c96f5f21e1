"""What a training's log says: progress lines and the summary block. Pure.

Numbers come from code under test, so nothing here trusts them: only finite, plausible ones become
numbers, and only the last complete block counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_LINE = 4096  # characters of one line that are looked at
_MAX_NUMBER = 40  # characters of a number; longer ones are nonsense and slow to convert
_MAX_TEXT = 200  # characters of a value that is a word
_ABSURD = 1e18
_MAX_KEYS = 200

_NUMBER = r"[-+]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?|nan|[-+]?inf(?:inity)?"
_STEP = re.compile(r"\s*step\s+(\d{1,12})\b(?:[^|]*?\(\s*([\d.]{1,12})\s*%\s*\))?")
_FIELD = re.compile(r"\s*([A-Za-z][\w /]{0,40}?)\s*:\s*([^|]{0,60}?)\s*(?:\||$)")
_PAIR = re.compile(r"([A-Za-z_]\w{0,63}):[ \t]*(\S.*)")
_UNITS = re.compile(rf"({_NUMBER})\s*(?:ms|s|%|tok/s)?$", re.IGNORECASE)


class Progress(NamedTuple):
    """One progress line. `share` is the part of the budget used, 0 to 1."""

    step: int
    share: float | None = None
    loss: float | None = None
    bpb: float | None = None
    tok_per_sec: float | None = None
    mfu_percent: float | None = None
    remaining_s: float | None = None


class Summary(NamedTuple):
    """The last complete block of `name: value` lines, and how many blocks there were."""

    metrics: dict[str, float | str]
    blocks: int

    def number(self, name: str) -> float | None:
        """A metric as a number; None if it is absent or was not a finite number."""
        value = self.metrics.get(name)
        return value if isinstance(value, float) else None


def parse_number(text: str) -> float | None:
    """A finite number under 1e18 in size, commas and a unit allowed; None for anything else."""
    text = text.strip()
    if len(text) > _MAX_NUMBER:
        return None
    match = _UNITS.fullmatch(text)
    if match is None:
        return None
    value = float(match[1].replace(",", ""))
    return value if math.isfinite(value) and abs(value) < _ABSURD else None


def parse_progress(line: str) -> Progress | None:
    """A progress line such as `step 00953 (100.0%) | loss: 2.99 | tok/sec: 1,700,000 | ...`.

    None if the line does not begin with a step. Fields may come in any order, unknown ones are
    skipped, and a number that is none (`loss: nan`) is absent.
    """
    line = line[:MAX_LINE]
    head = _STEP.match(line)
    if head is None or "|" not in line:
        return None
    values = {
        found[1].strip().lower(): parse_number(found[2])
        for part in line.split("|")[1:]
        if (found := _FIELD.fullmatch(part)) is not None
    }
    percent = parse_number(head[2]) if head[2] else None
    return Progress(
        step=int(head[1]),
        share=None if percent is None else min(max(percent / 100, 0.0), 1.0),
        loss=values.get("loss"),
        bpb=values.get("bpb"),
        tok_per_sec=values.get("tok/sec"),
        mfu_percent=values.get("mfu"),
        remaining_s=values.get("remaining"),
    )


def parse_summary(text: str, metric: str = "val_bpb") -> Summary:
    """The last complete block in `text`, and the number of blocks.

    A block is a run of `name: value` lines that contains `metric`, after `---` or bare. The last
    line counts only if it ends: a number that was cut off is another number. A value that is no
    plausible number stays text, or is left out if it looks like one (NaN, 1e999, 5,000 digits).
    """
    found = [block for block in _blocks(text) if metric in block]
    if not found:
        return Summary({}, 0)
    return Summary(_values(found[-1]), len(found))


def printed_nonsense(text: str, metric: str = "val_bpb") -> str | None:
    """The last printed value of `metric`, if it is not a plausible number; else None."""
    found = [block[metric] for block in _blocks(text) if metric in block]
    return found[-1] if found and parse_number(found[-1]) is None else None


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """Runs of pairs, in order. A repeated name or a `---` begins the next."""
    block: dict[str, str] = {}
    lines = re.split(r"[\r\n]", text)
    lines.pop()  # what follows the last line end is not a line yet
    for line in lines:
        line = line[:MAX_LINE].rstrip()
        pair = _PAIR.match(line)
        if not line:
            continue
        if pair is None or pair[1] in block:
            yield block
            block = {}
        if pair is not None and len(block) < _MAX_KEYS:
            block[pair[1]] = pair[2][:_MAX_TEXT]
    yield block


def _values(block: dict[str, str]) -> dict[str, float | str]:
    values: dict[str, float | str] = {}
    for name, text in block.items():
        number = parse_number(text)
        if number is not None:
            values[name] = number
        elif not _looks_numeric(text):
            values[name] = text
    return values


def _looks_numeric(text: str) -> bool:
    bare = text.strip().lstrip("+-").lower()
    return bare[:1].isdigit() or bare[:1] == "." or bare.startswith(("nan", "inf"))
