"""Noise of the metric: the spread of repeated runs of one commit.

Runs of one commit on one platform are a group; at least two of them count. The spread is pooled
over the groups of one platform, that of the latest run with a repeat unless --platform names
another. Runs with the same seed show what the machine does, runs with different seeds what chance
does as well.

min_delta is suggested as twice the standard deviation of a pair, the difference between two runs,
which is sqrt(2) times that of a single run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter

from autohypothesis.fleet.toolbuilder.catalogue.reader import (
    Row,
    completed,
    folder_of,
    grouped,
    main,
    pooled_sd,
    read_rows,
    shown,
)

FEW = 4
"""Degrees of freedom; below that a standard deviation may be wrong by half."""


NOTHING: Row = {"sd": None, "runs": 0, "groups": 0, "degrees_of_freedom": 0}


def pooled(groups: list[list[float]]) -> Row | None:
    """Return the spread over all groups and what it rests on; None without a repeat."""
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    runs = sum(map(len, groups))
    freedom = runs - len(groups)
    return {
        "sd": pooled_sd(groups), "runs": runs, "groups": len(groups), "degrees_of_freedom": freedom,
    }  # fmt: skip


def by(rows: list[Row], *keys: str) -> list[list[Row]]:
    return grouped(rows, lambda row: tuple(row.get(key) for key in keys))


def values(rows: list[Row]) -> list[float]:
    return [float(row["metric_value"]) for row in rows]


def noise(rows: list[Row], platform: str | None = None) -> Row:
    """Return the figures; `sd` is over all repeats of a commit, whatever their seeds."""
    runs = [row for row in completed(rows) if row.get("commit")]
    if platform is None:
        platform = latest_platform(runs)
    runs = [run for run in runs if run.get("platform_key", "") == platform]
    commits, last = by(runs, "commit"), runs[-1] if runs else {}
    total = pooled([values(group) for group in commits]) or NOTHING
    pair = None if total["sd"] is None else math.sqrt(2) * total["sd"]
    # The mean of each seed, so that a seed that was run often counts once.
    seeds = [[statistics.fmean(values(same)) for same in by(group, "seed")] for group in commits]
    return {
        "tool": "noise",
        "metric": last.get("metric_name", ""),
        "platform_key": platform,
        "device": last.get("gpu_name", ""),
        "sd": total["sd"],
        "sd_pair": pair,
        "min_delta": None if pair is None else 2 * pair,
        **total,
        "same_seed": pooled([values(group) for group in by(runs, "commit", "seed")]),
        "across_seeds": pooled(seeds),
        "enough": total["degrees_of_freedom"] >= FEW,
        "note": note(total, len(runs)),
    }


def latest_platform(runs: list[Row]) -> str:
    """Return the platform of the latest repeated run; without one, of the latest run."""
    keys = [(run["commit"], run.get("platform_key", "")) for run in runs]
    counts = Counter(keys)
    repeated = (platform for commit, platform in reversed(keys) if counts[commit, platform] > 1)
    return str(next(repeated, keys[-1][1] if keys else ""))


def note(total: Row, runs: int) -> str:
    if not total["runs"]:
        return f"too little: no commit was run twice on this platform ({runs} runs in all)"
    if total["degrees_of_freedom"] < FEW:
        commits = f"{total['groups']} commit{'s' * (total['groups'] != 1)}"
        return f"rough: only {total['runs']} runs of {commits}; repeat some more"
    return ""


def text(found: Row) -> str:
    name = found["metric"] or "the metric"
    where = f" on {found['device']}" if found["device"] else ""
    if found["sd"] is None:
        return f"Noise of {name}{where}: {found['note']}"
    lines = [f"Noise of {name}{where}, from {found['runs']} runs of {found['groups']} commits"]
    for key, words in (
        ("sd", "sd of a run"), ("sd_pair", "sd of a pair"), ("min_delta", "suggested min_delta"),
    ):  # fmt: skip
        lines.append(f"  {words:<22}{shown(found[key])}")
    for key, words in (("same_seed", "with the same seed"), ("across_seeds", "across seeds")):
        part = found[key]
        spread = "no repeats" if part is None else f"{shown(part['sd'])}, {part['runs']} runs"
        lines.append(f"  sd {words:<19}{spread}")
    return "\n".join(filter(None, [*lines, found["note"]]))


def self_test() -> None:
    def row(commit: str, value: float | None, seed: int, key: str = "p") -> Row:
        status = "failed" if value is None else "completed"
        return {
            "commit": commit, "metric_value": value, "seed": seed, "platform_key": key,
            "execution_status": status, "metric_name": "val_bpb",
        }  # fmt: skip

    rows = [row("a", 1.0, 1), row("a", 3.0, 1), row("a", 9.0, 1, "other"), row("b", None, 1)]
    rows += [row("b", 4.0, 1), row("b", 5.0, 2), row("b", 6.0, 3), row("c", 7.0, 1)]
    assert noise([])["sd"] is None
    with folder_of(rows) as research:
        found = noise(read_rows(research))
    # a: 1 and 3, variance 2; b: 4, 5, 6, variance 1; pooled (1 * 2 + 2 * 1) / 3
    assert math.isclose(found["sd"], math.sqrt(4 / 3)), found
    assert math.isclose(found["sd_pair"], math.sqrt(8 / 3)), found
    assert math.isclose(found["min_delta"], 2 * math.sqrt(8 / 3)), found
    assert (found["runs"], found["groups"], found["degrees_of_freedom"]) == (5, 2, 3), found
    assert math.isclose(found["same_seed"]["sd"], math.sqrt(2)), found
    assert math.isclose(found["across_seeds"]["sd"], 1.0), found
    assert not found["enough"]
    assert noise([*rows, row("z", 1.0, 1, "elsewhere")])["sd"] == found["sd"]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument(
        "--platform", metavar="KEY", help="platform key; default: the latest repeat's"
    )
    main(options, lambda words: noise(read_rows(words.research), words.platform), text, self_test)
