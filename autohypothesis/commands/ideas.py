"""`propose`, `dispatch`, `withdraw`, `abandon`, `hypotheses`, `briefing`: the queue."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from autohypothesis.commands.app import HERE, Json, Repo, Settings, Tag, app, completion
from autohypothesis.commands.common import (
    layout_of,
    open_project,
    out,
    print_json,
    remark,
    say,
)
from autohypothesis.errors import ChangeError, RecordError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.queue.states import Queue, QueuePlace
    from autohypothesis.records.layout import Layout
    from autohypothesis.schema import Hypothesis


class State(str, Enum):
    """The states of a hypothesis."""

    pending = "pending"
    dispatched = "dispatched"
    running = "running"
    done = "done"


def _workers(layout: Layout) -> list[str]:
    """Return ids of the manifest's workers; none where it cannot be read."""
    from autohypothesis.records.files import load_or_none
    from autohypothesis.schema import Manifest

    manifest = load_or_none(Manifest, layout.manifest)
    return [worker.worker_id for worker in manifest.workers] if manifest else []


complete_worker = completion(_workers)
complete_hypothesis = completion(
    lambda layout: (path.stem for path in layout.hypotheses("pending").glob("*.json"))
)
Waiting = Annotated[str, Argument(help="One that waits.", autocompletion=complete_hypothesis)]


@app.command("propose")
def propose(
    title: Annotated[str, Option(help="The idea, in a few words.")] = "",
    rationale: Annotated[str, Option(help="Why it may help.")] = "",
    set_: Settings = None,
    patch: Annotated[Path | None, Option(help="A unified diff against the reference.")] = None,
    diff: Annotated[bool, Option("--diff", help="What is changed in your working tree.")] = False,
    instructions: Annotated[str | None, Option(help="In words, for someone to implement.")] = None,
    priority: Annotated[float, Option(help="Higher ones come first.")] = 0.0,
    worker: Annotated[
        str | None, Option(help="Give it to that worker.", autocompletion=complete_worker)
    ] = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Put an idea into the queue: one change, checked against the reference, not tried before.

    Prints its id. Examples: `orchestrator.py propose --set MATRIX_LR=0.03 --rationale "..."`,
    `orchestrator.py propose --diff --title "squared ReLU"`
    """
    from pydantic import ValidationError

    from autohypothesis.engine.project import Project
    from autohypothesis.errors import faults_in
    from autohypothesis.fleet.observer.proposals import check_worker, propose_checked
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.schema import Proposal

    project = Project.of_search(repo)
    queue = Queue(project.layout, project.active())
    if worker is not None:
        check_worker(project, _workers(project.layout), worker)
    options = {"--set": set_, "--patch": patch, "--diff": diff, "--instructions": instructions}
    change = _change(project, project.repository.checkout_at(repo), options)
    words = {"title": title or _title(change), "rationale": rationale, "priority": priority}
    try:
        proposal = Proposal.model_validate({**words, **change})
    except ValidationError as error:
        raise UsageError(
            f"not a hypothesis: {faults_in(error)}", hint="run `python orchestrator.py propose -h`"
        ) from None
    identity = propose_checked(project, queue, proposal)
    if worker is not None:
        queue.dispatch(identity, worker)
    if as_json:
        placed = queue.read(identity)
        print_json(_document(*placed) if placed else {"hypothesis_id": identity})
        return
    say(identity)
    where = f"given to {worker}" if worker else "waits in the queue"
    remark(f"{where}; watch it: python orchestrator.py hypotheses")
    if proposal.instructions and project.task.mutator.command is None:
        remark("these are words: turn them into a change, and propose that", style="yellow")


def _change(project: Project, checkout: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one kind of change that was given, as a field of a proposal."""
    from autohypothesis.commands.run import read_patch, settings_of

    given = [name for name, value in options.items() if value]
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given)} were given together" if given else "no change was given",
            hint="a hypothesis is one change: --set, --patch, --diff or --instructions",
        )
    if options["--set"]:
        return {"config_overrides": settings_of(options["--set"])}
    if path := options["--patch"]:
        return {"patch": _as_text(read_patch(path), str(path))}
    if options["--diff"]:
        patch = _working_tree(project, checkout)
        return {"patch": _as_text(patch, "the change in the working tree")}
    return {"instructions": options["--instructions"]}


def _working_tree(project: Project, checkout: Path) -> str:
    """Return the difference of `checkout` to the reference, as a patch."""
    from autohypothesis.engine.candidate import working_tree

    reference = project.reference()
    change = working_tree(project.repository, project.task, reference, checkout)
    if change.tree is None:
        raise ChangeError(
            f"{checkout} is equal to the reference {reference[:7]}",
            hint=f"change one of {project.task.artifact_words} first",
        )
    return project.repository.diff(reference, change.tree)


def _as_text(patch: str, source: str) -> str:
    """Return a patch that a hypothesis can hold: UTF-8, and not empty."""
    try:
        patch.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ChangeError(
            f"{source} holds bytes that are not UTF-8, at character {error.start}",
            hint="run it at once instead: python orchestrator.py run-experiment",
        ) from None
    if not patch.strip():
        raise ChangeError(f"{source} is empty", hint="make one with `git diff > FILE`")
    return patch


def _title(change: dict[str, Any]) -> str:
    """Return a title for a change that was given none."""
    if "config_overrides" in change:
        pairs = (f"{name} = {value}" for name, value in change["config_overrides"].items())
        return ", ".join(pairs)[:200]
    if "instructions" in change:
        return str(change["instructions"]).strip().partition("\n")[0][:100]
    raise UsageError("a patch says nothing about itself", hint="say what it tries: --title TEXT")


