"""Helper scripts: asked for, published after checks, run by name, taken back.

Whoever publishes (the tool-builder, a person, an edit of registry.json), the same checks are made,
and the script is pinned by its hash: a published file that was changed is not run.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from autohypothesis.engine.program import Ended
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, LockError, RecordError, ToolError
from autohypothesis.fleet.toolbuilder import guard as tool_guard
from autohypothesis.fleet.toolbuilder import registry as tool_registry
from autohypothesis.fleet.toolbuilder.checks import Limits, check
from autohypothesis.fleet.toolbuilder.process import Script, run_script
from autohypothesis.fleet.toolbuilder.registry import RUNNABLE, SCRIPT_LIMIT, Edits, find
from autohypothesis.records import jsonl, locks
from autohypothesis.records.files import parse_json, read_bytes, write_atomic
from autohypothesis.records.layout import Layout, checked_id
from autohypothesis.schema import Registry, Tool, nearest, now, rfc3339

RUN_S = 300.0
"""Seconds that a call of a script may take."""
OUT_OF_TIME = 124
"""The exit code of a call that was ended, as timeout(1) has it."""
TEXT_LIMIT = 4_000
"""Characters of a problem or a note."""


def layout_of(where: Project | Layout) -> Layout:
    return where.layout if isinstance(where, Project) else where


# ── asking and publishing ───────────────────────────────────────────────────────────────────


def registry(where: Project | Layout) -> Registry:
    """All tools, with their calls counted. Only reads."""
    return tool_registry.read(layout_of(where))


def request(
    where: Project | Layout,
    tool_id: str,
    *,
    problem: str,
    requested_by: str,
    title: str = "",
    by_person: bool = False,
) -> Tool:
    """Ask for a tool. One that is there, or was asked for already, is answered with as it is.

    Args:
        by_person: one that was discarded is asked for again; a program's request leaves it so.

    Raises:
        UsageError: the name is no id.
        LockError, RecordError: the registry cannot be written.
    """
    checked_id(tool_id)

    def ask(found: Registry) -> None:
        old = find(found, tool_id)
        if old is not None and not (by_person and old.status == "discarded"):
            return
        _put(
            found,
            Tool(
                tool_id=tool_id,
                title=title or tool_id,
                status="requested",
                requested_at=now(),
                requested_by=requested_by,
                problem=problem[:TEXT_LIMIT],
            ),
        )

    return _one(tool_registry.update(layout_of(where), ask, doing=f"asking for {tool_id}"), tool_id)


def publish(
    where: Project | Layout,
    tool_id: str,
    source: Path | bytes,
    *,
    decided_by: str,
    title: str = "",
    notes: str = "",
    limits: Limits | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tool:
    """Check a script, pin it, and let everybody run it; an older one of this name is replaced.

    Raises:
        ToolError: it fails a check, or is no file.
        UsageError: the name is no id.
    """
    layout = layout_of(where)
    path = layout.published_tool(tool_id)
    content = source if isinstance(source, bytes) else _read(source, tool_id)
    checked = check(layout, tool_id, content, limits=limits, cancelled=cancelled)

    def put(found: Registry) -> None:
        old = find(found, tool_id) or Tool(tool_id=tool_id, title=tool_id, status="requested")
        write_atomic(path, content)
        os.chmod(path, 0o444)
        update = {
            **checked._asdict(),
            "title": title or old.title,
            "status": "published",
            "path": str(path),
            "decided_at": now(),
            "decided_by": decided_by,
            "notes": notes[:TEXT_LIMIT],
            "attempts": 0,
            "retry_at": None,
        }
        _put(found, old.model_copy(update=update))

    return _one(tool_registry.update(layout, put, doing=f"publishing {tool_id}"), tool_id)


def decide(
    where: Project | Layout,
    tool_id: str,
    status: Literal["adopted", "discarded"],
    *,
    decided_by: str,
    notes: str = "",
) -> Tool:
    """Record that a tool is in use, or is not to be used any more.

    Raises:
        ToolError: there is none of this name, or it is not published.
    """

    def record(found: Registry) -> None:
        old = _known(found, tool_id)
        if status == "adopted" and old.status not in RUNNABLE:
            raise ToolError(
                f"tool {tool_id!r} is {old.status}, and only a published one is adopted"
            )
        update = {"status": status, "decided_at": now(), "decided_by": decided_by}
        _put(found, old.model_copy(update={**update, "notes": notes or old.notes}))

    return _one(
        tool_registry.update(layout_of(where), record, doing=f"{tool_id}: {status}"), tool_id
    )


def note_failure(where: Project | Layout, tool_id: str, why: str, *, retry_in_s: float) -> None:
    """Record that building a requested tool has failed, and when to try again."""

    def record(found: Registry) -> None:
        old = find(found, tool_id)
        if old is not None and old.status == "requested":
            update = {
                "attempts": old.attempts + 1,
                "retry_at": now() + timedelta(seconds=retry_in_s),
                "notes": why[:TEXT_LIMIT],
            }
            _put(found, old.model_copy(update=update))

    tool_registry.update(layout_of(where), record, doing=f"a failed attempt at {tool_id}")


def _read(path: Path, tool_id: str) -> bytes:
    try:
        return read_bytes(path, SCRIPT_LIMIT)
    except (FileNotFoundError, RecordError, ValueError) as error:
        raise ToolError(
            f"tool {tool_id!r} cannot be published: {_why_not(path, error)}",
            hint=f"`python orchestrator.py tools publish {tool_id} PATH`",
        ) from None


def _why_not(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}"
    return error.problem if isinstance(error, RecordError) else f"{str(path)!r}: {error}"


def _put(found: Registry, tool: Tool) -> None:
    for index, old in enumerate(found.tools):
        if old.tool_id == tool.tool_id:
            found.tools[index] = tool
            return
    found.tools.append(tool)


def _one(found: Registry, tool_id: str) -> Tool:
    tool = find(found, tool_id)
    assert tool is not None
    return tool


def _known(found: Registry, tool_id: str) -> Tool:
    tool = find(found, tool_id)
    if tool is None:
        near = nearest(tool_id, [tool.tool_id for tool in found.tools])
        raise ToolError(
            f"no tool is called {tool_id!r}{near}",
            hint="`python orchestrator.py tools list` names them",
        )
    return tool


# ── running ─────────────────────────────────────────────────────────────────────────────────


def run(
    where: Project | Layout,
    tool_id: str,
    arguments: Sequence[str] = (),
    *,
    timeout_s: float = RUN_S,
    capture: bool = True,
    cwd: Path | None = None,
) -> Ended:
    """Call a published tool; a line of calls.jsonl says how that went.

    Raises:
        ToolError: it is unknown, not published, or its file was changed.
    """
    layout = layout_of(where)
    script = _verified(layout, tool_id)
    ended = run_script(
        script,
        ["--research", str(layout.research), *arguments],
        read_only=[layout.research],
        timeout_s=timeout_s,
        cwd=cwd or layout.root,
        capture=capture,
    )
    if ended.exit_code == tool_guard.CHANGED:
        raise _changed(layout, tool_id)
    call = {"time": rfc3339(now()), "tool_id": tool_id, "exit_code": ended.exit_code}
    jsonl.append(layout.tool_calls, {**call, "seconds": round(ended.seconds, 3)})
    return ended


def figure(
    where: Project | Layout,
    tool_id: str,
    arguments: Sequence[str] = (),
    *,
    timeout_s: float = RUN_S,
) -> dict[str, Any]:
    """What a published tool answers with `--json`.

    Raises:
        ToolError: as `run` does; or the call fails, or its answer is no JSON object.
    """
    ended = run(where, tool_id, ["--json", *arguments], timeout_s=timeout_s)
    hint = f"`python orchestrator.py tools run {tool_id} --json`"
    if ended.exit_code is None:
        raise ToolError(f"tool {tool_id!r} took over {timeout_s:g} s", hint=hint)
    if ended.exit_code != 0:
        raise ToolError(
            f"tool {tool_id!r} ended with {ended.exit_code}: {ended.last_words()}", hint=hint
        )
    try:
        answer = parse_json(ended.out.encode())
    except ValueError as error:
        raise ToolError(f"what tool {tool_id!r} printed {error}", hint=hint) from None
    if not isinstance(answer, dict):
        raise ToolError(f"tool {tool_id!r} answers with no JSON object", hint=hint)
    return answer


def _verified(layout: Layout, tool_id: str) -> Script:
    tool = _known(tool_registry.read(layout), tool_id)
    if tool.status not in RUNNABLE:
        raise ToolError(
            f"tool {tool_id!r} is {tool.status}, not published",
            hint=f"publish it with `python orchestrator.py tools publish {tool_id} PATH`",
        )
    path = layout.published_tool(tool_id)
    try:
        content = read_bytes(path, SCRIPT_LIMIT)
    except (FileNotFoundError, RecordError):
        raise _changed(layout, tool_id) from None
    if sha256(content).hexdigest() != tool.sha256:
        raise _changed(layout, tool_id)
    return Script(path, tool.sha256)


def _changed(layout: Layout, tool_id: str) -> ToolError:
    path = layout.published_tool(tool_id)
    command = f"python orchestrator.py tools publish {tool_id} {shlex.quote(str(path))}"
    return ToolError(
        f"{path} is not the file that was published as {tool_id!r}",
        hint=f"if it is to be run: {command}",
    )


# ── edits of registry.json ──────────────────────────────────────────────────────────────────


def take_registry_edits(where: Project | Layout, *, limits: Limits | None = None) -> list[str]:
    """Obey what somebody wrote into registry.json; answers with a line for each refusal.

    May take seconds where a script is to be published: its checks are made first. When somebody
    else is at it, nothing is done here.
    """
    layout = layout_of(where)
    try:
        with locks.hold(layout, "registry-edits", doing="edits of registry.json", timeout=0.0):
            return _obey_all(layout, tool_registry.take(layout), limits)
    except LockError:
        return []


def _obey_all(layout: Layout, taken: list[Edits], limits: Limits | None) -> list[str]:
    refused: list[str] = []
    for edits in taken:
        refused += edits.problems
        try:
            for entry in edits.entries:
                refused += _obeyed(layout, entry, limits)
        finally:  # only a kill has it obeyed again: what fails once would fail for ever
            edits.note.unlink(missing_ok=True)
        refused += [
            f"registry.json: {tool_id!r} was left out, and stays; set its status to discarded"
            for tool_id in edits.removed
        ]
    return refused


def _obeyed(layout: Layout, entry: Mapping[str, Any], limits: Limits | None) -> list[str]:
    """Does what an entry says; answers with why not."""
    try:
        _obey(layout, entry, limits)
    except AutohypothesisError as error:
        return [f"registry.json: {error.problem}"]
    except (OSError, ValueError) as error:
        return [f"registry.json: entry {str(entry.get('tool_id'))!r:.80}: {error}"]
    return []


def _obey(layout: Layout, entry: Mapping[str, Any], limits: Limits | None) -> None:
    asked = _asked(entry)
    by = asked.decided_by or "by hand"
    if asked.status == "requested":
        request(
            layout, asked.tool_id, title=asked.title, problem=asked.problem,
            requested_by=asked.requested_by or "by hand", by_person=True,
        )  # fmt: skip
    elif asked.status == "discarded":
        decide(layout, asked.tool_id, "discarded", decided_by=by)
    else:
        content = _content_of(layout, asked)
        if content is not None:
            publish(layout, asked.tool_id, content, decided_by=by, limits=limits)
        if asked.status == "adopted":
            decide(layout, asked.tool_id, "adopted", decided_by=by)
    _take_texts(layout, asked)


def _asked(entry: Mapping[str, Any]) -> Tool:
    """The entry as a model; a title is not asked of older protocols."""
    try:
        return Tool.model_validate({"title": str(entry["tool_id"]), **entry})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ToolError(f"entry {entry['tool_id']!r:.80}: {field} {first['msg']}".strip()) from None


def _content_of(layout: Layout, asked: Tool) -> bytes | None:
    """The script that is to be published; None when it is the one that is published already."""
    old = find(tool_registry.read(layout), asked.tool_id)
    published = old is not None and old.status in RUNNABLE
    if published and not asked.path:
        return None
    if not asked.path:
        raise ToolError(f"entry {asked.tool_id!r} is {asked.status}, and names no path")
    folders = (layout.root, layout.published_tools.parent, layout.published_tools)
    places = [folder / asked.path for folder in folders]
    path = next((place for place in places if os.path.lexists(place)), places[0])
    content = _read(path, asked.tool_id)
    same = published and old is not None and sha256(content).hexdigest() == old.sha256
    return None if same else content


def _take_texts(layout: Layout, asked: Tool) -> None:
    """Title, problem and notes as somebody wrote them; a new problem is worth new attempts."""

    def write(found: Registry) -> None:
        old = _known(found, asked.tool_id)
        update: dict[str, Any] = {"title": asked.title, "notes": asked.notes or old.notes}
        if asked.problem and asked.problem != old.problem:
            update |= {"problem": asked.problem[:TEXT_LIMIT], "attempts": 0, "retry_at": None}
        _put(found, old.model_copy(update=update))

    tool_registry.update(layout, write, doing=f"texts of {asked.tool_id}")
