"""The ledger as one parquet file, for notebooks: a column per published key."""

from __future__ import annotations

import io
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic_core import from_json

from autohypothesis.schema import Row


def as_parquet(lines: Sequence[bytes]) -> bytes:
    """Rows of the ledger as parquet; what has no column type of its own is JSON text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [from_json(line) for line in lines]
    fields = [pa.field(name, _type(pa, name)) for name in Row.model_fields]
    columns = [
        pa.array([_cell(row.get(f.name), f.type, pa) for row in rows], f.type) for f in fields
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), sink)
    return sink.getvalue()


def _type(pa: Any, name: str) -> Any:
    """The column's type, from the field's annotation."""
    annotation = Row.model_fields[name].annotation
    one_of = get_origin(annotation) in (Union, types.UnionType)
    kinds = set(get_args(annotation)) if one_of else {annotation}
    if bool in kinds:
        return pa.bool_()
    if float in kinds:
        return pa.float64()
    if int in kinds:
        return pa.int64()
    return pa.string()


def _cell(value: Any, kind: Any, pa: Any) -> Any:
    if value is None:
        return None
    if kind == pa.string():
        return value if isinstance(value, str) else _text(value)
    if kind == pa.int64():
        return value if -(2**63) <= value < 2**63 else None
    return value


def _text(value: Any) -> str:
    from autohypothesis.records.files import to_json

    return to_json(value)
