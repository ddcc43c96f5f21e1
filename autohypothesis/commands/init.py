"""`init-fleet`, `bootstrap`, `prune`: a fleet is made, made from nothing, and cleared away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from autohypothesis.commands.app import (
    HERE,
    Command,
    CpuWorkers,
    Gpus,
    Json,
    Mix,
    NewTag,
    Proposers,
    Repo,
    ToolCommand,
    app,
)
from autohypothesis.commands.common import (
    open_project,
    print_json,
    remark,
    say,
    telling_what_runs_lack,
)
from autohypothesis.errors import AutohypothesisError, FleetError, LaunchError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.roster import Fleet, FleetOptions
    from autohypothesis.schema import Manifest, Worker


class NamesWhatLacksItsValue(Command):
    """Refuses an option that is followed by another one: it lacks its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {
            name: option
            for option in self.params
            for name in (*option.opts, *option.secondary_opts)
            if name.startswith("-")
        }
        for word, following in pairwise([*args, None]):
            takes = word in options and not getattr(options[word], "is_flag", False)
            if takes and (following is None or following.split("=")[0] in options):
                raise UsageError(
                    f"{word} lacks its value: {following or 'nothing'} follows it",
                    hint=f"run `python orchestrator.py {ctx.info_name} --help`",
                )
        return list(super().parse_args(ctx, args))


Trees = Annotated[
    bool, Option("--create-worktrees/--no-create-worktrees", help="Now, or when workers start.")
]


