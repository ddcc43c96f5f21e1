"""Tasks, in which results of different machines can be compared, and claims on ideas.

The first to tell a task decides what it is. A claim says that one agent works on an idea, so that
no other does; it ends by itself.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, update

from autohypothesis.hub.protocol import (
    ClaimQuery,
    HubClaim,
    HubTask,
    NewClaimRequest,
    ResultRequest,
    TaskRequest,
)
from autohypothesis.hub.server.commits import begins_with, checked_hash
from autohypothesis.hub.server.database import (
    Database,
    Row,
    claims,
    inserted,
    narrowed,
    now,
    results,
    row_of,
    rows_of,
    stamp,
    task_data,
    tasks,
    written,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing
from autohypothesis.hub.server.service import CLAIM, TELL, Caller, RowNumber, route

HELD, DONE = "held", "done"
_COMPARED = ("metric", "direction", "min_delta")


@route(
    "POST", "/api/tasks", HubTask, 409, may=TELL, status=201, again="It was known, as it was told."
)
def tell_task(database: Database, caller: Caller, told: TaskRequest) -> tuple[Row, bool]:
    """Tell a task, in which results are compared. The first to tell it decides; 409 for another."""
    mine = tasks.c.task_hash == told.task_hash
    with database.write() as connection:
        there = row_of(connection, select(tasks).where(mine))
        if there is not None:
            _refuse_other_terms(there, told)
        _refuse_other_hash(connection, told)
        if there is None:
            row = told.model_dump(exclude={"profile", "data_hash"})
            row |= {"agent_id": caller.agent_id, "created_at": stamp()}
            connection.execute(insert(tasks).values(row))
        elif told.baseline and not there["baseline"]:
            connection.execute(update(tasks).where(mine).values(baseline=told.baseline))
        _note_data(connection, told)
        return _with_data(connection, told.task_hash)[0], there is None


@route("GET", "/api/tasks", list[HubTask])
def every_task(database: Database) -> list[Row]:
    """Every task, by name."""
    with database.read() as connection:
        return _with_data(connection)


def known(connection: Connection, task_hash: str) -> Row | None:
    """Return a task without its data."""
    return row_of(connection, select(tasks).where(tasks.c.task_hash == task_hash))


def forget(database: Database, start: str) -> Row:
    """Take a task away, by its hash or an unambiguous beginning of it.

    Raises:
        HubRefusalError: 400, 404; 409 when there are results of it.
    """
    wanted = begins_with(tasks.c.task_hash, checked_hash(start))
    with database.write() as connection:
        found = rows_of(connection, select(tasks).where(wanted).limit(2))
        if len(found) != 1:
            raise bad(f"{start} is ambiguous") if found else missing(f"there is no task {start}")
        row, mine = found[0], found[0]["task_hash"]
        used = select(results.c.id).where(results.c.task_hash == mine).limit(1)
        if row_of(connection, used) is not None:
            raise HubRefusalError(409, f"there are results of task {row['name']!r} ({mine[:7]})")
        for table in (task_data, tasks):
            connection.execute(delete(table).where(table.c.task_hash == mine))
    return row


def _refuse_other_terms(there: Row, told: TaskRequest) -> None:
    for name in _COMPARED:
        ours, theirs = there[name], getattr(told, name)
        if ours != theirs:
            raise HubRefusalError(
                409, f"task {told.task_hash[:7]} has {name} {ours} here, not {theirs}"
            )


def _refuse_other_hash(connection: Connection, told: TaskRequest) -> None:
    query = select(tasks.c.task_hash).where(tasks.c.name == told.name)
    other = connection.execute(query).scalar_one_or_none()
    if other not in (None, told.task_hash):
        raise HubRefusalError(
            409,
            f"task {told.name!r} is {other[:7]}… here, and yours is {told.task_hash[:7]}…",
            hint="the same task.yaml and protected files have the same hash",
        )


def _note_data(connection: Connection, told: TaskRequest) -> None:
    """Remember which data a profile stands for, if it is stated."""
    if not told.data_hash:
        return
    mine = (task_data.c.task_hash == told.task_hash) & (task_data.c.profile == told.profile)
    query = select(task_data.c.data_hash).where(mine)
    there = connection.execute(query).scalar_one_or_none()
    if there is None:
        row = told.model_dump(include={"task_hash", "profile", "data_hash"})
        connection.execute(insert(task_data).values(row))
    elif there != told.data_hash:
        raise HubRefusalError(
            409,
            f"profile {told.profile} of task {told.name!r} has data {there[:7]}… here, and yours"
            f" is {told.data_hash[:7]}…",
            hint="prepare the same data, or name the profile otherwise",
        )


def _with_data(connection: Connection, task_hash: str | None = None) -> list[Row]:
    of_data, of_tasks = select(task_data), select(tasks).order_by(tasks.c.name)
    if task_hash is not None:
        of_data = of_data.where(task_data.c.task_hash == task_hash)
        of_tasks = of_tasks.where(tasks.c.task_hash == task_hash)
    data: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(of_data.order_by(task_data.c.profile)):
        data[row.task_hash][row.profile] = row.data_hash
    return [{**row, "data": data[row["task_hash"]]} for row in rows_of(connection, of_tasks)]


# ── claims ──────────────────────────────────────────────────────────────────────────────────


@route("POST", "/api/claims", HubClaim, 409, may=CLAIM, status=201)
def claim(database: Database, caller: Caller, wanted: NewClaimRequest) -> Row:
    """Say that one works on this; one's own claim is renewed. 409 says who does, or did already."""
    agent = caller.agent_id
    with database.write() as connection:
        moment = now()
        end = written(moment + timedelta(seconds=wanted.lease_seconds))
        held = select(claims).where(_of_key(claims, wanted), claims.c.state == HELD)
        there = row_of(connection, held)
        if there is not None and there["expires_at"] > written(moment):
            if there["agent_id"] != agent:
                raise HubRefusalError(
                    409, f"claimed by {there['agent_id']} until {there['expires_at']}"
                )
            values = {"title": wanted.title, "expires_at": end}
            connection.execute(update(claims).where(claims.c.id == there["id"]).values(values))
            return {**there, **values}
        _refuse_tried(connection, agent, wanted)
        if there is not None:
            connection.execute(delete(claims).where(claims.c.id == there["id"]))
        row = {
            **wanted.model_dump(exclude={"lease_seconds"}), "agent_id": agent,
            "created_at": written(moment), "expires_at": end, "state": HELD, "result": None,
        }  # fmt: skip
        return {"id": inserted(connection, claims, row), **row}


