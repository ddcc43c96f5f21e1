"""Text written by others, made fit for a terminal, a table or a page.

Logs, titles, names of files and keys, and what hubs say are foreign. Standard library only:
error messages go through here before anything else is imported.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

CELL_LIMIT = 300
"""Characters; results.tsv is read in a terminal."""
MARKDOWN_LIMIT = 160


def plain(text: str, instead: str = "") -> str:
    """Return `text` without characters that act on a terminal; line breaks and tabs stay.

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


_PATH = re.compile(r"(?<![^\s=(])'[^'\n]*'|[^\s'\"`]*/[^\s'\"`]*")
"""A text in shell quotes, or a word with a slash."""


def typeable(text: str, encoding: str) -> str:
    """Return `text` with each path of it in characters that `encoding` has, as bash reads them.

    A path or a text in shell quotes that has others is written as its bytes: `$'\\xc3\\xa9'`.
    """
    if has_all_of(text, encoding):
        return text
    return _PATH.sub(lambda match: _as_bash(match[0], encoding), text)


def _as_bash(word: str, encoding: str) -> str:
    is_quoted = word.startswith("'")

    def code(match: re.Match[str]) -> str:
        if has_all_of(match[0], encoding):
            return match[0]
        coded = "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0]))
        return coded if is_quoted else f"$'{coded}'"

    if is_quoted and not has_all_of(word, encoding):
        word = "$" + word.replace("\\", "\\\\")
    return re.sub("[^!-~ ]", code, word)


def has_all_of(text: str, encoding: str) -> bool:
    """Return whether `encoding` has every character of `text`."""
    try:
        return text.isascii() or bool(text.encode(encoding))
    except (UnicodeEncodeError, LookupError):
        return False


def plain_line(text: str) -> str:
    """`text` on one line: what `plain` removes, line breaks and tabs are blanks."""
    return " ".join(plain(text, " ").split())


def cut(text: str, most: int) -> str:
    """Return the first `most` characters of `text`, an ellipsis last where that is not all."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shortened(text: str, most: int) -> str:
    """Return `text` with its middle cut out where it has more than `most` characters.

    What is wrong stands at the beginning, and the command that helps at the end.
    """
    if len(text) <= most:
        return text
    end = most * 2 // 3
    return f"{text[: most - end - 3]} … {text[-end:]}"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of `names` as one text, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def table_text(text: str) -> str:
    """`text` as a cell of results.tsv: no tab, break or control character, no opening quote.

    A double quote makes readers of tables swallow the lines that follow, up to the next one.
    """
    return plain_line(text).replace('"', "'")[:CELL_LIMIT]


def markdown_line(text: object) -> str:
    """`text` as a piece of one line of Markdown: no cell, code mark or comment begins in it."""
    cell = table_text(str(text))[:MARKDOWN_LIMIT]
    return cell.replace("|", "/").replace("`", "'").replace("<!--", "<!- -")


@cache
def templates(folder: Path, *, html: bool = False) -> Environment:
    """Return the templates in `folder`, of Markdown unless `html`; `one_line` is a filter.

    Texts of others stay in their place: HTML is escaped, in Markdown by the filters.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=html,
        trim_blocks=True, lstrip_blocks=html,
    )  # fmt: skip
    made.filters["one_line"] = markdown_line
    return made