@app.command("init-fleet", cls=NamesWhatLacksItsValue)
def init_fleet(
    tag: NewTag = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    create_worktrees: Trees = True,
    start: Annotated[
        str | None,
        Option("--from", metavar="REV", help="Where a new tag begins: HEAD, best or a commit."),
    ] = None,
    proposer: Proposers = None,
    mix: Mix = None,
    tool_command: ToolCommand = None,
    hub: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="Share results, claims and ideas with other fleets there; `none`: no longer.",
        ),
    ] = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Make a fleet, or mend it: a worker, a worktree, a branch and a prompt for each device.

    Run again, it makes what is missing. Examples: `orchestrator.py init-fleet --gpus 0,1`,
    `orchestrator.py init-fleet --hub https://hub.example.org`
    """
    from autohypothesis.fleet.roster import roster
    from autohypothesis.proposers.configured import configured

    project = open_project(repo, tag=tag)
    words = tuple(proposer or ())
    configured(words, mix=mix, root=project.layout.root)  # a wrong word is refused before all else
    server, notes = _server(project, hub) if hub is not None else (None, [])
    wanted = roster.FleetOptions(
        tag, gpus, cpu_workers, create_worktrees, start, words, mix, tool_command, server
    )
    fleet = _made(project, wanted)
    fleet.notes.extend(notes)
    _show(fleet, as_json)


def _made(project: Project, wanted: FleetOptions) -> Fleet:
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.fleet.roster import roster

    with whole_or_nothing(project.repository, project.layout), telling_what_runs_lack(project):
        fleet = roster.init_fleet(project, wanted)
        if wanted.hub:  # last, so that nothing is joined where the fleet cannot be made
            fleet.notes.extend(_join(replace(project, tag=fleet.manifest.tag), wanted.hub))
        return fleet


def fleet_from_nothing(project: Project, wanted: FleetOptions) -> Manifest:
    """Do what `setup` and `init-fleet` do, and say each step in a line.

    Where no device is named, the workers are of the kind that the data is prepared for.
    """
    wanted = _made_ready(project, wanted, say)
    fleet = _made(project, wanted)
    _show(fleet, as_json=False, is_started=True)
    return fleet.manifest


def refuse_other_devices(manifest: Manifest, gpus: str | None, cpu_workers: int | None) -> None:
    """Refuse devices that are not those of a fleet: it is never changed on the way.

    Raises:
        UsageError: naming both.
    """
    from autohypothesis.fleet.roster.devices import choose

    if gpus is None and cpu_workers is None:
        return
    named = {worker.worker_id: worker.device for worker in choose(gpus, cpu_workers)[0]}
    has = {worker.worker_id: worker.device for worker in manifest.workers}
    if named != has:
        words = [f"--gpus {gpus}"] if gpus is not None else []
        words += [f"--cpu-workers {cpu_workers}"] if cpu_workers is not None else []
        options = " ".join(words)
        raise UsageError(
            f"fleet {manifest.tag} has {', '.join(has)}; {options} would make it"
            f" {', '.join(named)}",
            hint=f"change it: python orchestrator.py init-fleet {options}",
        )


def _made_ready(
    project: Project, wanted: FleetOptions, tell: Callable[[str], None]
) -> FleetOptions:
    """Check the machine and prepare the data, as `setup` does; return the options to go on with.

    Raises:
        FleetError: this machine lacks something.
        LaunchError: the data cannot be prepared.
    """
    from autohypothesis.commands.doctor import every_check, require
    from autohypothesis.commands.setup import prepare_data
    from autohypothesis.engine.devices import cpu_slots
    from autohypothesis.engine.inputs import find_inputs, pinned_inputs

    root, task = project.layout.root, project.task
    checks = [check for check in every_check(root) if check.name not in ("data", "charter")]
    # What runs lack is told when the fleet is made.
    require([check for check in checks if (check.name, check.verdict) != ("checkout", "warning")])
    tell("environment: in order")
    inputs = find_inputs(task, root)
    if isinstance(inputs, LaunchError) or not pinned_inputs(root):
        prepare_data(project, tell=tell)
        inputs = find_inputs(task, root)
    kind = task.run.device if isinstance(inputs, LaunchError) else task.run.device or inputs.device
    if wanted.gpus is None and wanted.cpu_workers is None and kind == "cpu":
        return replace(wanted, cpu_workers=len(cpu_slots()))
    return wanted


def _server(project: Project, url: str) -> tuple[str, list[str]]:
    """Return the address of a hub, empty for `none`, and notes.

    Raises:
        HubError: another one is joined here.
    """
    from autohypothesis.engine.program import sandbox_kind
    from autohypothesis.engine.project import hub_url

    if url == "none":
        alone = project.task.model_copy(update={"network": None})
        if not (hub_url(project.layout) and alone.has_network):
            return "", []
        return "", [
            "what was adopted from others stays, and has the network from now on, unless the task"
            " says `network: false`"
        ]
    from autohypothesis.hub.client import credentials
    from autohypothesis.hub.client.http import checked_server

    server, common = checked_server(url), project.repository.common_dir
    if credentials.own(common) is not None:
        credentials.of_server(common, server)
    if project.task.isolation_level == "none" or sandbox_kind(project.task) != "none":
        return server, []
    return server, [
        "no sandbox works here, so what others wrote is not tried by itself: it would run with"
        " your rights (`isolation: none` in the task allows it; `doctor` says what is missing)"
    ]


def _join(project: Project, server: str) -> list[str]:
    """Join a hub, or leave nothing joined; return notes.

    A hub that does not answer is no reason to wait: the courier agrees with it later.

    Raises:
        HubError: it searches something else, or refuses this agent.
    """
    from autohypothesis.hub.client import credentials
    from autohypothesis.hub.client.http import HubUnavailableError
    from autohypothesis.hub.fleet.coordination import tell_task

    common, notes = project.repository.common_dir, list[str]()
    is_new = credentials.own(common) is None
    if is_new:
        joined = credentials.join(server, None, None, common, replace=False)
        notes = [f"joined {server} as {joined.credentials.agent}", *joined.notes]
    try:
        tell_task(credentials.of_server(common, server).client(), project)
    except HubUnavailableError as error:
        notes.append(f"{error.problem}; what is found waits in the outbox until it answers")
    except AutohypothesisError:
        if is_new:
            credentials.take_back(common)
        raise
    return notes


def _show(fleet: Fleet, as_json: bool, *, is_started: bool = False) -> None:
    manifest = fleet.manifest
    if as_json:
        document = manifest.model_dump(mode="json")
        print_json({**document, "notes": fleet.notes, "worktrees": fleet.done})
        return
    count = len(manifest.workers)
    say(f"fleet {manifest.tag}: {count} worker{'s' * (count != 1)}", style="bold")
    for worker in manifest.workers:
        done = fleet.done.get(worker.worker_id)
        state = "" if done is None else f", worktree {done or 'as it was'}"
        device = worker.device or f"GPU {worker.gpu_id}, no device yet"
        say(f"  {worker.worker_id}  {device}  {worker.branch}{state}")
    if manifest.hub:
        say(f"  shares with {manifest.hub}")
    for note in fleet.notes:
        remark(f"note: {note}")
    if not is_started:
        say("start it: python orchestrator.py up")


@app.command("bootstrap", cls=NamesWhatLacksItsValue)
def bootstrap(
    tag: NewTag = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    create_worktrees: Trees = True,
    warm_start: Annotated[
        Path | None, Option(metavar="TSV", help="results.tsv of an earlier search.")
    ] = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Make a fleet from a clone without starting it: machine, data, baseline, and `init-fleet`.

    What is done already is not done again. Example: `orchestrator.py bootstrap --gpus 0,1`
    """
    from autohypothesis.fleet.knowledge import knowledge_base as warm
    from autohypothesis.fleet.roster import roster
    from autohypothesis.fleet.roster.devices import choose

    wanted = roster.FleetOptions(tag, gpus, cpu_workers, create_worktrees)
    project = open_project(repo, tag=tag)
    table = warm.read(warm_start) if warm_start is not None else None
    wanted = _made_ready(project, wanted, remark)
    workers, _ = choose(wanted.gpus, wanted.cpu_workers)
    project = roster.begin_tag(project, wanted)
    worker = next((worker for worker in workers if worker.device), None)
    if worker is not None:
        decide_baseline(project, worker)
    else:
        remark("note: no device to run the baseline on; the fleet runs it first")
    if table is not None:
        new = warm.record(project.layout, table)
        remark(f"warm start: {new} new findings from {table.path}")
        for problem in table.problems:
            remark(f"note: {table.path}: {problem}")
    _show(roster.init_fleet(project, wanted), as_json)


