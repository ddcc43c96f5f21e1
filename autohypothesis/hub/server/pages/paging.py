"""Long lists in pieces: `?page=2`."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from autohypothesis.hub.server.refusals import bad

_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a list of `total` rows."""

    number: int
    size: int
    total: int

    @classmethod
    def asked(cls, request: Request, size: int, total: int) -> Piece:
        """The piece that the address names, the first unless it says.

        Raises:
            RefusedError: 400, `page` is no number.
        """
        text = request.query_params.get("page", "1")
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text)):
            raise bad(f"page must be a number, 1 or more: {text[:40]!r}")
        return cls(int(text), size, total)

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.size))

    @property
    def before(self) -> int | None:
        """The page before this one; from beyond the end it leads back to the last."""
        return min(self.number - 1, self.pages) or None

    @property
    def after(self) -> int | None:
        return self.number + 1 if self.number < self.pages else None
