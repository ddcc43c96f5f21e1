"""The monitor: a frame of what the fleet does, drawn again and again. It only reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate, count

from rich.console import Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.overview.overview import Overview, WorkerView, overview
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.installation import suggested
from autohypothesis.plain import plain_line
from autohypothesis.records.history import DecisionHistory, LiveHistory, is_lost
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import manifest_tag
from autohypothesis.records.rows import real
from autohypothesis.schema import now, rfc3339
from autohypothesis.terminal.fleet import (
    QUIET,
    gain_words,
    named,
    needs_lines,
    progress_bar,
    queue_counts,
    roles_table,
    state_text,
    waiting_table,
)
from autohypothesis.terminal.parts import (
    FIXED,
    SHORTENED,
    better,
    diff_size,
    duration,
    grid,
    loss_and_speed,
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


def best_so_far(history: DecisionHistory, metric: str) -> list[float]:
    """Return the best value after each keep that stands, on the platform of the last one."""
    keeps = [d for d in history.latest.values() if d.decision_status == "keep"]
    if not keeps:
        return []
    last = keeps[-1]
    values = [real(d.metric_value, metric) for d in keeps if d.platform_key == last.platform_key]
    best = max if last.direction == "maximize" else min
    return list(accumulate((value for value in values if value is not None), best))


def _room(view: Overview, height: int | None) -> tuple[int | None, int]:
    """Return the lines for workers, None for as many as it takes, and for waiting hypotheses."""
    if height is None:
        return None, WAITING
    needs = 3 + min(len(view.needs), NEEDS) if view.needs else 0
    left = height - AROUND - needs - (0 if view.alive else 2)
    waiting = left - 2 * len(view.workers)
    return max(left, LEAST), max(0, min(waiting, WAITING))


class Monitor:
    """Frames of one fleet. Queue and decisions are followed, not read again for each frame."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._queue: Queue | None = None
        self._history = LiveHistory(layout, "")

    def frame(self, height: int | None = None) -> RenderableType:
        """Return the fleet as it stands now, in at most `height` lines where that can be."""
        self._follow(manifest_tag(self._layout)[0])
        view = overview(self._layout, self._queue)
        workers, waiting = _room(view, height)
        parts: list[RenderableType] = [
            Rule(self._headline(view), align="left", style="bright_black", characters="─"),
            self._best(view),
            Text(""),
            roles_table(view.roles, apart=True),
            Text(""),
        ]
        if view.workers:
            parts += [_workers(view.workers, workers), Text("")]
        parts.append(self._counts(view))
        if waiting:
            parts.append(waiting_table(view.waiting[:waiting]))
        if view.needs:
            parts += [Text("\nneeds you", "bold"), needs_lines(view.needs, NEEDS)]
        if not view.alive:
            parts.append(Text.assemble("\nnothing runs; ", (view.next_command, "cyan")))
        return Group(*parts)

    def _follow(self, tag: str) -> None:
        if tag != self._history.tag:
            self._queue = Queue(self._layout, tag) if ID.fullmatch(tag) else None
            self._history = LiveHistory(self._layout, tag)
        with suppress(AutohypothesisError):  # a file that cannot be read is no reason to stop
            self._history.refresh()

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
        gain = better(best.improvement, best.improvement_share)
        text.append(f"  {gain if best.improvement else gain_words(best)}  ", "default")
        line = best_so_far(self._history, best.metric)
        if len(line) > 1:
            text.append(sparkline(line[-SPARK:], SPARK), "green")
        text.append(f"\n{plain_line(best.experiment_id)}  ", "default")
        if best.compared is not None:
            text.append(f"{best.compared.cell}  ", "default")
        text.append(plain_line(best.title), "italic")
        return text

    def _counts(self, view: Overview) -> Text:
        text = Text("queue ", "bold", no_wrap=True, overflow="ellipsis")
        text.append(queue_counts(view), "default")
        for win in view.awaiting[:1]:
            text.append(f"; {plain_line(win.experiment_id)} {win.words}", "yellow")
        begin = now() - timedelta(hours=1)
        recent = sum(
            decision.recorded_at > begin and not is_lost(decision)
            for decision in self._history.decisions
        )
        text.append(f"; {recent} decided in the last hour", "bright_black")
        return text


def _workers(workers: Sequence[WorkerView], room: int | None) -> RenderableType:
    """Return two lines each where there is room, else one, else those that fit."""
    narrow = room is not None and 2 * len(workers) > room
    shown = list(workers)
    if room is not None and len(workers) > room:
        shown = sorted(workers, key=lambda worker: worker.alive)[: room - 1]
    rows: list[list[Text]] = []
    for first, second in map(_lines, shown):
        if narrow:
            name, state, *last = first
            rows.append([name, Text.assemble(state, " ", second[1]), *last])
        else:
            rows += [first, second]
    table = grid(rows, {**FIXED, "max_width": 18, "overflow": "ellipsis"}, FIXED, SHORTENED, FIXED)
    if len(shown) == len(workers):
        return table
    rest = f"and {len(workers) - len(shown)} more: python orchestrator.py status"
    return Group(table, Text(suggested(rest), "bright_black"))


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
        Text(loss_and_speed(worker.loss, worker.tokens_per_second) if busy else "", "default"),
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
