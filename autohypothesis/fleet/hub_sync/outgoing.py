"""Publishes decided experiments: entries of an outbox, kept until each was delivered.

Every decided experiment is reported, failures too: as a result, as a line for people, and a keep as
a commit before both. What is found to be wrong later is reported as well. Nothing waits for an
answer: a courier delivers the entries, and a hub that is slow, down or gone delays no search.
Before a try the entry says that one is begun; so after a kill the courier asks first whether that
try arrived, and delivers again only where it did not.

A fleet's own history stays private. The commits that are shown hold the task's files alone, with
dates and an author that are not this machine's, so that two fleets that begin with the same files
begin with the same commit: a baseline without a parent, and a commit for each keep. A ref beside
the commit that each stands for remembers it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from autohypothesis.engine.project import Project
from autohypothesis.errors import (
    AutohypothesisError,
    DeliveryError,
    RecordError,
    UndeliverableError,
)
from autohypothesis.fleet.hub_sync.incoming import result_number, tree_of_commit
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import table_text
from autohypothesis.records import locks
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import (
    load,
    load_or_none,
    opened,
    remove_stale_temporaries,
    to_json,
    write_json,
    write_new,
)
from autohypothesis.records.git import Entry
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.outcomes import shown_as
from autohypothesis.schema import Metadata, OutboxEntry, Plan, Runtime, now, utc

PENDING, SENT, REFUSED = "pending", "sent", "refused"
MAX_TRIES = 20
"""Tries that reached the hub. Then the entry is set aside, and holds up nothing else."""
LOOK_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""Pauses after the first failed round, and after many."""


class EntryCourier(Protocol):
    """Delivers entries. Each call may take as long as it needs.

    All of them raise DeliveryError where it did not work just now.
    """

    def mark(self, entry: OutboxEntry) -> Any:
        """Return the state of the hub before the first try, as JSON: for `found`."""

    def found(self, entry: OutboxEntry) -> str | None:
        """Return the receipt of an earlier try that arrived; None where none did."""

    def deliver(self, entry: OutboxEntry) -> str:
        """Deliver it and return the receipt. UndeliverableError where it is refused for good."""


class Round(NamedTuple):
    """The outcome of one round of deliveries."""

    sent: int
    refused: int
    left: int
    error: str = ""
    """The last thing that stood in the way."""


