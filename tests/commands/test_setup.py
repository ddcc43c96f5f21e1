"""setup and new: a repository is got ready by its own prepare.py, and nothing of it is edited."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from autohypothesis.engine.starter import FILES, make_repository
from autohypothesis.engine.task import default_task
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = """
import pathlib, sys
print("fetching the data", sys.argv[1:])
with open("fetched", "a") as file:
    file.write("x")
sys.exit(int(pathlib.Path("fail").exists()))
"""
Answer = subprocess.CompletedProcess[str]
Cli = Callable[..., Answer]
Git = Callable[..., str]


@pytest.fixture
def fresh(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as `new` makes it, and a cache of its own."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    for name in ("AUTOHYPOTHESIS_DATA", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    answer = cli("new", str(tmp_path / "fresh"))
    assert answer.returncode == 0, answer.stderr
    return tmp_path / "fresh"


def located(root: Path) -> dict[str, object]:
    answer = subprocess.run(
        [sys.executable, "prepare.py", "--locate"], cwd=root, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, object] = json.loads(answer.stdout)
    return found


# ── new ─────────────────────────────────────────────────────────────────────────────────────


def test_a_new_repository_holds_what_a_search_needs_and_no_more(fresh: Path, git: Git) -> None:
    tracked = set(git(fresh, "ls-files").splitlines())
    assert tracked == {*FILES, ".gitignore"}
    assert {"prepare.py", "train.py", "program.md", "SKILL.md", "task.yaml"} == set(FILES)
    assert git(fresh, "rev-list", "--count", "HEAD") == "1"
    assert git(fresh, "status", "--porcelain") == ""
    assert default_task(Repository(fresh)).id == "pretrain"
    assert default_task(Repository(fresh)).source == "task.yaml"
    for name, original in FILES.items():
        assert (fresh / name).read_bytes() == (ROOT / original).read_bytes()


def test_what_a_search_makes_in_it_is_ignored(fresh: Path, git: Git) -> None:
    layout = Layout(fresh)
    (layout.research).mkdir()
    for path in (layout.ledger, layout.results_tsv, layout.decisions, fresh / "run.log"):
        path.write_text("made on use")
    assert git(fresh, "status", "--porcelain") == ""


def test_new_twice_says_that_it_is_there(fresh: Path, cli: Cli, git: Git) -> None:
    before = git(fresh, "rev-parse", "HEAD")
    again = cli("new", str(fresh), "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["created"] is False
    assert "is a research repository already" in cli("new", str(fresh)).stdout
    assert git(fresh, "rev-parse", "HEAD") == before


@pytest.mark.parametrize("there", ["a folder", "a file", "half"])
def test_new_never_writes_over_what_is_there(tmp_path: Path, cli: Cli, there: str) -> None:
    root = tmp_path / "there"
    if there == "a file":
        root.write_text("mine")
    else:
        root.mkdir()
        (root / "train.py").write_text("mine")
    if there == "half":
        (root / ".git").mkdir()
        (root / "prepare.py").write_text("mine")
        (root / "task.yaml").write_text("mine")
    answer = cli("new", str(root))
    assert answer.returncode != 0 and str(root) in answer.stderr
    assert (root if there == "a file" else root / "train.py").read_text() == "mine"


def test_an_earlier_repository_with_its_task_in_a_folder_is_one_too(tmp_path: Path) -> None:
    root = tmp_path / "earlier"
    (root / "tasks" / "pretrain").mkdir(parents=True)
    for name in ("prepare.py", "train.py"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "tasks/pretrain/task.yaml", root / "tasks/pretrain")
    Repository.create(root, "as the demo made it")
    assert not make_repository(root)


def test_the_skill_has_the_head_that_installers_read() -> None:
    text = (ROOT / "SKILL.md").read_text(encoding="utf-8")
    _, head, page = text.split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "description"}
    assert yaml.safe_load(head)["name"] == "autohypothesis"
    assert len(page.splitlines()) < 80, "one page"


# ── setup ───────────────────────────────────────────────────────────────────────────────────


def test_shorter_rows_are_evaluated_on_less_and_prepare_stays_as_it_is(
    fresh: Path, cli: Cli, git: Git
) -> None:
    answer = cli("setup", "--profile", "test", cwd=fresh)
    assert answer.returncode == 0, answer.stderr
    whole = located(fresh)["constants"]
    answer = cli("setup", "--profile", "test", "--seq-len", "16", "--dir", str(fresh))
    assert answer.returncode == 0, answer.stderr
    assert "learning 512 tokens" in answer.stderr, "its progress is shown"
    assert "profile test+seq16" in answer.stdout
    shorter = located(fresh)["constants"]
    assert isinstance(whole, dict) and isinstance(shorter, dict)
    assert (whole["seq_len"], shorter["seq_len"]) == (32, 16)
    assert 0 < shorter["eval_bytes"] <= whole["eval_bytes"] / 2 * 1.01
    assert shorter["eval_tokens"] < 0.6 * whole["eval_tokens"]
    assert git(fresh, "status", "--porcelain") == ""


def test_what_is_prepared_is_found_again(fresh: Path, cli: Cli) -> None:
    words = ("setup", "--profile", "test", "--seq-len", "16")
    assert cli(*words, cwd=fresh).returncode == 0
    first = located(fresh)
    again = cli(*words, cwd=fresh)
    assert again.returncode == 0 and "learning" not in again.stderr
    plain = cli("setup", cwd=fresh)
    assert plain.returncode == 0 and "profile test+seq16" in plain.stdout
    assert located(fresh) == first, "nothing was asked for, and nothing was changed"


def test_a_search_that_has_begun_keeps_its_data_and_it_is_said(fresh: Path, cli: Cli) -> None:
    from autohypothesis.engine.lab import Lab

    assert cli("setup", "--profile", "test", cwd=fresh).returncode == 0
    Lab.open(fresh).with_tag("first")
    answer = cli("setup", "--profile", "test", "--seq-len", "16", cwd=fresh)
    assert answer.returncode == 0 and "search first keeps the data" in answer.stderr


def test_without_data_only_the_environment_is_looked_at(fresh: Path, cli: Cli) -> None:
    answer = cli("setup", "--skip-data", cwd=fresh)
    assert answer.returncode == 0 and "environment: in order" in answer.stdout
    assert not (fresh.parent / "cache").exists()
    answer = cli("setup", "--skip-data", "--seq-len", "16", cwd=fresh)
    assert answer.returncode == 2 and "--seq-len" in answer.stderr


def test_an_environment_that_lacks_something_is_told_what(fresh: Path, cli: Cli) -> None:
    path = f"{ROOT / 'tests/commands/stand_in_torch'}:{os.environ.get('PYTHONPATH', '')}"
    answer = cli("setup", cwd=fresh, PYTHONPATH=path, STAND_IN_TORCH="broken")
    assert answer.returncode == 1 and "libcudart" in answer.stderr
    assert not (fresh.parent / "cache").exists()


def test_a_clone_without_its_packages_says_how_to_get_them() -> None:
    answer = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "orchestrator.py"), "setup"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 1 and "make venv" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_prepare_that_is_not_ours_is_run_as_it_is_and_it_is_said(foreign: Path, cli: Cli) -> None:
    (foreign / "prepare.py").write_text(FOREIGN)
    answer = cli("setup")
    assert answer.returncode == 0, answer.stderr
    assert "is not ours: running it as it is" in answer.stderr
    assert "fetching the data []" in answer.stderr
    assert (foreign / "fetched").read_text() == "x"


@pytest.mark.parametrize("script", [FOREIGN, None])
def test_options_that_a_prepare_cannot_take_are_refused_by_name(
    foreign: Path, cli: Cli, script: str | None
) -> None:
    if script is not None:
        (foreign / "prepare.py").write_text(script)
    answer = cli("setup", "--seq-len", "256", "--profile", "h100")
    assert answer.returncode == 2
    assert "--profile, --seq-len" in answer.stderr and "prepare.py" in answer.stderr
    assert not (foreign / "fetched").exists()


def test_a_repository_that_needs_no_data_is_ready(foreign: Path, cli: Cli) -> None:
    answer = cli("setup")
    assert answer.returncode == 0 and "data: the task names none" in answer.stdout


def test_a_prepare_that_fails_is_told_with_the_command_to_see_why(foreign: Path, cli: Cli) -> None:
    (foreign / "prepare.py").write_text(FOREIGN)
    (foreign / "fail").touch()
    answer = cli("setup")
    assert answer.returncode == 1
    assert (
        "ended with 1" in answer.stderr and f"cd {shlex.quote(str(foreign))} && " in answer.stderr
    )


def test_two_repositories_are_one_too_many(foreign: Path, cli: Cli) -> None:
    answer = cli("--repo", str(foreign), "setup", "--dir", str(foreign.parent))
    assert answer.returncode == 2 and "two repositories" in answer.stderr
