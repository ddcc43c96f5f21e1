"""`up`, `down`, `restore`, and the processes that `up` starts: each may be played alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import (
    HERE,
    CpuWorkers,
    Gpus,
    Json,
    Mix,
    Proposers,
    Repo,
    Tag,
    ToolCommand,
    app,
)
from autohypothesis.commands.common import (
    end_of,
    layout_of,
    open_project,
    opened,
    print_json,
    remark,
    role,
    say,
    tell_limits,
    telling_what_runs_lack,
)
from autohypothesis.errors import LaunchError, LeaseError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.hub_sync.incoming import ClaimService
    from autohypothesis.fleet.proposing import Proposer
    from autohypothesis.records.layout import Layout
    from autohypothesis.schema import Manifest

ROLE_LOCK_S = 10.0
"""The observer of a supervisor that was killed may still be leaving."""


@app.command("up")
def up(
    max_runs: Annotated[int | None, Option(min=1, help="Stop after that many more runs.")] = None,
    hours: Annotated[float | None, Option(min=0.001, help="Stop after that time.")] = None,
    detach: Annotated[bool, Option("--detach", help="Go on without this terminal.")] = False,
    proposer: Proposers = None,
    mix: Mix = None,
    tool_command: ToolCommand = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    is_ready: Annotated[bool, Option("--ready", hidden=True)] = False,
    repo: Repo = HERE,
) -> None:
    """Start the fleet: observer, workers and tool-builder; without limits until it is stopped.

    Where there is none yet it is made first, on all devices: `setup`, then `init-fleet`; each step
    is said in a line. Data that is gone is prepared again. The baseline is the first run of a new
    search. A program that proposes is asked once before the start, and what comes is shown.

    Ctrl-C stops it cleanly, twice at once. Example: `orchestrator.py up --hours 8 --detach`
    """
    from autohypothesis.commands.init import fleet_from_nothing, refuse_other_devices
    from autohypothesis.commands.setup import prepare_data
    from autohypothesis.engine.inputs import find_inputs, locate_inputs
    from autohypothesis.engine.verify import findings_in_keeps
    from autohypothesis.fleet.roster.roster import FleetOptions
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.toolbuilder.builder import command_words
    from autohypothesis.proposers.configured import of_search
    from autohypothesis.records.outputs import refuse_foreign_ledger

    repository, layout = opened(repo)
    process_specs.refuse_second_supervisor(layout)
    refuse_foreign_ledger(repository, layout)
    project = open_project(repo)
    manifest = process_specs.find_fleet(layout)  # with the paths of here, where it was moved
    # A wrong word is refused here rather than in the log of the process started with it.
    of_search(manifest, proposer, mix=mix, root=layout.root)
    command_words(tool_command or (manifest.tool_command if manifest else ""))
    if manifest is None:
        wanted = FleetOptions(
            gpus=gpus, cpu_workers=cpu_workers, proposers=tuple(proposer or ()), mix=mix,
            tool_command=tool_command,
        )  # fmt: skip
        manifest = fleet_from_nothing(project, wanted)
        project = open_project(repo)
    else:
        refuse_other_devices(manifest, gpus, cpu_workers)
        if isinstance(find_inputs(project.task, layout.root), LaunchError):
            prepare_data(project)
            # Raises where that is other data: no run could begin, every idea would wait in vain.
            locate_inputs(project.task, layout.root, layout.root, os.environ)
    with telling_what_runs_lack(project):
        missing = process_specs.workers_without_device(manifest)
    for name, reason in missing.items():
        remark(f"{name} does not train: {reason}")
    for finding in findings_in_keeps(repository, layout, manifest.tag):
        remark(f"needs you: {finding.line}; see `python orchestrator.py verify --all`")
    if not is_ready:
        tell_limits(project)
        ran = _introduce(
            project, manifest, of_search(manifest, proposer, mix=mix, root=layout.root)
        )
        if max_runs is not None and ran >= max_runs:
            remark(f"--max-runs {max_runs}: the baseline was that; call it again for more")
            return
        max_runs = None if max_runs is None else max_runs - ran
    if detach:
        options = [
            ("--max-runs", max_runs), ("--hours", hours), ("--mix", mix),
            ("--tool-command", tool_command), *(("--proposer", word) for word in proposer or []),
        ]  # fmt: skip
        given = [w for name, value in options if value is not None for w in (name, value)]
        _detach(layout, ["--ready", *given])
        return
    words = process_specs.observer_options(
        layout, manifest, more_runs=max_runs, until=end_of(project, hours),
        proposers=proposer or [], mix=mix,
    )  # fmt: skip
    bring_up(layout, manifest, words, missing, tool_command)


def _introduce(project: Project, manifest: Manifest, proposers: Sequence[Proposer]) -> int:
    """Ask the programs that are new to this search once, and show what comes.

    The baseline is decided first, where it is not; else it is left to the fleet, which repeats it
    on idle devices. Returns how many runs were counted.
    """
    from autohypothesis.commands.init import decide_baseline
    from autohypothesis.fleet.observer.introduction import introduce, strangers
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.history import LiveHistory

    queue, history = Queue(project.layout, manifest.tag), LiveHistory(project.layout, manifest.tag)
    history.refresh()
    before, new = history.counted(), strangers(proposers, queue)
    worker = next((worker for worker in manifest.workers if worker.device), None)
    if not history.has_reference():
        who = (
            f"here, before {new[0].name} is asked" if new and worker else "the fleet runs it first"
        )
        say(f"baseline: not decided yet: {who}")
        if not (new and worker):
            return 0
        try:
            decide_baseline(project, worker)
        except LeaseError as error:  # a training of before, or another repository
            remark(f"note: {error.problem}: the fleet decides the baseline, and asks then")
            return 0
    for proposer in new:
        came = introduce(project, queue, proposer, len(manifest.workers))
        ideas = "failed" if came.problem else f"{came.taken or 'no'} idea{'s' * (came.taken != 1)}"
        say(f"asked {proposer.name}: {ideas}, in {came.seconds:.1f} s")
        for line in came.lines:
            say(f"  {line}")
        others = [other.name for other in proposers if other is not proposer]
        if not came.taken:
            say(f"  its slots are left to {', then '.join(others)}; it is asked again")
    history.refresh()
    return history.counted() - before


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
    from autohypothesis.commands.progress import shown
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
    with role("supervisor") as stop, shown(layout, stop) as tick:
        supervisor.tick = tick
        outcome = supervisor.run(stop)
    if outcome == "failed":
        remark(supervisor.message, style="red")
        raise typer.Exit(1)
    remark(f"the fleet has {outcome}; see `python orchestrator.py digest`")


def _detach(layout: Layout, options: list[object]) -> None:
    from autohypothesis.fleet.supervisor import process_specs

    pid, is_at_work = process_specs.detach(layout, ["up", *map(str, options)])
    if is_at_work:
        say(f"the fleet is at work, pid {pid}")
    else:
        say(f"the fleet is still starting, pid {pid}: see {layout.role_log('supervisor')}")
    for command in ("monitor", "down"):
        say(f"  python orchestrator.py {command}")


@app.command("down")
def down(
    timeout: Annotated[float, Option(min=1, help="Seconds to wait for everybody.")] = 180.0,
    repo: Repo = HERE,
) -> None:
    """Stop the fleet: trainings are ended and recorded, hypotheses go back to the queue.

    Safe at any time; what was killed before is cleared as well. Example: `orchestrator.py down`
    """
    from autohypothesis.commands.sync import keep, refresh
    from autohypothesis.engine.collect import collect_ended
    from autohypothesis.fleet.supervisor import supervisor

    repository, layout = opened(repo)
    ended = supervisor.end_supervisor(layout, timeout, remark)
    rest = supervisor.end_all(layout, timeout, remark)
    if rest:  # no supervisor is left to make the last sync and snapshot
        collect_ended(repository, layout)
        refresh(layout)
        keep(repository, layout, everything=True)
    stopped = ", ".join([*ended, *rest])
    say(f"stopped: {stopped}" if stopped else f"nothing runs in {layout.root}")


@app.command("restore")
def restore(tag: Tag = None, repo: Repo = HERE, as_json: Json = False) -> None:
    """Bring a search back from its snapshot in git; what is there is not overwritten.

    For after a `git clean -xdf`, or in a clone. Example: `orchestrator.py restore --tag nov20`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.fleet.supervisor import snapshot
    from autohypothesis.records.locks import hold

    repository, layout = opened(repo)
    chosen = tag or snapshot.newest_snapshot_tag(repository)
    with hold(layout, "observer", doing=f"restoring {chosen}", timeout=1.0):
        restored = snapshot.restore(repository, layout, chosen)
    report, _ = refresh(layout)
    if as_json:
        print_json({**restored._asdict(), "experiments": report.rows})
    else:
        counts = f"{restored.files} files and {restored.decisions} decisions"
        say(f"{counts} of {chosen} are back; {report.rows} experiments in {layout.ledger}")


