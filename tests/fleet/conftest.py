"""What a fleet's tests share: a project whose trainings take a moment, and processes to kill."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Proposal
from tests.conftest import NewRepository, wait_until

SCRIPT = '''"""A training that is over at once: the higher RATE, the better."""
import os
import time

RATE = 1.0
WIDTH = 8
SLEEP = 0.0
MODE = "train"
GATE = ""

if MODE == "crash":
    raise ValueError("MODE is no good")
time.sleep(SLEEP)
while GATE and not os.path.exists(GATE):
    time.sleep(0.02)
print(f"val_bpb: {1.5 - RATE / 10:.6f}")
print("peak_vram_mb: 1")
'''


@pytest.fixture
def fleet_root(tmp_path: Path, own_locks: Path, new_repository: NewRepository) -> Path:
    """A repository with `SCRIPT` as its train.py and nothing of ours, leases of its own."""
    root = new_repository(tmp_path / "fleet ü", {"train.py": SCRIPT})
    with (root / ".git" / "config").open("a") as file:
        file.write("[user]\n\tname = Ada\n\temail = ada@example.org\n")
    return root


@pytest.fixture
def fleet_project(fleet_root: Path) -> Project:
    """The project of `fleet_root`, with tag `t` active and its reference made."""
    return Project.open(fleet_root).with_tag("t")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root with nothing in it: what needs no git."""
    root = tmp_path / "repo"
    root.mkdir()
    return Layout(root)


@pytest.fixture
def queue(layout: Layout) -> Queue:
    return Queue(layout, "t")


def propose(queue: Queue, title: str = "idea", **more: object) -> str:
    """Adds an idea and returns its id."""
    proposal = Proposal.model_validate({"title": title, **more})
    return queue.add(proposal, proposer="test").hypothesis_id


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.fleet.conftest", "autohypothesis.fleet.sync"])


def _tell(
    target: Callable[..., None],
    connection: Connection,
    environment: dict[str, str],
    words: Sequence[object],
) -> None:
    os.environ.update(environment)  # that of the test, not that of the first fork
    target(connection.send, *words)


class Forked:
    """A process that was forked for a test, and what it tells."""

    def __init__(self, target: Callable[..., None], *words: object) -> None:
        self._ear, mouth = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(
            target=_tell, args=(target, mouth, dict(os.environ), words), daemon=True
        )
        self.process.start()
        mouth.close()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def hear(self) -> Any:
        return self._ear.recv()

    def end(self, *, kill: bool = False) -> list[Any]:
        """Wait for its end, or bring it about; return what it told."""
        if kill:
            self.process.kill()
        told = []
        with suppress(EOFError, OSError):
            while True:
                told.append(self._ear.recv())
        self.process.join(60)
        return told


@pytest.fixture
def forked() -> Iterator[Callable[..., Forked]]:
    """`forked(target, *words)` runs `target(tell, *words)` in a process of its own, at once.

    What it gives to `tell` can be heard. Both are functions of a module, and whatever still runs at
    the end of the test is killed.
    """
    started: list[Forked] = []

    def start(target: Callable[..., None], *words: object) -> Forked:
        started.append(Forked(target, *words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.join(60)


class Killed(BaseException):
    """Stands for a kill -9 of this process: nobody may catch it."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """`killed_at(n, names, step)`: runs `step`, which dies at the n-th call of a named function.

    Odd: before the call, even: after it. True when it died, False when it came to its end.
    """

    def run(moment: int, names: Sequence[str], step: Callable[[], object]) -> bool:
        left = moment

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*words: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                answer = real(*words, **more)
                left -= 1
                if left == 0:
                    raise Killed
                return answer

            return call

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(name, dying(resolve(name)))
            try:
                step()
            except Killed:
                return True
        return False

    return run


def resolve(name: str) -> Callable[..., object]:
    found: Callable[..., object] = pkgutil.resolve_name(name)
    return found


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until
