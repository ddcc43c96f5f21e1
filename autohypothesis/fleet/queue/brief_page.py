"""What the brief says: the most important first, cut to fit, however long the search is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from itertools import chain
from typing import Any, TypeVar

from autohypothesis.engine.task import Task
from autohypothesis.fleet.queue.brief_findings import findings
from autohypothesis.fleet.queue.files import Place, best_first
from autohypothesis.records.files import to_json
from autohypothesis.records.standings import best_kept
from autohypothesis.schema import (
    BestResult,
    Brief,
    Finding,
    Hypothesis,
    Others,
    QueueEntry,
    Setting,
    Steering,
    finite,
    now,
)

MOST_SETTINGS, MOST_CONSTRAINTS, MOST_NOTES, MOST_QUESTIONS = 5_000, 3_000, 4_000, 2_000
"""Bytes of each section at most; `MAX_BYTES` is for all of them."""
MOST_OPEN, MOST_FINDINGS, MOST_HEARD = 9_000, 7_500, 6_000
LINE = 300
"""Characters of a line: a note, a constraint, a direction."""
RATIONALE = 240
_ENOUGH_DONE = 200
_FRAME = 64
"""Bytes around the outermost sections."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Contents:
    """Everything that a brief may say."""

    repository: str
    task: Task
    rows: Sequence[Mapping[str, Any]]
    """Of one tag."""
    steering: Steering
    settings: Mapping[str, Setting]
    open: Sequence[tuple[Place, Hypothesis]]
    done: Sequence[Hypothesis]
    notes: Sequence[str]
    carried: Sequence[Finding] = ()
    """Of searches before this one."""
    others: Others | None = None
    """What fleets of other machines said."""

    def brief(self) -> Brief:
        """At most `Brief.MAX_BYTES` as it is written to disk."""
        brief = Brief(
            generated_at=now(),
            repository=cut(self.repository, 1_000),
            objective=objective(self.task),
            constraints=fit(constraints(self.task, self.steering), MOST_CONSTRAINTS),
            current_config=fitting(self.settings, MOST_SETTINGS),
            best_result=best(self.rows),
            open_questions=fit(lines(self.steering.directions), MOST_QUESTIONS),
            notes=fit(lines(self.notes), MOST_NOTES),
        )
        if self.others is not None:
            brief.others = heard(self.others)
        waiting = (entry(place, one) for place, one in self._open())
        brief.hypothesis_queue = fit(waiting, min(MOST_OPEN, room_in(brief)))
        known = findings(self.rows, self._change)
        brief.findings = fit(chain(known, self.carried), min(MOST_FINDINGS, room_in(brief)))
        brief.hypothesis_queue += fit(map(ended, self._ended()), room_in(brief))
        return brief

    def _open(self) -> list[tuple[Place, Hypothesis]]:
        """What runs, what waits for a worker, what waits; each best first."""
        rank = {"running": 0, "dispatched": 1}
        return sorted(
            self.open,
            key=lambda found: (rank.get(found[0].state, 2), *best_first(found[1])),
        )

    def _ended(self) -> list[Hypothesis]:
        """The newest first."""
        return nlargest(_ENOUGH_DONE, self.done, key=lambda one: one.hypothesis_id)

    @cached_property
    def _by_id(self) -> dict[str, Hypothesis]:
        return {one.hypothesis_id: one for one in (*self.done, *(one for _, one in self.open))}

    def _change(self, hypothesis_id: str) -> str:
        found = self._by_id.get(hypothesis_id)
        return "" if found is None else change_of(found)


# ── what is said ────────────────────────────────────────────────────────────────────────────


def objective(task: Task) -> str:
    goal = task.objective
    said = f"{goal.direction} {goal.metric}"
    if goal.min_delta:
        said += f"; a difference under {goal.min_delta:g} is noise"
    if goal.target is not None:
        said += f"; {goal.target:g} is the goal"
    return cut(said, LINE)


def constraints(task: Task, steering: Steering) -> list[str]:
    """What binds a proposal, the steering's words first."""
    limits = task.mutation
    said = [f"{name} is frozen" for name in steering.frozen]
    said += [f"{name} stays within {low:g} and {high:g}" for name, (low, high) in ranges(steering)]
    if steering.memory_limit_mb is not None:
        said.append(f"a run with a peak over {steering.memory_limit_mb:g} MiB is discarded")
    for name, limit in task.constraints.items():
        if limit.hard is not None:
            said.append(f"{name} over {limit.hard:g} is a discard")
        if limit.soft is not None:
            said.append(f"{name} over {limit.soft:g} is noted")
    said.append(f"only {', '.join(task.artifacts)} may change")
    said.append(f"a change has at most {limits.max_files} files and {limits.max_lines} lines")
    said.append("one idea in a hypothesis: config_overrides, or patch, or instructions")
    return lines(said)