# ── its processes ───────────────────────────────────────────────────────────────────────────


@app.command("observer")
def observer(
    max_experiments: Annotated[
        int | None, Option(min=0, help="Of the whole search, then it is finished.")
    ] = None,
    until: Annotated[
        datetime | None,
        Option(
            metavar="TIME",
            formats=["%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ"],
            help="UTC; nothing is begun after that.",
        ),
    ] = None,
    proposer: Proposers = None,
    mix: Mix = None,
    repo: Repo = HERE,
) -> None:
    """Be the observer: decide what ended, ask for ideas, keep every worker busy.

    Exits with 3 when nothing can be searched. Example: `orchestrator.py observer`
    """
    from datetime import timezone

    from autohypothesis.engine.program import sandbox_kind
    from autohypothesis.fleet.observer.observer import Observer
    from autohypothesis.fleet.observer.scheduling import SearchLimits
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.supervisor.supervisor import OBSERVER_FAILED
    from autohypothesis.proposers.configured import OtherFleets, of_search
    from autohypothesis.records.locks import hold

    with role("observer") as stop:
        project = open_project(repo)
        manifest = process_specs.require_fleet(project.layout)
        proposers = of_search(manifest, proposer, mix=mix, root=project.layout.root)
        allowed = project.task.isolation_level == "none" or sandbox_kind(project.task) != "none"
        if manifest.hub and allowed:
            proposers.insert(0, OtherFleets(project.layout))
        end = until.replace(tzinfo=timezone.utc) if until is not None else None
        limits = SearchLimits(max_experiments=max_experiments, until=end)
        with hold(project.layout, "observer", doing="observing", timeout=ROLE_LOCK_S):
            process = Observer(
                project, proposers, limits=limits, say=print, sharing=bool(manifest.hub)
            )
            outcome = process.run(stop)
    if outcome == "failed":
        raise typer.Exit(OBSERVER_FAILED)


