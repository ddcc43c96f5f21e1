"""`init-fleet`, `bootstrap`, `prune`: a fleet is made, made from nothing, and cleared away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import (
    open_project,
    out,
    print_json,
    remark,
    say,
    telling_what_runs_lack,
)
from autohypothesis.errors import FleetError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.roster import Fleet


class NamesWhatLacksItsValue(TyperCommand):
    """Refuses an option that is followed by another one: it lacks its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: one for one in self.params for name in (*one.opts, *one.secondary_opts)
                   if name.startswith("-")}  # fmt: skip
        for word, following in pairwise([*args, None]):
            takes = word in options and not getattr(options[word], "is_flag", False)
            if takes and (following is None or following.split("=")[0] in options):
                said = f"{following} follows it" if following else "nothing follows it"
                raise UsageError(
                    f"{word} lacks its value: {said}",
                    hint=f"run `python orchestrator.py {ctx.info_name} --help`",
                )
        return list(super().parse_args(ctx, args))


NewTag = Annotated[
    str | None,
    typer.Option("--tag", help="The search; default: the active one, else today's date."),
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="LIST", help="Indices or UUIDs, 0,1 for two; default: all."),
]
CpuWorkers = Annotated[
    int | None, typer.Option("--cpu-workers", metavar="N", help="Workers on a core each.")
]
Trees = Annotated[
    bool,
    typer.Option("--create-worktrees/--no-create-worktrees", help="Now, or when workers start."),
]
Start = Annotated[
    str | None,
    typer.Option("--from", metavar="REV", help="Where a new tag begins: HEAD, best or a commit."),
]
ProposerWords = Annotated[
    list[str] | None,
    typer.Option(
        "--proposer",
        help="search, command:PROGRAM, inbox or a package's own; repeatable, first first.",
    ),
]
Mix = Annotated[
    float | None,
    typer.Option(
        "--mix",
        help="Share of ideas that turn several constants at once, 0 to 1; default: once single"
        " ones stall.",
    ),
]


ToolCommand = Annotated[
    str | None,
    typer.Option(
        "--tool-command", metavar="PROGRAM", help="Asked for helper scripts that no catalogue has."
    ),
]


