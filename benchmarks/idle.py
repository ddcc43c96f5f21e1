"""How little a device waits: gaps between experiments, busy share, claims, a fleet of 64, status.

    python -m benchmarks.idle [--quick] [--lanes N] [--json]

A proposer thinks for as long as a run takes. The fleet runs in its real processes, observer and
workers, on CPU lanes with a training that sleeps; the yardstick in the same run is the loop that
does one thing after the other: think, run, decide. A lane's share is counted from its first lease
to its last claim. Seconds say little on a machine that others use; shares and ratios do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from autohypothesis.engine import devices, runner
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.fleet.proposing import Situation
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis, Proposal
from autohypothesis.schema import Worker as Entry
from benchmarks import _simulated, fold

GOAL_SHARE = 0.9
GOAL_GAP_S = 0.5
CLAIMERS = 8
PER_PROCESS = 8
"""Simulated workers in one process: 64 interpreters would measure this machine's memory."""
SCRIPT = """import time

RATE = 0.0
time.sleep({seconds})
print(f"val_bpb: {{2 - RATE / 100:.6f}}")
print("peak_vram_mb: 1.0")
"""
CLAIMER = """
import sys, pathlib
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.layout import Layout
queue = Queue(Layout(pathlib.Path(sys.argv[1])), "bench")
print("ready", flush=True)
sys.stdin.readline()
while (one := queue.claim("shared")) is not None:
    print(one.hypothesis_id)
"""
SPAN = tuple[float, float]


# ── one lane, or a few ──────────────────────────────────────────────────────────────────────


class Thinker:
    """Thinks for as long as a run takes, then has one idea for each that is wanted."""

    name = "thinker"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.number = 0

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        time.sleep(self.seconds)
        first = len(situation.closed) + len(situation.open) + self.number + 1
        self.number += count
        return [idea(number) for number in range(first, first + count)]


def idea(number: int) -> Proposal:
    """Each is worse than the last, so that the reference stays where it is."""
    return Proposal(title=f"rate {-number}", config_overrides={"RATE": -float(number)})


def make_project(root: Path, seconds: float) -> Project:
    root.mkdir(parents=True)
    (root / "train.py").write_text(SCRIPT.format(seconds=seconds))
    Repository.create(root, "start")
    return Project.open(root).with_tag("bench")


def fleet(root: Path, lanes: int, runs: int, seconds: float) -> dict[str, Any]:
    """Observer and workers until there were `runs` experiments per lane."""
    project = make_project(root, seconds)
    names = [slot.id for slot in devices.cpu_slots()[:lanes]]
    entries = [
        Entry(worker_id=f"cpu{n}", gpu_id=str(n), device=name, kind="cpu")
        for n, name in enumerate(names)
    ]
    _simulated.enlist(project.layout, entries)
    workers = [orchestrator("--repo", str(root), "worker", one.worker_id) for one in entries]
    with ended_with(workers):
        observe(root, runs * lanes, seconds)
    return {"lanes": lanes, **shares(spans(project.layout))}


def observe(root: Path, runs: int, thought: float) -> None:
    """A real observer in a process of its own, until it says that it has finished."""
    words = [sys.executable, "-m", "benchmarks.idle", "--observe", str(root)]
    subprocess.run([*words, "--runs", str(runs), "--thought", str(thought)], check=True)


def _observe(root: Path, runs: int, thought: float) -> None:
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.fleet.observer.observer import Observer
    from autohypothesis.fleet.observer.scheduling import SearchLimits

    with Stop() as stop:
        project = Project.open(root)
        Observer(project, [Thinker(thought)], limits=SearchLimits(max_experiments=runs)).run(stop)


def sequential(root: Path, runs: int, seconds: float) -> dict[str, Any]:
    """Think, run, decide, fold; then again."""
    project = make_project(root, seconds)
    thinker = Thinker(seconds)
    for number in range(runs):
        change = Change()
        if number:
            time.sleep(thinker.seconds)
            change = Change(overrides=idea(number).config_overrides)
        finished = runner.run(project, Experiment(change))
        settle(project, [finished.experiment_id], decided_by="benchmark")
        sync(project.layout)
    return shares(spans(project.layout))


