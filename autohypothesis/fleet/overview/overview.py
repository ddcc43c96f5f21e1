"""The state of a fleet: gathered from many small files, none of which is trusted.

It only reads, takes no lock, starts nothing but git for the reference, and opens neither the ledger
nor a log, so that it costs the same at ten experiments and at ten thousand. What is damaged,
dead or refused becomes a `Notice`, and stops nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.fleet.live.presence import (
    COURIER,
    ENDED_STATES,
    LOOP,
    another_machine,
    role_lives,
    worker_lives,
)
from autohypothesis.fleet.live.quarantine import quarantined
from autohypothesis.fleet.live.unbound_limits import unbound_limits
from autohypothesis.fleet.overview.best_run import BestRun, best_run
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.installation import suggested
from autohypothesis.plain import some_of
from autohypothesis.records.bundles import reason_in, uncollected
from autohypothesis.records.files import (
    JSON_LIMIT,
    PAGE_LIMIT,
    load,
    load_or_none,
    read_text,
    shown,
)
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import manifest_tag
from autohypothesis.records.outcomes import WORDS
from autohypothesis.records.problems import LIMIT, entries_in, problem_lines
from autohypothesis.schema import (
    Heartbeat,
    Hypothesis,
    Manifest,
    Problem,
    RoleStatus,
    Worker,
    finite,
    now,
)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know of, and what to run about it."""

    what: str
    run: str = ""


@dataclass(frozen=True, slots=True)
class RoleView:
    """The supervisor, the observer, the tool-builder or a loop."""

    role: str
    state: str
    """The reported state, or `dead` or `not started`."""
    alive: bool
    pid: int | None = None
    last_action: str = ""
    age_s: float | None = None
    """Since its last action."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, and what it does."""

    worker_id: str
    device: str
    state: str
    """The state of a role; while it lives, a value of `schema.WorkerState`."""
    alive: bool
    pid: int | None = None
    state_s: float | None = None
    """Seconds since it entered its state."""
    age_s: float | None = None
    """Since its last heartbeat."""
    experiment_id: str | None = None
    hypothesis_id: str | None = None
    next_hypothesis_id: str | None = None
    title: str = ""
    progress: float | None = None
    """Share of the budget, 0 to 1."""
    loss: float | None = None
    tokens_per_second: float | None = None
    diff_stat: str = ""
    busy_share: float | None = None
    """Share of its life in which its device trained or scored."""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class WaitingHypothesis:
    """A hypothesis that is not begun."""

    hypothesis_id: str
    title: str
    state: str
    worker: str | None
    proposer: str
    priority: float


@dataclass(frozen=True, slots=True)
class PendingConfirmation:
    """A win on one seed that is run again before it counts."""

    experiment_id: str
    missing: int
    wanted: int
    """Runs that confirm it, those that are there included."""
    found: str
    """Its value against that of its base."""

    @property
    def words(self) -> str:
        return f"awaits {self.missing} of {self.wanted} runs"


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that `status` shows."""

    root: str
    tag: str
    reference: str | None
    best: BestRun | None
    counts: dict[str, int]
    """Hypotheses of the tag: pending, dispatched, running, done."""
    experiments: int | None
    decided: int | None
    outcomes: dict[str, int]
    """Word of `records.outcomes` -> number of experiments, as the last sync counted them."""
    uncounted: int
    """Runs in `research/runs/`, where no sync has counted any yet."""
    keep_rate: float | None
    roles: list[RoleView]
    workers: list[WorkerView]
    waiting: list[WaitingHypothesis]
    """The first few that are not begun."""
    awaiting: list[PendingConfirmation]
    """Wins to be confirmed, as the observer last saw it."""
    needs: list[Notice]
    next_command: str
    alive: bool
    """True: a process of the fleet lives."""
    generated_at: datetime = field(default_factory=now)


ROLES = ("supervisor", "observer", "tool-builder")
"""Roles of a fleet; a single loop has an observer only."""
SMALL = 256 * 1024
"""Bytes of a heartbeat, or of a role's file; a larger one is damage."""
CLOCK_SKEW_S = 5.0
"""A clock may be off by this much; a time further ahead is wrong."""
SHOWN_WAITING = 5
"""Hypotheses that are shown of those that wait."""
NAMED = 3
"""Maximum kinds of problems that are named."""
RUN = "python orchestrator.py"

