"""The text that a model is judged by: read by what scores, never by what trains."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from autohypothesis import confine, sandbox
from autohypothesis.engine import runner
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.schema import Result
from tests.conftest import run_git

TASK = """
id: held-out
root: repository
artifacts: [train.py]
protected: [locate.py, score.py]
isolation: LEVEL
inputs: [{env: DATA, locate: [python, locate.py]}]
run: {command: [python, train.py], device: cpu, budget: {seconds: 20}}
scorer: {type: command, command: [python, score.py]}
objective: {metric: loss}
"""
LOCATE = """
import json
print(json.dumps({"path": DATA, "held_out": ["val.txt", "more/"]}))
"""
READ = """
import os, pathlib
data = pathlib.Path(os.environ["DATA"])
def read(name):
    try:
        return (data / name).read_text()[:4]
    except OSError as error:
        return type(error).__name__
def size(name):
    try:
        return (data / name).stat().st_size
    except OSError as error:
        return type(error).__name__
"""
TRAIN = (
    READ + 'print([read("train.txt"), read("val.txt"), read("more/val.txt"), size("val.txt")])\n'
)
SCORE = READ + (
    'import json\nprint(json.dumps({"score": 1.0 + len(read("val.txt") + read("more/val.txt"))}))\n'
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "train.txt").write_text("what is trained on")
    (folder / "val.txt").write_text("what is judged by")
    (folder / "more" / "val.txt").write_text("what is judged by")
    return folder


def run(root: Path, data: Path, level: str) -> tuple[Result, str]:
    (root / "task.yaml").write_text(TASK.replace("LEVEL", level))
    (root / "locate.py").write_text(LOCATE.replace("DATA", json.dumps(str(data))))
    (root / "score.py").write_text(SCORE)
    (root / "train.py").write_text(TRAIN)
    run_git(root, "add", "-A")
    run_git(root, "commit", "-qm", "data")
    project = Project.open(root).with_tag("t")
    finished = runner.run(project, Experiment(Change()))
    return finished.result, project.layout.run(finished.experiment_id).log.read_text().strip()


@pytest.mark.parametrize("level", ["strict", "writes"])
def test_a_training_sees_its_data_without_what_is_held_out_and_the_scorer_sees_all(
    foreign: Path, data: Path, held_by: str, level: str
) -> None:
    result, said = run(foreign, data, level)
    assert (result.status, result.metric_value) == ("completed", 9.0), result
    assert result.attested == (level == "writes" or held_by != "none")
    if held_by == "none":
        assert said == "['what', 'what', 'what', 17]"
    else:
        train, val, more, size = ast.literal_eval(said)
        assert (train, size) == ("what", 17)
        assert val in ("PermissionError", "\0\0\0\0")
        assert more in ("PermissionError", "FileNotFoundError")


def test_bubblewrap_on_a_kernel_without_landlock_shows_a_blank_of_the_same_size(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess
    import sys

    if not sandbox.works("bwrap"):
        pytest.skip("bwrap is missing or may not run")
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    (tmp_path / "tmp").mkdir()
    granted = sandbox.SandboxSpec(
        "bwrap",
        read=(*sandbox.system_folders(), data), held_out=(data / "val.txt",),
        temporary=tmp_path / "tmp",
    )  # fmt: skip
    code = "import sys; print(sorted(set(open(sys.argv[1], 'rb').read())), end='')"
    words = [sys.executable, "-c", code, str(data / "val.txt")]
    done = subprocess.run(
        sandbox.confined(words, granted), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[0]", done.stderr
