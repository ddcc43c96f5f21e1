"""The tool-builder: builds requested helper scripts, and publishes those that pass the checks.

A script comes from the shipped catalogue, else from the configured command, else from a person:
then the request stays, and the status says what to run.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from autohypothesis.engine.environment import program_environment
from autohypothesis.errors import AutohypothesisError, ToolError, UsageError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.fleet.toolbuilder.checks import allowed_modules, run_command
from autohypothesis.plain import templates
from autohypothesis.records import locks
from autohypothesis.records.files import file_stamp, to_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Tool, now

ATTEMPTS = 3
COMMAND_S = 600.0
BACK_OFF_S = 30.0
"""Pause before the second attempt; four times as long before the third."""
LOOK_S = 1.0
ROLE = "tool-builder"
LOCK_TIMEOUT_S = 2.0
ALIASES = {
    "noise": {"noise", "spread", "repeatability", "variance", "min-delta", "min_delta"},
    "compare": {"compare", "comparison", "versus", "vs"},
    "importance": {"importance", "important", "sensitivity", "fanova"},
    "curves": {"curve", "curves"},
}
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n```\s*\Z", re.DOTALL)


class ToolBuilder:
    """Works on one request a turn. Two at once publish the same, so they do no harm."""

    def __init__(self, layout: Layout, *, command: Sequence[str] = ()) -> None:
        self._layout, self._command = layout, list(command)
        self._stop: StopRequest | None = None
        self._started, self._action, self._reported = now(), "", dict[str, Any]()
        self._seen: tuple[object, ...] = ()
        self._retry_at: datetime | None = None

    def run(self, stop: StopRequest) -> None:
        """Build scripts until asked to stop.

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
                except (AutohypothesisError, OSError) as error:  # a full disk, a held lock: later
                    self._report("waiting", problem=str(error))
                    busy = False
                if not busy:
                    stop.wait(LOOK_S)
            self._report("stopped")

    def turn(self) -> bool:
        """Work on one request that is due; return whether there was one.

        No file is read while the registry stays as it is and no failed attempt is due again.
        """
        shown, calls = self._layout.registry, self._layout.tool_calls
        paths = (shown, self._layout.written_copy(shown), calls)
        seen = tuple(file_stamp(path) for path in paths)
        if seen == self._seen and not (self._retry_at and self._retry_at <= now()):
            return False
        open_requests = [
            tool
            for tool in tools.refresh(self._layout).tools
            if tool.status == "requested" and tool.attempts < ATTEMPTS and self._has_source(tool)
        ]
        due = [tool for tool in open_requests if not tool.retry_at or tool.retry_at <= now()]
        if not due:
            waiting = (tool.retry_at for tool in open_requests if tool.retry_at)
            self._seen, self._retry_at = seen, min(waiting, default=None)
            self._report("waiting")
            return False
        self._report("working", action=f"building {due[0].tool_id}")
        self._report("waiting", action=self._build(due[0]))
        return True

    def _has_source(self, tool: Tool) -> bool:
        return bool(self._command) or from_catalogue(tool) is not None

    def _build(self, tool: Tool) -> str:
        """Publish what was asked for, or note why it cannot be; return what was done, in words."""
        shipped = from_catalogue(tool)
        try:
            if shipped is not None:
                content, origin = shipped.read_bytes(), f"from the catalogue: {shipped.stem}"
            else:
                content, origin = self._ask(tool), f"built by {self._command[0]}"
            tools.publish(
                self._layout, tool.tool_id, content, decided_by=ROLE, notes=origin,
                cancelled=self._asked_to_stop,
            )  # fmt: skip
        except (ToolError, OSError) as error:
            if self._asked_to_stop():
                return ""
            why = error.problem if isinstance(error, ToolError) else str(error)
            tools.note_failure(self._layout, tool, why, BACK_OFF_S * 4**tool.attempts)
            return f"{tool.tool_id} failed: {why}"
        return f"published {tool.tool_id}, {origin}"

    def _ask(self, tool: Tool) -> bytes:
        """Return the script that the configured command prints."""
        asked = {
            "tool_id": tool.tool_id,
            "title": tool.title,
            "problem": tool.problem,
            "rules": rules(),
            "last_failure": tool.notes if tool.attempts else "",
        }
        ended = run_command(
            self._command,
            stdin=to_json(asked).encode() + b"\n",
            timeout_s=COMMAND_S,
            cwd=self._layout.root,
            environment=program_environment(os.environ),
            cancelled=self._asked_to_stop,
        )
        if ended.exit_code is None:
            raise ToolError(f"{self._command[0]} took over {COMMAND_S:g} s")
        if ended.exit_code != 0:
            words = ended.last_words()
            raise ToolError(f"{self._command[0]} ended with {ended.exit_code}: {words}")
        fenced = _FENCE.match(ended.out)
        return (fenced[1] + "\n" if fenced else ended.out).encode()

    def _asked_to_stop(self) -> bool:
        return self._stop is not None and self._stop.requested

    def _report(self, state: str, *, action: str = "", problem: str = "") -> None:
        """Write the status when it changed; on a full disk, later."""
        self._action = action or self._action
        found = tools.registry(self._layout).tools
        counts = Counter(tool.status for tool in found)
        report = {
            "state": state,
            "last_action": self._action,
            "problems": [one for one in (problem, *map(self._manual_action, found)) if one],
            "details": {
                status: counts[status]
                for status in ("requested", "published", "adopted", "discarded")
            },
        }
        if report != self._reported:
            status = presence.own_status(
                ROLE, started_at=self._started, last_action_at=now(), **report
            )
            with suppress(AutohypothesisError):
                presence.write_role(self._layout, status)
                self._reported = report

    def _manual_action(self, tool: Tool) -> str:
        """Return what a person has to do about a request; empty where that is nothing."""
        if tool.status != "requested":
            return ""
        hint = f"for a person: python orchestrator.py tools publish {tool.tool_id} PATH"
        if tool.attempts >= ATTEMPTS:
            return f"tool {tool.tool_id!r} failed {tool.attempts} times ({tool.notes}); {hint}"
        return "" if self._has_source(tool) else f"tool {tool.tool_id!r} is requested, {hint}"


def command_words(command: str) -> list[str]:
    """Return the words of the command that is asked for scripts.

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
    """Return the shipped script that a request means: by its id, else by a word of its problem."""
    words = set(re.findall(r"[a-z_-]+", f"{tool.title} {tool.problem}".lower()))
    for wanted in ({tool.tool_id}, words):
        named = [name for name, aliases in ALIASES.items() if wanted & aliases]
        if len(named) == 1:
            return tools.CATALOGUE / f"{named[0]}.py"
    return None


def rules() -> str:
    """Return the rules for scripts, for the program that writes one."""
    environment = templates(Path(__file__).parent / "templates")
    modules = sorted(allowed_modules() - sys.stdlib_module_names)
    return environment.get_template("tool_rules.md.j2").render(modules=modules)
