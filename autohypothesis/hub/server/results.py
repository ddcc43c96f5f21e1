"""Results that agents tell, as typed bodies or as the protocol's lines, and verdicts about them.

A result is stored once, in whichever order its line and its typed form arrive. What runs of it by
other agents amount to is stored with it, in the transaction that tells it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, update
from sqlalchemy import Row as SqlRow

from autohypothesis.hub.protocol import (
    HubResult,
    ResultQuery,
    ResultRequest,
    ResultState,
    VerifiedResult,
)
from autohypothesis.hub.result_line import MARKS, ResultLine, results_in
from autohypothesis.hub.server import tasks
from autohypothesis.hub.server.commits import begins_with
from autohypothesis.hub.server.database import (
    Database,
    Row,
    channels,
    inserted,
    narrowed,
    posts,
    results,
    row_of,
    rows_of,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing
from autohypothesis.hub.server.service import TELL, Caller, RowNumber, route
from autohypothesis.schema import Direction

Verdict = Literal["reproduced", "refuted"]

STATES: tuple[ResultState, ...] = get_args(ResultState)
"""In the order in which a board shows them."""
REFUTED = STATES.index("refuted")
LINE_DIRECTION: Direction = "minimize"
"""The direction of results without a task: the protocol's lines are about a loss."""
LINES_CHANNEL = "results"
"""The channel whose posts are read for lines."""
SHOWN = tuple(column for column in results.c if column.name not in ("verdict", "ranked", "score"))
_EXACT = 1e-12
"""Relative rounding error of measured numbers."""
_SHORTEST = 4
"""Characters of a commit's hash."""
_LINES_PER_POST = 200
_POSTS_AT_ONCE = 200
_SHORT = 7
"""Characters of a hash in a line of a post."""
_OF_A_LINE = re.compile(r"post-[0-9]+-[0-9]+")
_STATUSES = {"": "keep", **{mark: status for status, mark in MARKS.items()}}
_DEFAULTS: Row = {
    name: it.default for name, it in ResultRequest.model_fields.items() if not it.is_required()
}
"""Values of the fields that a line does not tell."""


def shown(row: SqlRow[Any], leave_out: str = "") -> Row:
    """Return a row of `SHOWN` as others see it, without one further column."""
    result = {name: value for name, value in row._mapping.items() if name != leave_out}
    result["state"] = STATES[result.pop("standing")]
    return result


def shown_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [shown(row) for row in connection.execute(query)]


# ── told as bodies ──────────────────────────────────────────────────────────────────────────


@route(
    "POST", "/api/results", HubResult, 404, 409, may=TELL, status=201, again="It was told before."
)
def tell_result(database: Database, caller: Caller, told: ResultRequest) -> tuple[Row, bool]:
    """A result. The same again answers 200 with what is stored; another one of its name is 409.

    With `verifies` it says what came of running another agent's result again, or, with
    `confirmation` refuted, takes one's own back.
    """
    if told.status == "crash" and told.value is not None:
        raise bad("value: a crash has none", hint="leave it out, or send null")
    if _OF_A_LINE.fullmatch(told.name):
        raise bad(f"name: {told.name!r} is how the lines of posts are named")
    content, agent = told.model_dump(), caller.agent_id
    with database.write() as connection:
        there = _named(connection, agent, told)
        if there is not None:
            return there, False
        direction, verdict = _judged(connection, agent, told)
        row = {**content, **derived(content, direction), "source": "typed", "verdict": verdict}
        number = _stored(connection, agent, row)
        if told.verifies is not None:
            _weigh(connection, told.verifies)
        else:
            tasks.close_claim(connection, agent, told, number)
        return _one(connection, number), True


def _named(connection: Connection, agent: str, told: ResultRequest) -> Row | None:
    """Return the result that this agent told under this name, if it is this one."""
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
    """Return the direction of its metric, and the verdict about what it verifies."""
    task = tasks.known(connection, told.task_hash) if told.task_hash else None
    if told.task_hash and task is None:
        raise bad(f"task {told.task_hash[:7]}… is not known here", hint="POST /api/tasks first")
    if task is not None and task["metric"] != told.metric:
        raise bad(f"task {task['name']!r} has metric {task['metric']}, not {told.metric}")
    direction = task["direction"] if task is not None else LINE_DIRECTION
    return direction, _verdict(connection, agent, told, task) if told.verifies else None


