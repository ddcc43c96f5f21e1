"""Loss curves of given runs, as text and as a PNG.

Reads the samples in exit.json: rows of [share of the budget, loss, bits per byte, tokens a second].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from autohypothesis.fleet.toolbuilder.catalogue.reader import (
    folder_of,
    main,
    number,
    read_document,
    read_rows,
)

Point = tuple[float, float]

COLUMNS = {"loss": 1, "bpb": 2, "speed": 3}
UNITS = {"loss": "loss", "bpb": "bits per byte", "speed": "tokens a second"}
MARKS = "●○▲△■□◆◇"
WIDTH, HEIGHT = 64, 16
LATEST = 4
"""Runs that are shown when none is named."""
# Okabe and Ito's colours, told apart by people who do not tell red from green.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#9A9A9A",
)  # fmt: skip


def curve(research: Path, run: str, column: str) -> list[Point]:
    """Return share of the budget and value where both are finite; empty without samples."""
    samples = read_document(research, "runs", run, "exit.json").get("samples")
    pairs = [
        (number(sample[0]), number(sample[COLUMNS[column]]))
        for sample in (samples if isinstance(samples, list) else [])
        if isinstance(sample, list) and len(sample) > COLUMNS[column]
    ]
    return sorted((x, y) for x, y in pairs if x is not None and y is not None)


def latest(research: Path) -> list[str]:
    """Return the last runs of the ledger that have a folder."""
    names = [str(row.get("id")) for row in read_rows(research)]
    return [name for name in names if research.joinpath("runs", name).is_dir()][-LATEST:]


def figures(points: list[Point]) -> dict[str, Any]:
    """Return first, lowest and last value, and the last one up to each quarter of the budget."""
    values: list[float | None] = [value for _, value in points] or [None]
    quarters = {}
    for percent in (25, 50, 75, 100):
        before = [value for share, value in points if 100 * share <= percent + 1e-9]
        quarters[str(percent)] = before[-1] if before else None
    lowest = min((value for _, value in points), default=None)
    return {
        "points": points, "first": values[0], "lowest": lowest, "last": values[-1], "at": quarters,
    }  # fmt: skip


def plot(curves: dict[str, list[Point]], unit: str) -> str:
    """Return all curves in one field of characters; where two meet, the first one is seen."""
    points = [point for one in curves.values() for point in one]
    if not points:
        return "none of these runs left samples"
    low, high = min(y for _, y in points), max(y for _, y in points)
    right = max(1.0, max(x for x, _ in points))
    field = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, one in reversed(list(zip(MARKS, curves.values(), strict=False))):
        for x, y in one:
            line = round((high - y) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT // 2
            field[line][round(max(0.0, x) / right * (WIDTH - 1))] = mark
    lines = [unit]
    for place, row in enumerate(field):
        value = high - (high - low) * place / (HEIGHT - 1)
        label = f"{value:10.4g}" if place % 5 == 0 else " " * 10
        lines.append(f"{label} ┤{''.join(row).rstrip()}")
    lines.append(f"{'':11}└{'─' * WIDTH}")
    lines.append(f"{'':12}0 %{'share of the budget':^{WIDTH - 9}}{100 * right:.0f} %")
    for mark, (name, one) in zip(MARKS, curves.items(), strict=False):
        last = f"last {one[-1][1]:.6g}, {len(one)} samples" if one else "no samples"
        lines.append(f"{'':12}{mark} {name}: {last}")
    return "\n".join(lines)


def draw(curves: dict[str, list[Point]], unit: str, path: Path) -> None:
    """Write the same as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130)
    axes = figure.subplots()
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        shares, values = [100 * x for x, _ in points], [y for _, y in points]
        axes.plot(shares, values, color=colour, label=name, linewidth=1.4)
    axes.set(xlabel="share of the budget, %", ylabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", bbox_inches="tight")


def self_test() -> None:
    samples = [[0.1, 4.0, 2.0, 9.0], [0.5, 3.0, None, 9.0], [0.6, None, 1.0, 9.0]]
    samples += [[1.0, 2.0, 1.0, 9.0]]
    with folder_of([], {"a-1/exit.json": {"samples": samples}}) as research:
        points = curve(research, "a-1", "loss")
        assert points == [(0.1, 4.0), (0.5, 3.0), (1.0, 2.0)], points
        found = figures(points)
        assert found["at"] == {"25": 4.0, "50": 3.0, "75": 3.0, "100": 2.0}, found
        assert curve(research, "none", "loss") == []
        page = plot({"a-1": points}, "loss").splitlines()
        assert page[1].endswith("●") and page[1].split()[0] == "4", page[1]
        assert page[HEIGHT].endswith("●") and page[HEIGHT].split()[0] == "2", page[HEIGHT]
        picture = research.with_name("curves.png")
        draw({"a-1": points}, "loss", picture)
        assert picture.read_bytes().startswith(b"\x89PNG")


def answer(words: argparse.Namespace) -> dict[str, Any]:
    if len(words.run) > len(MARKS):
        options.error(f"{len(words.run)} runs; {len(MARKS)} can be told apart")
    names = words.run or latest(words.research)
    curves = {name: curve(words.research, name, words.of) for name in names}
    if words.out is not None:
        draw(curves, UNITS[words.of], words.out)
    found = {name: figures(points) for name, points in curves.items()}
    return {"tool": "curves", "of": words.of, "curves": found}


def text(found: dict[str, Any]) -> str:
    curves = {name: one["points"] for name, one in found["curves"].items()}
    return plot(curves, UNITS[found["of"]])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", nargs="*", metavar="RUN", help="ids; default: the latest runs")
    options.add_argument("--of", choices=sorted(COLUMNS), default="loss", help="default: loss")
    options.add_argument("--out", type=Path, metavar="PNG", help="draw a picture as well")
    main(options, answer, text, self_test)
