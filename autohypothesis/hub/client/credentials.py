"""Who we are to a hub: read from three places, and written so that nobody else reads it.

The repository's own come first, in its `.git`, where nothing is ever committed; then the file that
$AGENTHUB_CONFIG names; then `~/.agenthub/config.json`. All have the keys of the `ah` client. A file
that is there and cannot be used is an error, never a reason to be somebody else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from autohypothesis.errors import HubError, RecordError, UsageError
from autohypothesis.hub.client.address import checked_server
from autohypothesis.hub.client.wire import AGENT
from autohypothesis.records.files import parse_json, read_bytes, to_json, write_atomic

FILE_LIMIT = 64 * 1024
PRIVATE = 0o600
KEY = re.compile(r"[\x21-\x7e]{1,512}")
"""A key: it travels in a header, so it is printable and has no blanks."""

_LINE = re.compile(
    r"""\s*(?:export\s+)?(HUB_KEY|AGENT_ID)=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s"'\\$`;&|<>()]*))\s*"""
)
_JOIN = "join one: python orchestrator.py hub join URL --name NAME"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An agent of one hub. The key shows itself in no message and no traceback."""

    server: str
    agent: str
    key: SecretStr
    source: str = ""
    """The file that it was read from."""


def own_file(common_dir: Path) -> Path:
    """Of a repository by its `.git`, which all its worktrees share."""
    return common_dir / "autohypothesis" / "hub.json"


def shell_file() -> Path:
    """What the protocol's shell lines look for."""
    return Path.home() / ".agenthub_creds"


def find(common_dir: Path | None) -> Credentials:
    """The credentials that count here.

    Raises:
        HubError: there are none, or the file that counts cannot be used.
    """
    named = os.environ.get("AGENTHUB_CONFIG")
    places = [own_file(common_dir)] if common_dir is not None else []
    places += [Path(named).expanduser()] if named else []
    places += [Path.home() / ".agenthub" / "config.json"]
    for place in places:
        found = read(place)
        if found is not None:
            return found
        if named and place == Path(named).expanduser():
            raise HubError(f"$AGENTHUB_CONFIG names {place}, which is not there", hint=_JOIN)
    raise HubError("no hub is joined here", hint=_JOIN)


def of_server(common_dir: Path, server: str) -> Credentials:
    """Those that count here, which have to be of that hub.

    Raises:
        HubError: there are none, or they are of another one.
    """
    found = find(common_dir)
    if found.server != server:
        raise HubError(
            f"{found.source} is of {found.server}, and the fleet shares with {server}",
            hint=f"join that one: python orchestrator.py hub join {server} --replace, or share"
            f" with the other: python orchestrator.py init-fleet --hub {found.server}",
        )
    return found


def read(path: Path) -> Credentials | None:
    """The credentials in one file; None where there is no such file.

    Raises:
        HubError: the file cannot be used; its content is not shown.
    """
    try:
        value = parse_json(_content(path))
        if not isinstance(value, Mapping):
            raise ValueError("holds no JSON object")
        server, agent, key = (value.get(name) for name in ("server_url", "agent_id", "api_key"))
        if not (isinstance(server, str) and isinstance(agent, str) and isinstance(key, str)):
            raise ValueError("lacks server_url, agent_id or api_key")
        return Credentials(
            checked_server(server), checked_agent(agent), checked_key(key), str(path)
        )
    except FileNotFoundError:
        return None
    except (ValueError, UsageError) as error:
        raise HubError(f"{path} {error}", hint=f"move it away and {_JOIN}") from None


def write(path: Path, credentials: Credentials) -> None:
    """For us and for the `ah` client."""
    value = {
        "server_url": credentials.server,
        "api_key": credentials.key.get_secret_value(),
        "agent_id": credentials.agent,
    }
    write_atomic(path, to_json(value, indent=2) + "\n", mode=PRIVATE)


# ── the protocol's shell lines ──────────────────────────────────────────────────────────────


def shell_lines(agent: str, key: SecretStr) -> str:
    """For `source`: what is in quotes is taken as it is, whatever a hub chose for a key."""
    said = (("HUB_KEY", key.get_secret_value()), ("AGENT_ID", agent))
    return "".join(f'export {name}="{_escaped(value)}"\n' for name, value in said)


def parse_shell_lines(text: str) -> tuple[str, SecretStr] | None:
    """Agent and key of such a file, read and never sourced; None where it holds no such lines."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            quoted = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else None
            found[match[1]] = next(v for v in (quoted, match[3], match[4], "") if v is not None)
    if not (AGENT.fullmatch(found.get("AGENT_ID", "")) and KEY.fullmatch(found.get("HUB_KEY", ""))):
        return None
    return found["AGENT_ID"], SecretStr(found["HUB_KEY"])


def read_shell_file(path: Path) -> tuple[str, SecretStr] | None:
    """As `parse_shell_lines`; None also where there is no file that can be read."""
    try:
        return parse_shell_lines(_content(path).decode("utf-8", "replace"))
    except (FileNotFoundError, ValueError):
        return None


def read_key(content: str) -> tuple[str | None, SecretStr]:
    """What somebody was given: the bare key, or the protocol's lines with the agent's name.

    Raises:
        UsageError: it is neither; the content is not shown.
    """
    return parse_shell_lines(content) or (None, checked_key(content.strip()))


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def checked_agent(name: str) -> str:
    if not AGENT.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is no name of an agent: 1 to 63 letters, digits, '.', '_' and '-',"
            " a letter or digit first",
            hint="choose one: --name NAME",
        )
    return name


def checked_key(key: str) -> SecretStr:
    if not KEY.fullmatch(key):
        raise UsageError(
            "that is no key: it is empty, longer than 512 characters or has blanks",
            hint="ask whoever runs the hub for one",
        )
    return SecretStr(key)


def _content(path: Path) -> bytes:
    """A link is followed: people keep such files elsewhere, and it is theirs."""
    try:
        return read_bytes(os.path.realpath(path), FILE_LIMIT)
    except RecordError as error:
        raise ValueError(f"cannot be used: {error.problem}") from None


def _escaped(value: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", value)