def spans(layout: Layout) -> dict[str, list[tuple[float, float, float]]]:
    """Lane -> (claimed, training began, last process ended) of each run, in order."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for folder in layout.runs.iterdir():
        run, plan = layout.run(folder.name), layout.plan(folder.name)
        if not run.exit.exists():
            continue
        ended, claimed = read_json(run.exit), read_json(plan)["created_at"]
        if ended["status"] == "exited":
            lane = str(read_json(run.metadata)["run"]["gpu_id"])
            moments = (claimed, ended["started_at"], ended["ended_at"])
            found.setdefault(lane, []).append(tuple(map(_epoch, moments)))  # type: ignore[arg-type]
    return {lane: sorted(several, key=lambda one: one[1]) for lane, several in found.items()}


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def shares(lanes: dict[str, list[tuple[float, float, float]]]) -> dict[str, Any]:
    """Busy share from a lane's first lease to its last claim, and the gaps between its runs."""
    busy, windows, gaps, runs = 0.0, 0.0, [], 0
    for several in lanes.values():
        first, last_claim = several[0][1], several[-1][0]
        windows += max(last_claim - first, 0.0)
        busy += sum(max(min(end, last_claim) - began, 0.0) for _, began, end in several)
        gaps += [after[1] - before[2] for before, after in pairwise(several)]
        runs += len(several)
    return {
        "runs": runs,
        "busy_share": round(busy / windows, 4) if windows else None,
        **spread(gaps),
    }


def spread(gaps: list[float]) -> dict[str, Any]:
    """Median, ninetieth percentile and longest of the gaps between experiments, in seconds."""
    if not gaps:
        return {}
    ordered = sorted(gaps)
    return {
        "gap_median_s": round(statistics.median(ordered), 3),
        "gap_p90_s": round(ordered[int(0.9 * (len(ordered) - 1))], 3),
        "gap_longest_s": round(ordered[-1], 3),
    }


# ── processes ───────────────────────────────────────────────────────────────────────────────