@app.command("worker")
def worker(
    worker_id: Annotated[str, Argument(help="Of the roster, for example cpu0.")],
    repo: Repo = HERE,
) -> None:
    """Be one worker: claim what was dispatched to it, run it on its device, report.

    Example: `orchestrator.py worker gpu0`
    """
    from autohypothesis.fleet.roster.roster import worker_named
    from autohypothesis.fleet.supervisor import process_specs
    from autohypothesis.fleet.worker.worker import FleetWorker

    with role(f"worker-{worker_id}") as stop:
        project = open_project(repo)
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
        own = credentials.of_server(project.repository.common_dir, manifest.hub)
    except HubError:
        return lambda request: ClaimAnswer("unknown", "there is no hub")
    return HubClaims(own, project.layout).claim


@app.command("tool-builder")
def tool_builder(
    command: Annotated[
        str | None, Option(metavar="PROGRAM", help="Asked for what no catalogue has.")
    ] = None,
    repo: Repo = HERE,
) -> None:
    """Be the tool-builder: build, check and publish the helper scripts that were asked for.

    Example: `orchestrator.py tool-builder --command "my-model --write-script"`
    """
    from autohypothesis.fleet.toolbuilder.builder import ToolBuilder, command_words

    with role("tool-builder") as stop:
        ToolBuilder(layout_of(repo), command=command_words(command or "")).run(stop)
