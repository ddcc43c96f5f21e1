"""Parts of every page: colours, numbers as words, and the few shapes of tables.

Titles, notes and reasons were written by others: they are shown on one line, without control
characters, and never as markup. Named colours only, so that dark and light terminals read well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from autohypothesis.plain import plain_line
from autohypothesis.records.comparison import fixed
from autohypothesis.records.outcomes import counts_line

Cell = Text | str

WIDEST = 32
"""Characters of a column that does not give way: a tag may be long."""
CUT, FOLDED = 8, 20
"""Characters that a last column keeps on a narrow screen, by how it gives way."""
GAP = 2
"""Characters between two columns."""
SPARKS = "▁▂▃▄▅▆▇█"
STATUS_STYLE = {
    "keep": "green",
    "discard": "bright_black",
    "crash": "red",
    "lost": "yellow",
    "cancelled": "bright_black",
    "replicate": "cyan",
    "review_pending": "yellow",
    "planned": "blue",
    "running": "blue",
    "failed": "red",
    "artifact_invalid": "magenta",
    "damaged": "magenta",
}
_LINES = re.compile(r"(\d+) (insertion|deletion)")


# ── words ───────────────────────────────────────────────────────────────────────────────────


def styled(status: str) -> str:
    """Return `status` in rich markup."""
    style = STATUS_STYLE.get(status)
    return f"[{style}]{status}[/]" if style else status


def number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """Return a measurement for a table; an en dash for None."""
    return fixed(value, digits, "+" if signed else "")


def duration(seconds: float | None) -> str:
    """Return `12 s`, `4 min`, `2 h 05`, `3 d 4 h`; an en dash for None."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def memory(gigabytes: float | None) -> str:
    return "–" if gigabytes is None else f"{gigabytes:.1f} GB"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def amount(value: float) -> str:
    """Return `950`, `27.1k`, `1.03M`."""
    for limit, unit, digits in ((1e6, "M", 2), (1e3, "k", 1)):
        if value >= limit:
            return f"{value / limit:,.{digits}f}{unit}"
    return f"{value:.0f}"


def loss_and_speed(loss: object, tokens_per_second: object) -> str:
    """Return `loss 3.120 27.1k tok/s`, as far as it is known."""
    words = [f"loss {loss:.3f}"] if isinstance(loss, (int, float)) else []
    if isinstance(tokens_per_second, (int, float)):
        words.append(f"{amount(tokens_per_second)} tok/s")
    return " ".join(words)


def diff_size(diff_stat: str) -> str:
    """Return `+2 −1` for git's summary of a change."""
    signs = {"insertion": "+", "deletion": "−"}
    return " ".join(f"{signs[kind]}{count}" for count, kind in _LINES.findall(diff_stat[:500]))


