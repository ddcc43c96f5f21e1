"""`research_brief.json`: what a proposer is told, the most important first, cut to fit.

It is at most `Brief.MAX_BYTES` long, however long the search is. Others only read it: the ways in
are the commands and `research/inbox/`, and an edit is moved to `research/conflicts/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from heapq import nlargest
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import ValidationError

from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import read_reference
from autohypothesis.engine.task import Task
from autohypothesis.fleet.knowledge.knowledge_base import (
    RATIONALE,
    carried,
    change_of,
    edit_words,
)
from autohypothesis.fleet.queue.states import Queue, QueuePlace, best_first
from autohypothesis.plain import cut
from autohypothesis.records.comparison import comparison_of, fixed, is_near_miss, near_misses
from autohypothesis.records.files import FileStamp, file_stamp, to_json
from autohypothesis.records.history import best_kept, of_tag
from autohypothesis.records.locks import hold
from autohypothesis.records.outcomes import NOTHING_NEW, word_of
from autohypothesis.records.outputs import DerivedFile
from autohypothesis.records.rows import NOT_EVIDENCE, RowDocument, is_baseline
from autohypothesis.schema import (
    BestResult,
    Brief,
    Finding,
    Hypothesis,
    Others,
    Problem,
    QueueEntry,
    Setting,
    Steering,
    finite,
    now,
)

MAX_SETTINGS, MAX_CONSTRAINTS, MAX_NOTES, MAX_QUESTIONS = 5_000, 3_000, 4_000, 2_000
"""Bytes of each section at most; `MAX_BYTES` is for all of them."""
MAX_OPEN, MAX_FINDINGS, MAX_FEED_LINES = 9_000, 7_500, 6_000
MAX_KEEPS, MAX_CRASHES, MAX_DISCARDS = 20, 8, 20
"""Findings of each kind."""
MAX_NEAR_MISSES = MAX_DAMAGED = 5
LINE, TITLE = 300, 160
"""Characters of a line (a note, a constraint, a direction), of a finding's title."""
REMEDY = (
    "change the queue with `python orchestrator.py propose`, `dispatch`, `withdraw` and `abandon`,"
    " or put a hypothesis into research/inbox/; directions go into research/steering.md"
)
_ENOUGH_DONE = 200
_FRAME = 64
"""Bytes around the outermost sections."""

Item = TypeVar("Item")
Row = Mapping[str, Any]


class BriefSources(NamedTuple):
    """Everything that a brief may say."""

    rows: Sequence[Row]
    steering: Steering
    settings: Mapping[str, Setting]
    notes: Sequence[str]
    others: Others | None
    open: Sequence[tuple[QueuePlace, Hypothesis]]
    done: Sequence[Hypothesis]


class BriefPublisher:
    """Writes the brief of one search, where it says something new."""

    def __init__(self, project: Project, queue: Queue) -> None:
        self.brief: Brief | None = None
        """The one that is on disk."""
        self._project = project
        self._queue = queue
        self._sources: BriefSources | None = None
        self._written: FileStamp | None = None

    def publish(
        self,
        *,
        rows: Sequence[Row],
        steering: Steering,
        settings: Mapping[str, Setting],
        notes: Sequence[str] = (),
        noise: Mapping[str, Any] | None = None,
        others: Others | None = None,
    ) -> bool:
        """Write the brief, unless only its date would change; return whether anything is new.

        Raises:
            LockError: another process has published for half a minute.
            RecordError: the disk is full.
        """
        words, queue = noise_words(noise or {}), self._queue
        told = [*([f"noise: {words}"] if words else []), *notes]
        own = of_tag(rows, queue.tag)
        return self.write(
            BriefSources(own, steering, dict(settings), told, others, queue.placed(), queue.done())
        )

    def write(self, sources: BriefSources) -> bool:
        """Write the brief from its sources, as `publish` does."""
        layout = self._project.layout
        path = str(layout.brief)
        if sources == self._sources and file_stamp(path) == self._written:
            return False
        brief = compose_brief(self._project, sources, self._queue.problems)
        with hold(layout, "brief", doing="publishing the brief"):
            self.brief = self._write(brief)
        self._sources, self._written = sources, file_stamp(path)
        return True

    def _write(self, brief: Brief) -> Brief:
        layout = self._project.layout
        file = DerivedFile(layout, layout.brief, remedy=REMEDY)
        file.move_edits()
        with suppress(ValidationError):
            before = Brief.model_validate_json(file.content() or b"")
            if layout.brief.exists() and _undated(before) == _undated(brief):
                return before
        content = to_json(brief, indent=2).encode("utf-8", "replace") + b"\n"
        file.write(content, durable=False)
        return brief


