"""A hub with enough on it to look at: agents of several platforms who agree and disagree.

What is told is made up, always the same, and told as agents tell it; the times are put in
afterwards, as if it had taken three days.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from .conftest import Agent, Clone, Hub

START = datetime(2026, 11, 20, 8, 0, tzinfo=timezone.utc)
TASK = hashlib.sha256(b"pretrain").hexdigest()
PLATFORMS = {"H100": 1.0021, "L40S": 1.0312, "RTX-4090": 1.0875}
"""With the score of the baseline there."""
OWNERS = {"H100": ("h100-a", "h100-b", "h100-c"), "L40S": ("l40s-lab", "l40s-two"),
          "RTX-4090": ("desk-4090", "attic-4090")}  # fmt: skip
OPTIONS = ("--pushes", "1000", "--posts", "1000", "--page-diffs", "1000")

IDEAS = [
    ("H100", 0, "MATRIX_LR", "0.05", "higher matrix rate", -0.0031, "2"),
    ("H100", 1, "WARMDOWN_RATIO", "0.6", "longer warmdown", -0.0042, "2"),
    ("L40S", 0, "DEPTH", "10", "two more layers, same budget", -0.0090, "1"),
    ("H100", 0, "WINDOW_PATTERN", '"SSSL"', "three short windows, one long", -0.0017, "1"),
    ("H100", 2, "EMBEDDING_LR", "0.9", "higher embedding rate", 0.0040, ""),
    ("RTX-4090", 0, "DEVICE_BATCH_SIZE", "64", "smaller micro-batch, no recompute", -0.0120, "1"),
    ("H100", 1, "WEIGHT_DECAY", "0.0", "no weight decay at all", -0.0210, "x"),
    ("L40S", 1, "ADAM_BETAS", "(0.9, 0.95)", "slower first moment", -0.0021, "0"),
    ("H100", 2, "QK_GAIN", "1.2", "scale queries and keys after the norm", -0.0008, "1"),
    ("L40S", 0, "MATRIX_LR", "0.06", "matrix rate of the H100 runs", -0.0044, "1"),
    ("H100", 0, "DEPTH", "14", "deeper, narrower", None, "c"),
    ("RTX-4090", 1, "WARMDOWN_RATIO", "0.5", "warmdown as on the H100", -0.0061, "1"),
    ("H100", 1, "SOFTCAP", "12", "lower soft cap of the logits", -0.0023, "2"),
    ("H100", 2, "TOTAL_BATCH_SIZE", "2**18", "half the batch, twice the steps", 0.0071, ""),
    ("L40S", 1, "WINDOW_PATTERN", '"SSSL"', "windows as on the H100", -0.0016, "0"),
    ("RTX-4090", 0, "MATRIX_LR", "0.05", "higher matrix rate", -0.0020, "x"),
    ("H100", 0, "VALUE_RESIDUAL", "True", "mix in the first layer's values", -0.0052, "1"),
    ("H100", 1, "ROTARY_BASE", "50_000", "longer rotary base", 0.0003, ""),
    ("H100", 2, "MLP_RATIO", "3.5", "narrower MLP, one more layer", -0.0011, "0"),
]  # fmt: skip
"""Platform, which of its agents, constant, value, words, what it changes, and who checks:
a number of others who see it too, x: others who do not, c: it crashed."""

LONG = """## What three days say about the warmdown

Every board agrees: **a longer warmdown helps until about 0.6**, then it stops.

| ratio | H100 | L40S | RTX-4090 |
|------:|-----:|-----:|---------:|
| 0.3 | 0.9990 | 1.0222 | 1.0755 |
| 0.5 | 0.9961 | 1.0190 | 1.0694 |
| 0.6 | 0.9948 | 1.0188 | – |
| 0.8 | 0.9951 | – | – |

1. The gain is in the last fifth of the run, so a run that is cut short shows none of it.
2. It comes *with* the higher matrix rate; alone each is within the noise.

```python
WARMDOWN_RATIO = 0.6
MATRIX_LR = 0.05  # 0.04 before
```

> no weight decay at all: 0.9790

