"""How a fleet stands now: gathered from many small files, none of which is trusted.

It only reads, takes no lock, starts nothing but one `git rev-parse`, and opens neither the ledger
nor a log, so that it costs the same at ten experiments and at ten thousand. What is damaged,
dead or refused becomes a `Need`, and stops nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from autohypothesis.errors import AutohypothesisError, RecordError, UsageError
from autohypothesis.fleet.live.bench import benched
from autohypothesis.fleet.live.heartbeat import at_work
from autohypothesis.fleet.live.presence import LOOP
from autohypothesis.fleet.live.roles import lives
from autohypothesis.fleet.overview.standing import best_so_far
from autohypothesis.fleet.overview.views import (
    Awaiting,
    Need,
    Overview,
    RoleView,
    Waiting,
    WorkerView,
    any_alive,
)
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sharing.contact import COURIER
from autohypothesis.installation import as_called
from autohypothesis.records.bundles import reason_in
from autohypothesis.records.files import load, read_bytes, read_json, shown
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import manifest_tag
from autohypothesis.schema import Heartbeat, Hypothesis, Manifest, RoleStatus, Worker, finite, now

ROLES = ("supervisor", "observer", "tool-builder")
"""Of a fleet; a loop plays the observer itself, and needs neither of the others."""
SMALL = 256 * 1024
"""Bytes of a heartbeat, or of a role's file; a larger one is damage."""
AHEAD_S = 5.0
"""A clock may be off by this much; a time further ahead is wrong."""
WAITING = 5
"""Hypotheses that are shown of those that wait."""
NAMED = 3
"""Of many like problems, those that are named one by one."""
RUN = "python orchestrator.py"

_Model = TypeVar("_Model", bound=BaseModel)


def overview(layout: Layout, queue: Queue | None = None) -> Overview:
    """How the fleet of this repository stands; never fails over what lies under research/.

    Args:
        queue: for one look after the other, so that what did not change is not read again.
    """
    look = _Look(layout)
    tag, reference = look.tag, look.reference()
    counts, waiting = look.queue(queue)
    roles = look.roles()
    workers = look.workers()
    best = best_so_far(look.board)
    board = look.board
    look.dead(roles, workers)
    look.stopped()
    look.benched()
    look.refused()
    look.damaged()
    return Overview(
        root=str(layout.root),
        tag=tag,
        reference=reference,
        best=best,
        counts=counts,
        experiments=_count(board.get("total_runs")),
        decided=_count(board.get("decided_runs")),
        keep_rate=finite(board.get("keep_rate")),
        roles=roles,
        workers=workers,
        waiting=waiting,
        awaiting=look.awaiting,
        needs=look.needs,
        next_command=as_called(_next_command(tag, roles, workers)),
    )


