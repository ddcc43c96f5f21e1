"""The short way through a document comes to the same as its model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from autohypothesis.records.bundles import _strict_reader, canonical, canonical_value
from autohypothesis.records.files import to_json
from autohypothesis.schema import Decision, ExitRecord, Metadata, Plan, Result

MODELS: list[type[BaseModel]] = [Decision, ExitRecord, Metadata, Plan, Result]
TIMES = [
    "2026-11-20T01:02:03.456Z", "2026-02-28T23:59:59.999Z", "2026-02-29T00:00:00.000Z",
    "2026-04-31T00:00:00.000Z", "2026-12-31T23:59:59.000Z", "2026-11-20T01:02:03",
    "2026-11-20T01:02:03+02:00", "yesterday", "", "2024-02-29T00:00:00.000Z",
]  # fmt: skip
VALUES = (
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats()
    | st.sampled_from([*TIMES, "completed", "keep", "crash", "exited", "cpu", "1.5", "x", "nan"])
    | st.sampled_from([[], {}, [1], [[0.5, 1, None]], [["x"]], {"a": 1}, {"confidence": 2}])
)  # fmt: skip


def names(model: type[BaseModel]) -> list[str]:
    return [*model.model_fields, "hyperparameters", "peak_vram_gb", "unknown"]


def documents(model: type[BaseModel], depth: int = 2) -> Any:
    """Documents that are nearly right, so that many take the short way and many do not."""
    inner = [f.annotation for f in model.model_fields.values() if _is_model(f.annotation)]
    nested = [documents(kind, depth - 1) for kind in inner] if depth else []  # type: ignore[arg-type]
    values = st.one_of(VALUES, *nested)
    return st.dictionaries(st.sampled_from(names(model)), values, max_size=6).map(
        lambda drawn: {**_least(model), **drawn}
    )


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _least(model: type[BaseModel]) -> dict[str, Any]:
    """The required fields, as they usually are."""
    known = {"status": "completed" if model is Result else "exited", "decision_status": "keep"}
    made: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            time_like = name.endswith("_at")
            made[name] = TIMES[0] if time_like else known.get(name, "text")
            if _is_model(field.annotation):
                made[name] = _least(field.annotation)  # type: ignore[arg-type]
    return made


def outcome(way: Any) -> Any:
    try:
        return way()
    except ValueError:
        return "refused"


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_both_ways_agree(model: type[BaseModel], data: Any) -> None:
    document = data.draw(documents(model))
    content = json.dumps(document).encode()
    short = outcome(lambda: _strict_reader(model)(content))
    if short == "refused":
        return
    long = outcome(lambda: canonical_value(model, json.loads(content)))
    assert long != "refused"
    # NaN inside what may hold anything stays there on the short way, and is null in any file.
    short, long = json.loads(to_json(short)), json.loads(to_json(long))
    said = {key for key in model.model_fields if long.get(key) is not None}
    assert said <= short.keys(), "the short way drops no field that has a value"
    assert {key: _known(model, key, long.get(key)) for key in short} == {
        key: _known(model, key, value) for key, value in short.items()
    }


def _known(model: type[BaseModel], key: str, value: Any) -> Any:
    """Without the unknown keys of nested models, and without the helpers that are None."""
    field = model.model_fields.get(key)
    if field is not None and _is_model(field.annotation) and isinstance(value, dict):
        kept = {*field.annotation.model_fields}  # type: ignore[union-attr]
        return {k: _known(field.annotation, k, v) for k, v in value.items() if k in kept}  # type: ignore[arg-type]
    return value


@pytest.mark.parametrize("model", MODELS)
def test_an_ordinary_document_takes_the_short_way(model: type[BaseModel]) -> None:
    ordinary = model.model_validate(_least(model)).model_dump(mode="json")
    content = json.dumps(ordinary).encode()
    assert outcome(lambda: _strict_reader(model)(content)) != "refused"
    assert canonical(model, content)
