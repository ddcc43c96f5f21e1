"""The number that everything rests on, and models that would cheat it."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


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


class Neighbours(Uniform):
    """Looks at the other rows of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.float().mean() / 100


class Dice(Uniform):
    """Draws random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + torch.randn_like(logits)


@pytest.fixture
def windows(prepare: ModuleType) -> list[Any]:
    found: list[Any] = prepare.validation_windows(prepare.Tokenizer.load(), prepare.load_prepared())
    return found


def test_every_token_but_bos_is_a_target_exactly_once(
    prepare: ModuleType, windows: list[Any]
) -> None:
    tokenizer, prepared = prepare.Tokenizer.load(), prepare.load_prepared()
    texts = list(prepare._read_parquet(prepared.val_file))
    targets = [int(t) for window in windows for t in window[1:]]
    assert targets == [int(t) for text in texts for t in tokenizer.encode(text)]
    assert tokenizer.decode(targets) == "".join(texts)
    assert sum(window[0] == tokenizer.bos for window in windows) == len(texts)
    assert max(map(len, windows)) == prepared.profile.seq_len + 1


def test_the_denominator_is_the_bytes_of_the_documents(prepare: ModuleType) -> None:
    prepared = prepare.load_prepared()
    result = prepare.evaluate(Uniform(prepared.profile.vocab_size))
    stored = prepared.manifest["validation"]
    texts = list(prepare._read_parquet(prepared.val_file))
    assert result.bytes == stored["bytes"] == sum(len(text.encode()) for text in texts)
    assert result.tokens == stored["tokens"] and result.documents == len(texts)
    expected = result.tokens * math.log2(prepared.profile.vocab_size) / result.bytes
    assert result.val_bpb == pytest.approx(expected, rel=1e-6)


def test_batch_size_and_padding_change_nothing(prepare: ModuleType, train: ModuleType) -> None:
    model = small(train)
    scores = [prepare.evaluate_bpb(model, rows) for rows in (1, 7, 64)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-6)


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
    prepare: ModuleType, train: ModuleType, windows: list[Any], pattern: str
) -> None:
    model = small(train, window_pattern=pattern, depth=3)
    assert prepare.peeking_difference(model, windows, prepare.VOCAB_SIZE) < 1e-3


@pytest.mark.parametrize("model_class", [Ahead, Whispering, Neighbours, Dice])
def test_a_model_that_looks_ahead_is_caught(
    prepare: ModuleType, windows: list[Any], model_class: type[Uniform]
) -> None:
    model = model_class(prepare.VOCAB_SIZE)
    for _ in range(5):  # the rows are drawn in secret: it must not need luck
        with pytest.raises(prepare.EvaluationError) as info:
            prepare.peeking_difference(model, windows, prepare.VOCAB_SIZE)
        assert info.value.kind == "peeking"


def test_bidirectional_attention_is_caught(
    prepare: ModuleType, train: ModuleType, windows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(train, "attend", lambda q, k, v, *_: everything(q, k, v))
    with pytest.raises(prepare.EvaluationError, match="only later tokens change") as info:
        prepare.peeking_difference(small(train), windows, prepare.VOCAB_SIZE)
    assert info.value.kind == "peeking"


def test_no_full_row_is_shown_before_the_prefixes(prepare: ModuleType, windows: list[Any]) -> None:
    model = Uniform(prepare.VOCAB_SIZE)
    prepare.peeking_difference(model, windows, prepare.VOCAB_SIZE)
    lengths = [x.shape[1] for x in model.shown]
    first_full = lengths.index(prepare.MAX_SEQ_LEN)
    assert set(lengths[first_full:]) == {prepare.MAX_SEQ_LEN}
    real = {tuple(w[:-1].tolist()) for w in windows}
    full = [tuple(row.tolist()) for x in model.shown[first_full:] for row in x]
    assert sum(row in real for row in full) >= len(full) / 2  # and the others are spliced text


def test_windows_of_one_length_each_still_can_be_checked(prepare: ModuleType) -> None:
    import numpy as np

    tiny = [np.array([511, 5, 7]), np.array([511, 9])]
    assert prepare.peeking_difference(Uniform(prepare.VOCAB_SIZE), tiny, prepare.VOCAB_SIZE) == 0
