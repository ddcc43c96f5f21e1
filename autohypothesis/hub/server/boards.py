"""The boards, by platform, task and metric, and the best result of each platform and task.

A board ranks reproduced results before all others. The best moves by compare-and-swap, and is
never a refuted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select
from sqlalchemy import Row as SqlRow

from autohypothesis.hub.protocol import (
    BestRequest,
    BoardQuery,
    KeyQuery,
    PlatformBest,
    RankedResult,
)
from autohypothesis.hub.server import tasks
from autohypothesis.hub.server.database import (
    Database,
    Row,
    bests,
    moment_of,
    narrowed,
    results,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing
from autohypothesis.hub.server.results import (
    LINE_DIRECTION,
    REFUTED,
    SHOWN,
    STATES,
    shown,
    shown_rows,
)
from autohypothesis.hub.server.service import TELL, route

ROWS = 5_000
"""Maximum rows of all boards together in one answer: there may be any number of boards."""
_KEY = (results.c.platform, results.c.platform_key, results.c.task_hash, results.c.metric)
_KEYS = select(*_KEY).where(results.c.ranked.is_(True)).distinct()
_ORDER = (results.c.standing, results.c.score, results.c.id)
_DOTS = 200
"""The newest results that a picture shows beside its line."""

BoardKey = Mapping[str, str]
"""platform, platform_key, task_hash and metric."""


@route("GET", "/api/leaderboard", list[RankedResult], 400)
def leaderboard(database: Database, wanted: BoardQuery) -> list[Row]:
    """The boards one after another: reproduced results first, then by value; `limit` of each."""
    query = narrowed(_KEYS.order_by(*_KEY), wanted, platform=results.c.platform)
    with database.read() as connection:
        rows: list[Row] = []
        # The index of the boards is read alone, and narrowed down here: there are few of them.
        for key in connection.execute(query).mappings().all():
            if all(getattr(wanted, name) in (None, key[name]) for name in KeyQuery.model_fields):
                rows += _ranked(connection, key, min(wanted.limit, ROWS - len(rows)))
            if len(rows) >= ROWS:
                break
        return rows


def _ranked(connection: Connection, key: Any, limit: int, offset: int = 0) -> list[Row]:
    query = select(*SHOWN).where(*_on(key)).order_by(*_ORDER).limit(limit).offset(offset)
    rows = shown_rows(connection, query)
    return [{**row, "rank": rank} for rank, row in enumerate(rows, offset + 1)]


def _on(key: BoardKey) -> list[ColumnElement[bool]]:
    return [results.c.ranked.is_(True), *(column == key[column.name] for column in _KEY)]


# ── the best ────────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/best", list[PlatformBest])
def every_best(database: Database, wanted: KeyQuery) -> list[Row]:
    """The best result of each platform key and task, by platform."""
    with database.read() as connection:
        return _bests(connection, wanted)


@route("POST", "/api/best", PlatformBest, 404, 409, may=TELL)
def swap_best(database: Database, wanted: BestRequest) -> Row:
    """Make a result the best of its platform and task; 409 when another one is than `expected`."""
    with database.write() as connection:
        result = connection.execute(select(results).where(results.c.id == wanted.result)).first()
        if result is None:
            raise missing(f"there is no result {wanted.result}")
        _check_worthy(result)
        key = KeyQuery(platform_key=result.platform_key, task_hash=result.task_hash)
        present = [entry["result"]["id"] for entry in _bests(connection, key)]
        best = present[0] if present else None
        if best != wanted.expected:
            present_one = f"result {best}" if best is not None else "none yet"
            expected = "none" if wanted.expected is None else f"result {wanted.expected}"
            raise HubRefusalError(409, f"the best is {present_one}, not {expected}")
        if best is not None:
            _check_better(connection, result, best)
        row = {**key.model_dump(), "result": result.id, "since": stamp()}
        connection.execute(insert(bests).values(row))
        return _bests(connection, key)[0]


def _bests(connection: Connection, wanted: KeyQuery) -> list[Row]:
    """The last of each key that is not refuted."""
    standing = select(func.max(bests.c.id)).join(results, results.c.id == bests.c.result)
    standing = standing.where(results.c.standing != REFUTED)
    key = {"platform_key": bests.c.platform_key, "task_hash": bests.c.task_hash}
    standing = narrowed(standing, wanted, **key).group_by(*key.values())
    query: Select[Any] = select(*SHOWN, bests.c.since).where(bests.c.id.in_(standing))
    query = query.join(bests, bests.c.result == results.c.id)
    rows = connection.execute(query.order_by(results.c.platform, *key.values()))
    return [
        {
            "platform": row.platform, "platform_key": row.platform_key,
            "task_hash": row.task_hash, "since": row.since,
            "result": shown(row, leave_out="since"),
        }
        for row in rows
    ]  # fmt: skip


def _check_worthy(result: SqlRow[Any]) -> None:
    reasons = {
        f"its status is {result.status}, not keep": result.status != "keep",
        "it has no value": result.value is None,
        "it has no platform_key": not result.platform_key,
        f"it verifies result {result.verifies}": result.verifies is not None,
        "it is refuted": result.standing == REFUTED,
    }
    for reason, holds in reasons.items():
        if holds:
            raise bad(f"result {result.id} cannot be the best: {reason}")


def _check_better(connection: Connection, result: SqlRow[Any], best: int) -> None:
    query = select(results.c.score, results.c.value).where(results.c.id == best)
    present = connection.execute(query).one()
    if result.score >= present.score:
        raise bad(
            f"result {result.id} has {result.value}, no better than {present.value} of result"
            f" {best}"
        )


# ── for the pages ───────────────────────────────────────────────────────────────────────────


class ChartPoint(NamedTuple):
    """A result, as far as a chart shows it."""

    id: int
    at: float
    """Seconds since 1970."""
    value: float
    state: str


@dataclass(slots=True)
class Board:
    """One board with some of its rows."""

    key: BoardKey
    total: int
    task: Row | None
    rows: list[Row]
    best: Row | None
    """The result that is the best of its platform and task, if it is of this board."""
    steps: Sequence[ChartPoint]
    """Results that were better than all before them, the oldest first."""
    newest: Sequence[ChartPoint]

    @property
    def direction(self) -> str:
        return str(self.task["direction"]) if self.task is not None else LINE_DIRECTION


def number_of(database: Database) -> int:
    return int(database.scalar(select(func.count()).select_from(_KEYS.subquery())))


def several(database: Database, rows: int, limit: int, offset: int) -> list[Board]:
    """Boards in their order, with the first `rows` of each."""
    keys = database.rows(_KEYS.order_by(*_KEY).limit(limit).offset(offset))
    return [board(database, key, rows, 0) for key in keys]


def size(database: Database, key: BoardKey) -> int:
    """The number of its rows.

    Raises:
        HubRefusalError: 404, there are none.
    """
    total = int(database.scalar(select(func.count()).select_from(results).where(*_on(key))))
    if not total:
        raise missing("there is no such board")
    return total


def board(database: Database, key: BoardKey, limit: int, offset: int) -> Board:
    total = size(database, key)
    task_hash, platform_key = key["task_hash"], key["platform_key"]
    with database.read() as connection:
        task = tasks.known(connection, task_hash) if task_hash else None
        rows = _ranked(connection, key, limit, offset)
        best = None
        if task_hash and platform_key:
            wanted = KeyQuery(platform_key=platform_key, task_hash=task_hash)
            best = next((entry["result"] for entry in _bests(connection, wanted)), None)
        steps, newest = _steps(connection, key), _newest(connection, key)
    return Board(dict(key), total, task, rows, best, steps, newest)


_POINT = (results.c.id, results.c.created_at, results.c.value, results.c.standing)


def _steps(connection: Connection, key: BoardKey) -> list[ChartPoint]:
    """Results that were better than all before them; refuted ones are left out."""
    before = func.min(results.c.score).over(order_by=results.c.id, rows=(None, -1)).label("before")
    inner = select(*_POINT, results.c.score, before).where(
        *_on(key), results.c.standing != REFUTED
    )  # fmt: skip
    every = inner.subquery()
    better = every.c.before.is_(None) | (every.c.score < every.c.before)
    return _points(connection, select(every).where(better).order_by(every.c.id))


def _newest(connection: Connection, key: BoardKey) -> list[ChartPoint]:
    query = select(*_POINT).where(*_on(key)).order_by(results.c.id.desc()).limit(_DOTS)
    return _points(connection, query)


def _points(connection: Connection, query: Select[Any]) -> list[ChartPoint]:
    return [
        ChartPoint(
            row.id, moment_of(row.created_at).timestamp(), row.value, STATES[row.standing],
        )
        for row in connection.execute(query)
    ]  # fmt: skip
