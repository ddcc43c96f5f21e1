"""The one console: whatever is printed for people passes here, and is made safe on its way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autohypothesis.installation import suggested
from autohypothesis.plain import plain
from autohypothesis.terminal.parts import GAP, TextTable
from autohypothesis.terminal.streams import is_unicode, lost


class Screen(Console):
    """A console that shows no control character but its own.

    What is removed has no width, so tables keep their columns. A terminal without Unicode gets `?`
    for what it lacks. Named colours only: they follow the terminal's theme.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        self._narrowest = self.width

    def print(self, *objects: Any, **options: Any) -> None:
        named = [suggested(item) if isinstance(item, str) else item for item in objects]
        if not self.is_terminal and "COLUMNS" not in os.environ:  # a pipe has no width
            self.width = max([self._narrowest, *map(self._uncut, named)])
        super().print(*named, **options)

    def _uncut(self, item: Any) -> int:
        """Return the characters of the longest line that would be cut where it has no room."""
        if isinstance(item, Group):
            return max(map(self._uncut, item.renderables), default=0)
        if isinstance(item, TextTable):
            return item.width()
        if isinstance(item, Table):
            columns = [column for column in item.columns if column.no_wrap]
            widths = ([each.min_width or 0, *map(self._measured, each.cells)] for each in columns)
            return sum(max(width) + GAP for width in widths)
        return self._measured(item) if isinstance(item, Text) and item.no_wrap else 0

    def _measured(self, cell: Any) -> int:
        endless = self.options.update(max_width=sys.maxsize)
        return Measurement.get(self, endless, cell).maximum

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        for text, style, control in super().render(*args, **options):
            yield Segment(text if control else self._safe(text), style, control)

    def _safe(self, text: str) -> str:
        text = plain(text)
        if text.isascii() or is_unicode(self.encoding):
            return text
        return text.encode(self.encoding, "replace").decode(self.encoding)

    @property
    def has_reader(self) -> bool:
        """Return whether output can still be written."""
        return lost(self.file) is None
