"""The wheel, built from the source distribution and installed where nothing of the clone is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.project import FILES
from autohypothesis.installation import EXTRAS
from tests.conftest import ROOT, copy_of_the_project

Run = Callable[..., str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the working tree, since a build leaves its traces there, and its files."""
    root = tmp_path_factory.mktemp("build") / "source"
    return root, copy_of_the_project(root, without=("tests/", "docs/", "benchmarks/"))


@pytest.fixture(scope="module")
def wheel(source: tuple[Path, list[str]]) -> Path:
    """The wheel of the working tree, by way of its source distribution; needs no network."""
    root, folder = source[0], source[0].parent
    build = "from setuptools.build_meta import build_sdist as b; print(b({!r}))"
    python(root, "-c", build.format(str(folder)))
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    build = "from setuptools.build_meta import build_wheel as b; print(b({!r}))"
    python(folder / archive.name.removesuffix(".tar.gz"), "-c", build.format(str(folder)))
    (made,) = folder.glob("*.whl")
    return made


def python(folder: Path, *words: str) -> str:
    answer = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its libraries are those of this interpreter."""
    home = tmp_path_factory.mktemp("environment")
    python(home, "-m", "venv", "--without-pip", "env")
    (site,) = (home / "env" / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    python(home, "-m", "pip", "--python", str(home / "env"), "install", "--quiet", "--no-deps",
           "--no-index", "--force-reinstall", str(wheel))  # fmt: skip
    return home / "env" / "bin"


@pytest.fixture
def run(installed: Path, tmp_path: Path, own_locks: Path) -> Run:
    """`autohypothesis WORDS`, in an empty folder."""

    def call(*words: str, code: int = 0) -> str:
        clean = {name: word for name, word in os.environ.items() if name != "PYTHONPATH"}
        answer = subprocess.run(
            [str(installed / "autohypothesis"), *words],
            cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert answer.returncode == code, answer.stderr
        return answer.stdout + answer.stderr

    return call


def test_the_wheel_holds_the_package_and_what_a_repository_begins_with(
    wheel: Path, source: tuple[Path, list[str]]
) -> None:
    tracked = source[1]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert {name.partition("/")[0] for name in names} == {"autohypothesis"}
        files = {name for name in names if name.startswith("autohypothesis/_files/")}
        assert names - files == {name for name in tracked if name.startswith("autohypothesis/")}
        inside = {name.removeprefix("autohypothesis/_files/") for name in files}
        tasks = {name for name in tracked if name.startswith("tasks/")}
        assert inside == {*FILES.values()} | tasks
        for name in inside:
            assert archive.read(f"autohypothesis/_files/{name}") == (ROOT / name).read_bytes()


def test_an_installed_search_makes_a_repository_and_runs_in_it(run: Run, tmp_path: Path) -> None:
    assert "python orchestrator.py" not in run("--help") + run("up", "--help")
    assert "orchestrator.py" not in run("hub", "admin", "role", "--help")
    assert "autohypothesis --repo search setup" in run("new", "search")
    assert {path.name for path in (tmp_path / "search").iterdir()} >= set(FILES)
    assert "orchestrator.py" not in (tmp_path / "search" / "SKILL.md").read_text()
    assert "next: autohypothesis" in run("--repo", "search", "status")
    assert "run `autohypothesis" in run("bogus", code=2)


@pytest.mark.slow
def test_the_first_steps_of_the_demo_from_a_wheel(run: Run, tmp_path: Path) -> None:
    said = run("demo", "--profile", "test", "--runs", "1", "--lanes", "1")
    (row,) = map(json.loads, (tmp_path / "demo/experiments.jsonl").read_text().splitlines())
    assert (row["status"], row["worker_id"]) == ("keep", "cpu0"), row
    assert "  autohypothesis digest --repo demo" in said
    assert "orchestrator.py" not in said


def test_a_command_that_lacks_its_extra_says_which_one_to_install(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.argv = ['autohypothesis', 'hub',"
        " 'admin', 'list', '--data', 'hub']; from autohypothesis.__main__ import main; main()"
    )
    answer = subprocess.run(
        [str(installed / "python"), "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stderr.endswith("install it: pip install 'autohypothesis[hub]'\n"), answer.stderr


def test_every_extra_is_named_with_what_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    needed = re.findall(r'^Requires-Dist: ([\w-]+).*extra == "(\w+)"', metadata, re.MULTILINE)
    modules = {"markdown-it-py": "markdown_it"}
    assert {modules.get(name, name): extra for name, extra in needed} == EXTRAS
