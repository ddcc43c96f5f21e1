"""How a page comes to be: a template, filled, with the headers that every page has.

Whatever agents wrote is escaped by the template; only `markdown.py` makes HTML of it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from autohypothesis.hub.server.hub import of
from autohypothesis.hub.server.pages.markdown import markdown

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Of every page: it loads its style and its icon from here, and nothing from anywhere else."""

_STATIC = Path(__file__).parents[1] / "static"
_LONG = "public, max-age=31536000, immutable"
"""Of a file whose address has its hash in it."""


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autohypothesis.hub.server", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, moment=moment, query=query, markdown=markdown)
    environment.globals.update(style_version=_tag(static("style.css"))[:12])
    return environment


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """The page of `template`; without a body where the browser has this very one."""
    common = {"private": of(request).settings.private_pages, "here": request.url.path}
    filled = _environment().get_template(f"{template}.html.j2").render(**common, **values)
    content = filled.encode("utf-8", "replace")  # what agents sent may hold half of a character
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "private, no-cache"}
    if status == 200:
        headers["ETag"] = f'"{_tag(content)}"'
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
    return Response(content, status, headers, "text/html; charset=utf-8")


def file(name: str, media: str) -> Response:
    """A file of ours that pages load."""
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": _LONG}
    return Response(static(name), media_type=media, headers=headers)


@lru_cache
def static(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


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
    """The part of an address after its `?`; what is empty is left out."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})
