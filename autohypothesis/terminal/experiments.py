"""Experiments: the table of runs, one of them on a page, and the results of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autohypothesis.installation import suggested
from autohypothesis.plain import plain_line
from autohypothesis.records.comparison import (
    DELTA,
    RUN_AT_MORE_SEEDS,
    NearMiss,
    cell_of,
    comparison_of,
)
from autohypothesis.records.outcomes import shown_as
from autohypothesis.records.rows import IMPORTED
from autohypothesis.schema import NO_SANDBOX
from autohypothesis.terminal.parts import (
    STATUS_STYLE,
    Cell,
    TextTable,
    counts_text,
    diff_text,
    duration,
    facts,
    grid,
    listing,
    memory,
    number,
    share,
    sparkline,
    titled,
)

if TYPE_CHECKING:
    from autohypothesis.fleet.overview.results import Results

RUN_AGAIN = ("confirmed", "refuted")
NEAR = 3
"""Near misses that are named."""


def runs_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> TextTable:
    """Return experiments in the order given, one a line."""
    metric = str(rows[0].get("metric_name", "val_bpb")) if rows else "val_bpb"
    names = ("id", "status", metric, DELTA, "memory", "steps", "description")
    return TextTable(
        names, map(_cells, rows), right=range(2, 6), spare=(5, 4), title=title, widest=80
    )


def _cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    steps = row.get("num_steps")
    return (
        str(row["id"]),
        Text(shown_status(row), STATUS_STYLE.get(str(row.get("status")), "")),
        number(row.get("metric_value")),
        cell_of(comparison_of(row)),
        memory(row.get("peak_vram_gb")),
        "–" if steps is None else f"{steps:,}",
        str(row.get("description") or ""),
    )


def shown_status(row: Mapping[str, Any]) -> str:
    """Return the decision, with the failure kind, the confirmation, or a missing sandbox."""
    kind, confirmation = row.get("failure_kind"), row.get("confirmation")
    status = shown_as(str(row.get("status") or row.get("execution_status") or ""), kind)
    words = [kind or (confirmation if confirmation in RUN_AGAIN else "")]
    words = [word for word in words if word != status]
    if row.get("decided_by") == IMPORTED:
        words.append(IMPORTED)
    if status == "keep" and row.get("sandbox") in NO_SANDBOX:
        words.append("no sandbox")
    shown = ", ".join(filter(None, words))
    return f"{status} ({shown})" if shown else status


def near_misses_text(near: Sequence[NearMiss]) -> RenderableType:
    """Return the first near misses, and the command that runs one at more seeds."""
    rows = [
        (each.experiment_id, each.compared.near_miss, plain_line(each.title))
        for each in near[:NEAR]
    ]
    more = f", {len(near):,} in all" if len(near) > NEAR else ""
    if not near[0].is_current:
        return titled(f"near misses on an earlier reference{more}", listing(rows))
    command = suggested(f"{RUN_AT_MORE_SEEDS} {near[0].experiment_id}")
    title = f"near misses{more}; to run one at more seeds:"
    return Group(titled(title, listing(rows)), Text(f"→ {command}", "cyan"))


# ── one experiment ──────────────────────────────────────────────────────────────────────────


def print_experiment(console: Console, page: Mapping[str, Any]) -> None:
    """Print what `show` gathered: note, settings, diff, curve, tail of the log."""
    row = page["row"]
    console.print(f"[bold]{escape(row['id'])}[/]  {escape(shown_status(row))}")
    if row.get("description"):
        console.print(escape(row["description"]), style="italic")
    for name, text in _facts(row):
        console.print(f"  {escape(f'{name:<12}')} {escape(text)}", soft_wrap=True)
    if page["config"]:
        console.print("\n[bold]settings[/]")
        console.print(_settings(page["config"], page["reference_config"]))
    if page["diff"]:
        console.print("\n[bold]change[/]")
        console.print(diff_text(page["diff"]), soft_wrap=True)
    losses = [sample[1] for sample in page["samples"] if len(sample) > 1 and sample[1] is not None]
    if len(losses) > 1:
        console.print("\n[bold]training loss[/] over the share of the budget")
        console.print(f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
    if page["log_tail"]:
        console.print(f"\n[bold]{escape('log (' + page['paths']['log'] + ')')}[/]")
    for line in page["log_tail"]:
        console.print(escape(line), style="dim", soft_wrap=True)


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    compared, base, delta = comparison_of(row), row.get("reference_value"), ""
    if compared and compared.pairs:
        pairs = f"{compared.pairs} further pair{'s' * (compared.pairs > 1)}"
        delta = f"{compared.cell} against its base, the mean of {pairs}"
    elif compared:
        against = "the best before it" if base is None else f"its base's {number(base, 6)}"
        delta = f"{compared.cell} against {against}"
    attested = "attested" if row.get("attested") else "not attested"
    lines = [
        (row["metric_name"], f"{number(row.get('metric_value'), 6)} ({attested})"),
        (DELTA, delta),
        ("outcome", str(row.get("outcome") or "")),
        ("rationale", str(row.get("rationale") or "")),
        ("commit", str(row.get("commit") or "")[:12]),
        ("device", f"{row.get('gpu_name') or '–'}, profile {row.get('profile') or '–'}"),
        ("seed", str(row.get("seed") if row.get("seed") is not None else "–")),
        *(("note", note) for note in row.get("notes") or []),
    ]
    return [(name, text) for name, text in lines if text]


def _settings(config: Mapping[str, Any], reference: Mapping[str, Any]) -> Table:
    """Return the settings of one experiment, those that differ from the reference marked."""
    rows = []
    for name, value in sorted(config.items()):
        changed = name in reference and reference[name] != value
        note = Text(f"was {reference[name]}", "yellow") if changed else ""
        rows.append((name, str(value), note))
    return grid(rows, {}, {}, {}, expand=False)


# ── the results of a search ─────────────────────────────────────────────────────────────────


def results_page(results: Results, count: int, *, kept_only: bool = False) -> RenderableType:
    """Return the numbers of a search, its last `count` steps, and its `count` best experiments."""
    parts: list[RenderableType] = [facts(_numbers(results))]
    if len(results.keeps) > 1:
        steps = [
            (number(step.value, 6), cell_of(step.compared), number(step.total_gain, 6, signed=True),
             step.description)
            for step in results.keeps[-count:]
        ]  # fmt: skip
        body = TextTable(("value", DELTA, "gain in all", "description"), steps, right=range(3))
        last = f", the last {count} of {len(results.keeps)}" if len(results.keeps) > count else ""
        parts.append(titled(f"kept, each against its base{last}", body))
    if top := results.top(count, kept_only=kept_only):
        what = "kept" if kept_only else "experiment" if len(top) == 1 else "experiments"
        rows = [
            (number(trial.value, 6), cell_of(trial.compared), memory(trial.memory_gb),
             Text(plain_line(trial.status), STATUS_STYLE.get(trial.status, "")),
             plain_line(trial.commit)[:7], trial.description)
            for trial in top
        ]  # fmt: skip
        names = (results.metric, DELTA, "memory", "status", "commit", "description")
        parts.append(titled(f"the best {len(top)} {what}", TextTable(names, rows, right=range(3))))
    return Group(*parts)


def _numbers(results: Results) -> Iterator[tuple[str, Cell]]:
    metric = plain_line(results.metric)
    yield "search", Text(plain_line(f"{results.tag or 'a search'} in {results.source}"), "bold")
    yield "experiments", counts_text(results.outcomes)
    if (start := results.start) is not None:
        first = next(step for step in results.keeps if step.platform_key == start.platform_key)
        words = f"{metric} {number(start.value, 6)}"
        if first.experiment_id != start.experiment_id:
            words += f", where the reference was moved to; at first {number(first.value, 6)}"
        yield "start", words
    if results.best is not None:
        text = Text(f"{metric} {number(results.best.value, 6)}", "bold green")
        if results.gain and results.start is not None and results.start.value:
            part = 100 * results.gain / abs(results.start.value)
            text.append(f", better by {number(results.gain, 6)} ({part:.1f} %)", "default")
        yield "best", text.append(f"  {plain_line(results.best.description)}", "default")
    yield "keep rate", share(results.keep_rate)
    if results.crashes:
        kinds = (f"{count} {plain_line(kind)}" for kind, count in results.crashes.items())
        yield "crashes", ", ".join(kinds)
    yield "time", _time(results)


def _time(results: Results) -> str:
    if results.hours is None or results.device_hours is None:
        return "–"
    text = f"{duration(3600 * results.device_hours)} in experiments"
    text += f" over {duration(3600 * results.hours)}"
    return text if results.per_hour is None else f"{text}; {results.per_hour:,.1f} an hour"
