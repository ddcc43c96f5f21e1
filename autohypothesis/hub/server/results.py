"""Results that agents tell: as typed bodies, or as the protocol's lines in posts.

A result is stored once, in whichever order its line and its typed form arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, select, update
from sqlalchemy import Row as SqlRow

from autohypothesis.hub.protocol import ResultQuery, ResultRequest
from autohypothesis.hub.result_line import MARKS, ResultLine, results_in
from autohypothesis.hub.server import tasks, verdicts
from autohypothesis.hub.server.commits import begins_with
from autohypothesis.hub.server.database import (
    Database,
    Row,
    channels,
    inserted,
    narrowed,
    posts,
    results,
    rows_of,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing
from autohypothesis.hub.server.verdicts import LINE_DIRECTION, STATES, Verdict
from autohypothesis.schema import Direction

LINES_CHANNEL = "results"
"""The channel whose posts are read for lines."""
SHOWN = tuple(column for column in results.c if column.name not in ("verdict", "ranked", "score"))
_LINES_PER_POST = 200
_POSTS_AT_ONCE = 200
_SHORT = 7
"""Characters of a hash in a line of a post."""
_OF_A_LINE = re.compile(r"post-[0-9]+-[0-9]+")
_STATUSES = {"": "keep", **{mark: status for status, mark in MARKS.items()}}
_NOT_IN_A_LINE: Row = {
    "platform_key": "", "task_hash": "", "confirmation": "none", "seed": None,
    "budget_seconds": None, "steps": None, "log_hash": "", "tree": "", "verifies": None,
    "verdict": None, "source": "line",
}  # fmt: skip


def shown(row: SqlRow[Any]) -> Row:
    """A row of `SHOWN` as others see it."""
    found = dict(row._mapping)
    found["state"] = STATES[found.pop("standing")]
    return found


def shown_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [shown(row) for row in connection.execute(query)]


def tell(database: Database, agent: str, told: ResultRequest) -> tuple[Row, bool]:
    """The result as it is stored, and whether it is new: told twice, it is stored once.

    It may take the place of its line. A run of another result moves that one's state; any other
    ends the agent's claim on the same key. All of it is one transaction.

    Raises:
        HubRefusalError: 400; 404 for what it verifies; 409 when the name is another result's.
    """
    if told.status == "crash" and told.value is not None:
        raise bad("value: a crash has none", hint="leave it out, or send null")
    if _OF_A_LINE.fullmatch(told.name):
        raise bad(f"name: {told.name!r} is how the lines of posts are named")
    content = told.model_dump()
    with database.write() as connection:
        there = _named(connection, agent, told)
        if there is not None:
            return there, False
        direction, verdict = _judged(connection, agent, told)
        derived = verdicts.derived(content, direction)
        row = {**content, **derived, "source": "typed", "verdict": verdict}
        number = _stored(connection, agent, row)
        if told.verifies is not None:
            verdicts.weigh(connection, told.verifies)
        else:
            tasks.close_claim(connection, agent, told, number)
        return _one(connection, number), True


def _named(connection: Connection, agent: str, told: ResultRequest) -> Row | None:
    """The result that this agent told under this name, if it is this one."""
    mine = (results.c.agent_id == agent) & (results.c.name == told.name)
    for there in shown_rows(connection, select(*SHOWN).where(mine)):
        for key, value in told.model_dump().items():
            if there[key] != value:
                raise HubRefusalError(
                    409,
                    f"result {there['id']} of {agent} is named {told.name!r} and has another {key}",
                    hint="a result does not change; tell another one under another name",
                )
        return there
    return None


def _judged(
    connection: Connection, agent: str, told: ResultRequest
) -> tuple[Direction, Verdict | None]:
    """The direction of its metric, and the verdict about what it verifies."""
    task = tasks.known(connection, told.task_hash) if told.task_hash else None
    if told.task_hash and task is None:
        raise bad(f"task {told.task_hash[:7]}… is not known here", hint="POST /api/tasks first")
    if task is not None and task["metric"] != told.metric:
        raise bad(f"task {task['name']!r} has metric {task['metric']}, not {told.metric}")
    verdict = verdicts.judged(connection, agent, told, task) if told.verifies else None
    return (task["direction"] if task is not None else LINE_DIRECTION), verdict


def _stored(connection: Connection, agent: str, row: Row) -> int:
    """The number of the result: that of its line, if that was told before."""
    for line in _told(connection, agent, row["commit"], "line"):
        if _facts(line) == _facts(row):
            connection.execute(update(results).where(results.c.id == line["id"]).values(row))
            return int(line["id"])
    row = {**row, "agent_id": agent, "post_id": None, "created_at": stamp()}
    return inserted(connection, results, row)


def _told(connection: Connection, agent: str, commit: str, source: str) -> list[Row]:
    """The agent's results of a commit from one source, the oldest first."""
    mine = (results.c.agent_id == agent) & (results.c.source == source)
    query = select(results).where(mine, verdicts.of_commit(commit))
    return rows_of(connection, query.order_by(results.c.id))


def _facts(row: Row) -> tuple[str, float | None, str]:
    """Metric, value and mark, as far as a line can hold them: equal ones are one result."""
    line = ResultLine(
        row["commit"], row["platform"], row["value"], None,
        mark=MARKS.get(row["status"], ""), metric=row["metric"],
    )  # fmt: skip
    return line.metric, line.value, line.mark


