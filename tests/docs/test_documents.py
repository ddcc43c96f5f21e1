"""The documents are true: every command in them runs, every name in them exists.

Commands run in a copy of the checkout, on the `test` profile. `STAND_INS` are all that is run in
another form: what a test has not (another profile, an editor), and what would take long; what
installs is left to `make`, and `../my-repository` is a script that the test writes. `make demo` and
`make test` are run by test_demo.py (slow) and by CI.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from autohypothesis.engine.task_file import load_task
from autohypothesis.fleet.live import steering
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Steering
from benchmarks._predecessor import write_run
from tests.conftest import ROOT, Cli, copy_of_the_project

FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
HERE = "<<'END'"
HANGS_S = 900.0
"""A hang guard: a loop of six takes half a minute on an idle machine."""
EDIT = "sed -i 's/^MATRIX_LR = [^ ]*/MATRIX_LR = 0.001/' train.py"
STAND_INS = {
    "python prepare.py": "python prepare.py --profile test",
    "python orchestrator.py setup": "python orchestrator.py setup --profile test",
    "uv run prepare.py": "uv run prepare.py --profile test",
    "python orchestrator.py run-loop --max 20": "python orchestrator.py run-loop --max 2",
    # The reader's edit comes before the commit.
    'git commit -am "a much lower matrix rate"': f"{EDIT}; git commit -qam 'a lower rate'",
    "uv sync --all-extras": "true",
    "make demo": "true",
    "make test": "true",
}
RUN = ("README.md", "SKILL.md", "program.md", "USAGE.md", "docs/fleet.md", "docs/tasks.md")
"""Pages with commands; each is run in a clone of its own."""
USAGE = "USAGE.md"
"""Its task is run by a test of its own."""
FIRST_HOUR = "docs/first-hour.md"
"""Each section is run by itself; those with a fleet are slow."""
LONG = ("README.md", "SKILL.md", "program.md", "docs/fleet.md")
"""Those that train for minutes, fleet and all."""
OF_THE_HUB = ("docs/hub.md", "program_agenthub.md")
"""Pages whose commands test_hub_documents.py runs, with hubs behind them."""
IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}
OTHER_SCRIPT = """
RATE = 0.1
print(f"val_bpb: {1 + (RATE - 0.3) ** 2:.6f}")
print("peak_vram_mb: 10")
"""
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name not in ("CHANGELOG.md",)
]


def commands(page: str) -> Iterator[str]:
    """The lines of every `sh` block, without their remarks; a here-document is one command."""
    return commands_in((ROOT / page).read_text(encoding="utf-8"))


def commands_in(text: str) -> Iterator[str]:
    for block in FENCE.findall(text):
        lines = iter(block.splitlines())
        for line in lines:
            if HERE in line:
                yield "\n".join([line, *takewhile(lambda one: one != "END", lines), "END"])
                continue
            command = line.split("  #")[0].split(" # ")[0].strip()
            if command and not command.startswith("#"):
                yield command


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True,
        env={**os.environ, **IDENTITY},
    ).stdout.rstrip("\n")  # fmt: skip


def commit_all(folder: Path) -> None:
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project, and a repository that is not ours beside it."""
    root = tmp_path / "autohypothesis"
    copy_of_the_project(root)
    commit_all(root)
    other = tmp_path / "my-repository"
    other.mkdir()
    (other / "train.py").write_text(OTHER_SCRIPT)
    commit_all(other)
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's, with our Python as `python` and as the environment that uv finds."""
    folder = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        **IDENTITY,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTORESEARCH_CACHE": str(folder / "cache"),
        "AUTOHYPOTHESIS_LOCKS": str(folder / "locks"),
        "UV_NO_SYNC": "1",
        "UV_PROJECT_ENVIRONMENT": str(Path(sys.executable).parents[1]),
    }


def known_commands() -> set[str]:
    """Commands and groups of commands, as the first word after `orchestrator.py`."""
    from autohypothesis.commands.main import Loaded

    return set(Loaded())


