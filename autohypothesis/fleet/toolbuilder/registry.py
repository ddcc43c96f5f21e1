"""The registry of helper scripts on disk: our own copy, and `registry.json`, which people may edit.

Our copy (`tools/.registry.json`) is the truth. `registry.json` shows it; a version of it that we
did not write is somebody's edit: it is taken by rename, kept under `tools/edits/`, and turned into
commands. Nothing here obeys a command; `tools` does.

Whatever is torn is set aside, named by `damaged`, and made anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from autohypothesis.errors import RecordError
from autohypothesis.records import jsonl, locks
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.files import (
    load_or_none,
    parse_json,
    read_bytes,
    read_json,
    to_json,
    write_atomic,
    write_json,
)
from autohypothesis.records.layout import ID, Layout
from autohypothesis.schema import Registry, Strict, Tool, now
from autohypothesis.system import rename_exclusive

SCRIPT_LIMIT = 256 * 1024
"""Bytes of a script."""
STILL_WRITTEN_S = 2.0
"""A file that is no JSON is left alone this long: somebody may be writing it."""
RUNNABLE = ("published", "adopted")
_DAMAGED = "damaged-"
_TODO = ".todo.json"
_COUNTED = frozenset({"calls", "failures"})


class State(Strict):
    """`research/tools/.registry.json`."""

    registry: Registry
    shown: Registry
    """What registry.json showed last: an entry that differs from it was edited."""
    marks: list[str] = Field(default_factory=list)
    """SHA-256 of every content that registry.json may have without anybody having edited it."""


class Edits(NamedTuple):
    """What one edited version of registry.json asks for."""

    note: Path
    """Removed when it has been done."""
    entries: list[dict[str, Any]]
    removed: list[str]
    problems: list[str]


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def read(layout: Layout) -> Registry:
    """The registry, with calls counted. Writes nothing; of a damaged one, what can be saved."""
    state = _state(layout)
    return counted(layout, state.registry if state else _rebuilt(layout))


def find(registry: Registry, tool_id: str) -> Tool | None:
    return next((tool for tool in registry.tools if tool.tool_id == tool_id), None)


def counted(layout: Layout, registry: Registry) -> Registry:
    """With calls and failures from calls.jsonl; a line that is torn is one call less."""
    tallies = _CALLS.setdefault(layout.tool_calls, _Calls(layout.tool_calls)).tallies()
    tools = []
    for tool in registry.tools:
        calls, failures = tallies.get(tool.tool_id, (0, 0))
        tools.append(tool.model_copy(update={"calls": calls, "failures": failures}))
    return registry.model_copy(update={"tools": tools})


def sight(layout: Layout) -> tuple[object, ...]:
    """What a glance shows: while it stays the same there is nothing to take, read or count."""
    paths = (
        layout.registry, _between(layout), layout.registry_state, layout.registry_edits,
        layout.tool_calls, layout.published_tools,
    )  # fmt: skip
    return tuple(signature_of(str(path)) for path in paths)


class _Calls:
    """Calls and failures of each tool; of a file that grows, only what is new is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: Signature = (0, 0, 0)
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._tallies: dict[str, tuple[int, int]] = {}

    def tallies(self) -> dict[str, tuple[int, int]]:
        """Tool -> (calls, failures)."""
        with self._lock:
            now_at = signature_of(str(self.path))
            if now_at != self._seen:
                self._read(now_at)
            return dict(self._tallies)

    def _read(self, now_at: Signature) -> None:
        if now_at[0] != self._seen[0]:  # another file
            self._forget()
        self._seen = now_at
        with suppress(RecordError):
            news = jsonl.read_new(self.path, self._offset)
            if news.restarted:
                self._tallies = {}
            self._offset = news.offset
            for call in news.records:
                calls, failures = self._tallies.get(str(call.get("tool_id")), (0, 0))
                failed = call.get("exit_code") != 0
                self._tallies[str(call.get("tool_id"))] = calls + 1, failures + failed


_CALLS: dict[Path, _Calls] = {}