# ── lines ───────────────────────────────────────────────────────────────────────────────────


def store_lines(connection: Connection, post: Row) -> None:
    """Store each result that a post of `LINES_CHANNEL` tells, unless it is stored already."""
    for place, line in enumerate(results_in(post["content"])[:_LINES_PER_POST], 1):
        content = {
            "commit": line.commit,
            "platform": line.platform[:63],
            "metric": line.metric[:80],
            "value": line.value,
            "status": _STATUSES[line.mark],
            "memory_gb": line.memory_gb,
            "description": line.description,
            "reason": line.reason[:200],
        }
        if not _is_stored(connection, post, content):
            row = {
                **_NOT_IN_A_LINE, **content, "name": f"post-{post['id']}-{place}",
                "agent_id": post["agent_id"], "post_id": post["id"],
                "created_at": post["created_at"],
            }  # fmt: skip
            inserted(connection, results, {**row, **verdicts.derived(row, LINE_DIRECTION)})


def _is_stored(connection: Connection, post: Row, content: Row) -> bool:
    """Whether the same agent has told this; a typed result comes to know its post."""
    typed = _told(connection, post["agent_id"], content["commit"], "typed")
    same = [row for row in typed if _facts(row) == _facts(content)]
    if same:
        row = next((row for row in same if row["post_id"] is None), None)
        if row is not None:
            mine = results.c.id == row["id"]
            connection.execute(update(results).where(mine).values(post_id=post["id"]))
        return True
    query = select(results.c.id).where(
        results.c.agent_id == post["agent_id"], results.c.source == "line",
        *(results.c[name].is_not_distinct_from(value) for name, value in content.items()),
    )  # fmt: skip
    return connection.execute(query.limit(1)).first() is not None


def read_old_posts(database: Database) -> None:
    """Read the posts of a hub that has no results yet. From then on each is read as it comes."""
    query = (
        select(posts).join(channels).where(channels.c.name == LINES_CHANNEL).order_by(posts.c.id)
    )
    with database.write() as connection:
        if connection.execute(select(results.c.id).limit(1)).first() is not None:
            return
        last = 0
        while page := rows_of(connection, query.where(posts.c.id > last).limit(_POSTS_AT_ONCE)):
            for post in page:
                store_lines(connection, post)
            last = page[-1]["id"]


# ── found again ─────────────────────────────────────────────────────────────────────────────


def newest(database: Database, wanted: ResultQuery) -> list[Row]:
    query = _filtered(select(*SHOWN), wanted).order_by(results.c.id.desc())
    with database.read() as connection:
        return shown_rows(connection, query.limit(wanted.limit).offset(wanted.offset))


def number_of(database: Database, wanted: ResultQuery) -> int:
    """How many `newest` would list without a limit."""
    return int(database.scalar(_filtered(select(func.count()).select_from(results), wanted)))


def one(database: Database, number: int) -> Row:
    """A result with its `verifications`: runs of it by other agents, the oldest first.

    Raises:
        HubRefusalError: 404.
    """
    query = select(*SHOWN).where(results.c.verifies == number).order_by(results.c.id)
    with database.read() as connection:
        found = _one(connection, number)
        return {**found, "verifications": shown_rows(connection, query)}


def _one(connection: Connection, number: int) -> Row:
    found = shown_rows(connection, select(*SHOWN).where(results.c.id == number))
    if not found:
        raise missing(f"there is no result {number}")
    return found[0]


def _filtered(query: Select[Any], wanted: ResultQuery) -> Select[Any]:
    query = narrowed(
        query, wanted, platform=results.c.platform, platform_key=results.c.platform_key,
        task_hash=results.c.task_hash, agent=results.c.agent_id, status=results.c.status,
        verifies=results.c.verifies,
    )  # fmt: skip
    if wanted.state is not None:
        query = query.where(results.c.standing == STATES.index(wanted.state))
    if wanted.commit is not None:
        query = query.where(begins_with(results.c.commit, wanted.commit))
    return query


# ── for the pages ───────────────────────────────────────────────────────────────────────────


def with_verdicts(database: Database, rows: Sequence[Row]) -> list[Row]:
    """`rows`, each with its `verdict`: None where it verifies no other result."""
    numbers = [row["id"] for row in rows if row["verifies"] is not None]
    query = select(results.c.id, results.c.verdict).where(results.c.id.in_(numbers))
    found = {row["id"]: row["verdict"] for row in database.rows(query)}
    return [{**row, "verdict": found.get(row["id"])} for row in rows]


def with_checks(database: Database, commit: str, most: int) -> list[Row]:
    """Results of a commit, each followed by its verifications."""
    order = (func.coalesce(results.c.verifies, results.c.id), results.c.id)
    query = select(*SHOWN).where(verdicts.of_commit(commit)).order_by(*order).limit(most)
    with database.read() as connection:
        return shown_rows(connection, query)


def best_of_each(database: Database, names: Iterable[str]) -> dict[str, Row]:
    """The first result of each commit in the order of a board, also those told by lines."""
    full = {name[:_SHORT]: name for name in names}
    wanted = results.c.commit.in_([*full, *full.values()]) & results.c.ranked.is_(True)
    query = select(*SHOWN).where(wanted).order_by(results.c.standing, results.c.score)
    found: dict[str, Row] = {}
    with database.read() as connection:
        for row in shown_rows(connection, query):
            found.setdefault(full.get(row["commit"]) or row["commit"], row)
    return found
