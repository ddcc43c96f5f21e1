"""Helper scripts: request, publish after checks, adopt, discard and run them.

The functions here are the only writers of the registry, under one lock. `registry.json` shows it;
an edit of that file is moved to `research/conflicts/`. A published script is pinned by its hash: a
file that was changed is not run.
"""

from __future__ import annotations

import ast
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from autohypothesis.engine.program import ProgramEnd
from autohypothesis.errors import RecordError, ToolError
from autohypothesis.fleet.toolbuilder import guard
from autohypothesis.fleet.toolbuilder.checks import check, run_script
from autohypothesis.records import jsonl, locks
from autohypothesis.records.files import parse_json, read_bytes, to_json, write_atomic
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.records.outputs import DerivedFile
from autohypothesis.schema import Registry, Tool, did_you_mean, now, rfc3339

RUN_S = 300.0
"""Seconds that a call of a script may take."""
OUT_OF_TIME = 124
"""The exit code of a call that was ended, as timeout(1) has it."""
TEXT_LIMIT = 4_000
"""Characters of a problem or a note."""
SCRIPT_LIMIT = 256 * 1024
"""Bytes of a script."""
RUNNABLE = ("published", "adopted")
CATALOGUE = Path(__file__).parent / "catalogue"
_READER = f"{__package__}.catalogue.reader"


def registry(layout: Layout) -> Registry:
    """Return all tools with their calls counted, without writing anything."""
    return _counted(layout, _stored(layout))


def refresh(layout: Layout) -> Registry:
    """Move edits of registry.json to `research/conflicts/`, show the present calls; return all.

    Raises:
        LockError: another process has held the registry for too long.
        RecordError: the disk is full.
    """
    with locks.hold(layout, "registry", doing="counting the calls of tools"):
        found = registry(layout)
        is_shown = layout.registry.exists() or not found.tools
        if _file(layout).move_edits() or not is_shown or found != _stored(layout):
            _show(layout, found)
        return found


def _file(layout: Layout) -> DerivedFile:
    remedy = "use `python orchestrator.py tools request`, `publish`, `adopt` or `discard`"
    return DerivedFile(layout, layout.registry, remedy=remedy)


def _stored(layout: Layout) -> Registry:
    """Return what was written last, else what the files show: registry.json, published scripts."""
    for read in (_file(layout).content, lambda: read_bytes(layout.registry)):
        with suppress(FileNotFoundError, RecordError, ValueError):
            return Registry.model_validate(parse_json(read() or b""))
    scripts = [path for path in layout.published_tools.glob("*.py") if ID.fullmatch(path.stem)]
    tools = [
        Tool(
            tool_id=path.stem, title=path.stem, status="published", path=str(path),
            sha256=sha256(read_bytes(path, SCRIPT_LIMIT)).hexdigest(),
            decided_at=now(), notes="found when the registry was made anew",
        )
        for path in sorted(scripts) if path.is_file()
    ]  # fmt: skip
    folder = str(layout.published_tools)
    return Registry(updated_at=now(), shared_tools_dir=folder, tools=tools)


def _counted(layout: Layout, registry: Registry) -> Registry:
    """Return a copy with calls and failures from calls.jsonl; a damaged line counts as no call."""
    calls, failures = Counter[str](), Counter[str]()
    for call in jsonl.read(layout.tool_calls)[0]:
        calls[str(call.get("tool_id"))] += 1
        failures[str(call.get("tool_id"))] += call.get("exit_code") != 0
    tools = [
        tool.model_copy(update={"calls": calls[tool.tool_id], "failures": failures[tool.tool_id]})
        for tool in registry.tools
    ]
    return registry.model_copy(update={"tools": tools})


def _show(layout: Layout, registry: Registry) -> None:
    content = to_json(_counted(layout, registry), indent=2) + "\n"
    _file(layout).write(content.encode())


@contextmanager
def _changing(layout: Layout, doing: str) -> Iterator[dict[str, Tool]]:
    """Yield the tools by their ids, under the registry's lock; what the block changes is written.

    Raises:
        LockError, RecordError: the registry cannot be written.
    """
    with locks.hold(layout, "registry", doing=doing):
        before = _stored(layout)
        known = {tool.tool_id: tool for tool in before.tools}
        yield known
        tools = list(known.values())
        if tools != before.tools:
            _show(layout, before.model_copy(update={"tools": tools, "updated_at": now()}))


def _named(known: Mapping[str, Tool], tool_id: str) -> Tool:
    if tool_id not in known:
        raise ToolError(
            f"no tool is called {tool_id!r}{did_you_mean(tool_id, list(known))}",
            hint="`python orchestrator.py tools list` names them",
        )
    return known[tool_id]


def request(
    layout: Layout,
    tool_id: str,
    *,
    problem: str,
    requested_by: str,
    title: str = "",
    by_person: bool = False,
) -> Tool:
    """Ask for a tool, and return it; one that exists or was asked for is returned as it is.

    Args:
        by_person: a discarded tool is asked for again, and a new problem of a requested one is
            worth new attempts. A program's request changes neither.

    Raises:
        UsageError: the name is no id.
        LockError, RecordError: the registry cannot be written.
    """
    asked = Tool(
        tool_id=checked_id(tool_id), title=title or tool_id, status="requested",
        requested_at=now(), requested_by=requested_by, problem=problem[:TEXT_LIMIT],
    )  # fmt: skip
    with _changing(layout, f"asking for {tool_id}") as known:
        old = known.setdefault(tool_id, asked)
        is_same = old.status == "requested" and old.problem == asked.problem
        if by_person and old.status not in RUNNABLE and not is_same:
            known[tool_id] = asked
        return known[tool_id]


