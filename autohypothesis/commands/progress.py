"""The progress of one experiment, and of a fleet in the foreground, on stderr."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from autohypothesis.commands.common import err
from autohypothesis.engine.runner import ProgressListener
from autohypothesis.errors import AutohypothesisError

if TYPE_CHECKING:
    from rich.console import Console

    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.records.layout import Layout

REFRESH_S = 1.0
BAR_REFRESH_S = 0.2
_NUMBER = re.compile(r"\d+")


@contextmanager
def shown(layout: Layout, stop: Stop) -> Iterator[Callable[[], None]]:
    """Yield a function to call often while the fleet works; it shows news on stderr.

    A view that cannot be drawn ends no fleet.
    """
    lines, console, due = FleetLines(layout, stop), err(), 0.0

    def look(draw: Callable[[], None]) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + REFRESH_S
            with suppress(AutohypothesisError, OSError, ValueError):
                lines.look()
                draw()

    def no_picture() -> None: ...

    if console.is_terminal:
        from rich.live import Live

        from autohypothesis.terminal.live import Monitor

        monitor = Monitor(layout)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            lines.console = live.console
            yield lambda: look(lambda: live.update(monitor.frame(console.height), refresh=True))
        lines.console = console
    else:
        yield lambda: look(no_picture)
    due = 0.0
    look(no_picture)


class FleetLines:
    """Prints a line for each decision and each problem, as they come."""

    def __init__(self, layout: Layout, stop: Stop) -> None:
        self._layout = layout
        self._stop = stop
        self._offset = 0
        with suppress(OSError):
            self._offset = layout.decisions.stat().st_size
        self._problems: set[str] = set()
        self._is_stopping = False
        self.console: Console = err()

    def look(self) -> None:
        from autohypothesis.records import jsonl

        if self._stop.requested and not self._is_stopping:
            self._is_stopping = True
            again = "; Ctrl-C again ends it at once" if self.console.is_terminal else ""
            self._say(f"stops: trainings are ended and recorded{again}")
        try:
            news = jsonl.read_new(self._layout.decisions, self._offset)
        except AutohypothesisError:
            return
        self._offset = news.offset
        for decision in news.records:
            self._say(line_of(decision))
        for problem in self._current_problems():
            known = _NUMBER.sub("#", problem)  # one that counts seconds stays the same problem
            if known not in self._problems and len(self._problems) < 1000:
                self._problems.add(known)
                self._say(problem)

    def _current_problems(self) -> Iterator[str]:
        from autohypothesis.engine.shim import stalled_runs
        from autohypothesis.fleet.live.presence import ROLES, read_role, role_lives

        for name in ROLES:
            status = read_role(self._layout, name)
            # The last words of a role that has ended are said by its starter.
            if status is None or status.state in ("finished", "failed", "stopped"):
                continue
            if role_lives(status):
                yield from (f"{name}: {problem}" for problem in status.problems)
        yield from stalled_runs(self._layout)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def line_of(decision: dict[str, Any]) -> str:
    """Return `keep h-t-0003-1  1.2345, improved (0.01 better)`, as far as it is known."""
    from autohypothesis.plain import table_text
    from autohypothesis.records.comparison import fixed
    from autohypothesis.records.outcomes import shown_as

    reason, value = str(decision.get("reason", "")), decision.get("metric_value")
    status = shown_as(str(decision.get("decision_status", "?")), reason)
    words = [
        f"{status:<9}",
        str(decision.get("experiment_id", "?")),
        fixed(value, 6) if isinstance(value, (int, float)) else "-",
        *([reason] if reason != status else []),
    ]
    if detail := decision.get("detail"):
        words.append(f"({detail})")
    return table_text("  ".join(words))


class ProgressWatch(ProgressListener):
    """Shows an experiment's share of its budget, loss and speed, from its own events.

    Off a terminal it draws nothing, so that logs stay readable.
    """

    def __init__(self, title: str = "") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = err()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(title, total=100.0, facts="")
        self._title = title
        self._next = 0.0
        self._offset = 0

    def preparing(self, title: str) -> None:
        self._title = self._title or title
        self._progress.start()
        self._progress.update(self._bar, description=f"{self._title}: preparing")

    def tick(self, project: Project, experiment_id: str) -> None:
        from autohypothesis.records.jsonl import read_new
        from autohypothesis.terminal.parts import loss_and_speed

        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + BAR_REFRESH_S
        news = read_new(project.layout.run(experiment_id).events, self._offset)
        self._offset = news.offset
        for event in news.records[-1:]:
            percent = (event.get("progress") or {}).get("progress_pct")
            metrics = event.get("metrics") or {}
            self._progress.update(
                self._bar,
                description=self._title or experiment_id,
                completed=percent if percent is not None else 0.0,
                facts=loss_and_speed(metrics.get("train_loss"), metrics.get("tok_per_sec")),
            )

    def stalled(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def ended(self) -> None:
        self._progress.stop()
