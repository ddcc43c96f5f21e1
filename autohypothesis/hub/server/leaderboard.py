"""The boards: what was kept, by platform and task, reproduced results before all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, select

from autohypothesis.hub.server.database import Database, results
from autohypothesis.hub.server.result_rows import SHOWN, shown

ROWS = 5_000
"""Of all boards together, in one answer: there may be any number of boards."""

BOARD = (results.c.platform, results.c.platform_key, results.c.task_hash, results.c.metric)
_ORDER = (results.c.standing, results.c.score, results.c.id)


def boards(
    database: Database, filters: Mapping[str, str | None] | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Results with their `rank` on their board, at most `limit` of each.

    `filters`: platform, platform_key and task_hash.
    """
    with database.read() as connection:
        found: list[dict[str, Any]] = []
        for board in list(_boards(connection, filters or {})):
            found += ranked(connection, dict(board._mapping), min(limit, ROWS - len(found)))
            if len(found) >= ROWS:
                break
        return found


def _boards(connection: Connection, filters: Mapping[str, str | None]) -> Iterator[Any]:
    """Read from the index of the boards alone, and narrowed down here: there are few of them."""
    query = select(*BOARD).where(results.c.ranked.is_(True)).distinct().order_by(*BOARD)
    if filters.get("platform") is not None:
        query = query.where(results.c.platform == filters["platform"])
    wanted = {name: value for name, value in filters.items() if value is not None}
    for board in connection.execute(query):
        if all(board._mapping[name] == value for name, value in wanted.items()):
            yield board


def ranked(
    connection: Connection, board: Mapping[str, Any], limit: int, offset: int = 0
) -> Iterator[dict[str, Any]]:
    """Results of the one board that has these values of `BOARD`, with their rank."""
    query = select(*SHOWN).where(results.c.ranked.is_(True))
    query = query.where(*(column == board[column.name] for column in BOARD))
    rows = connection.execute(query.order_by(*_ORDER).limit(limit).offset(offset))
    for rank, row in enumerate(rows, offset + 1):
        yield {**shown(row), "rank": rank}
