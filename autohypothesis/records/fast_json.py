"""The usual shape of each document, derived from its model, checked straight from the bytes.

Ten thousand bundles are folded in a second only if an ordinary document costs a few microseconds:
no model is made of it, and no Python is called for its fields. So each model of `schema.py` is
compiled into a strict dictionary schema that knows the *canonical* spelling alone: numbers that are
numbers, times as we write them. What does not fit, an old bundle or a damaged one, goes through the
model itself, with all its tolerance, and comes out in the same shape.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic_core import CoreSchema, SchemaValidator, core_schema, from_json

from autohypothesis import schema
from autohypothesis.records.files import parse_json, validated

Document = dict[str, Any]
"""A document in canonical shape: every key of its model is there."""

TIME = (
    r"^(?:19[7-9]\d|[2-8]\d{3})-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z$"
)
"""A time as `schema.rfc3339` writes it; the 29th of February takes the long way."""

_KEPT: dict[type[BaseModel], tuple[str, ...]] = {
    schema.Metrics: ("model_dim", "n_heads", "head_dim"),
    schema.Metadata: ("hyperparameters",),
    schema.Result: ("hyperparameters",),
}
"""Keys beyond the model that rows are made from."""
_TOLERANT_READERS = (schema.finite, schema.whole, schema.utc)
_NONE = type(None)
_EXACT = 2**53
"""Beyond it a float no longer holds every integer, and `schema.whole` goes by way of one."""


def canonical(model: type[BaseModel], content: bytes) -> Document:
    """`content` as a document of `model`.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    try:
        return _strict_reader(model)(content)
    except ValueError:
        return canonical_value(model, parse_json(content))


def canonical_value(model: type[BaseModel], value: object) -> Document:
    """As `canonical`, of a value that was parsed before."""
    made = validated(model, value)
    return {**_absent(model), **made.model_dump(mode="json")}


def plain_object(content: bytes) -> Document:
    """`content` as any object at all: config.json, whose keys are the experiment's own.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    try:
        value = from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"holds {_a_kind(value)}, no object")
    return value


def _a_kind(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


@cache
def _strict_reader(model: type[BaseModel]) -> Callable[[bytes], Document]:
    return SchemaValidator(_strict(_dictionary(model))).validate_json


@cache
def _absent(model: type[BaseModel]) -> Document:
    return dict.fromkeys(_KEPT.get(model, ()))


def _strict(shape: Any) -> Any:
    """The schema with every conversion off: true is no 1, "1" is no 1, NaN is no number."""
    if isinstance(shape, list):
        return [_strict(inner) for inner in shape]
    if not isinstance(shape, dict):
        return shape
    made = {key: inner if key == "default" else _strict(inner) for key, inner in shape.items()}
    if made.get("type") in ("float", "int", "str", "bool"):
        made["strict"] = True
    if made.get("type") == "float":
        made["allow_inf_nan"] = False
    return made


def _dictionary(model: type[BaseModel]) -> CoreSchema:
    fields = {}
    for name, field in model.model_fields.items():
        shape = _shape(field.annotation, tuple(field.metadata))
        if not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data={})
            shape = _with_default(shape, default)
        fields[name] = core_schema.typed_dict_field(shape, required=field.is_required())
    for name in _KEPT.get(model, ()):
        anything = core_schema.with_default_schema(core_schema.any_schema(), default=None)
        fields[name] = core_schema.typed_dict_field(anything, required=False)
    if model is schema.Metrics:
        # Older units are converted by the model; 0.0 in place of a score is no measurement.
        old = core_schema.with_default_schema(core_schema.none_schema(), default=None)
        fields["peak_vram_gb"] = core_schema.typed_dict_field(old, required=False)
        score = core_schema.float_schema(gt=0)
        fields["val_bpb"] = core_schema.typed_dict_field(_or_none(score), required=False)
    unknown: Literal["forbid", "ignore"] = (
        "forbid" if issubclass(model, schema.Strict) else "ignore"
    )
    return core_schema.typed_dict_schema(fields, extra_behavior=unknown)


def _with_default(shape: CoreSchema, default: Any) -> CoreSchema:
    """A mutable default would be copied deeply each time; this one is shared, and never changed."""
    if isinstance(default, BaseModel):
        default = {**_absent(type(default)), **default.model_dump(mode="json")}
    if isinstance(default, (dict, list)):
        return core_schema.with_default_schema(shape, default_factory=lambda: default)
    return core_schema.with_default_schema(shape, default=default)


def _or_none(shape: CoreSchema) -> CoreSchema:
    return core_schema.with_default_schema(core_schema.nullable_schema(shape), default=None)


def _shape(kind: Any, metadata: tuple[Any, ...] = ()) -> CoreSchema:
    if get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
        inner = [_shape(member, metadata) for member in get_args(kind) if member is not _NONE]
        one = inner[0] if len(inner) == 1 else core_schema.union_schema(list(inner))
        return core_schema.nullable_schema(one)
    if get_origin(kind) is Annotated:
        return _shape(get_args(kind)[0], (*get_args(kind)[1:], *metadata))
    if any(getattr(item, "func", None) in _TOLERANT_READERS for item in metadata):
        metadata = ()  # they read other spellings of what is checked here in its canonical one
        if kind is int:
            return core_schema.int_schema(ge=-_EXACT, le=_EXACT)
    if not metadata and kind is datetime:
        return core_schema.str_schema(pattern=TIME)
    if not metadata and isinstance(kind, type) and issubclass(kind, BaseModel):
        return _dictionary(kind)
    annotated: Any = Annotated[(kind, *metadata)] if metadata else kind
    adapter: TypeAdapter[Any] = TypeAdapter(annotated)
    return adapter.core_schema