def better(gain: float | None, part: float | None) -> str:
    """Return `better by 0.0312 (2.1 %)`."""
    if gain is None:
        return ""
    word = "better" if gain > 0 else "worse" if gain < 0 else "no better"
    size = f" by {number(abs(gain))}" if gain else ""
    return f"{word}{size}" + (f" ({100 * abs(part):.1f} %)" if part and gain else "")


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return a curve in one line of text, at most `width` columns: high values are high."""
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    pieces = [values[start : start + step] for start in range(0, len(values), step)]
    points = [sum(piece) / len(piece) for piece in pieces]
    low, high = min(points), max(points)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((point - low) * scale)] for point in points)


def diff_text(diff: str) -> Text:
    """Return a unified diff, coloured as git does."""
    text = Text()
    for line in diff.splitlines(keepends=True):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line, style="bold" if line.startswith(("+++", "---")) else style)
    return text


# ── shapes ──────────────────────────────────────────────────────────────────────────────────


def titled(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(""), Text(title, "bold"), body)


def counts_text(outcomes: Mapping[str, int]) -> Text:
    """Return `counts_line`, each word in its colour."""
    text = Text(counts_line(outcomes))
    for word in outcomes:
        text.highlight_regex(rf"[\d,]+ {word}", STATUS_STYLE.get(word, ""))
    return text


def grid(
    rows: Iterable[Sequence[Cell]], *columns: Mapping[str, Any], gap: int = 2, expand: bool = True
) -> Table:
    """Return lines without a head; `columns` are the options of `Table.add_column`."""
    made = Table.grid(padding=(0, gap), expand=expand)
    for options in columns:
        made.add_column(**options)
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


FIXED: Mapping[str, Any] = {"no_wrap": True}
SHORTENED: Mapping[str, Any] = {"ratio": 1, "no_wrap": True, "overflow": "ellipsis"}
"""The column that gives way on a narrow screen."""


def facts(rows: Iterable[tuple[str, Cell]]) -> Table:
    """Return names and what stands for them; a longer text is folded."""
    return grid(rows, {**FIXED, "style": "bright_black"}, {"ratio": 1}, expand=False)


def listing(rows: Iterable[tuple[Cell, Cell, Cell]]) -> Table:
    """Return lines of a name, a state, and a text that gives way."""
    return grid(rows, FIXED, {**FIXED, "style": "bright_black"}, SHORTENED)


def paragraphs(mark: str, texts: Iterable[Cell], style: str = "") -> Table:
    """Return folded texts, each behind a mark."""
    columns = ({**FIXED, "style": style}, {"ratio": 1, "overflow": "fold"})
    return grid(((mark, text) for text in texts), *columns, gap=1, expand=False)


class TextTable:
    """A table as wide as its texts. A narrow screen costs columns first, then the last text."""

    def __init__(
        self,
        names: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        right: Collection[int] = (),
        spare: Sequence[int] = (),
        fold: bool = False,
        title: str = "",
        widest: int = WIDEST,
    ) -> None:
        """
        Args:
            right: the columns whose cells stand on the right.
            spare: the columns that are left out before a text is cut, the first one first.
            fold: show a long text of the last column on several lines; else its end is cut.
            widest: characters up to which another column is never cut.
        """
        self._names = [plain_line(name) for name in names]
        self._rows = [
            [c if isinstance(c, Text) else Text(plain_line(c)) for c in row] for row in rows
        ]
        self._right, self._spare = right, spare
        self._widest, self._fold, self._title = widest, fold, title
        cells = ((cell.cell_len for cell in column) for column in zip(*self._rows, strict=True))
        self._widths: list[int] = [
            max([len(name), *column])
            for name, column in zip_longest(self._names, cells, fillvalue=())
        ]

    def width(self, columns: Collection[int] | None = None) -> int:
        """Return the characters of a line in which nothing is cut."""
        widths = self._widths if columns is None else [self._widths[at] for at in columns]
        return sum(widths) + GAP * (len(widths) - 1)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, self.width())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, room = list(range(len(self._names))), options.max_width
        for at in self._spare:
            if self.width(shown) > room:
                shown.remove(at)
        widths = {at: self._widths[at] for at in shown}
        least = {at: min(widths[at], self._widest) for at in shown[:-1]}
        least[shown[-1]] = min(widths[shown[-1]], FOLDED if self._fold else CUT)
        for at in reversed(shown):
            over = sum(widths.values()) + GAP * (len(shown) - 1) - room
            widths[at] -= max(0, min(over, widths[at] - least[at]))
        while sum(widths.values()) + GAP * (len(shown) - 1) > room and max(widths.values()) > 1:
            widths[max(shown, key=lambda at: widths[at])] -= 1  # each still ends in an ellipsis
        made = Table(
            title=Text(plain_line(self._title), "bold") if self._title else None,
            title_justify="left", box=None, pad_edge=False, header_style="bright_black",
        )  # fmt: skip
        for at in shown:
            fold = self._fold and at == shown[-1]
            made.add_column(
                Text(self._names[at]), justify="right" if at in self._right else "left",
                no_wrap=not fold, overflow="fold" if fold else "ellipsis", width=widths[at],
            )  # fmt: skip
        for row in self._rows:
            made.add_row(*(row[at] for at in shown))
        yield made
