"""What somebody wrote into the brief, as commands: add, dispatch, withdraw, complete, abandon.

An entry says something when it differs from the version that was read: the one with the same
`generated_at`. When that is forgotten, nobody can tell what was changed: then only new entries are
taken, and open ones are closed that it says are closed. Each command may be given twice, so an edit
that was obeyed in part when its reader was killed is obeyed again. What is refused is a line;
nothing here raises because of what somebody wrote.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from autohypothesis.errors import QueueError, RecordError, UsageError
from autohypothesis.fleet.queue.files import DONE, Place, summary
from autohypothesis.fleet.queue.states import Closed, Queue
from autohypothesis.records.files import load, to_json
from autohypothesis.records.layout import Layout, checked_id
from autohypothesis.records.tables import harmless
from autohypothesis.schema import Brief, Hypothesis, Manifest, Proposal, QueueEntry, nearest

MOST_REFUSED = 20
"""Lines about one edit; the rest are counted."""
BY_HAND = "closed by hand in research_brief.json"
MADE_ANEW = ("findings", "open_questions", "notes", "constraints", "objective", "current_config")
"""Sections that are made from the search itself, turn after turn."""
FORGOTTEN = "this edit is of a version long gone, so it may only add entries and close them"
_CONTENT = ("title", "rationale", "config_overrides", "priority")


class _RefusedError(QueueError):
    """One entry, with the reason."""


class Edits:
    """One version of the brief that somebody else wrote."""

    def __init__(
        self,
        queue: Queue,
        layout: Layout,
        said: Mapping[str, Any],
        shown: Sequence[dict[str, Any]],
        returned: Collection[str] = (),
    ) -> None:
        self.queue = queue
        self.layout = layout
        self.said = said
        same = [one for one in shown if one.get("generated_at") == said.get("generated_at")]
        self.base: Mapping[str, Any] = (same or [{}])[0]
        self._may_close = bool(shown)
        self._returned = returned
        self._sources = queue.sources()
        self._seen: set[str] = set()

    def obey(self) -> list[str]:
        """Does what can be done; a line for each thing that cannot."""
        refused = self._sections()
        before = {str(one.get("hypothesis_id")): one for one in entries(self.base)}
        for number, said in enumerate(entries(self.said), 1):
            try:
                self._entry(said, before)
            except (QueueError, UsageError) as error:
                refused.append(f"entry {number} ({_name(said)}): {error.problem}")
        rest = len(refused) - MOST_REFUSED
        if rest > 0:
            refused = [*refused[:MOST_REFUSED], f"and {rest} more edits of the brief"]
        return [harmless(line) for line in refused]

    def _sections(self) -> list[str]:
        refused = []
        known = list(Brief.model_fields)
        for key in self.said:
            if key not in known:
                refused.append(
                    f"research_brief.json has an unknown key {key!r}{nearest(key, known)}"
                )
        if not isinstance(self.said.get("hypothesis_queue", []), list):
            refused.append("hypothesis_queue in research_brief.json is no list; it is as it was")
        changed = [
            key for key in MADE_ANEW if self.base and self.said.get(key) != self.base.get(key)
        ]
        changed = [key for key in changed if key in self.said]
        if changed:
            refused.append(
                f"{', '.join(changed)} in research_brief.json: made anew at every turn; what was "
                "written is kept in brief-edits/, and directions go into research/steering.md"
            )
        return refused

    # ── one entry ─────────────────────────────────────────────────────────────────────────

    def _entry(self, said: object, before: Mapping[str, Mapping[str, Any]]) -> None:
        if not isinstance(said, dict):
            raise _RefusedError(f"is {type(said).__name__}, no hypothesis")
        base = before.get(str(said.get("hypothesis_id")))
        if base is not None and said == base:
            self._seen.add(str(said["hypothesis_id"]))
            return
        try:
            entry = QueueEntry.model_validate({"hypothesis_id": _made_up_id(said), **said})
        except ValidationError as error:
            raise _RefusedError(summary(error)) from error
        if entry.hypothesis_id in self._seen:
            raise _RefusedError("this id is in the brief twice; the first one counts")
        self._seen.add(entry.hypothesis_id)
        found = self._found(entry.hypothesis_id)
        if found is None:
            self._add(entry)
        else:
            self._change(entry, base, *found)

    def _found(self, name: str) -> tuple[Place, Hypothesis] | None:
        """By our id, or by the one under which somebody else knows it."""
        with suppress(UsageError):
            found = self.queue.read(checked_id(self._sources.get(name, name)))
            if found is not None and found[1].tag == self.queue.tag:
                return found
        return None

    def _add(self, entry: QueueEntry) -> None:
        if entry.status in ("completed", "abandoned"):
            raise _RefusedError(f"is {entry.status}, and nobody knows it here")
        worker = self._worker(entry) if entry.status == "dispatched" else None
        try:
            proposal = Proposal.model_validate(
                {
                    "title": entry.title,
                    "rationale": entry.rationale,
                    "config_overrides": entry.config_overrides,
                    "instructions": None if entry.config_overrides else _instructions(entry),
                    "priority": entry.priority,
                    "source_id": entry.hypothesis_id,
                }
            )
        except ValidationError as error:
            raise _RefusedError(summary(error)) from error
        added = self.queue.add(proposal, proposer="brief")
        self._sources[entry.hypothesis_id] = added.hypothesis_id
        if worker is not None:
            self.queue.dispatch(added.hypothesis_id, worker)

    def _change(
        self,
        entry: QueueEntry,
        base: Mapping[str, Any] | None,
        place: Place,
        hypothesis: Hypothesis,
    ) -> None:
        if not self.base:
            if entry.status in ("completed", "abandoned"):
                self._close_unseen(entry, place, hypothesis)
            elif entry.status == "dispatched" and place not in _at(entry.assigned_worker):
                raise _RefusedError(f"is {place} by now: {FORGOTTEN}")
            return
        name = hypothesis.hypothesis_id
        if base is None or (entry.status, entry.assigned_worker) != _standing(base):
            if entry.status == "dispatched":
                self._dispatch(name, place, self._worker(entry))
            elif entry.status != "pending":
                self._close(entry, place, hypothesis)
            elif base is not None and place.state != "pending":
                self._withdraw(name, place)
        said = entry.model_dump(mode="json", include=set(_CONTENT) & entry.model_fields_set)
        changed = [key for key in _CONTENT if base and key in said and said[key] != base.get(key)]
        if changed:
            words = " and ".join(changed)
            raise _RefusedError(f"{words} cannot be changed here: abandon it, and add another")

    def _dispatch(self, name: str, place: Place, worker: str) -> None:
        if place in (Place("dispatched", worker), Place("running", worker)):
            return
        if place.state == "dispatched":
            self.queue.withdraw(name)
        self.queue.dispatch(name, worker)

    def _withdraw(self, name: str, place: Place) -> None:
        if place.state != "dispatched":
            raise _RefusedError(f"is {place}, and cannot be made pending")
        self.queue.withdraw(name)

    def _close(self, entry: QueueEntry, place: Place, hypothesis: Hypothesis) -> None:
        if place == DONE:
            return
        closed: Closed = "abandoned" if entry.status == "abandoned" else "completed"
        self.queue.abandon(
            hypothesis.hypothesis_id, harmless(entry.outcome or BY_HAND), closed=closed
        )

    def _close_unseen(self, entry: QueueEntry, place: Place, hypothesis: Hypothesis) -> None:
        """Not what we ourselves showed as closed, and what is open again."""
        if place != DONE and hypothesis.hypothesis_id in self._returned:
            raise _RefusedError(f"is {place} again: {FORGOTTEN}")
        if self._may_close:
            self._close(entry, place, hypothesis)

    def _worker(self, entry: QueueEntry) -> str:
        if not entry.assigned_worker:
            raise _RefusedError("is dispatched, but no assigned_worker is named")
        known = self._workers()
        if known and entry.assigned_worker not in known:
            asked = entry.assigned_worker
            raise _RefusedError(f"there is no worker {asked!r}{nearest(asked, known)}")
        return checked_id(entry.assigned_worker)

    def _workers(self) -> list[str]:
        with suppress(FileNotFoundError, RecordError):
            manifest = load(Manifest, self.layout.manifest)
            return [worker.worker_id for worker in manifest.workers]
        return []


def entries(brief: Mapping[str, Any]) -> list[Any]:
    queue = brief.get("hypothesis_queue")
    return queue if isinstance(queue, list) else []


def _at(worker: str | None) -> tuple[Place, ...]:
    """Where a hypothesis that was sent to a worker may be by now, with nothing left to do."""
    return Place("dispatched", worker), Place("running", worker), DONE


def _standing(base: Mapping[str, Any]) -> tuple[Any, Any]:
    return base.get("status", "pending"), base.get("assigned_worker")


def _made_up_id(said: Mapping[str, Any]) -> str:
    """For an entry without one: the same for the same entry, so that it is added once."""
    return f"brief-{sha256(to_json(dict(said)).encode()).hexdigest()[:12]}"


def _instructions(entry: QueueEntry) -> str:
    """An idea without settings is one for somebody to implement."""
    return f"{entry.title}\n\n{entry.rationale}".strip()


def _name(said: object) -> str:
    if not isinstance(said, dict):
        return "?"
    return str(said.get("hypothesis_id") or said.get("title") or "?")[:80]
