"""The published protocol's shell lines, word for word, against a real hub: two agents, one evening.

`protocol/commands.sh` holds the lines. `protocol/uv` on the PATH stands in for the training, and
the repository is made here. What an agent puts into the lines is put in, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from autohypothesis import sandbox

from .conftest import Agent, HubProcess, StartProcess

PROTOCOL = Path(__file__).parent / "protocol"
BLOCKS = dict(
    re.findall(r"^#: (.+)\n((?:(?!#: ).*\n)+)", (PROTOCOL / "commands.sh").read_text(), re.M)
)
FILES = {
    "train.py": "MATRIX_LR = 0.04\n",
    "prepare.py": "# data and evaluation\n",
    "pyproject.toml": "[project]\nname = 'autoresearch'\nversion = '0'\n",
    "uv.lock": "version = 1\n",
    "README.md": "not among what is shared\n",
}
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org"))
}
QUIET = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass
class Terminal:
    """One agent's: a home, a repository and a shell, which loads its credentials each time."""

    hub: str
    name: str
    folder: Path

    @classmethod
    def make(cls, hub: str, name: str, folder: Path) -> Terminal:
        made = cls(hub, name, folder / name)
        for part in ("home", "tmp", "autoresearch"):
            (made.folder / part).mkdir(parents=True)
        for file, content in FILES.items():
            (made.repository / file).write_text(content)
        made.git("init -q -b master")
        made.git("add -A")
        made.git("commit -qm upstream")
        return made

    @property
    def repository(self) -> Path:
        return self.folder / "autoresearch"

    @property
    def credentials(self) -> Path:
        return self.folder / "home" / ".agenthub_creds"

    def __call__(self, block: str, **put_in: str) -> str:
        """What a block of the protocol prints; it has to succeed."""
        done = self.attempt(block, **put_in)
        assert done.returncode == 0, f"{block}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def attempt(self, block: str, **put_in: str) -> subprocess.CompletedProcess[str]:
        lines = self.lines("hub", **{"http://autoresearchhub.com": self.hub})
        lines += self.lines("register", YOUR_AGENT_NAME=self.name)
        lines += self.lines(block, **put_in) if block != "register" else ""
        return self.shell(lines)

    def json(self, block: str, **put_in: str) -> Any:
        return json.loads(self(block, **put_in))

    def lines(self, block: str, **put_in: str) -> str:
        text = BLOCKS[block]
        for place, value in put_in.items():
            assert place in text, f"{block} has no {place}"
            text = text.replace(place, value)
        assert not re.search(r"<hash|YOUR_AGENT_NAME", text), text
        return text

    def shell(self, lines: str) -> subprocess.CompletedProcess[str]:
        """bash, with a /tmp of its own where that can be had: the lines name files in it."""
        own_tmp = ["--bind", str(self.folder / "tmp"), "/tmp"]
        own_tmp += ["--bind", str(self.folder), str(self.folder)]
        own_tmp += ["--ro-bind", str(PROTOCOL), str(PROTOCOL)]  # a clone may lie in /tmp
        apart = ["bwrap", "--dev-bind", "/", "/", *own_tmp, "--"] if sandbox.works("bwrap") else []
        own = {"HOME": str(self.folder / "home"), "PATH": f"{PROTOCOL}:{os.environ['PATH']}"}
        return subprocess.run(
            [*apart, "bash", "-eo", "pipefail", "-c", lines], cwd=self.repository,
            env={**os.environ, **IDENTITY, **QUIET, **own},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def git(self, words: str) -> str:
        done = self.shell(f"git {words}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def head(self) -> str:
        return self.git("rev-parse HEAD")

    def say(self, message: str) -> Any:
        return self.json("post", **{"your message here": message})

    def experiment(self, rate: float, told: str) -> tuple[float | None, float | None]:
        """Edit, commit, run, look: the metric and the gigabytes, or nothing after a crash."""
        (self.repository / "train.py").write_text(f"MATRIX_LR = {rate}\n")
        self("commit", **{"short description of change": told})
        if self.attempt("run").returncode:
            assert self.attempt("results").stdout == ""
            assert "OutOfMemoryError" in self("crashed")
            return None, None
        found = dict(line.split() for line in self("results").splitlines())
        return float(found["val_bpb:"]), float(found["peak_vram_mb:"]) / 1024


@pytest.fixture
def alone() -> Iterator[None]:
    """The lines name two files in /tmp; without a /tmp of one's own there is one such test."""
    if sandbox.works("bwrap"):
        yield
        return
    with FileLock("/tmp/autohypothesis-protocol.lock", timeout=600):
        yield
        for name in ("push", "fetch"):
            Path(f"/tmp/{name}.bundle").unlink(missing_ok=True)


@pytest.fixture
def hub(start_process: StartProcess, alone: None) -> HubProcess:
    return start_process("--open-registration")


def line(commit: str, value: float | None, memory: float | None, told: str) -> str:
    numbers = f"val_bpb:{value:.4f} vram_gb:{memory:.1f}" if value else "val_bpb:--- vram_gb:---"
    return f"commit:{commit[:7]} platform:H100 {numbers} | {told}"


def hashes(commits: Any) -> list[str]:
    return [one["hash"] for one in commits]


def test_an_evening_of_two_agents_by_the_protocol(hub: HubProcess, tmp_path: Path) -> None:
    ada = Terminal.make(hub.url, "ada", tmp_path)
    first = evening_of_the_first(ada)
    grace = Terminal.make(hub.url, "grace", tmp_path)
    second = evening_of_the_second(grace, first)
    reader = hub.agent("reader", "read")
    check_commits(reader, first, second)
    check_results(reader, first, second)


@dataclass
class Evening:
    """What one agent committed, by what became of it."""

    pushed: list[str]
    thrown_away: list[str]


def evening_of_the_first(ada: Terminal) -> Evening:
    """The baseline, a discard, a crash, and an improvement."""
    assert ada.json("register")["id"] == "ada"
    key = ada.credentials.read_text()
    assert re.fullmatch(r'export HUB_KEY="\S+"\nexport AGENT_ID="ada"\n', key)
    assert ada("register") == "", "the second time the file is loaded, and nobody registers"
    assert ada.json("channel")["name"] == "results"
    assert "exists" in ada.json("channel")["error"]
    assert ada.json("channel", results="discussion")["name"] == "discussion"
    ada("setup")
    assert ada.git("ls-tree --name-only HEAD").split() == sorted(set(FILES) - {"README.md"})
    baseline = ada.head()
    ada("run")
    assert ada("results").split()[1] == "1.040000"
    assert ada.json("push") == {"hashes": [baseline]}
    ada.say(line(baseline, 1.04, 44.0, "baseline"))

    value, memory = ada.experiment(0.01, "a lower rate")
    worse = ada.head()
    ada.say(line(worse, value, memory, "a lower rate (DISCARD)"))
    ada("revert")
    assert ada.head() == baseline

    assert ada.experiment(7.0, "a far higher rate") == (None, None)
    crashed = ada.head()
    ada.say(line(crashed, None, None, "a far higher rate (CRASH: OOM)"))
    ada("revert")

    value, memory = ada.experiment(0.06, "a higher rate")
    better = ada.head()
    ada.say(line(better, value, memory, "a higher rate"))
    assert ada.json("push improvement") == {"hashes": [better]}
    assert ada.credentials.read_text() == key
    return Evening([baseline, better], [worse, crashed])


def evening_of_the_second(grace: Terminal, first: Evening) -> Evening:
    """Somebody who reads what is there, and builds on the frontier."""
    grace("register")
    assert "exists" in grace.json("channel")["error"]
    baseline, better = first.pushed
    assert hashes(grace.json("log")) == [better, baseline]
    assert hashes(grace.json("leaves")) == [better]
    assert hashes(grace.json("children", **{"<hash>": baseline})) == [better]
    changed = grace("diff", **{"<hash_a>": baseline[:7], "<hash_b>": better[:7]})
    assert "-MATRIX_LR = 0.04\n+MATRIX_LR = 0.06\n" in changed
    assert len(grace.json("read")) == 4
    grace("fetch", **{"<hash>": better})
    assert grace.head() == better
    value, memory = grace.experiment(0.08, "the rate that is best")
    best = grace.head()
    grace.say(line(best, value, memory, "the rate that is best"))
    assert grace.json("push improvement") == {"hashes": [best]}
    said = grace.json("post", results="discussion", **{"your message here": "**0.08** it is"})
    assert said["agent_id"] == "grace"
    return Evening([best], [])


# ── what the hub holds in the end ───────────────────────────────────────────────────────────


def check_commits(reader: Agent, first: Evening, second: Evening) -> None:
    """Improvements only, each on what it was made from, and whole."""
    baseline, better = first.pushed
    (best,) = second.pushed
    lineage = reader.get(f"/api/git/commits/{best}/lineage")
    assert hashes(lineage) == [best, better, baseline]
    assert [one["parent_hash"] for one in lineage] == [better, baseline, ""]
    assert [one["agent_id"] for one in lineage] == ["grace", "ada", "ada"]
    told = ["the rate that is best", "a higher rate", "baseline"]
    assert [one["message"] for one in lineage] == told
    assert hashes(reader.get("/api/git/leaves")) == [best]
    for commit in first.thrown_away:
        assert reader(f"/api/git/commits/{commit}").status == 404


def check_results(reader: Agent, first: Evening, second: Evening) -> None:
    """Each line is a result that programs can compare, failures too."""
    assert len(reader.get("/api/channels/results/posts")) == 5
    results = reader.get("/api/results?platform=H100")[::-1]
    baseline, better = first.pushed
    order = [baseline, *first.thrown_away, better, *second.pushed]
    assert [one["commit"] for one in results] == [commit[:7] for commit in order]
    assert [one["status"] for one in results] == ["keep", "discard", "crash", "keep", "keep"]
    assert [one["value"] for one in results] == [1.04, 1.07, None, 1.02, 1.0]
    assert results[2]["reason"] == "OOM" and {one["source"] for one in results} == {"line"}
    board = reader.get("/api/leaderboard?platform=H100")
    assert [(one["rank"], one["agent_id"]) for one in board] == [
        (1, "grace"),
        (2, "ada"),
        (3, "ada"),
    ]
