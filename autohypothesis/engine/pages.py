"""Pages for people, from templates. What others wrote is quoted: it cannot forge a heading."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from autohypothesis.plain import plain, plain_line
from autohypothesis.schema import Plan

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_LINE = 200
"""Characters of a title or a value; the whole text stands in the JSON beside the page."""


def plan_page(plan: Plan) -> str:
    """`plans/<experiment_id>.md`."""
    document = plan.model_dump(mode="json")
    page = _environment().get_template("plan.md.j2").render(plan=document)
    return plain(page).rstrip() + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,  # markdown, not HTML; `quoted` and `one_line` keep texts in their place
        trim_blocks=True,
    )
    environment.filters.update(one_line=one_line, quoted=quoted)
    return environment


def one_line(text: object) -> str:
    """`text` without line breaks, control characters and table separators."""
    return plain_line(str(text)).replace("|", "/")[:LONGEST_LINE]


def quoted(text: str) -> str:
    """`text` as a block quote, every line of it."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
