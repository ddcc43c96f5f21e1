"""Tokens, their bytes, and the rows that a training is fed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FOREIGN = "漢字と🙂🏽‍🚀 žluťoučký кот\u200d नमस्ते"


def batches(prepare: ModuleType, count: int, rows: int = 8) -> list[Any]:
    loader = prepare.make_dataloader(prepare.Tokenizer.load(), rows, 32)
    return list(itertools.islice(loader, count))


def test_tokens_that_are_no_valid_utf8_count_their_own_bytes(prepare: ModuleType) -> None:
    tokenizer = prepare.Tokenizer.load()
    tokens = tokenizer.encode(FOREIGN)
    assert sum(tokenizer.token_bytes[t] for t in tokens) == len(FOREIGN.encode())
    # Taken through a string, each such token is a replacement character of three bytes.
    through_text = sum(len(tokenizer.decode([t]).encode()) for t in tokens)
    assert through_text > 1.5 * len(FOREIGN.encode())


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_survives_and_keeps_its_bytes(prepare: ModuleType, text: str) -> None:
    tokenizer = prepare.Tokenizer.load()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert sum(tokenizer.token_bytes[t] for t in tokens) == len(text.encode())
    assert tokenizer.bos not in tokens


def test_text_that_spells_bos_is_plain_text(prepare: ModuleType) -> None:
    tokenizer = prepare.Tokenizer.load()
    assert tokenizer.bos not in tokenizer.encode("<|bos|>")
    assert tokenizer.token_bytes[tokenizer.bos] == 0


def test_the_same_text_learns_the_same_tokens(prepare: ModuleType) -> None:
    texts = list(prepare._read_parquet(prepare.load_prepared().val_file))
    first = prepare.Tokenizer.train(texts, 400)
    assert first.tokens == prepare.Tokenizer.train(texts, 400).tokens
    assert first.vocab_size == 400


def test_rows_are_full_start_with_bos_and_are_shifted_by_one(prepare: ModuleType) -> None:
    tokenizer = prepare.Tokenizer.load()
    for x, y, epoch in batches(prepare, 50):
        assert x.shape == y.shape == (8, 32) and epoch == 1
        assert (x[:, 0] == tokenizer.bos).all()
        assert (x[:, 1:] == y[:, :-1]).all()
        assert int(y.max()) < tokenizer.vocab_size


def test_the_data_order_is_fixed_whatever_the_seed(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    runs = []
    for seed in (1, 2):
        monkeypatch.setenv("SEED", str(seed))
        torch.manual_seed(seed)
        np.random.seed(seed)
        runs.append(torch.stack([x for x, _, _ in batches(prepare, 20)]))
    assert (runs[0] == runs[1]).all()


def test_the_data_order_does_not_depend_on_the_batch(prepare: ModuleType) -> None:
    import torch

    narrow = torch.cat([x for x, _, _ in batches(prepare, 20, rows=4)])
    wide = torch.cat([x for x, _, _ in batches(prepare, 5, rows=16)])
    assert (narrow == wide).all()


def test_no_text_is_dropped_or_trained_twice(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    tokenizer = prepare.Tokenizer.load()
    documents = [np.arange(n) % 500 for n in (1, 5, 31, 32, 33, 64, 100, 257)] * 5
    endless = ((tokens, epoch) for epoch in itertools.count(1) for tokens in documents)
    rows = prepare._packed_rows(tokenizer, endless, 32, 2**10)
    total = sum(map(len, documents))
    # Everything of two epochs appears before the buffer can hold back what came first.
    seen: Counter[int] = Counter()
    for _ in range(3 * total // 32 + 2**10):
        seen.update(next(rows)[0].tolist())
    share = [seen[t] / seen[0] for t in (10, 50, 200)]
    truth = Counter(int(t) for tokens in documents for t in tokens)
    assert share == pytest.approx([truth[t] / truth[0] for t in (10, 50, 200)], rel=0.1)
    assert torch.is_tensor(torch.tensor(share))


def test_rows_of_one_batch_come_from_many_documents(prepare: ModuleType) -> None:
    starts = Counter(tuple(row[1:6].tolist()) for x, _, _ in batches(prepare, 20) for row in x)
    assert len(starts) > 100


def test_a_token_drawn_before_the_clock_is_recorded(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOHYPOTHESIS_RUN_DIR", str(tmp_path))
    loader = prepare.make_dataloader(prepare.Tokenizer.load(), 2, 32)
    assert not (tmp_path / "clock.jsonl").exists()  # making a loader draws nothing
    next(loader)
    clock = prepare.Clock()
    clock.start()
    next(loader)
    next(prepare.make_dataloader(prepare.Tokenizer.load(), 2, 32))
    clock.stop()
    events = [json.loads(line) for line in (tmp_path / "clock.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["early_draw", "start", "stop"]


def test_the_clock_records_its_own_kind(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setenv("AUTOHYPOTHESIS_RUN_DIR", str(tmp_path))
    for kind in ("cpu", "wall"):
        clock = prepare.Clock(5.0, kind)
        assert clock.elapsed == clock.progress == 0
        clock.start()
        time.sleep(0.2)
        elapsed = clock.stop()
        assert elapsed == clock.elapsed
        assert elapsed < 0.1 if kind == "cpu" else elapsed >= 0.2
    start, stop = map(json.loads, (tmp_path / "clock.jsonl").read_text().splitlines()[2:])
    assert start.keys() >= {"event", "clock", "wall", "monotonic", "cpu", "budget_seconds"}
    assert stop["elapsed"] == pytest.approx(stop["monotonic"] - start["monotonic"], abs=0.01)
    assert (start["clock"], start["budget_seconds"]) == ("wall", 5.0)


def test_a_clock_by_hand_writes_nothing(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.Clock().start()
    assert list(tmp_path.iterdir()) == []


def test_the_loaders_thread_hands_its_errors_over(prepare: ModuleType) -> None:
    def failing() -> Any:
        yield 1
        raise ValueError("no more text")

    ahead = prepare._ahead(failing())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no more text"):
        next(ahead)


def test_tokenizing_in_threads_keeps_the_order(prepare: ModuleType) -> None:
    tokenizer = prepare.Tokenizer.load()
    files = prepare.load_prepared().train_files
    streams = (prepare._encoded_text(tokenizer, files, threads) for threads in (1, 3))
    one, many = ([tokens for tokens, _ in itertools.islice(stream, 300)] for stream in streams)
    assert len(one) == len(many) == 300 and sum(map(len, one)) > 1000
    assert all((a == b).all() for a, b in zip(one, many, strict=True))
