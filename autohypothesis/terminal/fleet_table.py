"""A fleet on a screen: its search, its processes, its queue, and what needs somebody.

Titles, notes and reasons were written by anyone: they are shown on one line, without control
characters, and never as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autohypothesis.fleet.overview.overview import (
    BestRun,
    Notice,
    Overview,
    RoleView,
    WaitingHypothesis,
    WorkerView,
)
from autohypothesis.terminal.style import number

BAR = 10
DEVICE = 10
"""Characters of a device: a UUID is told apart by its first few."""
AWAITING = 3
"""Wins that are named while they wait to be confirmed."""
_LINES = re.compile(r"(\d+) (insertion|deletion)")
STATE_STYLE = {
    "training": "green", "scoring": "green", "working": "green", "preparing": "blue",
    "starting": "blue", "reporting": "blue", "finished": "cyan", "benched": "magenta",
    "dead": "red", "failed": "red", "damaged": "red",
}  # fmt: skip
QUIET = ("stopped", "not started")


# ── words ───────────────────────────────────────────────────────────────────────────────────


def one_line(text: str) -> str:
    """`text` without breaks, escape sequences and other characters that do more than show."""
    if not text.isprintable():
        text = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(text.split())


def duration(seconds: float | None) -> str:
    """`12 s`, `4 min`, `2 h 05`, `3 d 4 h`; an en dash where it is unknown."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def amount(value: float) -> str:
    """`950`, `27.1k`, `1.03M`."""
    for limit, unit, digits in ((1e6, "M", 2), (1e3, "k", 1)):
        if value >= limit:
            return f"{value / limit:,.{digits}f}{unit}"
    return f"{value:.0f}"


def diff_size(diff_stat: str) -> str:
    """`+2 −1`, of what git says about a change."""
    found = _LINES.findall(diff_stat[:500])
    signs = {"insertion": "+", "deletion": "−"}
    return " ".join(f"{signs[kind]}{count}" for count, kind in found)


def better(gain: float | None, part: float | None) -> str:
    """`better by 0.0312 (2.1 %)`."""
    if gain is None:
        return ""
    word = "better" if gain > 0 else "worse" if gain < 0 else "no better"
    amount = f" by {abs(gain):.4f}" if gain else ""
    return f"{word}{amount}" + (f" ({100 * abs(part):.1f} %)" if part and gain else "")


# ── the search ──────────────────────────────────────────────────────────────────────────────


def heading(view: Overview) -> RenderableType:
    """Tag, reference, best, how many."""
    table = _facts()
    first = Text(view.tag or "no search yet", "bold")
    if view.tag:
        first.append(f"  reference {(view.reference or '–')[:7]}", "default")
    table.add_row("search", first)
    table.add_row("best", _best(view.best))
    if view.best is not None and view.best.title:
        table.add_row(
            "", Text(one_line(view.best.title), "italic", no_wrap=True, overflow="ellipsis")
        )
    table.add_row("tried", Text(_tried(view)))
    for one in view.awaiting[:AWAITING]:
        text = Text(f"{one_line(one.experiment_id)} {one.words}", "yellow")
        table.add_row("a win", text.append(f": {one_line(one.found)}", "default"))
    counts = (f"{count:,} {state}" for state, count in view.counts.items())
    table.add_row("queue", Text(", ".join(counts)))
    return table


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(ratio=1)
    return table


def _best(best: BestRun | None) -> Text:
    if best is None:
        return Text("nothing kept yet", "bright_black")
    text = Text(f"{one_line(best.metric)} {number(best.value, 6)}", "bold green")
    text.append(f"  {one_line(best.experiment_id)}", "default")
    if best.confirmation not in ("none", ""):
        text.append(f" ({one_line(best.confirmation)})", "default")
    if best.baseline is not None:
        said = better(best.improvement, best.improvement_share)
        text.append(f"\n{said} than the baseline's {number(best.baseline, 6)}"
                    if best.improvement else "\nthe baseline itself", "default")  # fmt: skip
    return text


def _tried(view: Overview) -> str:
    if view.experiments is None:
        return "nothing yet"
    kept = "" if view.keep_rate is None else f", {share(view.keep_rate)} of them kept"
    return f"{view.experiments:,} experiments, {view.decided or 0:,} decided{kept}"


