"""The one module that knows a path. Everything else asks a `Layout`.

A `Layout` is a value around the repository's root; asking it for a path touches no disk.
`research/README.md` shows the same tree to people, and a test holds the two against each other.
"""

from __future__ import annotations

import re
from pathlib import Path

from autohypothesis.errors import UsageError

ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def checked_id(name: str) -> str:
    """`name`, when it is usable as an id and hence as a file name: `[a-z0-9-]{1,63}`.

    Raises:
        UsageError: for anything else, so that no id can leave its folder.
    """
    if not ID.fullmatch(name):
        raise UsageError(
            f"id {name!r} is not 1 to 63 characters of a-z, 0-9 and inner '-'",
            hint="run `python orchestrator.py runs` for the ids there are",
        )
    return name


class PathSet:
    """The paths below a folder. No dataclass: to import those costs the start of a shim 8 ms."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.base == self.base

    def __hash__(self) -> int:
        return hash(self.base)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.base)!r})"


class Place:
    """The attribute of a `PathSet` that is the path `name` below its folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: PathSet, kind: type | None = None) -> Path:
        return owner.base / self.name


class RunPaths(PathSet):
    """The files of one bundle, `research/runs/<experiment_id>/`."""

    @property
    def folder(self) -> Path:
        return self.base

    config = Place("config.json")
    metadata = Place("metadata.json")
    result = Place("result.json")
    exit = Place("exit.json")
    attestation = Place("attestation.json")
    """What the collector found, signed; see `verify`."""
    events = Place("events.jsonl")
    out = Place("out")
    """The one folder of a bundle that the run itself may write to."""
    clock = Place("clock.jsonl")
    """The record of the budget's clock, taken from `out` when the run has ended."""
    clock_in_out = Place("out/clock.jsonl")
    log = Place("run.log")
    score_log = Place("score.log")
    diff = Place("change.diff")
    weights = Place("weights.pt")
    """The weights; a link to those in `out` until the run is collected."""
    weights_in_out = Place("out/weights.pt")
    launch = Place("launch.json")
    shim = Place("shim.json")
    shim_log = Place("shim.log")
    """The shim's own words, should it fail."""
    reserve = Place(".reserve")
    """Blocks of the disk that are given up for exit.json when it is full."""
    run_spec = Place("run-spec.json")
    local = Place("local.json")
    """Facts of a run for this machine only: its checkout, and the hashes from before."""
    scoring_home = Place("scoring")
    """HOME of what scores a run: nothing of the training's is in it."""
    home = Place("home")
    """HOME of a training whose inputs are all named in its task."""


