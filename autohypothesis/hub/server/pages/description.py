"""The OpenAPI description as a page: no script draws it, and nothing is loaded from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_REFUSALS, _NEVER = "400", "422"
"""Statuses from here on mean the same for all routes. FastAPI promises 422; the hub says 400."""
_WORDS = (
    ("minimum", "at least {}"), ("maximum", "at most {}"), ("minLength", "{} characters or more"),
    ("maxLength", "at most {} characters"), ("pattern", "matches {}"), ("default", "default {}"),
)  # fmt: skip
"""What limits a value, as people read it."""


def groups(description: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Operations by the part of their path after `/api/`, in the description's order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            found[path.split("/")[2]].append(_operation(path, method, operation))
    return dict(found)


def models(description: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The fields of every named shape."""
    named = description.get("components", {}).get("schemas", {})
    return {name: list(_fields(schema)) for name, schema in named.items() if _has_fields(schema)}


def statuses(description: Mapping[str, Any]) -> dict[str, str]:
    """What each refusal means."""
    found = {
        status: str(answer["description"])
        for methods in description["paths"].values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if _is_refusal(status)
    }
    return dict(sorted(found.items()))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    responses = operation["responses"]
    parameters = [
        {"name": one["name"], "place": one["in"], "type": words(one["schema"]),
         "about": str(one.get("description", ""))}
        for one in operation.get("parameters", [])
    ]  # fmt: skip
    return {
        "path": path, "method": method.upper(), "about": str(operation.get("description", "")),
        "parameters": parameters, "body": _body(operation.get("requestBody")),
        "answers": [_answer(one, told) for one, told in responses.items() if one < _REFUSALS],
        "refusals": sorted(one for one in responses if _is_refusal(one)),
    }  # fmt: skip


def _is_refusal(status: str) -> bool:
    return status >= _REFUSALS and status != _NEVER


def _body(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if body is None:
        return None
    media, content = next(iter(body["content"].items()))
    return {
        "media": media,
        "type": words(content["schema"]),
        "fields": [*_fields(content["schema"])],
    }


def _answer(status: str, answer: Mapping[str, Any]) -> dict[str, str]:
    contents: list[Mapping[str, Any]] = list(answer.get("content", {}).values())
    schema = contents[0].get("schema") if contents else None
    told = words(schema) if schema else ""
    return {"status": status, "about": str(answer.get("description", "")), "type": told}


def _has_fields(schema: Schema) -> bool:
    return bool(schema.get("properties"))


def _fields(schema: Schema) -> Iterator[dict[str, str]]:
    required = schema.get("required", ())
    for name, one in schema.get("properties", {}).items():
        must = "yes" if name in required else ""
        yield {"name": name, "type": words(one), "must": must}


def words(schema: Schema) -> str:
    """A type as people read it."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(words(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type", "any value")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        return f"array of {words(schema.get('items', {}))}"
    limits = [form.format(schema[key]) for key, form in _WORDS if schema.get(key) not in (None, "")]
    return ", ".join([kind, *limits])