class _Look:
    """One look at the files; what is wrong with them gathers in `needs`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.now = now()
        self.needs: list[Need] = []
        self.awaiting: list[Awaiting] = []
        self.tag, wrong = manifest_tag(layout)
        if wrong:
            self._damage(layout.manifest, wrong)
        self.board = self._board()
        self.tag = self.tag or str(self.board.get("tag") or "")

    # ── the search ────────────────────────────────────────────────────────────────────────

    def reference(self) -> str | None:
        from autohypothesis.engine.project import reference_ref
        from autohypothesis.records.git import Repository

        if not self.tag:
            return None
        try:
            return Repository(self.layout.root).read_ref(reference_ref(self.tag))
        except AutohypothesisError as error:
            self.needs.append(Need(f"the reference cannot be read: {error.problem}"))
            return None

    def _board(self) -> dict[str, Any]:
        """The leaderboard, when it is of this tag."""
        board = self._document(self.layout.leaderboard)
        return board if not self.tag or board.get("tag") in (self.tag, None) else {}

    def queue(self, queue: Queue | None) -> tuple[dict[str, int], list[Waiting]]:
        """How many there are, by name alone, and the first that wait; only open ones are read."""
        if not ID.fullmatch(self.tag):
            return {}, []
        if queue is None or queue.tag != self.tag:
            queue = Queue(self.layout, self.tag)
        dispatched = queue.dispatched().items()
        found = [_waiting(one, "dispatched", worker) for worker, some in dispatched for one in some]
        found += [_waiting(one, "pending", None) for one in queue.pending()[:WAITING]]
        for problem in queue.problems:
            self._damage(self.layout.root / problem.path, problem.reason)
        return queue.counts(), found[:WAITING]

    # ── who is at work ────────────────────────────────────────────────────────────────────

    def roles(self) -> list[RoleView]:
        """A fleet's; with a loop, where there was one, which needs no others."""
        found = [self.role(name) for name in ROLES]
        if self.layout.role(COURIER).exists():  # only a fleet with a hub has one
            found.append(self.role(COURIER))
        loop = self.role(LOOP) if self.layout.role(LOOP).exists() else None
        if loop is None:
            return found
        if loop.alive:
            found = [one for one in found if one.role == "observer" or one.alive]
        return [loop, *found]

    def role(self, name: str) -> RoleView:
        path = self.layout.role(name)
        said = self._model(path, RoleStatus)
        if said is None:
            return RoleView(name, "damaged" if path.exists() else "not started", alive=False)
        if name == "observer":
            self.awaiting = _awaiting(said.details.get("awaiting"))
        alive = said.state != "stopped" and lives(said)
        moment = said.last_action_at or said.updated_at
        ended = said.state in ("stopped", "finished", "failed")
        return RoleView(
            role=name,
            state=said.state or "working" if alive or ended else "dead",
            alive=alive,
            pid=said.pid,
            last_action=said.last_action,
            age_s=self._age(moment, f"the {name}"),
            problems=() if said.state in ("stopped", "finished") else tuple(said.problems),
        )

    def workers(self) -> list[WorkerView]:
        """Those of the manifest, then any other that lives."""
        views, known = [], set()
        for worker in self._manifest_workers():
            known.add(worker.worker_id)
            views.append(self._worker(worker))
        for name in _stems(self.layout.heartbeat("any").parent):
            if name not in known:
                other = self._worker(Worker(worker_id=name, gpu_id=""), quiet=True)
                views += [other] if other.alive else []
        return views

    def _manifest_workers(self) -> Iterable[Worker]:
        manifest = self._model(self.layout.manifest, Manifest)
        if manifest is not None:
            for worker in manifest.workers:
                try:
                    self.layout.heartbeat(worker.worker_id)
                except UsageError as error:
                    self._damage(self.layout.manifest, error.problem)
                else:
                    yield worker

    def _worker(self, worker: Worker, *, quiet: bool = False) -> WorkerView:
        name, device = worker.worker_id, worker.device or worker.gpu_id
        path = self.layout.heartbeat(name)
        beat = self._model(path, Heartbeat, quiet=quiet)
        if beat is None:
            state = "damaged" if path.exists() else "not started"
            return WorkerView(name, device, state, alive=False)
        alive = at_work(beat)
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

    # ── what needs somebody ───────────────────────────────────────────────────────────────

    def dead(self, roles: Iterable[RoleView], workers: Iterable[WorkerView]) -> None:
        """What the roles say is wrong; who ended without saying goodbye."""
        supervised = any(role.role == "supervisor" and role.alive for role in roles)
        then = f"{RUN} {'monitor' if supervised else 'up'}"
        killed = {role.pid for role in roles if role.role == LOOP and role.state == "dead"}
        for role in roles:
            self.needs += [
                Need(f"{role.role}: {line}")
                for line in role.problems
                if not any(need.what == f"damaged: {line}" for need in self.needs)
            ]
            if role.role == LOOP and role.state == "dead":
                said = f"the loop (pid {role.pid}) died at {role.last_action}"
                self.needs.append(Need(said, f"{RUN} run-loop, as it was called"))
            elif role.state == "dead" and role.pid not in killed:
                self.needs.append(Need(f"the {role.role} (pid {role.pid}) died", then))
        for worker in workers:
            if worker.state == "dead":
                doing = f" during {worker.experiment_id}" if worker.experiment_id else ""
                said = f"worker {worker.worker_id} (pid {worker.pid}) died{doing}"
                self.needs.append(Need(said, then))

    def stopped(self) -> None:
        """Runs that stand still because somebody stopped the process that owns them."""
        from autohypothesis.engine.recovery import standing_still

        self.needs += [Need(line) for line in standing_still(self.layout)]

    def benched(self) -> None:
        for device, reason in benched(self.layout).items():
            said = f"device {device} is left alone for a while: {reason}"
            self.needs.append(Need(said, f"{RUN} doctor"))

    def refused(self) -> None:
        """Files of the inbox that were not taken, and edits of files that are made from others."""
        self._refused(self.layout.inbox_refused, "not taken")
        self._refused(self.layout.conflicts, "not taken, delete it when you have read this")

    def _refused(self, folder: Path, what: str) -> None:
        reasons = sorted(name for name in _names(folder) if name.endswith(".reason"))
        for name in reasons[:NAMED]:
            try:
                text = read_bytes(folder / name, SMALL).decode("utf-8", "replace")
            except (FileNotFoundError, RecordError):
                text = ""
            file = folder / name.removesuffix(".reason")
            self.needs.append(Need(f"{what}: {self._short(file)}: {text.strip()}"))
        if len(reasons) > NAMED:
            rest = f"and {len(reasons) - NAMED} more in {self._short(folder)}"
            self.needs.append(Need(rest))

    def damaged(self) -> None:
        """Files that the last sync could not use."""
        problems = self._document(self.layout.problems).get("problems")
        problems = problems if isinstance(problems, list) else []
        lines = [
            f"damaged: {one.get('path')}: {one.get('reason')}"
            for one in problems
            if isinstance(one, dict)
        ]
        known = {need.what for need in self.needs}
        lines = [line for line in lines if line not in known]
        self.needs += [Need(line, f"{RUN} sync") for line in lines[:NAMED]]
        if len(lines) > NAMED:
            rest = f"and {len(lines) - NAMED} more in {self._short(self.layout.problems)}"
            self.needs.append(Need(rest))

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def _document(self, path: Path) -> dict[str, Any]:
        """The JSON object at `path`; empty where there is none, with a need where it is damaged."""
        try:
            value = read_json(path)
        except FileNotFoundError:
            return {}
        except RecordError as error:
            self._damage(path, reason_in(error, path))
            return {}
        if not isinstance(value, dict):
            self._damage(path, f"is {type(value).__name__}, no object")
            return {}
        return value

    def _model(self, path: Path, model: type[_Model], *, quiet: bool = False) -> _Model | None:
        try:
            return load(model, path, SMALL)
        except FileNotFoundError:
            return None
        except RecordError as error:
            if not quiet:
                self._damage(path, reason_in(error, path))
            return None

    def _age(self, moment: datetime | None, whose: str) -> float | None:
        """Seconds since `moment`; None where it is unknown or cannot be."""
        if moment is None:
            return None
        age = (self.now - moment).total_seconds()
        if age < -AHEAD_S:
            said = f"{whose} gives a time that is {-age:,.0f} s in the future"
            if Need(said) not in self.needs:
                self.needs.append(Need(said))
            return None
        return max(0.0, age)

    def _damage(self, path: Path, reason: str) -> None:
        self.needs.append(Need(f"damaged: {self._short(path)}: {shown(reason)}", f"{RUN} sync"))

    def _short(self, path: Path) -> str:
        return shown(str(path).removeprefix(f"{self.layout.root}/"))


