"""The monitor: a frame of what the fleet does, drawn again and again. It only reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.overview.overview import Overview, WorkerView, overview
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.installation import as_called
from autohypothesis.plain import plain_line
from autohypothesis.records import jsonl
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import manifest_tag
from autohypothesis.records.rows import real
from autohypothesis.schema import now, rfc3339, utc
from autohypothesis.terminal.fleet import (
    QUIET,
    named,
    needs_lines,
    progress_bar,
    queue_counts,
    roles_table,
    state_text,
    waiting_table,
)
from autohypothesis.terminal.parts import (
    amount,
    better,
    diff_size,
    duration,
    number,
    share,
    sparkline,
)
from autohypothesis.terminal.screen import Screen

NEEDS = 5
WAITING = 3
AROUND = 12
"""Lines of a frame that are always there."""
LEAST = 4
"""Lines about workers, however low the screen."""
SPARK = 32
DEVICE = 10
"""Characters of a device: a UUID is told apart by its first few."""
HOUR = timedelta(hours=1)


class Keeps:
    """The keeps, one after the other: decisions.jsonl is followed, not read again."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.decisions
        self._offset = 0
        self._kept: dict[str, dict[str, Any]] = {}
        self._recent: deque[datetime] = deque()

    def look(self) -> None:
        """Read new decisions. A file that cannot be read is no reason to stop."""
        try:
            news = jsonl.read_new(self._path, self._offset)
        except AutohypothesisError:
            return
        if news.restarted:
            self._kept.clear()
        self._offset = news.offset
        for decision in news.records:
            self._take(decision)

    def _take(self, decision: dict[str, Any]) -> None:
        name = str(decision.get("experiment_id"))
        self._kept.pop(name, None)
        if decision.get("decision_status") == "keep":
            self._kept[name] = decision
        try:
            moment = utc(decision.get("recorded_at"))
        except (ValueError, OverflowError):
            return
        if isinstance(moment, datetime) and moment > now() - HOUR:
            self._recent.append(moment)

    def best_line(self, tag: str, metric: str) -> list[float]:
        """Return the best so far after each keep of a tag, on the platform of the last one."""
        keeps = [keep for keep in self._kept.values() if keep.get("tag") == tag]
        if not keeps:
            return []
        platform = keeps[-1].get("platform_key")
        pick = max if keeps[-1].get("direction") == "maximize" else min
        line: list[float] = []
        for keep in keeps:
            value = real(keep.get("metric_value"), metric)
            if value is not None and keep.get("platform_key") == platform:
                line.append(pick(line[-1], value) if line else value)
        return line

    def last_hour(self) -> int:
        """Return how many decisions were taken within the hour."""
        while self._recent and self._recent[0] < now() - HOUR:
            self._recent.popleft()
        return len(self._recent)


class _Room(NamedTuple):
    """Lines for what can be shortened; None: as many as it takes."""

    workers: int | None
    waiting: int

    @classmethod
    def of(cls, view: Overview, height: int | None) -> _Room:
        if height is None:
            return cls(None, WAITING)
        needs = 3 + min(len(view.needs), NEEDS) if view.needs else 0
        left = height - AROUND - needs - (0 if view.alive else 2)
        waiting = left - 2 * len(view.workers)
        return cls(max(left, LEAST), max(0, min(waiting, WAITING)))


