"""A progress bar for one running experiment, on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from autohypothesis.commands.common import err

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project

REFRESH_S = 0.2


class ProgressWatch:
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
        self._next = time.monotonic() + REFRESH_S
        event = self._latest(project, experiment_id)
        if event is not None:
            percent = (event.get("progress") or {}).get("progress_pct")
            self._progress.update(
                self._bar,
                description=self._title or experiment_id,
                completed=percent if percent is not None else 0.0,
                facts=facts(event.get("metrics") or {}),
            )

    def notice(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def ended(self) -> None:
        self._progress.stop()

    def _latest(self, project: Project, experiment_id: str) -> dict[str, Any] | None:
        from autohypothesis.records.jsonl import read_new

        news = read_new(project.layout.run(experiment_id).events, self._offset)
        self._offset = news.offset
        return news.records[-1] if news.records else None


def facts(metrics: dict[str, Any]) -> str:
    """`loss 3.12, 27,123 tok/s`, as far as it is known."""
    loss, speed = metrics.get("train_loss"), metrics.get("tok_per_sec")
    words = []
    if isinstance(loss, (int, float)):
        words.append(f"loss {loss:.3f}")
    if isinstance(speed, (int, float)):
        words.append(f"{speed:,.0f} tok/s")
    return ", ".join(words)
