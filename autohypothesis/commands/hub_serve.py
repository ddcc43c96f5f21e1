"""`hub serve`, `hub admin`: the operator of a hub; `hub deliver`, `hub verify`: a fleet on one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, CommandGroup, Json, Repo
from autohypothesis.commands.common import open_project, opened, out, print_json, remark, say
from autohypothesis.commands.common import role as in_role
from autohypothesis.commands.hub import hub_group
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.hub.client.credentials import Credentials
    from autohypothesis.hub.server.database import Database

ADMIN_KEY = "AUTOHYPOTHESIS_HUB_ADMIN_KEY"
_LEAST_KEY = 20
"""Characters; a key that can be guessed is worse than none."""
Data = Annotated[Path, Option("--data", help="The hub's folder: database, repository, keys.")]
Agent = Annotated[str, Argument(metavar="NAME", help="An agent.")]

admin = CommandGroup(help="Agents of a hub, their keys, and its tasks.")
hub_group.add_typer(admin, name="admin")


@hub_group.command("serve")
def serve(
    data: Data,
    host: Annotated[
        str, Option(help="Where to listen; anything but loopback needs TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: a free one.")] = 8000,
    open_registration: Annotated[
        bool, Option("--open-registration", help="Whoever reaches the hub may register.")
    ] = False,
    private_pages: Annotated[
        bool,
        Option(
            "--private-pages", help="Web pages ask for a key; else whoever reaches the hub reads."
        ),
    ] = False,
    name: Annotated[
        list[str] | None, Option(help="A host name under which it is reached; more than once.")
    ] = None,
    proxy: Annotated[
        list[str] | None, Option(help="An address whose X-Forwarded-For is believed.")
    ] = None,
    admin_key_file: Annotated[
        Path | None, Option(help=f"Holds the operator's key; else ${ADMIN_KEY}.")
    ] = None,
    registrations: Annotated[int, Option(min=1, help="An hour, for each address.")] = 10,
    pushes: Annotated[int, Option(min=1, help="An hour, for each agent.")] = 100,
    posts: Annotated[int, Option(min=1, help="An hour, for each agent.")] = 100,
    diffs: Annotated[int, Option(min=1, help="An hour, for each agent.")] = 60,
    page_diffs: Annotated[
        int, Option(min=1, help="An hour, for each address, on web pages.")
    ] = 120,
    results: Annotated[
        int, Option(min=1, help="An hour, for each agent; tasks and bests too.")
    ] = 600,
    claims: Annotated[int, Option(min=1, help="An hour, for each agent.")] = 1200,
    connections: Annotated[int, Option(min=1, help="At once, for each address but proxies.")] = 64,
    bundle_mb: Annotated[int, Option(min=1, max=2000, help="The largest push.")] = 50,
    channels: Annotated[int, Option(min=1, help="How many there may be.")] = 100,
) -> None:
    """Serve a hub: one process, all of it in one folder.

    Example: `orchestrator.py hub serve --data hub --open-registration`
    """
    from autohypothesis.hub.server.serving import serve as run
    from autohypothesis.hub.server.settings import MB, Hourly, HubLimits, Settings
    from autohypothesis.plain import plain

    settings = Settings(
        data=data, host=host, port=port, open_registration=open_registration,
        private_pages=private_pages,
        names=tuple(name or ()), proxies=tuple(proxy or ()), admin_key=_admin_key(admin_key_file),
        hourly=Hourly(
            registrations=registrations, pushes=pushes, posts=posts, diffs=diffs,
            page_diffs=page_diffs, results=results, claims=claims,
        ),
        limits=HubLimits(
            bundle_bytes=bundle_mb * MB, channels=channels, connections=connections,
        ),
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # the usual way to end it
        run(settings, lambda line: print(plain(line), file=sys.stderr, flush=True))
    remark("the hub is stopped")


def _admin_key(path: Path | None) -> str:
    """Return the operator's key, from a file or the environment; never from the command line."""
    text = path.read_text(encoding="utf-8") if path is not None else os.environ.get(ADMIN_KEY, "")
    key = text.strip()
    if (path is not None or key) and len(key) < _LEAST_KEY:
        raise UsageError(
            f"the operator's key has {len(key)} characters; {_LEAST_KEY} are the least",
            hint="make one: `openssl rand -hex 32`",
        )
    return key


@contextmanager
def _database(data: Path) -> Iterator[Database]:
    """Open the database, also while the hub serves: it is asked anew at every request."""
    from autohypothesis.hub.server.database import Database
    from autohypothesis.hub.server.settings import DataFolder

    database = Database(DataFolder(data).database)
    try:
        yield database
    finally:
        database.close()


@admin.command("create")
def create(
    name: Agent,
    data: Data,
    role: Annotated[str, Option(help="read, post, push or admin.")] = "push",
) -> None:
    """Make an agent, and print its key, once.

    Example: `orchestrator.py hub admin create ada --data hub --role read`
    """
    from autohypothesis.hub.server import agents

    with _database(data) as database:
        print(agents.create(database, name, role))


