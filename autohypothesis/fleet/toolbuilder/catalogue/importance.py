"""Which settings explain the metric, over the completed runs of the active tag.

Two answers, and the number of runs behind each. The direct one: pairs of runs of the same code
that differ in one setting only, and by how much the metric differs between them. The indirect one,
over all runs of one code, that with the most: the rank correlation with the metric, and the share
that PED-ANOVA gives a setting where optuna is at hand and there are enough different runs. The
direct answer is to be trusted more; both are about the values that were tried, and no others.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from bisect import bisect_left, bisect_right
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.fleet.toolbuilder.catalogue.reader import (
    Row,
    completed,
    folder_of,
    grouped,
    main,
    number,
    read_document,
    read_rows,
    read_settings,
    shown,
)

Settings = dict[str, Any]


class Tried(NamedTuple):
    """One choice of settings on one code."""

    settings: Settings
    value: float
    code: str
    """Runs of older versions do not say it, and are taken for runs of one code."""


ENOUGH = 12
"""Different settings; below that PED-ANOVA tells chance."""
VALUES_LIMIT = 40
"""Values of one setting, all else equal, of which every pair is looked at."""


def measured(rows: list[Row], tag: str) -> list[Row]:
    """Return completed runs of the tag with a value, on the platform of the last of them."""
    runs = completed(rows, tag=tag)
    return completed(runs, platform_key=runs[-1].get("platform_key", "")) if runs else []


def key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def tried(research: Path, runs: list[Row]) -> list[Tried]:
    """Return each different choice of settings and code once, with the mean of its runs."""
    found = [
        Tried(settings, float(run["metric_value"]), str(run.get("code_hash", "")))
        for run in runs
        if (settings := read_settings(research, str(run["id"])))
    ]
    return [
        same[0]._replace(value=statistics.fmean(entry.value for entry in same))
        for same in grouped(found, lambda entry: (entry.code, key(entry.settings)))
    ]


def varying(found: list[Tried]) -> list[str]:
    """Return settings that every run has, and that differ between some of them."""
    shared = set.intersection(*(set(entry.settings) for entry in found)) if found else ()
    return sorted(
        name for name in shared if len({key(entry.settings[name]) for entry in found}) > 1
    )


def direct(found: list[Tried], name: str, sign: float) -> dict[str, Any]:
    """Return the mean size of the effect, and the change that helped most.

    They are of pairs of runs of one code that differ in `name` only.

    Args:
        sign: -1 where a lower metric is better.
    """

    def rest(entry: Tried) -> object:
        return entry.code, key({k: v for k, v in entry.settings.items() if k != name})

    having = [entry for entry in found if name in entry.settings]
    changes = [
        (first.settings[name], second.settings[name], second.value - first.value)
        for group in grouped(having, rest)
        for first, second in combinations(group[:VALUES_LIMIT], 2)
    ]
    if not changes:
        return {"pairs": 0, "effect": None, "best_change": None}
    both = changes + [(b, a, -difference) for a, b, difference in changes]
    old, new, difference = max(both, key=lambda entry: sign * entry[2])
    return {
        "pairs": len(changes),
        "effect": statistics.fmean(abs(difference) for _, _, difference in changes),
        "best_change": {"from": old, "to": new, "difference": difference},
    }


def ranks(values: list[float]) -> list[float]:
    """Return ranks from 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [(bisect_left(order, entry) + bisect_right(order, entry) + 1) / 2 for entry in values]


def rank_correlation(found: list[Tried], name: str) -> float | None:
    """Return Spearman's, between a numeric setting and the metric; None for other settings."""
    values = [entry.settings[name] for entry in found]
    if len(found) < 3 or None in map(number, values):
        return None
    try:
        return statistics.correlation(ranks(values), ranks([entry.value for entry in found]))
    except statistics.StatisticsError:  # all values of the metric are equal
        return None


def shares(found: list[Tried], names: list[str], sign: float) -> dict[str, float]:
    """Return PED-ANOVA's share of each setting; empty where it cannot be had."""
    if len(found) < ENOUGH or not names:
        return {}
    try:
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    except ImportError:
        return {}
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns: dict[str, list[Any]] = {}
    spaces: dict[str, Any] = {}
    for name in names:
        values = [entry.settings[name] for entry in found]
        if None in map(number, values):
            columns[name] = list(map(key, values))
            spaces[name] = CategoricalDistribution(sorted(set(columns[name])))
        else:
            columns[name] = list(map(float, values))
            spaces[name] = FloatDistribution(min(columns[name]), max(columns[name]))
    study = optuna.create_study(direction="minimize" if sign < 0 else "maximize")
    for index, entry in enumerate(found):
        params = {name: columns[name][index] for name in names}
        trial = optuna.trial.create_trial(params=params, distributions=spaces, value=entry.value)
        study.add_trial(trial)
    try:
        evaluator = PedAnovaImportanceEvaluator()
        return dict(get_param_importances(study, evaluator=evaluator, params=names))
    except (ValueError, RuntimeError):
        return {}


