"""Hypotheses out of what a program printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from autohypothesis.schema import Proposal

MAX_SHOWN = 2_000
"""Characters of a bad line that are given back."""
MAX_BAD = 50


@dataclass(frozen=True)
class Bad:
    """A line that is no hypothesis."""

    line: str
    reason: str

    def as_json(self) -> dict[str, str]:
        return {"line": self.line[:MAX_SHOWN], "reason": self.reason}


def read_answer(text: str) -> tuple[list[Proposal] | None, list[Bad]]:
    """The hypotheses in `text`, and the lines that are none.

    JSON lines, a line with a list of them, or one JSON document over several lines; fences of
    Markdown are skipped. None instead of an empty list: nothing at all was said.
    """
    lines = [line for line in text.splitlines() if line.strip() and not _is_fence(line)]
    if not lines:
        return None, []
    good: list[Proposal] = []
    bad: list[Bad] = []
    for line, item in _items(lines):
        if isinstance(item, Bad):
            bad.append(item)
            continue
        proposal = _proposal(line, item)
        if isinstance(proposal, Bad):
            bad.append(proposal)
        else:
            good.append(proposal)
    return good, bad[:MAX_BAD]


def _items(lines: list[str]) -> Iterator[tuple[str, Any]]:
    """(source text, JSON value or why it is none) of each item."""
    parsed = [(line, _parsed(line)) for line in lines]
    if any(isinstance(item, Bad) for _, item in parsed):
        whole = "\n".join(lines)
        document = _parsed(whole)
        if not isinstance(document, Bad):
            parsed = [(whole, document)]
    for line, item in parsed:
        if isinstance(item, list):
            yield from ((json.dumps(one), one) for one in item)
        else:
            yield line, item


def _parsed(text: str) -> Any:
    try:
        item = json.loads(text, parse_constant=_no_number)
        json.dumps(item, ensure_ascii=False).encode()  # half of a surrogate pair fits in no file
    except (ValueError, RecursionError) as error:
        return Bad(text, f"no JSON: {error}")
    return item


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _proposal(line: str, item: object) -> Proposal | Bad:
    if not isinstance(item, dict):
        return Bad(line, "a hypothesis is a JSON object")
    if isinstance(item.get("title"), str):
        item = {**item, "title": _one_line(item["title"])}
    try:
        proposal = Proposal.model_validate(item)
    except (ValidationError, RecursionError) as error:
        return Bad(line, _reason(error))
    changes = proposal.config_overrides or proposal.patch or proposal.instructions
    if not changes and not proposal.replicates:
        return Bad(line, "it changes nothing: give config_overrides, a patch or instructions")
    return proposal


def _reason(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    found = error.errors(include_url=False, include_input=False)
    parts = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".lstrip(": ") for one in found[:5]]
    return "; ".join(parts)


def _one_line(title: str) -> str:
    """A title goes into lists and pages: no line breaks, no control characters."""
    return " ".join("".join(one if one.isprintable() else " " for one in title).split())


def _is_fence(line: str) -> bool:
    return line.lstrip().startswith("```")
