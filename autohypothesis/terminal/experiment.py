"""One experiment on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from autohypothesis.terminal.style import number
from autohypothesis.terminal.tables import diff_text, settings_table, shown_status, sparkline


def print_experiment(console: Console, page: Mapping[str, Any]) -> None:
    """Print what `show` gathered: note, settings, diff, curve, tail of the log."""
    row = page["row"]
    console.print(f"[bold]{escape(row['id'])}[/]  {escape(shown_status(row))}")
    if row.get("description"):
        console.print(escape(row["description"]), style="italic")
    for name, text in _facts(row):
        console.print(f"  {escape(f'{name:<12}')} {escape(text)}", soft_wrap=True)
    _print_section(console, "settings", bool(page["config"]))
    if page["config"]:
        console.print(settings_table(page["config"], page["reference_config"]))
    _print_section(console, "change", bool(page["diff"]))
    if page["diff"]:
        console.print(diff_text(page["diff"]), soft_wrap=True)
    _print_curve(console, page["samples"])
    _print_section(console, f"log ({page['paths']['log']})", bool(page["log_tail"]))
    for line in page["log_tail"]:
        console.print(escape(line), style="dim", soft_wrap=True)


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    delta = number(row.get("delta"), 6, signed=True)
    attested = "attested" if row.get("attested") else "not attested"
    facts = [
        (row["metric_name"], f"{number(row.get('metric_value'), 6)} ({attested})"),
        ("delta", f"{delta} against the best kept before it"),
        ("outcome", str(row.get("outcome") or "")),
        ("rationale", str(row.get("rationale") or "")),
        ("commit", str(row.get("commit") or "")[:12]),
        ("device", f"{row.get('gpu_name') or '–'}, profile {row.get('profile') or '–'}"),
        ("seed", str(row.get("seed") if row.get("seed") is not None else "–")),
        *(("note", note) for note in row.get("notes") or []),
    ]
    return [(name, text) for name, text in facts if text]


def _print_section(console: Console, title: str, there: bool) -> None:
    if there:
        console.print(f"\n[bold]{escape(title)}[/]")


def _print_curve(console: Console, samples: list[list[float | None]]) -> None:
    losses = [sample[1] for sample in samples if len(sample) > 1 and sample[1] is not None]
    if len(losses) > 1:
        console.print("\n[bold]training loss[/] over the share of the budget")
        console.print(f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
