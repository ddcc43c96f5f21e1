"""The one module that knows a path. Everything else asks a `Layout`.

A `Layout` is a value around the repository's root; asking it for a path touches no disk.
`research/README.md` shows the same tree to people, and a test holds the two against each other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

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


class RunPaths(NamedTuple):
    """The files of one bundle, `research/runs/<experiment_id>/`."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata.json"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def exit(self) -> Path:
        return self.folder / "exit.json"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def out(self) -> Path:
        """The one folder of a bundle that the run itself may write to."""
        return self.folder / "out"

    @property
    def clock(self) -> Path:
        """What the budget's clock wrote, taken from `out` when the run has ended."""
        return self.folder / "clock.jsonl"

    @property
    def clock_in_out(self) -> Path:
        return self.out / "clock.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "run.log"

    @property
    def score_log(self) -> Path:
        return self.folder / "score.log"

    @property
    def diff(self) -> Path:
        return self.folder / "change.diff"

    @property
    def weights(self) -> Path:
        """The weights; a link to those in `out` until the run is collected."""
        return self.folder / "weights.pt"

    @property
    def weights_in_out(self) -> Path:
        return self.out / "weights.pt"

    @property
    def launch(self) -> Path:
        return self.folder / "launch.json"

    @property
    def shim(self) -> Path:
        return self.folder / "shim.json"

    @property
    def shim_log(self) -> Path:
        """The shim's own words, should it fail."""
        return self.folder / "shim.log"

    @property
    def reserve(self) -> Path:
        """Blocks of the disk that are given up for exit.json when it is full."""
        return self.folder / ".reserve"

    @property
    def run_spec(self) -> Path:
        return self.folder / "run-spec.json"

    @property
    def local(self) -> Path:
        """What only this machine knows of a run: its checkout, and what that held before."""
        return self.folder / "local.json"

    @property
    def scoring_home(self) -> Path:
        """HOME of what scores a run: nothing of the training's is in it."""
        return self.folder / "scoring"

    @property
    def home(self) -> Path:
        """HOME of a training whose inputs are all named in its task."""
        return self.folder / "home"