def run(command: str, cwd: Path, environment: dict[str, str]) -> str:
    """Return what a command printed; a shell runs it, as a reader's would."""
    command = STAND_INS.get(command, command)
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS_S,
    )  # fmt: skip
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in LONG))
        for page in RUN
        if page != USAGE
    ],
)
@pytest.mark.timeout(1800)
def test_every_command_of_a_page_runs_in_its_order(
    clone: Path, environment: dict[str, str], page: str
) -> None:
    if shutil.which("uv", path=environment["PATH"]) is None:
        pytest.fail("uv is among the development packages, and is not installed: run `make dev`")
    found = list(commands(page))
    assert len(found) > 1
    run("python prepare.py", clone, environment)  # on the test profile, which is found from then on
    for command in found:
        run(command, clone, environment)


def test_the_two_commands_come_first() -> None:
    assert list(commands("README.md"))[:2] == ["make demo", "make test"]


def test_the_commands_of_every_page_are_run() -> None:
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {page for page in pages if list(commands(page))} == {*RUN, FIRST_HOUR, *OF_THE_HUB}


def test_the_task_of_the_usage_page_improves(clone: Path, environment: dict[str, str]) -> None:
    """The task is made by its shell lines alone, and its user's branch follows what is kept."""
    for command in commands(USAGE):
        run(command, clone, environment)
    task = clone.parent / "fewer-words"
    lines = [json.loads(line) for line in (task / "work/results.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    kept = [line for line in lines if line["status"] == "keep"]
    assert kept and git(task, "rev-parse", "main") == kept[-1]["commit"]
    assert len((task / "advice.txt").read_text().split()) == kept[-1]["candidate_score"] < 16


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        pytest.param("A fleet, and what it found", "main ", marks=pytest.mark.slow),
        pytest.param("A proposer of your own", '"title": "', marks=pytest.mark.slow),
        ("A task of your own", "better by"),
        ("A repository that is not ours", "main moved from"),
        ("A search that another tool began", "search       imported"),
    ],
)
@pytest.mark.timeout(900)
def test_every_section_of_the_first_hour_does_what_it_shows(
    clone: Path, environment: dict[str, str], title: str, wanted: str
) -> None:
    sections = dict(
        part.split("\n", 1) for part in (ROOT / FIRST_HOUR).read_text().split("\n## ")[1:]
    )
    assert len(sections) == 5
    older = clone.parent / "older-search"
    shutil.copytree(clone.parent / "my-repository", older)
    for number in range(24):
        write_run(Layout(older), number)
    if "fleet" in title:
        run("python prepare.py", clone, environment)
    before = takewhile(lambda command: not command.startswith("python"), commands(USAGE))
    asked = [*(before if "task" in title else ()), *commands_in(sections[title])]
    said = [run(command, clone, environment) for command in asked]
    assert wanted in said[-1]


TRAIN = "uv run train.py > run.log 2>&1"
LOOK = r'grep "^val_bpb:\|^peak_vram_mb:" run.log'
SYNC = "uv run python orchestrator.py sync"


def test_the_published_loop_is_printed_as_it_is() -> None:
    """SKILL.md is run as it is above; tests/commands/test_own_branch.py has its decisions."""
    assert {TRAIN, LOOK, SYNC, "git reset --hard HEAD~1"} <= set(commands("SKILL.md"))


# ── names in the text ───────────────────────────────────────────────────────────────────────


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


def words_of(page: Path) -> Iterator[list[str]]:
    """Our commands with their words: in `code`, and in the lines of `sh` blocks."""
    text = page.read_text(encoding="utf-8")
    spans = [*re.findall(r"`([^`\n]+)`", text), *commands(str(page.relative_to(ROOT)))]
    for span in spans:
        with suppress(ValueError):  # an apostrophe: it was no command
            yield shlex.split(re.sub(r"^(?:uv run )?python orchestrator\.py ", "", span))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_are_named_exist(page: Path) -> None:
    from autohypothesis.commands.main import app

    root: Any = typer.main.get_command(app)
    for words in words_of(page):
        command = root
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        for word in words if command is not root else ():
            if word.startswith("--"):
                said = f"{page} names {word} of {command.name}"
                assert word.split("=")[0] in {*known, "--help", "--repo"}, said


