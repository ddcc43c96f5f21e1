"""`hub`: what machines share with each other; its commands are in the modules beside."""

from __future__ import annotations

import typer

from autohypothesis.commands import hub_client, hub_commits, hub_posts

PARTS = (hub_client, hub_commits, hub_posts)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Share commits, results and ideas with other machines.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    for part in PARTS:
        part.register(group)
    app.add_typer(group, name="hub")