def _stored(connection: Connection, agent: str, row: Row) -> int:
    """Return the number of the result: that of its line, if that was told before."""
    for line in _told(connection, agent, row["commit"], "line"):
        if _facts(line) == _facts(row):
            connection.execute(update(results).where(results.c.id == line["id"]).values(row))
            return int(line["id"])
    row = {**row, "agent_id": agent, "post_id": None, "created_at": stamp()}
    return inserted(connection, results, row)


def _told(connection: Connection, agent: str, commit: str, source: str) -> list[Row]:
    """Return the agent's results of a commit from one source, the oldest first."""
    mine = (results.c.agent_id == agent) & (results.c.source == source)
    query = select(results).where(mine, _of_commit(commit))
    return rows_of(connection, query.order_by(results.c.id))


def _of_commit(commit: str) -> ColumnElement[bool]:
    """Results of a commit: either hash may be the beginning of the other."""
    shorter = [commit[:end] for end in range(_SHORTEST, len(commit))]
    return or_(begins_with(results.c.commit, commit), results.c.commit.in_(shorter))


def _facts(row: Row) -> tuple[str, float | None, str]:
    """Return metric, value and mark as a line can hold them: equal ones are one result."""
    line = ResultLine(
        row["commit"], row["platform"], row["value"], None,
        mark=MARKS.get(row["status"], ""), metric=row["metric"],
    )  # fmt: skip
    return line.metric, line.value, line.mark


# ── verdicts ────────────────────────────────────────────────────────────────────────────────


class Standing(NamedTuple):
    """The verdicts of other agents about a result, summed up."""

    state: ResultState
    reproduced: int
    refuted: int

    @property
    def columns(self) -> dict[str, int]:
        """Return the counts as they are stored with the result."""
        rank = STATES.index(self.state)
        return {"standing": rank, "reproduced": self.reproduced, "refuted": self.refuted}


def verdict_of(
    original: float, again: float | None, direction: Direction, min_delta: float
) -> Verdict:
    """Return the verdict of a run that repeats another; `again` is None where it has no value."""
    if again is None:
        return "refuted"
    worse_by = again - original if direction == "minimize" else original - again
    exact = _EXACT * max(1.0, abs(original), abs(again))
    return "reproduced" if worse_by <= min_delta + exact else "refuted"


def standing_of(author: str, verdicts: Iterable[tuple[str, Verdict]]) -> Standing:
    """Sum up (agent, verdict), the oldest first: the latest of each agent counts.

    The author's own verdict is that the result is taken back, which is final.
    """
    latest = dict(verdicts)
    taken_back = latest.pop(author, None) is not None
    counted = Counter(latest.values())
    reproduced, refuted = counted["reproduced"], counted["refuted"]
    state: ResultState = "claimed"
    if taken_back or refuted > reproduced:
        state = "refuted"
    elif reproduced > refuted:
        state = "reproduced"
    return Standing(state, reproduced, refuted)


def derived(content: Row, direction: Direction) -> dict[str, Any]:
    """Return the columns of a new result that follow from its content."""
    value, verifies = content["value"], content["verifies"]
    turned = value is not None and direction == "maximize"
    return {
        **Standing("claimed", 0, 0).columns,
        "ranked": content["status"] == "keep" and value is not None and verifies is None,
        "score": -value if turned else value,
    }


def _verdict(connection: Connection, agent: str, told: ResultRequest, task: Row | None) -> Verdict:
    """Return the verdict of `told` about the result that it verifies; `task` is that of both."""
    original = row_of(connection, select(results).where(results.c.id == told.verifies))
    if original is None:
        raise missing(f"there is no result {told.verifies}")
    _check_comparable(original, told)
    if original["agent_id"] == agent:
        if told.confirmation != "refuted":
            raise bad(
                f"result {told.verifies} is your own: others verify it",
                hint='take it back with "confirmation": "refuted"',
            )
        return "refuted"
    assert task is not None  # comparable ones have a task, and this one's is known
    return verdict_of(original["value"], told.value, task["direction"], task["min_delta"])


def _weigh(connection: Connection, number: int) -> None:
    """Store what all verdicts about a result amount to."""
    mine = results.c.id == number
    author = connection.execute(select(results.c.agent_id).where(mine)).scalar_one()
    query = select(results.c.agent_id, results.c.verdict).where(results.c.verifies == number)
    rows = connection.execute(query.order_by(results.c.id))
    standing = standing_of(author, [(row[0], row[1]) for row in rows])
    connection.execute(update(results).where(mine).values(standing.columns))


