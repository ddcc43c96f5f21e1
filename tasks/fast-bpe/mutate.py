"""Rewrites one place of bpe.py, without a model: draws a kind of rewrite, then a place for it.

Reads the loop's JSON document on stdin, edits the artifact in place and prints what it did. The
same file, seed and trials give the same edit. Two of three are meant to be faster; the others are
slower or wrong, as other people's ideas are.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

sys.dont_write_bytecode = True  # a mutator leaves nothing behind but its change

from mistakes import SLOWER, WRONG  # noqa: E402
from rewrites import REWRITES, Rewrite  # noqa: E402
from source import Source  # noqa: E402

Operator = Callable[[Source], Iterator[Rewrite]]
KINDS: tuple[tuple[Operator, ...], ...] = (REWRITES, SLOWER, WRONG)
WEIGHTS = (6, 1, 2)


def main() -> None:
    document = json.load(sys.stdin)
    seed = int(document.get("seed", os.environ.get("SEED", "0")))
    path = Path(document["artifacts"][0])
    tried = {
        str(trial.get("description"))
        for trial in document.get("trials", ())
        if trial.get("status") != "keep"
    }
    found = rewrite(path.read_bytes(), seed, tried)
    if found is None:
        print("nothing was found to change")
        return
    path.write_bytes(found.text)
    print(found.said)


def rewrite(text: bytes, seed: int, tried: Collection[str] = ()) -> Rewrite | None:
    """One rewrite of `text` that is none of `tried`; None when there is none, or no Python."""
    try:
        source = Source(text)
        kinds = [[_places(operator, source, tried) for operator in kind] for kind in KINDS]
    except (SyntaxError, ValueError):
        return None
    draw = random.Random(seed)
    fitting = [[places for places in kind if places] for kind in kinds]
    weights = [weight if kind else 0 for weight, kind in zip(WEIGHTS, fitting, strict=True)]
    if not any(weights):
        return None
    return draw.choice(draw.choice(draw.choices(fitting, weights)[0]))


def _places(operator: Operator, source: Source, tried: Collection[str]) -> list[Rewrite]:
    return [one for one in operator(source) if one.said not in tried and one.text != source.text]


if __name__ == "__main__":
    main()
