"""The documents are true: every command in them runs, every name in them exists.

Commands run in a copy of the checkout, on the `test` profile. Stand-ins, where a command needs
what a test has not: `python prepare.py` prepares the `test` profile, `uv sync` and what installs is
left to `make`, `../my-repository` is a script that the test writes. `make demo` and `make test`
are run by test_demo.py (slow) and by CI.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
STAND_INS = {
    "python prepare.py": "python prepare.py --profile test",
    "uv run prepare.py": "uv run prepare.py --profile test",
    "uv sync": "",
    "make demo": "",
    "make test": "",
}
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name not in ("CHANGELOG.md",)
]


def commands(page: str) -> Iterator[str]:
    """The lines of every `sh` block, without their remarks."""
    for block in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in block.splitlines():
            command = line.split("  #")[0].split(" # ")[0].strip()
            if command and not command.startswith("#"):
                yield command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git tracks here, as it is in the working tree, in a repository of its own."""
    root = tmp_path_factory.mktemp("docs") / "autohypothesis"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "start")):
        subprocess.run(["git", *identity, *words], cwd=root, check=True)
    other = root.parent / "my-repository"
    other.mkdir()
    (other / "train.py").write_text('print("val_bpb: 1.5")\nprint("peak_vram_mb: 10")\n')
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "start")):
        subprocess.run(["git", *identity, *words], cwd=other, check=True)
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's, with our Python as `python` and as the environment that uv finds."""
    folder = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTORESEARCH_CACHE": str(folder / "cache"),
        "AUTOHYPOTHESIS_LOCKS": str(folder / "locks"),
        "UV_NO_SYNC": "1",
        "UV_PROJECT_ENVIRONMENT": str(Path(sys.executable).parents[1]),
    }


def known_commands() -> set[str | None]:
    """Commands and groups of commands, as the first word after `orchestrator.py`."""
    from orchestrator import app

    registered = (*app.registered_commands, *app.registered_groups)
    return {one.name for one in registered}


def run(command: str, cwd: Path, environment: dict[str, str]) -> None:
    command = STAND_INS.get(command, command)
    if not command:
        return
    answer = subprocess.run(
        shlex.split(command), cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"


def test_every_command_of_the_readme_runs_in_its_order(
    clone: Path, environment: dict[str, str]
) -> None:
    if shutil.which("uv", path=environment["PATH"]) is None:
        pytest.fail("uv is among the development packages, and is not installed: run `make dev`")
    # doctor is right to miss the data before it is prepared.
    found = list(commands("README.md"))
    assert found[:2] == ["make demo", "make test"]
    assert len(found) > 10
    run("python prepare.py", clone, environment)
    for command in found:
        run(command, clone, environment)


def test_every_command_of_the_fleets_page_runs_in_its_order(
    clone: Path, environment: dict[str, str]
) -> None:
    found = list(commands("docs/fleet.md"))
    assert "python orchestrator.py digest" in found
    run("python prepare.py", clone, environment)
    for command in found:
        run(command, clone, environment)


def test_every_command_of_the_tasks_page_runs_in_its_order(
    clone: Path, environment: dict[str, str]
) -> None:
    found = list(commands("docs/tasks.md"))
    assert found
    for command in found:
        run(command, clone, environment)


def test_no_page_has_commands_that_nobody_runs() -> None:
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    tested = {"README.md", "docs/fleet.md", "docs/tasks.md"}
    assert {page for page in pages if list(commands(page))} == tested


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_named_exist(page: Path) -> None:
    """Commands of ours, targets of make and modules, wherever they stand in a text."""
    names = known_commands()
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"orchestrator\.py (?:--repo \S+ )?([a-z][a-z-]+)", text):
        assert name in names, f"{page} names the command {name}"
    for name in re.findall(r"`make ([a-z]+)", text) + re.findall(r"^make ([a-z]+)", text, re.M):
        assert name in targets.group(1).split(), f"{page} names make {name}"
    for name in re.findall(r"python -m ((?:autohypothesis|benchmarks)[\w.]*)", text):
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").exists(), f"{page} names {name}"


def test_hints_in_error_messages_name_commands_that_exist() -> None:
    names = known_commands()
    for path in (ROOT / "autohypothesis").rglob("*.py"):
        for name in re.findall(r"python orchestrator\.py ([a-z][a-z-]+)", path.read_text()):
            assert name in names, f"{path} names the command {name}"


def test_every_command_has_an_example_in_its_help() -> None:
    from orchestrator import app

    for command in app.registered_commands:
        text = (command.callback.__doc__ or "") if command.callback else ""
        assert "xample" in text, f"{command.name} has no example"
