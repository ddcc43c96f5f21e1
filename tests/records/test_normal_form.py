"""The same work has the same name on every machine, and other work another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.records.normal_form import TREE, normal, tree_of
from tests.conftest import run_git as git

LINES = st.lists(st.binary(max_size=12).map(lambda b: b.translate(None, b"\r\n \t")), max_size=6)


def test_the_hash_is_the_one_that_git_gives(tmp_path: Path) -> None:
    files = {
        "train.py": b"DEPTH = 4\n",
        "a/b.txt": b"x\n",
        "a.b": b"",
        "a/c/d ü.py": b"y\n",
        "ab": b"\xff\xfe\n",
    }
    git(tmp_path, "init", "-q")
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    git(tmp_path, "add", "-A")
    assert tree_of(files) == f"n1:{git(tmp_path, 'write-tree')}"
    assert TREE.fullmatch(tree_of(files))


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.sampled_from([b"", b" ", b"\t \t"]))
def test_line_ends_and_blanks_at_ends_tell_nothing(
    lines: list[bytes], end: bytes, blanks: bytes
) -> None:
    plain = b"".join(line + b"\n" for line in lines)
    other = end.join(line + blanks for line in lines)
    assert normal(other) == normal(plain)
    assert normal(plain + b"\n\n") == normal(plain)
    assert tree_of({"f": other}) == tree_of({"f": plain})


@given(st.binary(max_size=60))
def test_a_normal_form_is_its_own(content: bytes) -> None:
    assert normal(normal(content)) == normal(content)


@pytest.mark.parametrize(
    "other", [b"DEPTH = 5\n", b" DEPTH = 4\n", b"DEPTH  = 4\n", b"\nDEPTH = 4\n", b""]
)
def test_what_means_something_else_has_another_name(other: bytes) -> None:
    assert tree_of({"train.py": other}) != tree_of({"train.py": b"DEPTH = 4\n"})


def test_a_file_elsewhere_is_other_work() -> None:
    assert tree_of({"a/f": b"x"}) != tree_of({"f": b"x"}) != tree_of({"g": b"x"})