def _undated(brief: Brief) -> dict[str, Any]:
    return brief.model_dump(mode="json", exclude={"generated_at"})


def compose_brief(project: Project, sources: BriefSources, problems: Sequence[Problem]) -> Brief:
    """Return the brief; as it is written to disk it has at most `Brief.MAX_BYTES`."""
    steering, earlier = sources.steering, carried(project.layout)[0]
    tag = project.tag
    reference = read_reference(project.repository, project.layout, tag) if tag else None
    near = (
        f"near miss: {each.experiment_id} ({each.title}): {each.compared.near_miss}"
        for each in near_misses(sources.rows, reference)[:MAX_NEAR_MISSES]
    )
    damaged = (f"{problem.path} {problem.reason}" for problem in problems[:MAX_DAMAGED])
    brief = Brief(
        generated_at=now(),
        repository=cut(str(project.layout.root), 1_000),
        objective=_objective(project.task),
        constraints=_fit(_constraints(project.task, steering), MAX_CONSTRAINTS),
        current_config=_fitting(sources.settings, MAX_SETTINGS),
        best_result=_best(sources.rows),
        open_questions=_fit(_lines(steering.directions), MAX_QUESTIONS),
        notes=_fit(_lines((*sources.notes, *near, *damaged)), MAX_NOTES),
    )
    if sources.others is not None:
        brief.others = _heard(sources.others)
    rank = {"running": 0, "dispatched": 1}
    opened = sorted(sources.open, key=lambda at: (rank.get(at[0].state, 2), *best_first(at[1])))
    waiting = (_open_entry(*placed) for placed in opened)
    brief.hypothesis_queue = _fit(waiting, min(MAX_OPEN, _room_in(brief)))
    known = chain((hypothesis for _, hypothesis in sources.open), sources.done)
    by_id = {hypothesis.hypothesis_id: hypothesis for hypothesis in known}
    new = findings(sources.rows, lambda name: change_of(by_id[name]) if name in by_id else "")
    brief.findings = _fit(chain(new, earlier), min(MAX_FINDINGS, _room_in(brief)))
    newest = nlargest(_ENOUGH_DONE, sources.done, key=lambda done: done.hypothesis_id)
    brief.hypothesis_queue += _fit(map(_closed_entry, newest), _room_in(brief))
    return brief


def _objective(task: Task) -> str:
    goal = task.objective
    text = f"{goal.direction} {goal.metric}"
    if goal.min_delta:
        text += f"; a difference under {goal.min_delta:g} is noise"
    if goal.target is not None:
        text += f"; {goal.target:g} is the goal"
    return cut(text, LINE)


def _constraints(task: Task, steering: Steering) -> list[str]:
    limits = task.mutation
    texts = [f"{name} is frozen" for name in steering.frozen]
    ranges = sorted(steering.ranges.items())
    texts += [f"{name} stays within {low:g} and {high:g}" for name, (low, high) in ranges]
    if steering.memory_limit_mb is not None:
        texts.append(f"a run with a peak over {steering.memory_limit_mb:g} MiB is discarded")
    for name, limit in task.constraints.items():
        if limit.hard is not None:
            texts.append(f"{name} over {limit.hard:g} is a discard")
        if limit.soft is not None:
            texts.append(f"{name} over {limit.soft:g} is noted")
    texts.append(f"only {task.artifact_words} may change")
    files = f"{limits.max_files} file{'s' * (limits.max_files != 1)}"
    texts.append(f"a change has at most {files} and {limits.max_lines} lines")
    texts.append("one idea in a hypothesis: config_overrides, or patch, or instructions")
    return _lines(texts)


