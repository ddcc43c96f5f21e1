"""Random schedules with faults in the middle of steps: every hypothesis is in one state, always.

`World` is the machine that a fleet runs on: a folder, a clock, and faults on demand. `QueueRules`
is what actors do to the queue, and what must then be true. More of a fleet is another class of
rules on the same world.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from autohypothesis import system
from autohypothesis.errors import AutohypothesisError, QueueError
from autohypothesis.fleet.queue import states as queue_module
from autohypothesis.fleet.queue.files import DONE, PENDING
from autohypothesis.fleet.queue.states import Queue, QueuePlace
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Proposal

WORKERS = ("cpu0", "cpu1", "cpu2")
OBSERVER = "observer"
TORN = ('{"hypothesis_id": "h-t-', "", "[]", '{"title": "no id"}')


class World:
    """One folder, one clock, one fault at a time."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="fleet-", dir=where)
        self.layout = Layout(Path(self.folder.name))
        self.now = 1_000.0
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(queue_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.patches.setattr(os, "fsync", lambda descriptor: None)  # no power cut is played here
        self._left = 0
        self.struck = False
        for owner, name in (
            (queue_module, "rename_exclusive"),
            (queue_module, "write_json"),
            (system, "_rename_noreplace"),
        ):
            self.patches.setattr(owner, name, self._failing(getattr(owner, name)))

    def without_exclusive_rename(self) -> None:
        """As on a system that has only link and unlink."""
        self.patches.setattr(system, "_rename_noreplace", lambda old, new: False)
        unlink = SimpleNamespace(**{**vars(os), "unlink": self._failing(os.unlink)})
        self.patches.setattr(system, "os", unlink)

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            self._strike()
            answer = real(*words, **more)
            self._strike()
            return answer

        return call

    def _strike(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.struck = True
            raise OSError(5, "Input/output error")

    @contextmanager
    def fault(self, moment: int) -> Iterator[None]:
        """The `moment`-th call of the system, or return from one, fails; 0: none does."""
        self._left, self.struck = moment, False
        try:
            yield
        finally:
            self._left = 0

    def close(self) -> None:
        self.patches.undo()
        self.folder.cleanup()


moments = st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5, 6))
picks = st.integers(0, 10_000)
workers = st.sampled_from(WORKERS)


