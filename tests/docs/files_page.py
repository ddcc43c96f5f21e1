"""docs/files.md, from the models of schema.py: `python -m tests.docs.files_page`.

Field by field: name, type, and what the docstring under the field says. A test compares the page
in the repository with what this makes.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from autohypothesis import schema

PAGE = "docs/files.md"
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", datetime: "time",
          Any: "anything", type(None): "null"}  # fmt: skip
_IDENTIFIER = "id"


class Column(NamedTuple):
    """One line of a table."""

    name: str
    kind: str
    meaning: str


class Section(NamedTuple):
    title: str
    about: str
    strict: bool
    columns: list[Column]


def page() -> str:
    """The whole of docs/files.md."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = {path: _section(model) for path, model in schema.FILES.items()}
    named = {section.title for section in files.values()}
    parts = [part for part in _parts() if part.__name__ not in named]
    template = environment.get_template("files.md.j2")
    return template.render(files=files, parts=[_section(part) for part in parts])


def _parts() -> list[type[BaseModel]]:
    """Models that others are made of, in the order of autohypothesis/schema.py."""
    inside: set[type[BaseModel]] = set()
    waiting = list(schema.FILES.values())
    while waiting:
        for field in waiting.pop().model_fields.values():
            found = set(_models(field.annotation)) - inside
            inside |= found
            waiting += found
    return sorted(inside, key=lambda model: list(vars(schema)).index(model.__name__))


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and not get_origin(kind) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)


def _section(model: type[BaseModel]) -> Section:
    meanings = _meanings(model)
    columns = []
    for name, field in model.model_fields.items():
        kind = _spelled(field.annotation, tuple(field.metadata))
        if field.is_required():
            kind += ", required"
        columns.append(Column(name, kind, meanings.get(name, "")))
    about = inspect.cleandoc(vars(model).get("__doc__") or "")
    strict = issubclass(model, schema.Strict)
    return Section(model.__name__, about.replace("\n", " "), strict, columns)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    found, last = {}, ""
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = re.sub(r"\s+", " ", str(node.value.value)).strip().replace("|", "\\|")
            last = ""
    return found


def _spelled(kind: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words; `or null` comes last."""
    if any("pattern=" in repr(item) for item in metadata):
        return _IDENTIFIER
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _spelled(inner[0], inner[1:])
    if origin in (Union, types.UnionType):
        words = [_spelled(one, metadata) for one in inner if one is not type(None)]
        if type(None) in inner:
            words.append("null")
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return ", ".join(f"`{value}`" if value else "empty" for value in inner)
    if origin is list:
        return f"list of {_spelled(inner[0])}"
    if origin is dict:
        return f"object of {_spelled(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return _NAMES.get(kind, str(kind))


if __name__ == "__main__":
    target = Path(schema.__file__).resolve().parents[1] / PAGE
    target.write_text(page())
    sys.stdout.write(f"{target}\n")
