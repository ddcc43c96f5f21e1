"""The agent that this repository is on a hub: read from three places, and written privately.

The repository's own credentials come first, in the user's configuration folder, under an id that
the repository keeps in its `.git`: so a moved repository stays the same agent, a clone is none yet,
and no key lies where a run may look. Then comes the file that $AGENTHUB_CONFIG names, then
`~/.agenthub/config.json`. All have the keys of the `ah` client. A file that is there and cannot be
used is an error, never a reason to be another agent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from autohypothesis.errors import HubError, RecordError, UsageError
from autohypothesis.hub.client.http import Patience, checked_server, is_loopback
from autohypothesis.hub.client.hub import HubClient
from autohypothesis.hub.protocol import AGENT
from autohypothesis.records.files import make_private, parse_json, read_bytes, to_json, write_new
from autohypothesis.records.secrets import (
    FILE_LIMIT,
    home_file,
    hub_keys_folder,
    shell_assignments,
    shell_file,
)
from autohypothesis.system import host_name, rename_exclusive

KEY = re.compile(r"[\x21-\x7e]{1,512}")
"""A key: it travels in a header, so it is printable and has no blanks."""

UNUSED = ".unused"
"""Suffix of a key whose join was taken back."""
_PRIVATE = 0o600
_ID = re.compile(r"[0-9a-f]{32}")
_ID_LIMIT = 64
_JOIN = "join one: python orchestrator.py hub join URL --name NAME"
_MOVE_AND_JOIN = f"move it away and {_JOIN}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An agent of one hub. The key shows itself in no message and no traceback."""

    server: str
    agent: str
    key: SecretStr
    source: str = field(default="", compare=False)
    """The file that it was read from."""

    def client(self, patience: Patience | None = None) -> HubClient:
        """Return a client that speaks as this agent."""
        return HubClient(self.server, self.key, patience)


# ── the credentials of a repository ─────────────────────────────────────────────────────────


def find(common_dir: Path | None) -> Credentials:
    """Return the credentials that count in a repository, by its `.git`.

    Raises:
        HubError: there are none, or the file that counts cannot be used.
    """
    if common_dir is not None and (credentials := own(common_dir)) is not None:
        return credentials
    if named := os.environ.get("AGENTHUB_CONFIG"):
        path = Path(named).expanduser()
        if (credentials := read(path)) is None:
            raise HubError(f"$AGENTHUB_CONFIG names {path}, which is not there", hint=_JOIN)
        return credentials
    if (credentials := read(home_file(".agenthub") / "config.json")) is None:
        raise HubError("no hub is joined here", hint=_JOIN)
    return credentials


def of_server(common_dir: Path, server: str) -> Credentials:
    """Return credentials like `find`; raise HubError where they belong to another hub."""
    credentials = find(common_dir)
    if credentials.server != server:
        raise HubError(
            f"{credentials.source} is of {credentials.server}, and the fleet shares with {server}",
            hint=f"join that one: python orchestrator.py hub join {server} --replace, or share"
            f" with the other: python orchestrator.py init-fleet --hub {credentials.server}",
        )
    return credentials


def own(common_dir: Path) -> Credentials | None:
    """Return the credentials of a repository, which its worktrees share; None: it has none.

    Raises:
        HubError: the file cannot be used, or a key in `.git` cannot be moved out of it.
    """
    _move_out(common_dir)
    repository_id = _read_id(_id_file(common_dir))
    return None if repository_id is None else read(_file_of(repository_id))


def own_file(common_dir: Path) -> Path:
    """Return the file for a repository's credentials; it is given an id if it has none yet.

    Raises:
        HubError: the id cannot be written, or is none.
    """
    path = _id_file(common_dir)
    try:
        if _read_id(path) is None:
            write_new(path, os.urandom(16).hex() + "\n")
        return _file_of(_read_id(path) or "")
    except (RecordError, OSError) as error:
        raise HubError(f"{path} cannot be written: {error}", hint=f"see `ls -ld {path}`") from None


def _file_of(repository_id: str) -> Path:
    return hub_keys_folder() / f"{repository_id}.json"


def _id_file(common_dir: Path) -> Path:
    return common_dir / "autohypothesis" / "repository-id"


