"""`propose`, `dispatch`, `withdraw`, `abandon`, `hypotheses`, `briefing`: the queue."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import (
    layout_of,
    open_project,
    out,
    print_json,
    remark,
    repository_path,
    say,
)
from autohypothesis.errors import ChangeError, RecordError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.queue.states import Queue, QueuePlace
    from autohypothesis.records.layout import Layout
    from autohypothesis.schema import Hypothesis, Proposal


class State(str, Enum):
    """The states of a hypothesis."""

    pending = "pending"
    dispatched = "dispatched"
    running = "running"
    done = "done"


def complete_hypothesis(incomplete: str) -> list[str]:
    """Ids that wait for a worker, for the shell."""
    from autohypothesis.records.layout import Layout

    folder = Layout(Path.cwd()).hypotheses("pending")
    names = (path.stem for path in folder.glob("*.json")) if folder.is_dir() else ()
    return sorted(name for name in names if name.startswith(incomplete))


def complete_worker(incomplete: str) -> list[str]:
    """Workers of the manifest below the current directory, for the shell."""
    from autohypothesis.records.layout import Layout

    return [name for name in _workers(Layout(Path.cwd())) if name.startswith(incomplete)]


WorkerOption = Annotated[
    str | None,
    typer.Option("--worker", help="Give it to that worker.", autocompletion=complete_worker),
]


def register(app: typer.Typer) -> None:
    app.command("propose")(propose)
    app.command("dispatch")(dispatch)
    app.command("withdraw")(withdraw)
    app.command("abandon")(abandon)
    app.command("hypotheses")(hypotheses)
    app.command("briefing")(briefing)


def propose(
    context: typer.Context,
    title: Annotated[str, typer.Option("--title", help="The idea, in a few words.")] = "",
    rationale: Annotated[str, typer.Option("--rationale", help="Why it may help.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a constant of the reference; repeatable."
        ),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="A unified diff against the reference.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="What is changed in your working tree.")
    ] = False,
    instructions: Annotated[
        str | None, typer.Option("--instructions", help="In words, for someone to implement.")
    ] = None,
    priority: Annotated[float, typer.Option("--priority", help="Higher ones come first.")] = 0.0,
    worker: WorkerOption = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Put an idea into the queue: one change, checked against the reference, not tried before.

    Prints its id. Examples: `orchestrator.py propose --set MATRIX_LR=0.03 --rationale "..."`,
    `orchestrator.py propose --diff --title "squared ReLU"`
    """
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.observer.proposals import check_worker, suggest
    from autohypothesis.fleet.queue.states import Queue

    project = Project.of_search(repository_path(context, repo))
    queue = Queue(project.layout, project.active())
    if worker is not None:
        check_worker(project, _workers(project.layout), worker)
    checkout = project.repository.checkout_at(repository_path(context, repo))
    change = _change(project, checkout, set_ or [], patch, diff, instructions)
    proposal = _proposal(title or _title(change), rationale, priority, change)
    identity = suggest(project, queue, proposal)
    if worker is not None:
        queue.dispatch(identity, worker)
    if as_json:
        print_json(_document(queue, identity))
        return
    say(identity)
    _remark(project, proposal, worker)


def _change(
    project: Project,
    checkout: Path,
    overrides: list[str],
    patch: Path | None,
    diff: bool,
    instructions: str | None,
) -> dict[str, Any]:
    """Return the one kind of change that was given, as a field of a proposal."""
    from autohypothesis.commands.run import _read_patch, _setting

    given = {"--set": overrides, "--patch": patch, "--diff": diff, "--instructions": instructions}
    asked = [name for name, value in given.items() if value]
    if len(asked) != 1:
        raise UsageError(
            f"{' and '.join(asked)} were given together" if asked else "no change was given",
            hint="a hypothesis is one change: --set, --patch, --diff or --instructions",
        )
    if overrides:
        return {"config_overrides": dict(_setting(word) for word in overrides)}
    if patch is not None:
        return {"patch": _as_text(_read_patch(patch), str(patch))}
    if diff:
        return {
            "patch": _as_text(_working_tree(project, checkout), "the change in the working tree")
        }
    return {"instructions": instructions}


