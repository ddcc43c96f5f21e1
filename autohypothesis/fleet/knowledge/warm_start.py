"""Findings and anchors of an earlier search, from its `results.tsv`; never a reference.

Tables of this kind were written by people, agents and several programs, so columns are found by
name and anything that is no measurement is none. A number from another machine is a hint: it goes
into the knowledge base, where proposers read it, and is compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from autohypothesis.errors import RecordError, UsageError
from autohypothesis.plain import table_text
from autohypothesis.records.files import load, read_bytes, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Finding, KnowledgeBase, finite, now

LIMIT = 16 * 1024 * 1024
KEPT, CRASHED, DISCARDED = 12, 8, 8
"""How many of each kind become findings; the rest is in the table."""
PREFIX = "warm-"
"""Of the ids of findings from a warm start."""
_NUMBER = re.compile(r"[+]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_MEMORY = {
    "memory_gb": 1.0, "peak_vram_gb": 1.0, "peak_memory_gb": 1.0, "vram_gb": 1.0,
    "peak_vram_mb": 1 / 1024, "memory_mb": 1 / 1024,
}  # fmt: skip
_METRIC = ("val_bpb", "metric_value", "metric")


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of the table."""

    line: int
    commit: str
    value: float | None
    """Of all but a crash."""
    memory_gb: float | None
    status: str
    """keep, discard or crash."""
    description: str


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A table of results, as far as it could be read."""

    path: Path
    tried: Sequence[TableLine]
    problems: Sequence[str] = ()
    """Lines that were of no use, and columns that are missing."""

    @property
    def first(self) -> TableLine | None:
        """The first line that was kept: where that search began."""
        return next((line for line in self.tried if line.status == "keep"), None)

    @property
    def best(self) -> TableLine | None:
        kept = [line for line in self.tried if line.status == "keep"]
        return min(kept, key=lambda line: line.value or 0.0, default=None)

    def findings(self) -> list[Finding]:
        """Return what helped most, what did not, and what failed; bounded."""
        kept = [line for line in self.tried if line.status == "keep"]
        values = [line.value or 0.0 for line in kept]
        changes = [
            (value - best, line)
            for value, best, line in zip(
                values[1:], accumulate(values, min), kept[1:], strict=False
            )
        ]
        changes.sort(key=lambda change: change[0])
        worse = [line for line in self.tried if line.status == "discard"][-DISCARDED:]
        failed = [line for line in self.tried if line.status == "crash"][-CRASHED:]
        return [
            *(
                self._finding(line, f"changed val_bpb by {delta:+.6f}")
                for delta, line in changes[:KEPT]
            ),
            *(self._finding(line, "did not help") for line in worse),
            *(self._finding(line, "failed") for line in failed),
        ]

    def _finding(self, line: TableLine, outcome: str) -> Finding:
        digest = sha256(f"{line.commit}\t{line.value}\t{line.description}".encode()).hexdigest()
        number = f", val_bpb {line.value:.6f}" if line.value is not None else ""
        return Finding(
            finding_id=f"{PREFIX}{digest[:12]}",
            title=f"{line.description or line.commit or 'no description'}: {outcome}"[:200],
            evidence=f"one run elsewhere, {self.path.name} line {line.line}{number}",
            confidence="low",
            implication="try it here" if outcome.startswith("changed") else "not first",
        )

    def anchors(self) -> list[dict[str, Any]]:
        """Return beginning and best of that search, to see where this one stands beside it."""
        return [
            {
                "role": role, "commit": line.commit, "val_bpb": line.value,
                "memory_gb": line.memory_gb, "description": line.description,
                "source": table_text(str(self.path)),
            }
            for role, line in (("first", self.first), ("best", self.best)) if line is not None
        ]  # fmt: skip


def read(path: Path, *, called: str = "--warm-start ") -> WarmStart:
    """Read the table at `path`; an error begins with `called`.

    Raises:
        UsageError: it is not there, is no table, or has no column for the metric.
    """
    try:
        content = read_bytes(path.resolve(), LIMIT)
    except FileNotFoundError:
        raise UsageError(f"{called}{path}: there is no such file") from None
    except RecordError as error:
        raise UsageError(f"{called}{error.problem}") from error
    text = content.decode("utf-8-sig", "replace")
    lines = [line.rstrip("\r") for line in re.split(r"\r\n|\n|\r", text)]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"{called}{path} is empty")
    columns = [name.strip().lower() for name in numbered[0][1].split("\t")]
    metric = next((name for name in _METRIC if name in columns), None)
    if metric is None:
        raise UsageError(
            f"{called}{path} has no column val_bpb; its first line has "
            f"{', '.join(table_text(name)[:40] for name in columns[:8])}",
            hint="the first line names the columns, with tabs between them: commit val_bpb"
            " memory_gb status description",
        )
    tried = [_tried(number, line, columns, metric) for number, line in numbered[1:]]
    return WarmStart(path, tried, _problems(text, columns, tried))


def _tried(number: int, line: str, columns: Sequence[str], metric: str) -> TableLine:
    cells = dict(zip(columns, (cell.strip().strip('"') for cell in line.split("\t")), strict=False))
    value = _measured(cells.get(metric, ""))
    memory = next((name for name in _MEMORY if name in cells), None)
    size = _measured(cells[memory]) if memory else None
    status = cells.get("status", "").lower()
    if status not in ("keep", "discard", "crash"):
        status = "keep" if status in ("kept", "baseline") else "discard"
    return TableLine(
        line=number,
        commit=table_text(cells.get("commit", ""))[:40],
        value=value if status != "crash" else None,
        memory_gb=round(size * _MEMORY[memory], 3) if memory and size is not None else None,
        status=status if value is not None else "crash",
        description=table_text(cells.get("description", "")),
    )


def _measured(cell: str) -> float | None:
    """Return a number above zero; words, dashes, zeros and infinities are no measurement."""
    word = cell.strip().lower()
    number = finite(word) if _NUMBER.fullmatch(word) else None
    return number if number is not None and number > 0 else None


def _problems(text: str, columns: Sequence[str], tried: Sequence[TableLine]) -> list[str]:
    problems = [f"no column {name}" for name in ("commit", "status", "description")
             if name not in columns]  # fmt: skip
    if not any(name in columns for name in _MEMORY):
        problems.append("no column memory_gb or peak_vram_mb")
    if "\ufffd" in text:
        problems.append("bytes that are not UTF-8; they are shown as \ufffd")
    if not tried:
        problems.append("no line below the first")
    return problems


def record(layout: Layout, warm: WarmStart) -> int:
    """Put findings and anchors into the knowledge base; return how many findings are new there.

    Taken twice, a table adds nothing the second time. What else is there stays.

    Raises:
        RecordError: the knowledge base is damaged.
    """
    with hold(layout, "knowledge", doing="a warm start"):
        base = _knowledge(layout)
        known = {each.finding_id for each in (*base.tentative_findings, *base.confirmed_findings)}
        fresh = {each.finding_id: each for each in warm.findings() if each.finding_id not in known}
        _, anchors = carried(layout)
        anchors = [*anchors, *(anchor for anchor in warm.anchors() if anchor not in anchors)]
        if fresh or anchors != base.meta_research.get("anchors", []):
            changed = base.model_copy(
                update={
                    "updated_at": now(),
                    "tentative_findings": [*base.tentative_findings, *fresh.values()],
                    "meta_research": {**base.meta_research, "anchors": anchors},
                }
            )
            write_json(layout.knowledge_base, changed)
    return len(fresh)


def carried(layout: Layout) -> tuple[list[Finding], list[Any]]:
    """Return findings and anchors of warm starts, to be carried into a new knowledge base.

    A damaged one carries nothing.
    """
    try:
        base = _knowledge(layout)
    except RecordError:
        return [], []
    findings = [each for each in base.tentative_findings if each.finding_id.startswith(PREFIX)]
    anchors = base.meta_research.get("anchors", [])
    return findings, anchors if isinstance(anchors, list) else []


def _knowledge(layout: Layout) -> KnowledgeBase:
    try:
        return load(KnowledgeBase, layout.knowledge_base)
    except FileNotFoundError:
        return KnowledgeBase(updated_at=now(), repository=str(layout.root))
