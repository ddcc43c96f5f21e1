"""The page of the morning: what was kept, what failed, what the devices did, where to look."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autohypothesis.fleet.overview.digest import (
    CrashKind,
    DeviceUse,
    Digest,
    KeptStep,
    ProposerRecord,
)
from autohypothesis.terminal.fleet_table import (
    better,
    duration,
    needs_list,
    one_line,
    share,
    titled,
)
from autohypothesis.terminal.style import STATUS_STYLE, number

WIDEST = 32
"""Characters of a column that does not give way: a tag may be long."""
CONFIRMATION_STYLE = {"confirmed": "green", "provisional": "yellow", "refuted": "red"}


def digest_page(page: Digest) -> RenderableType:
    """Everything that `digest` shows, for people."""
    parts: list[RenderableType] = [_heading(page)]
    if page.first:
        parts.append(titled("look at this first", needs_list(page.first)))
    if page.kept:
        parts.append(titled("kept, in the order of the decisions", _kept(page.kept)))
    if page.crashes:
        parts.append(titled("crashed", _crashes(page.crashes)))
    if page.workers:
        parts.append(titled("devices", _workers(page.workers)))
    if page.proposers:
        parts.append(titled("where the ideas came from", _proposers(page.proposers)))
    return Group(*parts)


def _heading(page: Digest) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(ratio=1)
    span = f"the last {duration((page.until - page.since).total_seconds())}" if page.since else ""
    table.add_row("search", Text(page.tag or "none yet", "bold").append(f"  {span}", "default"))
    table.add_row("decided", _decided(page))
    if wins := _wins(page):
        table.add_row("wins", wins)
    best = page.overview.best
    if best is not None and page.tag == page.overview.tag:
        text = Text(f"{one_line(best.metric)} {number(best.value, 6)}", "bold green")
        text.append(f"  {one_line(best.experiment_id)}", "default")
        if best.improvement:
            said = better(best.improvement, best.improvement_share)
            text.append(f", {said} than the baseline", "default")
        table.add_row("best", text)
    table.add_row("devices", Text(_devices(page)))
    return table


def _decided(page: Digest) -> Text:
    if not page.decided:
        return Text("nothing yet", "bright_black")
    text = Text(f"{sum(page.decided.values()):,}: ")
    for index, (status, count) in enumerate(sorted(page.decided.items(), key=lambda one: -one[1])):
        text.append(", " if index else "")
        text.append(f"{count:,} {status}", STATUS_STYLE.get(status, ""))
    if page.experiments_per_hour is not None:
        text.append(
            f"; {page.experiments_per_hour:,.1f} an hour over {duration(page.hours * 3600)}"
        )
    return text


def _wins(page: Digest) -> Text | None:
    """How believable what was kept is; nothing where no win was run again."""
    if not (page.confirmed or page.not_confirmed):
        return None
    text = Text(f"{len(page.confirmed):,} confirmed", CONFIRMATION_STYLE["confirmed"])
    for count, word, style in (
        (len(page.provisional), "provisional", "provisional"),
        (len(page.not_confirmed), "not confirmed when run again", "refuted"),
    ):
        if count:
            text.append(", ", "default").append(f"{count:,} {word}", CONFIRMATION_STYLE[style])
    return text


def _devices(page: Digest) -> str:
    idle = "" if page.idle_share is None else f", idle for {share(page.idle_share)} of their time"
    return f"{page.device_hours:,.2f} device-hours{idle}"


Cell = Text | str


def _kept(steps: Sequence[KeptStep]) -> Table:
    rows: list[list[Cell]] = []
    for step in steps:
        gain = "–" if step.gain is None else f"{step.gain:+.4f}"
        part = "" if step.gain_share is None else f" {100 * step.gain_share:+.1f} %"
        word = step.reason if step.confirmation in ("none", "") else step.confirmation
        rows.append(
            [
                one_line(step.experiment_id), number(step.value, 6), gain + part,
                Text(one_line(word), CONFIRMATION_STYLE.get(word, "")), one_line(step.title),
            ]
        )  # fmt: skip
    return _table(("id", "value", "gain", "", "title"), rows, right=(1, 2))


def _crashes(crashes: Sequence[CrashKind]) -> Table:
    rows: list[list[Cell]] = [
        [Text(one_line(one.kind), "red"), f"{one.count:,}", one_line(one.example),
         one_line(one.detail)]
        for one in crashes
    ]  # fmt: skip
    return _table(("kind", "times", "for example", ""), rows, right=(1,))


def _workers(workers: Sequence[DeviceUse]) -> Table:
    rows: list[list[Cell]] = [
        [one_line(use.worker_id), f"{use.experiments:,}", f"{use.device_hours:,.2f}",
         share(use.idle_share), ""]
        for use in workers
    ]  # fmt: skip
    return _table(("worker", "experiments", "device-hours", "idle", ""), rows, right=(1, 2, 3))


def _proposers(records: Sequence[ProposerRecord]) -> Table:
    """`direction` and `off by`: how often a prediction had the sign right, and its mean error."""
    rows: list[list[Cell]] = [
        [one_line(one.proposer), f"{one.tried:,}", f"{one.kept:,}", share(one.hit_rate),
         f"{one.predictions:,}", share(one.right_direction), number(one.mean_error), ""]
        for one in records
    ]  # fmt: skip
    names = ("proposer", "tried", "kept", "hits", "predicted", "direction", "off by", "")
    return _table(names, rows, right=range(1, 7))


def _table(names: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int]) -> Table:
    """On a narrow screen the last column gives way, and no other."""
    table = Table(
        box=None, pad_edge=False, header_style="bright_black", padding=(0, 2, 0, 0), expand=True
    )
    last = len(names) - 1
    for index, name in enumerate(names):
        widest = max(len(cells[index]) for cells in [names, *rows])
        table.add_column(
            name, justify="right" if index in right else "left", no_wrap=True, overflow="ellipsis",
            min_width=None if index == last else min(widest, WIDEST),
            ratio=1 if index == last else None,
        )  # fmt: skip
    for cells in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table
