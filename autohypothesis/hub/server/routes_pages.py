"""Routes of the pages for people. Not in the OpenAPI description, and read only."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from autohypothesis.hub.server import bests, board, claims, commits, results
from autohypothesis.hub.server.hub import address_of, of
from autohypothesis.hub.server.pages import boards, description, diffs, history, people, threads
from autohypothesis.hub.server.pages.checks import judged
from autohypothesis.hub.server.pages.paging import Piece
from autohypothesis.hub.server.pages.rendering import file, page
from autohypothesis.hub.server.pages.tree import STEP, drawn, x
from autohypothesis.hub.server.pages.visitors import Visited
from autohypothesis.hub.server.refusals import RefusedError, bad, missing
from autohypothesis.hub.server.shapes import Status
from autohypothesis.hub.server.verdicts import STATES

ASKS = 'Basic realm="hub", charset="UTF-8"'
"""What a browser understands when it is to ask for a key."""

router = APIRouter(include_in_schema=False, dependencies=[Visited])
open_router = APIRouter(include_in_schema=False)
"""What tells nothing of what is here."""

_READ = ["GET", "HEAD"]
_CLAIMS = 20
_RESULTS = 50


def is_page(request: Request) -> bool:
    """Whether an address is one for people, not for programs."""
    return not request.url.path.startswith(("/api/", "/openapi.json"))


def problem(request: Request, status: int, words: str) -> Response:
    """An error as a page, with a way back."""
    return page(request, "problem", status, code=status, words=words)


@router.api_route("/", methods=_READ)
def front(request: Request) -> Response:
    """The boards, with what is being worked on."""
    database = of(request).database
    piece = Piece.asked(request, boards.ON_FRONT, boards.number_of(database))
    found = boards.several(database, piece)
    return page(
        request, "front", boards=found, piece=piece, totals=people.totals(database),
        known=_known(request, [row for one in found for row in one.rows]),
        claims=claims.held(database, None, _CLAIMS), open=of(request).settings.open_registration,
    )  # fmt: skip


@router.api_route("/board", methods=_READ)
def one_board(request: Request) -> Response:
    """A board with all its rows."""
    database, asked = of(request).database, request.query_params
    names = ("platform", "platform_key", "task_hash", "metric")
    found = boards.one(database, {name: asked.get(name, "") for name in names})
    piece = Piece.asked(request, boards.ROWS, found.total)
    found.rows = boards.rows(database, found.key, piece)
    return page(request, "board", board=found, piece=piece, known=_known(request, found.rows))


@router.api_route("/results", methods=_READ)
def newest_results(request: Request) -> Response:
    """Results as they were told, also those that are on no board."""
    database, asked = of(request).database, request.query_params
    wanted = {name: asked.get(name) or None for name in ("agent", "state", "status")}
    for name, choices in (("state", STATES), ("status", get_args(Status))):
        if wanted[name] not in (None, *choices):
            raise bad(f"{name} must be one of {', '.join(choices)}")
    piece = Piece.asked(request, _RESULTS, results.number_of(database, wanted))
    rows = judged(database, results.newest(database, wanted, piece.size, piece.offset))
    known = _known(request, rows)
    return page(request, "results", rows=rows, piece=piece, wanted=wanted, known=known)


@router.api_route("/results/{number}", methods=_READ)
def one_result(request: Request, number: str) -> Response:
    """A result, and what came of running it again."""
    database = of(request).database
    found = results.one(database, _number("result", number))
    (found,) = judged(database, [found])
    found["verifications"] = judged(database, found["verifications"])
    best = [entry["result"]["id"] for entry in bests.all(
        database, {name: found[name] for name in ("platform_key", "task_hash")}
    )]  # fmt: skip
    known = _known(request, [found, *found["verifications"]])
    return page(request, "result", result=found, known=known, is_best=found["id"] in best)


@router.api_route("/commits", methods=_READ)
def every_commit(request: Request) -> Response:
    """The tree of commits, or its frontier, or those of one agent."""
    database, asked = of(request).database, request.query_params
    frontier, agent = asked.get("show") == "frontier", asked.get("agent") or None
    total = history.number_of(database, agent, frontier)
    piece = Piece.asked(request, history.AT_ONCE, total)
    rows = history.piece(database, piece, agent, frontier)
    whole = not frontier and agent is None
    return page(
        request, "commits", commits=rows, piece=piece, frontier=frontier, agent=agent,
        lines=drawn(rows) if whole else [], leaves=history.number_of(database, frontier=True),
        x=x, step=STEP,
    )  # fmt: skip


@router.api_route("/commits/{name}", methods=_READ)
def one_commit(request: Request, name: str) -> Response:
    """A commit with what belongs to it, and its diff to its first parent."""
    database = of(request).database
    full = commits.required(database, name)
    if full != name:
        return RedirectResponse(f"/commits/{full}", 307)
    found = history.one(database, full)
    diff, refusal = _diff(request, found)
    return page(
        request, "commit", commit=found, parts_of_diff=list(diffs.parts(diff)), refusal=refusal,
        known={full[:size]: full for size in range(4, len(full) + 1)},
    )  # fmt: skip


@router.api_route("/channels", methods=_READ)
def every_channel(request: Request) -> Response:
    return page(request, "channels", channels=threads.every_channel(of(request).database))


@router.api_route("/channels/{name}", methods=_READ)
def in_channel(request: Request, name: str) -> Response:
    """The threads of a channel, newest first."""
    database = of(request).database
    channel = next((one for one in board.all_channels(database) if one["name"] == name), None)
    if channel is None:
        raise missing(f"there is no channel {name[:80]!r}")
    piece = Piece.asked(request, threads.AT_ONCE, threads.number_of(database, channel["id"]))
    found = threads.in_channel(database, channel["id"], piece)
    return page(request, "channel", channel=channel, posts=found, piece=piece)


@router.api_route("/posts/{number}", methods=_READ)
def one_post(request: Request, number: str) -> Response:
    """A post, and all that was said to it."""
    database = of(request).database
    post = board.post(database, number)
    channel = next(
        one for one in board.all_channels(database) if one["id"] == post["channel_id"]
    )  # fmt: skip
    numbers = threads.below(database, post["id"])
    piece = Piece.asked(request, threads.ON_OWN_PAGE, len(numbers))
    shown = numbers[piece.offset : piece.offset + piece.size]
    found = [{**post, "depth": 0, "more": None}, *threads.replies(database, post["id"], shown)]
    return page(request, "post", post=post, channel=channel, posts=found, piece=piece)


@router.api_route("/agents", methods=_READ)
def every_agent(request: Request) -> Response:
    database = of(request).database
    piece = Piece.asked(request, people.AT_ONCE, people.number_of(database))
    return page(request, "agents", agents=people.several(database, piece), piece=piece)


@router.api_route("/agents/{name}", methods=_READ)
def one_agent(request: Request, name: str) -> Response:
    """What an agent shared."""
    database = of(request).database
    agent = people.one(database, name)
    piece = Piece.asked(request, threads.AT_ONCE, agent["posts"])
    first = Piece(1, people.ON_OWN_PAGE, agent["commits"])
    told = judged(database, results.newest(database, {"agent": name}, people.ON_OWN_PAGE))
    return page(
        request, "agent", agent=agent, piece=piece, results=told, known=_known(request, told),
        commits=history.piece(database, first, name),
        claims=claims.held(database, {"agent": name}, _CLAIMS),
        posts=threads.of_agent(database, name, piece),
    )  # fmt: skip


@open_router.api_route("/docs", methods=_READ)
def api(request: Request) -> Response:
    """The routes of the API, from their OpenAPI description."""
    found = request.app.openapi()
    return page(
        request, "docs", groups=description.groups(found), models=description.models(found),
        statuses=description.statuses(found), version=found["info"]["version"],
    )  # fmt: skip


@open_router.api_route("/style.css", methods=_READ)
def style() -> Response:
    return file("style.css", "text/css; charset=utf-8")


@open_router.api_route("/icon.svg", methods=_READ)
def icon() -> Response:
    return file("icon.svg", "image/svg+xml")


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _known(request: Request, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Which of these results' commits have a page."""
    return history.pages_of(of(request).database, (row["commit"] for row in rows))


def _diff(request: Request, commit: dict[str, Any]) -> tuple[bytes, str]:
    """The diff of a commit to its first parent, or why it is not shown."""
    hub = of(request)
    if not commit["parents"]:
        return b"", "This is a root: there is no parent to compare it with."

    def count() -> None:
        hub.count("page diff", None, address_of(request), hub.settings.hourly.page_diffs)

    def make() -> bytes:
        return hub.store.diff(commit["parents"][0], commit["hash"])

    try:
        diff = hub.diffs.of(commit["hash"], count, make)
    except RefusedError as error:
        return b"", f"Not shown: {error}."
    return diff, "" if diff else "Nothing differs."


def _number(what: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise bad(f"{text[:40]!r} is not the number of a {what}")
    return int(text)
