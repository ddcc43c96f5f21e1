"""`run-loop`: one process that searches by itself, as a user calls it, kills and stops it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autohypothesis.engine.devices import cpu_slots, lease_of
from autohypothesis.engine.project import Project, is_running
from autohypothesis.fleet import single_loop
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.observer import proposals
from autohypothesis.fleet.supervisor import supervisor
from autohypothesis.fleet.supervisor.snapshot import ledger_ref
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.locks import hold
from autohypothesis.schema import now
from tests.conftest import called
from tests.conftest import run_git as git
from tests.fleet.conftest import Forked
from tests.fleet.test_kill_fleet import check, end, orchestrator, processes

Answer = subprocess.CompletedProcess[str]
Until = Callable[..., None]


class Place:
    """A repository in which loops are started; whatever still runs at the end is killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        self.started: list[subprocess.Popen[str]] = []

    def script(self, old: str, new: str) -> None:
        text = (self.root / "train.py").read_text(encoding="utf-8")
        assert old in text
        (self.root / "train.py").write_text(text.replace(old, new), encoding="utf-8")
        git(self.root, "commit", "-qam", "another script")

    def __call__(self, *words: str, **env: str) -> Answer:
        return subprocess.run(
            orchestrator(self.root, *words), capture_output=True, text=True, timeout=180,
            env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, *words: str) -> Answer:
        """A command that answers, or is refused: in this process."""
        return called(*words, cwd=self.root)

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            orchestrator(self.root, "run-loop", *words), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def rows(self) -> list[list[str]]:
        lines = self.layout.results_tsv.read_text(encoding="utf-8").splitlines()
        return [line.split("\t") for line in lines[1:]]

    def counted(self) -> int:
        """Decided experiments, without those that were queued again."""
        return sum(not one.requeue for one in read_decisions(self.layout)[0])

    def is_training(self) -> bool:
        return any(
            one.state == "training" and presence.worker_lives(one)
            for one in presence.read_heartbeats(self.layout)
        )

    def shims(self) -> list[str]:
        """Experiments that run now."""
        every = (entry.name for entry in self.layout.runs.iterdir())
        return [name for name in every if is_running(self.layout, name)]

    def waiting(self) -> set[str]:
        paths = [
            *self.layout.hypotheses("pending").glob("*.json"),
            *self.layout.hypotheses("dispatched").glob("*/*.json"),
        ]
        return {path.stem for path in paths}

    def has_left(self) -> bool:
        """No process of the loop, and no lease."""
        files = (lease for lease in map(lease_of, cpu_slots()))
        return not processes(self.root) and all(file.holder() is None for file in files)

    def clear(self) -> None:
        for process in self.started:
            end(self.root, process)  # type: ignore[arg-type]
            process.communicate(timeout=30)