class Monitor:
    """Frames of one fleet."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._keeps = Keeps(layout)
        self._kept_queue: Queue | None = None

    def frame(self, height: int | None = None) -> RenderableType:
        """Return the fleet as it stands now, in at most `height` lines where that can be."""
        view = overview(self._layout, self._queue(self._layout))
        self._keeps.look()
        room = _Room.of(view, height)
        parts: list[RenderableType] = [
            Rule(self._headline(view), align="left", style="bright_black", characters="─"),
            self._best(view),
            Text(""),
            roles_table(view.roles, apart=True),
            Text(""),
        ]
        if view.workers:
            parts += [_workers(view.workers, room.workers), Text("")]
        parts.append(self._counts(view))
        if room.waiting:
            parts.append(waiting_table(view.waiting[: room.waiting]))
        if view.needs:
            parts += [Text("\nneeds you", "bold"), needs_lines(view.needs, NEEDS)]
        if not view.alive:
            parts.append(Text.assemble("\nnothing runs; ", (view.next_command, "cyan")))
        return Group(*parts)

    def _queue(self, layout: Layout) -> Queue | None:
        """Return the queue of the last look, which knows what it has read."""
        tag = manifest_tag(layout)[0]
        if self._kept_queue is None or self._kept_queue.tag != tag:
            self._kept_queue = Queue(layout, tag) if ID.fullmatch(tag) else None
        return self._kept_queue

    def _headline(self, view: Overview) -> Text:
        text = Text(view.tag or "no search yet", "bold")
        text.append(f"  reference {(view.reference or '–')[:7]}", "default")
        text.append(f"  {rfc3339(view.generated_at)[11:19]} UTC", "bright_black")
        return text

    def _best(self, view: Overview) -> Text:
        best = view.best
        if best is None:
            return Text("nothing kept yet", "bright_black")
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{plain_line(best.metric)} {number(best.value, 4)}", "bold green")
        said = better(best.improvement, best.improvement_share)
        text.append(f"  {said}  " if best.improvement else "  the baseline  ", "default")
        line = self._keeps.best_line(view.tag, best.metric)
        if len(line) > 1:
            text.append(sparkline(line[-SPARK:], SPARK), "green")
        text.append(f"\n{plain_line(best.experiment_id)}  ", "default")
        text.append(plain_line(best.title), "italic")
        return text

    def _counts(self, view: Overview) -> Text:
        text = Text("queue ", "bold", no_wrap=True, overflow="ellipsis")
        text.append(queue_counts(view), "default")
        for win in view.awaiting[:1]:
            text.append(f"; {plain_line(win.experiment_id)} {win.words}", "yellow")
        text.append(f"; {self._keeps.last_hour()} decided in the last hour", "bright_black")
        return text


def _workers(workers: Sequence[WorkerView], room: int | None) -> RenderableType:
    """Return two lines each where there is room, else one, else those that fit."""
    narrow = room is not None and 2 * len(workers) > room
    shown = list(workers)
    if room is not None and len(workers) > room:
        shown = sorted(workers, key=lambda worker: worker.alive)[: room - 1]
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, max_width=18, overflow="ellipsis")
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True)
    for worker in shown:
        (name, state, *last), second = _lines(worker)
        if narrow:
            table.add_row(name, Text.assemble(state, " ", second[1]), *last)
        else:
            table.add_row(name, state, *last)
            table.add_row(*second)
    if len(shown) == len(workers):
        return table
    rest = f"and {len(workers) - len(shown)} more: python orchestrator.py status"
    return Group(table, Text(as_called(rest), "bright_black"))


def _lines(worker: WorkerView) -> tuple[list[Text], list[Text]]:
    """Return name, state, title, progress; then device, idle share, ids, speed."""
    name = named(worker.worker_id, worker.state, worker.alive)
    state = state_text(worker.state)
    if worker.state_s is not None:
        state.append(f" {duration(worker.state_s)}", "bright_black")
    busy = worker.alive and worker.experiment_id is not None
    title = worker.title or worker.notes if worker.state not in QUIET else ""
    what = Text(plain_line(title), no_wrap=True, overflow="ellipsis")
    first = [name, state, what, progress_bar(worker.progress) if busy else Text("")]
    idle = None if worker.busy_share is None else 1 - worker.busy_share
    second = [
        Text(f"  {plain_line(worker.device)[:DEVICE]}", "bright_black"),
        Text(f"idle {share(idle)}" if idle is not None else "", "bright_black"),
        Text(_ids(worker), "bright_black", no_wrap=True, overflow="ellipsis"),
        Text(_speed(worker) if busy else "", "default"),
    ]
    return first, second


def _ids(worker: WorkerView) -> str:
    if worker.state in QUIET:
        return ""
    following = f"then {worker.next_hypothesis_id}" if worker.next_hypothesis_id else ""
    late = worker.age_s is not None and worker.age_s >= 10
    silence = f"last word {duration(worker.age_s)} ago" if late else ""
    words = (worker.experiment_id or "", diff_size(worker.diff_stat), silence, following)
    return "  ".join(plain_line(word) for word in words if word)


def _speed(worker: WorkerView) -> str:
    words = []
    if worker.loss is not None:
        words.append(f"loss {worker.loss:.3f}")
    if worker.tokens_per_second is not None:
        words.append(f"{amount(worker.tokens_per_second)} tok/s")
    return " ".join(words)


def watch(layout: Layout, console: Screen, *, interval: float, iterations: int | None) -> None:
    """Draw a frame every `interval` seconds, `iterations` times or until it is interrupted.

    Off a terminal each frame is printed below the one before.
    """
    monitor = Monitor(layout)
    looks = count() if iterations is None else range(iterations)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            for look in looks:
                time.sleep(interval if look else 0)
                live.update(monitor.frame(console.height), refresh=True)
        return
    for look in looks:
        if look:
            time.sleep(interval)
            console.print()
        console.print(monitor.frame())
        if not console.has_reader:
            return