# ── who is at work ──────────────────────────────────────────────────────────────────────────


def mark(state: str, alive: bool) -> Text:
    """Alive or not, also without colours."""
    if alive:
        return Text("●", STATE_STYLE.get(state, "default"))
    if state in QUIET or state == "finished":
        return Text("○", "bright_black")
    return Text("✗", STATE_STYLE.get(state, "red"))


def state_text(state: str) -> Text:
    style = "bright_black" if state in QUIET else STATE_STYLE.get(state, "default")
    return Text(one_line(state), style, no_wrap=True)


def roles_table(roles: Iterable[RoleView], *, apart: bool = False) -> Table:
    """Supervisor, observer and tool-builder, a line each; `apart`: no workers stand below."""
    table = _grid(0 if apart else BAR + 6)
    for role in roles:
        age = "" if role.age_s is None else f"{duration(role.age_s)} ago"
        said = Text(one_line(role.last_action), no_wrap=True, overflow="ellipsis")
        table.add_row(
            _named(role.role, role.state, role.alive), state_text(role.state), said,
            Text(age, "bright_black", no_wrap=True),
        )  # fmt: skip
    return table


def workers_table(workers: Sequence[WorkerView]) -> Table:
    """A line for each worker: what it does, and how far it is."""
    table = _grid(BAR + 6)
    for worker in workers:
        words = (worker.experiment_id or "", worker.title)
        doing = "" if worker.state in QUIET else " ".join(map(one_line, words)).strip()
        table.add_row(
            _named(worker.worker_id, worker.state, worker.alive),
            state_text(worker.state),
            Text(doing, no_wrap=True, overflow="ellipsis"),
            progress_bar(worker.progress) if worker.alive and worker.experiment_id else Text(""),
        )  # fmt: skip
    return table


def _grid(last: int) -> Table:
    """Columns as wide in one table as in the next, so that they stand under each other."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, min_width=14, max_width=24, overflow="ellipsis")
    table.add_column(no_wrap=True, min_width=11)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, justify="right", min_width=last)
    return table


def _named(name: str, state: str, alive: bool) -> Text:
    text = mark(state, alive)
    text.append(f" {one_line(name)}", "default")
    return text


def progress_bar(progress: float | None) -> Text:
    """`━━━━━━────  62 %`, told apart without colours as well."""
    if progress is None:
        return Text("")
    full = round(progress * BAR)
    text = Text("━" * full, "green", no_wrap=True)
    text.append("─" * (BAR - full), "bright_black")
    text.append(f" {100 * progress:3.0f} %", "default")
    return text


# ── the queue, and what needs somebody ──────────────────────────────────────────────────────


def waiting_table(waiting: Sequence[WaitingHypothesis]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for one in waiting:
        where = f"for {one.worker}" if one.worker else one.state
        table.add_row(Text(f"  {one.hypothesis_id}"), Text(where), Text(one_line(one.title)))
    return table


def needs_list(needs: Sequence[Notice]) -> RenderableType:
    """A paragraph for each, and below it the command to run."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="yellow", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for need in needs:
        text = Text(one_line(need.what))
        if need.run:
            text.append(f"\n→ {one_line(need.run)}", "cyan")
        table.add_row("!", text)
    return table


def needs_lines(needs: Sequence[Notice], most: int) -> RenderableType:
    """A line for each of the first."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for need in needs[:most]:
        text.append("! ", "yellow")
        text.append(f"{one_line(need.what)}\n", "default")
    left = len(needs) - most
    rest = f"and {left} more: " if left > 0 else "what to do: "
    text.append(f"{rest}python orchestrator.py status", "bright_black")
    return text


def titled(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(""), Text(title, "bold"), body)


def status_page(view: Overview) -> RenderableType:
    """Everything that `status` shows, for people."""
    parts: list[RenderableType] = [heading(view), Text("")]
    parts.append(roles_table(view.roles))
    if view.workers:
        parts.append(workers_table(view.workers))
    if view.waiting:
        parts.append(titled("next in the queue", waiting_table(view.waiting)))
    if view.needs:
        parts.append(titled("needs you", needs_list(view.needs)))
    parts.append(Text.assemble("\nnext: ", (view.next_command, "cyan")))
    return Group(*parts)
