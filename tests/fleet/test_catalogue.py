"""The shipped helper scripts: each figure against one that was worked out by hand."""

from __future__ import annotations

import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.fleet.toolbuilder.builder import ALIASES
from autohypothesis.fleet.toolbuilder.catalogue.reader import read_rows
from autohypothesis.fleet.toolbuilder.tools import CATALOGUE
from autohypothesis.records.layout import Layout

NAMES = sorted(
    path.stem for path in CATALOGUE.glob("*.py") if path.stem not in ("__init__", "reader")
)
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Research:
    """A research folder with rows and bundles, as little of each as the scripts need."""

    def __init__(self, root: Path) -> None:
        self.path = root / "research"
        self.path.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []

    def run(
        self,
        value: float | None,
        *,
        commit: str = "",
        settings: dict[str, Any] | None = None,
        samples: list[list[float | None]] | None = None,
        **more: Any,
    ) -> str:
        name = f"h-t-{len(self.rows):04d}-1"
        row = {
            "id": name, "commit": commit or name, "tag": "t", "platform_key": "p", "seed": 1,
            "execution_status": "failed" if value is None else "completed", "metric_value": value,
            "metric_name": "val_bpb", "direction": "minimize", "gpu_name": "CPU", **more,
        }  # fmt: skip
        self.rows.append(row)
        folder = self.path.joinpath("runs", name)
        folder.mkdir(parents=True)
        if settings is not None:
            config = {**settings, "hyperparameters": settings}
            folder.joinpath("config.json").write_text(json.dumps(config))
        if samples is not None:
            folder.joinpath("exit.json").write_text(json.dumps({"samples": samples}))
        lines = [json.dumps(one) for one in self.rows]
        self.path.parent.joinpath("experiments.jsonl").write_text("\n".join(lines) + "\n")
        return name

    def call(self, tool: str, *words: str) -> Answer:
        """Run a script in this process, as `python SCRIPT WORDS` does in another."""
        script, out, err, code = str(CATALOGUE / f"{tool}.py"), StringIO(), StringIO(), 0
        argv = [script, "--research", str(self.path), *words]
        with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                print(end.code if code and not isinstance(end.code, int) else "", file=err)
        return Answer(code, out.getvalue(), err.getvalue())

    def figure(self, tool: str, *words: str) -> dict[str, Any]:
        answer = self.call(tool, "--json", *words)
        assert answer.returncode == 0, answer.stderr
        found = json.loads(answer.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def research(tmp_path: Path) -> Research:
    return Research(tmp_path / "a root ü")


def test_every_shipped_script_can_be_asked_for() -> None:
    assert set(NAMES) == set(ALIASES) == {"noise", "compare", "importance", "curves"}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_script_passes_the_checks_of_everybody_else(name: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.research.mkdir()
    tool = tools.publish(layout, name, CATALOGUE / f"{name}.py", decided_by="a test")
    assert tool.usage.startswith(f"tools run {name} ")
    assert "--research" not in tool.usage and "--json" in tool.usage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content", ["", "{torn", '"text"\n[1]\nnull\n{}\n', '{"id": 3, "seed": []}']
)
def test_a_ledger_that_is_empty_torn_or_strange_is_no_error(
    research: Research, name: str, content: str
) -> None:
    research.path.parent.joinpath("experiments.jsonl").write_text(content)
    answer = research.call(name, *(["a", "b"] if name == "compare" else []))
    assert "Traceback" not in answer.stderr
    assert answer.returncode == (1 if name == "compare" else 0)


def test_the_gain_of_an_edit_is_not_that_of_a_setting(research: Research) -> None:
    base = research.run(2.0, settings={"depth": 2, "lr": 0.1}, code_hash="a")
    research.run(1.9, settings={"depth": 3, "lr": 0.1}, code_hash="a")
    edited = research.run(1.0, settings={"depth": 2, "lr": 0.1}, code_hash="b")
    research.run(1.2, settings={"depth": 4, "lr": 0.1}, code_hash="b")
    found = research.figure("importance")
    (depth,) = found["settings"]
    assert (found["codes"], found["different"], depth["pairs"]) == (2, 4, 2)
    assert depth["effect"] == pytest.approx((0.1 + 0.2) / 2)
    assert "one of 2 codes" in found["note"]
    compared = research.figure("compare", base, edited)
    assert (compared["settings"], compared["same_code"]) == ({}, False)
    assert (
        f"the code is another one: git diff {base[:12]}"
        in research.call("compare", base, edited).stdout
    )


def test_a_seed_that_was_run_often_counts_once_across_seeds(research: Research) -> None:
    for seed, value in ((1, 1.0), (1, 1.0), (1, 1.0), (2, 3.0)):
        research.run(value, commit="a", seed=seed)
    found = research.figure("noise")
    assert found["across_seeds"]["sd"] == pytest.approx(math.sqrt(2))
    assert found["same_seed"]["sd"] == 0.0
    assert found["sd"] == pytest.approx(1.0)


def test_noise_says_when_there_is_too_little_and_when_enough(research: Research) -> None:
    research.run(1.0, commit="a")
    research.run(2.0, commit="b")
    found = research.figure("noise")
    assert found["sd"] is None and found["min_delta"] is None and not found["enough"]
    assert "too little" in found["note"]
    assert "too little" in research.call("noise").stdout
    for seed in range(1, 5):
        research.run(1.0 + seed, commit="a", seed=seed)  # variance 2.5
    found = research.figure("noise")
    assert found["enough"] and found["note"] == ""
    assert found["sd"] == pytest.approx(math.sqrt(2.5))
    shown = research.call("noise").stdout
    assert (
        "suggested min_delta   4.47214" in shown
        and "sd with the same seed 0.707107, 2 runs" in shown
    )


def test_a_difference_is_given_in_units_of_noise(research: Research) -> None:
    first = research.run(1.0, commit="a", settings={"depth": 2, "lr": 0.1}, num_steps=100)
    again = research.run(1.1, commit="a", settings={"depth": 2, "lr": 0.1}, num_steps=90)
    other = research.run(0.7, settings={"depth": 3, "lr": 0.1, "new": [1]}, num_steps=80)
    found = research.figure("compare", first, other)
    # the variance of 1.0 and 1.1 is 0.005, that of a difference 0.01
    assert found["units_of_noise"] == pytest.approx(-3.0)
    assert found["settings"] == {"depth": [2, 3], "new": [None, [1]]}
    assert found["metrics"]["num_steps"] == [100, 80, -20]
    assert research.figure("compare", other, first)["verdict"].startswith("worse")
    assert research.figure("compare", first, again)["settings"] == {}
    more = [research.run(value, commit=name, direction="maximize", platform_key="q")
            for value, name in ((1.0, "a"), (1.1, "a"), (2.0, "b"))]  # fmt: skip
    assert research.figure("compare", more[0], more[2])["verdict"].startswith("better")


@pytest.mark.parametrize(
    ("more", "value", "words"),
    [({"platform_key": "q"}, 1.0, "different platforms"), ({}, None, "has no value"),
     ({"metric_name": "loss"}, 1.0, "different metrics"), ({}, 1.0, "noise is unknown")],
)  # fmt: skip
def test_what_cannot_be_compared_is_not(
    research: Research, more: dict[str, Any], value: float | None, words: str
) -> None:
    first, second = research.run(1.5), research.run(value, **more)
    found = research.figure("compare", first, second)
    assert words in found["verdict"] and found["units_of_noise"] is None


def test_an_unknown_run_is_named(research: Research) -> None:
    first = research.run(1.0)
    answer = research.call("compare", first, "h-t-9999-1")
    assert answer.returncode == 1 and "no run 'h-t-9999-1'" in answer.stderr
    assert research.call("compare", first).returncode == 2


def test_ranks_of_equal_values_are_shared(research: Research) -> None:
    """Depths 1, 2, 2, 3 have the ranks 1, 2.5, 2.5, 4, and the values 4, 3, 2, 1."""
    for index, (depth, value) in enumerate(((1, 4.0), (2, 3.0), (2, 2.0), (3, 1.0))):
        research.run(value, settings={"depth": depth, "n": index})
    found = {one["name"]: one for one in research.figure("importance")["settings"]}
    assert found["depth"]["rank_correlation"] == pytest.approx(-4.5 / math.sqrt(5.0 * 4.5))
    assert found["n"]["rank_correlation"] == pytest.approx(-1.0)


def test_shares_need_enough_runs_and_add_up_to_one(research: Research) -> None:
    for index in range(24):
        depth, word = index % 12, ["a", "b"][index // 12]
        research.run(1.0 + depth, settings={"depth": depth, "word": word, "pair": [0.8, 0.95]})
    found = {one["name"]: one for one in research.figure("importance")["settings"]}
    assert set(found) == {"depth", "word"}
    assert sum(one["share"] for one in found.values()) == pytest.approx(1.0)
    assert found["depth"]["share"] > 0.9
    assert found["word"]["effect"] == 0.0 and found["word"]["pairs"] == 12
    assert found["word"]["rank_correlation"] is None


def test_the_tag_is_that_of_the_manifest(research: Research) -> None:
    research.run(1.0, tag="old", settings={"depth": 1})
    research.run(1.0, tag="new", settings={"depth": 1})
    assert research.figure("importance")["tag"] == "new"
    research.path.joinpath("fleet").mkdir()
    research.path.joinpath("fleet", "manifest.json").write_text('{"tag": "old"}')
    assert research.figure("importance")["tag"] == "old"


SAMPLES: list[list[float | None]] = [
    [0.1, 4.0, 2.0, 100.0], [0.25, 3.5, None, 100.0], [0.6, None, 1.5, 90.0], [1.0, 2.0, 1.0, 80.0],
]  # fmt: skip


def test_curves_leave_out_what_is_no_number(research: Research) -> None:
    run = research.run(1.0, samples=SAMPLES)
    found = research.figure("curves", run)["curves"][run]
    assert found["points"] == [[0.1, 4.0], [0.25, 3.5], [1.0, 2.0]]
    assert found["at"] == {"25": 3.5, "50": 3.5, "75": 3.5, "100": 2.0}
    assert (found["first"], found["lowest"], found["last"]) == (4.0, 2.0, 2.0)
    bits = research.figure("curves", run, "--of", "bpb")["curves"][run]
    assert bits["points"] == [[0.1, 2.0], [0.6, 1.5], [1.0, 1.0]]


def test_the_plot_has_high_values_high_and_late_ones_right(research: Research) -> None:
    run = research.run(1.0, samples=SAMPLES)
    other = research.run(1.0, samples=[[1.0, 4.0, 2.0, 1.0]])
    lines = research.call("curves", run, other).stdout.splitlines()
    top, bottom = lines[1], lines[16]
    assert top.split()[0] == "4" and bottom.split()[0] == "2"
    assert re.search("● +○$", top) and bottom.endswith("●")
    assert len(bottom) == len(top)
    assert f"● {run}: last 2, 3 samples" in lines[-2]


def test_a_picture_is_drawn_where_it_is_asked_for(research: Research, tmp_path: Path) -> None:
    research.run(1.0, samples=SAMPLES)
    research.run(1.0, samples=[])
    assert research.call("curves", "--out", str(tmp_path / "x.png")).returncode == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"samples": 3}', '{"samples": [3, [1], null]}']
)
def test_damaged_samples_are_no_samples(research: Research, content: str) -> None:
    run = research.run(1.0)
    research.path.joinpath("runs", run, "exit.json").write_text(content)
    assert research.figure("curves", run)["curves"][run]["points"] == []
    assert "none of these runs left samples" in research.call("curves", run).stdout


def test_the_scripts_read_what_the_engine_writes(cli: Cli, foreign: Path) -> None:
    """The foreign script's value is exactly 1 + (RATE - 0.3)²."""
    for words in ([], ["--baseline"], ["--set", "RATE=0.2"], ["--set", "RATE=0.3"]):
        assert cli("run-experiment", *words).returncode == 0
    assert cli("sync").returncode == 0
    research = Research(foreign)
    noise = research.figure("noise")
    assert (noise["sd"], noise["runs"], noise["groups"]) == (0.0, 2, 1)
    importance = research.figure("importance")
    (rate,) = [one for one in importance["settings"] if one["pairs"]]
    # 0.1, 0.2 and 0.3 give 1.04, 1.01 and 1.00
    assert (rate["name"], rate["pairs"]) == ("rate", 3)
    assert rate["effect"] == pytest.approx((0.03 + 0.01 + 0.04) / 3)
    rows = read_rows(research.path)
    first, best = (next(r["id"] for r in rows if r["metric_value"] == v) for v in (1.04, 1.0))
    compared = research.figure("compare", first, best)
    assert compared["settings"] == {"rate": [0.1, 0.3]}
    assert compared["difference"] == pytest.approx(-0.04)
    assert compared["verdict"].startswith("better")
    assert research.figure("curves", first)["curves"][first]["first"] == 1.9
