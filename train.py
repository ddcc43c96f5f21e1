"""A small GPT and its training loop, on a fixed time budget: the one file that a search edits.

    python train.py          trains on what `python prepare.py` prepared and prints val_bpb

The constants below are the recipe for one GPU, scaled by the profile to the machine; they are not
tuned. `build_model(config)` is how the official evaluation gets the model: config holds the
constants by their lower-case names, and forward maps token ids [B, T] to logits [B, T, V].

$SEED moves the initialisation, never the data. With $AUTOHYPOTHESIS_RUN_DIR the clock keeps its
record there. With $AUTOHYPOTHESIS_SAVE_WEIGHTS=1 the final weights are saved beside it, to be
scored by whoever asked for them; val_bpb is then printed as nan.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prepare import Clock, Tokenizer, evaluate_bpb, load_profile, make_dataloader

began = time.perf_counter()
profile = load_profile()  # before torch: it sets the thread counts of a CPU run

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

# Model
DEPTH = profile.depth  # layers
ASPECT_RATIO = profile.aspect_ratio  # width = DEPTH * ASPECT_RATIO, rounded up to whole heads
HEAD_DIM = profile.head_dim
WINDOW_PATTERN = profile.window_pattern  # a letter a layer: S sees half a row, L all; last layer L

# Batch
TOTAL_BATCH_SIZE = profile.total_batch_size  # tokens an optimizer step
DEVICE_BATCH_SIZE = profile.device_batch_size  # rows a forward pass, at most

# Optimization
EMBEDDING_LR = 0.6  # token and value embeddings, AdamW
UNEMBEDDING_LR = 0.004  # output head, AdamW
MATRIX_LR = 0.04  # matrices of the blocks, Muon
SCALAR_LR = 0.5  # scalars of the layers, AdamW
WEIGHT_DECAY = 0.2  # matrices only, falls to zero over the run
ADAM_BETAS = (0.8, 0.95)
WARMUP_RATIO = 0.0  # share of the budget
WARMDOWN_RATIO = 0.5  # share of the budget, linear
FINAL_LR_FRAC = 0.0  # of the peak, at the end

# ---------------------------------------------------------------------------------------------
# Model


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has it (Ampere and newer), else float32.

    Turing has fast float16 only. Its gradients underflow without loss scaling, and a loss scaler
    skips steps in silence, so such a card trains in float32: slower, and right.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def norm(x: Tensor) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019) without weights, over the last dimension, in x's dtype."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6).to(x.dtype)  # autocast computes in float32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of x [B, H, T, D]; cos, sin [T, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of every token to itself and the `window` - 1 before it; all [B, H, T, D].

    Blocks of `window` queries look at their own block and the one before, so the mask is
    [window, 2 window]; a mask of [T, T] would cost more than full attention does.
    """
    shape, length = q.shape, q.shape[2]
    padding = -length % window
    blocks = (length + padding) // window
    split = (-1, blocks, window, shape[3])  # four dimensions, which the fast kernels ask for
    q, k, v = (F.pad(z, (0, 0, 0, padding)).reshape(split) for z in (q, k, v))
    k, v = (torch.cat([F.pad(z, (0, 0, 0, 0, 1, 0))[:, :-1], z], dim=2) for z in (k, v))
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)
    inside = (key <= query) & (key > query - window)
    first = inside & (key >= window)  # before the first block there is only padding
    mask = torch.stack([first] + [inside] * (blocks - 1))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.reshape(*shape[:2], -1, shape[3])[:, :, :length]