def damaged(layout: Layout) -> list[Path]:
    """Versions that could not be read, set aside; a person may delete them."""
    return sorted(layout.registry_edits.glob(f"{_DAMAGED}*"))


def _state(layout: Layout) -> State | None:
    """None when there is none, or none that can be used."""
    return load_or_none(State, layout.registry_state)


def _rebuilt(layout: Layout) -> Registry:
    """From registry.json where it is whole, and from the published files.

    An entry that claims to be published counts when its file has the hash that it names; a file
    without such an entry is pinned as it is found.
    """
    tools: dict[str, Tool] = {}
    for entry in _entries(_content(layout.registry) or b"")[0]:
        with suppress(ValidationError):
            tool = Tool.model_validate(entry)
            if tool.status in ("requested", "discarded") or tool.sha256 == _hash(layout, tool):
                tools.setdefault(tool.tool_id, tool)
    for path in sorted(layout.published_tools.glob("*.py")):
        if ID.fullmatch(path.stem) and path.stem not in tools:
            tool = Tool(tool_id=path.stem, title=path.stem, status="published")
            tool.sha256, tool.path = _hash(layout, tool), str(path)
            tool.decided_at, tool.notes = now(), "found when the registry was made anew"
            if tool.sha256:
                tools[tool.tool_id] = tool
    return _registry(layout, tools.values())


def _hash(layout: Layout, tool: Tool) -> str:
    try:
        content = read_bytes(layout.published_tool(tool.tool_id), SCRIPT_LIMIT)
    except (FileNotFoundError, RecordError):
        return ""
    return sha256(content).hexdigest()


def _registry(layout: Layout, tools: Any) -> Registry:
    return Registry(
        updated_at=now(), shared_tools_dir=str(layout.published_tools), tools=list(tools)
    )


# ── writing ─────────────────────────────────────────────────────────────────────────────────


def update(layout: Layout, change: Callable[[Registry], None], *, doing: str) -> Registry:
    """Change the registry under its lock, and show it. What `change` raises leaves it as it was.

    Raises:
        LockError: somebody else has held the lock for too long.
        RecordError: the disk is full.
    """
    with locks.hold(layout, "registry", doing=doing):
        state = _loaded(layout)
        before = state.registry.model_copy(deep=True)
        change(state.registry)
        if state.registry.tools != before.tools:
            state.registry.updated_at = now()
        _show(layout, state)
        return state.registry


def _loaded(layout: Layout) -> State:
    state = _state(layout)
    if state is None:
        registry = _rebuilt(layout)
        if os.path.lexists(layout.registry_state):
            _set_aside(layout, layout.registry_state)
        state = State(registry=registry, shown=_registry(layout, []))
    _put_back(layout, state.marks)
    return state


def _show(layout: Layout, state: State) -> None:
    """Writes the state, and registry.json unless somebody's edit stands there."""
    shown = counted(layout, state.registry)
    content = (to_json(shown, indent=2) + "\n").encode()
    mark, there = sha256(content).hexdigest(), _content(layout.registry)
    if there is not None and _mark(there) not in state.marks:
        _save(layout, state)
        return
    state.marks = [mark, *([_mark(there)] if there is not None else [])]
    state.shown = shown
    _save(layout, state)
    if there != content:
        _replace(layout, content, state.marks)


def _save(layout: Layout, state: State) -> None:
    if (old := _state(layout)) is None or old != state:
        write_json(layout.registry_state, state)


def _replace(layout: Layout, content: bytes, marks: Sequence[str]) -> None:
    """Puts a new version in the place of one of `marks`, never in that of a newer edit."""
    path, old = layout.registry, _between(layout)
    new = path.with_name(".registry.new")
    write_atomic(new, content, durable=False)
    with suppress(FileNotFoundError):
        os.rename(path, old)
        if _mark(_content(old)) not in marks:  # written in this very moment
            new.unlink()
            with suppress(FileExistsError):
                rename_exclusive(old, path)
            return
    with suppress(FileExistsError):
        rename_exclusive(new, path)
    for rest in (old, new):
        rest.unlink(missing_ok=True)


