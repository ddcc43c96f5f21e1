"""setup and new: a repository is got ready by its own prepare.py, and nothing of it is edited."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from autohypothesis.engine.project import FILES, make_repository
from autohypothesis.engine.task_file import default_task
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from tests.conftest import ROOT, Answer, Cli, Git, called, run_git

TORCH = ROOT / "tests" / "commands" / "stand_in_torch"
FOREIGN = """
import pathlib, sys
print("fetching the data", sys.argv[1:])
with open("fetched", "a") as file:
    file.write("x")
sys.exit(int(pathlib.Path("fail").exists()))
"""


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOHYPOTHESIS_DATA", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fresh(tmp_path: Path, no_data: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as `new` makes it, and a cache of its own."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    answer = called("new", str(tmp_path / "fresh"), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    return tmp_path / "fresh"


@pytest.fixture
def other_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that takes no seconds to import: to see that it is there is another test's."""
    monkeypatch.setenv("PYTHONPATH", f"{TORCH}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("STAND_IN_TORCH", "{}")


SHORTER = ("setup", "--profile", "test", "--seq-len", "16")


class Prepared(NamedTuple):
    """The data of the `test` profile, and then of one with shorter rows."""

    cache: Path
    whole: dict[str, Any]
    answer: Answer
    shorter: dict[str, Any]
    status: str
    """Of git, after all of it."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Made once, the whole data by the real torch too; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("prepared")
    root, cache = folder / "fresh", folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(cache))
        patch.setenv("AUTOHYPOTHESIS_LOCKS", str(folder / "locks"))
        for name in ("AUTOHYPOTHESIS_DATA", "HF_ENDPOINT"):
            patch.delenv(name, raising=False)
        make_repository(root)
        answer = called("setup", "--profile", "test", cwd=root)
        assert answer.returncode == 0, answer.stderr
        whole = located(root)
        patch.setenv("PYTHONPATH", f"{TORCH}:{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("STAND_IN_TORCH", "{}")
        answer = called(*SHORTER, "--dir", str(root), cwd=folder)
        return Prepared(cache, whole, answer, located(root), run_git(root, "status", "--porcelain"))


@pytest.fixture
def with_data(fresh: Path, prepared: Prepared, other_torch: None) -> Path:
    """As `fresh`, with a copy of both data sets in its cache; the shorter one is in use."""
    shutil.copytree(prepared.cache, fresh.parent / "cache")
    return fresh


def located(root: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "prepare.py", "--locate"], cwd=root, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


# ── new ─────────────────────────────────────────────────────────────────────────────────────


def test_a_new_repository_holds_what_a_search_needs_and_no_more(fresh: Path, git: Git) -> None:
    tracked = set(git(fresh, "ls-files").splitlines())
    assert tracked == {*FILES, ".gitignore", "README.md"}
    pages = {"program.md", "SKILL.md", "task.yaml", "task.schema.json"}
    assert {"prepare.py", "train.py", *pages} == set(FILES)
    assert git(fresh, "rev-list", "--count", "HEAD") == "1"
    assert git(fresh, "status", "--porcelain") == ""
    assert default_task(Repository(fresh)).id == "pretrain"
    assert default_task(Repository(fresh)).source == "task.yaml"
    for name, original in FILES.items():
        same = (fresh / name).read_bytes() == (ROOT / original).read_bytes()
        assert same or name == "task.yaml"


def test_a_new_repository_has_a_first_page_and_the_schema_that_its_task_names(fresh: Path) -> None:
    first, *_ = (fresh / "task.yaml").read_text().splitlines()
    schema = first.partition("$schema=")[2]
    assert json.loads((fresh / schema).read_text())["title"] == "TaskFile"
    page = (fresh / "README.md").read_text()
    assert page.startswith(f"# {fresh.name}\n")
    for name in re.findall(r"^\| `([\w.]+)`", page, re.MULTILINE):
        assert (fresh / name).is_file(), name
    for words in re.findall(r"^python orchestrator\.py --repo PATH ([^#\n]*)", page, re.MULTILINE):
        answer = called("--repo", str(fresh), words.split()[0], "--help", cwd=fresh)
        assert answer.returncode == 0 and all(
            word in answer.stdout for word in words.split() if word.startswith("--")
        )


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


def test_shorter_rows_are_evaluated_on_less_and_prepare_stays_as_it_is(prepared: Prepared) -> None:
    answer = prepared.answer
    assert answer.returncode == 0, answer.stderr
    assert "learning 512 tokens" in answer.stderr, "its progress is shown"
    assert "profile test+seq16" in answer.stdout
    whole, shorter = prepared.whole["constants"], prepared.shorter["constants"]
    assert (whole["seq_len"], shorter["seq_len"]) == (32, 16)
    assert 0 < shorter["eval_bytes"] <= whole["eval_bytes"] / 2 * 1.01
    assert shorter["eval_tokens"] < 0.6 * whole["eval_tokens"]
    assert prepared.status == ""


def test_what_is_prepared_is_found_again(with_data: Path, cli: Cli) -> None:
    first = located(with_data)
    again = cli(*SHORTER, cwd=with_data)
    assert again.returncode == 0 and "learning" not in again.stderr
    plain = cli("setup", cwd=with_data)
    assert plain.returncode == 0 and "profile test+seq16" in plain.stdout
    assert located(with_data) == first, "nothing was asked for, and nothing was changed"


def test_a_search_that_has_begun_keeps_its_data_and_it_is_said(with_data: Path, cli: Cli) -> None:
    from autohypothesis.engine.project import Project

    assert cli("setup", "--profile", "test", cwd=with_data).returncode == 0
    Project.open(with_data).with_tag("first")
    answer = cli(*SHORTER, cwd=with_data)
    assert answer.returncode == 0 and "search first keeps the data" in answer.stderr


def test_without_data_only_the_environment_is_looked_at(fresh: Path, cli: Cli) -> None:
    answer = cli("setup", "--skip-data", cwd=fresh)
    assert answer.returncode == 0 and "environment: in order" in answer.stdout
    assert not (fresh.parent / "cache").exists()


def test_rows_of_another_length_are_made_from_text_that_is_here_without_a_download(
    with_data: Path, cli: Cli, tmp_path: Path
) -> None:
    words = ("setup", "--skip-data", "--profile", "test", "--seq-len", "48")
    answer = cli(*words, cwd=with_data, AUTORESEARCH_CACHE=str(tmp_path / "empty"))
    assert answer.returncode == 0 and "setup --profile test --seq-len 48" in answer.stderr
    assert not (tmp_path / "empty").exists()
    answer = cli(*words, cwd=with_data)
    assert answer.returncode == 0, answer.stderr
    assert "profile test+seq48" in answer.stdout
    assert "prepared" in answer.stderr and answer.stderr.count("next:") == 1
    answer = cli(*words, "--source", "tinystories", cwd=with_data)
    assert answer.returncode == 0 and "not prepared: tinystories" in answer.stderr


def test_an_environment_that_lacks_something_is_told_what(fresh: Path, program: Cli) -> None:
    path = f"{TORCH}:{os.environ.get('PYTHONPATH', '')}"
    answer = program("setup", cwd=fresh, PYTHONPATH=path, STAND_IN_TORCH="broken")
    assert answer.returncode == 1 and "libcudart" in answer.stderr
    assert not (fresh.parent / "cache").exists()


def test_a_clone_without_its_packages_says_how_to_get_them() -> None:
    answer = subprocess.run(
        [sys.executable, "-E", "-S", str(ROOT / "orchestrator.py"), "setup"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 1 and "make venv" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_prepare_that_is_not_ours_is_run_as_it_is_and_it_is_said(
    foreign: Path, cli: Cli, other_torch: None
) -> None:
    (foreign / "prepare.py").write_text(FOREIGN)
    answer = cli("setup")
    assert answer.returncode == 0, answer.stderr
    assert "is not ours: running it as it is" in answer.stderr
    assert "fetching the data []" in answer.stderr
    assert (foreign / "fetched").read_text() == "x"


@pytest.mark.parametrize("script", [FOREIGN, None])
def test_options_that_a_prepare_cannot_take_are_refused_by_name(
    foreign: Path, cli: Cli, other_torch: None, script: str | None
) -> None:
    if script is not None:
        (foreign / "prepare.py").write_text(script)
    answer = cli("setup", "--seq-len", "256", "--profile", "h100")
    assert answer.returncode == 2
    assert "--profile, --seq-len" in answer.stderr and "prepare.py" in answer.stderr
    assert not (foreign / "fetched").exists()


def test_a_repository_that_needs_no_data_is_ready(
    foreign: Path, cli: Cli, other_torch: None
) -> None:
    answer = cli("setup")
    assert answer.returncode == 0 and "data: the task names none" in answer.stdout


def test_a_prepare_that_fails_is_told_with_the_command_to_see_why(
    foreign: Path, cli: Cli, other_torch: None
) -> None:
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
