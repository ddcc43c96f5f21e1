"""Mistakes are caught, candidates that hang are ended, and rewrites are what they say they are."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from .conftest import ROOT, Programs

FOLDER = ROOT / "tasks" / "fast-bpe"
SHIPPED = (FOLDER / "bpe.py").read_bytes()
ARTIFACT = "tasks/fast-bpe/bpe.py"

NO_MISTAKE = ("count_pairs: 1 -> 2 (line 63",)
"""A count that grows by two orders the pairs as before, and is under two as often as before."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER, root / "tasks" / "fast-bpe", ignore=ignored)
    return root


LIMIT_S = 0.5
"""Of this process's CPU time, so that a busy machine has no say; the shipped file takes 0.08."""


class Late(BaseException):
    """Nothing in a candidate or in the suite catches it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `Late` in the block after `seconds` of CPU time."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Late

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def failures(bpe: Programs, text: bytes) -> int:
    """Wrong answers of a candidate; one that does not end has one, as with the scorer's limit."""
    try:
        with limit(LIMIT_S):
            found = bpe.module("suite").failures(
                bpe.module("bench").loaded(text), bpe.module("plain")
            )
            return int(found[0])
    except Late:
        return 1


def sped_up(bpe: Programs) -> bytes:
    """The shipped file after every kind of rewrite wherever it stays right, caches aside."""
    rewrites, text = bpe.module("rewrites"), SHIPPED
    for _ in range(3):
        for operator in rewrites.REWRITES:
            if operator.__name__ in ("memoise", "resize_cache"):
                continue
            for _ in range(20):
                places = list(operator(bpe.module("source").Source(text)))
                right = next((one for one in places if not failures(bpe, one.text)), None)
                if right is None or right.text == text:
                    break
                text = right.text
    return text


@pytest.fixture(scope="module")
def fast(bpe: Programs) -> bytes:
    return sped_up(bpe)


def test_the_shipped_file_is_right_and_the_plain_one_stays_what_it_is(bpe: Programs) -> None:
    assert failures(bpe, SHIPPED) == 0
    plain = (FOLDER / "plain.py").read_bytes()
    assert plain.split(b'"""\n', 1)[1] == SHIPPED.split(b'"""\n', 1)[1]


def test_plain_agrees_with_what_can_be_worked_out_by_hand(bpe: Programs) -> None:
    plain = bpe.module("plain")
    assert plain.learn(b"aaab aaab", 2) == [(97, 97), (97, 98)]
    assert plain.learn(b"ab ab", 9) == [(97, 98)]
    assert plain.encode(b"abab c", [(97, 98), (256, 256)]) == [257, 32, 99]
    assert plain.encode(b"aaa", [(97, 97)]) == [256, 97]


def mistakes(bpe: Programs, text: bytes) -> Iterator[tuple[str, bytes]]:
    for operator in bpe.module("mistakes").WRONG:
        yield from operator(bpe.module("source").Source(text))


def test_the_suite_catches_every_mistake_that_the_mutator_makes(bpe: Programs) -> None:
    found = list(mistakes(bpe, SHIPPED))
    assert len(found) > 40
    missed = [said for said, text in found if not failures(bpe, text)]
    assert all(said.startswith(NO_MISTAKE) for said in missed), missed


@pytest.mark.slow
def test_the_suite_catches_mistakes_in_fast_code_too(bpe: Programs, fast: bytes) -> None:
    """But for which half of the pair is looked for first, where either will do."""
    lines = fast.decode().splitlines()
    missed = [said for said, text in mistakes(bpe, fast) if not failures(bpe, text)]
    for said in missed:
        number = int(said.split("(line ")[1].split(",")[0])
        assert re.search(r"pair\[\d\] not in word", lines[number - 1]), said


@pytest.mark.parametrize("which", ["shipped", "fast"])
def test_a_rewrite_is_python_and_keeps_the_names_that_are_asked_for(
    which: str, bpe: Programs, fast: bytes
) -> None:
    text = {"shipped": SHIPPED, "fast": fast}[which]
    source = bpe.module("source").Source(text)
    operators = (*bpe.module("rewrites").REWRITES, *bpe.module("mistakes").SLOWER)
    for operator in operators:
        for said, new in operator(source):
            assert new != text, said
            defined = {one.name for one in ast.parse(new).body if isinstance(one, ast.FunctionDef)}
            assert {"learn", "encode"} <= defined
            # A cache may see a list, and in fast code a name may hide what changes.
            if which == "shipped" and operator.__name__ != "memoise":
                assert failures(bpe, new) == 0, said