HubUrl = Annotated[
    str | None,
    typer.Option(
        "--hub",
        metavar="URL",
        help="Share results, claims and ideas with other fleets there; `none`: no longer.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("init-fleet", cls=NamesWhatLacksItsValue)(init_fleet)
    app.command("bootstrap", cls=NamesWhatLacksItsValue)(bootstrap)
    app.command("prune", cls=NamesWhatLacksItsValue)(prune)


def init_fleet(
    context: typer.Context,
    tag: NewTag = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    create_worktrees: Trees = True,
    start: Start = None,
    proposer: ProposerWords = None,
    mix: Mix = None,
    tool_command: ToolCommand = None,
    hub: HubUrl = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Make a fleet, or mend it: a worker, a worktree, a branch and a prompt for each device.

    Run again, it makes what is missing. Examples: `orchestrator.py init-fleet --gpus 0,1`,
    `orchestrator.py init-fleet --hub https://hub.example.org`
    """
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.fleet.roster import roster

    project = open_project(context, repo, tag=tag)
    server, notes = _hub(project, hub) if hub is not None else (None, [])
    words = tuple(proposer or ())
    wanted = roster.FleetOptions(
        tag, gpus, cpu_workers, create_worktrees, start, words, mix, tool_command, server
    )
    with whole_or_nothing(project.repository, project.layout), telling_what_runs_lack(project):
        fleet = roster.init_fleet(project, wanted)
    fleet.notes.extend(notes)
    _show(fleet, as_json)


def _hub(project: Project, url: str) -> tuple[str, list[str]]:
    """Join a hub; return its address, and notes.

    A hub that does not answer is no reason to wait: the courier agrees with it later.

    Raises:
        HubError: it searches something else, or refuses this agent.
    """
    from autohypothesis.engine.isolation import holds_foreign_code
    from autohypothesis.engine.project import shared_with

    if url == "none":
        alone = project.task.model_copy(update={"network": None})
        if not (shared_with(project.layout) and alone.has_network):
            return "", []
        return "", [
            "what was adopted from others stays, and has the network from now on, unless the task"
            " says `network: false`"
        ]
    from autohypothesis.hub.client import credentials
    from autohypothesis.hub.client.http import HubUnavailableError, checked_server
    from autohypothesis.hub.client.hub import HubClient
    from autohypothesis.hub.fleet.coordination import tell_task

    server, common, notes = checked_server(url), project.repository.common_dir, list[str]()
    if credentials.own(common) is None:
        joined = credentials.join(server, None, None, common, replace=False)
        notes = [f"joined {server} as {joined.credentials.agent}", *joined.notes]
    found = credentials.of_server(common, server)
    try:
        tell_task(HubClient.of(found), project)
    except HubUnavailableError as error:
        notes.append(f"{error.problem}; what is found waits in the outbox until it answers")
    if project.task.isolation_level != "none" and not holds_foreign_code(project.task):
        notes.append(
            "no sandbox works here, so what others wrote is not tried by itself: it would run with"
            " your rights (`isolation: none` in the task allows it; `doctor` says what is missing)"
        )
    return server, notes


def _show(fleet: Fleet, as_json: bool) -> None:
    manifest = fleet.manifest
    if as_json:
        document = manifest.model_dump(mode="json")
        print_json({**document, "notes": fleet.notes, "worktrees": fleet.done})
        return
    say = out().print
    count = len(manifest.workers)
    say(f"fleet {manifest.tag}: {count} worker{'s' * (count != 1)}", style="bold", markup=False)
    for one in manifest.workers:
        done = fleet.done.get(one.worker_id)
        state = "" if done is None else f", worktree {done or 'as it was'}"
        device = one.device or f"GPU {one.gpu_id}, no device yet"
        say(f"  {one.worker_id}  {device}  {one.branch}{state}", soft_wrap=True, markup=False)
    if manifest.hub:
        say(f"  shares with {manifest.hub}", soft_wrap=True, markup=False)
    for note in fleet.notes:
        remark(f"note: {note}")
    say("start it: python orchestrator.py up", markup=False)


# ── bootstrap ───────────────────────────────────────────────────────────────────────────────


def bootstrap(
    context: typer.Context,
    tag: NewTag = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    create_worktrees: Trees = True,
    warm_start: Annotated[
        Path | None,
        typer.Option("--warm-start", metavar="TSV", help="results.tsv of an earlier search."),
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """From a clone to a fleet: check the machine, prepare the data, run the baseline, init-fleet.

    What is done already is not done again. Example: `orchestrator.py bootstrap --gpus 0,1`
    """
    from autohypothesis.fleet.knowledge import warm_start as warm
    from autohypothesis.fleet.roster import roster
    from autohypothesis.fleet.roster.devices import choose

    wanted = roster.FleetOptions(tag, gpus, cpu_workers, create_worktrees)
    project = open_project(context, repo, tag=tag)
    table = warm.read(warm_start) if warm_start is not None else None
    workers, _ = choose(gpus, cpu_workers)
    _check_machine(project)
    _prepare(project)
    project = roster.begin_tag(project, wanted)
    device = next((one.device for one in workers if one.device), "")
    if device:
        _baseline(project, device)
    else:
        remark("note: no device to run the baseline on; the fleet runs it first")
    if table is not None:
        new = warm.record(project.layout, table)
        remark(f"warm start: {new} new findings from {table.path}")
        for problem in table.problems:
            remark(f"note: {table.path}: {problem}")
    _show(roster.init_fleet(project, wanted), as_json)


def _check_machine(project: Project) -> None:
    """Make the doctor's checks, without data, which is made in the next step."""
    from autohypothesis.commands.doctor import CHECKS, require

    checks = [check for ask in CHECKS for check in ask(project.layout.root)]
    require([check for check in checks if check.name != "data"])


def _prepare(project: Project) -> None:
    """Run prepare.py where an input of the task cannot be located."""
    from autohypothesis.engine.setup import find_inputs, makes_inputs, run_prepare
    from autohypothesis.errors import LaunchError

    found = find_inputs(project.task, project.layout.root)
    if isinstance(found, LaunchError):
        if not makes_inputs(project.task):
            raise found
        remark(f"{found.problem}: preparing it")
        run_prepare(project.layout.root)


def _baseline(project: Project, device: str) -> None:
    """Run the reference once on a device of the fleet, and decide it."""
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.fleet.roster.roster import run_baseline

    if (ran := run_baseline(project, device, ProgressWatch("baseline"))) is None:
        return
    finished, decisions = ran
    for decision in decisions:
        remark(f"baseline: {decision.decision_status}: {decision.reason}")
    if (result := finished.result).failure_kind is not None:
        raise FleetError(
            f"the baseline failed: {result.failure_kind}: {result.failure_detail}",
            hint=f"see python orchestrator.py show {finished.experiment_id}",
        )


# ── prune ───────────────────────────────────────────────────────────────────────────────────


def prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="Of this search only.")] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Remove worktrees and branches of workers that no active fleet has; changes are kept first.

    Kept changes are commits under refs/fleet/salvage/. Example: `orchestrator.py prune --dry-run`
    """
    from dataclasses import asdict

    from autohypothesis.fleet.roster import worktrees

    steps: Sequence[worktrees.PruneStep] = worktrees.prune(
        open_project(context, repo), dry_run=dry_run, tag=tag
    )
    if as_json:
        print_json({"dry_run": dry_run, "steps": [asdict(step) for step in steps]})
        return
    for step in steps:
        say(f"{step.done}: {step.what}" + (f" ({step.detail})" if step.detail else ""))
    if not steps:
        say("nothing to remove")