@app.command("dispatch")
def dispatch(
    hypothesis_id: Waiting,
    worker: Annotated[str, Argument(help="Of the manifest.", autocompletion=complete_worker)],
    repo: Repo = HERE,
) -> None:
    """Give a waiting hypothesis to a worker, before the observer does.

    Example: `orchestrator.py dispatch h-nov20-0007 gpu0`
    """
    from autohypothesis.fleet.observer.proposals import check_worker
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.layout import checked_id

    project = open_project(repo)
    check_worker(project, _workers(project.layout), worker)
    Queue(project.layout, project.active()).dispatch(checked_id(hypothesis_id), worker)
    say(f"{hypothesis_id} waits for {worker} now")


@app.command("withdraw")
def withdraw(
    hypothesis_id: Annotated[str, Argument(help="One that was given to a worker.")],
    repo: Repo = HERE,
) -> None:
    """Take a hypothesis back from the worker that it waits for: it is pending again.

    Example: `orchestrator.py withdraw h-nov20-0007`
    """
    from autohypothesis.records.layout import checked_id

    _queue(layout_of(repo)).withdraw(checked_id(hypothesis_id))
    say(f"{hypothesis_id} is pending now")


@app.command("abandon")
def abandon(
    hypothesis_id: Waiting,
    reason: Annotated[str, Option(help="Why; proposers are told.")] = "",
    repo: Repo = HERE,
) -> None:
    """Close a hypothesis that waits, without a run.

    Example: `orchestrator.py abandon h-nov20-0007 --reason "needs a tokenizer we do not have"`
    """
    from autohypothesis.plain import table_text
    from autohypothesis.records.layout import checked_id

    outcome = table_text(reason) or "abandoned by hand"
    _queue(layout_of(repo)).abandon(checked_id(hypothesis_id), outcome)
    say(f"{hypothesis_id} is abandoned")


@app.command("hypotheses")
def hypotheses(
    state: Annotated[State | None, Option(help="Default: all that are not done.")] = None,
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """List the queue: what runs, what is given to a worker, what waits, or what is done.

    Example: `orchestrator.py hypotheses --state done`
    """
    queue = _queue(layout_of(repo), tag)
    placed = _placed(queue, state.value if state is not None else None)
    if as_json:
        print_json([_document(*each) for each in placed])
    elif placed:
        from autohypothesis.terminal.fleet import queue_table

        out().print(queue_table(placed))
    else:
        remark(f"no hypothesis of {queue.tag} is {'open' if state is None else state.value}")
    if state is None and not as_json and (done := queue.counts()["done"]):
        remark(f"{done:,} are done: python orchestrator.py hypotheses --state done")
    for problem in queue.problems:
        remark(f"damaged: {problem.path}: {problem.reason}", style="yellow")


def _placed(queue: Queue, state: str | None) -> list[tuple[QueuePlace, Hypothesis]]:
    """Return hypotheses with their places: those nearest to a device first, then the best."""
    from autohypothesis.fleet.queue.states import DONE, best_first

    if state == "done":
        return [(DONE, hypothesis) for hypothesis in queue.done()]
    order = ("running", "dispatched", "pending")
    placed = [each for each in queue.placed() if state in (None, each[0].state)]
    return sorted(
        placed,
        key=lambda each: (order.index(each[0].state), each[0].worker or "", best_first(each[1])),
    )


def _document(place: QueuePlace, hypothesis: Hypothesis) -> dict[str, Any]:
    return {"state": place.state, "worker": place.worker, **hypothesis.model_dump(mode="json")}


def _queue(layout: Layout, tag: str | None = None) -> Queue:
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.ledger import latest_tag

    active = tag or latest_tag(layout)
    if not active:
        raise UsageError(
            f"no search was started in {layout.root} yet",
            hint="start one: python orchestrator.py init-fleet",
        )
    return Queue(layout, active)


@app.command("briefing")
def briefing(
    count: Annotated[
        int | None,
        Option("--question", metavar="N", min=1, help="The whole question, for N hypotheses."),
    ] = None,
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """The brief: what a proposer is told, as a page or as the document itself.

    Until the observer has written it, and for another search, it is made for this look alone.
    `--question` prints what `--proposer command:PROGRAM` gets on its standard input, to try one by
    hand. Example: `orchestrator.py briefing --question 2 | my-proposer`
    """
    from pydantic import ValidationError

    from autohypothesis.errors import faults_in
    from autohypothesis.records.files import read_json
    from autohypothesis.records.ledger import active_tag
    from autohypothesis.schema import Brief

    if count is not None:
        from autohypothesis.engine.project import Project

        _print_question(Project.of_search(repo, tag=tag), count)
        return
    layout = layout_of(repo)
    try:
        is_active = tag in (None, active_tag(layout))
        document = read_json(layout.brief) if is_active else _brief_now(repo, tag)
    except FileNotFoundError:
        document = _brief_now(repo, tag)
    if as_json:
        print_json(document)
        return
    try:
        brief = Brief.model_validate(document)
    except ValidationError as error:
        raise RecordError(
            f"{layout.brief} is no brief: {faults_in(error)}",
            hint="see it as it is: python orchestrator.py briefing --json",
        ) from None
    from autohypothesis.terminal.fleet import brief_page

    out().print(brief_page(brief))


def _brief_now(repo: Path, tag: str | None) -> dict[str, Any]:
    """Return the brief of a search as the observer would write it now."""
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.observer.introduction import brief_now

    project = Project.of_search(repo, tag=tag)
    return brief_now(project, _queue(project.layout, project.tag)).model_dump(mode="json")


def _print_question(project: Project, count: int) -> None:
    from autohypothesis.fleet.observer.introduction import situation_now
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.proposers.command import document_of

    queue = Queue(project.layout, project.active())
    print_json(document_of(situation_now(project, queue), count))
