"""A fleet on a screen: its search, processes and queue, what needs the user, brief and digest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from autohypothesis.installation import suggested
from autohypothesis.plain import plain_line
from autohypothesis.records.comparison import DELTA, cell_of
from autohypothesis.terminal.experiments import near_misses_text
from autohypothesis.terminal.parts import (
    FIXED,
    GAP,
    SHORTENED,
    Cell,
    TextTable,
    better,
    counts_text,
    duration,
    facts,
    grid,
    listing,
    number,
    paragraphs,
    share,
    titled,
)

if TYPE_CHECKING:
    from autohypothesis.fleet.overview.best_run import BestRun
    from autohypothesis.fleet.overview.digest import Digest
    from autohypothesis.fleet.overview.overview import (
        Notice,
        Overview,
        RoleView,
        WaitingHypothesis,
        WorkerView,
    )
    from autohypothesis.fleet.queue.states import QueuePlace
    from autohypothesis.schema import Brief, Finding, Hypothesis

BAR = 10
AWAITING = 3
"""Wins that are named while they wait to be confirmed."""
STATE_STYLE = {
    "training": "green", "scoring": "green", "working": "green", "preparing": "blue",
    "starting": "blue", "reporting": "blue", "finished": "cyan", "benched": "magenta",
    "dead": "red", "failed": "red", "damaged": "red",
}  # fmt: skip
QUIET = ("stopped", "not started")
QUEUE_STYLE = {
    "running": "green", "dispatched": "blue", "pending": "", "done": "bright_black",
    "completed": "green", "abandoned": "magenta",
}  # fmt: skip
CONFIRMATION_STYLE = {"confirmed": "green", "provisional": "yellow", "refuted": "red"}


# ── the status ──────────────────────────────────────────────────────────────────────────────


def status_page(view: Overview) -> RenderableType:
    """Return everything that `status` shows."""
    parts: list[RenderableType] = [facts(_search(view)), Text(""), roles_table(view.roles)]
    if view.workers:
        parts.append(_workers_table(view.workers))
    if view.waiting:
        parts.append(titled("next in the queue", waiting_table(view.waiting)))
    if view.needs:
        parts.append(titled("needs you", _needs(view.needs)))
    parts.append(_next(view))
    return Group(*parts)


def _next(view: Overview) -> Text:
    return Text.assemble("\nnext: ", (view.next_command, "cyan"))


def _search(view: Overview) -> Iterator[tuple[str, Cell]]:
    """Yield tag, reference, best, and how many were tried."""
    first = Text(view.tag or "no search yet", "bold")
    if view.tag:
        first.append(f"  reference {(view.reference or '–')[:7]}", "default")
    yield "search", first
    yield "best", _best(view.best)
    if view.best is not None and view.best.title and view.best.improvement != 0:
        yield "", Text(plain_line(view.best.title), "italic", no_wrap=True, overflow="ellipsis")
    yield "experiments", _counted(view)
    for win in view.awaiting[:AWAITING]:
        text = Text(f"{plain_line(win.experiment_id)} {win.words}", "yellow")
        yield "a win", text.append(f": {plain_line(win.found)}", "default")
    if view.counts:
        yield "queue", queue_counts(view)


def queue_counts(view: Overview) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in view.counts.items()) or "empty"


def _best(best: BestRun | None) -> Text:
    if best is None:
        return Text("nothing kept yet", "bright_black")
    text = Text(f"{plain_line(best.metric)} {number(best.value, 6)}", "bold green")
    text.append(f"  {plain_line(best.experiment_id)}", "default")
    if best.confirmation not in ("none", ""):
        text.append(f" ({plain_line(best.confirmation)})", "default")
    if best.compared is not None:
        text.append(f", {best.compared.words}", "default")
    if gain := gain_words(best):
        text.append(f"\n{gain}", "default")
    return text


def gain_words(best: BestRun) -> str:
    """Return `better by 0.0312 (2.1 %) than the baseline's 1.5`, or `the baseline`; empty where its
    platform has none, as that of a run that was recorded by hand."""
    if best.baseline is None:
        return ""
    if not best.improvement:
        return "the baseline"
    gain = better(best.improvement, best.improvement_share)
    return f"{gain} than the baseline's {number(best.baseline, 6)}"


def _counted(view: Overview) -> Text:
    if not view.outcomes:
        return _none_counted(view)
    kept = "" if view.keep_rate is None else f"; keep rate {share(view.keep_rate)}"
    return counts_text(view.outcomes).append(kept)


def _none_counted(view: Overview) -> Text:
    runs = f"{view.uncounted:,} not counted yet: python orchestrator.py sync"
    return Text(suggested(runs) if view.uncounted else "nothing yet", "bright_black")


def named(name: str, state: str, alive: bool) -> Text:
    """Return a name behind a mark: alive or not, also without colours."""
    if alive:
        mark, style = "●", STATE_STYLE.get(state, "default")
    elif state in (*QUIET, "finished"):
        mark, style = "○", "bright_black"
    else:
        mark, style = "✗", STATE_STYLE.get(state, "red")
    return Text(mark, style).append(f" {plain_line(name)}", "default")


def state_text(state: str) -> Text:
    style = "bright_black" if state in QUIET else STATE_STYLE.get(state, "default")
    return Text(plain_line(state), style, no_wrap=True)


def roles_table(roles: Iterable[RoleView], *, apart: bool = False) -> ProcessTable:
    """Return supervisor, observer and tool-builder, a line each.

    Args:
        apart: no workers stand below, whose columns these have to meet.
    """
    rows = [
        (named(role.role, role.state, role.alive), state_text(role.state),
         plain_line(role.last_action),
         Text("" if role.age_s is None else f"{duration(role.age_s)} ago", "bright_black"))
        for role in roles
    ]  # fmt: skip
    return ProcessTable(rows, 0 if apart else BAR + 6)


def _workers_table(workers: Sequence[WorkerView]) -> ProcessTable:
    """Return a line for each worker: what it does, and how far it is."""
    rows = []
    for worker in workers:
        words = plain_line(f"{worker.experiment_id or ''} {worker.title}")
        rows.append(
            (named(worker.worker_id, worker.state, worker.alive), state_text(worker.state),
             "" if worker.state in QUIET else words,
             progress_bar(worker.progress) if worker.alive and worker.experiment_id else "")
        )  # fmt: skip
    return ProcessTable(rows, BAR + 6)


@dataclass
class ProcessTable:
    """Columns as wide in one table as in the next, so that they stand under each other.

    A screen that is too narrow for that cuts cells.
    """

    rows: Sequence[Sequence[Cell]]
    last: int
    """Characters of the last column."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        least = (14, 11, self.last)
        has_room = sum(least) + 3 * GAP < options.max_width
        name, state, last = least if has_room else (0, 0, 0)
        yield grid(
            self.rows,
            {**FIXED, "min_width": name, "max_width": 24, "overflow": "ellipsis"},
            {**FIXED, "min_width": state},
            SHORTENED,
            {**FIXED, "justify": "right", "min_width": last},
        )


