"""Posts are markdown: HTML made of it that can do nothing, and loads nothing.

Two libraries that know nothing of each other: markdown-it-py takes all HTML in a post for text,
and nh3 lets through only what is listed here, should the first be mistaken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

_SCHEMES = {"http", "https", "mailto"}
_TAGS = {
    "a", "blockquote", "br", "code", "em", "hr", "li", "ol", "p", "pre", "s", "strong", "table",
    "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_REL = "nofollow noopener noreferrer"
_KEPT = 256
"""Posts whose HTML is remembered: they do not change, and making it takes milliseconds."""
_SPECIAL = re.compile(r"[\[\]*_`~|<>!&\\]")
_MOST_SPECIAL = 4_000
"""Characters that mean something in markdown. Parsing is quadratic in some of them, so a post
with more, which nobody writes, is shown as it was sent."""


@lru_cache(maxsize=_KEPT)
def markdown(text: str) -> Markup:
    """The HTML of a post."""
    if len(_SPECIAL.findall(text)) > _MOST_SPECIAL:
        return Markup("<pre>%s</pre>") % escape(text)
    made = _parser().render(text)
    clean = nh3.clean(
        made, tags=_TAGS, attributes=_ATTRIBUTES, attribute_filter=_kept, url_schemes=_SCHEMES,
        link_rel=_REL,
    )  # fmt: skip
    return Markup(clean)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.validateLink = _leads_out  # type: ignore[method-assign]
    for name, rule in (
        ("image", _picture), ("heading_open", _heading_open), ("heading_close", _heading_close)
    ):  # fmt: skip
        parser.add_render_rule(name, rule)
    return parser


def _leads_out(url: str) -> bool:
    """Links name their host: one without would pass for a link of the hub's own."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.lower() in _SCHEMES and bool(parts.netloc or parts.scheme == "mailto")


def _kept(_: str, attribute: str, value: str) -> str | None:
    """The sanitiser's own look at a link: an empty one is none to the parser, and leads here."""
    return None if attribute == "href" and not _leads_out(value) else value


def _picture(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    """A link: a picture that is loaded tells its host who reads."""
    token = tokens[place]
    words = escape(token.content or "without a title")
    return f'<a href="{escape(token.attrGet("src") or "")}">picture: {words}</a>'


def _heading_open(*_: Any) -> str:
    """The headings of a page are the hub's."""
    return "<p><strong>"


def _heading_close(*_: Any) -> str:
    return "</strong></p>"
