"""Shared by the scripts of the catalogue: reading the ledger and bundles, and one command line.

`tools.publish` copies this file into a script that imports it, so a published script stands alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
T = TypeVar("T")


def read_rows(research: Path) -> list[Row]:
    """Return the rows of the ledger beside research/, without damaged lines."""
    try:
        text = research.resolve().with_name("experiments.jsonl").read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [row for line in text.splitlines() if (row := json_object(line))]


def read_document(research: Path, *parts: str) -> dict[str, Any]:
    """Return the JSON object in a file below research/; an empty one where it cannot be read."""
    try:
        return json_object(research.joinpath(*parts).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def read_settings(research: Path, run: str) -> dict[str, Any]:
    """Return the hyper-parameters of a run; none where its config.json cannot be read."""
    config = read_document(research, "runs", run, "config.json")
    named = config.pop("hyperparameters", None)
    return {**config, **named} if isinstance(named, dict) else config


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`; an empty one where it holds none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def completed(rows: list[Row], **wanted: Any) -> list[Row]:
    """Return the rows of completed runs with a finite metric and the `wanted` fields."""
    return [
        row
        for row in rows
        if row.get("execution_status") == "completed"
        and number(row.get("metric_value")) is not None
        and all(row.get(key, "") == value for key, value in wanted.items())
    ]


def grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """Return the items with equal keys together, in the order of each one's first."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def pooled_sd(groups: Iterable[list[float]]) -> float | None:
    """Return the standard deviation around the groups' own means; None without a repeat."""
    repeated = [group for group in groups if len(group) > 1]
    squares = sum((len(group) - 1) * statistics.variance(group) for group in repeated)
    freedom = sum(len(group) - 1 for group in repeated)
    return math.sqrt(squares / freedom) if freedom else None


def shown(value: Any, form: str = ".6g") -> str:
    """Return a value as text, a number in `form`; a dash for None."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else " ".join(str(value).split())


@contextmanager
def folder_of(
    rows: list[Row], documents: dict[str, dict[str, Any]] | None = None
) -> Iterator[Path]:
    """Yield a research folder for a self-test, with a torn ledger.

    Args:
        documents: content by its path below runs/.
    """
    with tempfile.TemporaryDirectory() as folder:
        research = Path(folder, "research")
        research.mkdir()
        lines = "\n".join(json.dumps(row) for row in rows)
        research.with_name("experiments.jsonl").write_text(lines + '\n{"torn', "utf-8")
        for name, document in (documents or {}).items():
            path = research / "runs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))
        yield research


def main(
    parser: argparse.ArgumentParser,
    figures: Callable[[argparse.Namespace], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    self_test: Callable[[], None],
) -> None:
    """Add the options of every script, and print its figures as JSON or as text."""
    parser.add_argument("--research", type=Path, default=Path("research"), metavar="PATH")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--self-test", action="store_true", help="compare with known answers")
    words = parser.parse_args()
    if words.self_test:
        self_test()
        print("ok")
        return
    answer = figures(words)
    print(json.dumps(answer) if words.json else text(answer))
