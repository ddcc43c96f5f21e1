"""Shared by the scripts of the catalogue: reading the ledger and bundles, and one command line.

`tools.publish` copies this file into a script that imports it, so a published script stands alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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


def completed(rows: list[Row]) -> list[Row]:
    """Return the rows of completed runs with a finite metric."""
    return [
        row
        for row in rows
        if row.get("execution_status") == "completed"
        and number(row.get("metric_value")) is not None
    ]


def write_rows(research: Path, rows: list[Row]) -> None:
    """Write a ledger beside `research`, for a self-test."""
    research.mkdir(exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    research.with_name("experiments.jsonl").write_text(lines + '\n{"torn', "utf-8")


def write_document(research: Path, run: str, name: str, value: Any) -> None:
    """Write a JSON file into a run's folder, for a self-test."""
    folder = research.joinpath("runs", run)
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath(name).write_text(json.dumps(value))


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