def test_every_kind_of_rewrite_has_its_turn(bpe: Programs, fast: bytes) -> None:
    """Some only fit where another one was: they stack up."""
    source, rewrites = bpe.module("source").Source, bpe.module("rewrites")
    texts = [SHIPPED, fast, *(text for _, text in rewrites.memoise(source(SHIPPED)))]
    step = SHIPPED
    for operator in (rewrites.iterate_neighbours, rewrites.count_with_get, rewrites.keep_the_pair):
        step = next(iter(operator(source(step)))).text
        texts.append(step)
    texts += [text for _, text in rewrites.grow_in_place(source(SHIPPED))]
    kinds = (*rewrites.REWRITES, *bpe.module("mistakes").SLOWER, *bpe.module("mistakes").WRONG)
    for operator in kinds:
        assert any(list(operator(source(text))) for text in texts), operator.__name__


def answer(bpe: Programs, checkout: Path, candidate: str) -> dict[str, object]:
    """Return what the scorer prints about a candidate: one line on stdout, and nothing else."""
    (checkout / ARTIFACT).write_text(candidate, encoding="utf-8")
    found = bpe.run("bench.py", cwd=checkout)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 1
    value = json.loads(found.stdout)
    assert set(value) == {"score", "metrics"}
    return dict(value)


HOSTILE = {
    "raises": "raise ValueError('no')",
    "exits": "raise SystemExit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "no python": "def learn(:",
    "empty": "",
    "a null": "x = '\0'",
    "imports the clock": "import time",
    "imports ours": "import plain\nlearn, encode = plain.learn, plain.encode",
    "looks inside": "x = ().__class__.__base__.__subclasses__()",
    "fills memory": "x = [0]\nwhile True:\n    x = x + x",
    "recurses": "def learn(text, merges):\n    return learn(text, merges)\nencode = learn",
    "exits when asked": "def learn(text, merges):\n    raise SystemExit(0)\nencode = learn",
}


@pytest.mark.parametrize("candidate", HOSTILE)
def test_a_candidate_that_breaks_has_the_worst_score(
    candidate: str, bpe: Programs, checkout: Path
) -> None:
    found = answer(bpe, checkout, HOSTILE[candidate])
    assert found == {"score": 1000.0, "metrics": {"failures": 1}} or (
        found["score"] == 1000.0 and found["metrics"]["failures"] > 1  # type: ignore[index]
    )


def test_what_a_candidate_prints_is_not_taken_for_a_score(bpe: Programs, checkout: Path) -> None:
    loud = 'print(\'{"score": 0, "metrics": {"failures": 0}}\')\n' + SHIPPED.decode()
    found = answer(bpe, checkout, loud)
    assert 0.5 < float(str(found["score"])) < 2
    assert found["metrics"]["failures"] == 0  # type: ignore[index]


def test_a_candidate_that_never_ends_is_ended(bpe: Programs, tmp_path: Path) -> None:
    for number, text in enumerate(
        ("while True:\n    pass\n", SHIPPED.decode() + "\nmerge = learn")
    ):
        path = tmp_path / f"{number}.py"
        path.write_text(text, encoding="utf-8")
        found = bpe.module("bench").judged(path, limit_s=1.0)
        assert found["score"] == 1000.0
        assert found["metrics"]["failures"] >= 1


def test_remembering_answers_does_not_help(bpe: Programs) -> None:
    """Each turn loads the module anew: a cache of whole answers is empty every time."""
    bench = bpe.module("bench")
    text = SHIPPED.replace(
        b"\n\ndef learn", b"\n\nimport functools\n\n\n@functools.cache\ndef learn"
    )
    assert bench.loaded(text).learn is not bench.loaded(text).learn
    first, second = bench.loaded(text), bench.loaded(text)
    first.learn(b"ab ab", 3)
    assert second.learn.cache_info().currsize == 0


def test_the_same_seed_makes_the_same_rewrite_and_a_tried_one_is_not_made_again(
    bpe: Programs,
) -> None:
    rewrite = bpe.module("mutate").rewrite
    for seed in range(8):
        first = rewrite(SHIPPED, seed)
        assert first == rewrite(SHIPPED, seed)
        assert rewrite(SHIPPED, seed, {first.said}).said != first.said
    assert rewrite(b"def broken(:", 1) is None


def test_rewrites_leave_comments_and_bytes_around_them_alone(bpe: Programs) -> None:
    text = SHIPPED.replace(b"    i = 0\n", "    i = 0  # größer: später\n".encode())
    for said, new in bpe.module("rewrites").grow_in_place(bpe.module("source").Source(text)):
        ast.parse(new)
        assert "# größer: später".encode() in new, said
