"""A search from Python: `from autohypothesis import Search`.

It works on the same files as the commands do, through the same functions, and may be mixed with
them: what is proposed here is seen by `status`, what `run-loop` decided is in `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.observer.proposals import propose_checked
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.single_loop import SingleLoop, exclusive_search, open_session
from autohypothesis.fleet.supervisor.supervisor import Outcome
from autohypothesis.fleet.sync import sync
from autohypothesis.proposers.configured import configured
from autohypothesis.records.history import LiveHistory, best_kept, of_tag
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Proposal, Setting

if TYPE_CHECKING:
    import pandas


class Search:
    """One search (a tag) in a repository; it is begun where it does not exist yet.

    Attributes:
        project: repository, task and tag.
    """

    def __init__(
        self,
        repository: str | Path = ".",
        *,
        task: str | Path | None = None,
        tag: str | None = None,
    ) -> None:
        """Open the search.

        Args:
            task: a task file; None: the repository's own, else the default for `train.py`.
            tag: name of the search; None: the active one, else today's date.

        Raises:
            AutohypothesisError: `repository` is none, the task file is wrong, the data cannot be
                located, or another search is running there.
        """
        file = None if task is None else Path(task)
        self.project = Project.open(Path(repository), task=file, tag=tag).with_tag(tag)

    @property
    def tag(self) -> str:
        """Return the name of this search."""
        return self.project.active()

    def propose(
        self,
        change: Mapping[str, Setting] | str,
        *,
        title: str = "",
        rationale: str = "",
        priority: float = 0.0,
    ) -> str:
        """Queue an idea and return its id; `run`, a loop or a fleet tries it.

        Args:
            change: constants of the script to set, by name, or a unified diff.
            title: a few words; may be left out for constants.
            priority: higher ones run first.

        Raises:
            ChangeError: the change does not apply, or touches what may not change.
            QueueError: the idea waits already, or was tried; the message says what came of it.
            ValueError: it is no proposal, a diff without a title for instance.
        """
        if isinstance(change, str):
            proposal = Proposal(title=title, rationale=rationale, priority=priority, patch=change)
        else:
            title = title or ", ".join(f"{name} = {value}" for name, value in change.items())
            proposal = Proposal(
                title=title[:200], rationale=rationale, priority=priority,
                config_overrides=dict(change),
            )  # fmt: skip
        return propose_checked(self.project, Queue(self.project.layout, self.tag), proposal)

    def run(self, experiments: int, *, proposers: Sequence[str] = ()) -> Outcome:
        """Run and decide `experiments` more, the baseline first where it has not run.

        It is `run-loop`: queued ideas come first, then those of `proposers` (`search` when none
        is named). To be called from the main thread, since Ctrl-C stops it. A call that was
        killed is finished by the next one with the same number.

        Returns:
            "finished", "stopped" (Ctrl-C), or "failed" (the baseline gave no number).

        Raises:
            FleetError: a fleet or a loop is at work on this repository.
        """
        with Stop() as stop, exclusive_search(self.project, self.tag) as (project, _):
            history = LiveHistory(project.layout, project.active())
            history.refresh()
            session, _ = open_session(project.layout, history, name="", most=experiments)
            asked = configured(proposers, mix=None, root=project.layout.root)
            loop = SingleLoop(project, asked, session)
            outcome = loop.run(stop)
            sync(project.layout, all=True)
            loop.close(outcome)
        return outcome

    def rows(self) -> list[dict[str, Any]]:
        """Return the ledger rows of this search, in the order of their decisions.

        The keys are those of `experiments.jsonl`; see docs/files.md.
        """
        sync(self.project.layout)
        return [dict(row) for row in of_tag(read_ledger(self.project.layout), self.tag)]

    def ledger(self) -> pandas.DataFrame:
        """Return `rows` as a data frame.

        Raises:
            ModuleNotFoundError: pandas is not installed; `rows` works without it.
        """
        import pandas

        return pandas.DataFrame(self.rows())

    def best(self) -> dict[str, Any] | None:
        """Return the row of the best kept experiment; None before there is one."""
        best = best_kept(self.rows())
        return None if best is None else dict(best)
