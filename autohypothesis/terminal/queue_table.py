"""The queue as a table, and the brief as a page. Both hold other people's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autohypothesis.fleet.queue.states import Place
from autohypothesis.schema import Brief, Finding, Hypothesis
from autohypothesis.terminal.fleet_table import one_line, titled
from autohypothesis.terminal.style import number

STATE_STYLE = {"running": "green", "dispatched": "blue", "pending": "", "done": "bright_black"}
CLOSED_STYLE = {"completed": "green", "abandoned": "magenta"}


def queue_table(found: Sequence[tuple[Place, Hypothesis]]) -> Table:
    """One a line; what ended says how."""
    table = Table(box=None, pad_edge=False, header_style="bright_black", expand=True)
    for name in ("id", "state", "priority", "from"):
        table.add_column(name, no_wrap=True, justify="right" if name == "priority" else "left")
    table.add_column("title", no_wrap=True, overflow="ellipsis", ratio=1)
    for place, one in found:
        state = Text(place.state, STATE_STYLE.get(place.state, ""))
        if place.worker is not None:
            state = Text(f"{place.state} {place.worker}", STATE_STYLE.get(place.state, ""))
        elif one.closed is not None:
            state = Text(one.closed, CLOSED_STYLE.get(one.closed, ""))
        title = Text(one_line(one.title))
        if one.outcome:
            title.append(f"  {one_line(one.outcome)}", "bright_black")
        priority = f"{one.priority:g}" if one.priority else ""
        table.add_row(one.hypothesis_id, state, priority, Text(one_line(one.proposer)), title)
    return table


def print_brief(console: Console, brief: Brief) -> None:
    """What a proposer is told, on one page."""
    parts: list[RenderableType] = [Text(one_line(brief.objective) or "no objective", "bold")]
    best = brief.best_result
    if best is not None:
        said = f"best so far: {number(best.val_bpb, 6)}  {one_line(best.description)}"
        parts.append(Text(f"{said} ({best.commit[:7]})", "green"))
    parts += _section("constraints", brief.constraints)
    parts += _section("notes", brief.notes)
    if brief.findings:
        parts.append(titled("findings", Group(*map(_finding, brief.findings))))
    parts += _section("open questions", brief.open_questions)
    parts += _settings(brief)
    if brief.hypothesis_queue:
        parts.append(titled("hypotheses", _entries(brief)))
    console.print(Group(*parts))


def _section(title: str, lines: Iterable[str]) -> list[RenderableType]:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for line in lines:
        table.add_row("·", Text(one_line(line)))
    return [titled(title, table)] if table.row_count else []


def _finding(finding: Finding) -> RenderableType:
    text = Text(one_line(finding.title))
    for words in (finding.evidence, finding.mechanism, finding.implication):
        if words:
            text.append(f"\n{one_line(words)}", "bright_black")
    if finding.confidence != "":
        text.append(f"\nconfidence {one_line(str(finding.confidence))}", "bright_black")
    return Padding(text, (0, 0, 0, 2))


def _settings(brief: Brief) -> list[RenderableType]:
    if not brief.current_config:
        return []
    pairs = (f"{name}={value}" for name, value in sorted(brief.current_config.items()))
    return [titled("settings of the reference", Text(one_line("  ".join(pairs))))]


def _entries(brief: Brief) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for entry in brief.hypothesis_queue:
        state = " ".join(word for word in (entry.status, entry.assigned_worker) if word)
        title = Text(one_line(entry.title))
        if entry.outcome:
            title.append(f"  {one_line(entry.outcome)}", "bright_black")
        table.add_row(Text(one_line(entry.hypothesis_id)), Text(one_line(state)), title)
    return table
