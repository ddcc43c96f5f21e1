"""Becoming an agent of a hub, once, and writing down who one is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from autohypothesis.errors import HubError, RecordError
from autohypothesis.hub.client.address import checked_server, is_readable_on_the_way
from autohypothesis.hub.client.credentials import (
    PRIVATE,
    Credentials,
    checked_agent,
    checked_key,
    own_file,
    read,
    read_shell_file,
    shell_file,
    shell_lines,
    write,
)
from autohypothesis.hub.client.hub import Hub
from autohypothesis.records.files import write_atomic
from autohypothesis.system import host_name


class Joined(NamedTuple):
    credentials: Credentials
    registered: bool
    """False: with a key that was there before."""
    notes: list[str]


def join(
    server: str, agent: str | None, key: SecretStr | None, common_dir: Path, *, replace: bool
) -> Joined:
    """Register `agent`, or take the key that somebody gave it, and write the credentials.

    Raises:
        HubError: the hub refuses; or this repository is another agent already, and is not to
            `replace` that.
    """
    server = checked_server(server)
    path = own_file(common_dir)
    before = None if replace else read(path)
    if before is not None:
        _refuse_other(path, before, server, agent, key)
        Hub.of(before).channels()  # raises, where the key is no longer good
        return Joined(before, False, _shell(before, replace=False))
    _refuse_unwritable(path.parent)
    name = checked_agent(agent or default_name())
    if key is None:
        said = Hub(server).register(name)
        found = Credentials(server, checked_agent(said.id), checked_key(said.api_key), str(path))
    else:
        found = Credentials(server, name, key, str(path))
        Hub.of(found).channels()
    _keep_old(path)
    write(path, found)
    notes = _shell(found, replace=replace)
    if is_readable_on_the_way(server):
        notes.append(f"{server} is plain HTTP: whoever is on the way can read the key")
    return Joined(found, key is None, notes)


def default_name() -> str:
    """This machine's name, as an agent may be called."""
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", host_name()).strip("._-")[:63] or "agent"


def _refuse_other(
    path: Path, before: Credentials, server: str, agent: str | None, key: SecretStr | None
) -> None:
    """A key is shown once: the one that is here is not thrown away for a slip of the hand."""
    same = before.server == server and agent in (None, before.agent)
    if not same or (key is not None and key != before.key):
        raise HubError(
            f"this repository has joined {before.server} as {before.agent} already ({path})",
            hint="to be another one, add --replace; the old file stays beside the new one",
        )


def _refuse_unwritable(folder: Path) -> None:
    """Seen before a name is registered: its key is told once only."""
    try:
        folder.mkdir(exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise HubError(f"{folder} cannot be written", hint=f"see `ls -ld {folder}`")


def _shell(found: Credentials, *, replace: bool) -> list[str]:
    """The protocol's file, unless it is somebody else's; what there is to say about it."""
    path = shell_file()
    there = read_shell_file(path)
    if there == (found.agent, found.key):
        return []
    if os.path.lexists(path) and not replace:
        who = f"agent {there[0]}'s" if there else "something else"
        return [f"{path} holds {who} and stays as it is; --replace writes this one there"]
    try:
        _keep_old(path)
        write_atomic(path, shell_lines(found.agent, found.key), mode=PRIVATE)
    except (RecordError, OSError) as error:
        return [f"{path} could not be written: {error}"]
    return [f"{path} is written, for the protocol's shell lines"]


def _keep_old(path: Path) -> None:
    """Whoever's key it is, it can be got back."""
    if os.path.lexists(path):
        os.replace(path, path.with_name(f"{path.name}.before"))
