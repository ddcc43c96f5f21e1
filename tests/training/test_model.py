"""The model, its attention on different devices, and its optimizers."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def reference_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    position = torch.arange(q.shape[2])
    distance = position[:, None] - position
    scores = q @ k.mT / math.sqrt(q.shape[3])
    visible = (distance >= 0) & (distance < window)
    return scores.masked_fill(~visible, -math.inf).softmax(-1) @ v


def qkv(length: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("length", [1, 5, 16, 31, 32, 64])
@pytest.mark.parametrize("window", [1, 8, 16, 64])
def test_a_window_means_the_same_in_blocks(train: ModuleType, length: int, window: int) -> None:
    q, k, v = qkv(length)
    ours = train.attend(q, k, v, window, {})
    assert torch.allclose(ours, reference_attention(q, k, v, window), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # uncompiled, as here, it warns that it is slow
def test_a_window_means_the_same_in_flex_attention(train: ModuleType) -> None:
    window = 16
    q, k, v = qkv(128)
    masks = train.flex_masks([window, 128], 128, torch.device("cpu"))
    assert set(masks) == {window}
    ours = train.attend(q, k, v, window, masks)
    assert torch.allclose(ours, reference_attention(q, k, v, window), atol=1e-5)


@pytest.mark.slow
def test_the_training_step_compiles_in_one_graph(train: ModuleType) -> None:
    """As on a GPU, but for the last stage of compilation; flex_attention included."""
    model = train.build_model(config(train, window_pattern="SL", depth=3, head_dim=16))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    x = torch.randint(512, (4, 32))
    compiled = torch.compile(train.loss_of, dynamic=False, backend="aot_eager", fullgraph=True)
    masks = train.flex_masks(model.spans, 32, torch.device("cpu"))
    with torch.no_grad():  # on a CPU flex_attention has no backward pass
        plain = float(train.loss_of(model, x, x, {}))
        assert float(compiled(model, x, x, masks)) == pytest.approx(plain, abs=1e-4)
    loss = compiled(model, x, x, {})
    loss.backward()
    assert float(loss.detach()) == pytest.approx(plain, abs=1e-4)


def config(train: ModuleType, **changes: Any) -> dict[str, Any]:
    own: dict[str, Any] = train.constants()
    return own | changes


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_any_depth_builds_and_the_last_layer_sees_all(train: ModuleType, depth: int) -> None:
    model = train.build_model(config(train, depth=depth, window_pattern="S"))
    assert model.spans == [16] * (depth - 1) + [32]
    assert model.head.in_features % train.HEAD_DIM == 0
    assert str(depth - 1) in model.values
    assert model(torch.zeros(1, 32, dtype=torch.int64)).shape == (1, 32, 512)


def test_the_h100_recipe_has_its_published_size(
    prepare: ModuleType, train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100 = prepare.PROFILES["h100"]
    monkeypatch.setattr(train, "profile", h100)
    with torch.device("meta"):
        model = train.build_model({name: getattr(h100, name) for name in vars(h100)})
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(50.3, abs=0.1)
    assert train.flops_per_token(model) / 1e6 == pytest.approx(239, abs=3)
    assert model.spans == [1024, 1024, 1024, 2048] * 2


def test_a_fresh_model_is_uniform_and_within_the_softcap(train: ModuleType) -> None:
    model = train.build_model(config(train))
    logits = model(torch.arange(32)[None])
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.softmax(-1), torch.tensor(1 / 512), atol=1e-3)
    with torch.no_grad():
        model.head.weight.fill_(1e6)
    assert model(torch.arange(32)[None]).abs().max() <= 15


def test_bfloat16_stays_bfloat16_through_the_blocks(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, on the CPU: one float32 in the stream would undo its speed."""
    monkeypatch.setattr(train, "compute_dtype", lambda device: torch.bfloat16)
    seen: list[tuple[torch.dtype, ...]] = []
    plain = train.attend

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        seen.append((q.dtype, k.dtype, v.dtype))
        return plain(q, k, v, *rest)

    monkeypatch.setattr(train, "attend", spy)
    model = train.build_model(config(train, window_pattern="SL"))
    model.blocks[0].register_forward_hook(lambda _, __, out: seen.append((out.dtype,)))
    x = torch.randint(512, (4, 32))
    train.loss_of(model, x, x, {}).backward()
    assert {dtype for dtypes in seen for dtype in dtypes} == {torch.bfloat16}
    assert model.blocks[0].up.weight.grad.dtype == torch.float32
    assert model(x).dtype == torch.float32


def test_orthogonalised_matrices_have_singular_values_near_one(train: ModuleType) -> None:
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 128, 32), (2, 32, 128)):
        values = torch.linalg.svdvals(train.orthogonalise(torch.randn(shape)))
        assert values.max() < 1.3 and abs(values.mean() - 1) < 0.15
        assert shape[1] == shape[2] or values.min() > 0.7  # a square one has some near zero


def test_adamw_agrees_with_torch(train: ModuleType) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 7))
    theirs = nn.Parameter(ours.detach().clone())
    mine = train.AdamW([ours], 0.01, (0.8, 0.95))
    other = torch.optim.AdamW([theirs], 0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for _ in range(5):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        with torch.no_grad():
            mine.step(0.5)
        other.param_groups[0]["lr"] = 0.005
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_parameter_is_trained(train: ModuleType) -> None:
    model = train.build_model(config(train))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = train.build_optimizers(model)
    x = torch.randint(512, (4, 32))
    for _ in range(3):  # behind a matrix that starts at zero, gradients need a second step
        train.loss_of(model, x, x.roll(1, 1), {}).backward()
        step(1.0, 0.0)
    same = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert same == []
    assert all(p.grad is None for p in model.parameters())


def test_accumulated_gradients_equal_those_of_the_whole_batch(train: ModuleType) -> None:
    model = train.build_model(config(train))
    x, y = torch.randint(512, (8, 32)), torch.randint(512, (8, 32))

    def loss_fn(x: Tensor, y: Tensor) -> Any:
        return train.loss_of(model, x, y, {})

    found = []
    for rows in (8, 2):
        model.zero_grad()
        parts = iter([(x[i : i + rows], y[i : i + rows], 1) for i in range(0, 8, rows)])
        loss, targets, _ = train.train_step(loss_fn, parts, 8 // rows)
        found.append((loss, model.head.weight.grad.clone()))
        assert torch.equal(targets, y)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_out_of_memory_halves_the_rows_and_restores_the_weights(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU's warm-up, with a model that runs out of memory above two rows."""
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(train, "DEVICE_BATCH_SIZE", 8)
    model = train.build_model(config(train))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def hungry(x: Tensor, y: Tensor) -> Any:
        if len(x) > limit:
            raise torch.cuda.OutOfMemoryError("no memory left")
        return train.loss_of(model, x, y, {})

    limit = 2
    assert train.warm_up(model, hungry, torch.device("cpu")) == 2
    assert "DEVICE_BATCH_SIZE 4 -> 2" in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        train.warm_up(model, hungry, torch.device("cpu"))


def test_the_schedule_is_level_and_then_linear(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [train.lr_scale(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    monkeypatch.setattr(train, "WARMUP_RATIO", 0.1)
    monkeypatch.setattr(train, "FINAL_LR_FRAC", 0.2)
    assert [train.lr_scale(p) for p in (0, 0.05, 0.1, 1)] == [0, 0.5, 1, 0.2]
    monkeypatch.setattr(train, "WARMDOWN_RATIO", 0.0)
    assert train.lr_scale(1) == 1
