"""An idea of a person's or an agent's: looked at while they still listen, then queued.

What a worker would refuse later is refused here at once, with the reason. Nothing is written but
the hypothesis itself.
"""

from __future__ import annotations

from autohypothesis.engine.change import Change, tree_of
from autohypothesis.engine.guard import check_candidate
from autohypothesis.engine.project import Project
from autohypothesis.errors import ChangeError, QueueError, UsageError
from autohypothesis.fleet.live.steering import current_steering
from autohypothesis.fleet.observer.tried import Library, Reference
from autohypothesis.fleet.observer.vetting import Vetting
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.ledger import active_tag
from autohypothesis.schema import Proposal

BY_HAND = "person"
"""The proposer of what nobody else proposed."""


def suggest(project: Project, queue: Queue, proposal: Proposal, *, proposer: str = BY_HAND) -> str:
    """Puts `proposal` into the queue; its id.

    Raises:
        ChangeError: it does not apply to the reference, or touches what may not change.
        QueueError: the steering forbids it, it waits already, or it was run before; the message
            says what came of that.
        LockError: somebody else has held the queue for half a minute.
    """
    commit = project.reference()
    _check_change(project, commit, proposal)
    chronicle = Chronicle(project.layout, project.active())
    chronicle.refresh()
    library = Library(project, chronicle)
    library.refresh()
    reference = Reference.of(project, library, commit)
    vetting = Vetting(library, reference, chronicle, current_steering(project.layout))
    reason = vetting.reason(proposal, queue.open())
    if reason:
        raise QueueError(
            f"{proposal.title!r} is not taken: {reason}",
            hint="see `python orchestrator.py hypotheses` and `python orchestrator.py runs`",
        )
    return queue.add(proposal, proposer=proposer).hypothesis_id


def check_worker(project: Project, workers: list[str], worker: str) -> None:
    """Refuses a worker that the manifest does not name.

    Raises:
        UsageError: naming those there are.
    """
    if worker in workers:
        return
    tag = project.tag or active_tag(project.layout)
    raise UsageError(
        f"tag {tag!r} has no worker {worker!r}; it has {', '.join(workers) or 'none'}",
        hint="make one: python orchestrator.py init-fleet --help"
        if not workers
        else "see them: python orchestrator.py status",
    )


def _check_change(project: Project, commit: str, proposal: Proposal) -> None:
    """That the change applies to the reference as it is now, and does something."""
    if proposal.instructions:
        return  # what comes of them is seen when they are implemented
    tree = tree_of(project.repository, project.task, commit, Change.of(proposal))
    changes = project.repository.changes(commit, tree)
    if not changes:
        raise ChangeError(
            f"{proposal.title!r} changes nothing in the reference {commit[:7]}",
            hint="see what it is: python orchestrator.py best",
        )
    check_candidate(project.repository, project.task, tree, changes)
