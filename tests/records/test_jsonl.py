"""JSON lines: a torn line costs itself, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.errors import RecordError
from autohypothesis.records import jsonl
from tests.conftest import forked


def numbers(path: Path) -> list[int]:
    return [record["n"] for record in jsonl.read(path)[0]]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_cut_anywhere_and_appended_again_only_that_line_is_lost(data: Any, new_lab: Any) -> None:
    path = new_lab().root / "a.jsonl"
    texts = data.draw(st.lists(st.text(max_size=8), min_size=1, max_size=5))
    for n, text in enumerate(texts):
        jsonl.append(path, {"n": n, "text": text})
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    os.truncate(path, cut)
    whole = content[:cut].count(b"\n")
    whole += cut < len(content) and content[cut : cut + 1] == b"\n"  # only its break was lost
    jsonl.append(path, {"n": 99})
    records, problems = jsonl.read(path)
    assert [record["n"] for record in records] == [*range(whole), 99]
    assert len(problems) <= 1
    assert path.read_bytes().endswith(b"\n")


def test_bad_lines_are_named_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\nnot json\n\xff\xfe\n[1]\n\n{"n": 2}\n{"n": 3')
    records, problems = jsonl.read(path)
    assert [record["n"] for record in records] == [1, 2]
    assert [problem.split()[1] for problem in problems] == ["2", "3", "4", "7"]


def test_a_million_bad_lines_are_a_hundred_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x\n" * 20_000)
    _, problems = jsonl.read(path)
    assert len(problems) == jsonl.PROBLEM_LIMIT + 1
    assert "19,900 more" in problems[-1]


def test_news_is_read_once_and_an_unfinished_line_later(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert jsonl.read_new(path, 0).records == []
    jsonl.append(path, {"n": 1})
    news = jsonl.read_new(path, 0)
    assert [record["n"] for record in news.records] == [1]
    with path.open("a") as file:
        file.write('{"n": 2')
    assert jsonl.read_new(path, news.offset).records == []
    with path.open("a") as file:
        file.write("}\n")
    later = jsonl.read_new(path, news.offset)
    assert [record["n"] for record in later.records] == [2]
    path.write_text('{"n": 3}\n')
    fresh = jsonl.read_new(path, later.offset)
    assert fresh.restarted
    assert [record["n"] for record in fresh.records] == [3]


def test_too_long_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="bytes"):
        jsonl.append(tmp_path / "a.jsonl", {"n": "x" * jsonl.LINE_LIMIT})


def test_only_a_regular_file_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(RecordError):
            jsonl.append(tmp_path / name, {"n": 1})
    assert not (tmp_path / "outside").exists()


def append_many(path: Path, who: int) -> None:
    for n in range(200):
        jsonl.append(path, {"n": who * 1000 + n, "text": "x" * (n * 7 % 500)})


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jobs = [forked(append_many, path, who) for who in range(6)]
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 6
    assert sorted(numbers(path)) == [who * 1000 + n for who in range(6) for n in range(200)]


def test_writers_killed_at_once_tear_nothing_but_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jobs = [forked(append_many, path, who) for who in range(4)]
    while not path.exists() or path.stat().st_size < 5_000:
        pass
    for job in jobs:
        job.kill()
        job.join()
    jsonl.append(path, {"n": -1})
    records, problems = jsonl.read(path)
    assert len(problems) <= 4  # a write across two pages can be cut between them
    assert records[-1]["n"] == -1
    for who in range(4):
        mine = [r["n"] for r in records if r["n"] // 1000 == who and r["n"] >= 0]
        assert mine == list(range(who * 1000, who * 1000 + len(mine)))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.jsonl"
    jsonl.append(path, {"n": 1})
    before = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(RecordError, match="full"):
        jsonl.append(path, {"n": 2})
    assert path.read_bytes() == before