def _read_id(path: Path) -> str | None:
    """Return None where a repository has no id yet."""
    try:
        repository_id = read_bytes(path, _ID_LIMIT).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise HubError(f"{path} cannot be used: {error.problem}", hint=_MOVE_AND_JOIN) from None
    if not _ID.fullmatch(repository_id):
        raise HubError(f"{path} holds no id of a repository", hint=_MOVE_AND_JOIN)
    return repository_id


# ── files with a key ────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Credentials | None:
    """Return the credentials in one file; None where there is no such file.

    Raises:
        HubError: the file cannot be used; its content is not shown.
    """
    try:
        value = parse_json(_content(path))
        if not isinstance(value, dict):
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
        raise HubError(f"{path} {error}", hint=_MOVE_AND_JOIN) from None


def write(path: Path, credentials: Credentials) -> None:
    """Write the file of an agent, for us and for the `ah` client."""
    _write_private(path, _as_json(credentials))


def _write_private(path: Path, content: str) -> None:
    """Write a file for its owner only; the file that was at `path` stays beside it."""
    while not write_new(path, content, mode=_PRIVATE):
        _keep_aside(path)


def _keep_aside(path: Path) -> None:
    """Move the file at `path` beside it, never over another: it can be got back."""
    for aside in _asides(path):
        with suppress(FileExistsError):
            with suppress(FileNotFoundError):
                rename_exclusive(path, aside)
            return


def _asides(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.name}.before")
    for number in count(2):
        yield path.with_name(f"{path.name}.before-{number}")


def _as_json(credentials: Credentials) -> str:
    value = {
        "server_url": credentials.server,
        "api_key": credentials.key.get_secret_value(),
        "agent_id": credentials.agent,
    }
    return to_json(value, indent=2) + "\n"


def _content(path: Path) -> bytes:
    """A link is followed: people keep such files elsewhere, and it is theirs."""
    try:
        return read_bytes(os.path.realpath(path), FILE_LIMIT)
    except RecordError as error:
        raise ValueError(f"cannot be used: {error.problem}") from None


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
            hint="ask the operator of the hub for one",
        )
    return SecretStr(key)


# ── joining a hub ───────────────────────────────────────────────────────────────────────────


class Joined(NamedTuple):
    credentials: Credentials
    registered: bool
    """False: with a key that was there before."""
    notes: list[str]


def join(
    server: str, agent: str | None, key: SecretStr | None, common_dir: Path, *, replace: bool
) -> Joined:
    """Register `agent`, or take the `key` that it was given, and write the credentials.

    Raises:
        HubError: the hub refuses; or this repository is another agent already, and is not to
            `replace` that.
    """
    server = checked_server(server)
    if replace:
        _leave_git(common_dir)
    before = None if replace else own(common_dir)
    if before is not None:
        same = before.server == server and agent in (None, before.agent)
        if not same or (key is not None and key != before.key):  # a key is shown once
            raise HubError(
                f"this repository has joined {before.server} as {before.agent} already"
                f" ({before.source})",
                hint="to be another one, add --replace; the old file stays beside the new one",
            )
        before.client().channels()  # raises, where the key is no longer good
        return Joined(before, False, _share_with_shell(before, replace=False))
    path = own_file(common_dir)
    _refuse_unwritable(path.parent)  # before a name is registered: its key is told once only
    unused = read(path.with_suffix(UNUSED))
    if key is None and unused and unused.server == server and agent in (None, unused.agent):
        agent, key = unused.agent, unused.key
    name = checked_agent(agent or default_name())
    if key is None:
        made = HubClient(server).register(name)
        joined = Credentials(server, checked_agent(made.id), checked_key(made.api_key), str(path))
    else:
        joined = Credentials(server, name, key, str(path))
        joined.client().channels()
    write(path, joined)
    path.with_suffix(UNUSED).unlink(missing_ok=True)
    notes = _share_with_shell(joined, replace=replace)
    if server.startswith("http://") and not is_loopback(server):
        notes.append(f"{server} is plain HTTP: whoever is on the way can read the key")
    return Joined(joined, key is None, notes)


def take_back(common_dir: Path) -> None:
    """Undo a join. Its key waits for the next join of that hub, which gives a name only once."""
    joined, path = own(common_dir), own_file(common_dir)
    if joined is None:
        return
    path.replace(path.with_suffix(UNUSED))
    with suppress(FileNotFoundError, ValueError):
        text = _content(shell_file()).decode("utf-8", "replace")
        if parse_shell_lines(text) == (joined.agent, joined.key):
            shell_file().unlink()


