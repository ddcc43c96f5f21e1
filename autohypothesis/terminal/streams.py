"""Standard streams that no command fails for: what was done is done, whether it can be read or not.

The light half, for every command; `screen.py` prints tables and texts.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, TextIO

from autohypothesis.plain import plain, typeable

STANDARD = (0, 1, 2)


class SteadyFile(FileIO):
    """A descriptor of this process. The first write that fails is remembered; later ones vanish."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def make_steady() -> None:
    """Have stdout and stderr take every character, and survive a reader that has gone.

    A closed descriptor becomes the null device: else the next file that is opened would get its
    number, and what is printed would be written into it.
    """
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    sys.stdout = _steady(sys.stdout, 1)
    sys.stderr = _steady(sys.stderr, 2)


def _steady(stream: TextIO | None, number: int) -> TextIO:
    """Return `stream` on a steady file; one that is not on a descriptor stays as it is."""
    try:
        number = stream.fileno() if stream is not None else number
    except (OSError, ValueError):
        return stream  # type: ignore[return-value]  # StringIO and its like
    encoding = stream.encoding if stream is not None else "utf-8"
    return TextIOWrapper(
        BufferedWriter(SteadyFile(number, "w", closefd=False)),
        encoding=encoding,
        # A path that is not UTF-8 goes out as the bytes that it has.
        errors="surrogateescape" if is_unicode(encoding) else "backslashreplace",
        line_buffering=number == 2 or os.isatty(number),
        write_through=number == 2,
    )


def safe(text: str, encoding: str) -> str:
    """Return `text` as a terminal can show it: no control character, `?` for what it lacks, but a
    path as it can be typed."""
    text = plain(typeable(text, encoding))
    if text.isascii() or is_unicode(encoding):
        return text
    return text.encode(encoding, "replace").decode(encoding)


def is_unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").replace("_", "").startswith("utf")


def lost(stream: Any) -> OSError | None:
    """Return why a text could not be written to a steady stream; None while all was."""
    with suppress(ValueError):
        stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, SteadyFile) else None


def complaint(stream: Any) -> str:
    """Return why the output is not whole; empty where a reader left (head, less)."""
    error = lost(stream)
    if error is None or error.errno == errno.EPIPE:
        return ""
    return f"stdout could not be written: {error.strerror or error}"