def decide_baseline(project: Project, worker: Worker) -> None:
    """Run the reference once on the device of a worker, and decide it."""
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.fleet.roster.roster import run_baseline

    if (ran := run_baseline(project, worker, ProgressWatch("baseline"))) is None:
        return
    finished, decisions = ran
    for decision in decisions:
        remark(f"baseline: {decision.decision_status}: {decision.reason}")
    if (result := finished.result).failure_kind is not None:
        raise FleetError(
            f"the baseline failed: {result.failure_kind}: {result.failure_detail}",
            hint=f"see python orchestrator.py show {finished.experiment_id}",
        )


@app.command("prune", cls=NamesWhatLacksItsValue)
def prune(
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would go.")] = False,
    tag: Annotated[str | None, Option(help="Of this search only.")] = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Remove worktrees and branches of workers that no active fleet has; changes are kept first.

    Kept changes are commits under refs/fleet/salvage/. Example: `orchestrator.py prune --dry-run`
    """
    from autohypothesis.fleet.roster import worktrees

    steps = worktrees.prune(open_project(repo), dry_run=dry_run, tag=tag)
    if as_json:
        print_json({"dry_run": dry_run, "steps": [asdict(step) for step in steps]})
    elif not steps:
        say("nothing to remove")
    for step in () if as_json else steps:
        say(f"{step.done}: {step.what}" + (f" ({step.detail})" if step.detail else ""))
