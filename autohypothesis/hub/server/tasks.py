"""Tasks: what results of different machines can be compared in. The first to tell one decides."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from autohypothesis.hub.server.commits import HASH
from autohypothesis.hub.server.database import Database, results, stamp, task_data, tasks
from autohypothesis.hub.server.refusals import RefusedError, bad, missing
from autohypothesis.hub.server.shapes import ToldTask

Row = dict[str, Any]

_COMPARED = ("metric", "direction", "min_delta")


def tell(database: Database, agent: str, told: ToldTask) -> tuple[Row, bool]:
    """The task as it stands here, and whether it is new. A baseline that nobody said is filled in.

    Raises:
        RefusedError: 409, what is here is another task, or has other data.
    """
    with database.write() as connection:
        named = select(tasks).where(tasks.c.task_hash == told.task_hash)
        there = connection.execute(named).mappings().first()
        if there is not None:
            _refuse_other_terms(dict(there), told)
        _refuse_other_hash(connection, told)
        if there is None:
            _insert(connection, agent, told)
        elif told.baseline and not there["baseline"]:
            mine = tasks.c.task_hash == told.task_hash
            connection.execute(update(tasks).where(mine).values(baseline=told.baseline))
        _note_data(connection, told)
        return _shown(connection, told.task_hash)[0], there is None


def every(database: Database) -> list[Row]:
    """By name."""
    with database.read() as connection:
        return _shown(connection)


def known(connection: Connection, task_hash: str) -> Row | None:
    """Terms of a task, without its data."""
    found = connection.execute(select(tasks).where(tasks.c.task_hash == task_hash))
    row = found.mappings().first()
    return dict(row) if row is not None else None


def forget(database: Database, start: str) -> Row:
    """Take a task away, by its hash or an unambiguous beginning of it.

    Raises:
        RefusedError: 400, 404; 409 when there are results of it.
    """
    if not HASH.fullmatch(start):
        raise bad(f"{start[:80]!r} is not a hash: 4 to 64 characters of 0-9 and a-f")
    with database.write() as connection:
        begins = tasks.c.task_hash.startswith(start)
        found = connection.execute(select(tasks).where(begins).limit(2)).mappings().all()
        if len(found) != 1:
            raise bad(f"{start} is ambiguous") if found else missing(f"there is no task {start}")
        row, mine = dict(found[0]), found[0]["task_hash"]
        used = select(results.c.id).where(results.c.task_hash == mine).limit(1)
        if connection.execute(used).first() is not None:
            raise RefusedError(409, f"there are results of task {row['name']!r} ({mine[:7]})")
        connection.execute(delete(task_data).where(task_data.c.task_hash == mine))
        connection.execute(delete(tasks).where(tasks.c.task_hash == mine))
    return row


def _refuse_other_terms(there: Row, told: ToldTask) -> None:
    for name in _COMPARED:
        ours, theirs = there[name], getattr(told, name)
        if ours != theirs:
            raise RefusedError(
                409,
                f"task {told.task_hash[:7]} has {name} {ours} here, not {theirs}",
            )


def _refuse_other_hash(connection: Connection, told: ToldTask) -> None:
    query = select(tasks.c.task_hash).where(tasks.c.name == told.name)
    other = connection.execute(query).scalar_one_or_none()
    if other not in (None, told.task_hash):
        raise RefusedError(
            409,
            f"task {told.name!r} is {other[:7]}… here, and yours is {told.task_hash[:7]}…",
            hint="the same task.yaml and protected files have the same hash",
        )


def _insert(connection: Connection, agent: str, told: ToldTask) -> None:
    names = ("task_hash", "name", *_COMPARED, "baseline")
    row = {name: getattr(told, name) for name in names}
    connection.execute(insert(tasks).values(**row, agent_id=agent, created_at=stamp()))


def _note_data(connection: Connection, told: ToldTask) -> None:
    """What a profile stands for; whoever says nothing of it is not asked."""
    if not told.data_hash:
        return
    mine = (task_data.c.task_hash == told.task_hash) & (task_data.c.profile == told.profile)
    query = select(task_data.c.data_hash).where(mine)
    there = connection.execute(query).scalar_one_or_none()
    if there is None:
        row = {name: getattr(told, name) for name in ("task_hash", "profile", "data_hash")}
        connection.execute(insert(task_data).values(row))
    elif there != told.data_hash:
        raise RefusedError(
            409,
            f"profile {told.profile} of task {told.name!r} has data {there[:7]}… here, and yours"
            f" is {told.data_hash[:7]}…",
            hint="prepare the same data, or name the profile otherwise",
        )


def _shown(connection: Connection, task_hash: str | None = None) -> list[Row]:
    of_data, of_tasks = select(task_data), select(tasks).order_by(tasks.c.name)
    if task_hash is not None:
        of_data = of_data.where(task_data.c.task_hash == task_hash)
        of_tasks = of_tasks.where(tasks.c.task_hash == task_hash)
    data: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(of_data.order_by(task_data.c.profile)):
        data[row.task_hash][row.profile] = row.data_hash
    found = connection.execute(of_tasks).mappings()
    return [{**row, "data": data.get(row["task_hash"], {})} for row in found]
