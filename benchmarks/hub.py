"""A hub under agents: pushes beside bare git, reads at growing sizes, a crowd, memory.

    python -m benchmarks.hub [--quick] [--large] [--json]

A real server on loopback, filled by real pushes. A push stands beside `git index-pack` of the same
bundle, taken in turn; the protocol's pushes are measured, which bring all of their history each
time. Absolute goals are for an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks._hub import Agent, Served, filling, git, pushes, served

GOALS = {"push_over_index_pack": 3.0, "push_extra_s": 0.025, "read_s": 0.020, "crowd_errors": 0}
"""A push may take three times what bare git takes, and 25 ms."""
POSTS, RESULTS = 200, 1_000
PLATFORMS = 10
"""A board for each."""
POLLING, PUSHING = 50, 10
PAUSE_S = 0.2
"""Of an agent that polls, between two questions."""
MOST_LEAVES = 999
"""Beside the end of the line: what one answer holds."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each."""

    sizes: tuple[int, ...]
    """Commits in a row; pushes, reads and the crowd are measured at `busy`."""
    busy: int
    pushes: int
    read_s: float
    """For each route."""
    crowd_s: float
    crowd_pushes: int
    """That each pushing agent has ready."""


QUICK = Plan((100, 1_000), 1_000, 20, 0.3, 3.0, 8)
FULL = Plan((100, 10_000), 10_000, 100, 2.0, 15.0, 40)
LARGE = 100_000


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────


def share(times: Sequence[float], part: float) -> float:
    """The time that `part` of them do not exceed."""
    ordered = sorted(times)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def spread(times: Sequence[float]) -> Figures:
    return {"p50_s": round(share(times, 0.5), 5), "p99_s": round(share(times, 0.99), 5)}


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times.append(time.perf_counter() - started)


# ── pushes ──────────────────────────────────────────────────────────────────────────────────


def pushing(agent: Agent, bundles: Sequence[bytes], folder: Path) -> Figures:
    """Each bundle to the hub and to bare git, in turn."""
    bare = folder / "bare.git"
    git(folder, "init", "-q", "--bare", str(bare))
    words = ["git", "-C", str(bare), "index-pack", "--stdin"]
    ours: list[float] = []
    theirs: list[float] = []
    for bundle in bundles:
        with timed(ours):
            agent.push(bundle)
        pack = bundle[bundle.index(b"\n\n") + 2 :]
        with timed(theirs):
            subprocess.run(words, input=pack, check=True, capture_output=True)
    push, index_pack = spread(ours), spread(theirs)
    limit = GOALS["push_over_index_pack"] * index_pack["p50_s"] + GOALS["push_extra_s"]
    return {
        "pushes": len(bundles),
        "bundle_bytes": len(bundles[0]),
        "push": push,
        "index_pack": index_pack,
        "ratio_p50": round(push["p50_s"] / index_pack["p50_s"], 2),
        "ratio_p99": round(push["p99_s"] / index_pack["p99_s"], 2),
        "limit_p50_s": round(limit, 5),
        "met": push["p50_s"] <= limit,
    }


# ── reads ───────────────────────────────────────────────────────────────────────────────────


def routes() -> dict[str, str]:
    """What agents ask for all the time; `health` is what HTTP costs with next to nothing behind."""
    return {
        "health": "/api/health",
        "leaves": "/api/git/leaves",
        "commits": "/api/git/commits?limit=50",
        "posts": "/api/channels/results/posts?limit=50",
        "results": "/api/results?limit=50",
        "leaderboard": "/api/leaderboard?limit=50",
    }


def reading(agent: Agent, seconds: float) -> Figures:
    """One question after another, on one connection."""
    found: Figures = {}
    for name, path in routes().items():
        times: list[float] = []
        size = len(agent.get(path))
        while sum(times) < seconds:
            with timed(times):
                agent.get(path)
        found[name] = {
            "per_s": round(len(times) / sum(times), 1), "bytes": size, **spread(times)
        }  # fmt: skip
    return found


def board(agent: Agent) -> None:
    """A channel of results as lines, and more results as such, on a few boards."""
    agent.tell("/api/channels", {"name": "results", "description": "experiment results"})
    for number in range(POSTS):
        line = f"commit:{number:07x} platform:H100 val_bpb:{1 + number / 1e4:.6f} vram_gb:44.0"
        agent.tell("/api/channels/results/posts", {"content": f"{line} | try {number} (DISCARD)"})
    task = {"name": "bench", "metric": "val_bpb", "direction": "minimize", "min_delta": 0.002}
    agent.tell("/api/tasks", {**task, "task_hash": "1" * 64})
    for number in range(RESULTS):
        platform = number % PLATFORMS
        agent.tell(
            "/api/results",
            {
                "name": f"try-{number}",
                "commit": f"{number:040x}",
                "platform": f"device-{platform}",
                "platform_key": f"{platform:064x}",
                "task_hash": "1" * 64,
                "metric": "val_bpb",
                "value": 1 + number / 1e4,
                "status": "keep" if number % 3 else "discard",
                "description": "a change as agents make it " * 4,
            },
        )