_Model = TypeVar("_Model", bound=BaseModel)
_AWAITING = TypeAdapter(list[PendingConfirmation])


class _Document(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


def overview(layout: Layout, queue: Queue | None = None, *, tag: str | None = None) -> Overview:
    """Return how the fleet of this repository stands. Nothing under research/ makes it fail.

    Args:
        queue: of the last call, so that what did not change is not read again.
        tag: the search whose results and queue are shown; default: the active one.
    """
    look = _Reader(layout, tag)
    board, reference = look.board, look.reference()
    counts, waiting = look.queue(queue)
    roles, workers = look.roles(), look.workers()
    alive = any(role.alive for role in roles) or any(worker.alive for worker in workers)
    look.note_dead_processes(roles, workers)
    look.note_devices_and_runs()
    if not alive:  # an observer or a loop records and tells these
        look.note_unattended_runs(workers)
        look.note_steering()
    look.needs += [Notice(str(unbound)) for unbound in unbound_limits(layout)]
    if elsewhere := another_machine(layout):
        look.needs.append(Notice(elsewhere.problem, suggested(elsewhere.hint)))
    look.note_refused(layout.inbox_refused, "not taken")
    look.note_refused(layout.conflicts, "not taken, delete it when you have read this")
    look.note_damaged()
    return Overview(
        root=str(layout.root),
        tag=look.tag,
        reference=reference,
        best=best_run(board),
        counts=counts,
        experiments=_count(board.get("total_runs")),
        decided=_count(board.get("decided_runs")),
        outcomes=_counts(board.get("outcomes")),
        uncounted=look.uncounted(),
        keep_rate=finite(board.get("keep_rate")),
        roles=roles,
        workers=workers,
        waiting=waiting,
        awaiting=look.awaiting,
        needs=look.needs,
        next_command=suggested(f"{RUN} {look.next_command(roles, workers, alive)}"),
        alive=alive,
    )


class _Reader:
    """Reads the files once; what is wrong with them gathers in `needs`."""

    def __init__(self, layout: Layout, other: str | None = None) -> None:
        self.layout = layout
        self.now = now()
        self.needs: list[Notice] = []
        self._noted: set[tuple[str, str]] = set()
        """Path and reason of the files that were named."""
        self.awaiting: list[PendingConfirmation] = []
        self.tag, wrong = manifest_tag(layout)
        if wrong:
            self._damage(layout.manifest, wrong)
        self.manifest = self._model(layout.manifest, Manifest, quiet=bool(wrong))
        board = self._document(layout.leaderboard)
        self.board = board if not self.tag or board.get("tag") in (self.tag, None) else {}
        self.tag = self.tag or str(self.board.get("tag") or "")
        if other and other != self.tag:
            self._look_at(other)

    def _look_at(self, tag: str) -> None:
        """Turn to a search that is not the active one; its experiments are folded in memory."""
        from autohypothesis.records.ledger import refold
        from autohypothesis.records.tables import leaderboard

        self.tag, self.board = tag, leaderboard(refold(self.layout), tag, 0)

    def reference(self) -> str | None:
        """Return the reference; note commits on its branch, a search on a remote, or a move."""
        from autohypothesis.engine.reference import (
            fetch_command,
            own_commits,
            read_reference,
            reference_ref,
        )
        from autohypothesis.fleet.live.place import find_move
        from autohypothesis.records.git import Repository

        repository, commit = Repository(self.layout.root), None
        try:
            if move := find_move(repository, self.layout):
                self._note(f"{move}; the next command that runs anything puts that right", "up")
            if self.tag and (commit := read_reference(repository, self.layout, self.tag)):
                if own := own_commits(repository, self.tag, commit):
                    self.needs.append(Notice(*own))
                if repository.read_ref(ref := reference_ref(self.tag)) is None:
                    gone = f"{ref} is missing; the next run or decision makes it at {commit[:12]}"
                    self.needs.append(Notice(gone, f"git update-ref {ref} {commit[:12]}"))
            elif fetch := fetch_command(repository, self.tag or None):
                self.needs.append(
                    Notice("a remote has the branch of a search; to go on with it here", fetch)
                )
        except AutohypothesisError as error:
            self._note(f"the reference cannot be read: {error.problem}")
        return commit

    def queue(self, queue: Queue | None) -> tuple[dict[str, int], list[WaitingHypothesis]]:
        """Return counts by state, and the first that wait; only open hypotheses are read."""
        if not ID.fullmatch(self.tag):
            return {}, []
        if queue is None or queue.tag != self.tag:
            queue = Queue(self.layout, self.tag)
        waiting = [
            _waiting(item, "dispatched", worker)
            for worker, items in queue.dispatched().items()
            for item in items
        ]
        waiting += [_waiting(item, "pending", None) for item in queue.pending()[:SHOWN_WAITING]]
        self._note_kinds("damaged: ", queue.problems, "sync")
        return queue.counts(), waiting[:SHOWN_WAITING]

    def roles(self) -> list[RoleView]:
        """Return the roles of a fleet; a loop comes first, and needs no fleet beside it."""
        found = [self.role(name) for name in ROLES]
        if self.layout.role(COURIER).exists():  # only a fleet with a hub has one
            found.append(self.role(COURIER))
        loop = self.role(LOOP) if self.layout.role(LOOP).exists() else None
        if loop is None:
            return found
        if loop.alive:
            found = [role for role in found if role.role == "observer" or role.alive]
        elif self.manifest is None or not self.manifest.workers:
            found = [role for role in found if role.state != "not started"]
        return [loop, *found]

    def role(self, name: str) -> RoleView:
        path = self.layout.role(name)
        status = self._model(path, RoleStatus)
        if status is None:
            return RoleView(name, "damaged" if path.exists() else "not started", alive=False)
        if name == "observer":
            with suppress(ValidationError):
                self.awaiting = _AWAITING.validate_python(status.details.get("awaiting") or [])
        alive = status.state != "stopped" and role_lives(status)
        known = alive or status.state in ENDED_STATES
        return RoleView(
            role=name,
            state=status.state or "working" if known else "dead",
            alive=alive,
            pid=status.pid,
            last_action=status.last_action,
            age_s=self._age(status.last_action_at or status.updated_at, f"the {name}"),
            problems=() if status.state in ("stopped", "finished") else tuple(status.problems),
        )

    def workers(self) -> list[WorkerView]:
        """Return the workers of the manifest, then any other that lives."""
        views, known = [], set()
        for worker in self.manifest.workers if self.manifest else ():
            if ID.fullmatch(worker.worker_id):
                known.add(worker.worker_id)
                views.append(self._worker(worker))
            else:
                self._damage(self.layout.manifest, f"{worker.worker_id!r} is no id of a worker")
        for path in sorted(self.layout.heartbeat("any").parent.glob("*.json")):
            if ID.fullmatch(path.stem) and path.stem not in known:
                other = self._worker(Worker(worker_id=path.stem, gpu_id=""), quiet=True)
                views += [other] if other.alive else []
        return views

    def _worker(self, worker: Worker, *, quiet: bool = False) -> WorkerView:
        name, device = worker.worker_id, worker.device or worker.gpu_id
        path = self.layout.heartbeat(name)
        beat = self._model(path, Heartbeat, quiet=quiet)
        if beat is None:
            state = "damaged" if path.exists() else "not started"
            return WorkerView(name, device, state, alive=False)
        alive = worker_lives(beat)
        whose = f"worker {name}"
        return WorkerView(
            worker_id=name,
            device=device or beat.gpu_id,
            state=beat.state if alive or beat.state == "stopped" else "dead",
            alive=alive,
            pid=beat.pid,
            state_s=self._age(beat.since, whose) if alive else None,
            age_s=None if quiet and not alive else self._age(beat.updated_at, whose),
            experiment_id=beat.run_id,
            hypothesis_id=beat.hypothesis_id,
            next_hypothesis_id=beat.next_hypothesis_id,
            title=beat.title or "",
            progress=_share(beat.progress.get("progress_pct"), 100.0),
            loss=finite(beat.metrics.get("train_loss")),
            tokens_per_second=finite(beat.metrics.get("tok_per_sec")),
            diff_stat=beat.diff_stat,
            busy_share=self._busy(beat, alive),
            notes=beat.notes,
        )

    def _busy(self, beat: Heartbeat, alive: bool) -> float | None:
        if beat.started_at is None:
            return None
        until = self.now if alive else beat.updated_at
        return _share(beat.busy_seconds, (until - beat.started_at).total_seconds())

    def next_command(
        self, roles: Iterable[RoleView], workers: Sequence[WorkerView], alive: bool
    ) -> str:
        states = {role.role: role for role in roles}
        observer = states.get("observer") or self.role("observer")
        if self.uncounted() and not alive:
            return "sync"
        if not alive and another_machine(self.layout):
            return "digest"  # nothing may start beside it
        if not self.tag:
            return "up"
        if alive:
            return "monitor"
        if workers and self._is_new_fleet(workers):
            return "up"
        if observer.state == "finished":
            return "digest"
        if LOOP in states and states[LOOP].pid == observer.pid:
            return "runs" if observer.state == "failed" else "run-loop"
        return "up"

    def _is_new_fleet(self, workers: Iterable[WorkerView]) -> bool:
        """Return whether none of the roles was started since `init-fleet`."""
        last = load_or_none(RoleStatus, self.layout.role("observer"), SMALL)
        begun = self.manifest.created_at if self.manifest else None
        is_newer = bool(last and begun and begun > last.updated_at)
        return is_newer or all(worker.state == "not started" for worker in workers)

    def note_dead_processes(self, roles: Iterable[RoleView], workers: Iterable[WorkerView]) -> None:
        """Name the problems of the roles, and the processes that died: one failure is one entry."""
        self._note_problems(roles)
        supervised = any(role.role == "supervisor" and role.alive for role in roles)
        loop = next((role for role in roles if role.role == LOOP and role.state == "dead"), None)
        if loop is not None:
            died = f"the loop (pid {loop.pid}) died at {loop.last_action}"
            self._note(died, "run-loop, as it was called")
        dead = [
            f"the {role.role} (pid {role.pid}) died"
            for role in roles
            if role.state == "dead" and role.role != LOOP and (not loop or role.pid != loop.pid)
        ]
        for worker in workers:
            if worker.state == "dead":
                doing = f" during {worker.experiment_id}" if worker.experiment_id else ""
                dead.append(f"worker {worker.worker_id} (pid {worker.pid}) died{doing}")
        if dead:
            self._note(", ".join(dead), "monitor" if supervised else "up")

    def _note_problems(self, roles: Iterable[RoleView]) -> None:
        """Name each problem once, with the roles that tell it, the one in most words."""
        known, told = set(map(": ".join, self._noted)), dict[str, list[str]]()
        for role in roles:
            for line in role.problems:
                told.setdefault(line, []).append(role.role)
        for line, names in told.items():
            told_in_more = any(line in other and line != other for other in told)
            if line not in known and not told_in_more:
                self._note(f"{', '.join(names)}: {line}")

    def uncounted(self) -> int:
        """Return the number of run folders, where no sync has made a leaderboard yet, else 0."""
        if self.board or self.layout.leaderboard.exists():
            return 0
        try:
            return sum(ID.fullmatch(name) is not None for name in os.listdir(self.layout.runs))
        except OSError:
            return 0

    def note_devices_and_runs(self) -> None:
        """Name runs whose process was stopped, and devices in quarantine."""
        from autohypothesis.engine.shim import stalled_runs

        self.needs += [Notice(line) for line in stalled_runs(self.layout)]
        for device, reason in quarantined(self.layout).items():
            self._note(f"device {device} is left alone for a while: {reason}", "doctor")

    def note_steering(self) -> None:
        """Name a steering block that cannot be read: what it forbids would not be forbidden."""
        for path in (self.layout.program, self.layout.steering):
            with suppress(OSError, RecordError):
                if "steering" in read_text(path, PAGE_LIMIT):  # else nothing has to be imported
                    from autohypothesis.fleet.live.steering import SteeringFiles

                    files = SteeringFiles(self.layout)
                    files.combined()
                    self.needs += [Notice(problem) for problem in files.problems()]
                    return

    def note_unattended_runs(self, workers: Iterable[WorkerView]) -> None:
        """Name the runs that no process waits for: `run-experiment` was killed, say."""
        if not any(uncollected(self.layout)):
            return
        from autohypothesis.engine.collect import unattended

        named = {worker.experiment_id for worker in workers if worker.state == "dead"}
        ended, gone = [], "the process that began it is gone"
        for name, runs_on in unattended(self.layout).items():
            if name not in named and runs_on:
                self._note(f"{name} still runs, and {gone}; record it once it has ended", "sync")
            elif name not in named:
                ended.append(name)
        if ended:
            self._note(f"{some_of(ended)}: ended, and not recorded, since {gone}", "sync")

    def note_refused(self, folder: Path, what: str) -> None:
        """Name the files of `folder`, which were not taken, with the reason beside each."""
        refused = []
        for path in sorted(folder.glob("*.reason")):
            reason = read_text(path, SMALL).strip()
            refused.append(Problem(path=self._short(path.with_suffix("")), reason=reason))
        self._note_kinds(f"{what}: ", refused, where=folder)

    def note_damaged(self) -> None:
        """Name the files that the last sync could not use."""
        document = self._document(self.layout.problems, LIMIT)
        entries = entries_in(document)
        found = [entry for entry in entries if (entry.path, entry.reason) not in self._noted]
        edited = [entry for entry in found if entry.decided_otherwise]
        others = [entry for entry in found if not entry.decided_otherwise]
        self._note_kinds("damaged: ", others, "sync", self.layout.problems)
        advice = "; that stands: write it back into the file, then sync"
        self._note_kinds("damaged: ", edited, "sync", self.layout.problems, advice)

    def _note_kinds(
        self,
        what: str,
        problems: list[Problem],
        command: str = "",
        where: Path | None = None,
        advice: str = "",
    ) -> None:
        """Note a line for each kind of problem, and no more than `NAMED` where `where` has all.

        Args:
            advice: the end of each line.
        """
        self._noted.update((problem.path, problem.reason) for problem in problems)
        lines = problem_lines(problems)
        most = NAMED if where is not None else len(lines)
        for line in lines[:most]:
            self._note(f"{what}{line}{advice}", command)
        if where is not None and len(lines) > most:
            self._note(f"and {len(lines) - most} more in {self._short(where)}")

    def _note(self, what: str, command: str = "") -> None:
        self.needs.append(Notice(what, suggested(f"{RUN} {command}") if command else ""))

    def _document(self, path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """Return the JSON object at `path`; empty where it is absent, or damaged (noted)."""
        document = self._model(path, _Document, limit=limit)
        return (document.model_extra or {}) if document is not None else {}

    def _model(
        self, path: Path, model: type[_Model], *, limit: int = SMALL, quiet: bool = False
    ) -> _Model | None:
        try:
            return load(model, path, limit)
        except FileNotFoundError:
            return None
        except RecordError as error:
            if not quiet:
                self._damage(path, reason_in(error, path))
            return None

    def _age(self, moment: datetime | None, whose: str) -> float | None:
        """Return the seconds since `moment`; None where it is unknown or lies in the future."""
        if moment is None:
            return None
        age = (self.now - moment).total_seconds()
        if age < -CLOCK_SKEW_S:
            wrong = Notice(f"{whose} gives a time that is {-age:,.0f} s in the future")
            if wrong not in self.needs:
                self.needs.append(wrong)
            return None
        return max(0.0, age)

    def _damage(self, path: Path, reason: str) -> None:
        problem = Problem(path=self._short(path), reason=shown(reason))
        if path == self.layout.manifest:  # no command writes it anew
            self._note_kinds("damaged: ", [problem], advice="; mend it, or move it away")
        else:
            self._note_kinds("damaged: ", [problem], "sync")

    def _short(self, path: Path) -> str:
        return shown(str(path).removeprefix(f"{self.layout.root}/"))


def _waiting(item: Hypothesis, state: str, worker: str | None) -> WaitingHypothesis:
    name, priority = item.hypothesis_id, item.priority or 0.0
    return WaitingHypothesis(name, item.title, state, worker, item.proposer, priority)


def _share(part: object, whole: float) -> float | None:
    number = finite(part)
    if number is None or not whole > 0:
        return None
    return min(1.0, max(0.0, number / whole))


def _counts(value: object) -> dict[str, int]:
    counts = value if isinstance(value, dict) else {}
    return {word: number for word in WORDS if (number := _count(counts.get(word)))}


def _count(value: object) -> int | None:
    number = finite(value)
    return None if number is None else int(number)