class Layout(NamedTuple):
    """Every path below one repository's root."""

    root: Path

    # ── the root ──────────────────────────────────────────────────────────────────────────

    @property
    def ledger(self) -> Path:
        return self.root / "experiments.jsonl"

    @property
    def results_tsv(self) -> Path:
        return self.root / "results.tsv"

    @property
    def progress_png(self) -> Path:
        return self.root / "progress.png"

    @property
    def task_results(self) -> Path:
        """A line for each iteration of a task, see docs/tasks.md."""
        return self.root / "work" / "results.jsonl"

    @property
    def worktrees(self) -> Path:
        return self.root / "worktrees"

    def worktree(self, name: str) -> Path:
        return self.worktrees / checked_id(name)

    @property
    def exports(self) -> Path:
        """Where runs have their files: a folder each, without a repository."""
        return self.worktrees / ".runs"

    def export(self, name: str) -> Path:
        return self.exports / checked_id(name)

    @property
    def worktree_include(self) -> Path:
        """Patterns of untracked files that runs need, as several tools read them."""
        return self.root / ".worktreeinclude"

    @property
    def program(self) -> Path:
        """The human's charter: goal, directions, constraints."""
        return self.root / "program.md"

    @property
    def default_task(self) -> Path:
        return self.root / "tasks" / "pretrain" / "task.yaml"

    @property
    def root_task(self) -> Path:
        return self.root / "task.yaml"

    @property
    def made_on_use(self) -> tuple[str, ...]:
        """Patterns for .git/info/exclude: what we make in a repository is not the user's."""
        return (
            "/experiments.jsonl",
            "/results.tsv",
            "/progress.png",
            "/worktrees/",
            "/work/results.jsonl",
            "/research/*",
            "!/research/README.md",
        )

    @property
    def made_folders(self) -> tuple[str, ...]:
        """Names in the root below which everything is ours."""
        return (self.worktrees.name, self.research.name)

    @property
    def made_files(self) -> tuple[str, ...]:
        """Files outside of those folders, relative to the root."""
        made = (self.ledger, self.results_tsv, self.progress_png, self.task_results)
        return tuple(str(path.relative_to(self.root)) for path in made)

    # ── research/ ─────────────────────────────────────────────────────────────────────────

    @property
    def research(self) -> Path:
        return self.root / "research"

    @property
    def decisions(self) -> Path:
        return self.research / "decisions.jsonl"

    @property
    def brief(self) -> Path:
        return self.research / "research_brief.json"

    @property
    def brief_state(self) -> Path:
        return self.written_copy(self.brief)

    @property
    def brief_before(self) -> Path:
        return self.replaced_version(self.brief)

    @property
    def conflicts(self) -> Path:
        """Edits of derived files, which have no effect, each beside its `.reason`."""
        return self.research / "conflicts"

    def written_copy(self, path: Path) -> Path:
        """Where the content that was written last to a derived file is kept."""
        return path.with_name(f".{path.name}")

    def replaced_version(self, path: Path) -> Path:
        """The version of a derived file that was replaced last."""
        return path.with_name(f".{path.stem}.before{path.suffix}")

    @property
    def checkout_lacks(self) -> Path:
        """What people were told last about files that runs do not have."""
        return self.research / ".checkout_lacks.json"

    @property
    def knowledge_base(self) -> Path:
        return self.research / "knowledge_base.json"

    @property
    def search_model(self) -> Path:
        return self.research / "search_model.md"

    @property
    def steering(self) -> Path:
        return self.research / "steering.md"

    @property
    def inbox(self) -> Path:
        return self.research / "inbox"

    @property
    def inbox_refused(self) -> Path:
        """Files of the inbox that were not taken, each beside a `.reason`."""
        return self.inbox / "refused"

    # ── the fleet ─────────────────────────────────────────────────────────────────────────

    @property
    def fleet(self) -> Path:
        return self.research / "fleet"

    @property
    def manifest(self) -> Path:
        return self.fleet / "manifest.json"

    @property
    def observer_prompt(self) -> Path:
        return self.fleet / "observer-agent.md"

    @property
    def tool_builder_prompt(self) -> Path:
        return self.fleet / "tool-builder.md"

    def worker_prompt(self, worker: str) -> Path:
        return self.fleet / "worker-prompts" / f"worker-{checked_id(worker)}.md"

    def protocol(self, role: str) -> Path:
        """Of `observer`, `tool-builder` or `gpu-worker`, for whoever plays it."""
        return self.fleet / "protocols" / f"{checked_id(role)}.md"

    def assignment(self, role: str) -> Path:
        """What the observer or the tool-builder is to do now."""
        return self.fleet / "assignments" / f"{checked_id(role)}.md"

    def worker_assignment(self, worker: str) -> Path:
        return self.fleet / "assignments" / "workers" / f"{checked_id(worker)}.md"

    # ── hypotheses, plans, runs ───────────────────────────────────────────────────────────

    def hypotheses(self, state: str, worker: str | None = None) -> Path:
        """The folder of one state; `dispatched` and `running` have one folder per worker."""
        folder = self.research / "hypotheses" / checked_id(state)
        return folder / checked_id(worker) if worker is not None else folder

    def hypothesis(self, hypothesis_id: str, state: str, worker: str | None = None) -> Path:
        return self.hypotheses(state, worker) / f"{checked_id(hypothesis_id)}.json"

    @property
    def plans(self) -> Path:
        return self.research / "plans"

    def plan(self, experiment_id: str) -> Path:
        return self.plans / f"{checked_id(experiment_id)}.json"

    def plan_page(self, experiment_id: str) -> Path:
        return self.plans / f"{checked_id(experiment_id)}.md"

    @property
    def runs(self) -> Path:
        return self.research / "runs"

    def run(self, experiment_id: str) -> RunPaths:
        return RunPaths(self.runs / checked_id(experiment_id))

    # ── live, aggregate, tools, locks ─────────────────────────────────────────────────────

    def heartbeat(self, worker: str) -> Path:
        return self.live / "workers" / f"{checked_id(worker)}.json"

    @property
    def live(self) -> Path:
        """Who is at work: true while they live, and of no use afterwards."""
        return self.research / "live"

    def role(self, name: str) -> Path:
        """How the observer, the tool-builder or the supervisor stands."""
        return self.live / f"{checked_id(name)}.json"

    def role_log(self, name: str) -> Path:
        """What a process of the fleet printed."""
        return self.live / "logs" / f"{checked_id(name)}.log"

    @property
    def benched(self) -> Path:
        """Devices that are left alone for a while, and why."""
        return self.live / "benched.json"

    @property
    def live_summary(self) -> Path:
        return self.live / "summary.json"

    @property
    def aggregate(self) -> Path:
        return self.research / "aggregate"

    @property
    def aggregate_experiments(self) -> Path:
        return self.aggregate / "experiments.json"

    @property
    def aggregate_parquet(self) -> Path:
        return self.aggregate / "experiments.parquet"

    @property
    def aggregate_results_tsv(self) -> Path:
        """Our lines of results.tsv alone, wherever that name is somebody's."""
        return self.aggregate / "results.tsv"

    @property
    def results_before(self) -> Path:
        """The lines of the results.tsv that was there before our first."""
        return self.aggregate / "results-before.tsv"

    @property
    def aggregate_progress_png(self) -> Path:
        """The picture, where progress.png in the root is the user's."""
        return self.aggregate / "progress.png"

    @property
    def leaderboard(self) -> Path:
        return self.aggregate / "leaderboard.json"

    @property
    def fleet_brief(self) -> Path:
        return self.aggregate / "fleet_brief.md"

    @property
    def fold_index(self) -> Path:
        return self.aggregate / ".fold-index"

    @property
    def problems(self) -> Path:
        """What the last fold could not use, and why."""
        return self.aggregate / "problems.json"

    @property
    def registry(self) -> Path:
        return self.research / "tools" / "registry.json"

    @property
    def published_tools(self) -> Path:
        return self.research / "tools" / "published"

    def published_tool(self, tool_id: str) -> Path:
        return self.published_tools / f"{checked_id(tool_id)}.py"

    @property
    def tool_calls(self) -> Path:
        return self.research / "tools" / "calls.jsonl"

    @property
    def outbox(self) -> Path:
        """What others are to be told: a folder each for pending, sent and refused."""
        return self.research / "outbox"

    def outbox_state(self, state: str) -> Path:
        return self.outbox / checked_id(state)

    def outbox_entry(self, state: str, kind: str, name: str) -> Path:
        return self.outbox_state(state) / f"{checked_id(kind)}.{checked_id(name)}.json"

    @property
    def hub_feed(self) -> Path:
        """What was last heard from the hub."""
        return self.live / "hub.json"

    @property
    def locks(self) -> Path:
        return self.research / "locks"

    def lock(self, name: str) -> Path:
        return self.locks / f"{checked_id(name)}.lock"
