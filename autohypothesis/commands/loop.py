"""`run-loop`: a search on one machine by one process, from the baseline on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from autohypothesis.commands.app import HERE, Mix, NewTag, Proposers, Repo, TaskFile, app
from autohypothesis.commands.common import (
    end_of,
    open_project,
    remark,
    role,
    tell_limits,
    telling_what_runs_lack,
)

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.fleet.proposing import Proposer
    from autohypothesis.fleet.single_loop import SingleLoop
    from autohypothesis.fleet.supervisor.supervisor import Outcome
    from autohypothesis.schema import Decision


@app.command("run-loop")
def run_loop(
    most: Annotated[
        int,
        Option(
            "--max",
            metavar="N",
            min=0,
            help="Experiments, the baseline included where it has to run; 0: until stopped.",
        ),
    ] = 20,
    description: Annotated[
        str, Option("--desc", metavar="TEXT", help="In front of each description.")
    ] = "",
    hours: Annotated[float | None, Option(min=0.001, help="Begin nothing after that time.")] = None,
    proposer: Proposers = None,
    mix: Mix = None,
    task: TaskFile = None,
    tag: NewTag = None,
    repo: Repo = HERE,
) -> None:
    """Search on this machine: the baseline first, then one change after the other, each decided.

    It works in a checkout of its own, and moves the branch `autoresearch/TAG` where nobody stands
    on it: your checkout, your index and your branch stay as they are. Killed, it goes on where it
    was when the same command is called again, until its N experiments are decided; then the next
    call runs N more. It ends by itself when no proposer has an idea left, unless `inbox` is one of
    them.

    Ctrl-C ends the training, records it and queues its idea again; twice waits for nothing. Exits
    with 0, or with 1 when the baseline failed. Example: `orchestrator.py run-loop --max 6`
    """
    from autohypothesis.commands.progress import shown
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.fleet.single_loop import exclusive_search

    with role("loop") as stop:
        project = open_project(repo, task=task, tag=tag)
        _proposers(project, proposer, mix)  # a wrong word is refused before anything is begun
        begun = whole_or_nothing(project.repository, project.layout)
        with begun, exclusive_search(project, tag) as (project, notes):
            for note in notes:
                remark(f"note: {note}")
            loop = _loop(project, _proposers(project, proposer, mix), most, description, hours)
            with telling_what_runs_lack(project), shown(project.layout, stop) as tick:
                loop.tick = tick
                outcome = loop.run(stop)
            _finish(project, stop)
            _summarize(loop, outcome)
            loop.close(outcome)
    if outcome == "failed":
        raise typer.Exit(1)


def _proposers(project: Project, words: list[str] | None, mix: float | None) -> list[Proposer]:
    from autohypothesis.fleet.live.presence import read_manifest
    from autohypothesis.proposers.configured import of_search

    manifest = read_manifest(project.layout)
    known = manifest if manifest is not None and manifest.tag == project.tag else None
    return of_search(known, words, mix=mix, root=project.layout.root)


def _loop(
    project: Project, proposers: list[Proposer], most: int, description: str, hours: float | None
) -> SingleLoop:
    from autohypothesis.fleet.single_loop import SingleLoop, open_session
    from autohypothesis.records.history import LiveHistory

    history = LiveHistory(project.layout, project.active())
    history.refresh()
    session, goes_on = open_session(project.layout, history, name=description, most=most or None)
    if goes_on:
        begun = f"{session.begun:%Y-%m-%d %H:%M} UTC"
        remark(f"goes on with the session begun at {begun}: {session.progress_text(history)}")
    else:
        total = (
            f"{most} experiment{'s' * (most != 1)}" if most else "experiments until it is stopped"
        )
        remark(f"begins {total} of {session.tag} in {project.layout.root}")
        tell_limits(project)
    return SingleLoop(
        project,
        proposers,
        session,
        until=end_of(project, hours),
        waits=any(proposer.name == "inbox" for proposer in proposers),
    )


def _finish(project: Project, stop: Stop) -> None:
    """Write ledger, tables, picture and snapshot at the end.

    After a Ctrl-C without what takes seconds to make; the next `sync` makes it.
    """
    from autohypothesis.commands.sync import keep, refresh
    from autohypothesis.errors import AutohypothesisError
    from autohypothesis.fleet.sync import sync as fold_and_write

    if stop.abandoned:
        return
    try:
        if stop.requested:
            fold_and_write(project.layout, light=True)
        else:
            refresh(project.layout, everything=True)
        if not stop.hard:
            keep(project.repository, project.layout, everything=not stop.requested)
        if not stop.requested:
            project.repository.pack_when_due()
    except (AutohypothesisError, OSError) as error:
        remark(
            f"{error}; all is recorded, and `python orchestrator.py sync --all` makes the tables"
        )


def _summarize(loop: SingleLoop, outcome: Outcome) -> None:
    """Say what came of it, and what to do next."""
    from autohypothesis.fleet.overview.overview import overview
    from autohypothesis.plain import plain_line
    from autohypothesis.records.history import LiveHistory
    from autohypothesis.terminal.fleet import gain_words
    from autohypothesis.terminal.parts import number

    layout, session = loop.project.layout, loop.session
    history = LiveHistory(layout, session.tag)
    history.refresh()
    counts = Counter(map(_word, session.decisions(history)))
    words = ", ".join(f"{count} {word}" for word, count in counts.items()) or "none decided"
    summary = f"{session.progress_text(history)}: {words}"
    if outcome == "failed":
        remark(loop.ended, style="red")
        remark(summary)
    else:
        remark(f"{outcome}: {summary}; {loop.ended}")
    best = overview(layout).best
    if best is not None:
        words = f"{plain_line(best.metric)} {number(best.value, 6)}"
        remark(f"best: {', '.join(filter(None, (words, gain_words(best))))}")
    remark(f"results: {layout.results_tsv}")
    has_gained = history.has_gained(loop.project.reference(), loop.project.repository.is_ancestor)
    run = "python orchestrator.py"
    if outcome == "failed":
        remark(f"next: {run} runs")
    elif outcome == "stopped":
        remark(f"next: the same command again goes on; {run} digest says what was found")
    else:
        remark(
            f"next: {run} best --diff, then {run} adopt" if has_gained else f"next: {run} digest"
        )


def _word(decision: Decision) -> str:
    """Return the outcome in a word; a kept baseline is no find."""
    from autohypothesis.records.outcomes import shown_as

    is_baseline = decision.decision_status == "keep" and not decision.base_commit
    return "baseline" if is_baseline else shown_as(decision.decision_status, decision.reason)
