"""progress.png: every experiment as a point, the best so far as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from autohypothesis.plain import cut, plain_line
from autohypothesis.records.files import write_atomic
from autohypothesis.records.outcomes import counts_line, tally_rows, word_of
from autohypothesis.records.outputs import PICTURE_MARK

# Okabe and Ito's colours, told apart by people who do not tell red from green.
KEEP, DISCARD, CRASH, LINE = "#009E73", "#9A9A9A", "#D55E00", "#0072B2"

LABEL_LENGTH = 34
"""Characters of a kept experiment's description beside its point."""


def draw_progress(rows: Sequence[Mapping[str, Any]], path: Path, *, tag: str) -> None:
    """Write the picture of one search to `path`, whole or not at all.

    Args:
        rows: ledger rows of one tag; those without a decision are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    decided = sorted((row for row in rows if row.get("ordinal")), key=lambda row: row["ordinal"])
    figure, axes = plt.subplots(figsize=(10, 5.2), dpi=130)
    if decided:
        _draw_points(axes, decided)
        _draw_best(axes, decided)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
        axes.margins(y=0.16)
    metric = decided[0].get("metric_name", "val_bpb") if decided else "val_bpb"
    better = "higher" if decided and decided[0].get("direction") == "maximize" else "lower"
    axes.set_xlabel("experiment")
    axes.set_ylabel(f"{metric} ({better} is better)")
    axes.set_title(_headline(decided, tag), loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    picture = BytesIO()
    mark = {"Software": PICTURE_MARK}
    figure.savefig(picture, format="png", bbox_inches="tight", metadata=mark)
    plt.close(figure)
    write_atomic(path, picture.getvalue())


def _headline(decided: Sequence[Mapping[str, Any]], tag: str) -> str:
    text = f"{tag or 'no tag yet'}, tried {counts_line(tally_rows(decided).outcomes)}"
    devices = sorted({row["gpu_name"] for row in decided if row.get("gpu_name")})
    return f"{text}  ({', '.join(devices)})" if devices else text


def _draw_points(axes: Any, decided: Sequence[Mapping[str, Any]]) -> None:
    measured = [row for row in decided if row.get("metric_value") is not None]
    failed = [row["ordinal"] for row in decided if word_of(row) == "crash"]
    for status, fill, edge, size in (
        ("discard", DISCARD, "white", 26),
        ("replicate", "white", DISCARD, 26),
        ("keep", KEEP, "white", 64),
    ):
        points = [row for row in measured if _drawn_as(row) == status]
        if points or status != "replicate":
            axes.scatter(
                [row["ordinal"] for row in points],
                [row["metric_value"] for row in points],
                s=size, color=fill, label=f"{status} ({len(points)})", zorder=3,
                edgecolor=edge, linewidth=0.6 if edge == "white" else 1.2,
            )  # fmt: skip
    if failed:
        # A crash has no value: it stands on the upper edge, where its place in time still shows.
        axes.plot(
            failed, [0.985] * len(failed), "x", color=CRASH, label=f"crash ({len(failed)})",
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    for row in measured:
        if row["status"] == "keep":
            _label(axes, row)


def _drawn_as(row: Mapping[str, Any]) -> str:
    status = str(row["status"])
    return status if status in ("keep", "replicate") else "discard"


def _label(axes: Any, row: Mapping[str, Any]) -> None:
    short = cut(plain_line(str(row.get("description") or row["id"])), LABEL_LENGTH)
    axes.annotate(
        short, (row["ordinal"], row["metric_value"]), xytext=(6, 7), textcoords="offset points",
        fontsize=8, rotation=22, color="#333333", parse_math=False,
    )  # fmt: skip


def _draw_best(axes: Any, decided: Sequence[Mapping[str, Any]]) -> None:
    """The best kept so far; a step for each keep, one line per platform."""
    platforms = dict.fromkeys(row.get("platform_key", "") for row in decided)
    for index, platform in enumerate(platforms):
        kept = [
            (row["ordinal"], row["metric_value"])
            for row in decided
            if row["status"] == "keep"
            and row.get("metric_value") is not None
            and row.get("platform_key", "") == platform
        ]
        if kept:
            x, y = zip(*kept, strict=True)
            last = decided[-1]["ordinal"]
            axes.step(
                [*x, last], [*y, y[-1]], where="post", color=LINE, linewidth=1.6, alpha=0.9,
                label="reference" if index == 0 else None, zorder=2,
            )  # fmt: skip
