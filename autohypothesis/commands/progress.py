"""The progress of one experiment, and of a fleet in the foreground, on stderr."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from autohypothesis.commands.common import err
from autohypothesis.engine.runner import ProgressListener

if TYPE_CHECKING:
    from rich.console import Console

    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.records.layout import Layout


REFRESH_S = 1.0
_NUMBER = re.compile(r"\d+")
_HAVE_SAID = ("finished", "failed", "stopped")
"""States of a role whose last words its starter says."""


@contextmanager
def shown(layout: Layout, stop: Stop) -> Iterator[Callable[[], None]]:
    """Yield a function to call often while the fleet works; it shows news on stderr."""
    console = err()
    if not console.is_terminal:
        quiet = FleetLines(layout, stop)
        yield _every(REFRESH_S, quiet.look)
        quiet.last_look()
        return
    from rich.live import Live

    from autohypothesis.terminal.live import Monitor

    monitor = Monitor(layout)
    lines = FleetLines(layout, stop)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw() -> None:
            lines.look()
            live.update(monitor.frame(console.height), refresh=True)

        lines.console = live.console
        yield _every(REFRESH_S, draw)
    lines.console = console
    lines.last_look()


class FleetLines:
    """Prints a line for each decision and each problem, as they come."""

    def __init__(self, layout: Layout, stop: Stop) -> None:
        self._layout = layout
        self._stop = stop
        self._offset = self._size()
        self._problems: set[str] = set()
        self._told = False
        self.console: Console = err()

    def look(self) -> None:
        from autohypothesis.errors import AutohypothesisError
        from autohypothesis.records import jsonl

        if self._stop.requested and not self._told:
            self._told = True
            again = "; Ctrl-C again ends it at once" if self.console.is_terminal else ""
            self._say(f"stops: trainings are ended and recorded{again}")
        try:
            news = jsonl.read_new(self._layout.decisions, self._offset)
        except AutohypothesisError:
            return
        self._offset = news.offset
        for decision in news.records:
            self._say(line_of(decision))
        self._look_for_problems()

    def last_look(self) -> None:
        """Print what came since the last look; a failure of this does not fail the command."""
        from autohypothesis.errors import AutohypothesisError

        with suppress(AutohypothesisError, OSError, ValueError):
            self.look()

    def _look_for_problems(self) -> None:
        from autohypothesis.engine.recovery import stalled_runs
        from autohypothesis.fleet.live.presence import ROLES, read_role, role_lives

        for name in ROLES:
            status = read_role(self._layout, name)
            if status is None or status.state in _HAVE_SAID or not role_lives(status):
                continue
            for problem in status.problems:
                self._say_once(f"{name}: {problem}")
        for line in stalled_runs(self._layout):
            self._say_once(line)

    def _say_once(self, problem: str) -> None:
        """Print a problem once; one that counts seconds or tries stays the same problem."""
        known = _NUMBER.sub("#", problem)
        if known not in self._problems and len(self._problems) < 1000:
            self._problems.add(known)
            self._say(problem)

    def _size(self) -> int:
        try:
            return self._layout.decisions.stat().st_size
        except OSError:
            return 0

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def line_of(decision: dict[str, Any]) -> str:
    """Return `keep h-t-0003-1  1.2345, improved (0.01 better)`, as far as it is known."""
    from autohypothesis.plain import table_text
    from autohypothesis.records.rows import NOT_EVIDENCE

    lost = decision.get("reason") in NOT_EVIDENCE
    value = decision.get("metric_value")
    number = f"{value:.6f}" if isinstance(value, (int, float)) else "-"
    words = [
        f"{'lost' if lost else decision.get('decision_status', '?')!s:<9}",
        str(decision.get("experiment_id", "?")),
        number,
        str(decision.get("reason", "")),
    ]
    detail = str(decision.get("detail") or "")
    return table_text("  ".join(words) + (f"  ({detail})" if detail else ""))


def _every(seconds: float, look: Callable[[], None]) -> Callable[[], None]:
    """Return `look`, limited to that often; a view that cannot be drawn ends no fleet."""
    from autohypothesis.errors import AutohypothesisError

    due = 0.0

    def tick() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            with suppress(AutohypothesisError, OSError, ValueError):
                look()

    return tick


BAR_REFRESH_S = 0.2


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
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + BAR_REFRESH_S
        event = self._latest(project, experiment_id)
        if event is not None:
            percent = (event.get("progress") or {}).get("progress_pct")
            self._progress.update(
                self._bar,
                description=self._title or experiment_id,
                completed=percent if percent is not None else 0.0,
                facts=facts(event.get("metrics") or {}),
            )

    def stalled(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def ended(self) -> None:
        self._progress.stop()

    def _latest(self, project: Project, experiment_id: str) -> dict[str, Any] | None:
        from autohypothesis.records.jsonl import read_new

        news = read_new(project.layout.run(experiment_id).events, self._offset)
        self._offset = news.offset
        return news.records[-1] if news.records else None


def facts(metrics: dict[str, Any]) -> str:
    """Return `loss 3.12, 27,123 tok/s`, as far as it is known."""
    loss, speed = metrics.get("train_loss"), metrics.get("tok_per_sec")
    words = []
    if isinstance(loss, (int, float)):
        words.append(f"loss {loss:.3f}")
    if isinstance(speed, (int, float)):
        words.append(f"{speed:,.0f} tok/s")
    return ", ".join(words)