# ── a crowd ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Crowd:
    """What became of the questions of many agents at one time."""

    until: float
    polls: list[float] = field(default_factory=list)
    pushed: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def poll(self, agent: Agent, first: int) -> None:
        paths = list(routes().values())[1:]
        for path in cycle(paths[first % len(paths) :] + paths[: first % len(paths)]):
            if time.monotonic() > self.until:
                return
            self._once(self.polls, partial(agent.get, path))
            time.sleep(PAUSE_S)

    def push(self, agent: Agent, bundles: Sequence[bytes]) -> None:
        for bundle in bundles:
            if time.monotonic() > self.until:
                return
            self._once(self.pushed, partial(agent.push, bundle))

    def _once(self, times: list[float], ask: Callable[[], object]) -> None:
        try:
            with timed(times):
                ask()
        except Exception as error:  # whatever it is, it is what an agent would have seen
            self.errors.append(f"{type(error).__name__}: {error}")


def crowding(hub: Served, bundles: Sequence[bytes], plan: Plan) -> Figures:
    """Agents that poll, and agents that push as fast as they are answered."""
    readers = [hub.agent(f"poller-{number}") for number in range(POLLING)]
    writers = [hub.agent(f"pusher-{number}") for number in range(PUSHING)]
    crowd = Crowd(time.monotonic() + plan.crowd_s)
    started = time.perf_counter()
    threads = [
        threading.Thread(target=crowd.poll, args=(agent, number))
        for number, agent in enumerate(readers)
    ]
    threads += [
        threading.Thread(target=crowd.push, args=(agent, bundles[number::PUSHING]))
        for number, agent in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {
        "polling": POLLING, "pushing": PUSHING, "seconds": round(seconds, 1),
        "polls": len(crowd.polls), "poll": spread(crowd.polls),
        "pushes": len(crowd.pushed), "push": spread(crowd.pushed),
        "pushes_per_s": round(len(crowd.pushed) / seconds, 1),
        "errors": len(crowd.errors), "first_error": crowd.errors[0] if crowd.errors else "",
    }  # fmt: skip


# ── sizes ───────────────────────────────────────────────────────────────────────────────────


def fill(agent: Agent, folder: Path, commits: int) -> Figures:
    leaves = min(MOST_LEAVES, commits // 10)
    times: list[float] = []
    for bundle in filling(folder, commits, leaves):
        with timed(times):
            agent.push(bundle)
    every = commits + leaves
    return {
        "commits": every, "fill_pushes": len(times), "fill_s": round(sum(times), 2),
        "fill_commits_per_s": round(every / sum(times)),
    }  # fmt: skip


def lists(agent: Agent, rounds: int = 30) -> Figures:
    """The frontier, and a page of commits from the front and from the far end."""
    found: Figures = {}
    every = len(json.loads(agent.get("/api/git/leaves")))
    for name, path in {
        "leaves": "/api/git/leaves",
        "page": "/api/git/commits?limit=50",
        "page_of_200": "/api/git/commits?limit=200&offset=200",
    }.items():
        times: list[float] = []
        for _ in range(rounds):
            with timed(times):
                agent.get(path)
        found[f"{name}_s"] = round(share(times, 0.5), 5)
    return {"leaves": every, **found}


def lineage(hub: Served, agent: Agent) -> Figures:
    """The longest line there is, read as it comes."""
    newest = json.loads(agent.get("/api/git/leaves"))
    tip = max(newest, key=lambda one: int(one["message"].split()[-1]))["hash"]
    before, hub.peak_mb = hub.resident_mb(), 0.0
    first: list[float] = []
    whole: list[float] = []
    with hub.watched(), timed(whole):
        with timed(first):
            answer = agent.stream(f"/api/git/commits/{tip}/lineage")
            content = answer.read(1)
        content += answer.read()
    return {
        "lineage_commits": len(json.loads(content)),
        "lineage_first_byte_s": round(first[0], 5),
        "lineage_s": round(whole[0], 4),
        "lineage_mb": round(max(hub.peak_mb - before, 0.0), 1),
    }


# ── all of it ───────────────────────────────────────────────────────────────────────────────


def at_size(folder: Path, commits: int, plan: Plan) -> Figures:
    """One hub: filled, looked at and, where it is the busy one, used."""
    folder.mkdir()
    with served(folder / "data") as hub:
        agent = hub.agent("filler")
        with hub.watched():
            figures = fill(agent, folder / "history.git", commits)
        filled = hub.peak_mb
        agent = hub.agent("reader")  # a connection that did not wait while the bundles were made
        figures |= {**lists(agent), **lineage(hub, agent)}
        if commits == plan.busy:
            with hub.watched():
                figures["used"] = used(hub, folder, plan)
        peak = max(filled, hub.peak_mb)
        return {**figures, "start_mb": round(hub.start_mb, 1), "peak_mb": round(peak, 1)}


def used(hub: Served, folder: Path, plan: Plan) -> Figures:
    bundles = pushes(folder / "pushes.git", plan.pushes + PUSHING * plan.crowd_pushes)
    agent = hub.agent("busy")
    board(agent)
    say("pushes")
    pushed = pushing(agent, bundles[: plan.pushes], folder)
    say("reads")
    read = reading(hub.agent("curious"), plan.read_s)
    say("a crowd")
    return {
        "push": pushed, "reads": read, "crowd": crowding(hub, bundles[plan.pushes :], plan)
    }  # fmt: skip


def measure(folder: Path, plan: Plan) -> Figures:
    sizes: Figures = {}
    found: Figures = {"goals": GOALS}
    for commits in plan.sizes:
        say(f"a hub of {commits:,} commits")
        figures = at_size(folder / str(commits), commits, plan)
        found |= figures.pop("used", {})
        sizes[str(commits)] = figures
    return {**found, "sizes": sizes, "missed": missed(found, sizes)}


def missed(found: Mapping[str, Any], sizes: Mapping[str, Figures]) -> list[str]:
    """The goals that were not met, in words."""
    said = []
    if not found["push"]["met"]:
        said.append("a push: 3 times index-pack and 25 ms")
    if found["crowd"]["errors"]:
        said.append(f"a crowd without errors: {found['crowd']['first_error']}")
    for commits, row in sizes.items():
        for name in ("leaves", "page"):
            if row[f"{name}_s"] > GOALS["read_s"]:
                said.append(f"{name} at {commits} commits: {1e3 * row[f'{name}_s']:.1f} ms")
    return said


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def table(report: Figures) -> str:
    push, crowd = report["push"], report["crowd"]
    lines = [
        f"{push['pushes']} pushes of {push['bundle_bytes']:,} bytes, as the protocol has them",
        f"  push          {ms(push['push']['p50_s'])} median, {ms(push['push']['p99_s'])} p99   "
        f"(goal: median under {ms(push['limit_p50_s'])})",
        f"  index-pack    {ms(push['index_pack']['p50_s'])} median, "
        f"{ms(push['index_pack']['p99_s'])} p99   ratio {push['ratio_p50']}, {push['ratio_p99']}",
        "one question after another",
        *(
            f"  {name:<12} {row['per_s']:>7,.0f} a second, {ms(row['p50_s'])} median, "
            f"{ms(row['p99_s'])} p99, {row['bytes']:,} bytes"
            for name, row in report["reads"].items()
        ),
        f"{crowd['polling']} agents poll, {crowd['pushing']} push, {crowd['seconds']} s",
        f"  polls        {crowd['polls']:>7,}: {ms(crowd['poll']['p50_s'])} median, "
        f"{ms(crowd['poll']['p99_s'])} p99",
        f"  pushes       {crowd['pushes']:>7,}: {ms(crowd['push']['p50_s'])} median, "
        f"{ms(crowd['push']['p99_s'])} p99, {crowd['pushes_per_s']} a second",
        f"  errors       {crowd['errors']:>7}   (goal: 0)",
        f"{'commits':>8} {'fill':>8} {'leaves':>9} {'page':>9} {'of 200':>9} "
        f"{'first byte':>11} {'lineage':>9} {'memory':>8} {'start':>8} {'peak':>8}",
    ]
    for row in report["sizes"].values():
        lines.append(
            f"{row['commits']:>8,} {row['fill_s']:>6.1f} s {ms(row['leaves_s']):>9} "
            f"{ms(row['page_s']):>9} {ms(row['page_of_200_s']):>9} "
            f"{ms(row['lineage_first_byte_s']):>11} {ms(row['lineage_s']):>9} "
            f"{row['lineage_mb']:>5.1f} MB {row['start_mb']:>5.0f} MB {row['peak_mb']:>5.0f} MB"
        )
    lines += [f"MISSED {goal}" for goal in report["missed"]] or ["every goal is met"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 commits: under a minute")
    parser.add_argument("--large", action="store_true", help="100,000 commits as well: slow")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else FULL
    if chosen.large:
        plan = replace(plan, sizes=(*plan.sizes, LARGE))
    with tempfile.TemporaryDirectory(prefix="hub-") as folder:
        report = measure(Path(folder), plan)
    print(json.dumps(report, indent=2) if chosen.json else table(report))


if __name__ == "__main__":
    main()