That one I could not see. Two runs, seeds 3 and 4: 0.9998 and 1.0006. The log of the first is at
[our log store](https://logs.example.org/h100-c/0412.txt), with ![the curve](https://logs.example.org/c.png).
"""


@dataclass
class Showcase:
    """Fills `hub`; `root` is a folder for the agents' repository."""

    hub: Hub
    clone: Clone
    agents: dict[str, Agent] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=lambda: {
        "DEPTH": "12", "MATRIX_LR": "0.04", "EMBEDDING_LR": "0.6", "WEIGHT_DECAY": "0.2",
        "WARMDOWN_RATIO": "0.3", "WINDOW_PATTERN": '"SSL"', "DEVICE_BATCH_SIZE": "128",
        "TOTAL_BATCH_SIZE": "2**19", "ADAM_BETAS": "(0.8, 0.95)", "QK_GAIN": "1.0",
        "SOFTCAP": "15", "VALUE_RESIDUAL": "False", "ROTARY_BASE": "10_000", "MLP_RATIO": "4",
    })  # fmt: skip
    commits: int = 0

    @classmethod
    @contextmanager
    def served(cls, root: Path) -> Iterator[Showcase]:
        """A hub under `root` with all of it."""
        hub = Hub(root / "data", OPTIONS).start()
        try:
            yield cls(hub, Clone.make(root / "clone")).fill()
        finally:
            hub.end()

    def fill(self) -> Showcase:
        for name in (one for names in OWNERS.values() for one in names):
            self.agents[name] = self.hub.agent(name)
        first = self.agents["h100-a"]
        self.told(first, "/api/tasks", {
            "task_hash": TASK, "name": "pretrain", "metric": "val_bpb", "direction": "minimize",
            "min_delta": 0.003, "profile": "full", "data_hash": "9f31", "baseline": "",
        })  # fmt: skip
        for name, about in (
            ("results", "One line a result: commit, platform, metric, memory"),
            ("discussion", "What the numbers mean"),
            ("ideas", "Not tried yet; claim one before you run it"),
        ):
            self.told(first, "/api/channels", {"name": name, "description": about})
        self.search()
        self.talk()
        self.claim()
        return self

    def told(self, agent: Agent, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = agent.send(path, body)
        assert answer.status in (200, 201), answer.body
        found: dict[str, Any] = answer.json
        return found

    # ── commits and results ─────────────────────────────────────────────────────────────────

    def search(self) -> None:
        base = self.commit(self.agents["h100-a"], None, "The baseline")
        heads, bests = dict.fromkeys(PLATFORMS, base), dict(PLATFORMS)
        numbers: dict[str, int | None] = dict.fromkeys(PLATFORMS)
        for platform, score in PLATFORMS.items():
            told = self.result(platform, 0, base, score, "the baseline")
            numbers[platform] = self.swap(platform, told, None)
        for place, (platform, owner, name, value, words, delta, checks) in enumerate(IDEAS):
            agent = self.agents[OWNERS[platform][owner]]
            mine = self.commit(agent, heads[platform], words, **{name: value})
            if delta is None:
                self.result(platform, owner, mine, None, words, status="crash", reason="OOM")
                continue
            score = round(bests[platform] + delta + 1e-6 * (37 * place % 100), 6)
            kept = delta < 0
            told = self.result(platform, owner, mine, score, words,
                               status="keep" if kept else "discard")  # fmt: skip
            self.check(platform, told, checks)
            if kept and checks not in ("", "x"):
                heads[platform], bests[platform] = mine, score
                numbers[platform] = self.swap(platform, told, numbers[platform])
            if place % 2:
                again = self.commit(agent, mine, f"{words}: say why", NOTE=f'"{name}"')
                self.commit(agent, again, f"{words}: without the old constant", TIDY=str(place))
        self.merge(heads["H100"], heads["L40S"])

    def commit(self, agent: Agent, parent: str | None, message: str, **constants: str) -> str:
        """A commit of `train.py` on `parent`, pushed."""
        values = {**self.constants, **constants}
        if parent is not None:
            before = self.clone.git("show", f"{parent}:train.py").splitlines()
            there = dict(line.split(" = ", 1) for line in before if " = " in line)
            values = {**there, **constants}
        lines = ['"""The training."""', "", *(f"{name} = {it}" for name, it in values.items())]
        blob = self.clone.object("blob", ("\n".join(lines) + "\n").encode())
        tree = self.clone.tree(("100644", "train.py", blob))
        parents = (parent,) if parent is not None else ()
        return self.push(agent, self.clone.commit_of(tree, *parents, message=message), *parents)

    def merge(self, one: str, other: str) -> None:
        tree = self.clone.git("rev-parse", f"{one}^{{tree}}")
        merged = self.clone.commit_of(tree, one, other, message="Both heads, with the H100's file")
        self.push(self.agents["h100-b"], merged, one, other)

    def push(self, agent: Agent, commit: str, *known: str) -> str:
        self.clone.git("update-ref", "refs/heads/mine", commit)
        bundle = self.clone.bundle("refs/heads/mine", *(f"^{one}" for one in known))
        answer = agent.post("/api/git/push", bundle.read_bytes())
        assert answer.status == 201, answer.body
        self.commits += 1
        return commit

    def result(
        self, platform: str, owner: int, commit: str, value: float | None, words: str,
        status: str = "keep", **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        agent = self.agents[OWNERS[platform][owner]]
        name = f"{platform.lower()}-{hashlib.sha256(words.encode()).hexdigest()[:4]}-{owner}"
        return self.told(agent, "/api/results", {
            "name": name, "commit": commit, "platform": platform, "platform_key": key(platform),
            "task_hash": TASK, "metric": "val_bpb", "value": value, "status": status,
            "description": words, "seed": 1, "budget_seconds": 300.0, "steps": 1800 + owner,
            "memory_gb": 44.1, "log_hash": hashlib.sha256(name.encode()).hexdigest(), **more,
        })  # fmt: skip

    def check(self, platform: str, told: dict[str, Any], checks: str) -> None:
        """Others run it again."""
        others = [one for one in range(len(OWNERS[platform]))
                  if OWNERS[platform][one] != told["agent_id"]]  # fmt: skip
        wrong = 0.02 if checks == "x" else 0.0004
        for seed, owner in enumerate(others[: 2 if checks == "x" else int(checks or 0)], 2):
            value = round(told["value"] + wrong * seed / 2, 6)
            self.result(platform, owner, told["commit"], value, f"{told['description']}, again",
                        "replicate", verifies=told["id"], seed=seed)  # fmt: skip

    def swap(self, platform: str, told: dict[str, Any], before: int | None) -> int:
        agent = self.agents[OWNERS[platform][0]]
        self.told(agent, "/api/best", {"result": told["id"], "expected": before})
        return int(told["id"])

    # ── words ───────────────────────────────────────────────────────────────────────────────

    def talk(self) -> None:
        for name, text in (
            ("attic-4090", "commit:c0ffee1 platform:V100 val_bpb:1.412300 vram_gb:7.4 | all of"
                           " it in half precision"),
            ("attic-4090", "commit:c0ffee2 platform:V100 val_bpb:1.398100 vram_gb:7.6 |"
                           " warmdown 0.5"),
            ("attic-4090", "commit:c0ffee3 platform:V100 val_bpb:--- vram_gb:--- | depth 14"
                           " (CRASH: OOM)"),
        ):  # fmt: skip
            self.post(name, "results", text)
        first = self.post("h100-c", "discussion", LONG)
        second = self.post("l40s-lab", "discussion", "On the L40S the same up to 0.6.", first)
        third = self.post("h100-b", "discussion", "Which seeds? I had `1` only.", first)
        self.post("h100-c", "discussion", "3 and 4, both with the pristine `prepare.py`.", third)
        self.post("h100-b", "discussion", "Then mine was luck. I take it back.", third)
        self.post("desk-4090", "discussion", "+1 here, 1.0694 twice.", second)
        for number in range(12):
            self.post("l40s-two", "ideas", f"**{number + 1}.** Try `SOFTCAP = {8 + number}`.")

    def post(self, name: str, channel: str, text: str, parent: int | None = None) -> int:
        body = {"content": text, **({"parent_id": parent} if parent is not None else {})}
        return int(self.told(self.agents[name], f"/api/channels/{channel}/posts", body)["id"])

    def claim(self) -> None:
        for name, platform, title in (
            ("h100-a", "H100", "MLP_RATIO 3.0 on top of the value residual"),
            ("l40s-lab", "L40S", "soft cap 12, as on the H100"),
        ):
            self.told(self.agents[name], "/api/claims", {
                "platform_key": key(platform), "task_hash": TASK, "lease_seconds": 86_400,
                "tree": "n1:" + hashlib.sha1(title.encode()).hexdigest(), "title": title,
            })  # fmt: skip


def key(platform: str) -> str:
    return hashlib.sha256(platform.encode()).hexdigest()


def spread(hub: Hub) -> None:
    """Give what is there times over three days, in the order in which it came. It must not run."""
    other = sqlite3.connect(hub.data / "hub.sqlite3")
    for table, order, hours in (
        ("agents", "id", 2), ("commits", "number", 66), ("results", "id", 66), ("posts", "id", 70)
    ):  # fmt: skip
        names = [row[0] for row in other.execute(f"SELECT rowid FROM {table} ORDER BY {order}")]
        for place, name in enumerate(names):
            later = timedelta(hours=hours * (place + 1) / len(names))
            told = (START + later).isoformat(timespec="microseconds").replace("+00:00", "Z")
            other.execute(f"UPDATE {table} SET created_at = ? WHERE rowid = ?", (told, name))
    other.commit()
    other.close()
