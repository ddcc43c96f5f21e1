"""Between a task's reference and the user's branch: what was kept goes home, what is new is met."""

from __future__ import annotations

from collections.abc import Iterator

from autohypothesis.engine.decide import repair
from autohypothesis.engine.project import Project, reference_ref, refuse_checked_out
from autohypothesis.errors import GitError
from autohypothesis.records import locks
from autohypothesis.schema import Decision

MAX_NAMED = 4


def meet_user(project: Project) -> Iterator[str]:
    """Take in what the user has committed on top of the reference; a line for what to know.

    A branch that has gone another way is left alone, and so is the reference.

    Raises:
        FleetError: the reference would move, and somebody has its branch checked out.
    """
    repository = project.repository
    head = repository.head()
    if changed := [one.path for one in repository.changes(head, repository.snapshot_tree())]:
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        named = ", ".join(changed[:MAX_NAMED])
        yield f"not committed, so no part of this: {named}{more}"
    with locks.hold(project.layout, "settle", doing="following your branch"):
        repair(project)  # what was kept and not moved to, when somebody was killed, comes first
        reference = project.reference()
        if head == reference:
            return
        if repository.is_ancestor(reference, head):
            refuse_checked_out(repository, project.active())
            repository.compare_and_swap(reference_ref(project.active()), head, reference)
            yield f"the search goes on from your commit {head[:7]}"
            return
    yield (
        f"the search goes on from {reference[:7]}, which your branch is not built on;"
        f" take it home: python orchestrator.py adopt --tag {project.active()}"
    )


def take_home(project: Project, decision: Decision) -> str:
    """Fast-forward the user's branch to what was kept, if it stands where that was made.

    A line that says where the branch is now, or what to run.
    """
    kept, before = str(decision.reference_after), decision.reference_before
    if decision.decision_status != "keep" or kept == before:
        return ""
    repository = project.repository
    head = repository.head()
    if head == kept:
        return ""
    take = f"take it home: python orchestrator.py adopt --tag {decision.tag}"
    if head != before:
        return f"your branch is at {head[:7]}, not at {str(before)[:7]}; {take}"
    try:
        branch = repository.fast_forward(kept)
    except GitError as error:
        return f"{error.problem}; {take}"
    return f"{branch} moved from {head[:7]} to {kept[:7]}"
