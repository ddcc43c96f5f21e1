"""What an earlier search found, from its `results.tsv`: findings and anchors, never a reference.

Tables of this kind were written by people, agents and several programs, so columns are found by
name and anything that is no measurement is none. A number from another machine is a hint: it goes
into the knowledge base, where proposers read it, and is compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from autohypothesis.errors import RecordError, UsageError
from autohypothesis.records.files import load, read_bytes, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.tables import harmless
from autohypothesis.schema import Finding, KnowledgeBase, finite, now

LIMIT = 16 * 1024 * 1024
KEPT, CRASHED, DISCARDED = 12, 8, 8
"""How many of each kind become findings; the rest is in the table."""
NOTHING = {"", "-", "--", "---", "–", "—", "―", "n/a", "na", "nan", "none", "null", "crash", "inf"}
PREFIX = "warm-"
"""Of the ids of findings from a warm start."""
_NUMBER = re.compile(r"[+]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_MEMORY = {
    "memory_gb": 1.0, "peak_vram_gb": 1.0, "peak_memory_gb": 1.0, "vram_gb": 1.0,
    "peak_vram_mb": 1 / 1024, "memory_mb": 1 / 1024,
}  # fmt: skip
_METRIC = ("val_bpb", "metric_value", "metric")


@dataclass(frozen=True, slots=True)
class Tried:
    """One line of the table."""

    line: int
    commit: str
    value: float | None
    memory_gb: float | None
    status: str
    """keep, discard or crash."""
    description: str


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A table of results, as far as it could be read."""

    path: Path
    tried: Sequence[Tried]
    problems: Sequence[str] = ()
    """Lines that were of no use, and columns that are not there."""

    @property
    def first(self) -> Tried | None:
        """Where it began: the first line that was kept."""
        return next((one for one in self.tried if one.status == "keep"), None)

    @property
    def best(self) -> Tried | None:
        kept = [one for one in self.tried if one.status == "keep" and one.value is not None]
        return min(kept, key=lambda one: one.value or 0.0) if kept else None

    def findings(self) -> list[Finding]:
        """What helped most, what did not, and what failed; bounded."""
        kept, best = [], None
        for one in self.tried:
            if one.status == "keep" and one.value is not None:
                if best is not None:
                    kept.append((one.value - best, one))
                best = one.value if best is None else min(best, one.value)
        kept.sort(key=lambda pair: pair[0])
        helped = [self._helped(delta, one) for delta, one in kept[:KEPT]]
        worse = [one for one in self.tried if one.status == "discard"][-DISCARDED:]
        failed = [one for one in self.tried if one.status == "crash"][-CRASHED:]
        return helped + [self._finding(one, "did not help") for one in worse] + [
            self._finding(one, "failed") for one in failed
        ]  # fmt: skip

    def _helped(self, delta: float, one: Tried) -> Finding:
        return self._finding(one, f"changed val_bpb by {delta:+.6f}")

    def _finding(self, one: Tried, what: str) -> Finding:
        digest = sha256(f"{one.commit}\t{one.value}\t{one.description}".encode()).hexdigest()
        number = f", val_bpb {one.value:.6f}" if one.value is not None else ""
        return Finding(
            finding_id=f"{PREFIX}{digest[:12]}",
            title=f"{one.description or one.commit or 'no description'}: {what}"[:200],
            evidence=f"one run elsewhere, {self.path.name} line {one.line}{number}",
            confidence="low",
            implication="try it here" if what.startswith("changed") else "not first",
        )

    def anchors(self) -> list[dict[str, Any]]:
        """Beginning and best of that search, to see where this one stands beside it."""
        named = {"first": self.first, "best": self.best}
        return [
            {
                "role": role, "commit": one.commit, "val_bpb": one.value,
                "memory_gb": one.memory_gb, "description": one.description,
                "source": harmless(str(self.path)),
            }
            for role, one in named.items() if one is not None
        ]  # fmt: skip


def read(path: Path, *, called: str = "--warm-start ") -> WarmStart:
    """The table at `path`; `called` is what an error says before it.

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
            f"{', '.join(harmless(name)[:40] for name in columns[:8])}",
            hint="the first line names the columns, with tabs between them: commit val_bpb"
            " memory_gb status description",
        )
    tried = [_tried(number, line, columns, metric) for number, line in numbered[1:]]
    return WarmStart(path, tried, _problems(text, columns, tried))


def _tried(number: int, line: str, columns: Sequence[str], metric: str) -> Tried:
    cells = dict(zip(columns, (cell.strip().strip('"') for cell in line.split("\t")), strict=False))
    value = _measured(cells.get(metric, ""))
    memory = next((name for name in _MEMORY if name in cells), None)
    size = _measured(cells[memory]) if memory else None
    said = cells.get("status", "").lower()
    if said not in ("keep", "discard", "crash"):
        said = "keep" if said in ("kept", "baseline") else "discard"
    return Tried(
        line=number,
        commit=harmless(cells.get("commit", ""))[:40],
        value=value if said != "crash" else None,
        memory_gb=round(size * _MEMORY[memory], 3) if memory and size is not None else None,
        status=said if value is not None else "crash",
        description=harmless(cells.get("description", "")),
    )


def _measured(cell: str) -> float | None:
    """A number above zero; words, dashes, zeros and what is not finite are no measurement."""
    word = cell.strip().lower()
    if word in NOTHING or not _NUMBER.fullmatch(word):
        return None
    number = finite(word)
    return number if number is not None and number > 0 else None


def _problems(text: str, columns: Sequence[str], tried: Sequence[Tried]) -> list[str]:
    found = [f"no column {name}" for name in ("commit", "status", "description")
             if name not in columns]  # fmt: skip
    if not any(name in columns for name in _MEMORY):
        found.append("no column memory_gb or peak_vram_mb")
    if "\ufffd" in text:
        found.append("bytes that are not UTF-8; they are shown as \ufffd")
    if not tried:
        found.append("no line below the first")
    return found


def record(layout: Layout, warm: WarmStart) -> int:
    """Put findings and anchors into the knowledge base; how many findings are new there.

    Taken twice, a table adds nothing the second time. What else is there stays.

    Raises:
        RecordError: the knowledge base is damaged.
    """
    with hold(layout, "knowledge", doing="a warm start"):
        base = _knowledge(layout)
        known = {one.finding_id for one in (*base.tentative_findings, *base.confirmed_findings)}
        fresh = {one.finding_id: one for one in warm.findings() if one.finding_id not in known}
        _, anchors = carried(layout)
        anchors = [*anchors, *(one for one in warm.anchors() if one not in anchors)]
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
    """Findings and anchors of warm starts, for whoever makes the knowledge base anew.

    A damaged one carries nothing.
    """
    try:
        base = _knowledge(layout)
    except RecordError:
        return [], []
    findings = [one for one in base.tentative_findings if one.finding_id.startswith(PREFIX)]
    anchors = base.meta_research.get("anchors", [])
    return findings, anchors if isinstance(anchors, list) else []


def _knowledge(layout: Layout) -> KnowledgeBase:
    try:
        return load(KnowledgeBase, layout.knowledge_base)
    except FileNotFoundError:
        return KnowledgeBase(updated_at=now(), repository=str(layout.root))