def _between(layout: Layout) -> Path:
    """Where registry.json lies for the blink of an eye in which it is replaced."""
    return layout.registry.with_name(".registry.old")


def _put_back(layout: Layout, marks: Sequence[str]) -> None:
    """An edit that lay there when its replacer was killed is an edit all the same."""
    left = _content(_between(layout))
    if left is not None and _mark(left) not in marks:
        with suppress(FileExistsError):
            rename_exclusive(_between(layout), layout.registry)


def _content(path: Path) -> bytes | None:
    """None when nothing is there; nothing at all for what is no file."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None
    except RecordError:
        return b""


def _mark(content: bytes | None) -> str:
    return sha256(content or b"").hexdigest()


# ── edits ───────────────────────────────────────────────────────────────────────────────────


def take(layout: Layout) -> list[Edits]:
    """Takes registry.json if somebody edited it; answers with all that is still to be done.

    What was taken and not yet done when a process was killed is answered again.

    Raises:
        LockError: somebody else has held the registry for too long.
    """
    if not _edited(layout):
        return []
    with locks.hold(layout, "registry", doing="taking edits of registry.json"):
        state = _loaded(layout)
        there = _content(layout.registry)
        if there is not None and _mark(there) not in state.marks:
            _take_one(layout, state, there)
        _show(layout, state)
    return [_todo(path) for path in sorted(layout.registry_edits.glob(f"*{_TODO}"))]


def _edited(layout: Layout) -> bool:
    """Whether there may be something to take or to mend; asked every second, so without a lock."""
    there, state = _content(layout.registry), _state(layout)
    if state is None:
        return there is not None or os.path.lexists(layout.registry_state)
    if there is None or _mark(there) not in state.marks:
        return True
    return any(layout.registry_edits.glob(f"*{_TODO}"))


def _take_one(layout: Layout, state: State, content: bytes) -> None:
    entries, problem = _entries(content)
    if problem and _age(layout.registry) < STILL_WRITTEN_S:
        return
    if problem:
        _set_aside(layout, layout.registry)
        return
    stem = _stamp()
    note = layout.registry_edits / f"{stem}{_TODO}"
    write_json(note, _asked(entries, state.shown))
    kept = layout.registry_edits / f"{stem}.json"
    with suppress(FileNotFoundError):
        os.rename(layout.registry, kept)
        if (taken := _content(kept)) != content:  # written once more in this very moment
            write_json(note, _asked(_entries(taken or b"")[0], state.shown))


def _asked(entries: list[dict[str, Any]], shown: Registry) -> dict[str, Any]:
    before = {tool.tool_id: tool.model_dump(mode="json") for tool in shown.tools}
    changed = [entry for entry in entries if _differs(entry, before.get(str(entry["tool_id"])))]
    removed = sorted(before.keys() - {str(entry["tool_id"]) for entry in entries})
    return {"entries": changed, "removed": removed}


def _differs(entry: dict[str, Any], before: dict[str, Any] | None) -> bool:
    if before is None:
        return True
    return any(before.get(key) != value for key, value in entry.items() if key not in _COUNTED)


def _entries(content: bytes) -> tuple[list[dict[str, Any]], str]:
    """The entries of a registry, and why it is none."""
    try:
        value = parse_json(content)
    except ValueError as error:
        return [], str(error)
    tools = value.get("tools") if isinstance(value, dict) else value
    if not isinstance(tools, list):
        return [], "holds no list of tools"
    return [entry for entry in tools if isinstance(entry, dict) and "tool_id" in entry], ""


def _todo(note: Path) -> Edits:
    try:
        value = read_json(note)
        entries = [entry for entry in value["entries"] if "tool_id" in dict(entry)]
        return Edits(note, entries, [str(one) for one in value["removed"]], [])
    except (RecordError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        return Edits(note, [], [], [f"{note.name} cannot be used: {error}"])


def _set_aside(layout: Layout, path: Path) -> None:
    layout.registry_edits.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        os.rename(path, layout.registry_edits / f"{_DAMAGED}{_stamp()}-{path.name.lstrip('.')}")


def _stamp() -> str:
    return f"{now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"


def _age(path: Path) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0