class Outbox:
    """An outbox under research/: a file for each entry, a folder for each state."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def put(self, kind: str, name: str, payload: Mapping[str, Any]) -> bool:
        """Take an entry without waiting; return False where it was taken before."""
        if self.knows(kind, name):
            return False
        entry = OutboxEntry(kind=kind, name=name, payload=dict(payload), number=time.time_ns())
        return write_new(self._path(PENDING, entry), to_json(entry, indent=2) + "\n")

    def knows(self, kind: str, name: str) -> bool:
        """Return whether an entry was taken before, delivered or not."""
        states = (SENT, REFUSED, PENDING)
        return any(self.layout.outbox_entry(state, kind, name).exists() for state in states)

    def receipt(self, kind: str, name: str) -> str:
        """Return the name that the hub gave an entry; empty where it was not sent."""
        entry = load_or_none(OutboxEntry, self.layout.outbox_entry(SENT, kind, name))
        return entry.receipt if entry else ""

    def pending(self) -> list[OutboxEntry]:
        """Return entries in the order in which they were put; a damaged one is set aside."""
        found = []
        folder = self.layout.outbox_state(PENDING)
        for path in sorted(folder.glob("[!.]*.json")):
            try:
                found.append(load(OutboxEntry, path))
            except FileNotFoundError:
                continue
            except RecordError:
                aside = self.layout.outbox_state(REFUSED) / path.name
                aside.parent.mkdir(parents=True, exist_ok=True)
                path.replace(aside)
        return sorted(found, key=lambda entry: entry.number)

    def deliver(self, courier: EntryCourier) -> Round:
        """Deliver what is pending, until the hub cannot be reached.

        Raises:
            LockError: another process is at it.
        """
        sent = refused = 0
        error = ""
        with locks.hold(self.layout, "outbox", doing="delivering", timeout=0):
            remove_stale_temporaries(self.layout.outbox_state(PENDING))
            waiting = self.pending()
            for entry in waiting:
                try:
                    receipt = self._delivered(courier, entry)
                except UndeliverableError as no:
                    self._close(REFUSED, entry, last_error=no.problem)
                    refused += 1
                except DeliveryError as no:
                    error = no.problem
                    refused += self._failed(entry, no)
                    if not no.reached:
                        break
                else:
                    self._close(SENT, entry, receipt=receipt)
                    sent += 1
        return Round(sent, refused, len(waiting) - sent - refused, error)

    def _delivered(self, courier: EntryCourier, entry: OutboxEntry) -> str:
        if self._path(SENT, entry).exists():  # a kill came before it was taken out of the queue
            return load(OutboxEntry, self._path(SENT, entry)).receipt
        if entry.tries:
            receipt = courier.found(entry)
            if receipt is not None:
                return receipt
        else:
            entry.mark = courier.mark(entry)
        entry.tries += 1
        write_json(self._path(PENDING, entry), entry)
        return courier.deliver(entry)

    def _failed(self, entry: OutboxEntry, error: DeliveryError) -> bool:
        """Return whether it is given up. What did not reach the hub is no try, and waits."""
        if entry.tries >= MAX_TRIES and error.reached:
            why = f"given up after {entry.tries} tries: {error.problem}"
            self._close(REFUSED, entry, last_error=why)
            return True
        if not error.reached and entry.tries > 1:
            entry.tries -= 1  # never to 0: an earlier one may have arrived
        entry.last_error = error.problem
        write_json(self._path(PENDING, entry), entry)
        return False

    def _close(self, state: str, entry: OutboxEntry, **changes: str) -> None:
        """Write the entry at its target before it is deleted at its source: no kill loses it."""
        closed = entry.model_copy(update={"closed_at": now(), **changes})
        if not self._path(state, entry).exists():
            write_json(self._path(state, entry), closed)
        self._path(PENDING, entry).unlink(missing_ok=True)

    def _path(self, state: str, entry: OutboxEntry) -> Path:
        return self.layout.outbox_entry(state, entry.kind, entry.name)


def pause_s(failures: int) -> float:
    """Return the pause before the next round, after `failures` rounds that delivered nothing."""
    if not failures:
        return LOOK_S
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 20)))


PUSH, RESULT, LINE = "push", "result", "line"
REFUTED, REFUTED_LINE = "refuted", "refuted-line"
REPORTED_STATUSES = ("keep", "discard", "crash", "replicate")
"""Statuses of experiments that are over and decided."""
COPIED_FIELDS = (
    "id", "commit", "status", "description", "metric_name", "metric_value", "seed", "replicates",
    "confirmation", "failure_kind", "num_steps", "peak_vram_gb", "gpu_name", "platform_key",
    "direction", "outcome",
)  # fmt: skip
"""Fields of a row that an entry copies, so that it does not depend on the row."""
AT_ONCE = 20
"""Experiments that one turn reports."""


class HubReporter:
    """Reports the decided experiments of one search, turn after turn."""

    def __init__(self, project: Project, queue: Queue, outbox: Outbox) -> None:
        self.project = project
        self.queue = queue
        self.outbox = outbox
        self.lineage = PublishedHistory(project)
        self._stands: dict[str, bool] = {}
        """Experiment -> whether it stood when it was looked at last."""
        self._reasons: dict[str, str] = {}
        """Experiment -> why it was decided as it was, in a word."""
        self._reported: object = None
        """The rows of the last turn, if all of them are reported."""
        self.problems: list[str] = []
        """A line for each experiment that could not be reported."""

    def turn(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Put what is new in the order of decisions; return whether that was all of it.

        A search that joined late has much to report: a little each turn.

        Raises:
            RecordError: the outbox cannot be written now.
        """
        if rows is self._reported:
            return True
        new = [row for row in rows if self._is_new(row)]
        new.sort(key=lambda row: row.get("ordinal") or 0)
        if new:
            decisions, _ = read_decisions(self.project.layout)
            self._reasons = {each.experiment_id: table_text(each.reason) for each in decisions}
        reported = 0
        for row in new:
            if reported >= AT_ONCE:
                return False
            # A kill may have come between two entries of an experiment.
            known = all(self.outbox.knows(kind, row["id"]) for kind in (RESULT, LINE))
            if _is_taken_back(row) or not known:
                reported += 1
                try:
                    self._report(row)
                except RecordError:
                    raise
                except AutohypothesisError as error:
                    problem = f"{row['id']} is not told to others: {error.problem}"
                    self.problems = [*self.problems, problem][-AT_ONCE:]
            self._stands[row["id"]] = not _is_taken_back(row)
        self._reported = rows
        return True

    def _is_new(self, row: Mapping[str, Any]) -> bool:
        if (
            shown_as(str(row.get("status")), row.get("failure_kind")) not in REPORTED_STATUSES
            or not row.get("commit")
            or row.get("ordinal") is None
        ):
            return False
        before = self._stands.get(row["id"])
        return before is None or (before and _is_taken_back(row))

    def _report(self, row: Mapping[str, Any]) -> None:
        name, layout = row["id"], self.project.layout
        # What the run printed or wrote is not reported: words are of its plan and its decision.
        plan = load_or_none(Plan, layout.plan(name))  # None for what was recorded by hand
        metadata = load_or_none(Metadata, layout.run(name).metadata)
        runtime = metadata.runtime if metadata is not None else Runtime()
        payload: dict[str, Any] = {
            **{key: row.get(key) for key in COPIED_FIELDS},
            "description": description_of(layout, row),
            "outcome": self._reasons.get(name, ""),
            "task_hash": runtime.task_hash,
            "budget_seconds": runtime.budget_seconds,
        }
        verified = self._verified(row, plan)
        if verified is not None:
            payload |= {"verifies": verified[0], "commit": verified[1]}
            if row["status"] == "keep":
                self.lineage.adopt(row["commit"], verified[1])
        elif row["status"] == "keep":
            payload["commit"] = self.lineage.experiment(row)
            self.outbox.put(PUSH, name, {"commit": payload["commit"]})
        else:  # the baseline again, or a keep that was taken back
            payload["commit"] = self.lineage.shown(row["commit"]) or row["commit"]
        payload["tree"] = tree_of_commit(self.project, row["commit"])
        payload["log_hash"] = _hash_of(layout.run(name))
        kinds = [RESULT, LINE]
        if _is_taken_back(row) and payload["commit"] != row["commit"]:
            kinds += [REFUTED, REFUTED_LINE]
            payload["confirmation"] = "refuted"
        for kind in kinds:
            self.outbox.put(kind, name, payload)

    def _verified(self, row: Mapping[str, Any], plan: Plan | None) -> tuple[int, str] | None:
        """Return the result of another agent that this run repeats, and its commit."""
        if row.get("replicates"):
            return None
        name = plan.hypothesis.hypothesis_id if plan is not None else row.get("hypothesis_id")
        placed = self.queue.read(str(name or "x"))
        if placed is None or not placed[1].artifacts_from:
            return None
        number = result_number(placed[1])
        return None if number is None else (number, placed[1].artifacts_from)


