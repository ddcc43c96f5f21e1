"""The published names of prepare.py: one tokenizer, one loader, and the published evaluation."""

from __future__ import annotations

import math
from types import ModuleType

import pytest


def test_the_published_evaluation_divides_nats_by_the_bytes_of_its_targets(
    prepare: ModuleType,
) -> None:
    import torch

    class Uniform(torch.nn.Module):
        """Takes every token for as likely as any other; 9 nats for one that stands for no text."""

        def forward(
            self, x: torch.Tensor, y: torch.Tensor, reduction: str = "mean"
        ) -> torch.Tensor:
            assert reduction == "none" and x.shape == y.shape
            seen.append(y)
            return torch.where(y == tokenizer.get_bos_token_id(), 9.0, 2.0)

    seen: list[torch.Tensor] = []
    tokenizer = prepare.Tokenizer.from_directory()
    assert tokenizer.get_vocab_size() == prepare.VOCAB_SIZE
    value = prepare.evaluate_bpb(Uniform(), tokenizer, 4)
    sizes = torch.tensor(tokenizer.token_bytes)[torch.cat(seen)]
    assert value == pytest.approx(2 * int((sizes > 0).sum()) / int(sizes.sum()) / math.log(2))
    assert sizes.numel() > 0.9 * prepare.EVAL_TOKENS


def test_published_loaders_give_full_rows_of_training_or_validation_text(
    prepare: ModuleType,
) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    texts = {}
    for split in ("train", "val"):
        x, y, epoch = next(prepare.make_dataloader(tokenizer, 3, 16, split))
        assert x.shape == y.shape == (3, 16) and epoch == 1 and (x[:, 1:] == y[:, :-1]).all()
        texts[split] = x.tolist()
    assert texts["train"] != texts["val"]
    ours = next(prepare.make_dataloader(tokenizer, 3, 16, "cpu"))[0]
    assert ours.tolist() == texts["train"], "one loader, by both names"


def test_published_calls_by_keyword_and_the_bytes_of_tokens_are_understood(
    prepare: ModuleType,
) -> None:
    tokenizer = prepare.Tokenizer.from_directory()
    bos = tokenizer.get_bos_token_id()
    tokens = tokenizer.encode("some text", prepend=bos)
    assert tokens[0] == bos and tokenizer.decode(tokens[1:]) == "some text"
    sizes = prepare.get_token_bytes(device="cpu")
    assert len(sizes) == tokenizer.get_vocab_size() and sizes[bos] == 0
    assert sizes[tokens].sum() == len("some text")
    named = next(prepare.make_dataloader(tokenizer=tokenizer, B=2, T=8, split="train"))[0]
    assert named.shape == (2, 8)
