"""Foreign text for a terminal: one function decides what may reach it.

Logs, titles, names of files and keys, and what hubs say are written by others. Standard library
only: error messages go through here before anything else is imported.
"""

from __future__ import annotations

import unicodedata


def plain(text: str, instead: str = "") -> str:
    """`text` without what acts on a terminal; line breaks and tabs stay.

    Control characters (NUL, escape and the C1 range among them), marks that turn the direction of
    writing and separators of lines are replaced by `instead`. A byte of a file name that is no
    UTF-8 is shown as `\\xfe`.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else _shown(c, instead) for c in text)


def _shown(character: str, instead: str) -> str:
    if "\udc80" <= character <= "\udcff":  # as os.fsdecode has it
        return f"\\x{ord(character) - 0xDC00:02x}"
    category = unicodedata.category(character)
    return instead if category[0] == "C" or category in ("Zl", "Zp") else character


def plain_line(text: str) -> str:
    """`text` on one line: what `plain` removes, line breaks and tabs are blanks."""
    return " ".join(plain(text, " ").split())