def publish(
    layout: Layout,
    tool_id: str,
    source: Path | bytes,
    *,
    decided_by: str,
    title: str = "",
    notes: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> Tool:
    """Check a script, pin it by its hash, and let it be run; it replaces one of the same name.

    Raises:
        ToolError: it fails a check, or is no file.
        UsageError: the name is no id.
    """
    path = layout.published_tool(tool_id)
    content = with_reader(source if isinstance(source, bytes) else _read(source, tool_id))
    update = {
        **check(layout, tool_id, content, cancelled=cancelled),
        "status": "published",
        "path": str(path),
        "decided_at": now(),
        "decided_by": decided_by,
        "notes": notes[:TEXT_LIMIT],
        "attempts": 0,
        "retry_at": None,
    }
    with _changing(layout, f"publishing {tool_id}") as known:
        write_atomic(path, content)
        os.chmod(path, 0o444)
        old = known.get(tool_id) or Tool(tool_id=tool_id, title=tool_id, status="requested")
        known[tool_id] = old.model_copy(update={**update, "title": title or old.title})
        return known[tool_id]


def with_reader(source: bytes) -> bytes:
    """Return a script with the catalogue's reader in place of its import of it."""
    if _READER.encode() not in source:
        return source
    with suppress(SyntaxError, ValueError):
        lines = source.decode().splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.module == _READER:
                text = (CATALOGUE / "reader.py").read_text("utf-8")
                reader = text.partition("from __future__ import annotations\n")[2]
                lines[node.lineno - 1 : node.end_lineno] = [reader]
                return "".join(lines).encode()
    return source


def _read(path: Path, tool_id: str) -> bytes:
    try:
        return read_bytes(path, SCRIPT_LIMIT)
    except FileNotFoundError:
        why = f"there is no file {path}"
    except RecordError as error:
        why = error.problem
    except ValueError as error:
        why = f"{str(path)!r}: {error}"
    raise ToolError(
        f"tool {tool_id!r} cannot be published: {why}",
        hint=f"`python orchestrator.py tools publish {tool_id} PATH`",
    )


def decide(
    layout: Layout,
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
    with _changing(layout, f"{tool_id}: {status}") as known:
        old = _named(known, tool_id)
        if status == "adopted" and old.status not in RUNNABLE:
            raise ToolError(
                f"tool {tool_id!r} is {old.status}, and only a published one is adopted"
            )
        update = {"status": status, "decided_at": now(), "decided_by": decided_by}
        update["notes"] = notes[:TEXT_LIMIT] or old.notes
        known[tool_id] = old.model_copy(update=update)
        return known[tool_id]


def note_failure(layout: Layout, tool: Tool, why: str, retry_in_s: float) -> None:
    """Record that building a requested tool has failed, and when to try again."""
    with _changing(layout, f"a failed attempt at {tool.tool_id}") as known:
        old = known.get(tool.tool_id)
        if old is not None and old.status == "requested":
            retry_at = now() + timedelta(seconds=retry_in_s)
            update = {"attempts": old.attempts + 1, "retry_at": retry_at, "notes": why[:TEXT_LIMIT]}
            known[tool.tool_id] = old.model_copy(update=update)


def run(
    layout: Layout,
    tool_id: str,
    arguments: Sequence[str] = (),
    *,
    timeout_s: float | None = None,
    capture: bool = True,
    cwd: Path | None = None,
) -> ProgramEnd:
    """Call a published tool, and add a line to calls.jsonl.

    Args:
        timeout_s: default: `RUN_S`.

    Raises:
        ToolError: it is unknown, not published, or its file was changed.
    """
    tool = _named({tool.tool_id: tool for tool in _stored(layout).tools}, tool_id)
    if tool.status not in RUNNABLE:
        raise ToolError(
            f"tool {tool_id!r} is {tool.status}, not published",
            hint=f"publish it with `python orchestrator.py tools publish {tool_id} PATH`",
        )
    path = layout.published_tool(tool_id)
    changed = ToolError(
        f"{path} is not the file that was published as {tool_id!r}",
        hint=f"if it is to be run: python orchestrator.py tools publish {tool_id}"
        f" {shlex.quote(str(path))}",
    )
    if not path.is_file() or path.is_symlink():
        raise changed
    ended = run_script(
        path,
        tool.sha256,
        ["--research", str(layout.research), *arguments],
        read_only=layout.research,
        timeout_s=RUN_S if timeout_s is None else timeout_s,
        cwd=cwd or layout.root,
        capture=capture,
    )
    if ended.exit_code == guard.EXIT_CHANGED:
        raise changed
    call = {"time": rfc3339(now()), "tool_id": tool_id, "exit_code": ended.exit_code}
    jsonl.append(layout.tool_calls, {**call, "seconds": round(ended.seconds, 3)})
    return ended


def figure(layout: Layout, tool_id: str) -> dict[str, Any]:
    """Return the JSON object that a published tool prints with `--json`.

    Raises:
        ToolError: as `run` does; or the call fails, or its answer is no JSON object.
    """
    ended = run(layout, tool_id, ["--json"])
    hint = f"`python orchestrator.py tools run {tool_id} --json`"
    if ended.exit_code is None:
        raise ToolError(f"tool {tool_id!r} took over {RUN_S:g} s", hint=hint)
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
