"""The roster of a fleet: who works on which device, in which worktree, with which prompt.

`init_fleet` refuses what it can before it makes anything, writes the manifest last, and may be
killed at any instant: run again, it finds what is there and makes what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment, Outcome, Resources
from autohypothesis.engine.inputs import locate_inputs
from autohypothesis.engine.project import Project, todays_tag
from autohypothesis.engine.reference import (
    fetch_command,
    own_commits,
    read_reference,
    reference_branch,
    reference_ref,
    take_in_task_commits,
)
from autohypothesis.engine.runner import ProgressListener, run
from autohypothesis.errors import (
    RECOVERABLE_ERRORS,
    FleetError,
    LaunchError,
    RecordError,
    UsageError,
)
from autohypothesis.fleet.live.presence import (
    list_active,
    read_manifest,
    refuse_another_machine,
    refuse_beside_loop,
    users_of,
)
from autohypothesis.fleet.live.quarantine import device_kind
from autohypothesis.fleet.queue.claims import end_claim
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.roster import prompts
from autohypothesis.fleet.roster.devices import choose, device_users
from autohypothesis.fleet.roster.worktrees import Worktrees, worker_branch
from autohypothesis.fleet.sync import sync
from autohypothesis.fleet.toolbuilder.builder import command_words
from autohypothesis.plain import some_of
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import write_json
from autohypothesis.records.history import best_kept, first_baseline, of_tag
from autohypothesis.records.layout import checked_id
from autohypothesis.records.ledger import active_tag, read_ledger
from autohypothesis.records.locks import hold
from autohypothesis.schema import Decision, Manifest, Worker

DEFAULT_PROPOSERS = ("search",)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The options of `init-fleet`; None: not given."""

    tag: str | None = None
    gpus: str | None = None
    cpu_workers: int | None = None
    worktrees: bool = True
    start: str | None = None
    """First reference of a new tag: HEAD, best, or a commit."""
    proposers: Sequence[str] = ()
    mix: float | None = None
    tool_command: str | None = None
    hub: str | None = None
    """Address of the hub; empty: sharing ends."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that was made or mended."""

    manifest: Manifest
    notes: list[str] = field(default_factory=list)
    """Notes for the user."""
    done: dict[str, str] = field(default_factory=dict)
    """Worker -> what was done to its worktree; empty where it was whole."""


def init_fleet(project: Project, wanted: FleetOptions) -> Fleet:
    """Make the fleet of a tag, or mend it.

    Raises:
        UsageError: a device or a tag is not what it should be; nothing was made.
        FleetError: a file or branch that is not ours is in the way, or a fleet is at work;
            nothing was made.
        GitError: there is no commit to begin at, or it holds nothing that a search may change.
        LaunchError: the data of a new tag cannot be located.
    """
    workers, notes = choose(wanted.gpus, wanted.cpu_workers)
    command_words(wanted.tool_command or "")
    refuse_another_machine(project.layout)
    refuse_beside_loop(project.layout)
    project.repository.head()
    with hold(project.layout, "fleet", doing="init-fleet"):
        return _FleetSetup(project, wanted, workers, notes).make()


def begin_tag(project: Project, wanted: FleetOptions) -> Project:
    """Start the tag alone, as `init_fleet` would, for a run before there are workers."""
    workers, notes = choose(wanted.gpus, wanted.cpu_workers)
    refuse_beside_loop(project.layout)
    with hold(project.layout, "fleet", doing="bootstrap"):
        return _FleetSetup(project, wanted, workers, notes).begin()


def begin_single(project: Project, tag: str, places: Sequence[str]) -> tuple[Project, list[str]]:
    """Start the tag, or go on with it, for a loop in detached worktrees; return notes as well.

    The fleet that the tag may have stays as it is.

    Args:
        places: names of the worktrees.

    Raises:
        As `init_fleet`.
    """
    project.repository.head()
    with hold(project.layout, "fleet", doing="run-loop"):
        setup = _FleetSetup(project, FleetOptions(tag), [], [])
        setup.trees.refuse_places(places)
        return setup.begin(), setup.notes


