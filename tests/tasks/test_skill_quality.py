"""The rubric cannot be fooled cheaply, and the mutator edits the page and nothing else."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Programs

FOLDER = ROOT / "tasks" / "skill-quality"
SHIPPED = (FOLDER / "SKILL.md").read_text(encoding="utf-8")
GOOD = (Path(__file__).parent / "good-skill.md").read_text(encoding="utf-8")
ARTIFACT = "tasks/skill-quality/SKILL.md"


@pytest.fixture(scope="module")
def score(skill: Programs) -> Callable[[str], float]:
    judge = skill.module("rubric").judge
    return lambda text: float(judge(text, FOLDER, ROOT)["score"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The parts of the repository that the task looks at, in a folder with a blank."""
    root = tmp_path / "a checkout"
    for name in ("tasks/skill-quality", "autohypothesis/commands", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "orchestrator.py", root)
    return root


def test_a_page_can_be_good_and_the_shipped_one_leaves_much_to_do(
    score: Callable[[str], float],
) -> None:
    assert score(GOOD) > 97
    assert score(SHIPPED) < 40


KEYWORDS = "config json orchestrator status runs triage failed crash log show digest failure kind"
HEADINGS = ("When to use", "Steps", "Example", "When it fails")


def with_every_command(skill: Programs, text: str) -> str:
    names = skill.module("page").known_commands(ROOT)
    block = "\n".join(f"python orchestrator.py {name}" for name in names)
    return f"{text}\n```sh\n{block}\n```\n"


def paragraph(text: str) -> str:
    return re.findall(r"^[A-Z].+$", text, re.MULTILINE)[1] + "\n"


