"""What people write into a task file by mistake, and that they are told so, by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.task import Task, matches, pattern_problem
from autohypothesis.engine.task_file import (
    MAX_BYTES,
    TaskFileError,
    default_task,
    load_task,
    read_task,
)
from autohypothesis.engine.task_spelling import RENAMED, respelled
from autohypothesis.errors import TaskError
from autohypothesis.records.git import Repository

ROOT = Path(__file__).parents[2]
FILES = ("train.py", "prepare.py", "README.md", "prompts/a.md", "prompts/b.md", "lib/x/deep.py")
GOOD = "id: one\nartifacts: [train.py]\n"

Load = Callable[..., Task]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str, path: str = "task.yaml", files: Sequence[str] = FILES) -> Task:
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        return load_task(place, [*files, path], root=tmp_path)

    return loaded


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("objectiv: {}", 3, "objectiv: unknown key (did you mean 'objective'?)"),
        ("objective: {metrc: a}", 3, "objective.metrc: unknown key (did you mean 'metric'?)"),
        ("objective:\n  direction: min", 4, "'min' is not one of minimize, maximize"),
        ("objective:\n  min_delta: .nan", 4, "finite number"),
        ("protected: [prepare.pi]", 3, "matches no file (did you mean 'prepare.py'?)"),
        ("protected:\n  - README.md\n  - train.py", 2, "matches 'train.py', which is protected"),
        ("protected: [/etc/passwd]", 3, "is absolute"),
        ("run: {cwd: ..}", 3, "leaves its folder"),
        ("run: {cwd: promts}", 3, "is no folder (did you mean 'prompts'?)"),
        ("run:\n  budget:\n    clock: gpu", 5, "'gpu' is not one of wall, cpu"),
        ("run: {env: {A-B: x}}", 3, "run.env.A-B"),
        ("scorer: {type: model}", 3, "needs `evaluator: FILE`"),
        ("scorer: {type: model, evaluator: train.py}", 3, "is an artifact"),
        ("scorer: {type: command}", 3, "needs `command"),
        ("scorer: {command: [a]}", 3, "is for `type: command`"),
        ("scorer: {parse: {format: regex}}", 3, "go together"),
        ("scorer: {parse: {format: regex, pattern: '('}}", 3, "is no expression"),
        ("scorer: {parse: {format: regex, pattern: 'x'}}", 3, "has no group"),
        ("constraints: {peak_vram_mb: {}}", 3, "give `soft`, `hard` or both"),
        ("constraints: {peak_vram_mb: {soft: 3, hard: 2}}", 3, "soft 3 is over hard 2"),
        ("knobs: {X: {low: 2, high: 1}}", 3, "low 2 is not under high 1"),
        ("knobs: {X: {low: 0, high: 1, log: true}}", 3, "needs a low over 0"),
        ("knobs: {X: {type: int, low: 0.5, high: 1}}", 3, "whole numbers"),
        ("knobs: {X: {type: choice}}", 3, "takes `choices"),
        ("mutator: {type: command}", 3, "goes with `type: command`"),
        ("mutator: {type: overrides, command: [a]}", 3, "only there"),
        ("inputs: [{env: '1A', locate: x}]", 3, "inputs.0.env"),
        ("id: two", 3, "is there twice, first on line 1"),
        ("description: &a x\npolicy: *a", 4, "YAML alias"),
        ("3: x", 3, "is not a plain name"),
        ("run: {command: [a", 4, "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(load: Load, text: str, line: int, said: str) -> None:
    with pytest.raises(TaskFileError) as caught:
        load(GOOD + text + "\n")
    assert any(f"task.yaml:{line}: " in one and said in one for one in caught.value.lines), (
        caught.value.lines
    )


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(load: Load) -> None:
    with pytest.raises(TaskFileError) as caught:
        load(
            "id: Not An Id\n"
            "artifacts:\n  - trian.py\n  - /abs\n  - prepare.py\n"
            "protected: [prepare.py]\n"
            "objective: {direction: up}\n"
            "polcy: {}\n"
        )
    lines = caught.value.lines
    assert [int(line.split("task.yaml:")[1].split(":")[0]) for line in lines] == [1, 3, 4, 5, 7, 8]
    assert "did you mean 'train.py'?" in lines[1]
    assert "orchestrator.py schema" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not YAML"),
        (b"", "is not a mapping"),
        (b"- a\n", "is not a mapping"),
        (b"a: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        (b"[" * 50_000, "nested too deep"),
        (b"a: " + b"[" * 5_000 + b"]" * 5_000, "nested too deep"),
        (b"# " + b"x" * MAX_BYTES, "is larger than"),
    ],
)
def test_what_is_no_task_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(TaskFileError, match=said):
        load_task(path, FILES, root=tmp_path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"absent\.yaml:1: No such file"):
        load_task(tmp_path / "absent.yaml", FILES, root=tmp_path)


def test_numbers_that_yaml_reads_as_text_are_numbers(load: Load) -> None:
    task = load(
        GOOD
        + "objective: {min_delta: 2e-2}\n"
        + "knobs: {A: {low: 1e-3, high: 1E+1, log: true}, B: {type: choice, choices: [3e-4, 1.]}}\n"
        + "run: {env: {OMP_NUM_THREADS: 1}, command: python train.py --lr '3e-4 x'}\n"
    )
    assert task.objective.min_delta == 0.02
    assert (task.knobs["A"].low, task.knobs["B"].choices) == (0.001, (3e-4, 1.0))
    assert task.run.env == {"OMP_NUM_THREADS": "1"}
    assert task.run.command == ("python", "train.py", "--lr", "3e-4 x")


def test_patterns_are_relative_to_the_task_unless_it_says_otherwise(load: Load) -> None:
    files = ("tasks/skill/SKILL.md", "tasks/skill/check.py", "SKILL.md", "check.py")
    inner = load("id: a\nartifacts: [SKILL.md]\n", "tasks/skill/task.yaml", files)
    assert inner.artifacts_in(files) == ["tasks/skill/SKILL.md"]
    top = load("id: a\nroot: repository\nartifacts: [SKILL.md]\n", "tasks/skill/task.yaml", files)
    assert top.artifacts_in(files) == ["SKILL.md"]
    assert (top.root, top.source) == ("repository", "tasks/skill/task.yaml")


def test_the_task_file_is_never_an_artifact(load: Load) -> None:
    with pytest.raises(TaskFileError, match="matches the task file itself"):
        load("id: a\nartifacts: [task.yaml]\n")
    task = load("id: a\nartifacts: ['*']\n")
    assert not task.is_artifact("task.yaml")
    assert task.is_artifact("train.py")


def test_protected_is_every_other_file_unless_listed(load: Load) -> None:
    task = load(GOOD)
    assert [path for path in FILES if task.is_protected(path)] == list(FILES[1:])
    assert not task.is_protected("task.yaml")
    listed = load(GOOD + "protected: [prepare.py]\n")
    assert [path for path in FILES if listed.is_protected(path)] == ["prepare.py"]


def test_the_shipped_task_is_right_and_names_constants_of_train_py() -> None:
    from autohypothesis.engine.constants import settable_names

    files = ["train.py", "prepare.py", "tasks/pretrain/task.yaml", "README.md"]
    task = load_task(ROOT / "tasks/pretrain/task.yaml", files, root=ROOT)
    assert task.artifacts == ("train.py",)
    assert task.protected == ("prepare.py",)
    assert task.objective.min_delta > 0
    assert task.budget.runs is None, "a search ends when somebody says so"
    assert set(task.knobs) <= set(settable_names((ROOT / "train.py").read_bytes()))


# ── the task of a repository ────────────────────────────────────────────────────────────────


def test_a_repository_without_a_file_has_the_foreign_task(make: Callable[..., Repository]) -> None:
    task = default_task(make({"train.py": "A = 1\n", "prepare.py": "", "data/x.txt": ""}))
    assert task.artifacts == ("train.py",)
    assert task.run.deadline_seconds == 600
    assert task.scorer.type == "log"
    assert not task.inputs
    assert task.is_protected("data/x.txt")


def test_a_task_file_of_ones_own_comes_first(make: Callable[..., Repository]) -> None:
    shipped = "id: shipped\nroot: repository\nartifacts: [train.py]\n"
    ours = '"--locate" "--preflight" "--score"'
    files = {"train.py": "", "prepare.py": ours, "tasks/pretrain/task.yaml": shipped}
    assert default_task(make(files, "shipped")).id == "shipped"
    assert default_task(make({**files, "task.yaml": GOOD}, "own")).id == "one"
    del files["prepare.py"]
    assert default_task(make(files, "no evaluator")).id == "train"


def test_somebody_elses_files_of_the_same_names_are_not_taken_for_ours(
    make: Callable[..., Repository],
) -> None:
    files = {"train.py": "A = 1\n", "prepare.py": "CACHE = 1\n"}
    task = default_task(make({**files, "tasks/pretrain/task.yaml": "steps: [a, b]\n"}))
    assert task.artifacts == ("train.py",) and task.scorer.type == "log"


def test_a_repository_with_nothing_to_train_says_what_to_write(
    make: Callable[..., Repository],
) -> None:
    with pytest.raises(TaskError, match=r"neither a task\.yaml nor a train\.py.*init"):
        default_task(make({"main.py": ""}))


# ── patterns: too much lets a change out; too little, and nothing can change ─────────────────


@pytest.mark.parametrize(
    ("pattern", "named", "others"),
    [
        ("train.py", ["train.py"], ["src/train.py", "trainXpy"]),
        ("./train.py", ["train.py"], []),
        ("*.py", ["train.py"], ["src/train.py"]),
        ("*", ["src/train.py"], []),  # the folder `src`, and so what is in it
        ("src/*.py", ["src/a.py"], ["src/a/b.py"]),
        ("**/*.py", ["train.py", "a/b/c.py"], []),
        ("**", ["a/b/c"], []),
        ("a/**/z", ["a/z", "a/b/c/z"], []),
        ("prompts", ["prompts/a/b.md"], []),
        ("prompts/", ["prompts/a.md"], ["prompts2/a.md"]),
        (".", ["anything/at/all"], []),
        ("a?c", ["abc"], ["a/c"]),
        ("[!ab].md", ["c.md"], ["a.md"]),
        ("a+b(1).md", ["a+b(1).md"], []),
        ("a[", ["a["], []),
        ("prömpt.md", ["prömpt.md"], []),
        ("!a", [], ["a", "b"]),
    ],
)
def test_a_pattern_names_what_people_think(
    pattern: str, named: list[str], others: list[str]
) -> None:
    assert [path for path in (*named, *others) if matches(path, [pattern])] == named


def test_what_follows_an_exclamation_mark_is_left_out_wherever_it_stands() -> None:
    for patterns in (["!a/x", "a", "b"], ["a", "b", "!a/x"]):
        paths = ["a/x", "a/x/y", "a/z", "b", "c"]
        assert [path for path in paths if matches(path, patterns)] == ["a/z", "b"]


def test_a_pattern_stays_inside() -> None:
    outside = ["", " a", "!!a", "!", "!/a", "/a", "~/a", "a\\b", "../a", "a/../b", "a\nb", "c:/x"]
    inside = ["a..b", "...", ".hidden", "a b/ü.md", "a/b"]
    assert [one for one in (*outside, *inside) if pattern_problem(one)] == outside


# ── the published spelling ──────────────────────────────────────────────────────────────────

PUBLISHED = """id: one
artifacts:
  include: ["prompts/*.md"]
  exclude: [prompts/b.md, "*.bak"]