def description_of(layout: Layout, row: Mapping[str, Any]) -> str:
    """Return what an experiment tried, by its plan; what its run wrote is not told to others."""
    plan = load_or_none(Plan, layout.plan(row["id"]))  # None for what was recorded by hand
    title = plan.hypothesis.title if plan is not None else ""
    return table_text(title or str(row.get("description") or row["id"]))


def _is_taken_back(row: Mapping[str, Any]) -> bool:
    """Return whether it was refuted, or decided against by a person, whatever it was before."""
    by_hand = row.get("reason") == "by_hand" and row.get("status") != "keep"
    return by_hand or row.get("confirmation") == "refuted"


def _hash_of(run: RunPaths) -> str:
    digest = hashlib.sha256()
    try:
        with opened(run.log) as (descriptor, _), open(descriptor, "rb", closefd=False) as log:
            for piece in iter(partial(log.read, 1 << 20), b""):
                digest.update(piece)
    except (OSError, RecordError):
        return ""
    return digest.hexdigest()


PUBLISHED_REFS = "refs/shown/"
"""Our commit -> the one that others know it as."""
BEGINNING = datetime(2026, 1, 1, tzinfo=timezone.utc)
"""Fixed commit date of baselines, so that equal baselines have equal hashes."""
_PLAIN = ("100644", "100755")
_READ_BY_GIT = (".gitattributes", ".gitmodules", ".gitignore")


