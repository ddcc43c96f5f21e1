"""The pages for people. Not in the OpenAPI description, and read only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import func, select

from autohypothesis.hub.protocol import (
    LARGEST,
    AgentQuery,
    ClaimQuery,
    KeyQuery,
    ResultQuery,
)
from autohypothesis.hub.server import agents, boards, commits, posts, results, tasks
from autohypothesis.hub.server import database as tables
from autohypothesis.hub.server.database import Database, Row
from autohypothesis.hub.server.pages.drawings import STEP, chart, lane_x, tree_rows
from autohypothesis.hub.server.pages.rendering import ListPiece, diff_parts, file, page
from autohypothesis.hub.server.refusals import HubRefusalError
from autohypothesis.hub.server.results import STATES
from autohypothesis.hub.server.service import HubService, address_of, database_of, service_of

CHALLENGE = 'Basic realm="hub", charset="UTF-8"'
"""Makes a browser ask for a key."""
COMMITS = 100
"""Commits on one page; of 10,000, each page is as quick as the first."""
_BOARDS = 10
"""Boards on the front page, and rows of each."""
_ROWS = 100
_CLAIMS = 20
_RESULTS = 50
_RESULTS_OF_COMMIT = 100
_OF_AGENT = 20
"""Commits and results of an agent, shown on its page."""
_REPLIES = 100

Base = Annotated[Database, Depends(database_of)]
Service = Annotated[HubService, Depends(service_of)]
Route = TypeVar("Route", bound=Callable[..., Any])


def visitor(request: Request) -> None:
    """Ask for a key, any agent's, with `--private-pages`; a dependency.

    It is sent as HTTP Basic, which browsers know without a script; the user's name is not looked
    at. The API takes no such header, so no page elsewhere can use what the browser remembers.

    Raises:
        HubRefusalError: 401, 429.
    """
    hub: HubService = request.app.state.hub
    if not hub.settings.private_pages:
        return
    scheme, _, packed = request.headers.get("authorization", "").partition(" ")
    try:
        text = base64.b64decode(packed.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        text = ""
    key = text.partition(":")[2].strip()
    if scheme.lower() != "basic" or not key:
        raise HubRefusalError(401, "these pages ask for a key", hint="give it as the password")
    hub.caller(key, address_of(request))


router = APIRouter(include_in_schema=False, dependencies=[Depends(visitor)])
open_router = APIRouter(include_in_schema=False)
"""Pages that show nothing of what is on this hub."""


def _read(path: str, on: APIRouter = router) -> Callable[[Route], Route]:
    return on.api_route(path, methods=["GET", "HEAD"])


def problem(request: Request, status: int, words: str) -> Response:
    """An error as a page, with a way back."""
    return page(request, "problem", status, code=status, words=words)


# ── results ─────────────────────────────────────────────────────────────────────────────────


@_read("/")
def front(request: Request, hub: Service) -> Response:
    """The boards, with what is being worked on."""
    database = hub.database
    piece = ListPiece.asked(request, _BOARDS, boards.number_of(database))
    found = boards.several(database, _BOARDS, piece.size, piece.offset)
    return page(
        request, "front", boards=found, chart=chart, piece=piece, totals=_totals(database),
        known=_known(database, [row for board in found for row in board.rows]),
        claims=tasks.held_claims(database, ClaimQuery(limit=_CLAIMS)),
        open=hub.settings.open_registration,
    )  # fmt: skip


@_read("/board")
def one_board(
    request: Request, database: Base, platform: str = "", platform_key: str = "",
    task_hash: str = "", metric: str = "",
) -> Response:  # fmt: skip
    """A board with all its rows."""
    key = {"platform": platform, "platform_key": platform_key, "task_hash": task_hash,
           "metric": metric}  # fmt: skip
    piece = ListPiece.asked(request, _ROWS, boards.size(database, key))
    board = boards.board(database, key, piece.size, piece.offset)
    known = _known(database, board.rows)
    return page(request, "board", board=board, chart=chart, piece=piece, known=known)


@_read("/results")
def newest_results(
    request: Request, database: Base, wanted: Annotated[ResultQuery, Query()]
) -> Response:
    """Results as they were told, also those that are on no board."""
    piece = ListPiece.asked(request, _RESULTS, results.number_of(database, wanted))
    asked = wanted.model_copy(update={"limit": piece.size, "offset": piece.offset})
    rows = results.with_verdicts(database, results.newest_results(database, asked))
    given, known = wanted.model_dump(exclude={"limit", "offset"}), _known(database, rows)
    return page(request, "results", rows=rows, piece=piece, wanted=given, known=known)


@_read("/results/{number}")
def one_result(request: Request, database: Base, number: int) -> Response:
    """A result, and what came of running it again."""
    (found,) = results.with_verdicts(database, [results.one_result(database, min(number, LARGEST))])
    found["verifications"] = results.with_verdicts(database, found["verifications"])
    key = KeyQuery(platform_key=found["platform_key"], task_hash=found["task_hash"])
    best = [entry["result"]["id"] for entry in boards.every_best(database, key)]
    known = _known(database, [found, *found["verifications"]])
    return page(request, "result", result=found, known=known, is_best=found["id"] in best)


# ── commits ─────────────────────────────────────────────────────────────────────────────────


@_read("/commits")
def every_commit(
    request: Request, database: Base, wanted: Annotated[AgentQuery, Query()]
) -> Response:
    """The tree of commits, or its frontier, or those of one agent."""
    frontier, agent = request.query_params.get("show") == "frontier", wanted.agent or None
    total = commits.number_of(database, agent, frontier)
    piece = ListPiece.asked(request, COMMITS, total)
    rows = _commits(database, piece, agent, frontier)
    whole = not frontier and agent is None
    return page(
        request, "commits", commits=rows, piece=piece, frontier=frontier, agent=agent,
        lines=tree_rows(rows) if whole else [],
        leaves=commits.number_of(database, frontier=True), x=lane_x, step=STEP,
    )  # fmt: skip


@_read("/commits/{name}")
def one_commit(request: Request, database: Base, name: str) -> Response:
    """A commit with what belongs to it, and its diff to its first parent."""
    full = commits.required(database, name)
    if full != name:
        return RedirectResponse(f"/commits/{full}", 307)
    found = commits.with_relatives(database, full, COMMITS)
    told = results.with_checks(database, full, _RESULTS_OF_COMMIT)
    found["results"] = results.with_verdicts(database, told)
    diff, refusal = _diff(request, found)
    return page(
        request, "commit", commit=found, parts_of_diff=list(diff_parts(diff)), refusal=refusal,
        known={full[:size]: full for size in range(4, len(full) + 1)},
    )  # fmt: skip


def _diff(request: Request, commit: Row) -> tuple[bytes, str]:
    """Return the diff of a commit to its first parent, or why it is not shown."""
    hub: HubService = request.app.state.hub
    if not commit["parents"]:
        return b"", "This is a root: there is no parent to compare it with."

    def count() -> None:
        hub.count("page diff", None, address_of(request), hub.settings.hourly.page_diffs)

    def make() -> bytes:
        return hub.store.diff(commit["parents"][0], commit["hash"])

    try:
        diff = hub.diffs.of(commit["hash"], count, make)
    except HubRefusalError as error:
        return b"", f"Not shown: {error}."
    return diff, "" if diff else "Nothing differs."


def _commits(
    database: Database, piece: ListPiece, agent: str | None, frontier: bool = False
) -> list[Row]:
    """Commits with their parents, and the best `result` of each."""
    rows = commits.with_parents(database, agent, frontier, piece.size, piece.offset)
    best = results.best_of_each(database, (row["hash"] for row in rows))
    return [{**row, "result": best.get(row["hash"])} for row in rows]


# ── channels and agents ─────────────────────────────────────────────────────────────────────


@_read("/channels")
def every_channel(request: Request, database: Base) -> Response:
    return page(request, "channels", channels=posts.channels_with_counts(database))


@_read("/channels/{name}")
def in_channel(request: Request, database: Base, name: str) -> Response:
    """The threads of a channel, newest first."""
    channel = posts.channel(database, name)
    total = posts.number_of_threads(database, channel["id"])
    piece = ListPiece.asked(request, posts.THREADS, total)
    found = posts.threads(database, channel["id"], piece.size, piece.offset)
    return page(request, "channel", channel=channel, posts=found, piece=piece)


@_read("/posts/{number}")
def one_post(request: Request, database: Base, number: int) -> Response:
    """A post, and all replies to it."""
    post = posts.post(database, number)
    channel = next(
        row for row in posts.all_channels(database) if row["id"] == post["channel_id"]
    )  # fmt: skip
    numbers = posts.numbers_below(database, post["id"])
    piece = ListPiece.asked(request, _REPLIES, len(numbers))
    shown = numbers[piece.offset : piece.offset + piece.size]
    thread = posts.thread(database, post, shown)
    return page(request, "post", post=post, channel=channel, posts=thread, piece=piece)


@_read("/agents")
def every_agent(request: Request, database: Base) -> Response:
    total = database.scalar(select(func.count()).select_from(tables.agents))
    piece = ListPiece.asked(request, _ROWS, total)
    found = database.rows(agents.with_counts().limit(piece.size).offset(piece.offset))
    return page(request, "agents", agents=found, piece=piece)


@_read("/agents/{name}")
def one_agent(request: Request, database: Base, name: str) -> Response:
    """The results, commits and posts of an agent."""
    agent = agents.one_with_counts(database, name)
    piece = ListPiece.asked(request, posts.THREADS, agent["posts"])
    first = ListPiece(1, _OF_AGENT, agent["commits"])
    told = results.newest_results(database, ResultQuery(agent=name, limit=_OF_AGENT))
    told = results.with_verdicts(database, told)
    return page(
        request, "agent", agent=agent, piece=piece, results=told, known=_known(database, told),
        commits=_commits(database, first, name),
        claims=tasks.held_claims(database, ClaimQuery(agent=name, limit=_CLAIMS)),
        posts=posts.of_agent(database, name, piece.size, piece.offset),
    )  # fmt: skip


# ── what shows nothing of this hub ──────────────────────────────────────────────────────────


@_read("/docs", open_router)
def api(request: Request) -> Response:
    """The routes of the API, from their OpenAPI description."""
    description = request.app.openapi()
    return page(
        request, "docs", description=description,
        models=description.get("components", {}).get("schemas", {}),
    )  # fmt: skip


@_read("/style.css", open_router)
def style() -> Response:
    return file("style.css", "text/css; charset=utf-8")


@_read("/icon.svg", open_router)
def icon() -> Response:
    return file("icon.svg", "image/svg+xml")


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _known(database: Database, rows: Sequence[Row]) -> dict[str, str]:
    """Which of these results' commits have a page."""
    return commits.pages_of(database, (row["commit"] for row in rows))


def _totals(database: Database) -> Row:
    """Return the number of rows of each kind; for results, the number in each state."""
    counts = {
        table.name: database.scalar(select(func.count()).select_from(table))
        for table in (tables.agents, tables.commits, tables.posts)
    }
    standing, verifies = tables.results.c.standing, tables.results.c.verifies
    by_standing = select(standing, func.count().label("count")).where(verifies.is_(None))
    states = {
        row["standing"]: row["count"] for row in database.rows(by_standing.group_by(standing))
    }
    counts.update((state, states.get(place, 0)) for place, state in enumerate(STATES))
    checks = select(func.count()).where(verifies.is_not(None))
    return {**counts, "verifications": database.scalar(checks)}
