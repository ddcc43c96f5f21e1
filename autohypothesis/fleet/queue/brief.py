"""`research_brief.json`: published for proposers and people, and taken back as what they wrote.

What was published last is kept beside it, so an edit is seen by its content, and understood by what
it changed. A version that is not ours is never overwritten: it is taken by rename, kept in
`brief-edits/`, and turned into commands. Everything here runs under the lock `brief`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field

from autohypothesis.engine.project import Project
from autohypothesis.errors import RecordError
from autohypothesis.fleet.queue.brief_edits import Edits, entries
from autohypothesis.fleet.queue.brief_page import Contents, noise_words
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.queue.warm_start import carried
from autohypothesis.records.bundles import reason_in
from autohypothesis.records.files import (
    load,
    parse_json,
    read_bytes,
    read_json,
    sweep,
    to_json,
    write_atomic,
    write_json,
)
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.standings import of_tag
from autohypothesis.schema import Brief, Others, Setting, Steering, Strict, now
from autohypothesis.system import rename_exclusive

WRITING_S = 2.0
"""A brief that is no JSON and changed more recently may still be being written."""
REMEMBERED = 4
"""Published versions that an edit may be based on."""
MOST_RETURNED = 500
_TODO = ".todo.json"


class State(Strict):
    """`research/.research_brief.json`."""

    marks: list[str] = Field(default_factory=list)
    """SHA-256 of each content that the brief may have without anybody having edited it."""
    shown: list[dict[str, Any]] = Field(default_factory=list)
    """The versions published last, the newest first."""
    returned: list[str] = Field(default_factory=list)
    """Ids that were shown as closed once, and as open later; the newest first."""


def publish(
    project: Project,
    queue: Queue,
    *,
    rows: Sequence[Mapping[str, Any]],
    steering: Steering,
    reference_settings: Mapping[str, Setting],
    notes: Sequence[str] = (),
    noise: Mapping[str, Any] | str | None = None,
    others: Others | None = None,
) -> Brief:
    """Writes the brief, `Brief.MAX_BYTES` at most, unless it would say what it says already.

    An edit that nobody has taken yet is taken first; one that arrives meanwhile stays for the next
    time.

    Raises:
        LockError: another process has published for half a minute.
        RecordError: the disk is full.
    """
    refused = take_edits(project, queue)
    brief = Contents(
        repository=str(project.layout.root),
        task=project.task,
        rows=of_tag(rows, queue.tag),
        steering=steering,
        settings=reference_settings,
        open=queue.placed(),
        done=queue.done(),
        notes=[*refused, *_noise(noise), *notes, *_problems(queue)],
        carried=carried(project.layout)[0],
        others=others,
    ).brief()
    with hold(project.layout, "brief", doing="publishing the brief"):
        return _Desk(project.layout).put(brief)


def take_edits(project: Project, queue: Queue) -> list[str]:
    """Does what somebody wrote into the brief; answers with what could not be done, and why.

    Raises:
        LockError: another process has published for half a minute.
        RecordError: the disk is full.
    """
    desk = _Desk(project.layout)
    if not desk.may_hold_edits():
        return []
    refused: list[str] = []
    with hold(project.layout, "brief", doing="taking edits of the brief"):
        refused += desk.collect()
        for path in desk.waiting():
            refused += desk.obey(path, queue)
    return refused


def _noise(noise: Mapping[str, Any] | str | None) -> list[str]:
    said = noise if isinstance(noise, str) else noise_words(noise or {})
    return [f"noise: {said}"] if said else []


def _problems(queue: Queue) -> list[str]:
    return [f"{problem.path} {problem.reason}" for problem in queue.problems[:5]]


class _Desk:
    """The brief's files. All but `may_hold_edits` want the lock."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.path = layout.brief

    def may_hold_edits(self) -> bool:
        """Asked at every turn, so without a lock."""
        marks = self._state().marks
        changed = [_mark(path) not in (*marks, None) for path in self._ours()]
        return any(changed) or bool(self.waiting())

    def _ours(self) -> tuple[Path, Path]:
        return self.path, self.layout.brief_before

    def _state(self) -> State:
        """What is known of earlier versions; nothing, when that is damaged."""
        with suppress(FileNotFoundError, RecordError):
            return load(State, self.layout.brief_state)
        return State()

    # ── out ───────────────────────────────────────────────────────────────────────────────

    def put(self, brief: Brief) -> Brief:
        state = self._state()
        there = _mark(self.path)
        if any(_mark(path) not in (*state.marks, None) for path in self._ours()):
            return brief  # written since the edits were taken: that comes first
        content = to_json(brief, indent=2).encode("utf-8", "replace") + b"\n"
        said = parse_json(content)
        if there is not None and state.shown and _undated(said) == _undated(state.shown[0]):
            return Brief.model_validate(state.shown[0])
        marks = [sha256(content).hexdigest(), *([there] if there else []), *state.marks]
        shown = [said, *state.shown][:REMEMBERED]
        sweep(self.layout.research)
        returned = [*_returned(shown), *state.returned][:MOST_RETURNED]
        new = State(marks=marks[:REMEMBERED], shown=shown, returned=returned)
        write_json(self.layout.brief_state, new, durable=False)
        self._replace(content, new.marks)
        return brief

    def _replace(self, content: bytes, marks: Sequence[str]) -> None:
        """Puts a new version in the place of one of `marks`, never in that of a newer edit.

        The replaced file stays until the next time: who had it open may write into it still.
        """
        before = self.layout.brief_before
        with suppress(FileNotFoundError):
            os.rename(self.path, before)
            if _mark(before) not in marks:
                with suppress(FileExistsError):
                    rename_exclusive(before, self.path)
                return
        new = before.with_name(f"{before.name}.new")
        write_atomic(new, content, durable=False)
        with suppress(FileExistsError):
            rename_exclusive(new, self.path)
        new.unlink(missing_ok=True)

    # ── in ────────────────────────────────────────────────────────────────────────────────

    def collect(self) -> list[str]:
        """Takes each version that is not ours; what is torn is kept aside, and named."""
        marks, refused = self._state().marks, []
        for path in self._ours():
            if _mark(path) not in (*marks, None):
                refused += self._take(path)
        return refused

    def _take(self, path: Path) -> list[str]:
        wrong = _what_is_wrong(path)
        if wrong and _age_s(path) < WRITING_S:
            return []
        stem = f"{now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
        suffix = ".damaged.json" if wrong else _TODO
        kept = self.layout.brief_edits / f"{stem}{suffix}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(path, kept)
        except FileNotFoundError:
            return []
        if not wrong:
            return []
        where = kept.relative_to(self.layout.root)
        return [f"research_brief.json {wrong}: it is {where} now, and the queue is as it was"]

    def waiting(self) -> list[Path]:
        """Taken, and not yet obeyed: of this look, and of one that was killed."""
        return sorted(self.layout.brief_edits.glob(f"*{_TODO}"))

    def obey(self, path: Path, queue: Queue) -> list[str]:
        done = path.with_name(path.name.replace(_TODO, ".json"))
        try:
            said = read_json(path)
        except (FileNotFoundError, RecordError) as error:
            os.replace(path, path.with_name(path.name.replace(_TODO, ".damaged.json")))
            return [f"an edit of research_brief.json could not be read: {error}"]
        state = self._state()
        refused = Edits(queue, self.layout, said, state.shown, state.returned).obey()
        os.replace(path, done)
        return refused


def _mark(path: Path) -> str | None:
    """What tells versions apart; None when nothing is there."""
    try:
        return sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        return None
    except RecordError:
        return "no file"


def _what_is_wrong(path: Path) -> str:
    try:
        value = parse_json(read_bytes(path))
    except FileNotFoundError:
        return ""
    except RecordError as error:
        return reason_in(error, path)
    except ValueError as error:
        return str(error)
    return "" if isinstance(value, dict) else "holds no object"


def _age_s(path: Path) -> float:
    try:
        return abs(time.time() - os.lstat(path).st_mtime)
    except FileNotFoundError:
        return 0.0


def _returned(shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the last version but one showed as closed, and the last one shows as open."""
    now, before = (_open_of(one) for one in (*shown, {}, {})[:2])
    return [name for name, is_open in before.items() if not is_open and now.get(name)]


def _open_of(brief: Mapping[str, Any]) -> dict[str, bool]:
    """Id -> whether the brief shows it as open."""
    said = entries(brief)
    return {
        str(one.get("hypothesis_id")): one.get("status") in ("pending", "dispatched")
        for one in said
        if isinstance(one, dict)
    }


def _undated(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != "generated_at"}