def importance(research: Path, tag: str | None = None) -> dict[str, Any]:
    """Return every setting that varies, the most important first.

    Args:
        tag: default: the manifest's, else that of the last row.
    """
    rows = read_rows(research)
    if not tag:
        active = read_document(research, "fleet", "manifest.json").get("tag")
        tag = str(active or (rows[-1].get("tag", "") if rows else ""))
    runs = measured(rows, tag)
    found, last = tried(research, runs), runs[-1] if runs else {}
    sign = 1.0 if last.get("direction") == "maximize" else -1.0
    codes = grouped(found, lambda entry: entry.code)
    most = max(codes, key=len, default=[])
    names = sorted({name for code in codes for name in varying(code)})
    own = varying(most)
    given = shares(most, own, sign)
    settings = [
        {
            "name": name,
            "values": len({key(e.settings[name]) for e in found if name in e.settings}),
            **direct(found, name, sign),
            "rank_correlation": rank_correlation(most, name) if name in own else None,
            "share": given.get(name),
        }
        for name in names
    ]
    settings.sort(key=lambda entry: (entry["effect"] or 0.0, abs(entry["rank_correlation"] or 0.0)))
    return {
        "tool": "importance",
        "tag": tag,
        "metric": last.get("metric_name", ""),
        "runs": len(runs),
        "different": len(found),
        "codes": len(codes),
        "settings": settings[::-1],
        "note": note(len(most), names, bool(given), len(codes)),
    }


def note(different: int, names: list[str], given: bool, codes: int) -> str:
    """Return what limits the answer.

    Args:
        different: the choices of settings on the code that has the most.
    """
    of = f" on the one of {codes} codes that has the most" if codes > 1 else ""
    if different < 2 or not names:
        return f"too little: {different} different settings have completed{of}"
    if not given:
        return f"no shares: {different} different settings{of}, {ENOUGH} are needed, and optuna"
    return f"correlation and share are of {different} different settings{of}" if of else ""


def text(found: dict[str, Any]) -> str:
    metric, tag = found["metric"] or "the metric", found["tag"] or "(none)"
    counts = f"{found['runs']} runs, {found['different']} different"
    lines = [f"Settings that explain {metric} of tag {tag}: {counts}"]
    if found["settings"]:
        head = (
            f"{'setting':<22}{'values':>7}{'pairs':>7}{'effect':>11}{'rank corr.':>12}{'share':>8}"
        )
        lines.append(head + "  change that helped most")
    for entry in found["settings"]:
        best = entry["best_change"]
        change = f"{best['from']} -> {best['to']}: {best['difference']:+.5g}" if best else "–"
        lines.append(
            f"{entry['name'][:21]:<22}{entry['values']:>7}{entry['pairs']:>7}"
            f"{shown(entry['effect'], '.5g'):>11}{shown(entry['rank_correlation'], '+.2f'):>12}"
            f"{shown(entry['share'], '.0%'):>8}  {change}"
        )
    return "\n".join(filter(None, [*lines, found["note"]]))


def self_test() -> None:
    rows: list[Row] = []
    configs: dict[str, Settings] = {}

    def ran(value: float, tag: str = "t", **settings: Any) -> None:
        name = f"r-{len(rows)}"
        configs[f"{name}/config.json"] = settings
        row = {"id": name, "tag": tag, "execution_status": "completed", "platform_key": "p"}
        rows.append({**row, "metric_value": value, "metric_name": "val_bpb"})

    def found(tag: str = "t") -> dict[str, Any]:
        with folder_of(rows, configs) as research:
            return importance(research, tag)

    for depth in (1, 2, 3):
        for rate in (0.1, 0.2):
            ran(10.0 - 2 * depth + rate, depth=depth, rate=rate, word="same")
    ran(99.0, tag="other", depth=9, rate=9, word="other")
    first, second = found()["settings"]
    assert (found()["runs"], first["name"], second["name"]) == (6, "depth", "rate"), found()
    # depth: differences 2, 2, 4 at each of two rates; rate: 0.1 at each of three depths
    assert first["pairs"] == 6 and math.isclose(first["effect"], 8 / 3), first
    assert second["pairs"] == 3 and math.isclose(second["effect"], 0.1), second
    assert math.isclose(first["best_change"]["difference"], -4.0), first
    assert (first["best_change"]["from"], first["best_change"]["to"]) == (1, 3), first
    assert first["rank_correlation"] < -0.9, first
    ran(5.0, depth=3, rate=0.2, word="same")  # a repeat is averaged, and is no pair
    assert found()["different"] == 6 and found()["settings"][0]["pairs"] == 6
    assert found("none")["settings"] == []
    for depth in (1, 2):  # an edit that gains 5 at any depth: its gain is no setting's
        ran(5.0 - 2 * depth, depth=depth, rate=0.1, word="same")
        rows[-1]["code_hash"] = "edited"
    assert found()["codes"] == 2 and found()["settings"][0]["pairs"] == 7, found()
    assert math.isclose(found()["settings"][0]["best_change"]["difference"], -4.0), found()
    for deeper in range(4, 4 + ENOUGH):
        ran(10.0 - 2 * deeper, depth=deeper, rate=0.1, word="same")
    given = [setting["share"] for setting in found()["settings"]]
    assert None in given or math.isclose(sum(given), 1.0, rel_tol=1e-6), given


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--tag", help="the search; default: the active one")
    main(options, lambda words: importance(words.research, words.tag), text, self_test)