mutator: {type: command, command: python m.py, cwd: lib, timeout: 30}
runner:
  command: python -m run
  cwd: lib/x
  timeout: 60
scorer: {type: command, command: [python, s.py], timeout: 20}
constraints: []
logging: {path: work/results.jsonl}
"""


def test_a_published_task_file_means_the_same_as_ours(load: Load) -> None:
    ours = load(
        "id: one\nartifacts: ['prompts/*.md', '!prompts/b.md', '!*.bak']\n"
        "mutator: {type: command, command: [python, m.py], cwd: lib, timeout_seconds: 30}\n"
        "run: {command: [python, -m, run], cwd: lib/x, deadline_seconds: 60}\n"
        "scorer: {type: command, command: [python, s.py], cwd: ., timeout_seconds: 20}\n"
    )
    published = load(PUBLISHED)
    assert published == ours
    assert published.artifacts_in(FILES) == ["prompts/a.md"]
    assert published.is_protected("prompts/b.md")


def test_a_limit_of_a_run_has_its_published_name_in_our_section_too(load: Load) -> None:
    ours = load(f"{GOOD}run: {{command: a, deadline_seconds: 60}}\n")
    assert load(f"{GOOD}run: {{command: a, timeout: 60}}\n") == ours


def test_a_key_of_another_section_is_not_suggested(load: Load) -> None:
    with pytest.raises(TaskFileError) as caught:
        load(f"{GOOD}policy: {{evaluater: x}}\nscorer: {{timeout_second: 1}}\n")
    assert [one.partition("unknown key")[2] for one in caught.value.lines] == [
        "", " (did you mean 'timeout_seconds'?)",
    ]  # fmt: skip


def test_a_published_key_without_effect_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(PUBLISHED.replace("[]", "[keep it short]"), encoding="utf-8")
    _, notes = read_task(path, [*FILES, "task.yaml"], root=tmp_path)
    assert [note.split(":")[0] for note in notes] == [
        "constraint 'keep it short' has no effect", "logging has no effect", "artifacts",
    ]  # fmt: skip
    assert "'*.bak', which is left out, matches no file" in notes[-1]


def test_a_key_without_a_value_is_one_that_is_not_there(load: Load) -> None:
    assert load(f"{GOOD}constraints:\nrunner:\nlogging:\n") == load(GOOD)


def test_a_pattern_that_matches_at_the_top_only_says_how_to_begin_there(load: Load) -> None:
    with pytest.raises(TaskFileError, match=r"below tasks/a/, .* `root: repository`"):
        load("id: a\nartifacts: [prompts/a.md]\n", "tasks/a/task.yaml")


def test_published_patterns_are_read_from_the_top_when_the_task_folder_has_none(load: Load) -> None:
    task = load("id: a\nartifacts: {include: ['prompts/*']}\n", "tasks/a/task.yaml")
    assert task.artifacts_in(FILES) == ["prompts/a.md", "prompts/b.md"]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("run: {command: a}\nrunner: {command: b}", 4, "another name of `run.command`"),
        ("runner: {timeout: 1, timeout_seconds: 2}", 3, "another name of `run.deadline_seconds`"),
        ("run: {timeout: 1, deadline_seconds: 2}", 3, "another name of `run.deadline_seconds`"),
        ("run: {timeout: 1}\nrunner: {timeout: 2}", 4, "another name of `run.deadline_seconds`"),
        ("mutator:\n  timeout: 3\n  timeout_seconds: 2", 4, "of `mutator.timeout_seconds`"),
        ("runner:\n  timeout: -1", 4, "runner.timeout: input should be greater than 0"),
        ("runner: {timeout: 10m}", 3, "runner.timeout: should be a number, not '10m'"),
        ("policy: keep", 3, "policy: should be a mapping of keys to values, not 'keep'"),
        ("protected: a.md", 3, "protected: should be a list, not 'a.md'"),
        ("runner:\n  cwd: promts", 4, "runner.cwd: 'promts' is no folder"),
        ("runner: {comand: a}", 3, "runner.comand: unknown key (did you mean 'command'?)"),
        ("constraints: [{max: 3}]", 3, "is not {metric: NAME, hard: LIMIT}"),
        ("constraints:\n  - {metric: a, hard: x}", 4, "constraints.0.hard"),
    ],
)
def test_a_mistake_in_a_published_key_is_named_as_it_was_written(
    load: Load, text: str, line: int, said: str
) -> None:
    with pytest.raises(TaskFileError) as caught:
        load(GOOD + text + "\n")
    assert any(f"task.yaml:{line}: " in one and said in one for one in caught.value.lines), (
        caught.value.lines
    )


@pytest.mark.parametrize(
    ("artifacts", "said"),
    [
        ("{exclude: [train.py]}", "artifacts.include: is missing"),
        ("{include: [train.py], exclud: []}", "artifacts.exclud: unknown key"),
        ("{include: [trian.py]}", "artifacts.include.0: 'trian.py' matches no file"),
        ("{include: [train.py], exclude: [/etc]}", "artifacts.exclude.0: '!/etc' is absolute"),
        ("{include: [train.py], exclude: ['**']}", "no file is left after !**"),
    ],
)
def test_wrong_artifacts_of_the_published_form_are_named(
    load: Load, artifacts: str, said: str
) -> None:
    with pytest.raises(TaskFileError, match=re.escape(said)):
        load(f"id: one\nartifacts: {artifacts}\n")


@given(
    runner=st.dictionaries(
        st.sampled_from(["command", "cwd", "timeout", "timeout_seconds", "env", "odd"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=3))),
    ),
    artifacts=st.one_of(
        st.lists(st.text(max_size=5)),
        st.dictionaries(st.sampled_from(["include", "exclude"]), st.lists(st.text(max_size=5))),
    ),
    constraints=st.lists(st.one_of(st.text(max_size=3), st.dictionaries(st.text(), st.integers()))),
)
def test_every_key_of_a_published_file_arrives_is_noted_or_is_refused(
    runner: dict[str, Any], artifacts: Any, constraints: list[Any]
) -> None:
    ours = respelled(
        {"id": "a", "runner": runner, "artifacts": artifacts, "constraints": constraints}
    )
    assert "runner" not in ours.data
    refused = {problem.location for problem in ours.problems}
    for key, value in runner.items():
        name = RENAMED["runner"].get(key, key)
        assert ours.data["run"][name] == value or ("runner", key) in refused
    written = len(artifacts) if isinstance(artifacts, list) else sum(map(len, artifacts.values()))
    assert len(ours.data["artifacts"]) == written or ("artifacts", "include") in refused
    told = len(ours.notes) + len([one for one in refused if one[0] == "constraints"])
    assert len(ours.data["constraints"]) + told == len(constraints)
