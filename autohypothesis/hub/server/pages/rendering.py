"""A page: a template, filled, with the headers that every page has.

All that agents wrote is escaped by the templates; only `markdown` makes HTML of it. There two
libraries that do not depend on each other guard the page: markdown-it-py takes all HTML in a post
for text, and nh3 lets through only what is listed here, should the first be mistaken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import nh3
from fastapi import Request
from fastapi.responses import Response
from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from autohypothesis.hub.server.refusals import bad
from autohypothesis.plain import templates

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Headers of every page: it loads its style and icon from here, and nothing from elsewhere."""

_STATIC = Path(__file__).parents[1] / "static"
_LONG = "public, max-age=31536000, immutable"
"""Cache-Control of a file whose address has its hash in it."""
_PAGE_DIGITS = 9


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = templates(Path(__file__).parents[1] / "templates", html=True)
    environment.filters.update(
        number=number, moment=moment, query=query, markdown=markdown, type_words=type_words
    )
    environment.globals.update(style_version=_tag(static("style.css"))[:12])
    return environment


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """The page of `template`; without a body where the browser has this very one."""
    private = request.app.state.hub.settings.private_pages
    filled = _environment().get_template(f"{template}.html.j2")
    html = filled.render(private=private, here=request.url.path, **values)
    content = html.encode("utf-8", "replace")  # text of agents may hold half of a character
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "private, no-cache"}
    if status == 200:
        headers["ETag"] = f'"{_tag(content)}"'
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
    return Response(content, status, headers, "text/html; charset=utf-8")


def file(name: str, media: str) -> Response:
    """A static file that pages load."""
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": _LONG}
    return Response(static(name), media_type=media, headers=headers)


@lru_cache
def static(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


# ── long lists ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ListPiece:
    """One piece of a list of `total` rows: `?page=2`."""

    number: int
    size: int
    total: int

    @classmethod
    def asked(cls, request: Request, size: int, total: int) -> ListPiece:
        """The piece that the address names, else the first.

        Raises:
            HubRefusalError: 400, `page` is no number.
        """
        text = request.query_params.get("page", "1")
        if not (text.isascii() and text.isdigit() and len(text) <= _PAGE_DIGITS and int(text)):
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


# ── filters ─────────────────────────────────────────────────────────────────────────────────


def number(value: float | None) -> str:
    """A measured value, with the digits that the protocol's line has where they make sense."""
    if value is None:
        return "–"
    return f"{value:.6f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.6g}"


def moment(stamp: str) -> str:
    """`2026-11-28T10:15:00.123456Z` as people read it; the page says that it is UTC."""
    return stamp[:16].replace("T", " ")


def query(values: dict[str, object]) -> str:
    """The part of an address after its `?`; empty values are left out."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


_LIMIT_WORDS = (
    ("minimum", "at least {}"), ("maximum", "at most {}"), ("minLength", "{} characters or more"),
    ("maxLength", "at most {} characters"), ("pattern", "matches {}"), ("default", "default {}"),
)  # fmt: skip


def type_words(schema: dict[str, Any]) -> str:
    """A type of the OpenAPI description as people read it."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(type_words, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"array of {type_words(schema.get('items', {}))}"
    limits = (
        form.format(schema[key]) for key, form in _LIMIT_WORDS if schema.get(key) not in (None, "")
    )
    return ", ".join([kind, *limits])


class DiffPart(NamedTuple):
    """Lines of a diff of one kind: "file", "hunk", "added", "removed" or "same"."""

    kind: str
    text: str


def diff_parts(diff: bytes) -> Iterator[DiffPart]:
    """Runs of lines of one kind."""
    lines = diff.decode("utf-8", "replace").removesuffix("\n").split("\n") if diff else []
    for kind, run in groupby(_line_kinds(lines), key=lambda line: line[0]):
        yield DiffPart(kind, "\n".join(line for _, line in run))


def _line_kinds(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each line with its kind; only below a hunk's head are `+` and `-` lines of a file."""
    in_hunk = False
    for line in lines:
        if line.startswith("diff --git "):
            in_hunk = False
        elif line.startswith("@@ "):
            in_hunk = True
            yield "hunk", line
            continue
        kind = {"+": "added", "-": "removed"}.get(line[:1], "same") if in_hunk else "file"
        yield kind, line


# ── markdown ────────────────────────────────────────────────────────────────────────────────

_SCHEMES = {"http", "https", "mailto"}
_TAGS = {
    "a", "blockquote", "br", "code", "em", "hr", "li", "ol", "p", "pre", "s", "strong", "table",
    "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_SPECIAL = re.compile(r"[\[\]*_`~|<>!&\\]")
_MAX_SPECIAL = 4_000
"""Characters that mean something in markdown. Parsing is quadratic in some of them, so a post
with more, which people do not write, is shown as it was sent."""


@lru_cache(maxsize=256)  # posts do not change, and this takes milliseconds
def markdown(text: str) -> Markup:
    """The HTML of a post."""
    if len(_SPECIAL.findall(text)) > _MAX_SPECIAL:
        return Markup("<pre>%s</pre>") % escape(text)
    clean = nh3.clean(
        _parser().render(text), tags=_TAGS, attributes=_ATTRIBUTES,
        attribute_filter=_attribute, url_schemes=_SCHEMES, link_rel="nofollow noopener noreferrer",
    )  # fmt: skip
    return Markup(clean)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.validateLink = _leads_out  # type: ignore[method-assign]
    parser.add_render_rule("image", _picture)
    # The headings of a page are the hub's.
    parser.add_render_rule("heading_open", lambda *_: "<p><strong>")
    parser.add_render_rule("heading_close", lambda *_: "</strong></p>")
    return parser


def _leads_out(url: str) -> bool:
    """Links name their host: one without would pass for a link of the hub's own."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.lower() in _SCHEMES and bool(parts.netloc or parts.scheme == "mailto")


def _attribute(_: str, attribute: str, value: str) -> str | None:
    """The sanitiser's own look at a link: an empty one is none to the parser, and leads here."""
    return None if attribute == "href" and not _leads_out(value) else value


def _picture(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    """A link: a picture that is loaded tells its host who reads."""
    token = tokens[place]
    words = escape(token.content or "without a title")
    return f'<a href="{escape(token.attrGet("src") or "")}">picture: {words}</a>'
