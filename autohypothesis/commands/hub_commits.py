"""`hub log`, `children`, `leaves`, `lineage`, `diff`: the tree of everybody's commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import out, print_json, remark
from autohypothesis.commands.hub_client import Hash, connect

if TYPE_CHECKING:
    from autohypothesis.hub.client.wire import Commit


def add(group: typer.Typer) -> None:
    group.command("log")(log)
    group.command("children")(children)
    group.command("leaves")(leaves)
    group.command("lineage")(lineage)
    group.command("diff")(diff)


def log(
    context: typer.Context,
    agent: Annotated[str, typer.Option("--agent", help="Of one agent only.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most N.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Leave out the newest N.")] = 0,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """The commits of a hub, the newest first.

    Example: `orchestrator.py hub log --limit 50`
    """
    _show(connect(context, repo).commits(agent, limit, offset), as_json, "no commits there")


def children(
    context: typer.Context, commit: Hash, repo: Repo = None, as_json: Json = False
) -> None:
    """What was tried on top of a commit.

    Example: `orchestrator.py hub children a1b2c3d`
    """
    _show(connect(context, repo).children(commit), as_json, f"nothing is built on {commit} there")


def leaves(context: typer.Context, repo: Repo = None, as_json: Json = False) -> None:
    """The frontier: commits that nothing is built on yet.

    Example: `orchestrator.py hub leaves --json`
    """
    _show(connect(context, repo).leaves(), as_json, "no commits there")


def lineage(context: typer.Context, commit: Hash, repo: Repo = None, as_json: Json = False) -> None:
    """What a commit is built on: itself first, to the root.

    Example: `orchestrator.py hub lineage a1b2c3d`
    """
    _show(connect(context, repo).lineage(commit), as_json, f"no commit {commit} there")


def diff(
    context: typer.Context,
    base: Hash,
    other: Hash,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """What differs between two commits of the hub. With `--json` exactly as it was sent.

    Example: `orchestrator.py hub diff a1b2c3d b2c3d4e`
    """
    found = connect(context, repo).diff(base, other)
    if as_json:
        print_json({"base": base, "other": other, "diff": found})
        return
    from autohypothesis.terminal.hub import foreign_diff

    out().print(foreign_diff(found) if found.strip() else "no difference", soft_wrap=True)


def _show(commits: Sequence[Commit], as_json: bool, nothing: str) -> None:
    rows = [commit.model_dump(mode="json") for commit in commits]
    if as_json:
        print_json(rows)
    elif not rows:
        remark(nothing)
    else:
        from autohypothesis.terminal.hub import commits_table

        out().print(commits_table(rows))
