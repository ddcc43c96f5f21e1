"""`knowledge_base.json` and `search_model.md`: what was learnt, also by earlier searches.

What this search has learnt is made from its decisions. Both files are bounded however long it is,
and can be made again at any time. A warm start adds findings and anchors of an earlier search, from
its `results.tsv`; never a reference. Tables of this kind were written by people, agents and several
programs, so columns are found by name and anything that is no measurement is none. A number from
another machine is a hint: proposers read it, and it is compared with nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from operator import sub
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autohypothesis.errors import RecordError, UsageError
from autohypothesis.plain import cut, plain, table_text, templates
from autohypothesis.records.comparison import is_near_miss
from autohypothesis.records.files import load, read_bytes, write_atomic, write_json
from autohypothesis.records.history import DecisionHistory, is_lost
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.outcomes import counted_as, shown_as, tally
from autohypothesis.schema import (
    Decision,
    Finding,
    Hypothesis,
    KnowledgeBase,
    PlannedHypothesis,
    Setting,
    Steering,
    finite,
    now,
)

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project

MAX_FINDINGS = MAX_REGIONS = MAX_KNOBS = 40
MAX_HISTORY = 100
TEXT, RATIONALE = 300, 240
"""Characters of a title or a detail, and of a reason or a change."""
LIMIT = 16 * 1024 * 1024
"""Bytes of a table of an earlier search."""
KEPT, CRASHED, DISCARDED = 12, 8, 8
"""Maximum findings of each kind; the others are in the table."""
PREFIX = "warm-"
"""Prefix of the ids of findings from a warm start."""
_NUMBER = re.compile(r"[+]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_MEMORY = {
    "memory_gb": 1.0, "peak_vram_gb": 1.0, "peak_memory_gb": 1.0, "vram_gb": 1.0,
    "peak_vram_mb": 1 / 1024, "memory_mb": 1 / 1024,
}  # fmt: skip
_METRIC = ("val_bpb", "metric_value", "metric")


def change_of(hypothesis: Hypothesis | PlannedHypothesis) -> str:
    """Return the change of a hypothesis in a few words."""
    if hypothesis.config_overrides:
        return settings_words(hypothesis.config_overrides)
    if hypothesis.artifacts_from:
        return f"the artifacts of {hypothesis.artifacts_from[:7]}"
    if hypothesis.patch:
        return "a patch"
    return "written to instructions" if hypothesis.instructions else ""


def settings_words(settings: Mapping[str, Setting]) -> str:
    """Return `DEPTH = 2` for each setting, bounded."""
    return cut(", ".join(f"{name} = {value!r}" for name, value in settings.items()), RATIONALE)


def edit_words(diff_stat: str) -> str:
    """Return what is said of a change that is not in the settings alone."""
    return f"an edit of the code{f' ({diff_stat})' if diff_stat else ''}"


class RunChange(NamedTuple):
    """What a run changed in its base, however that was written down."""

    title: str
    settings: Mapping[str, Setting]
    """Constants whose values it changed."""
    is_edit: bool
    """Whether it changed the code as well."""
    code_hash: str
    diff_stat: str

    @property
    def words(self) -> str:
        """The change in a few words; empty where there is none."""
        edit = edit_words(self.diff_stat) if self.is_edit else ""
        return ", ".join(filter(None, [edit, settings_words(self.settings)]))


@dataclass(frozen=True)
class KnowledgeReport:
    """Findings from the decisions of a search.

    Attributes:
        changes: experiment -> what it changed.
        hypotheses: by id, open and done.
        settings: of the reference.
        code_hash: of the reference; what was tried on other code says nothing about its constants.
        noise: the noise figure in words; empty where there is none.
    """

    project: Project
    history: DecisionHistory
    changes: Mapping[str, RunChange]
    hypotheses: Mapping[str, Hypothesis]
    settings: Mapping[str, Setting]
    steering: Steering
    noise: str
    code_hash: str = ""

    def write(self) -> None:
        """Write both files.

        Raises:
            RecordError: the disk is full.
        """
        layout = self.project.layout
        with hold(layout, "knowledge", doing="what was learnt"):
            write_json(layout.knowledge_base, self._knowledge(), durable=False)
        write_atomic(layout.search_model, self._page(), durable=False)

    @property
    def _decided(self) -> list[Decision]:
        return [each for each in self.history.latest.values() if not is_lost(each)]

    def _knowledge(self) -> KnowledgeBase:
        decided = self._decided
        kept = [each for each in decided if each.decision_status == "keep" and each.base_commit]
        confirmed = [each for each in kept if each.confirmation == "confirmed"]
        provisional = [each for each in kept if each.confirmation != "confirmed"]
        near = [each for each in decided if is_near_miss(vars(each))]
        failed = [each for each in decided if each.decision_status == "crash"]
        tentative = [
            *self._findings(provisional, "provisional"),
            *self._findings(near, "within the noise"),
        ]
        earlier, anchors = carried(self.project.layout)
        return KnowledgeBase(
            updated_at=now(),
            repository=str(self.project.layout.root),
            confirmed_findings=self._findings(confirmed, "confirmed"),
            tentative_findings=[*earlier, *tentative[-MAX_FINDINGS:]],
            contradictions=self._contradictions(),
            invalid_regions=[
                f"{self._change(each)}: {each.reason} ({each.experiment_id})"[:TEXT]
                for each in failed[-MAX_REGIONS:]
            ],
            experiment_history=[
                {
                    "title": self._title(each),
                    "change": self._change(each),
                    "same_code": self._is_of_this_code(each),
                    **each.model_dump(
                        include={
                            "experiment_id", "decision_status", "reason", "metric_value",
                            "improvement",
                        }
                    ),
                }
                for each in decided[-MAX_HISTORY:]
            ],
            meta_research={**self._meta(decided), **({"anchors": anchors} if anchors else {})},
        )  # fmt: skip

    def _findings(self, decisions: Sequence[Decision], confidence: str) -> list[Finding]:
        return [
            Finding(
                finding_id=f"f-{each.experiment_id}"[:63],
                title=self._title(each),
                evidence=f"{each.experiment_id}: {each.detail or each.reason}"[:TEXT],
                confidence=confidence,
                implication=self._change(each),
            )
            for each in decisions[-MAX_FINDINGS:]
        ]

    def _contradictions(self) -> list[str]:
        """Return the keeps that were taken back, and the gains that were refuted."""
        back, lines = self.history.taken_back(), []
        for name, decision in self.history.latest.items():
            if taken := back.get(name):
                lines.append(f"{name} was kept, then {taken.decision_status}: {taken.reason}")
            elif decision.confirmation == "refuted":
                lines.append(f"{name} was refuted: {decision.detail}")
        return [line[:TEXT] for line in lines[-MAX_REGIONS:]]

    def _meta(self, decided: Sequence[Decision]) -> dict[str, Any]:
        changes = [each for each in decided if each.base_commit]
        counts = tally(
            (counted_as(each.decision_status, each.reason, None, is_decided=True), False)
            for each in changes
        )
        return {
            "experiments": len(decided),
            "changes_kept": counts.outcomes.get("keep", 0),
            "keep_rate": None if counts.keep_rate is None else round(counts.keep_rate, 4),
            "reasons": dict(Counter(each.reason for each in changes).most_common(20)),
            "proposers": self._proposers(changes),
        }

    def _page(self) -> str:
        changes = [each for each in self._decided if each.base_commit]
        best = self.history.best_decision()
        template = templates(Path(__file__).parent / "templates").get_template("search_model.md.j2")
        text = template.render(
            tag=self.project.active(),
            metric=self.project.task.objective.metric,
            runs=len(self.history.latest),
            tried=len(changes),
            kept=sum(each.decision_status == "keep" for each in changes),
            outcomes=Counter(
                shown_as(each.decision_status, each.reason) for each in self.history.latest.values()
            ),
            best=best,
            best_title=self._title(best) if best else "",
            noise=self.noise,
            steering=self.steering,
            knobs=self._knobs(changes),
            edits=self._edits(changes),
            proposers=self._proposers(changes),
        )
        return plain(text).rstrip() + "\n"

    def _proposers(self, changes: Iterable[Decision]) -> list[dict[str, Any]]:
        tried: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for decision in changes:
            known = self.hypotheses.get(decision.hypothesis_id)
            name = known.proposer if known is not None else "by hand"
            tried[name] += 1
            kept[name] += decision.decision_status == "keep"
        return [
            {"name": name, "tried": count, "kept": kept[name]}
            for name, count in tried.most_common(20)
        ]

    def _knobs(self, changes: Iterable[Decision]) -> list[dict[str, Any]]:
        """Return the constants that were tried alone on this code, the most fruitful first."""
        tries: dict[str, list[tuple[Decision, Setting]]] = {}
        for decision in changes:
            change = self.changes.get(decision.experiment_id)
            is_alone = change is not None and not change.is_edit and len(change.settings) == 1
            if change is not None and is_alone and self._is_of_this_code(decision):
                ((name, value),) = change.settings.items()
                tries.setdefault(name.upper(), []).append((decision, value))
        settings = {name.upper(): value for name, value in self.settings.items()}
        table = [_knob(name, several, settings.get(name)) for name, several in tries.items()]
        table.sort(
            key=lambda knob: (knob["better"] is None, -(knob["better"] or 0.0), knob["name"])
        )
        return table[:MAX_KNOBS]

    def _edits(self, changes: Iterable[Decision]) -> list[dict[str, Any]]:
        """Return the changes of the code, the latest first."""
        edits = [
            {
                "title": self._title(decision),
                "change": self._change(decision),
                "status": decision.decision_status,
                "better": decision.improvement,
            }
            for decision in changes
            if (change := self.changes.get(decision.experiment_id)) is not None and change.is_edit
        ]
        return edits[: -MAX_KNOBS - 1 : -1]

    def _is_of_this_code(self, decision: Decision) -> bool:
        change = self.changes.get(decision.experiment_id)
        return change is not None and change.code_hash == self.code_hash

    def _title(self, decision: Decision) -> str:
        known = self.hypotheses.get(decision.hypothesis_id) or self.changes.get(
            decision.experiment_id
        )
        return ((known.title if known is not None else "") or self._change(decision))[:TEXT]

    def _change(self, decision: Decision) -> str:
        change = self.changes.get(decision.experiment_id)
        return (change.words if change is not None else "") or decision.experiment_id


def _knob(name: str, tries: Sequence[tuple[Decision, Setting]], now_at: Setting) -> dict[str, Any]:
    measured = [
        (decision.improvement, value)
        for decision, value in tries
        if decision.improvement is not None
    ]
    better, best = max(measured, key=lambda pair: pair[0], default=(None, None))
    return {
        "name": name,
        "tries": len(tries),
        "kept": sum(decision.decision_status == "keep" for decision, _ in tries),
        "failed": sum(decision.decision_status == "crash" for decision, _ in tries),
        "best": "" if better is None else f"{best!r}",
        "better": better,
        "now": "" if now_at is None else f"{now_at!r}",
    }


# ── warm starts ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of the table."""

    line: int
    commit: str
    value: float | None
    """The score; None for a crash."""
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
    def kept(self) -> list[TableLine]:
        return [line for line in self.tried if line.status == "keep"]

    @property
    def first(self) -> TableLine | None:
        """The first line that was kept: where that search began."""
        return next(iter(self.kept), None)

    @property
    def best(self) -> TableLine | None:
        return min(self.kept, key=lambda line: line.value or 0.0, default=None)

    def findings(self) -> list[Finding]:
        """Return what helped most, what did not, and what failed; bounded."""
        values = [line.value or 0.0 for line in self.kept]
        gains = map(sub, values[1:], accumulate(values, min))
        changes = sorted(zip(gains, self.kept[1:], strict=True), key=lambda change: change[0])
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
