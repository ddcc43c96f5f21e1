"""The index of commits, every one of them with all its parents, and the routes of git."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    cast,
    func,
    literal,
    select,
)
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.protocol import (
    HASH,
    PAGE_LIMIT,
    CommitQuery,
    HubCommit,
    PushedHeads,
)
from autohypothesis.hub.server.commit_index import known
from autohypothesis.hub.server.database import (
    Database,
    Row,
    commits,
    parents,
    row_of,
    rows_of,
)
from autohypothesis.hub.server.refusals import bad, disk_trouble, missing
from autohypothesis.hub.server.service import (
    Caller,
    HubService,
    May,
    binary,
    pieces,
    problems,
    route,
    router,
)

FULL = 40
"""Characters of a whole hash."""
_SHOWN = tuple(column for column in commits.c if column.name not in ("number", "leaf"))
_AT_ONCE = 500
"""Rows of a lineage that are read together."""
_ANCESTORS = 8
"""Ancestors that are shown on the page of a commit."""
_PIECE = 256 << 10
_BINARY = "application/octet-stream"
_PUSH = May("push", "push", "pushes")


# ── routes ──────────────────────────────────────────────────────────────────────────────────


@router.post(
    "/api/git/push",
    status_code=201,
    response_model=PushedHeads,
    responses=problems(400, 401, 403, 408, 413, 429, 507),
    openapi_extra={"requestBody": {"required": True, **binary(_BINARY)}},
)
async def push(request: Request, caller: Annotated[Caller, Depends(_PUSH)]) -> Response:
    """A git bundle, as the raw body; the commits it leads to, once all of it is indexed."""
    hub: HubService = request.app.state.hub
    limits = hub.settings.limits
    try:
        quarantine = await run_in_threadpool(hub.intake.quarantine)
        try:
            with quarantine.body.open("wb") as target:
                async for piece in pieces(request, limits.bundle_bytes, limits):
                    target.write(piece)
        except BaseException:
            quarantine.remove()
            raise
    except OSError as error:
        raise disk_trouble(error) from error
    heads = await run_in_threadpool(hub.intake.take, quarantine, caller.agent_id)
    return JSONResponse({"hashes": heads}, 201)


@route("GET", "/api/git/fetch/{name}", _BINARY, 400, 404, 413, 507)
def fetch(hub: HubService, name: str) -> Response:
    """A self-contained bundle of the commit and its history."""
    commit = required(hub.database, name)
    try:
        content = hub.store.bundle(commit)
    except OSError as error:
        raise disk_trouble(error) from error
    size = content.seek(0, 2)
    content.seek(0)
    headers = {"Content-Length": str(size), "Content-Disposition": f"filename={commit}.bundle"}
    return StreamingResponse(_parts_of_file(content), media_type=_BINARY, headers=headers)


def _parts_of_file(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(_PIECE):
            yield piece


@route("GET", "/api/git/commits", list[HubCommit], 400)
def newest_commits(database: Database, wanted: CommitQuery) -> list[Row]:
    """Commits, newest first."""
    query = _narrowed(select(*_SHOWN), wanted.agent).order_by(commits.c.number.desc())
    return database.rows(query.limit(wanted.limit).offset(wanted.offset))


@route("GET", "/api/git/commits/{name}", HubCommit, 400, 404)
def one_commit(database: Database, name: str) -> Row:
    """One commit, by its hash or an unambiguous beginning of it."""
    full = required(database, name)
    return database.rows(select(*_SHOWN).where(commits.c.hash == full))[0]


@route("GET", "/api/git/commits/{name}/children", list[HubCommit], 400)
def children(database: Database, name: str) -> list[Row]:
    """Commits on top of a commit, newest first; empty for one that is not known."""
    full = resolve(database, name)
    return _children(database, full, PAGE_LIMIT) if full else []


def _children(database: Database, full: str, limit: int) -> list[Row]:
    """Merges are children of all their parents."""
    query = select(*_SHOWN).join(parents, parents.c.child == commits.c.hash)
    query = query.where(parents.c.parent == full).distinct()
    return database.rows(query.order_by(commits.c.number.desc()).limit(limit))


@route("GET", "/api/git/commits/{name}/lineage", list[HubCommit], 400)
def lineage(database: Database, name: str) -> Response:
    """A commit, its parent, and so on to the root; empty for one that is not known."""
    content = _json_lineage(database, resolve(database, name) or "")
    return StreamingResponse(content, media_type="application/json")


def _json_lineage(database: Database, name: str) -> Iterator[str]:
    """Yield a JSON array of a line of first parents, as it is read."""
    yield "["
    before = ""
    while name:
        rows = database.rows(_line_from(name, _AT_ONCE))
        yield "".join(f"{',' if place else before}{json.dumps(r)}" for place, r in enumerate(rows))
        before, name = ",", rows[-1]["parent_hash"] if rows else ""
    yield "]"


def _line_from(name: str, most: int) -> Select[Any]:
    """Select a commit and its first parents, by a recursive query."""
    start = select(literal(0).label("step"), cast(literal(name), String).label("hash"))
    line = start.cte("line", recursive=True)
    here = select(line.c.step + 1, commits.c.parent_hash).join(
        commits, commits.c.hash == line.c.hash
    )
    line = line.union_all(here.where(commits.c.parent_hash != "", line.c.step < most - 1))
    return select(*_SHOWN).join(line, line.c.hash == commits.c.hash).order_by(line.c.step)


@route("GET", "/api/git/leaves", list[HubCommit])
def leaves(database: Database) -> list[Row]:
    """The frontier: commits without children, newest first."""
    query = _narrowed(select(*_SHOWN), None, frontier=True).order_by(commits.c.number.desc())
    return database.rows(query.limit(PAGE_LIMIT))


@route(
    "GET", "/api/git/diff/{old}/{new}", "text/plain", 400, 404, 413, 507,
    may=May("read", "diff", "diffs"),
)  # fmt: skip
def diff(hub: HubService, old: str, new: str) -> Response:
    """The patch from one commit to another."""
    names = [required(hub.database, name) for name in (old, new)]
    return Response(hub.store.diff(*names), media_type="text/plain; charset=utf-8")


# ── by their hashes ─────────────────────────────────────────────────────────────────────────


def begins_with(column: ColumnElement[str], start: str) -> ColumnElement[bool]:
    """Whether a hash begins with `start`, read from the column's index."""
    return (column >= start) & (column < start + "g")