def heard(others: Others) -> Others:
    """Each kind of news gets a third of the room."""
    room = MOST_HEARD // 3
    return Others(
        server=cut(others.server, LINE),
        results=fit(lines(others.results), room),
        frontier=fit(lines(others.frontier), room),
        discussion=fit(lines(others.discussion), room),
    )


def ranges(steering: Steering) -> list[tuple[str, tuple[float, float]]]:
    return sorted(steering.ranges.items())


def best(rows: Sequence[Mapping[str, Any]]) -> BestResult | None:
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


def entry(place: Place, one: Hypothesis) -> QueueEntry:
    """A hypothesis that is open: `dispatched` covers what runs, as published."""
    return QueueEntry(
        hypothesis_id=one.hypothesis_id,
        title=cut(one.title, LINE),
        rationale=cut(one.rationale, RATIONALE),
        config_overrides=fitting(one.config_overrides, 500),
        priority=one.priority,
        status="pending" if place.state == "pending" else "dispatched",
        assigned_worker=place.worker,
    )


def ended(one: Hypothesis) -> QueueEntry:
    return QueueEntry(
        hypothesis_id=one.hypothesis_id,
        title=cut(one.title, LINE),
        rationale=cut(one.rationale, RATIONALE // 2),
        config_overrides=fitting(one.config_overrides, 500),
        priority=one.priority,
        status=one.closed or "completed",
        outcome=cut(one.outcome, RATIONALE),
    )


def change_of(one: Hypothesis) -> str:
    """The change in a few words."""
    if one.config_overrides:
        return cut(", ".join(f"{k} = {v!r}" for k, v in one.config_overrides.items()), RATIONALE)
    if one.artifacts_from:
        return f"the artifacts of {one.artifacts_from[:7]}"
    return "a patch" if one.patch else "written to instructions" if one.instructions else ""


def noise_words(noise: Mapping[str, Any]) -> str:
    """What the tool `noise` answered: the figure, and then what is to be said of it."""
    if "sd_pair" in noise:
        figure = _pair(noise)
    else:  # somebody's own tool
        figure = ", ".join(
            f"{name} {_short(value)}"
            for name, value in noise.items()
            if name not in ("note", "tool") and isinstance(value, (int, float, str))
        )
    note = noise.get("note")
    return "; ".join(part for part in (figure, note) if part and isinstance(part, str))


def _pair(noise: Mapping[str, Any]) -> str:
    spread = finite(noise.get("sd_pair"))
    if spread is None:
        return ""
    counts = [f"{noise[key]} {one}{'s' * (noise[key] != 1)}"
              for key, one in (("runs", "run"), ("groups", "commit")) if key in noise]  # fmt: skip
    said = f"sd of a pair {_short(spread)}"
    return f"{said} from {' of '.join(counts)}" if counts else said


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ── that it fits ────────────────────────────────────────────────────────────────────────────


def cut(text: str, most: int) -> str:
    """`text`, of `most` characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def lines(texts: Iterable[str]) -> list[str]:
    return [cut(text, LINE) for text in texts]


def size_of(value: object) -> int:
    """Bytes on disk of a value that stands alone."""
    return len(to_json(value, indent=2).encode("utf-8", "replace")) + 1


def room_in(brief: Brief) -> int:
    return Brief.MAX_BYTES - _FRAME - size_of(brief)


def fit(items: Iterable[Item], room: int) -> list[Item]:
    """The first of them that have room as elements of a list in a section, in bytes."""
    found: list[Item] = []
    for item in items:
        room -= indented_size(item)
        if room < 0:
            break
        found.append(item)
    return found


def fitting(values: Mapping[str, Any], room: int) -> dict[str, Any]:
    """The settings that have room, their texts cut; what is too large is left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        short = cut(value, LINE) if isinstance(value, str) else value
        size = indented_size({cut(name, 80): short})
        if size <= room:
            found[cut(name, 80)] = short
            room -= size
    return found


def indented_size(item: object) -> int:
    text = to_json(item, indent=2).encode("utf-8", "replace")
    return len(text) + 4 * (text.count(b"\n") + 1) + 2
