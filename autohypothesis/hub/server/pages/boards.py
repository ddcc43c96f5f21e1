"""The boards as pages show them: the leaderboard's own order, in pieces, with a picture each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from autohypothesis.hub.server import bests, leaderboard, tasks
from autohypothesis.hub.server.database import Database, results
from autohypothesis.hub.server.pages.chart import Chart, Told, chart, seconds
from autohypothesis.hub.server.pages.paging import Piece
from autohypothesis.hub.server.refusals import missing
from autohypothesis.hub.server.verdicts import LINE_DIRECTION, REFUTED, STATES

ON_FRONT = 10
"""Boards of the front page, and rows of each."""
ROWS = 100
_DOTS = 200
"""The newest results that a picture shows beside its line."""
_NAMES = tuple(column.name for column in leaderboard.BOARD)


@dataclass(slots=True)
class Board:
    """One board, or the head of one."""

    key: dict[str, str]
    """platform, platform_key, task_hash and metric."""
    total: int
    task: Mapping[str, Any] | None
    rows: list[dict[str, Any]]
    best: Mapping[str, Any] | None
    """The result that is the best of its platform and task, if it is of this board."""
    picture: Chart | None

    @property
    def direction(self) -> str:
        return str(self.task["direction"]) if self.task is not None else LINE_DIRECTION


def number_of(database: Database) -> int:
    keys = select(*leaderboard.BOARD).where(results.c.ranked.is_(True)).distinct().subquery()
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(keys)).scalar_one())


def several(database: Database, piece: Piece) -> list[Board]:
    """The boards of a piece of the front page, with the first rows of each."""
    with database.read() as connection:
        keys = _keys(connection, piece.size, piece.offset)
    return [_board(database, key, total, ON_FRONT, 0) for key, total in keys]


def one(database: Database, key: Mapping[str, str]) -> Board:
    """The head of a board, without rows.

    Raises:
        RefusedError: 404, nothing is on it.
    """
    with database.read() as connection:
        query = select(func.count()).select_from(results).where(*_on(key))
        total = int(connection.execute(query).scalar_one())
    if not total:
        raise missing("there is no such board")
    return _board(database, {name: key[name] for name in _NAMES}, total, 0, 0)


def rows(database: Database, key: Mapping[str, str], piece: Piece) -> list[dict[str, Any]]:
    with database.read() as connection:
        return list(leaderboard.ranked(connection, key, piece.size, piece.offset))


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _on(key: Mapping[str, str]) -> list[ColumnElement[bool]]:
    return [results.c.ranked.is_(True), *(results.c[name] == key[name] for name in _NAMES)]


def _keys(connection: Connection, limit: int, offset: int) -> list[tuple[dict[str, str], int]]:
    query = select(*leaderboard.BOARD, func.count().label("total"))
    query = query.where(results.c.ranked.is_(True)).group_by(*leaderboard.BOARD)
    found = connection.execute(query.order_by(*leaderboard.BOARD).limit(limit).offset(offset))
    return [({name: row._mapping[name] for name in _NAMES}, row.total) for row in found]


def _board(
    database: Database, key: dict[str, str], total: int, limit: int, offset: int
) -> Board:  # fmt: skip
    task_hash, platform_key = key["task_hash"], key["platform_key"]
    with database.read() as connection:
        task = tasks.known(connection, task_hash) if task_hash else None
        found = list(leaderboard.ranked(connection, key, limit, offset)) if limit else []
        picture = chart(_steps(connection, key), _newest(connection, key))
    best = None
    if task_hash and platform_key:
        present = bests.all(database, {"platform_key": platform_key, "task_hash": task_hash})
        best = next((entry["result"] for entry in present), None)
    return Board(key, total, task, found, best, picture)


_SHOWN = (results.c.id, results.c.created_at, results.c.value, results.c.standing)


def _steps(connection: Connection, key: Mapping[str, str]) -> list[Told]:
    """Those that were better than all before them; of the refuted ones none is."""
    before = func.min(results.c.score).over(order_by=results.c.id, rows=(None, -1)).label("before")
    inner = select(*_SHOWN, results.c.score, before).where(
        *_on(key), results.c.standing != REFUTED
    )  # fmt: skip
    every = inner.subquery()
    better = every.c.before.is_(None) | (every.c.score < every.c.before)
    return [
        _told(row) for row in connection.execute(select(every).where(better).order_by(every.c.id))
    ]


def _newest(connection: Connection, key: Mapping[str, str]) -> list[Told]:
    query: Select[Any] = select(*_SHOWN).where(*_on(key))
    query = query.order_by(results.c.id.desc()).limit(_DOTS)
    return [_told(row) for row in connection.execute(query)]


def _told(row: Row[Any]) -> Told:
    return Told(row.id, seconds(row.created_at), row.value, STATES[row.standing])
