"""The best of each platform and task: moved by compare-and-swap, and never a refuted one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select

from autohypothesis.hub.server.database import Database, bests, results, stamp
from autohypothesis.hub.server.refusals import RefusedError, bad, missing
from autohypothesis.hub.server.result_rows import SHOWN, shown
from autohypothesis.hub.server.shapes import SwappedBest
from autohypothesis.hub.server.verdicts import REFUTED

Entry = dict[str, Any]


def all(database: Database, filters: Mapping[str, str | None] | None = None) -> list[Entry]:
    """By platform. `filters`: platform_key and task_hash."""
    with database.read() as connection:
        return _present(connection, filters or {})


def swap(database: Database, wanted: SwappedBest) -> Entry:
    """Make a result the best of its platform and task, if the best is the one that was expected.

    Raises:
        RefusedError: 404; 400 when it cannot be the best; 409 when another one is.
    """
    with database.write() as connection:
        query = select(results).where(results.c.id == wanted.result)
        result = connection.execute(query).first()
        if result is None:
            raise missing(f"there is no result {wanted.result}")
        _check_worthy(result)
        key = {"platform_key": result.platform_key, "task_hash": result.task_hash}
        present = next(iter(_present(connection, key)), None)
        best = present["result"]["id"] if present is not None else None
        if best != wanted.expected:
            said = f"result {best}" if best is not None else "none yet"
            raise RefusedError(409, f"the best is {said}, not {_plain(wanted.expected)}")
        if best is not None:
            _check_better(connection, result, best)
        row = {**key, "result": result.id, "since": stamp()}
        connection.execute(insert(bests).values(row))
        return _present(connection, key)[0]


def _present(connection: Connection, filters: Mapping[str, str | None]) -> list[Entry]:
    """The last of each key that is not refuted."""
    standing = select(func.max(bests.c.id)).join(results, results.c.id == bests.c.result)
    standing = standing.where(results.c.standing != REFUTED)
    for name, value in filters.items():
        if value is not None:
            standing = standing.where(bests.c[name] == value)
    standing = standing.group_by(bests.c.platform_key, bests.c.task_hash)
    query: Select[Any] = select(*SHOWN, bests.c.since).where(bests.c.id.in_(standing))
    query = query.join(bests, bests.c.result == results.c.id)
    order = (results.c.platform, bests.c.platform_key, bests.c.task_hash)
    return [_entry(row) for row in connection.execute(query.order_by(*order))]


def _entry(row: Row[Any]) -> Entry:
    result = shown(row)
    since = result.pop("since")
    named = {name: result[name] for name in ("platform", "platform_key", "task_hash")}
    return {**named, "result": result, "since": since}


def _check_worthy(result: Row[Any]) -> None:
    why = ""
    if result.status != "keep":
        why = f"its status is {result.status}, not keep"
    elif result.value is None:
        why = "it has no value"
    elif not result.platform_key:
        why = "it has no platform_key"
    elif result.verifies is not None:
        why = f"it verifies result {result.verifies}"
    elif result.standing == REFUTED:
        why = "it is refuted"
    if why:
        raise bad(f"result {result.id} cannot be the best: {why}")


def _check_better(connection: Connection, result: Row[Any], best: int) -> None:
    query = select(results.c.score, results.c.value).where(results.c.id == best)
    present = connection.execute(query).one()
    if result.score >= present.score:
        raise bad(
            f"result {result.id} has {result.value}, no better than {present.value} of result"
            f" {best}"
        )


def _plain(number: int | None) -> str:
    return f"result {number}" if number is not None else "none"
