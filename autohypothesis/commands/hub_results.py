"""`hub results`, `leaderboard`, `claim`: what was measured, how it stands, who works on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import out, print_json, remark, say
from autohypothesis.commands.hub_client import connect

if TYPE_CHECKING:
    from autohypothesis.hub.client.typed import TypedHub
    from autohypothesis.hub.client.wire import Claim

LEASE_S = 3600
_ALL = 1000
Platform = Annotated[str, typer.Option("--platform", help="Of one device, by its short name.")]
PlatformKey = Annotated[
    str, typer.Option("--platform-key", metavar="KEY", help="Device, data, task and budget.")
]
TaskHash = Annotated[str, typer.Option("--task-hash", metavar="HASH", help="Of one task.")]


def add(group: typer.Typer) -> None:
    group.command("results")(results)
    group.command("leaderboard")(leaderboard)
    group.command("claim")(claim)


def results(
    context: typer.Context,
    platform: Platform = "",
    agent: Annotated[str, typer.Option("--agent", help="Of one agent only.")] = "",
    status: Annotated[
        str, typer.Option("--status", help="keep, discard, crash or replicate.")
    ] = "",
    state: Annotated[
        str, typer.Option("--state", help="claimed, reproduced or refuted: what others found.")
    ] = "",
    commit: Annotated[
        str, typer.Option("--commit", metavar="HASH", help="A commit; the beginning will do.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most N.")] = 20,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Results that agents told a hub, the newest first, those of posts among them.

    Examples: `orchestrator.py hub results --state reproduced`,
    `orchestrator.py hub results --platform H100 --commit a1b2c3d --json`
    """
    found = connect(context, repo).results(
        platform=platform, agent=agent, status=status, state=state, commit=commit, limit=limit
    )
    rows = [one.model_dump(mode="json") for one in found]
    if as_json:
        print_json(rows)
    elif not rows:
        remark("no such results there")
    else:
        from autohypothesis.terminal.hub import results_table

        out().print(results_table(rows))


def leaderboard(
    context: typer.Context,
    platform: Platform = "",
    platform_key: PlatformKey = "",
    task_hash: TaskHash = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="At most N of each board.")
    ] = 10,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """The best results of each platform and task: those that others reproduced come first.

    Examples: `orchestrator.py hub leaderboard`,
    `orchestrator.py hub leaderboard --platform H100 --limit 50`
    """
    found = connect(context, repo).leaderboard(
        platform=platform, platform_key=platform_key, task_hash=task_hash, limit=limit
    )
    rows = [one.model_dump(mode="json") for one in found]
    if as_json:
        print_json(rows)
    elif not rows:
        remark("nothing on any board there yet")
    else:
        from autohypothesis.terminal.hub import board_tables

        for place, table in enumerate(board_tables(rows)):
            if place:
                out().print()
            out().print(table)


def claim(
    context: typer.Context,
    tree: Annotated[
        str, typer.Option("--tree", metavar="TREE", help="What is tried: n1: and the tree's hash.")
    ] = "",
    platform_key: PlatformKey = "",
    task_hash: TaskHash = "",
    title: Annotated[str, typer.Option("--title", help="What is tried, for people.")] = "",
    lease: Annotated[
        int | None,
        typer.Option(
            "--lease", metavar="SECONDS", min=60, max=86_400, help=f"How long; default: {LEASE_S}."
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show what is claimed.")] = False,
    release: Annotated[
        int | None, typer.Option("--release", metavar="ID", min=1, help="Give one back.")
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Say that you work on something, so that nobody else does; again, to renew it.

    Examples: `orchestrator.py hub claim --tree n1:5d6e… --platform-key 9f1b… --task-hash 1a2b…
    --title "twice the heads"`, `orchestrator.py hub claim --list`,
    `orchestrator.py hub claim --release 12`
    """
    own = {"--tree": tree, "--title": title, "--lease": lease}
    of = {"--platform-key": platform_key, "--task-hash": task_hash}
    if release is not None:
        _refuse("--release", {**own, **of, "--list": listing})
        connect(context, repo).release(release)
        if as_json:
            print_json({"released": release})
        else:
            say(f"claim {release} is given back")
    elif listing:
        _refuse("--list", own)
        hub = connect(context, repo)
        _show(hub.claims(platform_key=platform_key, task_hash=task_hash, limit=_ALL), as_json)
    else:
        _require({"--tree": tree, **of})
        hub = connect(context, repo)
        made = _claimed(hub, platform_key, task_hash, tree, lease or LEASE_S, title)
        if as_json:
            print_json(made.model_dump(mode="json"))
        else:
            until = made.expires_at.strftime("%Y-%m-%d %H:%M UTC")
            say(f"claim {made.id} is yours until {until}")


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _claimed(
    hub: TypedHub, platform_key: str, task_hash: str, tree: str, lease: int, title: str
) -> Claim:
    from autohypothesis.hub.client.refusals import TakenError

    try:
        return hub.claim(
            platform_key=platform_key, task_hash=task_hash, tree=tree, lease_seconds=lease,
            title=title,
        )  # fmt: skip
    except TakenError as error:
        error.hint = "see who works on what: python orchestrator.py hub claim --list"
        raise


def _show(claims: list[Claim], as_json: bool) -> None:
    rows = [one.model_dump(mode="json") for one in claims]
    if as_json:
        print_json(rows)
    elif not rows:
        remark("nothing is claimed there")
    else:
        from autohypothesis.terminal.hub import claims_table

        out().print(claims_table(rows))


def _refuse(option: str, others: Mapping[str, object]) -> None:
    """What says nothing beside `option` is not taken and forgotten."""
    from autohypothesis.errors import UsageError

    given = [name for name, value in others.items() if value]
    if given:
        raise UsageError(f"{option} does not go with {', '.join(given)}", hint="leave one out")


def _require(options: Mapping[str, str]) -> None:
    from autohypothesis.errors import UsageError

    lacking = [name for name, value in options.items() if not value]
    if lacking:
        raise UsageError(
            f"a claim needs {', '.join(lacking)}",
            hint="or show what is claimed: `hub claim --list`",
        )
