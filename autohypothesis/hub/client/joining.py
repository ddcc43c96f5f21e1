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
    keep_aside,
    leave_git,
    make_private,
    own,
    own_file,
    read_shell_file,
    shell_lines,
    write,
)
from autohypothesis.hub.client.hub import Hub
from autohypothesis.records.files import write_new
from autohypothesis.records.secrets import shell_file
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
    if replace:
        leave_git(common_dir)
    before = None if replace else own(common_dir)
    if before is not None:
        _refuse_other(before, server, agent, key)
        Hub.of(before).channels()  # raises, where the key is no longer good
        return Joined(before, False, _shell(before, replace=False))
    path = own_file(common_dir)
    _refuse_unwritable(path.parent)
    name = checked_agent(agent or default_name())
    if key is None:
        said = Hub(server).register(name)
        found = Credentials(server, checked_agent(said.id), checked_key(said.api_key), str(path))
    else:
        found = Credentials(server, name, key, str(path))
        Hub.of(found).channels()
    write(path, found)
    notes = _shell(found, replace=replace)
    if is_readable_on_the_way(server):
        notes.append(f"{server} is plain HTTP: whoever is on the way can read the key")
    return Joined(found, key is None, notes)


def default_name() -> str:
    """This machine's name, as an agent may be called."""
    return re.sub(r"[^a-zA-Z0-9._-]+", "-", host_name()).strip("._-")[:63] or "agent"


def _refuse_other(
    before: Credentials, server: str, agent: str | None, key: SecretStr | None
) -> None:
    """A key is shown once: the one that is here is not thrown away for a slip of the hand."""
    same = before.server == server and agent in (None, before.agent)
    if not same or (key is not None and key != before.key):
        raise HubError(
            f"this repository has joined {before.server} as {before.agent} already"
            f" ({before.source})",
            hint="to be another one, add --replace; the old file stays beside the new one",
        )


def _refuse_unwritable(folder: Path) -> None:
    """Seen before a name is registered: its key is told once only."""
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
        while not write_new(path, shell_lines(found.agent, found.key), mode=PRIVATE):
            keep_aside(path)
    except (RecordError, OSError) as error:
        return [f"{path} could not be written: {error}"]
    return [f"{path} is written, for the protocol's shell lines"]