@admin.command("rotate")
def rotate(name: Agent, data: Data) -> None:
    """Give an agent a new key, and print it, once; the old one ends here.

    Example: `orchestrator.py hub admin rotate ada --data hub`
    """
    from autohypothesis.hub.server import agents

    with _database(data) as database:
        print(agents.rotate(database, name)["api_key"])


@admin.command("revoke")
def revoke(name: Agent, data: Data) -> None:
    """End an agent's key; what it sent stays. `rotate` lets it in again.

    Example: `orchestrator.py hub admin revoke ada --data hub`
    """
    from autohypothesis.hub.server import agents

    with _database(data) as database:
        agents.revoke(database, name)


@admin.command("role")
def role(
    name: Agent,
    role: Annotated[str, Argument(metavar="ROLE", help="read, post, push or admin.")],
    data: Data,
) -> None:
    """Say what an agent may do: each role may what those before it may.

    Example: `orchestrator.py hub admin role ada post --data hub`
    """
    from autohypothesis.hub.server import agents

    with _database(data) as database:
        agents.set_role(database, name, role)


@admin.command("list")
def listing(data: Data, as_json: Json = False) -> None:
    """Show every agent, its role, and whether its key still counts.

    Example: `orchestrator.py hub admin list --data hub`
    """
    from rich.table import Table

    from autohypothesis.hub.server import agents

    with _database(data) as database:
        rows = agents.every_agent(database)
    if as_json:
        print_json(rows)
        return
    table = Table("agent", "role", "since", "revoked")
    for row in rows:
        table.add_row(row["id"], row["role"], row["created_at"], row["revoked_at"] or "")
    out().print(table)


@admin.command("forget-task")
def forget_task(
    task_hash: Annotated[
        str, Argument(metavar="HASH", help="A task's hash; the beginning will do.")
    ],
    data: Data,
) -> None:
    """Take away a task that was told wrongly, so that it can be told again. Not with results.

    Example: `orchestrator.py hub admin forget-task 1a2b3c4 --data hub`
    """
    from autohypothesis.hub.server import tasks
    from autohypothesis.plain import table_text

    with _database(data) as database:
        row = tasks.forget(database, task_hash)
    say(f"task {table_text(row['name'])} ({row['task_hash'][:7]}) is forgotten")


# ── what a fleet sends to its hub, and tries for it ─────────────────────────────────────────


@hub_group.command("deliver")
def deliver(
    watch: Annotated[
        bool, Option("--watch", help="Go on: be the courier of a fleet, as `up` starts it.")
    ] = False,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Tell the hub what waits in the outbox; with `--watch` also hear what it says, until stopped.

    Example: `orchestrator.py hub deliver`
    """
    from autohypothesis.fleet.hub_sync.outgoing import REFUSED
    from autohypothesis.hub.fleet.courier import CourierProcess

    project = open_project(repo)
    courier = CourierProcess(project, _credentials(repo))
    if watch:
        with in_role("courier") as stop:
            courier.run(stop)
        return
    done = courier.once()
    if as_json:
        print_json(done._asdict())
    else:
        say(f"{done.sent} told, {done.refused} refused, {done.left} wait")
    if done.refused:
        remark(f"why they were refused: {project.layout.outbox_state(REFUSED)}")
    if done.error:
        remark(done.error)
        raise typer.Exit(1)


@hub_group.command("verify")
def verify(
    results: Annotated[
        list[int] | None,
        Argument(metavar="[RESULT]...", help="Numbers; default: what is only claimed."),
    ] = None,
    most: Annotated[int, Option("--limit", min=1, max=200, help="At most N.")] = 5,
    trust: Annotated[
        bool, Option("--trust", help="Also where no sandbox holds it: with all your rights.")
    ] = False,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Have idle workers run what others claim, and tell the hub whether it can be reproduced.

    The best ranked come first; they wait in the queue until no other idea does. What others wrote
    runs in the sandbox; where there is none, nothing is queued without `--trust`.

    Examples: `orchestrator.py hub verify`, `orchestrator.py hub verify 12 15`
    """
    from autohypothesis.engine.program import sandbox_kind
    from autohypothesis.hub.fleet.coordination import verify as queue_runs

    own, project = _credentials(repo), open_project(repo)
    if not trust and sandbox_kind(project.task) == "none":
        raise UsageError(
            "what others wrote would run here outside of a sandbox, with all your rights",
            hint="see `python orchestrator.py doctor`, and leave `isolation: none` out of the task;"
            " or read the commits first (hub fetch HASH, git show) and add --trust",
        )
    wanted = results or []
    rows = queue_runs(own.client(), own.agent, project, wanted, max(most, len(wanted)))
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    for row in rows:
        outcome = row.hypothesis_id or f"not queued, {row.reason}"
        say(f"{row.result}  {row.agent}  {row.description}: {outcome}")
    if not rows:
        remark("nothing there is only claimed, on a platform of ours")


def _credentials(repo: Path) -> Credentials:
    """Return this repository's agent, on the hub that its fleet shares with."""
    from autohypothesis.fleet.live.presence import read_manifest
    from autohypothesis.hub.client import credentials

    repository, layout = opened(repo)
    manifest = read_manifest(layout)
    if manifest is not None and manifest.hub:
        return credentials.of_server(repository.common_dir, manifest.hub)
    return credentials.find(repository.common_dir)
