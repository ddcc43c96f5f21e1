"""The number that everything rests on, and models that would cheat it."""

from __future__ import annotations

import itertools
import math
import secrets
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prepare as evaluator


class Uniform(nn.Module):
    """The same logit for every token, and a record of what it was shown."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.bias.expand(*x.shape, -1)


class Ahead(Uniform):
    """Knows the next token wherever the row goes on, and is honest where it ends."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).clone()
        logits[:, :-1].scatter_(2, x[:, 1:, None], 5.0)
        return logits


class Whispering(Uniform):
    """Leaks a hint of the token after the next one."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).clone()
        if x.shape[1] > 2:
            logits[:, :-2].scatter_(2, x[:, 2:, None], 0.01)
        return logits


class AheadWhenWhole(Ahead):
    """Is honest of prefixes, which it knows by their width."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] == 32 else Uniform.forward(self, x)


class NextRow(Uniform):
    """Finds its last target at the begin of another row of its batch, and is honest of prefixes."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).clone()
        if x.shape[1] == 32:
            logits[:, -1].scatter_(1, x[:, :1].roll(-1, 0), 5.0)
        return logits


class Neighbours(Uniform):
    """Looks at the other rows of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.float().mean() / 100


class Dice(Uniform):
    """Draws random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + torch.randn_like(logits)


class Remembering(Uniform):
    """Is worse at every row that it is asked for than at the one before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * torch.arange(len(self.bias)) * len(self.shown)


@pytest.fixture
def windows(prepare: ModuleType) -> Any:
    return prepare.validation_windows(prepare.load_prepared())


def asked_again(prepare: ModuleType, model: nn.Module, again: nn.Module | None = None) -> float:
    """The evaluation of `model`, and the questions about it to a fresh one."""
    prepared, profile = prepare.load_prepared(), prepare.load_prepared().profile
    windows = prepare.validation_windows(prepared)
    exam = prepare.Exam(windows, profile, profile.eval_batch_size, secrets.token_hex())
    exam.answer(prepare.answers_of(model, profile.vocab_size))
    difference: float = exam.ask_again(prepare.answers_of(again or model, profile.vocab_size))
    return difference


def test_every_token_but_bos_is_a_target_exactly_once(prepare: ModuleType, windows: Any) -> None:
    tokenizer, prepared = prepare.Tokenizer.load(), prepare.load_prepared()
    texts = list(prepare._read_parquet(prepared.val_file))
    rows = range(len(windows.sizes))
    targets = [int(token) for row in rows for token in windows.targets(row)]
    assert targets == [int(t) for text in texts for t in tokenizer.encode(text)]
    assert tokenizer.decode(targets) == "".join(texts)
    firsts = [int(windows.inputs([row], 1)[0, 0]) for row in rows]
    assert firsts.count(tokenizer.bos) == len(texts)
    assert max(windows.sizes) == prepared.profile.seq_len


BOS, LENGTH = 9, 8
texts = st.lists(st.lists(st.integers(0, BOS - 1), min_size=1, max_size=40), min_size=1, max_size=9)


def exam_of(documents: list[list[int]], rows: int, seed: str) -> evaluator.Exam:
    tokens = np.array([t for text in documents for t in (BOS, *text)], dtype=np.int32)
    profile = evaluator.derive_profile(
        evaluator.PROFILES["test"], seq_len=LENGTH, vocab_size=BOS + 1
    )
    return evaluator.Exam(evaluator.windows_of(tokens, BOS, LENGTH), profile, rows, seed)


def any_logits(x: Any) -> Any:
    """Logits that depend on a token and its place, and on nothing else."""
    at = np.arange(x.shape[1])[None, :, None]
    return np.sin(x[..., None] * 7.0 + at + np.arange(BOS + 1) * 3).astype(np.float32)


