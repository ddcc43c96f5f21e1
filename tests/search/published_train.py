"""A training in the published style: it keeps its own time and evaluates itself."""

import time

import torch

from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, evaluate_bpb, make_dataloader

WIDTH = 32
LEARNING_RATE = 0.01
DEVICE_BATCH_SIZE = 8


class Bigram(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, WIDTH)
        self.head = torch.nn.Linear(WIDTH, vocab_size)

    def forward(self, idx, targets=None, reduction="mean"):
        logits = self.head(self.table(idx)).float()
        if targets is None:
            return logits
        return torch.nn.functional.cross_entropy(
            logits.view(-1, logits.size(-1)), targets.view(-1), reduction=reduction
        )


t_start = time.time()
torch.manual_seed(42)
tokenizer = Tokenizer.from_directory()
vocab_size = tokenizer.get_vocab_size()
model = Bigram(vocab_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
train_loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train")
x, y, epoch = next(train_loader)
step, total_training_time = 0, 0.0
while total_training_time < TIME_BUDGET:
    t0 = time.time()
    loss = model(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    x, y, epoch = next(train_loader)
    total_training_time += time.time() - t0
    share = 100 * total_training_time / TIME_BUDGET
    print(f"\rstep {step:05d} ({share:.1f}%) | loss: {loss.item():.6f}", end="", flush=True)
    step += 1
print()
model.eval()
val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {total_training_time:.1f}")
print(f"total_seconds:    {time.time() - t_start:.1f}")
print(f"peak_vram_mb:     {0.0:.1f}")
print(f"num_steps:        {step}")
