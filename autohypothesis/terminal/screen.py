"""The one console: whatever is printed for people passes here, and is made safe on its way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from autohypothesis.installation import as_called
from autohypothesis.plain import plain
from autohypothesis.terminal.streams import is_unicode, lost


class Screen(Console):
    """A console that shows no control character but its own.

    What is removed has no width, so tables keep their columns. A terminal without Unicode gets `?`
    for what it lacks. Named colours only: they follow the terminal's theme.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        named = (as_called(item) if isinstance(item, str) else item for item in objects)
        super().print(*named, **options)

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