@given(texts, st.integers(1, 6), st.text(max_size=3))
def test_every_row_is_asked_once_beside_rows_of_other_documents(
    documents: list[list[int]], rows: int, seed: str
) -> None:
    exam = exam_of(documents, rows, seed)
    windows = exam.windows
    targets = [int(t) for row in range(len(windows.sizes)) for t in windows.targets(row)]
    assert targets == list(itertools.chain(*documents))
    asked = sorted(row for _, batch in exam.batches for row in batch)
    assert asked == list(range(len(windows.sizes)))
    for width, batch in exam.batches:
        assert len(batch) <= rows
        assert len({int(windows.documents[row]) for row in batch}) == len(batch)
        assert all(0 <= width - windows.sizes[row] < LENGTH // 4 for row in batch)


@given(texts, st.integers(1, 6))
def test_the_order_of_the_rows_changes_no_digit_of_the_score(
    documents: list[list[int]], rows: int
) -> None:
    values = {exam_of(documents, rows, seed).answer(any_logits) for seed in "abc"}
    assert len(values) == 1


@given(texts, st.integers(1, 6), st.text(max_size=3))
def test_rows_are_asked_again_in_batches_like_those_of_the_evaluation(
    documents: list[list[int]], rows: int, seed: str
) -> None:
    exam = exam_of(documents, rows, seed)
    sizes = {(width, len(batch)) for width, batch in exam.batches}
    again = [row for probe in exam.probes for row in probe.rows]
    assert len(again) == len(set(again)) >= min(2, len(exam.windows.sizes))
    for probe in exam.probes:
        assert probe.whole.shape[::-1] in sizes
        for i, (row, cut) in enumerate(zip(probe.rows, probe.cuts, strict=False)):
            inputs = exam.windows.inputs([row], probe.whole.shape[1])[0]
            assert (probe.whole[i] == inputs).all()
            assert (probe.swapped[i, :cut] == inputs[:cut]).all()
    exam.answer(any_logits)
    assert exam.ask_again(any_logits) == 0


def test_the_denominator_is_the_bytes_of_the_documents(prepare: ModuleType) -> None:
    prepared = prepare.load_prepared()
    result = prepare.evaluate(Uniform(prepared.profile.vocab_size))
    stored = prepared.manifest["validation"]
    texts = list(prepare._read_parquet(prepared.val_file))
    assert result.bytes == stored["bytes"] == sum(len(text.encode()) for text in texts)
    assert result.tokens == stored["tokens"] and result.documents == len(texts)
    expected = result.tokens * math.log2(prepared.profile.vocab_size) / result.bytes
    assert result.val_bpb == pytest.approx(expected, rel=1e-6)


def test_the_value_is_the_mean_cross_entropy_of_each_document_by_itself(
    prepare: ModuleType, train: ModuleType
) -> None:
    model, tokenizer, prepared = small(train), prepare.Tokenizer.load(), prepare.load_prepared()
    nats, length = 0.0, prepared.profile.seq_len
    with torch.no_grad():
        for text in prepare._read_parquet(prepared.val_file):
            stream = torch.tensor([tokenizer.bos, *tokenizer.encode(text).tolist()])
            for start in range(0, len(stream) - 1, length):
                x = stream[start : start + length + 1]
                losses = nn.functional.cross_entropy(
                    model(x[None, :-1])[0], x[1:], reduction="none"
                )
                nats += float(losses.double().sum())
    expected = nats / math.log(2) / prepared.manifest["validation"]["bytes"]
    assert prepare.evaluate_bpb(model) == pytest.approx(expected, rel=1e-6)


def test_batch_size_and_padding_change_nothing(prepare: ModuleType, train: ModuleType) -> None:
    model = small(train)
    scores = [prepare.evaluate_bpb(model, rows) for rows in (1, 7, 64)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-6)


def test_a_gpu_computes_the_same(prepare: ModuleType) -> None:
    """By torch, in place of a GPU on the CPU."""
    logits = np.random.default_rng(0).normal(0, 3, (70, 50)).astype(np.float32)
    targets = np.arange(70, dtype=np.int32) % 50
    by_torch = prepare.token_nats(torch.from_numpy(logits), targets)
    assert by_torch == pytest.approx(prepare.token_nats(logits, targets), rel=1e-5)


def test_a_row_never_holds_two_documents(prepare: ModuleType) -> None:
    tokenizer = prepare.Tokenizer.load()
    model = Uniform(tokenizer.vocab_size)
    prepare.evaluate(model)
    for x in model.shown:
        assert not (x[:, 1:] == tokenizer.bos).any()


def test_a_model_in_training_mode_is_scored_in_eval_mode(prepare: ModuleType) -> None:
    class Dropping(Uniform):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return super().forward(x)

    model = Dropping(prepare.VOCAB_SIZE).train()
    prepare.evaluate_bpb(model)
    assert model.training


def test_logits_of_any_size_are_normalised_here(prepare: ModuleType) -> None:
    class Loud(Uniform):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1000.0

    honest = prepare.evaluate_bpb(Uniform(prepare.VOCAB_SIZE))
    assert prepare.evaluate_bpb(Loud(prepare.VOCAB_SIZE)) == pytest.approx(honest, rel=1e-4)


def small(train: ModuleType, **changes: Any) -> nn.Module:
    """The model of train.py with random weights everywhere, so that nothing is zero by chance."""
    model: nn.Module = train.build_model(train.constants() | changes)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("pattern", ["L", "S", "SL"])
def test_our_own_model_does_not_look_ahead(
    prepare: ModuleType, train: ModuleType, pattern: str
) -> None:
    assert asked_again(prepare, small(train, window_pattern=pattern, depth=3)) < 1e-3


@pytest.mark.parametrize(
    "model_class", [Ahead, Whispering, AheadWhenWhole, NextRow, Neighbours, Dice]
)
def test_a_model_that_looks_ahead_is_caught(
    prepare: ModuleType, model_class: type[Uniform]
) -> None:
    for _ in range(3):  # the rows are drawn in secret: it must not need luck
        with pytest.raises(prepare.EvaluationError) as info:
            asked_again(prepare, model_class(prepare.VOCAB_SIZE))
        assert info.value.kind == "peeking"


def test_bidirectional_attention_is_caught(
    prepare: ModuleType, train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(train, "attend", lambda q, k, v, *_: everything(q, k, v))
    with pytest.raises(prepare.EvaluationError, match="only later tokens change") as info:
        asked_again(prepare, small(train))
    assert info.value.kind == "peeking"


def test_a_model_that_remembers_what_it_was_asked_is_caught_by_a_fresh_one(
    prepare: ModuleType,
) -> None:
    with pytest.raises(prepare.EvaluationError) as info:
        asked_again(prepare, Remembering(prepare.VOCAB_SIZE), Remembering(prepare.VOCAB_SIZE))
    assert info.value.kind == "peeking"


def test_no_full_row_is_shown_before_the_last_questions(prepare: ModuleType, windows: Any) -> None:
    again = Uniform(prepare.VOCAB_SIZE)
    asked_again(prepare, Uniform(prepare.VOCAB_SIZE), again)
    widths = sorted({x.shape[1] for x in again.shown})
    rows = range(len(windows.sizes))
    real = {tuple(windows.inputs([n], width)[0].tolist()) for n in rows for width in widths
            if windows.sizes[n] in (width, prepare.MAX_SEQ_LEN)}  # fmt: skip
    full = [
        x.shape[1] == prepare.MAX_SEQ_LEN and any(tuple(row.tolist()) in real for row in x)
        for x in again.shown
    ]
    last = full.index(True)
    assert sum(full[last:]) >= len(full[last:]) / 2 and last > len(full) / 2
    spliced = [x for x in again.shown[:last] if x.shape[1] == prepare.MAX_SEQ_LEN]
    prefixes = {row[:1] for row in real}  # a row begins as a real one, and goes on otherwise
    assert spliced and all(tuple(row[:1].tolist()) in prefixes for x in spliced for row in x)
