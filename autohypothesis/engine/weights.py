"""Which weights stay on the disk."""

from __future__ import annotations

from contextlib import suppress

from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import VALUELESS

WEIGHTS_BYTES = 20 << 30
"""Of one search; a commit and its seed make again what is removed."""


def trim_weights(layout: Layout, past: DecisionHistory) -> None:
    """Remove weights that no value came from, and of the others the oldest, down to the limit.

    Those of keeps stay, so that they can be scored again.
    """
    sizes: dict[str, int] = {}
    for name in reversed(past.latest):
        with suppress(OSError):
            sizes[name] = layout.run(name).weights.lstat().st_size
    kept = {name for name in sizes if past.latest[name].decision_status == "keep"}
    held = sum(sizes[name] for name in kept)
    for name, size in sizes.items():
        if name in kept:
            continue
        worthless = past.latest[name].decision_status in VALUELESS
        if worthless or held + size > WEIGHTS_BYTES:
            with suppress(OSError):
                layout.run(name).weights.unlink(missing_ok=True)
        else:
            held += size