class QueueRules(RuleBasedStateMachine):
    """An observer, workers and people at one queue, and a model of where everything is."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.layout = self.world.layout
        self.actors: dict[str, Queue] = {}
        self.places: dict[str, QueuePlace] = {}
        """Where each hypothesis that was ever added must be."""
        self.cut_off: set[str] = set()
        """Those whose closing failed half-way: any later step may end it."""
        self.damaged: dict[str, bytes] = {}
        """Id -> what its file held before somebody damaged it."""
        self.strays: set[Path] = set()
        """Damaged files that never were a hypothesis."""
        self.foreign: dict[str, QueuePlace] = {}
        """Another tag's."""

    @initialize(link=st.booleans(), ideas=st.integers(1, 5))
    def start(self, link: bool, ideas: int) -> None:
        if link:
            self.world.without_exclusive_rename()
        self.exclusive = not link
        for number in range(ideas):
            self.add(0, number, False)
            name = self.pick(number, "pending")
            assert name is not None
            self.dispatch(0, name, WORKERS[number % 2])

    def teardown(self) -> None:
        self.world.close()

    # ── tools ─────────────────────────────────────────────────────────────────────────────

    def queue(self, actor: str = OBSERVER) -> Queue:
        return self.actors.setdefault(actor, Queue(self.layout, "t"))

    def pick(self, number: int, *states: str, worker: str | None = None) -> str | None:
        """One of the undamaged ids in these states, and with this worker."""
        found = sorted(
            name
            for name, place in self.places.items()
            if place.state in states and worker in (None, place.worker) and name not in self.damaged
        )
        return found[number % len(found)] if found else None

    def seen(self, name: str) -> QueuePlace:
        found = Queue(self.layout, "t").read(name)
        assert found is not None, f"{name} is lost"
        return found[0]

    def step(
        self,
        moment: int,
        name: str,
        do: Callable[[], object],
        after: QueuePlace,
        *,
        closes: bool = False,
    ) -> None:
        """Takes one step of a hypothesis; one that fails leaves it before or after."""
        before = self.places[name]
        self.look_again()
        if self.places[name] != before:
            return
        was_cut_off = name in self.cut_off
        try:
            with self.world.fault(moment):
                do()
            failed = False
        except AutohypothesisError as error:
            assert self.world.struck or was_cut_off, error
            failed = True
        except OSError:
            assert self.world.struck
            failed = True
        place = self.seen(name)
        allowed = {before, after} if failed else {after}
        if was_cut_off:
            allowed |= {DONE}
        assert place in allowed, f"{name} went from {before} to {place}, not {after}"
        self.places[name] = place
        self.note_cut_off(name)
        assert failed or was_cut_off or name not in self.cut_off

    def note_cut_off(self, name: str) -> None:
        found = Queue(self.layout, "t").read(name)
        assert found is not None
        half = found[0] != DONE and found[1].closed is not None
        (self.cut_off.add if half else self.cut_off.discard)(name)

    def look_again(self) -> None:
        """What was cut off may have been ended by whoever came by."""
        for name in sorted(self.cut_off - self.damaged.keys()):
            if self.seen(name) == DONE:
                self.places[name] = DONE
                self.cut_off.discard(name)

    # ── what the observer and people do ───────────────────────────────────────────────────

    @rule(moment=moments, priority=st.integers(-2, 2), reserved=st.booleans())
    def add(self, moment: int, priority: int, reserved: bool) -> None:
        queue = self.queue()
        proposal = Proposal(title=f"idea\n## {priority}", priority=priority)
        name = queue.reserve() if reserved else None
        try:
            with self.world.fault(moment):
                name = queue.add(proposal, proposer="p", hypothesis_id=name).hypothesis_id
        except (AutohypothesisError, OSError):
            assert self.world.struck
            names = {one.hypothesis_id for one in Queue(self.layout, "t").pending()}
            new = names - self.places.keys()
            assert len(new) <= 1
            assert reserved is False or new <= {name}
            name = new.pop() if new else None
        if name is not None:
            assert name not in self.places
            self.places[name] = PENDING

    @rule(moment=moments)
    def add_baseline(self, moment: int) -> None:
        try:
            with self.world.fault(moment):
                added = self.queue().add_baseline()
            assert (added is None) == ("baseline-t" in self.places)
        except (AutohypothesisError, OSError):
            assert self.world.struck
        if self.layout.hypothesis("baseline-t", "pending").exists():
            self.places.setdefault("baseline-t", PENDING)

    @rule(moves=st.lists(st.tuples(moments, picks, workers, st.integers(0, 2)), min_size=4))
    def moves(self, moves: list[tuple[int, int, str, int]]) -> None:
        """Most of a queue's life; rules alone would be chosen too seldom."""
        for one in moves:
            self.move(*one)
            self.every_hypothesis_is_in_one_state()
            self.on_the_disk_it_is_one_file()

    def move(self, moment: int, number: int, worker: str, way: int) -> None:
        """Takes one hypothesis a step on or back, as its state allows."""
        name = self.pick(number, "pending", "dispatched", "running", "done")
        if name is None:
            return
        place = self.places[name]
        if place.state == "pending" and way:
            self.dispatch(moment, name, worker)
        elif place.state == "dispatched" and way == 1:
            self.step(moment, name, partial(self.queue().withdraw, name), PENDING)
        elif place.state in ("pending", "dispatched") and way == 0:
            self.step(moment, name, partial(self.queue().abandon, name, "no"), DONE)
        elif place.state == "running" and way:
            (self.finish if way == 1 else self.release)(moment, name, str(place.worker))
        elif place.worker is None or place.state == "running":
            self.step(moment, name, partial(self.queue().requeue, name), PENDING)
        else:
            self.claim(moment, place.worker)

    def dispatch(self, moment: int, name: str, worker: str) -> None:
        do = partial(self.queue().dispatch, name, worker)
        self.step(moment, name, do, QueuePlace("dispatched", worker))

    # ── what workers do ───────────────────────────────────────────────────────────────────

    @rule(moment=moments, worker=workers)
    def claim(self, moment: int, worker: str) -> None:
        waiting = {
            name
            for name, place in self.places.items()
            if place == QueuePlace("dispatched", worker) and name not in self.damaged
        }
        best = self.queue().dispatched(worker)[worker]
        assert {one.hypothesis_id for one in best} <= waiting | self.cut_off
        free = [one.hypothesis_id for one in best if one.hypothesis_id not in self.cut_off]
        try:
            with self.world.fault(moment):
                claimed = self.queue(worker).claim(worker)
        except (AutohypothesisError, OSError):
            assert self.world.struck
            for name in free:
                assert self.seen(name) in (
                    QueuePlace("dispatched", worker),
                    QueuePlace("running", worker),
                )
                self.places[name] = self.seen(name)
            return
        got = claimed.hypothesis_id if claimed is not None else None
        if not self.world.struck:
            assert got == (free[0] if free else None)
        if got is not None:
            assert got in free
            for name in free:  # a move that failed half-way may have been made
                place = self.seen(name)
                assert place == QueuePlace("running", worker) if name == got else True
                self.places[name] = place

    def release(self, moment: int, name: str, worker: str) -> None:
        do = partial(self.queue(worker).release, name, worker)
        self.step(moment, name, do, QueuePlace("dispatched", worker))

    def finish(self, moment: int, name: str, worker: str) -> None:
        do = partial(self.queue(worker).finish, name, worker, outcome="ü\n")
        self.step(moment, name, do, DONE)

    # ── what goes wrong ───────────────────────────────────────────────────────────────────

    @rule(actor=st.sampled_from((OBSERVER, *WORKERS)), seconds=st.sampled_from((1.0, 30.0, 61.0)))
    def restart(self, actor: str, seconds: float) -> None:
        """A new process, after a while; the others have it as late."""
        self.world.now += seconds
        self.actors.pop(actor, None)

    @rule(number=picks, worker=workers)
    def a_wrong_step_is_refused(self, number: int, worker: str) -> None:
        queue = self.queue()
        wrong: dict[str, list[Callable[[str], object]]] = {
            "pending": [queue.withdraw, partial(queue.release, worker=worker), queue.requeue],
            "dispatched": [partial(queue.finish, worker=worker), queue.requeue],
            "running": [partial(queue.dispatch, worker=worker), queue.withdraw],
            "done": [partial(queue.dispatch, worker=worker), queue.withdraw],
        }
        for state, steps in wrong.items():
            name = self.pick(number, state)
            if name is not None and name not in self.cut_off:
                with pytest.raises(QueueError):
                    steps[number % len(steps)](name)
        with pytest.raises(QueueError):
            queue.dispatch("h-t-9999", worker)

    @rule(number=picks, content=st.sampled_from(TORN))
    def damage(self, number: int, content: str) -> None:
        name = self.pick(number, "pending", "dispatched", "running", "done")
        if name is not None and name not in self.cut_off:
            path = self.only_path(name)
            if path is not None:
                self.damaged[name] = path.read_bytes()
                path.write_text(content)

    @precondition(lambda self: self.damaged)
    @rule(number=picks)
    def mend(self, number: int) -> None:
        name = sorted(self.damaged)[number % len(self.damaged)]
        path = self.only_path(name)
        assert path is not None
        path.write_bytes(self.damaged.pop(name))

    @precondition(lambda self: self.damaged)
    @rule(number=picks, worker=workers)
    def a_damaged_one_stays_where_it_is(self, number: int, worker: str) -> None:
        name = sorted(self.damaged)[number % len(self.damaged)]
        for do in (self.queue().withdraw, self.queue().requeue):
            with pytest.raises(QueueError):
                do(name)

    def only_path(self, name: str) -> Path | None:
        """Its file, when there is one only; and never one that shares its blocks with another."""
        place = self.places[name]
        path = self.layout.hypothesis(name, place.state, place.worker)
        return path if path.exists() and path.stat().st_nlink == 1 else None

    @rule(content=st.sampled_from(TORN), state=st.sampled_from(("pending", "done")))
    def something_strange_lies_there(self, content: str, state: str) -> None:
        path = self.layout.hypothesis(f"stray-{state}", state)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        self.strays.add(path)

    @rule(worker=workers, given=st.booleans())
    def another_tag_has_ideas(self, worker: str, given: bool) -> None:
        other = Queue(self.layout, "u")
        name = other.add(Proposal(title="theirs"), proposer="p").hypothesis_id
        self.foreign[name] = PENDING
        if given:
            other.dispatch(name, worker)
            self.foreign[name] = QueuePlace("dispatched", worker)

    # ── what must be true ─────────────────────────────────────────────────────────────────

    @invariant()
    def every_hypothesis_is_in_one_state(self) -> None:
        self.look_again()
        fresh = Queue(self.layout, "t")
        found = [(one.hypothesis_id, place) for place, one in fresh.placed()]
        found += [(one.hypothesis_id, DONE) for one in fresh.done()]
        whole = self.places.keys() - self.damaged.keys()
        assert len(found) == len(dict(found))
        assert dict(found) == {name: self.places[name] for name in whole}
        self.counts_agree(fresh.counts())
        named = {Path(problem.path).stem for problem in fresh.problems}
        assert named == {*self.damaged, *(path.stem for path in self.strays)}

    def counts_agree(self, counts: dict[str, int]) -> None:
        states = [place.state for place in self.places.values()]
        states += [path.parent.name for path in self.strays]  # type: ignore[misc]
        for state, count in counts.items():
            assert count == states.count(state), state  # type: ignore[arg-type]

    @invariant()
    def on_the_disk_it_is_one_file(self) -> None:
        root = self.layout.hypotheses("pending").parent
        names = [path.stem for path in root.rglob("*.json") if not path.name.startswith(".")]
        assert set(names) == {*self.places, *self.foreign, *(path.stem for path in self.strays)}
        if self.exclusive:
            assert len(names) == len(set(names))

    @invariant()
    def others_are_left_alone(self) -> None:
        if self.foreign:
            other = Queue(self.layout, "u")
            assert {one.hypothesis_id: place for place, one in other.placed()} == self.foreign


QueueRules.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestQueue = QueueRules.TestCase