class PublishedHistory:
    """The commits that one project shows to others."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def shown(self, commit: str) -> str | None:
        """Return the commit that others know ours as; None where it was never shown."""
        return self.project.repository.read_ref(PUBLISHED_REFS + commit)

    def baseline(self, commit: str) -> str:
        """Return the task's files at `commit`, as a commit without a parent."""
        if (known := self.shown(commit)) is not None:
            return known
        task, goal = self.project.task, self.project.task.objective
        message = f"baseline of {task.id}: {goal.direction} {goal.metric}\n"
        return self._show(commit, self._files(commit), [], message, BEGINNING)

    def _files(self, commit: str) -> dict[str, Entry]:
        """Return the files of the task at a commit, as others may have them."""
        task = self.project.task
        named = task.protected is not None
        return {
            path: entry
            for path, entry in self.project.repository.entries(commit).items()
            if task.is_artifact(path) or (named and task.is_protected(path))
            if entry.mode in _PLAIN and path.rpartition("/")[2] not in _READ_BY_GIT
        }

    def is_open(self, commits: Iterable[str], known: str | None) -> bool:
        """Return whether commits hold files of the task alone, and those of a `known` commit."""
        entries = self.project.repository.entries
        there = entries(known) if known else {}
        return all(
            there.get(path) == entry
            for commit in commits
            for path, entry in entries(commit).items() - self._files(commit).items()
        )

    def experiment(self, row: Mapping[str, Any]) -> str:
        """Return the commit of an experiment on its base as shown, with its description."""
        base = row.get("parent_commit")
        if base is None:
            return self.baseline(row["commit"])
        value, name = row.get("metric_value"), row.get("metric_name")
        message = (
            f"{description_of(self.project.layout, row)}\n\n{name}: {value}\n"
            f"Confirmation: {row.get('confirmation')}\nExperiment: {row['id']}\n"
        )
        ended = utc(row.get("timestamp"))  # by the row, so that a second try makes the same commit
        at = ended if isinstance(ended, datetime) else BEGINNING
        return self.keep(row["commit"], str(base), message, at)

    def published(self, commit: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Return a commit as others may have it: the task's files, on the experiments before it."""
        made = {
            row["commit"]: row for row in rows if row.get("commit") and not row.get("replicates")
        }
        line = [commit]
        while self.shown(line[-1]) is None and (row := made.get(line[-1])):
            if row.get("parent_commit") in (None, *line):
                break
            line.append(str(row["parent_commit"]))
        shown = self.baseline(line.pop())
        for each in reversed(line):
            shown = self.experiment(made[each])
        return shown

    def keep(self, commit: str, base: str, message: str, at: datetime) -> str:
        """Return a kept commit on its base as shown; the same call makes the same commit."""
        if (known := self.shown(commit)) is not None:
            return known
        parent, repository = self.baseline(base), self.project.repository
        entries = repository.entries(commit)
        artifacts = {path: entries[path] for path in self.project.task.artifacts_in(entries)}
        files = {**repository.entries(parent), **artifacts}
        return self._show(commit, files, [parent], message, at)

    def adopt(self, commit: str, theirs: str) -> None:
        """Note that a commit of ours has the artifacts of `theirs`, which is shown instead."""
        self.project.repository.compare_and_swap(PUBLISHED_REFS + commit, theirs, None)

    def _show(
        self,
        commit: str,
        files: Mapping[str, Entry],
        parents: list[str],
        message: str,
        at: datetime,
    ) -> str:
        repository = self.project.repository
        shown = repository.commit_tree(repository.tree_of_files(files), parents, message, at=at)
        repository.compare_and_swap(PUBLISHED_REFS + commit, shown, None)
        return self.shown(commit) or shown
