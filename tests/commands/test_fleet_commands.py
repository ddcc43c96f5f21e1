"""`up`, `down`, `restore`, `sync --watch`: the real fleet, on a script that takes a moment."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.commands import fleet as commands_of_a_fleet
from autohypothesis.commands import sync as commands
from autohypothesis.engine.project import Project
from autohypothesis.errors import LaunchError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.supervisor import supervisor
from autohypothesis.fleet.supervisor.snapshot import ledger_ref
from autohypothesis.proposers.configured import of_search
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.locks import hold
from tests.conftest import ROOT, Cli, Git, called
from tests.conftest import wait_until as until

SCRIPT = """import time

RATE = 1.0
WIDTH = 8
SLEEP = {sleep}

time.sleep(SLEEP)
print(f"val_bpb: {{1.5 - RATE / 10:.6f}}")
print("peak_vram_mb: 1")
"""

Answer = subprocess.CompletedProcess[str]


class Place:
    """A repository with a fleet of two CPU lanes, and its commands."""

    def __init__(self, root: Path, git: Git) -> None:
        self.root = root
        self.git = git
        self.layout = Layout(root)
        self.started: list[subprocess.Popen[str]] = []

    def make(self, *, sleep: float = 0.2, fleet: bool = True) -> None:
        self.root.mkdir()
        self.git(self.root, "init", "-q", "-b", "main")
        (self.root / "train.py").write_text(SCRIPT.format(sleep=sleep))
        self.git(self.root, "add", "-A")
        self.git(self.root, "commit", "-q", "-m", "start")
        self.git(self.root, "config", "user.name", "Ada")
        self.git(self.root, "config", "user.email", "ada@example.org")
        if fleet:
            made = self.ask("init-fleet", "--cpu-workers", "1", "--tag", "t")
            assert made.returncode == 0, made.stderr

    def __call__(self, *words: str, **env: str) -> Answer:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=180,
            env={**os.environ, **env},
        )  # fmt: skip

    def ask(self, *words: str) -> Answer:
        """A command that answers, or is refused: in this process."""
        return called(*words, cwd=self.root)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "orchestrator.py"), "--repo", str(self.root), *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def training(self) -> bool:
        return any(one.state == "training" for one in presence.read_heartbeats(self.layout))

    def leases(self) -> list[str]:
        """Lanes that are held."""
        from autohypothesis.engine.devices import cpu_slots, lease_of

        files = (lease for lease in map(lease_of, cpu_slots()))
        return [file.name for file in files if file.holder() is not None]

    def clear(self) -> None:
        for one in supervisor.live_processes(self.layout):
            os.kill(one.process.pid, signal.SIGKILL)
        if (above := supervisor.find_supervisor(self.layout)) is not None:
            os.kill(above.pid, signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.communicate()
        supervisor.cancel_runs(self.layout, supervisor.worker_ids(self.layout), 30)


@pytest.fixture
def place(tmp_path: Path, own_locks: Path, git: Git) -> Iterator[Place]:
    made = Place(tmp_path / "a fleet ü", git)
    yield made
    made.clear()


def test_down_with_nothing_running_is_no_error(cli: Callable[..., Answer]) -> None:
    answer = cli("down")
    assert answer.returncode == 0 and "nothing runs" in answer.stdout


def test_up_in_a_new_repository_does_what_is_missing_and_runs_the_proposer_of_the_manual(
    place: Place,
) -> None:
    """Fleet, baseline, a first question; then it is one of ours, and is changed by nobody."""
    place.make(fleet=False)
    (place.root / "program.md").write_text("VRAM under 39 GB\n")
    page = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 15
    script = place.root.parent / "halves.py"
    script.write_text(code)
    word = f"command:{shlex.join([sys.executable, str(script)])}"

    answer = place("up", "--cpu-workers", "1", "--max-runs", "3", "--proposer", word)

    assert answer.returncode == 0, answer.stderr
    said = [line.split(":")[0] for line in answer.stdout.splitlines() if line[0] != " "]
    tag = json.loads(place.layout.manifest.read_text())["tag"]
    assert said == ["environment", "data", f"fleet {tag}", "baseline", "asked command"]
    assert f"{word}: 1 idea, in" in answer.stdout
    assert f"h-{tag}-0001 from {word}: RATE times 0.5" in answer.stdout
    assert "VRAM under 39 GB" in answer.stderr and "memory_limit_mb: 39936" in answer.stderr
    rows = read_ledger(place.layout)
    assert [row["description"] for row in rows] == ["baseline", "RATE times 0.5", "RATE times 2"]
    assert [row["status"] for row in rows] == ["keep", "discard", "keep"]
    told = json.loads(place.ask("briefing", "--question", "2").stdout)
    assert told["charter"] == "VRAM under 39 GB\n" and told["reference"]["RATE"] == 2.0
    by_hand = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(told), capture_output=True, text=True
    )
    assert json.loads(by_hand.stdout)["title"] == "RATE times 2"


def test_a_device_that_is_held_leaves_the_first_question_to_the_fleet(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    from autohypothesis.engine import devices

    place.make()
    project = Project.open(place.root)
    manifest = presence.read_manifest(place.layout)
    assert manifest is not None
    asked = of_search(None, ["command:false"], mix=None, root=place.root)
    held = devices.lease_of(devices.cpu_slots()[0]).acquire({"experiment_id": "other-1"})
    try:
        assert commands_of_a_fleet._introduce(project, manifest, asked) == 0
    finally:
        devices.release(held)
    assert "other-1" in (said := capsys.readouterr()).err and "asked command" not in said.out


def test_up_changes_no_fleet_on_the_way(place: Place) -> None:
    place.make()
    before = place.layout.manifest.read_bytes()
    refused = place.ask("up", "--gpus", "0")
    assert refused.returncode == 2 and place.layout.manifest.read_bytes() == before
    assert "fleet t has cpu0; --gpus 0 would make it gpu0" in refused.stderr
    assert "init-fleet --gpus 0" in refused.stderr


@pytest.mark.parametrize("role", [["worker", "cpu0"], ["observer"]])
def test_a_role_without_a_fleet_says_how_to_make_one(
    cli: Callable[..., Answer], role: list[str]
) -> None:
    answer = cli(*role)
    assert answer.returncode == 1 and "init-fleet" in answer.stderr


def test_a_gpu_that_is_not_there_is_said_and_nobody_falls_back_to_the_cpu(
    foreign: Path, cli: Callable[..., Answer]
) -> None:
    layout = Layout(foreign)
    worker = {"worker_id": "gpu0", "gpu_id": "0", "device": "GPU-12345678", "kind": "cuda"}
    layout.manifest.parent.mkdir(parents=True)
    layout.manifest.write_text(json.dumps({
        "tag": "t", "created_at": "2026-01-01T00:00:00Z", "repository_root": str(foreign),
        "shared_research_dir": str(layout.research), "workers": [worker],
    }))  # fmt: skip
    answer = cli("up")
    assert answer.returncode == 1
    assert "gpu0" in answer.stderr and "GPU-12345678" in answer.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--proposer", "serch"), "did you mean 'search'"),
        (("--tool-command", "model 'x"), "model 'x"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(
    place: Place, words: tuple[str, ...], problem: str
) -> None:
    place.make()
    answer = place.ask("up", *words)
    assert answer.returncode == 2 and problem in answer.stderr
    assert not supervisor.live_processes(place.layout)


def test_a_watching_sync_packs_what_a_fleet_leaves_behind(
    place: Place, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.make()
    git(place.root, "update-ref", "refs/experiments/a-1", "HEAD")
    repository = Repository.find(place.root)

    def leave(*words: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("autohypothesis.records.git.LOOSE_REFS", 1)
    monkeypatch.setattr(system, "set_process_name", lambda name: None)
    monkeypatch.setattr(commands, "keep", leave)
    assert place.ask("sync", "--watch", "60", "--snapshot").returncode == 0
    assert "refs/experiments/a-1" in (repository.common_dir / "packed-refs").read_text()


@pytest.mark.slow
def test_so_many_runs_and_no_more_are_kept_and_restored_after_a_clean(place: Place) -> None:
    place.make()
    answer = place("up", "--max-runs", "3")
    assert answer.returncode == 0, answer.stderr
    assert len(read_ledger(place.layout)) == 3
    assert "baseline-t-1" in answer.stderr
    assert place.layout.progress_png.exists()
    kept = place.git(place.root, "show", f"{ledger_ref('t')}:experiments.jsonl")
    assert kept.encode() + b"\n" == place.layout.ledger.read_bytes()
    ledger, decisions = place.layout.ledger.read_bytes(), place.layout.decisions.read_bytes()
    place.git(place.root, "clean", "-xdff")
    assert json.loads(place("restore", "--json").stdout)["experiments"] == 3
    assert place.layout.ledger.read_bytes() == ledger
    assert place.layout.decisions.read_bytes() == decisions
    mended = place("init-fleet", "--cpu-workers", "1")
    assert mended.returncode == 0, mended.stderr
    again = place("up", "--max-runs", "1")
    assert again.returncode == 0 and len(read_ledger(place.layout)) == 4
    assert place.layout.ledger.read_bytes().startswith(ledger)
    assert not supervisor.live_processes(place.layout) and not place.leases()


@pytest.mark.slow
def test_the_others_work_while_one_device_is_missing_and_stop_in_time(place: Place) -> None:
    place.make()
    manifest = json.loads(place.layout.manifest.read_text())
    gone = {"worker_id": "gpu7", "gpu_id": "7", "device": "GPU-12345678", "kind": "cuda"}
    manifest["workers"].append(gone)
    place.layout.manifest.write_text(json.dumps(manifest))
    answer = place("up", "--hours", "0.004", "--proposer", "search", "--mix", "0.5")
    assert answer.returncode == 0, answer.stderr
    assert "gpu7 does not train" in answer.stderr and "finished" in answer.stderr
    workers = {row["worker_id"] for row in read_ledger(place.layout)}
    assert workers == {"cpu0"}
    assert not place.layout.role_log("worker-gpu7").exists()


@pytest.mark.slow
def test_a_detached_fleet_outlives_its_terminal_and_down_ends_it(place: Place) -> None:
    place.make(sleep=600.0)
    answer = place("up", "--detach")
    assert answer.returncode == 0, answer.stderr
    assert "monitor" in answer.stdout and "down" in answer.stdout
    status = presence.read_role(place.layout, "supervisor")
    assert status is not None and status.pid is not None and str(status.pid) in answer.stdout
    assert os.getsid(status.pid) != os.getsid(0)
    until(place.training)
    second = place("up", "--detach")
    assert second.returncode == 1 and str(status.pid) in second.stderr
    names = {Path(f"/proc/{one.process.pid}/comm").read_text().strip()
             for one in supervisor.live_processes(place.layout)}  # fmt: skip
    assert {"ah:observer", "ah:worker-cpu0", "ah:tool-builder", "ah:sync"} <= names

    stopped = place("down")
    assert stopped.returncode == 0, stopped.stderr
    assert "worker-cpu0" in stopped.stdout and "supervisor" in stopped.stdout
    assert not supervisor.live_processes(place.layout) and not place.leases()
    waiting = [*place.layout.hypotheses("pending").glob("*.json"),
               *place.layout.hypotheses("dispatched").glob("*/*.json")]  # fmt: skip
    assert "baseline-t.json" in [path.name for path in waiting]


@pytest.mark.slow
def test_ctrl_c_records_what_ran_and_twice_waits_for_nothing(place: Place) -> None:
    place.make(sleep=600.0)
    for presses in (1, 2):
        process = place.start("up")
        until(place.training)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        until(lambda: not supervisor.live_processes(place.layout) and not place.leases())


def test_restore_beside_an_observer_is_refused_by_name(place: Place) -> None:
    place.make()
    assert place.ask("sync", "--snapshot", "--json").returncode == 0
    with hold(place.layout, "observer", doing="observing"):
        answer = place.ask("restore")
    assert answer.returncode == 1 and str(os.getpid()) in answer.stderr


def test_restore_without_a_snapshot_says_where_one_comes_from(cli: Callable[..., Answer]) -> None:
    answer = cli("restore")
    assert answer.returncode == 1 and "git fetch" in answer.stderr


def test_a_watching_sync_takes_in_what_comes_and_leaves_when_asked(place: Place) -> None:
    place.make()
    process = place.start("sync", "--watch", "0.2", "--snapshot")
    until(lambda: place.layout.ledger.exists())
    run = place.layout.run("h-t-0001-1")
    run.folder.mkdir(parents=True)
    run.result.write_text('{"status": "completed", "recorded_at": "2026-01-01T00:00:00Z"}')
    until(lambda: len(read_ledger(place.layout)) == 1)
    until(lambda: "h-t-0001-1" in place.git(place.root, "ls-tree", "-r", ledger_ref("t")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_up_starts_nothing_where_the_data_of_the_search_is_gone(
    cli: Cli, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("init-fleet", "--cpu-workers", "1").returncode == 0

    def gone(*words: object, **more: object) -> None:
        raise LaunchError("the data cannot be located", hint="run: python prepare.py")

    monkeypatch.setattr("autohypothesis.engine.inputs.locate_inputs", gone)
    answer = cli("up", "--max-runs", "1")
    assert answer.returncode == 1 and "the data cannot be located" in answer.stderr
    assert not Layout(foreign).role("supervisor").exists()
