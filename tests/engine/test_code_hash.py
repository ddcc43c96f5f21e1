"""A change of settings is told from a change of code, however either was written down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.engine.candidate import prepare
from autohypothesis.engine.code_hash import artifact_hashes, tree_hash
from autohypothesis.engine.constants import blanked, read_constants, set_constants
from autohypothesis.engine.experiment import Change, Experiment, RunSpec
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import Workspace
from autohypothesis.records.git import Repository
from tests.engine.conftest import TRAIN, commit_of

EDITED = TRAIN.replace('print("val', 'width = max\nprint("val')
OTHER_VALUE = TRAIN.replace("DEPTH = 4", "DEPTH = 6")


def candidate(repository: Repository, task: Task, change: Change, number: int = 1) -> RunSpec:
    def implement(instructions: str, checkout: object) -> str:
        (checkout / "train.py").write_text(instructions)  # type: ignore[operator]
        return "done"

    experiment = Experiment(change, experiment_id=f"h-{number}", base=repository.head())
    workspace = Workspace(repository, "w0") if change.kind == "instructions" else None
    return prepare(repository, task, experiment, workspace=workspace, implement=implement)


Written = Callable[[Repository, str], Change]
WAYS: dict[str, Written] = {
    "patch": lambda repository, text: Change(
        patch=repository.diff(repository.head(), _tree(repository, text))
    ),
    "an edited tree": lambda repository, text: Change(tree=_tree(repository, text)),
    "instructions": lambda repository, text: Change(instructions=text),
    "a commit": lambda repository, text: Change(
        commit=commit_of(repository, train_py=text.encode())
    ),
}


def _tree(repository: Repository, text: str) -> str:
    return repository.tree_with(repository.head(), {"train.py": text.encode()})


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_the_code_is_told_from_one_of_a_value_in_whichever_way_it_came(
    repository: Repository, task: Task, way: str
) -> None:
    base = candidate(repository, task, Change())
    setting = candidate(repository, task, Change(overrides={"DEPTH": 6}), 2)
    edited = candidate(repository, task, WAYS[way](repository, EDITED), 3)
    value = candidate(repository, task, WAYS[way](repository, OTHER_VALUE), 4)
    assert edited.config == base.config
    assert setting.code_hash == value.code_hash == base.code_hash != edited.code_hash
    assert setting.tree_hash == value.tree_hash
    assert len({base.tree_hash, setting.tree_hash, edited.tree_hash}) == 3


def test_a_value_that_only_the_run_knows_is_a_setting_and_one_that_follows_another_is_code(
    repository: Repository, task: Task
) -> None:
    def code(text: bytes, **values: object) -> str:
        commit = commit_of(repository, train_py=text)
        return artifact_hashes(repository, task, commit, values).code

    followed = b"DEPTH = profile.depth\nWIDTH = DEPTH * %d\n"
    base = code(followed % 64, depth=8, width=512)
    assert base == code(b"DEPTH = 6\nWIDTH = DEPTH * 64\n", depth=6, width=384)
    assert base != code(followed % 96, depth=8, width=768)
    assert base != code(b"DEPTH = profile.depth\nWIDTH = 512\n", depth=8, width=512)
    assert code(b"LR = sqrt(2)\n") != code(b"LR = sqrt(3)\n"), "no record has their values"
    assert code(b"A = {'x': [1]}\n", a={"x": (1,)}) == code(b"A = {'x': [2]}\n", a={"x": [2]})
    assert code(b"A = (\n  (1) )  # x\n", a=1) == code(b"A = 2  # x\n", a=2)
    assert code(b"A = 1\nA = 2\n", a=1) != code(b"A = 1\nA = 3\n", a=1), "bound twice"


def test_a_constant_of_two_files_and_a_file_that_cannot_be_read_are_code(
    repository: Repository, task: Task
) -> None:
    every = task.model_copy(update={"artifacts": ("*",)})

    def code(train: bytes, helper: bytes) -> str:
        commit = commit_of(repository, train_py=train, helper_py=helper)
        return artifact_hashes(repository, every, commit, {"lr": 1, "depth": 2}).code

    base = code(b"LR = 1\nDEPTH = 2\n", b"LR = 1\n")
    assert base != code(b"LR = 1\nDEPTH = 2\n", b"LR = 2\n")
    assert base != code(b"LR = 1\nDEPTH = 2\n", b"LR = (\n")
    assert code(b"LR = 1\n", b"") != code(b"LR = 1\n", b"# -*- coding: latin-1 -*-\n")
    assert tree_hash(repository, every, repository.head()) != tree_hash(
        repository, task, repository.head()
    )


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(list("ABCDEFG")), unique=True, min_size=1),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r", "; ", "  # é\n"]), min_size=7, max_size=7),
    number=st.integers(100, 10**6),
)
def test_setting_constants_leaves_the_rest_of_the_text_as_it_is(
    names: list[str], ends: list[str], number: int
) -> None:
    source = "".join(f"{name} = {n + 0.5}{end}" for n, (name, end) in enumerate(
        zip("ABCDEFG", ends, strict=True)
    )).rstrip("; ").encode()  # fmt: skip
    changed = set_constants(source, dict.fromkeys(names, number))

    def code(text: bytes, **other: object) -> tuple[bytes, set[str]]:
        known = {name.lower(): value for name, value in read_constants(text).items()}
        return blanked(text, {**known, **other})

    assert code(changed) == code(source)
    assert code(source)[1] == set("ABCDEFG")
    unknown = code(source, a="is not what the record has")
    assert unknown[1] == set("BCDEFG") and b"0.5" in unknown[0]