def _next_command(tag: str, roles: Iterable[RoleView], workers: list[WorkerView]) -> str:
    states = {role.role: role for role in roles}
    observer = states["observer"]
    if not tag:
        return f"{RUN} init-fleet"
    if any_alive(states.values(), workers):
        return f"{RUN} monitor"
    if observer.state == "finished":
        return f"{RUN} digest"
    if LOOP in states and states[LOOP].pid == observer.pid:
        return f"{RUN} {'runs' if observer.state == 'failed' else 'run-loop'}"
    return f"{RUN} up" if workers else f"{RUN} init-fleet"


def _awaiting(said: object) -> list[Awaiting]:
    """What the observer says about wins to be confirmed; what is no such thing is left out."""
    entries = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    return [
        Awaiting(str(one.get("experiment_id")), missing, wanted, str(one.get("found") or ""))
        for one in entries
        if (missing := _count(one.get("missing"))) is not None
        and (wanted := _count(one.get("wanted"))) is not None
    ]


def _waiting(one: Hypothesis, state: str, worker: str | None) -> Waiting:
    name, priority = one.hypothesis_id, one.priority or 0.0
    return Waiting(name, one.title, state, worker, one.proposer, priority)


def _share(part: object, whole: float) -> float | None:
    number = finite(part)
    if number is None or not whole > 0:
        return None
    return min(1.0, max(0.0, number / whole))


def _count(value: object) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _stems(folder: Path) -> list[str]:
    stems = (name.removesuffix(".json") for name in _names(folder) if name.endswith(".json"))
    return sorted(stem for stem in stems if ID.fullmatch(stem))