def _heard(others: Others) -> Others:
    room = MAX_FEED_LINES // 3
    return Others(
        server=cut(others.server, LINE),
        results=_fit(_lines(others.results), room),
        frontier=_fit(_lines(others.frontier), room),
        discussion=_fit(_lines(others.discussion), room),
    )


def _best(rows: Sequence[Row]) -> BestResult | None:
    row = best_kept(rows)
    if row is None:
        return None
    value = row.get("val_bpb")
    return BestResult(
        commit=cut(str(row.get("commit", "")), 64),
        val_bpb=row.get("metric_value") if value is None else value,
        memory_gb=row.get("peak_vram_gb"),
        status=cut(str(row.get("status", "")), 64),
        description=cut(str(row.get("description", "")), LINE),
    )


def _entry(hypothesis: Hypothesis, rationale: int, **more: Any) -> QueueEntry:
    return QueueEntry(
        hypothesis_id=hypothesis.hypothesis_id,
        title=cut(hypothesis.title, LINE),
        rationale=cut(hypothesis.rationale, rationale),
        config_overrides=_fitting(hypothesis.config_overrides, 500),
        change="" if hypothesis.config_overrides else change_of(hypothesis),
        priority=hypothesis.priority,
        **more,
    )


def _open_entry(place: QueuePlace, hypothesis: Hypothesis) -> QueueEntry:
    """Return an open hypothesis; its status is `dispatched` while it runs, too."""
    status = "pending" if place.state == "pending" else "dispatched"
    return _entry(hypothesis, RATIONALE, status=status, assigned_worker=place.worker)