def progress_bar(progress: float | None) -> Text:
    """Return `━━━━━━────  62 %`, told apart without colours as well."""
    if progress is None:
        return Text("")
    full = round(progress * BAR)
    text = Text("━" * full, "green", no_wrap=True)
    text.append("─" * (BAR - full), "bright_black")
    return text.append(f" {100 * progress:3.0f} %", "default")


def waiting_table(waiting: Sequence[WaitingHypothesis]) -> Table:
    return listing(
        (f"  {idea.hypothesis_id}", f"for {idea.worker}" if idea.worker else idea.state,
         plain_line(idea.title))
        for idea in waiting
    )  # fmt: skip


def _needs(needs: Sequence[Notice]) -> Table:
    """Return a paragraph for each, and below it the command to run."""
    texts = []
    for need in needs:
        text = Text(plain_line(need.what))
        texts.append(text.append(f"\n→ {plain_line(need.run)}", "cyan") if need.run else text)
    return paragraphs("!", texts, style="yellow")


def needs_lines(needs: Sequence[Notice], most: int) -> RenderableType:
    """Return a line for each of the first."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for need in needs[:most]:
        text.append("! ", "yellow").append(f"{plain_line(need.what)}\n", "default")
    left = len(needs) - most
    rest = f"and {left} more: " if left > 0 else "what to do: "
    return text.append(suggested(f"{rest}python orchestrator.py status"), "bright_black")


# ── the queue and the brief ─────────────────────────────────────────────────────────────────


def queue_table(placed: Sequence[tuple[QueuePlace, Hypothesis]]) -> TextTable:
    """Return hypotheses, one a line, with the outcome of those that are closed."""
    rows: list[list[Cell]] = []
    for place, hypothesis in placed:
        word = place.state if place.worker is not None else hypothesis.closed or place.state
        state = " ".join(filter(None, (word, place.worker)))
        title = Text(plain_line(hypothesis.title))
        if hypothesis.outcome:
            title.append(f"  {plain_line(hypothesis.outcome)}", "bright_black")
        priority = f"{hypothesis.priority:g}" if hypothesis.priority else ""
        rows.append(
            [hypothesis.hypothesis_id, Text(state, QUEUE_STYLE.get(word, "")), priority,
             hypothesis.proposer, title]
        )  # fmt: skip
    return TextTable(("id", "state", "priority", "from", "title"), rows, right=(2,))


def brief_page(brief: Brief) -> RenderableType:
    """Return what a proposer is told."""
    parts: list[RenderableType] = [Text(plain_line(brief.objective) or "no objective", "bold")]
    if (best := brief.best_result) is not None:
        text = f"best so far: {number(best.val_bpb, 6)}  {plain_line(best.description)}"
        parts.append(Text(f"{text} ({best.commit[:7]})", "green"))
    parts += _section("constraints", brief.constraints)
    parts += _section("notes", brief.notes)
    if brief.findings:
        parts.append(titled("findings", paragraphs("·", map(_finding, brief.findings))))
    parts += _section("open questions", brief.open_questions)
    if brief.current_config:
        pairs = (f"{name}={value}" for name, value in sorted(brief.current_config.items()))
        parts.append(titled("settings of the reference", Text(plain_line("  ".join(pairs)))))
    if brief.hypothesis_queue:
        entries = []
        for entry in brief.hypothesis_queue:
            title = Text(plain_line(entry.title))
            if entry.outcome:
                title.append(f"  {plain_line(entry.outcome)}", "bright_black")
            state = plain_line(f"{entry.status} {entry.assigned_worker or ''}")
            entries.append((plain_line(entry.hypothesis_id), state, title))
        parts.append(titled("hypotheses", listing(entries)))
    return Group(*parts)


def _section(title: str, lines: Iterable[str]) -> list[RenderableType]:
    body = paragraphs("·", map(plain_line, lines))
    return [titled(title, body)] if body.row_count else []


def _finding(finding: Finding) -> Text:
    text = Text(plain_line(finding.title))
    confidence = f"confidence {finding.confidence}" if finding.confidence != "" else ""
    for words in (finding.evidence, finding.mechanism, finding.implication, confidence):
        if words:
            text.append(f"\n{plain_line(words)}", "bright_black")
    return text


# ── the digest ──────────────────────────────────────────────────────────────────────────────


def digest_page(page: Digest) -> RenderableType:
    """Return what was kept, what failed, what the devices did, and where to look first."""
    parts: list[RenderableType] = [facts(_numbers(page))]
    if page.first:
        parts.append(titled("look at this first", _needs(page.first)))
    if page.kept:
        parts.append(titled("kept, in the order of the decisions", _kept(page)))
    if page.near_misses:
        parts.append(near_misses_text(page.near_misses))
    for title, failures in (("crash", page.crashes), ("lost, no fault of the change", page.lost)):
        names: tuple[str, ...] = ("kind", "times", "for example", "")
        rows = [
            (Text(plain_line(each.kind), "red"), f"{each.count:,}", each.example, each.detail)
            for each in failures
        ]
        if rows:
            parts.append(titled(title, TextTable(names, rows, right=(1,))))
    if page.workers:
        used = [
            (use.worker_id, f"{use.experiments:,}", f"{use.device_hours:,.2f}",
             share(use.idle_share), "")
            for use in page.workers
        ]  # fmt: skip
        names = ("worker", "runs", "device-hours", "idle", "")
        parts.append(titled("devices", TextTable(names, used, right=(1, 2, 3))))
    if page.proposers:
        # `direction` and `off by`: how often a prediction had the sign right, its mean error.
        records = [
            (each.proposer, f"{each.tried:,}", f"{each.kept:,}", share(each.hit_rate),
             f"{each.predictions:,}", share(each.right_direction), number(each.mean_error), "")
            for each in page.proposers
        ]  # fmt: skip
        names = ("proposer", "tried", "kept", "hits", "predicted", "direction", "off by", "")
        parts.append(
            titled("where the ideas came from", TextTable(names, records, right=range(1, 7)))
        )
    if not page.decided:
        parts.append(_next(page.overview))
    return Group(*parts)


def _numbers(page: Digest) -> Iterator[tuple[str, Cell]]:
    span = f"the last {duration((page.until - page.since).total_seconds())}" if page.since else ""
    yield "search", Text(page.tag or "none yet", "bold").append(f"  {span}", "default")
    yield "experiments", _decided(page)
    if page.confirmed or page.not_confirmed:
        yield "wins", _wins(page)
    best = page.overview.best
    if best is not None and page.tag == page.overview.tag:
        text = Text(f"{plain_line(best.metric)} {number(best.value, 6)}", "bold green")
        text.append(f"  {plain_line(best.experiment_id)}", "default")
        if gain := gain_words(best):
            text.append(f", {gain}", "default")
        yield "best", text
    idle = "" if page.idle_share is None else f", idle for {share(page.idle_share)} of their time"
    if page.device_hours:
        yield "devices", f"{page.device_hours:,.2f} device-hours{idle}"


def _decided(page: Digest) -> Text:
    if not page.decided:
        return _none_counted(page.overview)
    text = counts_text(page.decided)
    if page.experiments_per_hour is not None:
        rate = f"{page.experiments_per_hour:,.1f} an hour over {duration(page.hours * 3600)}"
        text.append(f"; {rate}")
    return text


def _wins(page: Digest) -> Text:
    """Return how many wins were confirmed when they were run again."""
    counts = [(len(page.confirmed), "confirmed", "confirmed")]
    if page.provisional:
        counts.append((len(page.provisional), "provisional", "provisional"))
    if page.not_confirmed:
        counts.append((len(page.not_confirmed), "not confirmed when run again", "refuted"))
    parts = [Text(f"{n:,} {words}", CONFIRMATION_STYLE[style]) for n, words, style in counts]
    return Text(", ").join(parts)


def _kept(page: Digest) -> TextTable:
    rows: list[list[Cell]] = []
    for step in page.kept:
        part = "" if step.gain_share is None else f"{100 * step.gain_share:+.1f} %"
        word = step.reason if step.confirmation in ("none", "") else step.confirmation
        shown = Text(plain_line(word), CONFIRMATION_STYLE.get(word, ""))
        value = number(step.value, 6)
        rows.append([step.experiment_id, value, cell_of(step.compared), part, shown, step.title])
    return TextTable(("id", "value", DELTA, "gain", "", "title"), rows, right=(1, 2, 3))
