"""Results in the protocol's lines: a post that tells some in channel `results` is told by hand.

One thing is one result, in whichever order its line and its typed form arrive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from autohypothesis.hub.line import Mark, ResultLine, results_in
from autohypothesis.hub.server.database import Database, channels, posts, results
from autohypothesis.hub.server.result_rows import derived, of_commit
from autohypothesis.hub.server.verdicts import LINE_DIRECTION

Row = dict[str, Any]

CHANNEL = "results"
PER_POST = 200
"""Lines of one post that are read; the protocol's posts have one."""

_MARKS: dict[str, Mark] = {"discard": "DISCARD", "crash": "CRASH"}
_STATUSES = {"": "keep", "DISCARD": "discard", "CRASH": "crash"}
_AT_ONCE = 200
"""Posts that are read together."""
_WITHOUT: Row = {
    "platform_key": "", "task_hash": "", "confirmation": "none", "seed": None,
    "budget_seconds": None, "steps": None, "log_hash": "", "tree": "", "verifies": None,
    "verdict": None, "source": "line",
}  # fmt: skip
"""What no line says."""


def take_in(connection: Connection, post: Mapping[str, Any]) -> None:
    """Store each result that a post of `CHANNEL` tells, unless it is stored already."""
    for place, line in enumerate(results_in(post["content"])[:PER_POST], 1):
        content = _content(line)
        if not _is_there(connection, post, line, content):
            row = {
                **_WITHOUT, **content, "name": f"post-{post['id']}-{place}",
                "agent_id": post["agent_id"], "post_id": post["id"],
                "created_at": post["created_at"],
            }  # fmt: skip
            row.update(derived(row, LINE_DIRECTION))
            connection.execute(insert(results).values(row))


def waiting(connection: Connection, agent: str, content: Mapping[str, Any]) -> int | None:
    """The number of the agent's oldest line that tells what `content` tells."""
    wanted = _facts(_as_line(content))
    for row in _told(connection, agent, content["commit"], "line"):
        if _facts(_as_line(row)) == wanted:
            return int(row["id"])
    return None


def catch_up(database: Database) -> None:
    """Read the posts of a hub that has no results yet. From then on each is read as it comes."""
    with database.write() as connection:
        if connection.execute(select(results.c.id).limit(1)).first() is not None:
            return
        last = 0
        while page := _posts_after(connection, last):
            for post in page:
                take_in(connection, post)
            last = page[-1]["id"]


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _content(line: ResultLine) -> Row:
    return {
        "commit": line.commit,
        "platform": line.platform[:63],
        "metric": line.metric[:80],
        "value": line.value,
        "status": _STATUSES[line.mark],
        "memory_gb": line.memory_gb,
        "description": line.description,
        "reason": line.reason[:200],
    }


def _is_there(
    connection: Connection, post: Mapping[str, Any], line: ResultLine, content: Row
) -> bool:
    """Whether the same agent has told this; a typed result comes to know its post."""
    agent = post["agent_id"]
    same = [row for row in _told(connection, agent, line.commit, "typed")
            if _facts(_as_line(row)) == _facts(line)]  # fmt: skip
    if same:
        row = next((row for row in same if row["post_id"] is None), same[0])
        if row["post_id"] is None:
            mine = results.c.id == row["id"]
            connection.execute(update(results).where(mine).values(post_id=post["id"]))
        return True
    query = select(results.c.id).where(results.c.agent_id == agent, results.c.source == "line")
    for name, value in content.items():
        query = query.where(results.c[name].is_not_distinct_from(value))
    return connection.execute(query.limit(1)).first() is not None


def _told(connection: Connection, agent: str, commit: str, source: str) -> Iterator[Row]:
    """The agent's results of a commit, the oldest first."""
    query = select(results).where(results.c.agent_id == agent, of_commit(commit))
    query = query.where(results.c.source == source).order_by(results.c.id)
    for row in connection.execute(query).mappings():
        yield dict(row)


def _as_line(content: Mapping[str, Any]) -> ResultLine:
    """A result as far as a line can hold it: so the two can be compared."""
    mark = _MARKS.get(content["status"], "")
    return ResultLine(
        content["commit"], content["platform"], content["value"], None,
        mark=mark, metric=content["metric"],
    )  # fmt: skip


def _facts(line: ResultLine) -> tuple[str, float | None, str]:
    """What makes two lines about one commit the same thing."""
    return line.metric, line.value, line.mark


def _posts_after(connection: Connection, last: int) -> list[Row]:
    query = select(posts.c.id, posts.c.agent_id, posts.c.content, posts.c.created_at)
    query = query.join(channels, channels.c.id == posts.c.channel_id)
    query = query.where(channels.c.name == CHANNEL, posts.c.id > last)
    rows = connection.execute(query.order_by(posts.c.id).limit(_AT_ONCE)).mappings()
    return [dict(row) for row in rows]