@pytest.fixture
def place(fleet_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(proposals, "FIRST_PAUSE_S", 0.05)  # of loops in this process
    made = Place(fleet_root)
    yield made
    made.clear()


# ── a session ───────────────────────────────────────────────────────────────────────────────


def test_a_baseline_and_five_decided_rows_and_the_users_checkout_as_it_was(place: Place) -> None:
    root = place.root
    git(root, "switch", "-qc", "my-own-branch")
    (root / "notes.txt").write_text("staged\n")
    git(root, "add", "notes.txt")
    (root / "train.py").write_text("raise SystemExit('half a thought')\n")
    (root / "untracked.txt").write_text("mine\n")
    before = [git(root, *words) for words in MAX_LIST_RETRIES]

    answer = place("run-loop", "--max", "6", "--tag", "t", "--desc", "night\t1\nof\x1b[31m two")
    assert answer.returncode == 0, answer.stderr
    assert "not committed" in answer.stderr and "6 of 6 experiments" in answer.stderr
    assert [git(root, *words) for words in MAX_LIST_RETRIES] == before
    rows = place.rows()
    assert len(rows) == 6 and rows[0][3:] == ["keep", "night 1 of [31m two: baseline"]
    assert all(len(row) == 5 and row[4].startswith("night 1 of [31m two: ") for row in rows)
    decided = [line for line in answer.stderr.splitlines() if "baseline-t-1" in line]
    assert len(decided) == 1 and decided[0].startswith("keep")
    heads = git(root, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines()
    assert set(heads) == {
        f"refs/heads/{one}" for one in ("main", "my-own-branch", "autoresearch/t")
    }
    assert len(git(root, "worktree", "list").splitlines()) == 1, "its runs need none"
    assert (place.layout.export("solo") / "train.py").is_file()
    assert place.layout.progress_png.exists()
    assert len(read_ledger(place.layout)) >= 6
    kept = git(root, "show", f"{ledger_ref('t')}:experiments.jsonl")
    assert kept.encode() + b"\n" == place.layout.ledger.read_bytes()
    assert place.has_left()

    again = place.ask("run-loop", "--max", "1")
    assert again.returncode == 0, again.stderr
    assert len(place.rows()) == 7 and "1 of 1 experiments" in again.stderr
    assert [row for row in place.rows() if row[4].endswith("baseline")] == rows[:1]
    assert [git(root, *words) for words in MAX_LIST_RETRIES] == before


MAX_LIST_RETRIES = (
    ("status", "--porcelain", "--branch"),
    ("diff", "HEAD"),
    ("diff", "--cached"),
    ("rev-parse", "HEAD", "main", "my-own-branch"),
    ("stash", "list"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_loop_killed_at_any_moment_goes_on_to_one_baseline_and_five_decided_rows(
    place: Place, until: Until, seed: int
) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 0.4")
    words, chance = ("--max", "6", "--tag", "t", "--desc", "night"), random.Random(seed)
    for _ in range(6 if seed == 1 else 4):
        process = place.start(*words)
        try:
            process.wait(timeout=chance.uniform(0.5, 4.0))
            break  # it has come to its end between the kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)
        if _is_done(place):
            break  # it had said its last word
    else:
        answer = place("run-loop", *words)
        assert answer.returncode == 0, answer.stderr
    assert len(place.rows()) == 6, place.rows()
    assert sum(row[4] == "night: baseline" for row in place.rows()) == 1
    until(place.has_left)
    check(Project.open(place.root))
    git(place.root, "fsck", "--no-dangling")


def _is_done(place: Place) -> bool:
    status = presence.read_role(place.layout, "loop")
    return status is not None and status.state == "finished"


def test_a_training_that_outlived_its_loop_is_taken_over_and_counts_once(
    place: Place, until: Until
) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 3.0")
    process = place.start("--max", "1", "--tag", "t")
    until(place.is_training)
    process.kill()
    process.wait(timeout=30)
    status = place.ask("status")
    assert "died at 0 of 1 experiments" in status.stdout and "run-loop" in status.stdout
    answer = place("run-loop", "--max", "1")
    assert answer.returncode == 0, answer.stderr
    assert "goes on with the session" in answer.stderr
    rows = read_ledger(place.layout)
    assert [row["id"] for row in rows] == ["baseline-t-1"] and rows[0]["status"] == "keep"


def test_down_ends_the_training_of_a_loop_that_was_killed(place: Place, until: Until) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 600.0")
    process = place.start("--tag", "t")
    until(place.is_training)
    process.kill()
    process.wait(timeout=30)
    answer = place("down")
    assert answer.returncode == 0 and "baseline-t-1" in answer.stdout, answer
    until(place.has_left)


# ── beside others ───────────────────────────────────────────────────────────────────────────


def test_everything_else_on_its_search_is_refused_by_name_and_ctrl_c_ends_it(
    place: Place, until: Until
) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 600.0")
    process = place.start("--max", "6", "--tag", "t")
    until(place.is_training)
    for words in (
        ("run-loop",), ("run-loop", "--tag", "other"), ("up",), ("observer",),
        ("init-fleet", "--cpu-workers", "1"), ("bootstrap", "--cpu-workers", "1"),
    ):  # fmt: skip
        answer = place.ask(*words)
        said = f"{words}: {answer.stderr}"
        assert answer.returncode == 1 and f"pid {process.pid} " in answer.stderr, said
        assert "run-loop of t" in answer.stderr and "orchestrator.py down" in answer.stderr, said
        assert "0 of 6 experiments" in answer.stderr, said
    other = place.ask("run-experiment", "--tag", "other", "--baseline")
    assert other.returncode == 1 and f"pid {process.pid} " in other.stderr, other.stderr

    status, look = place.ask("status"), place.ask("monitor", "--iterations", "1")
    assert "0 of 6 experiments" in status.stdout and "not started" not in status.stdout
    assert "baseline" in look.stdout
    assert place.ask("digest").returncode == place.ask("sync").returncode == 0

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: git's processes get it as well
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "stops" in said and "0 of 6 experiments" in said and "it was stopped" in said
    assert [path.stem for path in place.layout.hypotheses("dispatched").rglob("*.json")] == []
    assert "baseline-t" in place.waiting()
    decisions, _ = read_decisions(place.layout)
    assert [(one.experiment_id, one.requeue) for one in decisions] == [("baseline-t-1", True)]
    until(place.has_left)


def test_ctrl_c_twice_waits_for_nothing_and_a_closed_terminal_leaves_the_training(
    place: Place, until: Until
) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 600.0")
    process = place.start("--tag", "t")
    until(place.is_training)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    until(place.has_left)
    process = place.start("--tag", "t")
    until(lambda: place.is_training() and place.shims())
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert not place.has_left(), "the training ended with its terminal"
    supervisor.cancel_runs(place.layout, supervisor.worker_ids(place.layout), 60)


def test_a_loop_beside_a_fleet_is_refused_by_name(place: Place) -> None:
    assert place.ask("init-fleet", "--cpu-workers", "1", "--tag", "t").returncode == 0
    for name in ("supervisor", "observer", "worker-cpu0"):
        with hold(place.layout, name, doing="up"):
            answer = place.ask("run-loop")
        assert answer.returncode == 1, answer.stderr
        assert name in answer.stderr and f"pid {os.getpid()} " in answer.stderr
        assert "orchestrator.py down" in answer.stderr
    assert not place.layout.runs.exists()


@pytest.mark.slow
def test_what_a_killed_loop_held_a_fleet_runs_and_the_other_way_round(
    place: Place, until: Until
) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 3.0")
    process = place.start("--max", "6", "--tag", "t")
    until(place.is_training)
    process.kill()
    process.wait(timeout=30)
    assert place("init-fleet", "--cpu-workers", "1").returncode == 0
    manifest = place.layout.manifest.read_bytes()
    assert place("up", "--max-runs", "2").returncode == 0
    assert [row[4] for row in place.rows()].count("baseline") == 1
    assert place.counted() == 2  # one of which may repeat the baseline
    assert place("run-loop", "--max", "1").returncode == 0
    assert place.counted() == 3
    assert place.layout.manifest.read_bytes() == manifest
    until(place.has_left)
    check(Project.open(place.root))


def test_of_two_loops_at_once_one_is_refused(place: Place, until: Until) -> None:
    gate = place.root / "go"
    place.script('GATE = ""', f"GATE = {str(gate)!r}")
    both = [place.start("--max", "1", "--tag", "t") for _ in range(2)]
    until(lambda: any(process.poll() is not None for process in both))
    gate.touch()
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    refused = said[[process.returncode for process in both].index(1)]
    assert "run-loop of t" in refused
    assert len(place.rows()) == 1


# ── how it ends ─────────────────────────────────────────────────────────────────────────────


def test_a_failed_baseline_ends_it_with_the_log_and_what_to_run(place: Place) -> None:
    place.script('MODE = "train"', 'MODE = "crash"')
    answer = place.ask("run-loop", "--tag", "t")
    assert answer.returncode == 1
    assert "MODE is no good" in answer.stderr and "run-loop --tag NAME" in answer.stderr
    assert answer.stderr.count("log: Traceback") == 1, "said twice"
    assert [row[3] for row in place.rows()] == ["crash"]
    assert place.has_left()


def test_a_worker_that_fails_is_made_anew_after_pauses_that_double_from_the_first(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = single_loop.SingleLoop(fleet_project, (), single_loop.LoopSession(tag="t", begun=now()))
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            loop._worker_leaves.set()

    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(single_loop, "FleetWorker", broken)
    monkeypatch.setattr(loop._worker_leaves, "wait", wait)
    loop._work(Stop())
    assert pauses == [1.0, 2.0, 4.0]


def test_it_ends_when_there_is_nothing_left_to_try(place: Place) -> None:
    (place.root / "train.py").write_text(
        'FLAG = True\nprint("val_bpb:", 1.0 if FLAG else 1.5)\nprint("peak_vram_mb: 1")\n'
    )
    git(place.root, "commit", "-qam", "hardly anything to set")
    answer = place.ask("run-loop", "--max", "0", "--tag", "t")
    assert answer.returncode == 0, answer.stderr
    assert "no proposer has an idea left" in answer.stderr
    assert [row[3] for row in place.rows()] == ["keep", "discard"]
    assert place.has_left()


def run_loop(tell: Callable[[object], None], root: Path, *words: str) -> None:
    proposals.FIRST_PAUSE_S = 0.05
    tell(called("run-loop", *words, cwd=root))


def test_with_people_to_wait_for_it_waits_until_it_is_stopped(
    place: Place, until: Until, forked: Callable[..., Forked]
) -> None:
    words = ("--max", "0", "--tag", "t", "--proposer", "inbox", "--desc", "by hand")
    loop = forked(run_loop, place.root, *words)
    until(lambda: place.layout.results_tsv.exists() and len(place.rows()) == 1)
    time.sleep(1.0)  # longer than nobody's having an idea would take
    assert loop.process.is_alive()
    place.layout.inbox.mkdir(exist_ok=True)
    idea = {"title": "wider", "config_overrides": {"WIDTH": 9}}
    (place.layout.inbox / "mine.json").write_text(json.dumps(idea))
    until(lambda: len(place.rows()) == 2)
    loop.process.terminate()
    (answer,) = loop.end()
    assert answer.returncode == 0, answer.stderr
    assert [row[4] for row in place.rows()] == ["by hand: baseline", "by hand: wider"]
    assert "2 experiments" in answer.stderr
    status = presence.read_role(place.layout, "loop")
    assert status is not None and status.state == "stopped"


def test_what_another_search_left_undecided_keeps_nobody_waiting(place: Place) -> None:
    assert place.ask("run-experiment", "--tag", "other", "--baseline").returncode == 0
    answer = place.ask("run-loop", "--max", "1", "--tag", "t")
    assert answer.returncode == 0, answer.stderr
    assert len(place.rows()) == 1


def test_after_its_hours_nothing_begins(place: Place) -> None:
    place.script("SLEEP = 0.0", "SLEEP = 0.3")
    answer = place.ask("run-loop", "--max", "0", "--hours", "0.001", "--tag", "t")
    assert answer.returncode == 0, answer.stderr
    assert "its time is over" in answer.stderr and place.rows()
    assert place.has_left()


def test_who_stops_reading_its_words_does_not_end_it(place: Place) -> None:
    process = place.start("--max", "2", "--tag", "t")
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    assert process.wait(timeout=120) == 0
    assert len(place.rows()) == 2


# ── what is refused before anything begins ──────────────────────────────────────────────────


def test_what_is_in_the_way_is_named_before_anything_begins(place: Place) -> None:
    def refused(*words: str, code: int = 1) -> str:
        answer = place.ask("run-loop", "--tag", "t", *words)
        assert answer.returncode == code and not place.layout.manifest.exists(), answer.stderr
        return answer.stderr

    assert "did you mean 'search'" in refused("--proposer", "serch", code=2)
    own = place.root / "worktrees" / "solo-next"
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("mine\n")
    assert str(own) in refused()
    assert (own / "thesis.txt").exists()


def test_a_script_that_was_never_committed_is_said(place: Place) -> None:
    git(place.root, "rm", "-q", "--cached", "train.py")
    (place.root / "README.md").write_text("about\n")
    git(place.root, "add", "README.md")
    git(place.root, "commit", "-qm", "no script")
    for words in (["run-loop"], ["up", "--max-runs", "1"], ["init-fleet", "--cpu-workers", "1"]):
        answer = place.ask(*words)
        assert answer.returncode == 1 and "has no train.py" in answer.stderr
        assert not place.layout.manifest.exists()


def test_a_script_that_is_a_link_is_said_instead_of_searched(place: Place) -> None:
    (place.root / "train.py").rename(place.root / "real.py")
    (place.root / "train.py").symlink_to("real.py")
    git(place.root, "add", "-A")
    git(place.root, "commit", "-qm", "a link")
    for words in (["run-loop"], ["init-fleet", "--cpu-workers", "1"]):
        answer = place.ask(*words, "--tag", "t")
        assert answer.returncode == 1 and "train.py is a symbolic link" in answer.stderr
        assert not place.layout.manifest.exists()
    assert "train.py is a symbolic link" in place.ask("doctor").stdout


# ── somebody else's repository ──────────────────────────────────────────────────────────────

THEIR_PREPARE = """import os

CACHE_DIR = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch")


def evaluate_bpb(width, rate):
    with open(os.path.join(CACHE_DIR, "data", "shard.txt")) as shard:
        return float(shard.read()) + (rate - 0.3) ** 2 + width * 0.001
"""
THEIR_TRAIN = """from prepare import evaluate_bpb

ASPECT_RATIO = 64       # width is depth * ASPECT_RATIO
DEPTH = 8
WINDOW_PATTERN = "SSSL"
# Optimization
MATRIX_LR = 0.04

for step in range(3):
    print(f"\\rstep {step:05d} ({100 * step / 3:.1f}%) | loss: 2.0 | lrm: 1.00 | dt: 3ms", end="")
print()
print("---")
print(f"val_bpb:          {evaluate_bpb(DEPTH, MATRIX_LR):.6f}")
print("training_seconds: 1.0")
print("peak_vram_mb:     45060.2")
print(f"depth:            {DEPTH}")
"""


@pytest.fixture
def theirs(tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """In the original's layout, with names of ours and other things in them."""
    home = tmp_path / "their home"
    (home / ".cache" / "autoresearch" / "data").mkdir(parents=True)
    (home / ".cache" / "autoresearch" / "data" / "shard.txt").write_text("1.0")
    monkeypatch.setenv("HOME", str(home))
    root = tmp_path / "theirs"
    root.mkdir()
    git(root, "init", "-q", "-b", "master")
    for name, text in {
        "prepare.py": THEIR_PREPARE,
        "train.py": THEIR_TRAIN,
        "pyproject.toml": '[project]\nname = "autoresearch"\nversion = "0.1.0"\n',
        "program.md": "# autoresearch\n\nRun the loop.\n",
        "tasks/pretrain/task.yaml": "name: pretrain\nsteps: [tokenize, train]\n",
        ".gitignore": "results.tsv\nrun.log\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "initial commit")
    made = Place(root)
    yield made
    made.clear()


def test_a_repository_in_the_originals_layout_with_its_data_in_the_home_folder(
    theirs: Place,
) -> None:
    head = git(theirs.root, "rev-parse", "HEAD")
    answer = theirs.ask("run-loop", "--max", "4", "--tag", "mar5")
    assert answer.returncode == 0, answer.stderr
    rows = theirs.rows()
    assert len(rows) == 4 and {row[3] for row in rows} <= {"keep", "discard"}, rows
    assert float(rows[0][1]) == pytest.approx(1.0756) and rows[0][2] == "44.0"
    assert any("MATRIX_LR 0.04" in row[4] for row in rows), rows
    assert git(theirs.root, "rev-parse", "HEAD") == head
    assert git(theirs.root, "status", "--porcelain") == ""
    changed = git(theirs.root, "diff", "--name-only", "master", "autoresearch/mar5")
    assert changed in ("", "train.py")
