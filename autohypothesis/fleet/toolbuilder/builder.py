"""The tool-builder: takes what was asked for, has it built, and publishes what passes the checks.

A script comes from the shipped catalogue, else from the configured command, else from a person:
then the request stays, and the status says what to run.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from autohypothesis.engine.environment import program_environment
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, ToolError, UsageError
from autohypothesis.fleet.live import roles
from autohypothesis.fleet.toolbuilder import registry as tool_registry
from autohypothesis.fleet.toolbuilder.checks import Limits, allowed_modules
from autohypothesis.fleet.toolbuilder.process import run_words
from autohypothesis.fleet.toolbuilder.tools import (
    layout_of,
    note_failure,
    publish,
    registry,
    take_registry_edits,
)
from autohypothesis.records import locks
from autohypothesis.records.files import to_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Tool, now

ATTEMPTS = 3
COMMAND_S = 600.0
BACK_OFF_S = 30.0
"""Before the second attempt; four times as long before the third."""
LOOK_S = 1.0
NEWS_S = 5.0
"""After something changed, every look is a thorough one: an edit may still be being written."""
THOROUGH_S = 30.0
"""Between two thorough looks when nothing was seen to change."""
ROLE = "tool-builder"
LOCK_TIMEOUT_S = 2.0
REMEMBERED = 20
"""Refused edits that the status still names."""
CATALOGUE = Path(__file__).parent / "catalogue"
ALIASES = {
    "noise": {"noise", "spread", "repeatability", "variance", "min-delta", "min_delta"},
    "compare": {"compare", "comparison", "versus", "vs"},
    "importance": {"importance", "important", "sensitivity", "fanova"},
    "curves": {"curve", "curves"},
}
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n```\s*\Z", re.DOTALL)


class Stopping(Protocol):
    """What the builder asks of `fleet.stop.Stop`."""

    @property
    def requested(self) -> bool: ...

    def wait(self, seconds: float) -> bool: ...


class ToolBuilder:
    """Works on one request a turn. Several may run: whoever publishes last has said the same."""

    def __init__(
        self,
        where: Project | Layout,
        *,
        command: Sequence[str] | None = None,
        command_s: float = COMMAND_S,
        back_off_s: float = BACK_OFF_S,
        limits: Limits | None = None,
    ) -> None:
        self._layout = layout_of(where)
        self._command = list(command or ())
        self._command_s, self._back_off_s, self._limits = command_s, back_off_s, limits
        self._stop: Stopping | None = None
        self._started, self._refused = now(), list[str]()
        self._action, self._said = "", dict[str, Any]()
        self._sight: tuple[object, ...] = ()
        self._changed = self._looked = float("-inf")
        self._retries: list[datetime] = []

    def run(self, stop: Stopping) -> None:
        """Until asked to stop.

        Raises:
            LockError: another tool-builder is at work; the message names it.
        """
        with locks.hold(
            self._layout, ROLE, doing="building helper scripts", timeout=LOCK_TIMEOUT_S
        ):
            self._stop, self._started = stop, now()
            self._report("starting")
            while not stop.requested:
                try:
                    busy = self.turn()
                except (AutohypothesisError, OSError, ValueError) as error:
                    # A full disk, a lock that is held, an edit that nobody foresaw: later.
                    self._report("waiting", problem=str(error))
                    busy = False
                if not busy:
                    stop.wait(LOOK_S)
            self._report("stopped")

    def turn(self) -> bool:
        """Take edits, and work on one request that is due; whether there was one."""
        if self._nothing_is_new():
            return False
        self._refused += take_registry_edits(self._layout, limits=self._limits)
        del self._refused[:-REMEMBERED]
        tools = registry(self._layout).tools
        due = [tool for tool in tools if self._is_due(tool)]
        if not due:
            self._retries = [one.retry_at for one in tools if one.retry_at is not None]
            self._report("waiting", tools=tools)
            self._looked = time.monotonic()
            return False
        self._report("working", action=f"building {due[0].tool_id}")
        self._build(due[0])
        self._report("waiting")
        return True

    def _nothing_is_new(self) -> bool:
        """Asked every second; no file is read for it."""
        at, sight = time.monotonic(), tool_registry.sight(self._layout)
        if sight != self._sight:
            self._sight, self._changed = sight, at
        retry = any(self._looked_before(one) for one in self._retries)
        return not retry and at - self._changed > NEWS_S and at - self._looked < THOROUGH_S

    def _looked_before(self, due: datetime) -> bool:
        """Whether `due` has come since the last thorough look."""
        since = (now() - due).total_seconds()
        return 0 <= since < time.monotonic() - self._looked + LOOK_S

    # ── building ──────────────────────────────────────────────────────────────────────────

    def _is_due(self, tool: Tool) -> bool:
        return (
            tool.status == "requested"
            and tool.attempts < ATTEMPTS
            and (tool.retry_at is None or tool.retry_at <= now())
            and self._has_source(tool)
        )

    def _has_source(self, tool: Tool) -> bool:
        return bool(self._command) or from_catalogue(tool) is not None

    def _build(self, tool: Tool) -> None:
        shipped = from_catalogue(tool)
        try:
            if shipped is not None:
                content, origin = shipped.read_bytes(), f"from the catalogue: {shipped.stem}"
            else:
                content, origin = self._ask(tool), f"built by {self._command[0]}"
            publish(
                self._layout, tool.tool_id, content, decided_by=ROLE, notes=origin,
                limits=self._limits, cancelled=self._asked_to_stop,
            )  # fmt: skip
        except (ToolError, OSError, ValueError) as error:
            why = error.problem if isinstance(error, ToolError) else str(error)
            if not self._asked_to_stop():
                pause = self._back_off_s * 4**tool.attempts
                note_failure(self._layout, tool.tool_id, why, retry_in_s=pause)
                self._action = f"{tool.tool_id} failed: {why}"
        else:
            self._action = f"published {tool.tool_id}, {origin}"

    def _ask(self, tool: Tool) -> bytes:
        """What the configured command prints."""
        asked = {
            "tool_id": tool.tool_id,
            "title": tool.title,
            "problem": tool.problem,
            "rules": rules(),
            "last_failure": tool.notes if tool.attempts else "",
        }
        ended = run_words(
            self._command,
            stdin=to_json(asked).encode() + b"\n",
            timeout_s=self._command_s,
            cwd=self._layout.root,
            environment=program_environment(os.environ),
            cancelled=self._asked_to_stop,
        )
        if ended.exit_code is None:
            raise ToolError(f"{self._command[0]} took over {self._command_s:g} s")
        if ended.exit_code != 0:
            words = ended.last_words()
            raise ToolError(f"{self._command[0]} ended with {ended.exit_code}: {words}")
        fenced = _FENCE.match(ended.out)
        return (fenced[1] + "\n" if fenced else ended.out).encode()

    def _asked_to_stop(self) -> bool:
        return self._stop is not None and self._stop.requested

    # ── how it stands ─────────────────────────────────────────────────────────────────────

    def _report(
        self,
        state: str,
        *,
        action: str = "",
        problem: str = "",
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Writes the status when it says something new; on a full disk, later."""
        self._action = action or self._action
        tools = registry(self._layout).tools if tools is None else tools
        said = {
            "state": state,
            "last_action": self._action,
            "problems": [*([problem] if problem else []), *self._problems(tools)],
            "details": {
                status: sum(tool.status == status for tool in tools)
                for status in ("requested", "published", "adopted", "discarded")
            },
        }
        if said != self._said:
            status = roles.own(ROLE, started_at=self._started, last_action_at=now(), **said)
            with suppress(AutohypothesisError):
                roles.report(self._layout, status)
                self._said = said

    def _problems(self, tools: Sequence[Tool]) -> list[str]:
        damaged = [
            f"{path} could not be read; the registry was made anew without it"
            for path in tool_registry.damaged(self._layout)
        ]
        return [*damaged, *filter(None, map(self._for_a_person, tools)), *self._refused]

    def _for_a_person(self, tool: Tool) -> str:
        """What a person has to do about a request, if anything."""
        if tool.status != "requested":
            return ""
        hint = f"for a person: python orchestrator.py tools publish {tool.tool_id} PATH"
        if tool.attempts >= ATTEMPTS:
            return f"tool {tool.tool_id!r} failed {tool.attempts} times ({tool.notes}); {hint}"
        return "" if self._has_source(tool) else f"tool {tool.tool_id!r} is requested, {hint}"


def command_words(command: str) -> list[str]:
    """The words of the command that is asked for scripts; none when it is empty.

    Raises:
        UsageError: its quotes do not match.
    """
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(
            f"the command {command!r} of the tool-builder cannot be read: {error}",
            hint='quote it as a whole: --tool-command "PROGRAM WORD"',
        ) from None


def from_catalogue(tool: Tool) -> Path | None:
    """The shipped script that a request means: by its id, else by the one word in its problem."""
    for name in ALIASES:
        if tool.tool_id == name or tool.tool_id in ALIASES[name]:
            return CATALOGUE / f"{name}.py"
    words = set(re.findall(r"[a-z_-]+", f"{tool.title} {tool.problem}".lower()))
    named = [name for name, aliases in ALIASES.items() if words & aliases]
    return CATALOGUE / f"{named[0]}.py" if len(named) == 1 else None


def rules() -> str:
    """What a script must keep to, in words for whoever writes one."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=False
    )
    modules = sorted(allowed_modules() - sys.stdlib_module_names)
    return environment.get_template("tool_rules.md.j2").render(modules=modules)
