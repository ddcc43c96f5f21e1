"""Data that is not there, programs that say nonsense, and commands for repositories of others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.environment import training_command
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.task import (
    Budget,
    Input,
    Knob,
    Objective,
    Policy,
    RunConfig,
    SearchBudget,
    Task,
    platform_key,
    short_device_name,
    task_hash,
)
from autohypothesis.errors import LaunchError, TaskError
from autohypothesis.records.git import Repository


@pytest.fixture(autouse=True)
def _a_repository(tmp_path: Path, git: Callable[..., str]) -> None:
    git(tmp_path, "init", "--quiet")


def with_input(task: Task, code: str, env: str = "DATA") -> Task:
    located = Input(env=env, locate=("python", "-c", code) if code else ("/absent",))
    return task.model_copy(update={"inputs": (*task.inputs, located)})


def report(path: Path, **facts: object) -> str:
    return f"print({json.dumps({'path': str(path), **facts})!r})"


def locate(task: Task, root: Path, **environment: str) -> Inputs:
    return locate_inputs(task, root, root, {"PATH": os.environ["PATH"], **environment})


def test_an_input_says_where_it_is_and_what_it_needs(task: Task, tmp_path: Path) -> None:
    facts = {
        "profile": "cpu",
        "profile_hash": "ab",
        "data_hash": "cd",
        "budget": {"seconds": 15, "clock": "cpu"},
        "device": "cpu",
        "start_allowance_s": 20,
        "evaluation_allowance_s": 30.5,
        "tokenizer_hash": "is kept",
    }
    inputs = locate(with_input(task, report(tmp_path, **facts)), tmp_path)
    assert inputs.environment == {"DATA": str(tmp_path)}
    assert (inputs.profile, inputs.profile_hash, inputs.data_hash) == ("cpu", "ab", "cd")
    assert inputs.budget(task) == Budget(seconds=15, clock="cpu")
    assert (inputs.start_allowance_s, inputs.evaluation_allowance_s) == (20, 30.5)
    assert inputs.device == "cpu"
    fixed = task.model_copy(update={"run": RunConfig(budget=Budget(seconds=7))})
    assert inputs.budget(fixed).seconds == 7


def test_without_inputs_there_is_the_published_budget(task: Task, tmp_path: Path) -> None:
    inputs = locate(task, tmp_path)
    assert inputs.budget(task) == Budget(seconds=300, clock="wall")
    assert (inputs.profile_hash, inputs.data_hash, inputs.environment) == ("", "", {})


def test_two_inputs_have_a_hash_together(task: Task, tmp_path: Path) -> None:
    def joined(first: str, second: str) -> str:
        both = with_input(task, report(tmp_path, data_hash=first))
        both = with_input(both, report(tmp_path, data_hash=second), env="MORE")
        return locate(both, tmp_path).data_hash

    assert joined("a", "b") != joined("b", "a")
    assert joined("a", "b") == joined("a", "b")


def test_a_report_over_several_lines_is_read_and_so_is_a_last_line(
    task: Task, tmp_path: Path
) -> None:
    code = f"import json; print(json.dumps({{'path': {str(tmp_path)!r}}}, indent=2))"
    assert locate(with_input(task, code), tmp_path).environment == {"DATA": str(tmp_path)}
    code = f"print('checking ...'); {report(tmp_path)}"
    assert locate(with_input(task, code), tmp_path).environment == {"DATA": str(tmp_path)}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('nothing is prepared; run: python prepare.py')", "nothing is prep"),
        ("pass", "printed no report"),
        ("print('[1, 2]')", "printed no report"),
        ("print('{}')", "printed no report of an input: path: Field required"),
        ("print('[' * 100000)", "printed no report"),
        ("", "does not start"),
        ('print(\'{"path": "/absent/data"}\')', "names /absent/data, which is not there"),
        ('print(\'{"path": "/", "budget": {"seconds": -1}}\')', "greater than 0"),
        ('print(\'{"path": "/", "budget": {"seconds": NaN}}\')', "printed no report"),
    ],
)
def test_data_that_is_not_there_is_said_in_the_programs_words(
    task: Task, tmp_path: Path, code: str, said: str
) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        locate(with_input(task, code), tmp_path)
    assert "run `" in caught.value.hint


def test_a_locate_program_sees_its_cache_and_no_secrets(task: Task, tmp_path: Path) -> None:
    code = (
        "import json, os; print(json.dumps({'path': '/', 'constants':"
        " {k: v for k, v in os.environ.items() if k.endswith(('_CACHE', 'TOKEN', 'HOME'))}}))"
    )
    inputs = locate(
        with_input(task, code), tmp_path, HOME="/h", AUTORESEARCH_CACHE="/c", HF_TOKEN="secret"
    )
    (report,) = inputs.reports.values()
    assert (report.model_extra or {})["constants"] == {"HOME": "/h", "AUTORESEARCH_CACHE": "/c"}


# ── which command ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bin_with_uv(tmp_path: Path) -> str:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv").write_text("#!/bin/sh\n")
    (folder / "uv").chmod(0o755)
    return str(folder)


def _venv(root: Path) -> str:
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return str(python)


def test_uv_runs_where_it_is_used_with_the_roots_environment(
    repository: Repository, task: Task, bin_with_uv: str
) -> None:
    root = repository.root
    (root / "uv.lock").write_text("")
    found = training_command(task, root, {"PATH": bin_with_uv})
    assert found.words == (f"{bin_with_uv}/uv", "run", "train.py")
    assert found.environment == {
        "UV_PROJECT_ENVIRONMENT": str(root / ".venv"),
        "UV_NO_SYNC": "1",
    }
    assert found.python is None
    python = _venv(root)
    assert training_command(task, root, {"PATH": bin_with_uv}).python == python
    assert training_command(task, root, {"PATH": "/nowhere"}).words == (python, "train.py")
    (root / "uv.lock").unlink()
    assert training_command(task, root, {"PATH": bin_with_uv}).words == (python, "train.py")


def test_a_command_of_the_task_comes_first(
    repository: Repository, task: Task, bin_with_uv: str
) -> None:
    def found(*words: str) -> tuple[str, ...]:
        said = task.model_copy(update={"run": RunConfig(command=words)})
        return training_command(said, repository.root, {"PATH": bin_with_uv}).words

    _venv(repository.root)
    (repository.root / "uv.lock").write_text("")
    assert found("python", "train.py") == (sys.executable, "train.py")
    assert found("bash", "python") == ("bash", "python")
    local = str(repository.root / ".venv" / "bin" / "python")
    assert found(".venv/bin/python", "train.py") == (local, "train.py")
    uv = task.model_copy(update={"run": RunConfig(command=("uv", "run", "train.py"))})
    command = training_command(uv, repository.root, {"PATH": bin_with_uv})
    assert command.environment["UV_NO_SYNC"] == "1"


def test_a_script_is_found_from_the_folder_that_it_runs_in(
    make: Callable[..., Repository], task: Task
) -> None:
    repository = make({"src/train.py": "", "src/x/y": ""})
    inner = task.model_copy(update={"artifacts": ("src/train.py",), "run": RunConfig(cwd="src/x")})
    assert training_command(inner, repository.root, {}).words[1] == "../train.py"
    vague = task.model_copy(update={"artifacts": ("src/*.py",)})
    with pytest.raises(TaskError, match=r"has no run\.command"):
        training_command(vague, repository.root, {})


# ── what is comparable ──────────────────────────────────────────────────────────────────────


def test_a_task_is_another_when_its_numbers_mean_something_else(task: Task) -> None:
    blobs = {"prepare.py": "aa"}
    same = task_hash(task, blobs)
    for update in (
        {"policy": Policy(keep="improve")},
        {"budget": SearchBudget(runs=3)},
        {"knobs": {"DEPTH": Knob(type="int", low=1, high=2)}},
        {"description": "other"},
        {"id": "other"},
        {"source": "elsewhere/task.yaml"},
        {"objective": task.objective.model_copy(update={"target": 1.0})},
    ):
        assert task_hash(task.model_copy(update=update), blobs) == same
    others = [
        task_hash(task, {"prepare.py": "bb"}),
        task_hash(task, {}),
        task_hash(task.model_copy(update={"artifacts": ("a.py",)}), blobs),
        task_hash(task.model_copy(update={"run": RunConfig(env={"A": "1"})}), blobs),
        task_hash(task.model_copy(update={"objective": Objective(metric="loss")}), blobs),
    ]
    assert len({same, *others}) == 6


def test_a_platform_is_another_when_anything_it_stands_for_is() -> None:
    facts = {
        "device_name": "NVIDIA H100",
        "profile_hash": "p",
        "data_hash": "d",
        "task_hash": "t",
        "budget_seconds": 300.0,
        "clock": "wall",
    }
    keys = {platform_key(**facts)}  # type: ignore[arg-type]
    for name in facts:
        other = {**facts, name: 15.0 if name == "budget_seconds" else "cpu"}
        keys.add(platform_key(**other))  # type: ignore[arg-type]
    assert len(keys) == 7
    assert platform_key(**{**facts, "budget_seconds": 300}) in keys  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "4090"), ("Apple M2 Ultra", "M2-Ultra"), ("cpu", "CPU"),
        ("", "CPU"), ("NVIDIA GH200 480GB", "GH200-480GB"), ("Tesla T4", "Tesla-T4"),
        ("***", "device"),
    ],
)  # fmt: skip
def test_a_device_has_the_name_that_people_use(name: str, short: str) -> None:
    assert short_device_name(name) == short