def default_name() -> str:
    """Return this machine's name, as an agent may be called."""
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", host_name()).strip("._-")[:63] or "agent"


def _refuse_unwritable(folder: Path) -> None:
    try:
        make_private(folder)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise HubError(
            f"{folder} cannot be written, and keys are kept there",
            hint="name another folder: export AUTOHYPOTHESIS_CONFIG=FOLDER",
        )


# ── the protocol's shell lines ──────────────────────────────────────────────────────────────


def _share_with_shell(credentials: Credentials, *, replace: bool) -> list[str]:
    """Write the protocol's file, unless it is another agent's; return notes for the user."""
    path, there = shell_file(), None
    with suppress(FileNotFoundError, ValueError):
        there = parse_shell_lines(_content(path).decode("utf-8", "replace"))
    if there == (credentials.agent, credentials.key):
        return []
    if os.path.lexists(path) and not replace:
        holds = f"agent {there[0]}'s" if there else "something else"
        return [f"{path} holds {holds} and stays as it is; --replace writes this one there"]
    try:
        _write_private(path, shell_lines(credentials.agent, credentials.key))
    except (RecordError, OSError) as error:
        return [f"{path} could not be written: {error}"]
    return [f"{path} is written, for the protocol's shell lines"]


def shell_lines(agent: str, key: SecretStr) -> str:
    """Return lines for `source`: text in quotes is taken as it is, whatever key a hub chose."""
    values = (("HUB_KEY", key.get_secret_value()), ("AGENT_ID", agent))
    return "".join(
        'export {}="{}"\n'.format(name, re.sub(r'([\\"$`])', r"\\\1", value))
        for name, value in values
    )


def parse_shell_lines(text: str) -> tuple[str, SecretStr] | None:
    """Return agent and key of such a file, read and never sourced; None: it holds no such lines."""
    values = shell_assignments(text)
    agent, key = values.get("AGENT_ID", ""), values.get("HUB_KEY", "")
    return (agent, SecretStr(key)) if AGENT.fullmatch(agent) and KEY.fullmatch(key) else None


def read_key(content: str) -> tuple[str | None, SecretStr]:
    """Return agent and key of a key file: the bare key, or the protocol's lines with the name.

    Raises:
        UsageError: it is neither; the content is not shown.
    """
    return parse_shell_lines(content) or (None, checked_key(content.strip()))


# ── keys that earlier versions wrote into .git ──────────────────────────────────────────────


def _in_git(common_dir: Path) -> Path:
    """Return the file of earlier versions: in sight of runs that see the repository."""
    return common_dir / "autohypothesis" / "hub.json"


def _leave_git(common_dir: Path) -> None:
    """Move keys out of `.git` as `own` does; a file that holds no credentials is set aside there.

    Raises:
        HubError: a key cannot be moved.
    """
    try:
        read(_in_git(common_dir))
    except HubError:
        _keep_aside(_in_git(common_dir))
    _move_out(common_dir)


def _move_out(common_dir: Path) -> None:
    """Take keys of an earlier version out of `.git`. A kill or another process costs nothing.

    Raises:
        HubError: the file that counted is no credentials, or cannot be moved.
    """
    counted = _in_git(common_dir)
    if (credentials := read(counted)) is not None:
        path = own_file(common_dir)
        _move(counted, credentials, chain([path], _asides(path)))
    replaced = next(_asides(counted))
    with suppress(HubError):  # no credentials: no key of ours
        if (credentials := read(replaced)) is not None:
            _move(replaced, credentials, _asides(own_file(common_dir)))


def _move(old: Path, credentials: Credentials, paths: Iterable[Path]) -> None:
    """Write the credentials of `old` to the first free one of `paths`, then remove `old`."""
    try:
        make_private(hub_keys_folder())
        for path in paths:
            if write_new(path, _as_json(credentials), mode=_PRIVATE):
                break
            with suppress(HubError):
                if read(path) == credentials:
                    break
        old.unlink(missing_ok=True)
    except (RecordError, OSError) as error:
        raise HubError(
            f"the key in {old} cannot be moved to {hub_keys_folder()}, where no run can read it:"
            f" {error}",
            hint="name another folder: export AUTOHYPOTHESIS_CONFIG=FOLDER",
        ) from None
