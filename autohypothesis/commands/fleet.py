"""`up`, `down`, `restore`, and the processes that `up` starts: each may be played alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import (
    layout_of,
    open_project,
    opened,
    out,
    print_json,
    remark,
    role,
    say,
    telling_what_runs_lack,
)

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.hub_sync.incoming import ClaimService
    from autohypothesis.fleet.supervisor.supervisor import Outcome, Supervisor
    from autohypothesis.records.layout import Layout
    from autohypothesis.schema import Manifest

ROLE_LOCK_S = 10.0
"""The observer of a supervisor that was killed may still be leaving."""

Proposers = Annotated[
    list[str] | None,
    typer.Option(
        "--proposer",
        metavar="WORD",
        help="search, command:PROGRAM, inbox or a package's own; repeatable, first first.",
    ),
]
Mix = Annotated[
    float | None,
    typer.Option(
        "--mix",
        min=0,
        max=1,
        help="Share of ideas that turn several constants at once; default: once single ones stall.",
    ),
]


ToolCommand = Annotated[
    str | None,
    typer.Option(
        "--tool-command",
        metavar="PROGRAM",
        help="Asked for helper scripts that no catalogue has; default: as init-fleet was told.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("down")(down)
    app.command("restore")(restore)
    app.command("observer")(observer)
    app.command("worker")(worker)
    app.command("tool-builder")(tool_builder)


# ── the whole fleet ─────────────────────────────────────────────────────────────────────────


def up(
    context: typer.Context,
    max_runs: Annotated[
        int | None, typer.Option("--max-runs", min=1, help="Stop after that many more runs.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.001, help="Stop after that time.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on without this terminal.")] = False,
    proposer: Proposers = None,
    mix: Mix = None,
    tool_command: ToolCommand = None,
    repo: Repo = None,
) -> None:
    """Start the fleet: observer, workers and tool-builder; without limits until it is stopped.

    Ctrl-C stops it cleanly, twice at once. Example: `orchestrator.py up --hours 8 --detach`
    """
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.records.git import Repository
    from autohypothesis.records.outputs import refuse_foreign_ledger

    layout = layout_of(context, repo)
    manifest = process_specs.require_fleet(layout)
    process_specs.refuse_second_supervisor(layout)
    refuse_foreign_ledger(Repository(layout.root), layout)
    _check_words(layout, manifest, proposer or [], mix, tool_command)
    project = open_project(context, repo)
    with telling_what_runs_lack(project):
        missing = process_specs.workers_without_device(manifest)
    for name, reason in missing.items():
        remark(f"{name} does not train: {reason}")
    if detach:
        given: dict[str, object] = {"--max-runs": max_runs, "--hours": hours, "--mix": mix,
                 "--tool-command": tool_command}  # fmt: skip
        _detached(layout, given, proposer or [])
        return
    until = in_hours(least(hours, project.task.budget.hours))
    words = process_specs.observer_options(
        layout, manifest, more_runs=max_runs, until=until, proposers=proposer or [], mix=mix
    )
    bring_up(layout, manifest, words, missing, tool_command)


def bring_up(
    layout: Layout,
    manifest: Manifest,
    observer: list[str],
    missing: dict[str, str],
    tool_command: str | None = None,
) -> None:
    """Run a fleet in the foreground, until it has finished or is stopped.

    Raises:
        typer.Exit: the search has failed; why is on stderr.
    """
    from autohypothesis.fleet.live import quarantine
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.supervisor.supervisor import Supervisor

    quarantine.clear_quarantine(layout)
    supervisor = Supervisor(
        layout,
        process_specs.fleet_processes(
            layout, manifest, observer, missing, tool_command=tool_command
        ),
        notes=[f"{name} does not train: {reason}" for name, reason in missing.items()],
    )
    _supervise(layout, supervisor)


def _supervise(layout: Layout, supervisor: Supervisor) -> None:
    from autohypothesis.commands.progress import shown

    with role("supervisor") as stop, shown(layout, stop) as tick:
        supervisor.tick = tick
        outcome = supervisor.run(stop)
    _say_outcome(outcome, supervisor.message)


def _say_outcome(outcome: Outcome, message: str) -> None:
    if outcome == "failed":
        remark(message, style="red")
        raise typer.Exit(1)
    remark(f"the fleet has {outcome}; see `python orchestrator.py digest`")


def _check_words(
    layout: Layout,
    manifest: Manifest,
    words: list[str],
    mix: float | None,
    tool_command: str | None,
) -> None:
    """Refuse a wrong word here rather than in the log of the process started with it."""
    from autohypothesis.fleet.toolbuilder.builder import command_words
    from autohypothesis.proposers.configured import configured

    configured(words or manifest.proposers, mix=mix, root=layout.root)
    command_words(manifest.tool_command if tool_command is None else tool_command)


def _detached(layout: Layout, given: dict[str, object], words: list[str]) -> None:
    from autohypothesis.fleet.supervisor import process_specs

    options = [part for name, value in given.items() if value is not None
               for part in (name, str(value))]  # fmt: skip
    options += [part for word in words for part in ("--proposer", word)]
    pid, is_at_work = process_specs.detach(layout, ["up", *options])
    if is_at_work:
        say(f"the fleet is at work, pid {pid}")
    else:
        log = layout.role_log("supervisor")
        say(f"the fleet is still starting, pid {pid}: see {log}")
    for command in ("monitor", "down"):
        say(f"  python orchestrator.py {command}")


def down(
    context: typer.Context,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds to wait for everybody.")
    ] = 180.0,
    repo: Repo = None,
) -> None:
    """Stop the fleet: trainings are ended and recorded, hypotheses go back to the queue.

    Safe at any time; what was killed before is cleared as well. Example: `orchestrator.py down`
    """
    from autohypothesis.fleet.supervisor import supervisor

    layout = layout_of(context, repo)
    ended = supervisor.end_supervisor(layout, timeout, remark)
    rest = supervisor.end_all(layout, timeout, remark)
    if rest:
        _keep(layout)
    if not ended and not rest:
        say(f"nothing runs in {layout.root}")
        return
    say(f"stopped: {', '.join([*ended, *rest])}")


def _keep(layout: Layout) -> None:
    """Make the last sync and snapshot, where no supervisor is left to make them."""
    from autohypothesis.commands.sync import keep, refresh
    from autohypothesis.engine import recovery
    from autohypothesis.records.git import Repository

    repository = Repository(layout.root)
    recovery.collect_ended(repository, layout)
    refresh(layout)
    keep(repository, layout, everything=True)


def restore(
    context: typer.Context,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Bring a search back from its snapshot in git; what is there is not overwritten.

    For after a `git clean -xdf`, or in a clone. Example: `orchestrator.py restore --tag nov20`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.fleet.supervisor.snapshot import newest_tag
    from autohypothesis.fleet.supervisor.snapshot import restore as bring_back
    from autohypothesis.records.locks import hold

    repository, layout = opened(context, repo)
    chosen = tag or newest_tag(repository)
    with hold(layout, "observer", doing=f"restoring {chosen}", timeout=1.0):
        restored = bring_back(repository, layout, chosen)
    report, _ = refresh(layout)
    if as_json:
        print_json({**restored._asdict(), "experiments": report.rows})
        return
    said = f"{restored.files} files and {restored.decisions} decisions of {chosen} are back"
    out().print(f"{said}; {report.rows} experiments in {layout.ledger}", soft_wrap=True)


# ── its processes ───────────────────────────────────────────────────────────────────────────


def observer(
    context: typer.Context,
    max_experiments: Annotated[
        int | None,
        typer.Option("--max-experiments", min=0, help="Of the whole search, then it is finished."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            "--until",
            metavar="TIME",
            formats=["%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ"],
            help="UTC; nothing is begun after that.",
        ),
    ] = None,
    proposer: Proposers = None,
    mix: Mix = None,
    repo: Repo = None,
) -> None:
    """Be the observer: decide what ended, ask for ideas, keep every worker busy.

    Exits with 3 when nothing can be searched. Example: `orchestrator.py observer`
    """
    from datetime import timezone

    from autohypothesis.engine.isolation import holds_foreign_code
    from autohypothesis.fleet.observer.observer import Observer
    from autohypothesis.fleet.observer.scheduling import SearchLimits
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.supervisor.supervisor import OBSERVER_FAILED
    from autohypothesis.proposers.configured import configured
    from autohypothesis.proposers.others import OtherFleets
    from autohypothesis.records.locks import hold

    with role("observer") as stop:
        project = open_project(context, repo)
        manifest = process_specs.require_fleet(project.layout)
        mix = manifest.mix if mix is None else mix
        proposers = configured(proposer or manifest.proposers, mix=mix, root=project.layout.root)
        allowed = project.task.isolation_level == "none" or holds_foreign_code(project.task)
        if manifest.hub and allowed:
            proposers.insert(0, OtherFleets(project.layout))
        end = until.replace(tzinfo=timezone.utc) if until is not None else None
        limits = SearchLimits(max_experiments=max_experiments, until=end)
        with hold(project.layout, "observer", doing="observing", timeout=ROLE_LOCK_S):
            made = Observer(
                project, proposers, limits=limits, say=print, sharing=bool(manifest.hub)
            )
            outcome = made.run(stop)
    if outcome == "failed":
        raise typer.Exit(OBSERVER_FAILED)


def worker(
    context: typer.Context,
    worker_id: Annotated[str, typer.Argument(help="Of the roster, for example cpu0.")],
    repo: Repo = None,
) -> None:
    """Be one worker: claim what was dispatched to it, run it on its device, report.

    Example: `orchestrator.py worker gpu0`
    """
    from autohypothesis.fleet.roster.roster import worker_named
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.worker.worker import FleetWorker

    with role(f"worker-{worker_id}") as stop:
        project = open_project(context, repo)
        manifest = process_specs.require_fleet(project.layout)
        entry = worker_named(manifest, worker_id)
        FleetWorker(project, entry, rights=_rights(project, manifest)).run(stop)


def _rights(project: Project, manifest: Manifest) -> ClaimService | None:
    """Return the service that tells what other fleets try; None where nothing is shared.

    A worker trains whatever is wrong with the way to the hub: the courier says what that is.
    """
    from autohypothesis.errors import HubError
    from autohypothesis.fleet.hub_sync.incoming import ClaimAnswer

    if not manifest.hub:
        return None
    from autohypothesis.hub.client import credentials
    from autohypothesis.hub.fleet.coordination import HubClaims

    try:
        found = credentials.of_server(project.repository.common_dir, manifest.hub)
    except HubError:
        return lambda request: ClaimAnswer("unknown", "there is no hub")
    return HubClaims(found, project.layout).claim


def tool_builder(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Option("--command", metavar="PROGRAM", help="Asked for what no catalogue has."),
    ] = None,
    repo: Repo = None,
) -> None:
    """Be the tool-builder: build, check and publish the helper scripts that were asked for.

    Example: `orchestrator.py tool-builder --command "my-model --write-script"`
    """
    from autohypothesis.fleet.toolbuilder.builder import ToolBuilder, command_words

    with role("tool-builder") as stop:
        ToolBuilder(layout_of(context, repo), command=command_words(command or "")).run(stop)


def least(one: float | None, other: float | None) -> float | None:
    """Return the stricter of two limits, either of which may not be set."""
    return min((limit for limit in (one, other) if limit is not None), default=None)


def in_hours(hours: float | None) -> datetime | None:
    from autohypothesis.schema import now

    return now() + timedelta(hours=hours) if hours is not None else None
