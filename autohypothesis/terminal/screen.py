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

from autohypothesis.installation import suggested
from autohypothesis.terminal.parts import GAP
from autohypothesis.terminal.streams import lost, safe


class Screen(Console):
    """A console that shows no control character but its own.

    What is removed has no width, so tables keep their columns. A terminal without Unicode gets `?`
    for what it lacks, but a path as it can be typed. In a pipe no line is broken or cut. Named
    colours only: they follow the terminal's theme.
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
        """Return the characters of the longest line of `item` where each has the room it needs."""
        if isinstance(item, Group):
            return max(map(self._uncut, item.renderables), default=0)
        if isinstance(item, Table):
            widths = ([each.min_width or 0, *map(self._uncut, each.cells)] for each in item.columns)
            return sum(max(width) + GAP for width in widths)
        longest = Measurement.get(self, self.options.update(max_width=sys.maxsize), item).maximum
        return 0 if longest == sys.maxsize else longest  # it takes what room there is

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        for text, style, control in super().render(*args, **options):
            yield Segment(text if control else safe(text, self.encoding), style, control)

    @property
    def has_reader(self) -> bool:
        """Return whether output can still be written."""
        return lost(self.file) is None