@route("DELETE", "/api/claims/{number}", None, 400, 404, may=CLAIM, status=204)
def release_claim(database: Database, caller: Caller, number: RowNumber) -> None:
    """End one's own claim before it expires; one that is done stays as it is."""
    there = one_claim(database, number)
    with database.write() as connection:
        if there["agent_id"] != caller.agent_id:
            raise HubRefusalError(403, f"claim {number} is {there['agent_id']}'s")
        held = (claims.c.id == number) & (claims.c.state == HELD)
        connection.execute(delete(claims).where(held))


def close_claim(connection: Connection, agent: str, told: ResultRequest, result: int) -> None:
    """End the claim of an agent that its new result answers, if there is one."""
    mine = _of_key(claims, told) & (claims.c.agent_id == agent) & (claims.c.state == HELD)
    connection.execute(update(claims).where(mine).values(state=DONE, result=result))


@route("GET", "/api/claims", list[HubClaim], 400)
def held_claims(database: Database, wanted: ClaimQuery) -> list[Row]:
    """The claims that hold now, newest first."""
    query = select(claims).where(claims.c.state == HELD, claims.c.expires_at > written(now()))
    query = narrowed(
        query, wanted, platform_key=claims.c.platform_key, task_hash=claims.c.task_hash,
        agent=claims.c.agent_id,
    ).order_by(claims.c.id.desc())  # fmt: skip
    return database.rows(query.limit(wanted.limit).offset(wanted.offset))


@route("GET", "/api/claims/{number}", HubClaim, 400, 404)
def one_claim(database: Database, number: RowNumber) -> Row:
    """A claim, and which result it led to."""
    row = database.row(select(claims).where(claims.c.id == number))
    if row is None:
        raise missing(f"there is no claim {number}")
    return row


def _of_key(table: Table, wanted: NewClaimRequest | ResultRequest) -> ColumnElement[bool]:
    return (
        (table.c.platform_key == wanted.platform_key)
        & (table.c.task_hash == wanted.task_hash)
        & (table.c.tree == wanted.tree)
    )


def _refuse_tried(connection: Connection, agent: str, wanted: NewClaimRequest) -> None:
    query = select(results.c.id, results.c.agent_id).where(
        _of_key(results, wanted), results.c.agent_id != agent, results.c.verifies.is_(None)
    )
    found = row_of(connection, query.order_by(results.c.id).limit(1))
    if found is not None:
        raise HubRefusalError(409, f"tried by {found['agent_id']}: result {found['id']}")
