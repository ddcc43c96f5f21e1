"""`status`, `monitor`, `digest`: what a running fleet does, and what it did. They only read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import layout_of, out, print_json


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("monitor")(monitor)
    app.command("digest")(digest)


def status(context: typer.Context, repo: Repo = None, as_json: Json = False) -> None:
    """The search, who is alive, the queue, and what needs you; it only reads, and at once.

    Example: `orchestrator.py status`
    """
    from autohypothesis.fleet.overview.overview import overview

    view = overview(layout_of(context, repo))
    if as_json:
        print_json(_plain(view))
        return
    from autohypothesis.terminal.fleet import status_page

    out().print(status_page(view))


def monitor(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Leave after that many looks.")
    ] = None,
    repo: Repo = None,
) -> None:
    """Watch the fleet at work, until Ctrl-C. It only reads, and may be left at any time.

    Off a terminal each look is printed below the last. Example: `orchestrator.py monitor`
    """
    from autohypothesis.terminal.live import watch

    try:
        watch(layout_of(context, repo), out(), interval=interval, iterations=iterations)
    except KeyboardInterrupt:
        return  # the usual way to leave it


def digest(
    context: typer.Context,
    since: Annotated[
        float | None,
        typer.Option("--since", metavar="HOURS", min=0.0, max=1e6, help="Only the last HOURS."),
    ] = None,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """The page of the morning: what was kept, what failed, how idle it was, where to look first.

    It reads the ledger as the last sync left it. Example: `orchestrator.py digest --since 12`
    """
    from autohypothesis.fleet.overview.digest import digest as gather
    from autohypothesis.records.layout import checked_id

    page = gather(layout_of(context, repo), checked_id(tag) if tag else None, since_hours=since)
    if as_json:
        print_json(_plain(page))
        return
    from autohypothesis.terminal.fleet import digest_page

    out().print(digest_page(page))


def _plain(view: Any) -> Any:
    """Return a page for JSON: times as everywhere else, no number that is not finite."""
    import json
    from dataclasses import asdict
    from datetime import datetime

    from autohypothesis.records.files import to_json
    from autohypothesis.schema import rfc3339

    def times(value: Any) -> Any:
        if isinstance(value, datetime):
            return rfc3339(value)
        if isinstance(value, dict):
            return {key: times(item) for key, item in value.items()}
        return [times(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.loads(to_json(times(asdict(view))))