def _closed_entry(hypothesis: Hypothesis) -> QueueEntry:
    status, outcome = hypothesis.closed or "completed", cut(hypothesis.outcome, RATIONALE)
    return _entry(hypothesis, RATIONALE // 2, status=status, outcome=outcome)


def noise_words(noise: Mapping[str, Any]) -> str:
    """Return the figure that the tool `noise` answered, and then its note."""
    if "sd_pair" in noise:
        figure = _pair_words(noise)
    else:  # a tool of a user that has the same name
        figure = ", ".join(
            f"{name} {_short(value)}"
            for name, value in noise.items()
            if name not in ("note", "tool") and isinstance(value, (int, float, str))
        )
    note = noise.get("note")
    return "; ".join(part for part in (figure, note) if part and isinstance(part, str))


def _pair_words(noise: Mapping[str, Any]) -> str:
    spread = finite(noise.get("sd_pair"))
    if spread is None:
        return ""
    counts = [
        f"{noise[key]} {word}{'s' * (noise[key] != 1)}"
        for key, word in (("runs", "run"), ("groups", "commit"))
        if key in noise
    ]
    figure = f"sd of a pair {_short(spread)}"
    return f"{figure} from {' of '.join(counts)}" if counts else figure


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def findings(rows: Sequence[Row], change_of: Callable[[str], str]) -> Iterator[Finding]:
    """Yield what was kept, what fails and what led nowhere, the most important first.

    Args:
        change_of: returns the change of a hypothesis in words.
    """
    noted = _notable_rows(rows)
    seeds = _seeds(rows, {str(row["id"]) for row in noted})
    codes = {row.get("commit"): row.get("code_hash") for row in rows if row.get("code_hash")}
    for row in noted:
        before = codes.get(row.get("parent_commit"))
        change = change_of(str(row.get("hypothesis_id") or ""))
        if before and row.get("code_hash") not in ("", None, before):
            change = edit_words(str(row.get("diff_stat") or ""))
        name = str(row["id"])
        confirmation, runs = str(row.get("confirmation") or "none"), len(seeds.get(name, {}))
        if confirmation == "none":
            confirmation = f"{runs} runs" if runs > 1 else "one run"
            confirmation = "not judged" if word_of(row) == NOTHING_NEW else confirmation
        yield Finding(
            finding_id=f"f-{name}"[:63],
            title=cut(str(row.get("description") or name), TITLE),
            evidence=cut(_evidence(row, seeds.get(name, {})), RATIONALE),
            confidence=confirmation,
            mechanism=cut(str(row.get("rationale") or ""), RATIONALE),
            implication=cut(f"{_implication(row)}: {change}".rstrip(": "), RATIONALE),
        )


def _notable_rows(rows: Sequence[Row]) -> list[Row]:
    """Return keeps, newest first; the newest crash of each kind; discards far from the best."""
    changes = [
        row for row in rows if not row.get("replicates") and not is_baseline(cast(RowDocument, row))
    ]
    newest = sorted(changes, key=lambda row: row.get("ordinal") or 0, reverse=True)
    by_status: dict[str, list[Row]] = defaultdict(list)
    for row in newest:
        by_status[str(row.get("status"))].append(row)
    crashes: dict[str, Row] = {}
    for row in by_status["crash"]:
        kind = str(row.get("failure_kind") or "")
        if kind not in NOT_EVIDENCE:
            crashes.setdefault(kind, row)
    half = MAX_DISCARDS // 2
    recent, older = by_status["discard"][:half], by_status["discard"][half:]
    older.sort(key=lambda row: abs(finite(row.get("improvement")) or 0.0), reverse=True)
    return [
        *by_status["keep"][:MAX_KEEPS],
        *list(crashes.values())[:MAX_CRASHES],
        *recent,
        *older[:half],
    ]


def _evidence(row: Row, seeds: Mapping[object, float]) -> str:
    """Return metric, distance and number of seeds in words; of a failure, its kind."""
    value, compared = finite(row.get("metric_value")), comparison_of(row)
    if value is None:
        return f"{row['id']}: {row.get('failure_kind') or row.get('status')}"
    text = f"{row['id']}: {row.get('metric_name') or 'metric'} {fixed(value, 6)}"
    if compared is not None:
        text += f", {compared.words}"
    if len(seeds) < 2:
        return f"{text}, 1 seed"
    values = list(seeds.values())
    spread = max(values) - min(values)
    return f"{text}, {len(values)} seeds: mean {fixed(fmean(values), 6)}, spread {fixed(spread, 6)}"


def _seeds(rows: Sequence[Row], wanted: Set[str]) -> dict[str, dict[object, float]]:
    """Return first experiment of a group -> seed -> value."""
    values: dict[str, dict[object, float]] = defaultdict(dict)
    for row in rows:
        first = row.get("replicates") or row["id"]
        value = finite(row.get("metric_value")) if first in wanted else None
        if value is not None:
            values[str(first)][row.get("seed")] = value
    return values


def _implication(row: Row) -> str:
    if row.get("confirmation") == "refuted":
        return "refuted when it was run again"
    status = row.get("status")
    if status == "keep":
        return "in the reference"
    if row.get("reason") == "by_hand":
        return f"a person's {status}, whatever its score"
    if status == "crash":
        return f"fails ({row.get('failure_kind') or 'unknown'})"
    if word_of(row) == NOTHING_NEW:
        return f"not judged ({row.get('outcome') or 'nothing new'})"
    compared = comparison_of(row)
    if is_near_miss(row) and compared is not None:
        return f"near miss ({compared.near_miss})"
    if compared is not None and row.get("reason") in ("worse", "within_noise"):
        return "no gain"  # by how much is in the evidence
    return f"no gain ({row.get('outcome') or 'discarded'})"


def _lines(texts: Iterable[str]) -> list[str]:
    return [cut(text, LINE) for text in texts]


def _room_in(brief: Brief) -> int:
    """Return how many bytes may be added to what `brief` takes on disk."""
    size = len(to_json(brief, indent=2).encode("utf-8", "replace")) + 1
    return Brief.MAX_BYTES - _FRAME - size


def _fit(items: Iterable[Item], room: int) -> list[Item]:
    """Return the first items that have room, in bytes, as elements of a list in a section."""
    fitting: list[Item] = []
    for item in items:
        room -= _indented_size(item)
        if room < 0:
            break
        fitting.append(item)
    return fitting


def _fitting(values: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Return the settings that have room, their texts cut; what is too large is left out."""
    fitting: dict[str, Any] = {}
    for name, value in values.items():
        short = cut(value, LINE) if isinstance(value, str) else value
        size = _indented_size({cut(name, 80): short})
        if size <= room:
            fitting[cut(name, 80)] = short
            room -= size
    return fitting


def _indented_size(item: object) -> int:
    text = to_json(item, indent=2).encode("utf-8", "replace")
    return len(text) + 4 * (text.count(b"\n") + 1) + 2
