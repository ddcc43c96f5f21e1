"""Whole files, and reading without trust."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.errors import RecordError
from autohypothesis.records import files
from tests.conftest import forked


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": math.nan, "b": [math.inf, tmp_path]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, str(tmp_path)]}
    assert os.listdir(path.parent) == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(outside)
    files.write_atomic(link, "ours")
    assert outside.read_text() == "mine"
    assert not link.is_symlink()


def test_a_folder_in_the_way_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RecordError, match="cannot write"):
        files.write_atomic(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def write_on(path: Path) -> None:
    for number in itertools.count():
        files.write_atomic(path, str(number % 10) * 200_000 + "\n", durable=False)


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for attempt in range(10):
        writer = forked(write_on, path)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.01 + attempt * 0.0035)
        writer.kill()
        writer.join()
        text = path.read_text()
        assert len(text) == 200_001
        assert len(set(text)) == 2
    for left in tmp_path.glob(".*.tmp"):
        os.utime(left, (1, 1))
    files.remove_stale_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_sweep_leaves_what_a_living_writer_writes(tmp_path: Path) -> None:
    mine = tmp_path / f".a.{os.getpid()}.0123abcd.tmp"
    mine.write_text("x")
    os.utime(mine, (1, 1))
    assert files.remove_stale_temporaries(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff{}", "is not UTF-8"),
        (b'{"a": 1', "is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b"[" * 66 + b"]" * 66, "nested deeper"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "digits"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(RecordError, match=said) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)
    assert time.process_time() - started < 2


def test_numbers_that_are_none() -> None:
    assert files.parse_json(b"[NaN, Infinity, -Infinity, 1e999, -1e999, 1.5, 1e3]") == [
        None, None, None, None, None, 1.5, 1000.0,
    ]  # fmt: skip
    assert files.parse_json(b"[" + b"9" * 400 + b".0]") == [None]
    assert files.parse_json(b'"\\ud800x"') == "?x"
    assert files.parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_many_long_numbers_take_linear_time() -> None:
    content = b"[" + b",".join([b"1" * 299] * 12_000) + b"]"
    started = time.process_time()
    files.parse_json(content)
    assert time.process_time() - started < 5


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, folder, outside = tmp_path / "pipe", tmp_path / "folder", tmp_path / "outside"
    os.mkfifo(pipe)
    folder.mkdir()
    outside.write_text("{}")
    for name, target in (("zero", "/dev/zero"), ("out", str(outside)), ("gone", "/nowhere")):
        (tmp_path / name).symlink_to(target)
    wrong = {
        pipe: "a named pipe",
        folder: "a folder",
        tmp_path / "zero": "a symbolic link",
        tmp_path / "out": "a symbolic link",
        tmp_path / "gone": "a symbolic link",
        Path("/dev/zero"): "a character device",
        outside / "below": "no folder",
    }
    for path, said in wrong.items():
        with pytest.raises(RecordError, match=said):
            files.read_bytes(path)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "absent")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    started = time.process_time()
    with pytest.raises(RecordError, match="1,073,741,824 bytes"):
        files.read_bytes(path)
    assert time.process_time() - started < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_written_is_read_back(value: object) -> None:
    text = files.to_json(value)
    again = files.parse_json(text.encode("utf-8", "replace"))
    assert files.to_json(again) == text.encode("utf-8", "replace").decode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_reason(content: bytes) -> None:
    try:
        files.parse_json(content)
    except ValueError as error:
        assert str(error).startswith(("is ", "holds "))
