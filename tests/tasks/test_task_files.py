"""The shipped task files are tasks, and stand alone in their folders."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autohypothesis.engine.task_file import load_task

from .conftest import ROOT, Programs, document

SHIPPED = ("skill-quality", "fast-bpe")
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_task_lists_every_file_that_it_rests_on(name: str) -> None:
    """Without one of them in `protected`, two scores of different programs would be compared."""
    folder = ROOT / "tasks" / name
    files = sorted(str(path.relative_to(ROOT)) for path in folder.iterdir() if path.is_file())
    task = load_task(folder / "task.yaml", files, root=ROOT)
    assert task.id == name
    rest = [one for one in files if not task.is_artifact(one) and one != task.source]
    assert [one for one in rest if not task.is_protected(one)] == []
    for command in (task.mutator.command, task.scorer.command):
        assert command is not None
        assert command[0] == "python"
        assert (ROOT / command[1]).is_file()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_task_stands_alone_in_its_folder(name: str) -> None:
    """People copy the folder: the standard library and its own files are all that it imports."""
    folder = ROOT / "tasks" / name
    own = {path.stem for path in folder.glob("*.py")}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for one in names:
                top = one.split(".")[0]
                assert top in own or top in sys.stdlib_module_names, f"{path} imports {one}"


@pytest.mark.parametrize(
    ("name", "artifact"), [("skill-quality", "SKILL.md"), ("fast-bpe", "bpe.py")]
)
def test_a_mutator_changes_its_artifact_alone_and_says_what_it_did(
    tmp_path: Path, name: str, artifact: str
) -> None:
    root = tmp_path / "a checkout"
    for folder in (f"tasks/{name}", "autohypothesis/commands", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    shutil.copy(ROOT / "orchestrator.py", root)
    path = root / "tasks" / name / artifact
    original, said = path.read_bytes(), set()

    def others() -> dict[Path, bytes]:
        return {one: one.read_bytes() for one in root.rglob("*") if one.is_file() and one != path}

    before = others()
    for seed in range(5):
        path.write_bytes(original)
        asked = document(f"tasks/{name}/{artifact}", seed)
        answer = Programs(name).run("mutate.py", cwd=root, said=asked)
        assert answer.returncode == 0, answer.stderr
        assert path.read_bytes() != original and others() == before
        (line,) = answer.stdout.splitlines()
        said.add(line)
    assert len(said) > 2


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The worked example of docs/tasks.md: every block that begins with a file's name."""
    blocks = re.findall(r"^```\w+\n# (tasks/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_worked_example_of_the_page_works(example: Path) -> None:
    """Its mutator and its scorer, as the loop calls them: twenty iterations find something."""
    (source,) = (example / "tasks").glob("*/task.yaml")
    files = [str(path.relative_to(example)) for path in example.rglob("*") if path.is_file()]
    task = load_task(source, files, root=example)
    (artifact,) = task.artifacts_in(files)

    def call(words: tuple[str, ...] | None, said: str = "") -> str:
        command = [sys.executable, *(words or ())[1:]]
        return subprocess.run(
            command, cwd=example, input=said, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def score() -> float:
        line, rest = call(task.scorer.command).split("\n", 1)
        assert not rest
        return float(yaml.safe_load(line)[task.scorer.parse.score_field])

    first = best = score()
    for seed in range(20):
        before = (example / artifact).read_bytes()
        document = f'{{"seed": {seed}, "artifacts": ["{artifact}"], "trials": []}}'
        assert call(task.mutator.command, document).strip()
        value = score()
        if value > best:
            best = value
        else:
            (example / artifact).write_bytes(before)
    assert best > first


def test_the_numbers_of_the_page_are_those_of_the_task_files() -> None:
    for name in SHIPPED:
        said = yaml.safe_load((ROOT / "tasks" / name / "task.yaml").read_text(encoding="utf-8"))
        assert f"`{name}`" in PAGE
        assert f"`min_delta` {said['objective']['min_delta']}" in PAGE
