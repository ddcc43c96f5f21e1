"""What `show-results` shows: the numbers of a search, its steps, and its best experiments."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autohypothesis.fleet.overview.results import KeptTrial, Results, ResultTrial
from autohypothesis.terminal.fleet_table import duration, one_line, share, titled
from autohypothesis.terminal.style import STATUS_STYLE, number


def results_page(found: Results, count: int, *, kept_only: bool = False) -> RenderableType:
    """Everything, for people."""
    parts: list[RenderableType] = [_heading(found)]
    if len(found.keeps) > 1:
        parts.append(titled("kept, each against the one before it", _steps(found.keeps)))
    if top := found.top(count, kept_only=kept_only):
        what = "kept" if kept_only else "experiments"
        parts.append(titled(f"the best {len(top)} {what}", _table(top, found)))
    return Group(*parts)


def _heading(found: Results) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(ratio=1)
    name = f"{found.tag or 'a search'} in {found.source}"
    table.add_row("search", Text(one_line(name), "bold"))
    table.add_row("experiments", _counts(found))
    if found.start is not None:
        table.add_row("start", f"{one_line(found.metric)} {number(found.start.value, 6)}")
    if found.best is not None:
        text = Text(f"{one_line(found.metric)} {number(found.best.value, 6)}", "bold green")
        if found.gain and found.start is not None and found.start.value:
            part = 100 * found.gain / abs(found.start.value)
            text.append(f", better by {found.gain:.6f} ({part:.1f} %)", "default")
        text.append(f"  {one_line(found.best.description)}", "default")
        table.add_row("best", text)
    table.add_row("keep rate", share(found.keep_rate))
    if found.crashes:
        kinds = ", ".join(f"{count} {one_line(kind)}" for kind, count in found.crashes.items())
        table.add_row("crashes", kinds)
    table.add_row("time", _time(found))
    return table


def _counts(found: Results) -> Text:
    text = Text(f"{found.experiments:,}: ")
    shown = {"keep": found.kept, "discard": found.discarded, "crash": found.crashed}
    for index, (status, count) in enumerate(shown.items()):
        text.append(", " if index else "")
        text.append(f"{count:,} {status}", STATUS_STYLE[status])
    more = {"repeats": found.repeats, "undecided": found.undecided}
    for name, value in more.items():
        if value:
            text.append(f"; {value:,} {name}")
    return text


def _time(found: Results) -> str:
    if found.hours is None or found.device_hours is None:
        return "–"
    said = f"{duration(3600 * found.device_hours)} in experiments"
    said += f" over {duration(3600 * found.hours)}"
    return said if found.per_hour is None else f"{said}; {found.per_hour:,.1f} an hour"


def _steps(keeps: Sequence[KeptTrial]) -> Table:
    table = _columns(("value", "gain", "in all", "description"), right=3)
    for step in keeps:
        table.add_row(
            number(step.trial.value, 6),
            number(step.gain, 6, signed=True),
            number(step.total, 6, signed=True),
            one_line(step.trial.description),
        )
    return table


def _table(trials: Sequence[ResultTrial], found: Results) -> Table:
    table = _columns((found.metric, "memory", "status", "commit", "description"), right=2)
    for one in trials:
        table.add_row(
            number(one.value, 6),
            "–" if one.memory_gb is None else f"{one.memory_gb:.1f} GB",
            Text(one.status, STATUS_STYLE.get(one.status, "")),
            one_line(one.commit)[:7],
            one_line(one.description),
        )
    return table


def _columns(names: Sequence[str], right: int) -> Table:
    """On a narrow screen the last column gives way, and no other. Cells are never markup."""
    table = Table(box=None, pad_edge=False, header_style="bright_black", padding=(0, 2, 0, 0))
    for index, name in enumerate(names):
        last = index == len(names) - 1
        table.add_column(
            Text(one_line(name)), justify="right" if index < right else "left", no_wrap=True,
            overflow="ellipsis", min_width=8 if last else None,
        )  # fmt: skip
    return table