def orchestrator(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autohypothesis", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@contextmanager
def ended_with(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The processes are asked to leave at the end, and waited for."""
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(timeout=120)


# ── the queue alone ─────────────────────────────────────────────────────────────────────────


def claims(root: Path, count: int) -> dict[str, Any]:
    """Eight processes claim from one folder, the worst place there is, until it is empty."""
    layout = Layout(root)
    for number in range(count):
        name = f"h-bench-{number:04d}"
        one = Hypothesis(hypothesis_id=name, tag="bench", title=name)
        write_json(layout.hypothesis(name, "dispatched", "shared"), one, durable=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(CLAIMERS)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    started = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    claimed = [name for process in processes for name in process.communicate()[0].split()]
    seconds = time.perf_counter() - started
    return {
        "claimers": CLAIMERS,
        "claims": len(claimed),
        "claims_per_s": round(len(claimed) / seconds, 1),
        "duplicates": len(claimed) - len(set(claimed)),
        "lost": count - len(set(claimed)),
    }


# ── a fleet of devices that are none ────────────────────────────────────────────────────────


def many(root: Path, count: int, runs: int, seconds: float) -> dict[str, Any]:
    """`count` simulated devices under a real observer: what scheduling costs."""
    project = make_project(root, seconds)
    names = [f"sim{n}" for n in range(count)]
    entries = [Entry(worker_id=name, gpu_id=name, device=f"sim-{name}") for name in names]
    _simulated.enlist(project.layout, entries)
    parts = [names[n : n + PER_PROCESS] for n in range(0, count, PER_PROCESS)]
    words = [sys.executable, "-m", "benchmarks._simulated", str(root), str(seconds)]
    processes = [subprocess.Popen([*words, *part], stdout=subprocess.PIPE) for part in parts]
    with ended_with(processes):
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        observe(root, runs * count, 0.0)
    found = {
        name: spans for name, spans in _simulated.times(project.layout).items() if len(spans) > 1
    }
    return {"devices": count, "seconds": seconds, **overhead(list(found.values()), seconds)}


def overhead(devices: list[list[SPAN]], seconds: float) -> dict[str, Any]:
    """Of all devices from the begin of their first run to that of their last."""
    window = sum(several[-1][0] - several[0][0] for several in devices)
    busy = sum(end - began for several in devices for began, end in several[:-1])
    gaps = [after[0] - before[1] for several in devices for before, after in pairwise(several)]
    first = min((several[0][0] for several in devices), default=0.0)
    last = max((several[-1][1] for several in devices), default=0.0)
    runs = sum(map(len, devices))
    return {
        "runs": runs,
        "busy_share": round(busy / window, 4) if window else None,
        "overhead_per_run_s": round(statistics.mean(gaps), 3) if gaps else None,
        "runs_per_s": round(runs / (last - first), 2) if last > first else None,
        "ideal_runs_per_s": round(len(devices) / seconds, 2),
        **spread(gaps),
    }


# ── status ──────────────────────────────────────────────────────────────────────────────────


def status(root: Path, count: int) -> dict[str, Any]:
    """What `status` costs at `count` experiments: the function, and the command in a process."""
    project = make_project(root, 0.0)
    layout = project.layout
    for number in range(count):
        fold.write_bundle(layout, number)
        name = f"h-bench-{number:04d}"
        done = Hypothesis(hypothesis_id=name, tag="bench", title=name, closed="completed")
        write_json(layout.hypothesis(name, "done"), done, durable=False)
    fold.write_decisions(layout, count)
    queue = Queue(layout, "bench")
    for number in range(count, count + 8):
        queue.add(idea(number), proposer="benchmark")
    sync(layout, all=True)
    view, command, syncing = fold.best(
        5,
        lambda _: overview(layout),
        lambda _: orchestrator("--repo", str(root), "status").wait(),
        lambda _: sync(layout),
    )
    return {
        "experiments": count,
        "status_s": round(view, 4),
        "status_command_s": round(command, 3),
        "sync_s": round(syncing, 3),
    }


# ── all of it ───────────────────────────────────────────────────────────────────────────────


def measure(folder: Path, *, quick: bool, lanes: int, runs: int, seconds: float) -> dict[str, Any]:
    say("the fleet")
    found = fleet(folder / "fleet", lanes, runs, seconds)
    say("one after the other")
    alone = sequential(folder / "alone", 3 if quick else max(runs // 3, 4), seconds)
    say("claims")
    taken = claims(folder / "claims", 100 if quick else 1_000)
    say("simulated devices")
    simulation = many(folder / "many", *((16, 2, 5.0) if quick else (64, 4, 30.0)))
    say("status")
    seen = status(folder / "status", 300 if quick else 10_000)
    return {
        "run_seconds": seconds,
        "busy_share": found["busy_share"],
        "sequential_busy_share": alone["busy_share"],
        "gap_median_s": found["gap_median_s"],
        "goals": {"busy_share": GOAL_SHARE, "gap_s": GOAL_GAP_S, "duplicates": 0},
        "fleet": found,
        "sequential": alone,
        "queue": taken,
        "simulated": simulation,
        "status": seen,
    }


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def table(report: dict[str, Any]) -> str:
    found, many_, queue, seen = (report[k] for k in ("fleet", "simulated", "queue", "status"))
    return "\n".join([
        f"{found['runs']} runs of {report['run_seconds']:g} s on {found['lanes']} lane(s), "
        "a thought as long as a run",
        f"  busy share    {found['busy_share']:.3f}   (goal: over {GOAL_SHARE})",
        f"  one by one    {report['sequential_busy_share']:.3f}",
        f"  gap           {found['gap_median_s']:.3f} s median, {found['gap_longest_s']:.3f} s "
        f"longest   (goal: under {GOAL_GAP_S})",
        f"{queue['claims']} claims by {queue['claimers']} processes: "
        f"{queue['claims_per_s']:g} a second, {queue['duplicates']} doubled, {queue['lost']} lost",
        f"{many_['devices']} simulated devices, {many_['runs']} runs of {many_['seconds']:g} s: "
        f"busy {many_['busy_share']}, {many_['overhead_per_run_s']} s between two runs, "
        f"{many_['runs_per_s']} of {many_['ideal_runs_per_s']} runs a second",
        f"status at {seen['experiments']:,} experiments: {1e3 * seen['status_s']:.0f} ms, as a "
        f"command {seen['status_command_s']:.2f} s (a whole sync: {seen['sync_s']:.2f} s)",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="short runs, 16 devices: under a minute"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--lanes", type=int, default=1, help="CPU lanes (default: 1)")
    parser.add_argument("--runs", type=int, help="experiments per lane (default: 32)")
    parser.add_argument("--seconds", type=float, help="of one training (default: 10)")
    parser.add_argument("--observe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--thought", type=float, default=0.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.observe is not None:
        return _observe(chosen.observe, chosen.runs, chosen.thought)
    runs = chosen.runs or (8 if chosen.quick else 32)
    seconds = chosen.seconds or (1.0 if chosen.quick else 10.0)
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        os.environ["AUTOHYPOTHESIS_LOCKS"] = str(Path(folder) / "locks")
        report = measure(
            Path(folder), quick=chosen.quick, lanes=chosen.lanes, runs=runs, seconds=seconds
        )
    print(json.dumps(report, indent=2) if chosen.json else table(report))
    return None


if __name__ == "__main__":
    main()
