"""Two runs side by side: what differs in settings, code and metrics, and how far that is noise.

The noise is the spread of repeated runs of one commit on the first run's platform, as `noise` has
it; a difference of less than two standard deviations of a pair may be chance.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from autohypothesis.fleet.toolbuilder.catalogue.reader import (
    Row,
    completed,
    folder_of,
    grouped,
    main,
    number,
    pooled_sd,
    read_rows,
    read_settings,
    shown,
)

METRICS = (
    "metric_value", "num_steps", "tokens_per_second", "training_seconds", "total_seconds",
    "peak_vram_gb", "num_params_M", "train_bpb", "mfu_percent", "improvement_rate",
)  # fmt: skip
FACTS = ("status", "commit", "seed", "gpu_name", "platform_key", "description")
CLEAR = 2.0
"""Standard deviations of a pair."""
WIDEST = 32


def compare(research: Path, names: list[str]) -> dict[str, Any]:
    """Return what tells the two runs apart; the second is seen against the first.

    Raises:
        SystemExit: a run is not in the ledger.
    """
    rows = read_rows(research)
    known = {str(row.get("id")): row for row in rows}
    missing = [name for name in names if name not in known]
    if missing:
        sys.exit(f"no run {missing[0]!r} in experiments.jsonl ({len(known)} runs)")
    first, second = (known[name] for name in names)
    ours, theirs = (read_settings(research, name) for name in names)
    metrics = {}
    for key in METRICS:
        a, b = number(first.get(key)), number(second.get(key))
        if a is not None or b is not None:
            metrics[key] = [a, b, None if a is None or b is None else b - a]
    codes = [str(row.get("code_hash") or "") for row in (first, second)]
    return {
        "tool": "compare",
        "runs": names,
        "same_code": codes[0] == codes[1] if all(codes) else None,
        "metric": first.get("metric_name", ""),
        "facts": {key: [first.get(key), second.get(key)] for key in FACTS},
        "settings": {
            key: [ours.get(key), theirs.get(key)]
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        },
        "metrics": metrics,
        **verdict(rows, first, second, metrics.get("metric_value", [None] * 3)[2]),
    }


def verdict(rows: list[Row], first: Row, second: Row, difference: float | None) -> dict[str, Any]:
    """Return the difference in units of noise, and what it means in words."""
    platform = str(first.get("platform_key", ""))
    runs = [row for row in completed(rows, platform_key=platform) if row.get("commit")]
    commits = grouped(runs, lambda row: row["commit"])
    sd = pooled_sd([float(row["metric_value"]) for row in same] for same in commits)
    pair = None if sd is None else math.sqrt(2) * sd
    units = difference / pair if pair and difference is not None else None
    gain = (difference or 0.0) * (1 if first.get("direction") == "maximize" else -1)
    side = "better" if gain > 0 else "worse"
    if second.get("platform_key", "") != platform:
        words, units = "not comparable: the runs are of different platforms", None
    elif first.get("metric_name") != second.get("metric_name"):
        words, units = "not comparable: the runs have different metrics", None
    elif difference is None:
        words = "not comparable: a run has no value"
    elif pair is None:
        words = "no commit was run twice here, so the noise is unknown"
    elif difference == 0:
        words = "the same"
    elif units is None:
        words = f"{side}, and repeated runs are exactly equal here"
    elif abs(units) < CLEAR:
        words = f"within noise: {units:+.1f} standard deviations of a pair"
    else:
        words = f"{side}: {units:+.1f} standard deviations of a pair"
    return {"difference": difference, "sd_pair": pair, "units_of_noise": units, "verdict": words}


def text(found: dict[str, Any]) -> str:
    gap = ["", "", "", ""]
    table = [["", *found["runs"], "difference"]]
    table += [[key, *map(cell, pair), ""] for key, pair in found["facts"].items()]
    table.append(gap)
    for key, (a, b, difference) in found["metrics"].items():
        name = found["metric"] if key == "metric_value" else key
        table.append([name, cell(a), cell(b), shown(difference, "+.6g")])
    table.append(gap)
    table += [[key, *map(cell, pair), ""] for key, pair in found["settings"].items()]
    if not found["settings"]:
        table.append(["(the settings are the same)", "", "", ""])
    commits = " ".join(str(commit)[:12] for commit in found["facts"]["commit"])
    code = {
        None: "the code: not known, a record is of an older version",
        True: "the code is the same but for the settings",
        False: f"the code is another one: git diff {commits}",
    }[found["same_code"]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return "\n".join([*lines, "", code, found["verdict"]])


def cell(value: Any) -> str:
    line = shown(value)
    return line if len(line) <= WIDEST else line[: WIDEST - 1] + "…"


def self_test() -> None:
    def row(name: str, value: float, commit: str) -> Row:
        return {
            "id": name, "commit": commit, "metric_value": value, "platform_key": "p",
            "execution_status": "completed", "metric_name": "val_bpb", "num_steps": 10,
            "code_hash": "" if commit == "b" else "edited" if value > 1 else "as it was",
        }  # fmt: skip

    rows = [row("a-1", 1.0, "a"), row("a-2", 1.2, "a"), row("b-1", 0.5, "b")]
    configs = {f"{name}/config.json": {"depth": depth, "lr": 0.1}
               for name, depth in (("a-1", 2), ("b-1", 3))}  # fmt: skip
    with folder_of(rows, configs) as research:
        found = compare(research, ["a-1", "b-1"])
        assert found["settings"] == {"depth": [2, 3]} and found["same_code"] is None, found
        # the variance of 1.0 and 1.2 is 0.02, that of a pair 0.04
        assert math.isclose(found["sd_pair"], 0.2), found
        assert math.isclose(found["difference"], -0.5), found
        assert math.isclose(found["units_of_noise"], -2.5), found
        assert found["verdict"].startswith("better"), found
        again = compare(research, ["a-1", "a-2"])
        assert again["verdict"].startswith("within noise") and again["same_code"] is False, again
        try:
            compare(research, ["a-1", "none"])
        except SystemExit:
            return
        raise AssertionError("an unknown run was found")


def figures(words: argparse.Namespace) -> dict[str, Any]:
    if len(words.run) != 2:
        options.error("name two runs")
    return compare(words.research, words.run)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", nargs="*", metavar="RUN", help="two ids of experiments")
    main(options, figures, text, self_test)