def test_the_example_of_a_program_binds_what_it_says() -> None:
    page = ROOT / "docs" / "program-md.md"
    binds = steering.parse(page.read_text(encoding="utf-8"))
    assert binds.frozen and binds.ranges and binds.directions and binds.memory_limit_mb
    task = load_task(ROOT / "tasks/pretrain/task.yaml", ["train.py", "prepare.py"], root=ROOT)
    assert steering.unknown_names(binds, list(task.knobs)) == []
    own = steering.parse((ROOT / "program.md").read_text(encoding="utf-8"))
    assert own == Steering(), "the shipped program.md forbids nothing"


def test_every_command_of_a_module_is_called_by_its_name() -> None:
    import autohypothesis.commands
    from autohypothesis.commands.app import app

    for module in pkgutil.iter_modules(autohypothesis.commands.__path__):
        importlib.import_module(f"autohypothesis.commands.{module.name}")
    registered = (*app.registered_commands, *app.registered_groups)
    assert sorted(str(one.name) for one in registered) == sorted(known_commands())


def test_help_shows_each_command_once_and_neither_alias_nor_role(cli: Cli) -> None:
    from autohypothesis.commands.main import PANELS, UNLISTED

    lines = cli("--help", COLUMNS="100").stdout.splitlines()
    heads = [line.split()[1:-1] for line in lines if line.startswith("╭─")]
    assert [" ".join(head).rstrip("─ ") for head in heads] == ["Options", *PANELS]
    shown = [line.split()[1] for line in lines if re.match(r"│ [a-z]", line)]
    assert shown == [name for names in PANELS.values() for name in names]
    for alias in UNLISTED:
        assert cli(alias, "--help").returncode == 0 and alias not in shown


def test_hints_in_error_messages_name_commands_that_exist() -> None:
    names = known_commands()
    for path in (ROOT / "autohypothesis").rglob("*.py"):
        for name in re.findall(r"python orchestrator\.py ([a-z][a-z-]+)", path.read_text()):
            assert name in names, f"{path} names the command {name}"


def leaves(commands: Any) -> Iterator[Any]:
    """Every command, those of groups included."""
    for command in commands.values():
        inner = getattr(command, "commands", None)
        yield from leaves(inner) if inner else [command]


def test_every_command_has_examples_of_its_own() -> None:
    from autohypothesis.commands.main import Loaded

    commands = list(leaves(Loaded()))
    assert len(commands) > 50
    for command in commands:
        assert command.examples, f"{command.name} has no example"
        for example in command.examples:
            assert "orchestrator.py" in example and "xample" not in command.help
            assert command.name in shlex.split(example.partition("orchestrator.py ")[2])


def test_help_shows_a_line_for_each_example(cli: Cli) -> None:
    shown = cli("hub", "join", "--help", COLUMNS="60").stdout.splitlines()
    at = shown.index(" Examples:")
    assert shown[at + 1].endswith("hub join http://127.0.0.1:8000 --name my-machine")
    assert shown[at + 2].endswith("--name my-machine --key-file key.txt"), "it is not wrapped"


def test_the_schema_of_a_task_is_current() -> None:
    from autohypothesis.engine.task import TaskFile

    said = json.loads((ROOT / "tasks" / "task.schema.json").read_text(encoding="utf-8"))
    assert said == TaskFile.model_json_schema(), (
        "python orchestrator.py schema task > tasks/task.schema.json"
    )


@pytest.mark.parametrize("task", sorted((ROOT / "tasks").glob("*/task.yaml")), ids=str)
def test_editors_find_the_schema_of_a_shipped_task(task: Path) -> None:
    first = task.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../task.schema.json"