class _FleetSetup:
    """One call of `init_fleet`, under its lock."""

    def __init__(
        self, project: Project, wanted: FleetOptions, workers: list[Worker], notes: list[str]
    ) -> None:
        self.project, self.wanted, self.chosen, self.notes = project, wanted, workers, notes
        self.repository, self.layout = project.repository, project.layout
        self.before = read_manifest(project.layout)
        self.tag = checked_id(wanted.tag or active_tag(project.layout) or todays_tag())
        self.trees = Worktrees(project.repository, self.tag)
        self.reference = read_reference(project.repository, project.layout, self.tag)

    def begin(self) -> Project:
        """Return the project on its tag, once nothing is in the way."""
        self._refuse_while_at_work()
        base = self._base()
        self.trees.refuse_obstacles([worker.worker_id for worker in self.chosen])
        self.project = self.project.with_tag(self.tag, base=base)
        if self.wanted.start is None and not list_active(self.layout):
            where = (self.repository, self.layout)
            taken = take_in_task_commits(*where, self.project.task, self.tag, base)
            if taken is not None:
                base = taken
                self.notes.append(f"the search goes on from your commit {base[:7]}")
        self.project.refuse_without_artifacts(base)
        if own := own_commits(self.repository, self.tag, base):
            self.notes.append(" ".join(own))
        fetch = fetch_command(self.repository, self.tag) if self.reference is None else ""
        if fetch:
            self.notes.append(
                f"{reference_branch(self.tag)} is on a remote as well; to go on with a search that"
                f" was made elsewhere, begin another here (--tag NAME), or: {fetch}"
            )
        return self.project

    def make(self) -> Fleet:
        self.begin()
        done = self._make_worktrees() if self.wanted.worktrees else {}
        manifest = self._manifest()
        self._release(manifest)
        self.notes += prompts.write_all(self.project, manifest)
        write_json(self.layout.manifest, manifest)
        self._add_notes(manifest)
        return Fleet(manifest, self.notes, done)

    def _refuse_while_at_work(self) -> None:
        """Another tag or other devices are for a fleet at rest; mending is for any."""
        if self.before is None or not self._changes(self.before):
            return
        if busy := list_active(self.layout):
            what = f"tag {self.tag}" if self.before.tag != self.tag else "other workers"
            raise FleetError(
                f"{what} cannot begin in {self.layout.root} while these are at work: "
                + some_of(busy),
                hint="stop them: python orchestrator.py down",
            )

    def _changes(self, before: Manifest) -> bool:
        """Return whether a worker would go, come or change its device; a first one is no change."""
        if before.tag != self.tag or not self.chosen:
            return before.tag != self.tag
        was = {worker.worker_id: worker.device for worker in before.workers}
        now = {worker.worker_id: worker.device for worker in self.chosen}
        return bool(was) and (
            was.keys() != now.keys()
            or any(was[name] and now[name] and was[name] != now[name] for name in was)
        )

    def _base(self) -> str:
        """Return the commit that the reference of a new tag begins at."""
        start = self.wanted.start
        if (commit := self.reference) is not None:
            if start is not None and self._start(start) != commit:
                raise UsageError(
                    f"--from {start}: tag {self.tag} has begun, and stands at {commit[:12]}",
                    hint="leave --from out, or begin another: --tag NAME",
                )
            if self.repository.read_ref(reference_ref(self.tag)) is None:
                self.notes.append(f"the reference was gone; it is again at {commit[:12]}")
            return commit
        if self.repository.edited_files() and start in (None, "HEAD"):
            self.notes.append(
                f"{self.repository.here} has changes that are not committed: the search starts from"
                f" {self.repository.head()[:12]}, without them"
            )
        return self._start(start or "HEAD")

    def _start(self, start: str) -> str:
        if start != "best":
            return self.repository.resolve(start)
        rows = read_ledger(self.layout)
        best = best_kept(of_tag(rows, self.before.tag if self.before else None))
        if best is None:
            raise UsageError("--from best: nothing is kept yet", hint="leave --from out")
        return self.repository.resolve(str(best["commit"]))

    def _make_worktrees(self) -> dict[str, str]:
        reference, done = self.project.reference(), {}
        for worker in self.chosen:
            path = self.layout.worktree(worker.worker_id)
            wrong = self.trees.problem_of(worker.worker_id)
            user = users_of(self.layout, worker.worker_id, path) if wrong and path.is_dir() else ""
            if user:
                self.notes.append(f"{path} was left alone ({wrong}): it is used by {user}")
            done[worker.worker_id] = "" if user else self.trees.make(worker.worker_id, reference)
        return done

    def _manifest(self) -> Manifest:
        started = read_manifest(self.layout)
        assert started is not None, "the tag was just begun"
        mine = self.before if self.before and self.before.tag == self.tag else started
        known = {worker.worker_id: worker for worker in mine.workers}
        options = {
            name: getattr(mine if getattr(self.wanted, name) is None else self.wanted, name)
            for name in ("mix", "tool_command", "hub")
        }
        return started.model_copy(
            update={
                "observer_prompt_path": str(self.layout.observer_prompt),
                "tool_builder_prompt_path": str(self.layout.tool_builder_prompt),
                "workers": [
                    self._worker(worker, known.get(worker.worker_id)) for worker in self.chosen
                ],
                "proposers": list(self.wanted.proposers or mine.proposers or DEFAULT_PROPOSERS),
                **options,
            }
        )

    def _worker(self, worker: Worker, known: Worker | None) -> Worker:
        """Return a chosen worker with its place, and with what the manifest knows of it."""
        former = known or worker
        return former.model_copy(
            update={
                "gpu_id": worker.gpu_id,
                "device": worker.device or former.device,
                "kind": worker.kind,
                "branch": worker_branch(self.tag, worker.worker_id),
                "worktree_path": str(self.layout.worktree(worker.worker_id)),
                "prompt_path": str(self.layout.worker_prompt(worker.worker_id)),
            }
        )

    def _release(self, manifest: Manifest) -> None:
        """Queue again what workers that are no more still held."""
        if self.before is None or self.before.tag != self.tag:
            return
        stay = {worker.worker_id for worker in manifest.workers}
        gone = [worker.worker_id for worker in self.before.workers if worker.worker_id not in stay]
        for worker in gone:
            moved = self._release_claims(Queue(self.layout, self.tag), worker)
            held = f"; {moved} hypotheses of it wait again" if moved else ""
            self.notes.append(
                f"{worker} is no worker any more{held}; `python orchestrator.py prune` removes"
                " its worktree"
            )

    def _release_claims(self, queue: Queue, worker: str) -> int:
        """Withdraw what waits for `worker`, and close or requeue its claims; return how many.

        What it ran to its end is collected and counts; anything else was never evidence. What
        still runs under its shim, or cannot be ended now, is left to the observer.
        """
        waiting, claimed = queue.dispatched(worker)[worker], queue.running(worker)[worker]
        for hypothesis in waiting:
            queue.withdraw(hypothesis.hypothesis_id)
        moved, decided = len(waiting), set[str]()
        if claimed:
            with suppress(RecordError):  # as far as decisions can be read
                decided = {decision.experiment_id for decision in read_decisions(self.layout)[0]}
        for hypothesis in claimed:
            with suppress(*RECOVERABLE_ERRORS):
                moved += bool(end_claim(self.project, queue, hypothesis, worker, decided))
        return moved

    def _add_notes(self, manifest: Manifest) -> None:
        """Note what will keep these workers from training, and what an earlier fleet left."""
        before = self.before
        if before is not None and before.tag != self.tag and self.tag in before.earlier:
            self.notes.append(
                f"{self.tag} goes on with its proposers ({', '.join(manifest.proposers)}), mix and"
                " tool command, and with the workers that were chosen now"
            )
        self.notes += device_users(
            [worker.device for worker in manifest.workers if worker.kind == "cuda"]
        )
        if not self.wanted.worktrees:
            self.notes.append("no worktrees were made; a worker makes its own when it starts")
        with suppress(LaunchError):
            root = self.layout.root
            kind = locate_inputs(self.project.task, root, root, os.environ).device
            others = [
                worker.worker_id for worker in manifest.workers if kind and worker.kind != kind
            ]
            if others:
                self.notes.append(
                    f"the data is prepared for {kind}: {', '.join(others)} will not train; run"
                    " `python prepare.py --profile NAME` for their devices and begin another tag"
                )


def worker_named(manifest: Manifest, worker_id: str) -> Worker:
    """Return one worker of the roster.

    Raises:
        UsageError: there is none of that name.
    """
    known = {worker.worker_id: worker for worker in manifest.workers}
    if worker_id not in known:
        names = ", ".join(known) or "none"
        raise UsageError(
            f"there is no worker {worker_id!r}; this fleet has {names}",
            hint="make it: python orchestrator.py init-fleet",
        )
    return known[worker_id]


def run_baseline(
    project: Project, worker: Worker, watch: ProgressListener
) -> tuple[Outcome, list[Decision]] | None:
    """Run and decide the baseline on the device of a worker, and bring the ledger up to date.

    Returns None where there is a baseline.

    Raises:
        LeaseError: the device is held.
    """
    sync(project.layout)
    if first_baseline(of_tag(read_ledger(project.layout), project.active())) is not None:
        return None
    resources = Resources(kind=device_kind(worker), device=worker.device)
    baseline = Experiment(Change(), title="baseline")
    finished = run(project, baseline, watch=watch, resources=resources)
    settlement = settle(project, [finished.experiment_id], decided_by="bootstrap")
    decisions = settlement.decisions_or_raise()
    sync(project.layout)
    return finished, decisions