class Layout(PathSet):
    """Every path below one repository's root."""

    @property
    def root(self) -> Path:
        return self.base

    ledger = Place("experiments.jsonl")
    results_tsv = Place("results.tsv")
    progress_png = Place("progress.png")
    task_results = Place("work/results.jsonl")
    """A line for each iteration of a task, see docs/tasks.md."""
    worktrees = Place("worktrees")

    def worktree(self, name: str) -> Path:
        return self.worktrees / checked_id(name)

    exports = Place("worktrees/.runs")
    """Folders of the checkouts of runs, one for each worker, without a repository."""

    def export(self, name: str) -> Path:
        return self.exports / checked_id(name)

    worktree_include = Place(".worktreeinclude")
    """Patterns of untracked files that runs need, as several tools read them."""
    program = Place("program.md")
    """The human's charter: goal, directions, constraints."""
    default_task = Place("tasks/pretrain/task.yaml")
    root_task = Place("task.yaml")

    @property
    def git_exclude_patterns(self) -> tuple[str, ...]:
        """Patterns for .git/info/exclude: what we make in a repository is not the user's."""
        made = (self.ledger, self.results_tsv, self.progress_png)
        return (
            *(f"/{path.name}" for path in made),
            *(f"/.{path.name}.*.tmp" for path in made),  # while it is written
            "/worktrees/",
            "/work/results.jsonl",
            "/research/*",
            "!/research/README.md",
        )

    @property
    def generated_folders(self) -> tuple[str, ...]:
        """Names in the root below which everything is ours."""
        return (self.worktrees.name, self.research.name)

    @property
    def made_files(self) -> tuple[str, ...]:
        """Files outside of those folders, relative to the root."""
        made = (self.ledger, self.results_tsv, self.progress_png, self.task_results)
        return tuple(str(path.relative_to(self.root)) for path in made)

    research = Place("research")
    decisions = Place("research/decisions.jsonl")
    brief = Place("research/research_brief.json")
    conflicts = Place("research/conflicts")
    """Edits of derived files, which have no effect, each beside its `.reason`."""

    def written_copy(self, path: Path) -> Path:
        """Return the path of the copy of what was written last to a derived file."""
        return path.with_name(f".{path.name}")

    def replaced_version(self, path: Path) -> Path:
        """The version of a derived file that was replaced last."""
        return path.with_name(f".{path.stem}.before{path.suffix}")

    checkout_lacks = Place("research/.checkout_lacks.json")
    """The last message to people about files that runs do not have."""
    knowledge_base = Place("research/knowledge_base.json")
    search_model = Place("research/search_model.md")
    steering = Place("research/steering.md")
    inbox = Place("research/inbox")
    inbox_refused = Place("research/inbox/refused")
    """Files of the inbox that were not taken, each beside a `.reason`."""

    fleet = Place("research/fleet")
    manifest = Place("research/fleet/manifest.json")
    observer_prompt = Place("research/fleet/observer-agent.md")
    tool_builder_prompt = Place("research/fleet/tool-builder.md")

    def worker_prompt(self, worker: str) -> Path:
        return self.fleet / "worker-prompts" / f"worker-{checked_id(worker)}.md"

    def protocol(self, role: str) -> Path:
        """Return the path of the page of a role: `observer`, `tool-builder` or `gpu-worker`."""
        return self.fleet / "protocols" / f"{checked_id(role)}.md"

    def assignment(self, role: str) -> Path:
        """The current task of the observer or the tool-builder."""
        return self.fleet / "assignments" / f"{checked_id(role)}.md"

    def worker_assignment(self, worker: str) -> Path:
        return self.fleet / "assignments" / "workers" / f"{checked_id(worker)}.md"

    def hypotheses(self, state: str, worker: str | None = None) -> Path:
        """The folder of one state; `dispatched` and `running` have one folder per worker."""
        folder = self.research / "hypotheses" / checked_id(state)
        return folder / checked_id(worker) if worker is not None else folder

    def hypothesis(self, hypothesis_id: str, state: str, worker: str | None = None) -> Path:
        return self.hypotheses(state, worker) / f"{checked_id(hypothesis_id)}.json"

    plans = Place("research/plans")

    def plan(self, experiment_id: str) -> Path:
        return self.plans / f"{checked_id(experiment_id)}.json"

    def plan_page(self, experiment_id: str) -> Path:
        return self.plans / f"{checked_id(experiment_id)}.md"

    runs = Place("research/runs")

    def run(self, experiment_id: str) -> RunPaths:
        return RunPaths(self.runs / checked_id(experiment_id))

    def heartbeat(self, worker: str) -> Path:
        return self.live / "workers" / f"{checked_id(worker)}.json"

    live = Place("research/live")
    """Status of running processes: of no use once they have ended."""

    def role(self, name: str) -> Path:
        """The status of the observer, the tool-builder or the supervisor."""
        return self.live / f"{checked_id(name)}.json"

    def role_log(self, name: str) -> Path:
        """The output of a process of the fleet."""
        return self.live / "logs" / f"{checked_id(name)}.log"

    benched = Place("research/live/benched.json")
    """Devices that are left alone for a while, and why."""
    live_summary = Place("research/live/summary.json")
    aggregate = Place("research/aggregate")
    aggregate_experiments = Place("research/aggregate/experiments.json")
    aggregate_parquet = Place("research/aggregate/experiments.parquet")
    aggregate_results_tsv = Place("research/aggregate/results.tsv")
    """Our lines of results.tsv alone, where the name in the root is taken by the user."""
    results_before = Place("research/aggregate/results-before.tsv")
    """The lines of the results.tsv that was there before our first."""
    aggregate_progress_png = Place("research/aggregate/progress.png")
    """The picture, where progress.png in the root is the user's."""
    leaderboard = Place("research/aggregate/leaderboard.json")
    fleet_brief = Place("research/aggregate/fleet_brief.md")
    fold_index = Place("research/aggregate/.fold-index")
    problems = Place("research/aggregate/problems.json")
    """Files that the last fold could not use, each with its reason."""
    registry = Place("research/tools/registry.json")
    published_tools = Place("research/tools/published")

    def published_tool(self, tool_id: str) -> Path:
        return self.published_tools / f"{checked_id(tool_id)}.py"

    tool_calls = Place("research/tools/calls.jsonl")
    outbox = Place("research/outbox")
    """Messages for the hub: a folder each for pending, sent and refused."""

    def outbox_state(self, state: str) -> Path:
        return self.outbox / checked_id(state)

    def outbox_entry(self, state: str, kind: str, name: str) -> Path:
        return self.outbox_state(state) / f"{checked_id(kind)}.{checked_id(name)}.json"

    hub_feed = Place("research/live/hub.json")
    """The last answer of the hub."""
    locks = Place("research/locks")

    def lock(self, name: str) -> Path:
        return self.locks / f"{checked_id(name)}.lock"
