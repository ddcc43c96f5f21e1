"""A search keeps the data it began with, whatever is prepared on the machine meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis.engine import runner
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project

ROOT = Path(__file__).resolve().parents[2]


def test_data_prepared_later_belongs_to_the_next_search(
    project: Project, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(own))
    subprocess.run(
        [sys.executable, "prepare.py", "--profile", "test", "--vocab-size", "300"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    pinned = json.loads(project.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert Path(pinned).parent == cache
    executor = LocalExecutor(project.repository, project.layout)
    experiment_id = executor.submit(runner.plan(project, Experiment(Change()), "solo-0"))
    launch = json.loads(project.layout.run(experiment_id).launch.read_text())
    assert launch["env"]["AUTOHYPOTHESIS_DATA"] == pinned
    executor.cancel(experiment_id)
    runner.follow(project, executor, experiment_id)
    later = Project.open(project.layout.root).with_tag("next")
    renewed = json.loads(later.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert Path(renewed).parent == own
    assert renewed != pinned
    Project.open(project.layout.root).with_tag(project.tag)
    back = json.loads(project.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert back == pinned
