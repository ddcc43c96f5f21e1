"""The house stands as docs/architecture.md says: floors, one module for git, one for paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "errors": -2, "confine": -2, "plain": -2, "system": -1, "schema": 0, "sandbox": 0, "records": 1,
    "engine": 2,
    "fleet": 3, "proposers": 4, "agents": 4, "hub": 5, "terminal": 5, "commands": 6,
    "orchestrator": 7,
}  # fmt: skip
MODULES = [*sorted((ROOT / "autohypothesis").rglob("*.py")), ROOT / "orchestrator.py"]
HEAVY = (
    "schema", "pydantic", "torch", "numpy", "matplotlib", "psutil", "yaml", "pyarrow",
    "fastapi", "uvicorn", "sqlalchemy",
)  # fmt: skip


def room(name: str) -> str:
    """`autohypothesis.engine.shim` -> engine."""
    parts = name.split(".")
    return parts[1] if parts[0] == "autohypothesis" and len(parts) > 1 else parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_imports_from_the_floors_below_it_only(path: Path) -> None:
    own = room(module_name(path))
    if own in ("autohypothesis", "__init__"):
        return
    for name in imported(ast.parse(path.read_bytes())):
        other = room(name)
        if other in FLOORS and other != own:
            assert FLOORS[other] < FLOORS[own], f"{path} imports {name}"


FLEET = (
    "live", "queue", "sharing", "toolbuilder", "worker", "roster", "observer", "artifact",
    "supervisor", "solo", "overview",
)  # fmt: skip
"""The rooms of the fleet, lowest first."""


def test_a_role_imports_from_the_roles_below_it_only() -> None:
    for path in (ROOT / "autohypothesis" / "fleet").glob("*/*.py"):
        own = FLEET.index(path.parent.name)
        for name in imported(ast.parse(path.read_bytes())):
            parts = name.split(".")
            if parts[:2] == ["autohypothesis", "fleet"] and parts[2:] and parts[2] in FLEET:
                assert FLEET.index(parts[2]) <= own, f"{path} imports {name}"


GIT_CALLERS = {
    "git_call.py": "git on the user's repository, as the user has set it up",
    "git_limited.py": "git on what strangers sent: no configuration, and limits on everything",
}
"""In `records/`. The rules differ in every word, so there is one module for each."""


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_these_modules_call_git(path: Path) -> None:
    if path.name in GIT_CALLERS and path.parent.name == "records":
        return
    tree = ast.parse(path.read_bytes())
    assert not any(name.split(".")[0] == "git" for name in imported(tree)), path
    commands = (
        node.elts[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.List, ast.Tuple)) and node.elts
        and isinstance(node.elts[0], ast.Constant)
    )  # fmt: skip
    assert "git" not in set(commands), f"{path} runs git by itself"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_layout_spells_a_path_under_research(path: Path) -> None:
    """A string that is joined to a path; the ones that people read are messages and help."""
    if path.name == "layout.py":
        return
    joined = (
        node.right.value
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    )  # fmt: skip
    names = {"research", "runs", "plans", "decisions.jsonl", "result.json", "experiments.jsonl"}
    assert not names & set(joined), path


STARTERS = {
    "shim.py": "the shim itself",
    "shim_spawn.py": "the training and its scoring",
    "shim_nvml.py": "the process that asks NVML, which may hang",
    "git_call.py": "git",
    "git_limited.py": "git, under limits",
    "distributions.py": "another Python, to ask where its packages are",
    "preparing.py": "prepare.py, which makes the data",
    "sandbox.py": "a small program in a sandbox, to see whether that works",
    "confine.py": "the program that it confines, which takes its place",
    "launching.py": "the processes of the fleet",
    "program.py": "programs that propose, preflight and locate, helper scripts; none trains",
}


def test_only_the_shim_starts_a_training() -> None:
    """Every module that can start a process is known, with what it starts."""
    calls = re.compile(
        r"subprocess\.(?:run|Popen|call|check_\w+)|os\.(?:posix_spawn|exec|fork|system)"
    )
    found = {path.name for path in MODULES if calls.search(path.read_text())}
    assert found <= STARTERS.keys()


def test_no_module_grows_past_a_page() -> None:
    long = [path for path in MODULES if len(path.read_text().splitlines()) > 500]
    assert not long


@pytest.mark.parametrize("words", [["--help"], ["run-experiment", "--help"], ["show", "--help"]])
def test_help_does_not_wait_for_libraries(words: list[str]) -> None:
    """Newer releases of typer import pydantic by themselves when a command has options."""
    names = [name for name in HEAVY if name != "pydantic" or len(words) == 1]
    code = (
        "import sys, orchestrator\n"
        f"sys.argv = ['orchestrator.py', *{words!r}]\n"
        "try:\n    orchestrator.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


def test_the_training_pair_knows_nothing_of_the_house() -> None:
    for name in ("prepare.py", "train.py"):
        words = set(imported(ast.parse((ROOT / name).read_bytes())))
        assert not any(word.split(".")[0] in ("autohypothesis", "schema") for word in words)


def test_every_error_of_ours_is_in_the_one_tree() -> None:
    pattern = re.compile(
        r"^class \w+\((?:Exception|RuntimeError|ValueError|OSError)\)", re.MULTILINE
    )
    outside = [path for path in MODULES if pattern.search(path.read_text())]
    assert outside == [ROOT / "autohypothesis" / "errors.py"]