def _working_tree(project: Project, checkout: Path) -> str:
    """Return the difference of `checkout` to the reference, as a patch."""
    from autohypothesis.engine.change import working_tree

    reference = project.reference()
    change = working_tree(project.repository, project.task, reference, checkout)
    if change.tree is None:
        raise ChangeError(
            f"{checkout} is equal to the reference {reference[:7]}",
            hint=f"change one of {', '.join(project.task.artifacts)} first",
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


def _proposal(title: str, rationale: str, priority: float, change: dict[str, Any]) -> Proposal:
    from pydantic import ValidationError

    from autohypothesis.errors import faults_in
    from autohypothesis.schema import Proposal

    try:
        return Proposal(title=title, rationale=rationale, priority=priority, **change)
    except ValidationError as error:
        raise UsageError(
            f"not a hypothesis: {faults_in(error)}", hint="run `python orchestrator.py propose -h`"
        ) from None


def _remark(project: Project, proposal: Proposal, worker: str | None) -> None:
    """Tell on stderr what to do next: stdout has the id, for a pipe."""
    where = f"given to {worker}" if worker else "waits in the queue"
    remark(f"{where}; watch it: python orchestrator.py hypotheses")
    if proposal.instructions and project.task.mutator.command is None:
        said = "these are words: turn them into a change, and propose that"
        remark(said, style="yellow")


def dispatch(
    context: typer.Context,
    hypothesis_id: Annotated[
        str, typer.Argument(help="One that waits.", autocompletion=complete_hypothesis)
    ],
    worker: Annotated[str, typer.Argument(help="Of the manifest.", autocompletion=complete_worker)],
    repo: Repo = None,
) -> None:
    """Give a waiting hypothesis to a worker, before the observer does.

    Example: `orchestrator.py dispatch h-nov20-0007 gpu0`
    """
    from autohypothesis.fleet.observer.proposals import check_worker
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.layout import checked_id

    project = open_project(context, repo)
    check_worker(project, _workers(project.layout), worker)
    Queue(project.layout, project.active()).dispatch(checked_id(hypothesis_id), worker)
    say(f"{hypothesis_id} waits for {worker} now")


def withdraw(
    context: typer.Context,
    hypothesis_id: Annotated[str, typer.Argument(help="One that was given to a worker.")],
    repo: Repo = None,
) -> None:
    """Take a hypothesis back from the worker that it waits for: it is pending again.

    Example: `orchestrator.py withdraw h-nov20-0007`
    """
    from autohypothesis.records.layout import checked_id

    _queue(layout_of(context, repo), None).withdraw(checked_id(hypothesis_id))
    say(f"{hypothesis_id} is pending now")


def abandon(
    context: typer.Context,
    hypothesis_id: Annotated[
        str, typer.Argument(help="One that waits.", autocompletion=complete_hypothesis)
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; proposers are told.")] = "",
    repo: Repo = None,
) -> None:
    """Close a hypothesis that waits, without a run.

    Example: `orchestrator.py abandon h-nov20-0007 --reason "needs a tokenizer we do not have"`
    """
    from autohypothesis.plain import table_text
    from autohypothesis.records.layout import checked_id

    queue = _queue(layout_of(context, repo), None)
    queue.abandon(checked_id(hypothesis_id), table_text(reason) or "abandoned by hand")
    say(f"{hypothesis_id} is abandoned")


def hypotheses(
    context: typer.Context,
    state: Annotated[
        State | None, typer.Option("--state", help="Default: all that are not done.")
    ] = None,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """List the queue: what runs, what is given to a worker, what waits, or what is done.

    Example: `orchestrator.py hypotheses --state done`
    """
    layout = layout_of(context, repo)
    queue = _queue(layout, tag)
    found = list(_found(queue, state.value if state is not None else None))
    if as_json:
        print_json([_with_place(place, one) for place, one in found])
    else:
        _print_queue(queue, found, state)
    for problem in queue.problems:
        remark(f"damaged: {problem.path}: {problem.reason}", style="yellow")


def _print_queue(
    queue: Queue, found: list[tuple[QueuePlace, Hypothesis]], state: State | None
) -> None:
    from autohypothesis.terminal.fleet import queue_table

    if found:
        out().print(queue_table(found))
    else:
        which = "open" if state is None else state.value
        remark(f"no hypothesis of {queue.tag} is {which}")
    done = queue.counts()["done"]
    if state is None and done:
        remark(f"{done:,} are done: python orchestrator.py hypotheses --state done")


def _found(queue: Queue, state: str | None) -> Iterator[tuple[QueuePlace, Hypothesis]]:
    """Yield hypotheses, those nearest to a device first."""
    from autohypothesis.fleet.queue.states import QueuePlace

    if state in (None, "running"):
        for worker, several in queue.running().items():
            yield from ((QueuePlace("running", worker), one) for one in several)
    if state in (None, "dispatched"):
        for worker, several in queue.dispatched().items():
            yield from ((QueuePlace("dispatched", worker), one) for one in several)
    if state in (None, "pending"):
        yield from ((QueuePlace("pending"), one) for one in queue.pending())
    if state == "done":
        yield from ((QueuePlace("done"), one) for one in queue.done())


def _with_place(place: QueuePlace, one: Hypothesis) -> dict[str, Any]:
    return {"state": place.state, "worker": place.worker, **one.model_dump(mode="json")}


def _document(queue: Queue, identity: str) -> dict[str, Any]:
    found = queue.read(identity)
    return _with_place(*found) if found else {"hypothesis_id": identity}


def briefing(context: typer.Context, repo: Repo = None, as_json: Json = False) -> None:
    """The brief: what a proposer is told, as a page or as the document itself.

    Example: `orchestrator.py briefing --json | my-proposer`
    """
    from autohypothesis.records.files import read_json

    layout = layout_of(context, repo)
    try:
        document = read_json(layout.brief)
    except FileNotFoundError:
        raise RecordError(
            f"there is no brief at {layout.brief} yet",
            hint="the observer writes it: python orchestrator.py up",
        ) from None
    if as_json:
        print_json(document)
    else:
        _print_brief(layout, document)


def _print_brief(layout: Layout, document: Any) -> None:
    from pydantic import ValidationError

    from autohypothesis.errors import faults_in
    from autohypothesis.schema import Brief
    from autohypothesis.terminal.fleet import print_brief

    try:
        brief = Brief.model_validate(document)
    except ValidationError as error:
        raise RecordError(
            f"{layout.brief} is no brief: {faults_in(error)}",
            hint="see it as it is: python orchestrator.py briefing --json",
        ) from None
    print_brief(out(), brief)


def _queue(layout: Layout, tag: str | None) -> Queue:
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.layout import checked_id
    from autohypothesis.records.ledger import active_tag

    found = tag or active_tag(layout)
    if not found:
        raise UsageError(
            f"no search was started in {layout.root} yet",
            hint="start one: python orchestrator.py init-fleet",
        )
    return Queue(layout, checked_id(found))


def _workers(layout: Layout) -> list[str]:
    """Return ids of the manifest's workers; none where it cannot be read."""
    from autohypothesis.records.files import load_or_none
    from autohypothesis.schema import Manifest

    manifest = load_or_none(Manifest, layout.manifest)
    return [worker.worker_id for worker in manifest.workers] if manifest else []
