"""Two fleets and a hub that is killed in the middle: nothing is tried twice or lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import sandbox
from autohypothesis.engine.devices import cpu_slots
from autohypothesis.records.rows import NOT_EVIDENCE
from tests.conftest import ROOT
from tests.conftest import run_git as git
from tests.conftest import wait_until as until
from tests.hub.conftest import ADMIN_KEY, Agent, HubProcess, StartProcess

SCRIPT = '''"""A training that is over at once: the higher RATE, the better."""
import time

RATE = 1.0
WIDTH = 8
DEPTH = 4

time.sleep(1.0)
print(f"val_bpb: {1.5 - RATE / 10 + abs(WIDTH - 12) / 100 + abs(DEPTH - 6) / 50:.6f}")
print("peak_vram_mb: 1")
'''
HANG_S = 300.0
needs_bwrap = pytest.mark.skipif(
    not sandbox.works("bwrap"), reason="these hold for the best sandbox there is"
)


class Fleet:
    """One clone, on one core of this machine."""

    def __init__(self, root: Path, name: str, core: int, home: Path) -> None:
        self.root, self.name, self.core = root, name, core
        self.environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
        del self.environment["AUTOHYPOTHESIS_CONFIG"]  # its settings and key are in its own home
        home.mkdir(exist_ok=True)

    def __call__(self, *words: str, check: bool = True) -> str:
        command = [sys.executable, str(ROOT / "orchestrator.py"), "--repo", str(self.root), *words]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True,
            timeout=HANG_S, preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def rows(self) -> list[dict[str, Any]]:
        ledger = self.root / "experiments.jsonl"
        if not ledger.exists():
            return []
        return [json.loads(line) for line in ledger.read_text().splitlines()]

    def outbox(self, state: str) -> list[str]:
        folder = self.root / "research" / "outbox" / state
        return sorted(one.name for one in folder.glob("*.json")) if folder.is_dir() else []


@pytest.fixture
def fleets(tmp_path: Path, own_locks: Path) -> Iterator[Callable[[str], tuple[Fleet, Fleet]]]:
    made: list[Fleet] = []
    cores = [(lane.cores or (0,))[0] for lane in cpu_slots()]

    def make(script: str = SCRIPT) -> tuple[Fleet, Fleet]:
        for number, name in enumerate(("ada", "bob")):
            root = tmp_path / name
            root.mkdir()
            git(root, "init", "-q", "-b", "main")
            (root / "train.py").write_text(script, encoding="utf-8")
            (root / "private.txt").write_text("nobody else's business\n")
            git(root, "add", "-A")
            git(root, "commit", "-q", "-m", f"start of {name}")
            core = cores[number % len(cores)]
            made.append(Fleet(root, name, core, tmp_path / f"home-{name}"))
        return made[0], made[1]

    yield make
    for fleet in made:
        fleet("down", check=False)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def api(hub: HubProcess, path: str) -> Any:
    return Agent(hub.url, "", ADMIN_KEY).get(path)


def join(hub: HubProcess, *fleets: Fleet) -> None:
    for fleet in fleets:
        fleet("hub", "join", hub.url, "--name", fleet.name)
        fleet("init-fleet", "--tag", "t", "--cpu-workers", "1", "--hub", hub.url)


def kill_and_restart(hub: HubProcess, away_s: float) -> None:
    hub.end(signal.SIGKILL)
    time.sleep(away_s)
    hub.start()


def check_nothing_was_tried_twice(results: list[dict[str, Any]], *fleets: Fleet) -> None:
    """No two fleets ran one tree on a claim; what was run unclaimed says so."""
    claimed = {(fleet.name, row["id"]): row["claimed"] for fleet in fleets for row in fleet.rows()}
    by_tree: dict[str, set[str]] = {}
    for one in results:
        name = one["name"].partition(":")[0]
        if claimed.get((one["agent_id"], name)):
            by_tree.setdefault(one["tree"], set()).add(one["agent_id"])
    assert by_tree, "nothing was claimed"
    twice = {tree: agents for tree, agents in by_tree.items() if len(agents) > 1}
    assert not twice


def check_nothing_was_lost(hub: HubProcess, results: list[dict[str, Any]], *fleets: Fleet) -> None:
    """Each decided experiment stands there once, as result and as line; each keep as a commit.

    What `down` cancelled, or the machine lost, says nothing to others.
    """
    posts = api(hub, "/api/channels/results/posts?limit=1000")
    for fleet in fleets:
        told = Counter(one["name"].partition(":")[0] for one in results
                       if one["agent_id"] == fleet.name)  # fmt: skip
        decided = [
            row["id"]
            for row in fleet.rows()
            if row["ordinal"] is not None and row["failure_kind"] not in NOT_EVIDENCE
        ]
        assert told == Counter(decided)
        assert sum(post["agent_id"] == fleet.name for post in posts) == len(decided)
        assert not fleet.outbox("pending") and not fleet.outbox("refused")
    kept = {one["commit"] for one in results if one["status"] == "keep"}
    for commit in kept:
        assert api(hub, f"/api/git/commits/{commit}")["hash"] == commit


@needs_bwrap
@pytest.mark.slow
def test_two_fleets_share_one_hub(
    start_process: StartProcess, fleets: Callable[..., tuple[Fleet, Fleet]]
) -> None:
    hub = start_process("--open-registration", "--port", str(free_port()))
    ada, bob = fleets()
    join(hub, ada, bob)
    for fleet in (ada, bob):
        fleet("up", "--detach", "--max-runs", "100")
    until(lambda: sum(len(fleet.rows()) for fleet in (ada, bob)) >= 8)
    kill_and_restart(hub, away_s=6.0)
    until(lambda: any(one["state"] == "reproduced" for one in api(hub, "/api/leaderboard")))
    for fleet in (ada, bob):
        fleet("down")
        fleet("hub", "deliver")
    results = api(hub, "/api/results?limit=1000")
    check_nothing_was_tried_twice(results, ada, bob)
    check_nothing_was_lost(hub, results, ada, bob)
    winner = next(one for one in api(hub, "/api/leaderboard") if one["state"] == "reproduced")
    checks = api(hub, f"/api/results/{winner['id']}")["verifications"]
    assert {one["agent_id"] for one in checks} == {"ada", "bob"} - {winner["agent_id"]}
    check_history_stays_private(hub, ada, bob)
    check_strangers_code_was_shut_in(ada, bob)


def check_strangers_code_was_shut_in(*fleets: Fleet) -> None:
    for fleet in fleets:
        for row in fleet.rows():
            metadata = fleet.root / "research" / "runs" / row["id"] / "metadata.json"
            if metadata.exists():
                assert json.loads(metadata.read_text())["runtime"]["sandbox"] == "bwrap"


def check_history_stays_private(hub: HubProcess, *fleets: Fleet) -> None:
    """One root for both, of the task's files alone, and no commit as a fleet has it."""
    commits = api(hub, "/api/git/commits?limit=1000")
    roots = {one["hash"] for one in commits if not one["parent_hash"]}
    assert len(roots) == 1
    for one in commits:
        assert hub.git("ls-tree", "-r", "--name-only", one["hash"]).split() == ["train.py"]
    ours = {git(fleet.root, "rev-parse", "HEAD") for fleet in fleets}
    ours |= {row["commit"] for fleet in fleets for row in fleet.rows()}
    assert not ours & {one["hash"] for one in commits}


@pytest.mark.slow
def test_a_fleet_goes_on_without_its_hub(
    start_process: StartProcess, fleets: Callable[..., tuple[Fleet, Fleet]]
) -> None:
    """It is never held up; what is run meanwhile is known as unclaimed, and told later, once."""
    hub = start_process("--open-registration", "--port", str(free_port()))
    ada, _ = fleets()
    join(hub, ada)
    hub.end(signal.SIGKILL)
    ada("up", "--max-runs", "5")
    rows = ada.rows()
    assert len([row for row in rows if row["ordinal"] is not None]) == 5
    assert {row["claimed"] for row in rows if row["parent_commit"]} == {False}
    waiting = ada.outbox("pending")
    assert sum(name.startswith("result.") for name in waiting) == 5
    hub.start()
    ada("hub", "deliver")
    ada("hub", "deliver")
    check_nothing_was_lost(hub, api(hub, "/api/results?limit=1000"), ada)