def checked_hash(text: str) -> str:
    if not HASH.fullmatch(text):
        raise bad(f"{text[:80]!r} is not a hash: 4 to 64 characters of 0-9 and a-f")
    return text


def resolve(database: Database, prefix: str) -> str | None:
    """Return the one commit that begins with `prefix`; None: there is none.

    Raises:
        HubRefusalError: 400, `prefix` is no hash, or several commits begin with it.
    """
    column = commits.c.hash
    query = select(column).where(begins_with(column, checked_hash(prefix))).limit(2)
    names: list[str] = database.scalars(query)
    if len(names) > 1:
        raise bad(f"{prefix} is ambiguous: several commits begin with it", hint="give more of it")
    return names[0] if names else None


def required(database: Database, prefix: str) -> str:
    """Return the hash like `resolve`; raise HubRefusalError 404 when there is no such commit."""
    name = resolve(database, prefix)
    if name is None:
        raise missing(f"there is no commit {prefix}")
    return name


# ── for the pages ───────────────────────────────────────────────────────────────────────────


def number_of(database: Database, agent: str | None = None, frontier: bool = False) -> int:
    query = select(func.count()).select_from(commits)
    return int(database.scalar(_narrowed(query, agent, frontier)))


def with_parents(
    database: Database, agent: str | None, frontier: bool, limit: int, offset: int
) -> list[Row]:
    """Return commits newest first, each with its `parents` and whether it is a `leaf`."""
    query = _narrowed(select(*_SHOWN, commits.c.leaf), agent, frontier)
    query = query.order_by(commits.c.number.desc()).limit(limit).offset(offset)
    with database.read() as connection:
        rows = rows_of(connection, query)
        above = _parents(connection, [row["hash"] for row in rows])
    return [{**row, "parents": above[row["hash"]]} for row in rows]


def with_relatives(database: Database, name: str, most_children: int) -> Row:
    """Return a commit with its `parents`, `children` and nearest `ancestors`."""
    with database.read() as connection:
        row = row_of(connection, select(*_SHOWN).where(commits.c.hash == name)) or {}
        row["parents"] = _parents(connection, [name])[name]
    row["ancestors"] = database.rows(_line_from(name, _ANCESTORS + 1))[1:]
    row["children"] = _children(database, name, most_children)
    return row


def pages_of(database: Database, names: Iterable[str]) -> dict[str, str]:
    """Return whole hashes of the commits that are here, by `names`, which may be beginnings."""
    wanted = set(names)
    whole = {name for name in wanted if len(name) >= FULL}
    with database.read() as connection:
        pages = {name: name for name in known(connection, whole)}
    column = commits.c.hash
    for start in wanted - whole:
        there = database.scalars(select(column).where(begins_with(column, start)).limit(2))
        if len(there) == 1:
            pages[start] = there[0]
    return pages


def _narrowed(query: Select[Any], agent: str | None, frontier: bool = False) -> Select[Any]:
    if agent:
        query = query.where(commits.c.agent_id == agent)
    return query.where(commits.c.leaf.is_(True)) if frontier else query


def _parents(connection: Connection, names: Sequence[str]) -> dict[str, list[str]]:
    query = select(parents.c.child, parents.c.parent).where(parents.c.child.in_(names))
    above: dict[str, list[str]] = defaultdict(list)
    for child, parent in connection.execute(query.order_by(parents.c.position)):
        above[child].append(parent)
    return above
