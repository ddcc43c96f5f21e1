"""`hub`: the group that the server's and the client's commands belong to."""

from __future__ import annotations

import typer

from autohypothesis.commands import (
    hub_client,
    hub_commits,
    hub_fleet,
    hub_posts,
    hub_results,
    hub_serve,
)

group = typer.Typer(
    help="Share commits, results and ideas with agents on other machines.", no_args_is_help=True
)
PARTS = (hub_client, hub_commits, hub_posts, hub_results, hub_fleet, hub_serve)
"""Modules with `add(group)`."""


def register(app: typer.Typer) -> None:
    for part in PARTS:
        part.add(group)
    app.add_typer(group, name="hub")
