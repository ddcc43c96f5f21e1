"""A search keeps the data it began with, whatever is prepared on the machine meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.schema import Result

ROOT = Path(__file__).resolve().parents[2]
Try = Callable[..., tuple[str, Result]]


def test_data_prepared_later_belongs_to_the_next_search(
    project: Project, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Try
) -> None:
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(own))
    subprocess.run(
        [sys.executable, "prepare.py", "--profile", "test", "--vocab-size", "300"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    pinned = json.loads(project.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert Path(pinned).parent == cache
    identity, result = attempt()
    assert result.status == "completed", result.failure_detail
    launch = json.loads(project.layout.run(identity).launch.read_text())
    assert launch["env"]["AUTOHYPOTHESIS_DATA"] == pinned
    later = Project.open(project.layout.root).with_tag("next")
    renewed = json.loads(later.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert Path(renewed).parent == own
    assert renewed != pinned
    Project.open(project.layout.root).with_tag(project.tag)
    back = json.loads(project.layout.manifest.read_text())["inputs"]["AUTOHYPOTHESIS_DATA"]
    assert back == pinned