def _check_comparable(original: Row, told: ResultRequest) -> None:
    number, commit = told.verifies, original["commit"]
    if original["verifies"] is not None:
        raise bad(f"result {number} verifies another one: verify {original['verifies']}")
    if original["value"] is None:
        raise bad(f"result {number} has no value to verify")
    for name in ("platform_key", "task_hash"):
        ours, theirs = original[name], getattr(told, name)
        if not ours or ours != theirs:
            difference = (
                f"{ours[:7]}…, not {theirs[:7]}…" if ours and theirs else "not said by both"
            )
            raise bad(f"result {number} cannot be compared: its {name} is {difference}")
    if not (commit.startswith(told.commit) or told.commit.startswith(commit)):
        raise bad(f"result {number} is of commit {commit}, not {told.commit}")


# ── told as lines ───────────────────────────────────────────────────────────────────────────


def store_lines(connection: Connection, post: Row) -> None:
    """Store each result that a post of `LINES_CHANNEL` tells, unless it is stored already."""
    for place, line in enumerate(results_in(post["content"])[:_LINES_PER_POST], 1):
        content = asdict(line)
        content["status"] = _STATUSES[content.pop("mark")]
        if not _is_stored(connection, post, content):
            row = {
                **_DEFAULTS, **content, "name": f"post-{post['id']}-{place}", "source": "line",
                "agent_id": post["agent_id"], "post_id": post["id"], "verdict": None,
                "created_at": post["created_at"],
            }  # fmt: skip
            inserted(connection, results, {**row, **derived(row, LINE_DIRECTION)})


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


@route("GET", "/api/results", list[HubResult], 400)
def newest_results(database: Database, wanted: ResultQuery) -> list[Row]:
    """Results, newest first, those of posts among them."""
    query = _filtered(select(*SHOWN), wanted).order_by(results.c.id.desc())
    with database.read() as connection:
        return shown_rows(connection, query.limit(wanted.limit).offset(wanted.offset))


def number_of(database: Database, wanted: ResultQuery) -> int:
    """Return how many `newest_results` would list without a limit."""
    return int(database.scalar(_filtered(select(func.count()).select_from(results), wanted)))


@route("GET", "/api/results/{number}", VerifiedResult, 400, 404)
def one_result(database: Database, number: RowNumber) -> Row:
    """A result, and what came of running it again."""
    query = select(*SHOWN).where(results.c.verifies == number).order_by(results.c.id)
    with database.read() as connection:
        result = _one(connection, number)
        return {**result, "verifications": shown_rows(connection, query)}


def _one(connection: Connection, number: int) -> Row:
    rows = shown_rows(connection, select(*SHOWN).where(results.c.id == number))
    if not rows:
        raise missing(f"there is no result {number}")
    return rows[0]


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
    """Return `rows`, each with its `verdict`: None where it verifies no other result."""
    numbers = [row["id"] for row in rows if row["verifies"] is not None]
    query = select(results.c.id, results.c.verdict).where(results.c.id.in_(numbers))
    verdicts = {row["id"]: row["verdict"] for row in database.rows(query)}
    return [{**row, "verdict": verdicts.get(row["id"])} for row in rows]


def with_checks(database: Database, commit: str, most: int) -> list[Row]:
    """Return results of a commit, each followed by its verifications."""
    order = (func.coalesce(results.c.verifies, results.c.id), results.c.id)
    query = select(*SHOWN).where(_of_commit(commit)).order_by(*order).limit(most)
    with database.read() as connection:
        return shown_rows(connection, query)


def best_of_each(database: Database, names: Iterable[str]) -> dict[str, Row]:
    """Return the first result of each commit in the order of a board, also those of lines."""
    full = {name[:_SHORT]: name for name in names}
    wanted = results.c.commit.in_([*full, *full.values()]) & results.c.ranked.is_(True)
    query = select(*SHOWN).where(wanted).order_by(results.c.standing, results.c.score)
    best: dict[str, Row] = {}
    with database.read() as connection:
        for row in shown_rows(connection, query):
            best.setdefault(full.get(row["commit"]) or row["commit"], row)
    return best
