"""`hub deliver`, `hub verify`: what a fleet sends to its hub, and tries for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import open_project, opened, print_json, remark, role, say
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.hub.client.credentials import Credentials


def add(group: typer.Typer) -> None:
    group.command("deliver")(deliver)
    group.command("verify")(verify)


def deliver(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on: be the courier of a fleet, as `up` starts it.")
    ] = False,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Tell the hub what waits in the outbox; with `--watch` also hear what it says, until stopped.

    Example: `orchestrator.py hub deliver`
    """
    from autohypothesis.hub.fleet.courier import CourierProcess

    project = open_project(context, repo)
    courier = CourierProcess(project, _credentials(context, repo))
    if watch:
        with role("courier") as stop:
            courier.run(stop)
        return
    done = courier.once()
    if as_json:
        print_json(done._asdict())
    else:
        say(f"{done.sent} told, {done.refused} refused, {done.left} wait")
    if done.refused:
        from autohypothesis.fleet.hub_sync.outbox import REFUSED

        aside = project.layout.outbox_state(REFUSED)
        remark(f"why they were refused: {aside}")
    if done.error:
        remark(done.error)
        raise typer.Exit(1)


def verify(
    context: typer.Context,
    results: Annotated[
        list[int] | None,
        typer.Argument(metavar="[RESULT]...", help="Numbers; default: what is only claimed."),
    ] = None,
    most: Annotated[int, typer.Option("--limit", min=1, max=200, help="At most N.")] = 5,
    trust: Annotated[
        bool, typer.Option("--trust", help="Also where no sandbox holds it: with all your rights.")
    ] = False,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Have idle workers run what others claim, and tell the hub whether it can be reproduced.

    The best ranked come first; they wait in the queue until no other idea does. What others wrote
    runs in the sandbox; where there is none, nothing is queued without `--trust`.

    Examples: `orchestrator.py hub verify`, `orchestrator.py hub verify 12 15`
    """
    from autohypothesis.engine.isolation import holds_foreign_code
    from autohypothesis.hub.client.hub import HubClient
    from autohypothesis.hub.fleet.coordination import verify as queue_runs

    found, project = _credentials(context, repo), open_project(context, repo)
    if not trust and not holds_foreign_code(project.task):
        raise UsageError(
            "what others wrote would run here outside of a sandbox, with all your rights",
            hint="see `python orchestrator.py doctor`, and leave `isolation: none` out of the task;"
            " or read the commits first (hub fetch HASH, git show) and add --trust",
        )
    wanted = results or []
    rows = queue_runs(HubClient.of(found), found.agent, project, wanted, max(most, len(wanted)))
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    for row in rows:
        what = row.hypothesis_id or f"not queued, {row.reason}"
        say(f"{row.result}  {row.agent}  {row.description}: {what}")
    if not rows:
        remark("nothing there is only claimed, on a platform of ours")


def _credentials(context: typer.Context, repo: Path | None) -> Credentials:
    """Return this repository's agent, on the hub that its fleet shares with."""
    from autohypothesis.fleet.live.presence import read_manifest
    from autohypothesis.hub.client import credentials
    from autohypothesis.records.layout import Layout

    repository = opened(context, repo)[0]
    manifest = read_manifest(Layout(repository.root))
    if manifest is not None and manifest.hub:
        return credentials.of_server(repository.common_dir, manifest.hub)
    return credentials.find(repository.common_dir)