TRICKS: dict[str, Callable[[Programs, str], str]] = {
    "nothing": lambda skill, text: "",
    "front matter alone": lambda skill, text: text.split("---\n")[1].join(["---\n", "---\n"]),
    "headings alone": lambda skill, text: "\n".join(f"## {one}\n" for one in HEADINGS),
    "more headings": lambda skill, text: text + "".join(f"\n## {one}\n" for one in HEADINGS),
    "keywords": lambda skill, text: f"{text}\n{KEYWORDS * 5}\n",
    "nothing but keywords": lambda skill, text: f"# Runs\n\n{KEYWORDS * 20}\n",
    "every command": with_every_command,
    "the page twice": lambda skill, text: text + text.split("---\n", 2)[2],
    "a paragraph again": lambda skill, text: f"{text}\n{paragraph(text)}\n",
    "scraps": lambda skill, text: text + "\nDo it. Read it. See it. Run it. Try it. Take it.\n" * 8,
    "good links": lambda skill, text: text + "\n[a](../../docs/fleet.md)\n" * 20,
    "padding": lambda skill, text: text + "\nIt is what it is, and that is what it is for.\n" * 30,
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("page", ["shipped", "good"])
def test_a_cheap_trick_does_not_raise_the_score(
    trick: str, page: str, skill: Programs, score: Callable[[str], float]
) -> None:
    text = {"shipped": SHIPPED, "good": GOOD}[page]
    assert score(TRICKS[trick](skill, text)) <= score(text) + 1e-9


@pytest.mark.parametrize("text", ["", "\n\n", "---\nname: a\n", "\0\x01\ufffd", "```\n" * 5])
def test_a_page_that_is_none_scores_nothing_and_breaks_nothing(
    text: str, score: Callable[[str], float]
) -> None:
    assert score(text) == 0


@pytest.mark.parametrize(
    ("fault", "criterion"),
    [
        (("runs --last 5", "rnus --last 5"), "commands"),
        (("--last 5", "--latest 5"), "commands"),
        (("docs/fleet.md", "docs/flete.md"), "references"),
        (("```sh\npython orchestrator.py sync\n```", "python orchestrator.py sync"), "fences"),
        (("# Why a run failed", "### Why a run failed"), "headings"),
        (("## Steps", "## To do"), "sections"),
        (("Show the run, and", "Simply show the run, and basically"), "plain"),
        ((".\n", ".  \n"), "tidy"),
        (("name: triage-failed-run", "name: Triage Failed Run"), "front_matter"),
        (("you want to know why.", "you want to know why" + " and more of it" * 9), "sentences"),
    ],
)
def test_each_fault_costs_points_of_its_criterion(
    fault: tuple[str, str], criterion: str, skill: Programs
) -> None:
    assert fault[0] in GOOD
    judge = skill.module("rubric").judge
    before = judge(GOOD, FOLDER, ROOT)
    after = judge(GOOD.replace(*fault), FOLDER, ROOT)
    assert after[criterion] < before[criterion]
    assert after["score"] < before["score"]


def test_the_commands_are_those_of_the_command_line(skill: Programs) -> None:
    from autohypothesis.commands.main import Loaded

    def names(commands: Any, before: str = "") -> Iterator[str]:
        for name, command in commands.items():
            inner = getattr(command, "commands", None)
            yield from names(inner, f"{before}{name} ") if inner else [f"{before}{name}"]

    assert set(skill.module("page").known_commands(ROOT)) == set(names(Loaded()))


def test_what_the_mutator_may_say_is_true_of_this_repository(skill: Programs) -> None:
    page, rubric = skill.module("page"), skill.module("rubric")
    facts = page.parse((FOLDER / "facts.md").read_text(encoding="utf-8"))
    known = page.known_commands(ROOT)
    for call in page.calls(facts):
        name = page.command_name(call, known)
        assert name, call
        assert not page.unknown_options(call, known[name]), call
    assert rubric.references(facts, FOLDER, ROOT) == 1


def test_the_scorer_prints_one_line_whatever_the_page_is(skill: Programs, checkout: Path) -> None:
    for text in (b"", b"\xff\xfe\x00", b"# a\n" * 100_000, SHIPPED.encode()):
        (checkout / ARTIFACT).write_bytes(text)
        answer = skill.run("rubric.py", cwd=checkout)
        assert answer.returncode == 0
        assert answer.stdout.count("\n") == 1
        assert '"score": ' in answer.stdout
    (checkout / ARTIFACT).unlink()
    assert skill.run("rubric.py", cwd=checkout).stdout.startswith('{"score": 0')


def test_the_same_seed_makes_the_same_edit_and_a_tried_one_is_not_made_again(
    skill: Programs,
) -> None:
    edit = skill.module("mutate").edit
    for seed in range(30):
        first = edit(SHIPPED, seed, root=ROOT, folder=FOLDER)
        assert first == edit(SHIPPED, seed, root=ROOT, folder=FOLDER)
        other = edit(SHIPPED, seed, root=ROOT, folder=FOLDER, tried={first[1]})
        assert other[1] != first[1]


def test_every_operator_leaves_a_page_that_can_be_read(skill: Programs) -> None:
    """Front matter, closed blocks and the last line end stay; each finds something to do."""
    mutate, page = skill.module("mutate"), skill.module("page")
    unused = {one.__name__ for one in mutate.OPERATORS}
    for text in (SHIPPED, GOOD.replace("## Steps", "## To do"), "# A page\n\nWith a line.\n"):
        for operator in mutate.OPERATORS:
            for seed in range(8):
                scene = mutate.Scene(page.parse(text), random.Random(seed), ROOT, FOLDER)
                found = operator(scene)
                if found is None:
                    continue
                unused.discard(operator.__name__)
                new = "\n".join(found[0])
                after = page.parse(new)
                assert set(after.front) == set(scene.page.front)
                assert all(fence.closed for fence in after.fences)
                assert new.endswith("\n")
                assert found[1].strip()
                assert "\n" not in found[1]
    assert not unused


def test_the_mutator_does_not_know_what_the_rubric_pays_for() -> None:
    assert not re.search(
        r"^\s*(?:import|from) rubric", (FOLDER / "mutate.py").read_text(), re.MULTILINE
    )


def test_a_hundred_edits_of_an_edited_page_break_nothing(skill: Programs) -> None:
    """The worse ones as well, one on top of the other."""
    mutate, text = skill.module("mutate"), SHIPPED
    for seed in range(100):
        found = mutate.edit(text, seed, root=ROOT, folder=FOLDER)
        if found is not None:
            text = found[0]
            assert skill.module("rubric").judge(text, FOLDER, ROOT)["score"] >= 0
