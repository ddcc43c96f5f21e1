"""One module for git, one for paths, one tree of errors; `make lint` checks who imports whom."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]
MODULES = [*sorted((ROOT / "autohypothesis").rglob("*.py")), ROOT / "orchestrator.py"]
HEAVY = (
    "autohypothesis.schema", "pydantic", "torch", "numpy", "matplotlib", "psutil", "yaml",
    "pyarrow", "fastapi", "uvicorn", "sqlalchemy",
)  # fmt: skip

RUNS_A_SEARCH = (
    "autohypothesis.engine.runner", "autohypothesis.engine.collect", "autohypothesis.engine.task",
    "autohypothesis.engine.decide", "autohypothesis.proposers", "autohypothesis.hub", "yaml",
    "jinja2", "optuna", "torch", "numpy", "matplotlib", "pyarrow", "psutil", "requests",
)  # fmt: skip
"""Modules that a command which only shows a search needs not."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_one_module_calls_git() -> None:
    caller = ROOT / "autohypothesis" / "records" / "git_call.py"
    assert not [path for path in MODULES if path != caller and _runs_git(path)]


def _runs_git(path: Path) -> bool:
    """Return whether a list or tuple is a command line of git, or a library for it is imported."""
    tree = ast.parse(path.read_bytes())
    if any(name.split(".")[0] == "git" for name in imported(tree)):
        return True
    commands = (
        node.elts[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.List, ast.Tuple)) and node.elts
        and isinstance(node.elts[0], ast.Constant)
    )  # fmt: skip
    return "git" in set(commands)


LAYOUT = ROOT / "autohypothesis" / "records" / "layout.py"
ELSEWHERE = {"hub.json", "config.json", "run.log", "task.yaml", "home", "worktrees"}
"""Names of the layout that files and folders outside of `research/` have as well."""


def _places() -> set[str]:
    """Every part of a path that the layout declares."""
    calls = (
        node for node in ast.walk(ast.parse(LAYOUT.read_bytes())) if isinstance(node, ast.Call)
    )
    declared = [word for call in calls if _called(call.func) == "Place" for word in call.args]
    return {part for word in declared for part in _words(word)} - ELSEWHERE


def test_only_the_layout_spells_a_path_under_research() -> None:
    """Scripts of the tool catalogue are published as files, and run outside of the package."""
    places = _places()
    assert places >= {"research", "runs", "plans", "decisions.jsonl", "result.json"}
    inside = [path for path in MODULES if path.parent.name != "catalogue" and path != LAYOUT]
    wrong = {path: _joined(path.read_text()) & places for path in inside}
    assert not {path: found for path, found in wrong.items() if found}


def _joined(code: str) -> set[str]:
    """Strings that are joined to a path; the ones that people read are messages and help."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found |= _words(node.right)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            for side in (node.left, node.right):
                words = _words(side)
                found |= words if "" in words or "%s" in words else set()
        elif isinstance(node, ast.Call) and _called(node.func) in JOINERS:
            for word in node.args:
                found |= _words(word)
    return found


JOINERS = {"join", "joinpath", "Path", "PurePath", "with_name", "open"}


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _words(node: ast.expr) -> set[str]:
    """The parts of a constant path, also of one that has values in it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = (part.value for part in parts if isinstance(part, ast.Constant))
    return {word for text in texts if isinstance(text, str) for word in text.split("/")}


STARTERS = {
    "shim.py": "the shim itself",
    "processes.py": "the training and its scoring",
    "gpus.py": "the process that asks NVML, which may hang",
    "machine.py": "a process that tries CUDA, after a training that failed",
    "git_call.py": "git",
    "files.py": "chmod and rm, for folders that Python cannot delete",
    "environment.py": "another Python, to ask which packages it has, and where",
    "inputs.py": "prepare.py, which makes the data",
    "sandbox.py": "a small program in a sandbox, to see whether that works",
    "confine.py": "the program that it confines, which takes its place",
    "process_specs.py": "the processes of the fleet",
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
    """The schema is read as one page, as `train.py` is."""
    inside = [path for path in MODULES if path.name != "schema.py"]
    assert not [path for path in inside if len(path.read_text().splitlines()) > 600]


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


LOOKS = {
    **dict.fromkeys(("runs", "status", "best", "digest", "hypotheses"), RUNS_A_SEARCH),
    "sync": [*RUNS_A_SEARCH, "rich"],
}
"""A command, and what it does not import: `sync` prints one line, without a console."""


@pytest.mark.parametrize("word", LOOKS)
def test_a_look_at_a_search_does_not_wait_for_what_runs_one(word: str, cli: Cli) -> None:
    root = Path(json.loads(cli("status", "--json").stdout)["root"])
    bundle = root / "research" / "runs" / "h-t-0001-1"
    bundle.mkdir(parents=True)
    (bundle / "result.json").write_text('{"status": "completed", "metrics": {"val_bpb": 1.5}}')
    assert cli("sync").returncode == 0
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport orchestrator\n"
        f"sys.argv = ['orchestrator.py', {word!r}]\n"
        "try:\n    orchestrator.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {LOOKS[word]!r} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
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