def flex_masks(spans: list[int], length: int, device: torch.device) -> dict[int, Any]:
    """For every span shorter than a row of `length` tokens, the mask flex_attention wants."""
    from torch.nn.attention.flex_attention import create_block_mask

    def within(span: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        return lambda batch, head, query, key: (key <= query) & (key > query - span)

    return {
        span: create_block_mask(within(span), None, None, length, length, device=str(device))
        for span in set(spans)
        if span < length
    }


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, masks: dict[int, Any]) -> Tensor:
    """Causal attention within `window`; the same on every device, only the kernel differs.

    A window saves time only in flex_attention, which needs compilation: there `masks` has an
    entry for it. Full attention is left to torch, which picks cuDNN, flash or plain.
    """
    if window in masks:
        from torch.nn.attention.flex_attention import flex_attention

        y: Tensor = flex_attention(q, k, v, block_mask=masks[window])
        return y
    if window < q.shape[2]:
        return windowed_attention(q, k, v, window)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Block(nn.Module):
    """Attention with normalised queries and keys, then an MLP with a squared ReLU; no biases."""

    GATE_CHANNELS = 32  # of the stream that gate the value embedding

    def __init__(self, width: int, head_dim: int, window: int, value_embedding: bool) -> None:
        super().__init__()
        self.head_dim, self.window = head_dim, window
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        channels = min(self.GATE_CHANNELS, width)
        self.gate = nn.Linear(channels, width // head_dim, bias=False) if value_embedding else None

    def forward(
        self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, masks: dict[int, Any]
    ) -> Tensor:
        h = norm(x)
        q, k, v = (self.split(z) for z in (self.query(h), self.key(h), self.value(h)))
        if self.gate is not None and ve is not None:
            gate = 2 * torch.sigmoid(self.gate(h[..., : self.gate.in_features]))  # 1 at the start
            v = v + gate.transpose(1, 2)[..., None] * self.split(ve)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = attend(q, k, v, self.window, masks)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        mlp: Tensor = self.down(F.relu(self.up(norm(x))).square())
        return x + mlp

    def split(self, z: Tensor) -> Tensor:
        """[B, T, width] to [B, heads, T, head_dim]."""
        return z.view(*z.shape[:2], -1, self.head_dim).transpose(1, 2)


class GPT(nn.Module):
    """Token ids [B, T] to logits [B, T, V], for any T up to `seq_len`."""

    SOFTCAP = 15.0  # logits stay within ±15
    cos: Tensor
    sin: Tensor

    def __init__(
        self, vocab_size: int, seq_len: int, depth: int, width: int, head_dim: int, windows: str
    ) -> None:
        super().__init__()
        reach = {"S": max(1, seq_len // 2), "L": seq_len}
        self.spans = [reach[windows[i % len(windows)]] for i in range(depth - 1)] + [seq_len]
        # Every other layer, the last among them, adds an embedding of its token to the values.
        embedded = [i % 2 == (depth - 1) % 2 for i in range(depth)]
        self.embedding = nn.Embedding(vocab_size, width)
        self.values = nn.ModuleDict(
            {str(i): nn.Embedding(vocab_size, width) for i in range(depth) if embedded[i]}
        )
        self.blocks = nn.ModuleList(
            Block(width, head_dim, self.spans[i], embedded[i]) for i in range(depth)
        )
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.stream_scale = nn.Parameter(torch.ones(depth))
        self.input_scale = nn.Parameter(torch.full((depth,), 0.1))
        frequencies = 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(seq_len), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.initialise(width)

    def initialise(self, width: int) -> None:
        """Outputs of blocks and gates start at zero, other matrices with sd 1 / sqrt(width)."""
        bound = math.sqrt(3 / width)
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.head.weight, std=0.001)
        for name, weight in self.blocks.named_parameters():
            if name.split(".")[1] in ("out", "down", "gate"):
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)
        for weight in self.values.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(tokens, {})

    def decode(self, tokens: Tensor, masks: dict[int, Any]) -> Tensor:
        """`forward` with the masks of flex_attention; the training compiles this."""
        dtype = compute_dtype(tokens.device)
        with torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
            cos, sin = (z[: tokens.shape[1]].to(dtype) for z in (self.cos, self.sin))
            x = start = norm(self.embedding(tokens).to(dtype))
            for i, block in enumerate(self.blocks):
                x = self.stream_scale[i].to(dtype) * x + self.input_scale[i].to(dtype) * start
                ve = self.values[str(i)](tokens).to(dtype) if str(i) in self.values else None
                x = block(x, ve, cos, sin, masks)
            logits = self.head(norm(x) / self.SOFTCAP).float()
        return self.SOFTCAP * torch.tanh(logits)


def constants() -> dict[str, Any]:
    """The constants of this file by their lower-case names: what build_model is given."""
    plain = (int, float, str, tuple, list)
    own = globals().items()
    return {name.lower(): v for name, v in own if name.isupper() and isinstance(v, plain)}


def build_model(config: dict[str, Any]) -> GPT:
    """The model of the constants in `config` (lower-case names), on the CPU, initialised."""
    depth, head_dim = config["depth"], config["head_dim"]
    heads = -(-depth * config["aspect_ratio"] // head_dim)
    return GPT(
        vocab_size=profile.vocab_size,
        seq_len=profile.seq_len,
        depth=depth,
        width=heads * head_dim,
        head_dim=head_dim,
        windows=config["window_pattern"],
    )


def flops_per_token(model: GPT) -> float:
    """Forward and backward: 6 a matrix weight, and 12 a head channel and position attended to."""
    matrices = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    width = model.head.in_features
    return 6.0 * matrices + 12.0 * width * sum(model.spans)


# ---------------------------------------------------------------------------------------------
# Optimizers. Not torch.optim: its base class imports torch's compiler, 2 s of every CPU run.


class AdamW:
    """Adam (Kingma & Ba 2015) for tables, head and scalars; no decay."""

    def __init__(self, params: list[Tensor], lr: float, betas: tuple[float, float]) -> None:
        self.params, self.lr, self.betas = params, lr, betas
        self.first = [torch.zeros_like(p) for p in params]
        self.second = [torch.zeros_like(p) for p in params]
        self.steps = 0

    def step(self, lr_scale: float) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        rate = self.lr * lr_scale / (1 - beta1**self.steps)
        correction = 1 / math.sqrt(1 - beta2**self.steps)
        for p, m, v in zip(self.params, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.addcdiv_(m, v.sqrt().mul_(correction).add_(1e-10), value=-rate)


# Polar Express (Amsel et al. 2025): the best odd quintic of each of five steps towards U Vᵀ.
polar_steps = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to g [N, rows, columns], roughly: singular values ~1."""
    x = g.bfloat16() if compute_dtype(g.device) == torch.bfloat16 else g
    if g.shape[1] > g.shape[2]:
        x = x.mT
    norms = torch.linalg.matrix_norm(x.float(), keepdim=True)
    x = x / (norms.to(x.dtype) * 1.02 + 1e-6)  # the steps want a spectral norm below 1
    for a, b, c in polar_steps:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    y: Tensor = x.mT if g.shape[1] > g.shape[2] else x
    return y.to(g.dtype)


class Muon:
    """Momentum, orthogonalised (Jordan et al. 2024), for matrices; those of one shape as one stack.

    The momentum rises from 0.85 to 0.95 over 300 steps. Decay is cautious: it acts only where it
    and the update pull the same way.
    """

    def __init__(self, params: list[Tensor], lr: float) -> None:
        shapes = sorted({tuple(p.shape) for p in params})
        self.stacks = [[p for p in params if tuple(p.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]
        self.lr, self.steps = lr, 0

    def step(self, lr_scale: float, decay: float) -> None:
        momentum = 0.85 + 0.10 * min(1.0, self.steps / 300)
        self.steps += 1
        for stack, held in zip(self.stacks, self.momenta, strict=True):
            rows, columns = stack[0].shape
            rate = self.lr * lr_scale * max(1.0, rows / columns) ** 0.5
            g = torch.stack([p.grad for p in stack if p.grad is not None])
            held.lerp_(g, 1 - momentum)
            update = orthogonalise(g.lerp_(held, momentum))  # Nesterov
            weights = torch.stack(stack)
            agree = update * weights >= 0
            update.add_(weights * agree, alpha=decay)
            for p, u in zip(stack, update.unbind(), strict=True):
                p.sub_(u, alpha=rate)


def build_optimizers(model: GPT) -> Callable[[float, float], None]:
    """step(lr_scale, decay): one update of all parameters, whose gradients are then dropped."""
    # The rates were found at width 768.
    scale = (model.head.in_features / 768) ** -0.5
    tables = [model.embedding.weight, *model.values.parameters()]
    adams = [
        AdamW(tables, EMBEDDING_LR * scale, ADAM_BETAS),
        AdamW([model.head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS),
        AdamW([model.stream_scale], SCALAR_LR * 0.01, ADAM_BETAS),  # it multiplies every layer
        AdamW([model.input_scale], SCALAR_LR, (0.96, 0.95)),
    ]
    muon = Muon(list(model.blocks.parameters()), MATRIX_LR)

    def step(lr_scale: float, decay: float) -> None:
        with torch.no_grad():
            for adam in adams:
                adam.step(lr_scale)
            muon.step(lr_scale, decay)
        model.zero_grad(set_to_none=True)

    return step


def lr_scale(progress: float) -> float:
    """Of the peak rates, at a share of the budget: up, level, then linearly down."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    if progress <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - progress) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


# ---------------------------------------------------------------------------------------------
# Training


def loss_of(model: GPT, x: Tensor, y: Tensor, masks: dict[int, Any]) -> Tensor:
    """Mean nats a token of the targets y [B, T] after the tokens x [B, T]."""
    return F.cross_entropy(model.decode(x, masks).flatten(0, 1), y.flatten())


def make_loss(model: GPT, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`loss_of` the model, compiled with flex_attention where the card can (Ampere and newer)."""
    if device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0):
        return partial(loss_of, model, masks={})
    masks = flex_masks(model.spans, profile.seq_len, device)
    return partial(torch.compile(loss_of, dynamic=False), model, masks=masks)


def train_step(
    loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterator[Any], micro_steps: int
) -> tuple[float, Tensor, int]:
    """Gradients of one total batch; returns its mean loss, its targets and their epoch."""
    losses, targets, epoch = [], [], 0
    for _ in range(micro_steps):
        x, y, epoch = next(batches)
        loss = loss_fn(x, y) / micro_steps
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        targets.append(y)
    return float(sum(losses)), torch.cat(targets), epoch


def dummy_batches(rows: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, int]]:
    x = torch.randint(profile.vocab_size, (rows, profile.seq_len), device=device)
    while True:
        yield x, x, 0


def rows_of_a_pass() -> int:
    """Returns the rows of a forward pass: as many as a step has, where that is fewer."""
    return min(DEVICE_BATCH_SIZE, max(1, TOTAL_BATCH_SIZE // profile.seq_len))


def warm_up(model: GPT, loss_fn: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> int:
    """Compiles and fills caches on dummy data, restores the weights; returns rows that fit.

    On a GPU the budget is wall time, and compilation would take a large and varying part of it.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    rows = rows_of_a_pass()
    while True:
        try:
            step = build_optimizers(model)
            for _ in range(3):
                train_step(loss_fn, dummy_batches(rows, device), 1)
                step(0.0, 0.0)
            break
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2  # outside the handler, whose traceback keeps the tensors alive
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        print(f"out of memory: DEVICE_BATCH_SIZE {2 * rows} -> {rows}, accumulating", flush=True)
    model.load_state_dict(weights)
    torch.cuda.reset_peak_memory_stats()
    return rows


def mfu_percent(model: GPT, device: torch.device, tokens_per_second: float) -> float:
    """Of the dense bfloat16 peak on the maker's data sheet; 0 where that is unknown."""
    known = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12, "3090": 71e12}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for key, flops in known.items() if key in name), math.inf)
    return 100 * flops_per_token(model) * tokens_per_second / peak


def peak_memory_mb(device: torch.device) -> float:
    """Of the device; on CPU the largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def save_weights(model: GPT, run_dir: str) -> None:
    """A plain state dict, loaded later with weights_only=True; whole or absent."""
    part = Path(run_dir, "weights.pt.part")
    torch.save({name: value.detach().cpu() for name, value in model.state_dict().items()}, part)
    part.replace(Path(run_dir, "weights.pt"))


@dataclass
class Progress:
    """Of a training; loss and bpb are means over about the last ten steps."""

    steps: int = 0
    loss: float = 0.0  # nats a token
    bpb: float = 0.0  # bits a byte, on training text
    printed: float = -math.inf  # when, by time.monotonic()

    def add(self, loss: float, bpb: float) -> None:
        self.steps += 1
        weight = max(0.1, 1 / self.steps)  # so that it does not start from 0
        self.loss += (loss - self.loss) * weight
        self.bpb += (bpb - self.bpb) * weight

    def show(self, clock: Clock, model: GPT, device: torch.device, dt: float, epoch: int) -> None:
        """The line of the last step, which took `dt` seconds; ten lines a second are enough."""
        now, left = time.monotonic(), clock.budget_seconds - clock.elapsed
        if now - self.printed < 0.1 and left > 0:
            return
        self.printed = now
        speed = TOTAL_BATCH_SIZE / dt
        print(
            f"step {self.steps - 1:05d} ({100 * clock.progress:.1f}%) | loss: {self.loss:.6f} |"
            f" bpb: {self.bpb:.4f} | lrm: {lr_scale(clock.progress):.2f} | dt: {dt * 1e3:.0f}ms |"
            f" tok/sec: {speed:,.0f} | mfu: {mfu_percent(model, device, speed):.1f}% |"
            f" epoch: {epoch} | remaining: {max(0.0, left):.0f}s",
            flush=True,
        )


def train(model: GPT, tokenizer: Tokenizer, device: torch.device, clock: Clock) -> Progress:
    """Trains until the budget of `clock`, which it starts and stops, is spent."""
    loss_fn = make_loss(model, device)
    rows = warm_up(model, loss_fn, device) if device.type == "cuda" else rows_of_a_pass()
    micro_steps = TOTAL_BATCH_SIZE // (rows * profile.seq_len)
    update = build_optimizers(model)
    batches = make_dataloader(tokenizer, rows, profile.seq_len, profile.device)
    token_bytes = torch.tensor(tokenizer.token_bytes, device=device)
    progress = Progress()
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection in the middle of a step costs more than the garbage it finds
    clock.start()
    while clock.elapsed < clock.budget_seconds:
        start, share = clock.elapsed, clock.progress
        loss, targets, epoch = train_step(loss_fn, batches, micro_steps)
        if not math.isfinite(loss):
            print(f"FAIL: loss is {loss} at step {progress.steps}", flush=True)
            sys.exit(1)
        update(lr_scale(share), WEIGHT_DECAY * (1 - share))
        text_bytes = max(1, int(token_bytes[targets].sum()))
        progress.add(loss, loss / math.log(2) * targets.numel() / text_bytes)
        progress.show(clock, model, device, clock.elapsed - start, epoch)
    clock.stop()
    return progress


def main() -> None:
    seed = int(os.environ.get("SEED", "42"))
    run_dir = os.environ.get("AUTOHYPOTHESIS_RUN_DIR")
    if profile.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"profile {profile.name} needs CUDA; for this machine run: python prepare.py")
    if TOTAL_BATCH_SIZE % (rows_of_a_pass() * profile.seq_len):
        sys.exit(
            f"TOTAL_BATCH_SIZE = {TOTAL_BATCH_SIZE} is not a multiple of DEVICE_BATCH_SIZE x"
            f" MAX_SEQ_LEN = {rows_of_a_pass()} x {profile.seq_len}"
        )
    torch.manual_seed(seed)
    device = torch.device(profile.device)
    model = build_model(constants()).to(device)
    num_params = sum(p.numel() for p in model.parameters())
    print(f"profile {profile.name}, seed {seed}, {num_params / 1e6:.2f} M parameters", flush=True)

    clock = Clock()
    progress = train(model, Tokenizer.load(), device, clock)
    peak_mb = peak_memory_mb(device)
    if run_dir and os.environ.get("AUTOHYPOTHESIS_SAVE_WEIGHTS") == "1":
        save_weights(model, run_dir)
    val_bpb = evaluate_bpb(model)

    tokens = progress.steps * TOTAL_BATCH_SIZE
    summary = {
        "val_bpb": f"{val_bpb:.6f}",
        "training_seconds": f"{clock.elapsed:.1f}",
        "total_seconds": f"{time.perf_counter() - began:.1f}",
        "peak_vram_mb": f"{peak_mb:.1f}",
        "mfu_percent": f"{mfu_percent(model, device, tokens / clock.elapsed):.2f}",
        "total_tokens_M": f"{tokens / 1e6:.3f}",
        "num_steps": progress.steps,
        "num_params_M": f"{num_params / 1e6:.3f}",
        "depth": DEPTH,
        "train_bpb": f"{progress.bpb:.6f}",
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    if device.type == "cuda":
        summary["device_uuid"] = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    print("---")
    for key, value in summary.items():
        print(f"{key + ':':<17} {value}")


if __name__ == "__main__":
    main()
