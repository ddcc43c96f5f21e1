"""Limits in the prose of program.md that no code holds, each with what makes it bind."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.live.charter import (
    MEMORY,
    PARAMETERS,
    Kind,
    ProseLimit,
    prose_limits,
)
from autohypothesis.records.files import PAGE_LIMIT, FileStamp, file_stamp, read_text
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Steering

if TYPE_CHECKING:
    from autohypothesis.engine.task import Task

ROUNDING = 1.05
"""A limit that is higher by this factor holds the one of the prose too: GB are not GiB."""
_CURES: dict[Kind, str] = {
    "memory": "write `memory_limit_mb: %.0f` into the steering block",
    "time": "the task can: `run: {deadline_seconds: %g}` for each run; `up --hours N` for a search",
    "parameters": f"the task can: `constraints: {{{PARAMETERS}: {{hard: %g}}}}`",
}


class UnboundLimit(NamedTuple):
    """A limit in the prose of program.md that no code holds, and what makes one hold it."""

    limit: str
    cure: str

    def __str__(self) -> str:
        return f"{self.limit}; {self.cure}"


def unbound_limits(layout: Layout) -> list[UnboundLimit]:
    """Return each limit in the prose of program.md that no code holds, once.

    Never raises. Without a task that can be read, amounts are held against the blocks alone, and
    names are not judged.
    """
    limits = _limits_of(layout, file_stamp(os.path.realpath(layout.program)))
    if not limits:
        return []
    from autohypothesis.fleet.live.steering import current_steering

    held = _Held(layout, current_steering(layout))
    page = layout.program.name
    unbound = (
        UnboundLimit(f"{page}, line {limit.line}, {limit.words!r}: no code holds that", cure)
        for limit in limits
        if (cure := held.cure_of(limit))
    )
    return list(dict.fromkeys(unbound))


@lru_cache(maxsize=8)
def _limits_of(layout: Layout, stamp: FileStamp | None) -> tuple[ProseLimit, ...]:
    """Return the limits of program.md, which is read again when its stamp is another."""
    return tuple(prose_limits(read_text(layout.program, PAGE_LIMIT)))


class _Held:
    """The limits that code holds in a repository."""

    def __init__(self, layout: Layout, steering: Steering) -> None:
        from autohypothesis.engine.constants import settable_names
        from autohypothesis.engine.project import Project

        self.steering = steering
        self.task: Task | None = None
        self.constants: set[str] = set()
        with suppress(AutohypothesisError, OSError, ValueError):
            project = Project.of_search(layout.root)
            self.task = project.task
            for path in self.task.artifacts_in(project.repository.tracked_files()):
                if path.endswith(".py"):
                    self.constants |= set(settable_names((layout.root / path).read_bytes()))

    def cure_of(self, limit: ProseLimit) -> str:
        """Return what makes a limit bind; empty where it binds, or is about something else."""
        task = self.task
        if limit.kind == "name":
            return self._cure_of_name(limit.name)
        if limit.kind == "memory":
            held = [self.steering.memory_limit_mb, self._constraint(MEMORY)]
        elif limit.kind == "parameters":
            held = [self._constraint(PARAMETERS)]
        else:
            run, hours = (task.run, task.budget.hours) if task else (None, None)
            held = [hours * 3600 if hours else None, run.deadline_seconds if run else None]
            held += [run.budget.seconds if run and run.budget else None]
        is_held = any(value is not None and value <= limit.amount * ROUNDING for value in held)
        return "" if is_held else _CURES[limit.kind] % limit.amount

    def _constraint(self, metric: str) -> float | None:
        limit = self.task.constraints.get(metric) if self.task else None
        return limit.hard if limit else None

    def _cure_of_name(self, name: str) -> str:
        if name.lower() in {frozen.lower() for frozen in self.steering.frozen}:
            return ""
        if name in self.constants:
            return f"write `frozen: [{name}]` into the steering block"
        if self.task is not None and ("." in name or "/" in name) and self.task.is_artifact(name):
            return "take the file out of the task's `artifacts`"
        return ""
