"""Tables of experiments, for people. Machines get `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import NO_SANDBOX
from autohypothesis.terminal.style import STATUS_STYLE, number

RUN_AGAIN = ("confirmed", "refuted")
SPARKS = "▁▂▃▄▅▆▇█"


def runs_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """Experiments in the order given, one a line. On a narrow screen the description gives way."""
    metric = str(rows[0].get("metric_name", "val_bpb")) if rows else "val_bpb"
    names = ("id", "status", metric, "delta", "memory", "steps", "description")
    cells = [_cells(row) for row in rows]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column, name in enumerate(names):
        widest = max(len(line[column]) for line in [names, *cells])
        last = column == len(names) - 1
        table.add_column(
            escape(name),
            justify="left" if column < 2 or last else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=8 if last else widest,
        )
    for row, line in zip(rows, cells, strict=True):
        style = STATUS_STYLE.get(str(row.get("status")), "")
        table.add_row(*(Text(text, style if n == 1 else "") for n, text in enumerate(line)))
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    memory, steps = row.get("peak_vram_gb"), row.get("num_steps")
    return (
        str(row["id"]),
        shown_status(row),
        number(row.get("metric_value")),
        number(row.get("delta"), signed=True),
        "–" if memory is None else f"{memory:.1f} GB",
        "–" if steps is None else f"{steps:,}",
        " ".join(str(row.get("description") or "").split()),
    )


def shown_status(row: Mapping[str, Any]) -> str:
    """The decision, with the failure kind where a run failed: what a person looks for first.

    And with what became of a win that was run again, and whether a keep had no sandbox.
    """
    status = str(row.get("status") or row.get("execution_status") or "")
    if status == "crash" and row.get("failure_kind") in NOT_EVIDENCE:
        status = "lost"
    confirmation = row.get("confirmation")
    word = row.get("failure_kind") or (confirmation if confirmation in RUN_AGAIN else "")
    words = [word, "no sandbox" if status == "keep" and row.get("sandbox") in NO_SANDBOX else ""]
    said = ", ".join(filter(None, words))
    return f"{status} ({said})" if said else status


def settings_table(config: Mapping[str, Any], reference: Mapping[str, Any]) -> Table:
    """The hyper-parameters of one experiment, those that differ from the reference marked."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in sorted(config.items()):
        changed = name in reference and reference[name] != value
        note = f"[yellow]was {escape(str(reference[name]))}[/]" if changed else ""
        table.add_row(escape(name), escape(str(value)), note)
    return table


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve in one line of text: high values high. At most `width` columns."""
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    points = [sum(values[i : i + step]) / len(values[i : i + step])
              for i in range(0, len(values), step)]  # fmt: skip
    low, high = min(points), max(points)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((point - low) * scale)] for point in points)


def diff_text(diff: str) -> Text:
    """A unified diff, coloured as git does."""
    text = Text()
    for line in diff.splitlines(keepends=True):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line, style="bold" if line.startswith(("+++", "---")) else style)
    return text
