"""Who we are to a hub: read from three places, and written so that nobody else reads it.

The repository's own come first, in the user's configuration folder, under an id that the
repository keeps in its `.git`: so a moved repository stays who it is, a clone is nobody yet, and no
key lies where a run may look. Then comes the file that $AGENTHUB_CONFIG names, then
`~/.agenthub/config.json`. All have the keys of the `ah` client. A file that is there and cannot be
used is an error, never a reason to be somebody else.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from pydantic import SecretStr

from autohypothesis.errors import HubError, RecordError, UsageError
from autohypothesis.hub.client.address import checked_server
from autohypothesis.hub.client.wire import AGENT
from autohypothesis.records.files import parse_json, read_bytes, to_json, write_new
from autohypothesis.records.secrets import (
    FILE_LIMIT,
    home_file,
    hub_keys_folder,
    shell_assignments,
)
from autohypothesis.system import rename_exclusive

PRIVATE = 0o600
KEY = re.compile(r"[\x21-\x7e]{1,512}")
"""A key: it travels in a header, so it is printable and has no blanks."""

_ID = re.compile(r"[0-9a-f]{32}")
_ID_LIMIT = 64
_JOIN = "join one: python orchestrator.py hub join URL --name NAME"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An agent of one hub. The key shows itself in no message and no traceback."""

    server: str
    agent: str
    key: SecretStr
    source: str = ""
    """The file that it was read from."""


def own(common_dir: Path) -> Credentials | None:
    """Those of a repository by its `.git`, which all its worktrees share; None where it has none.

    Raises:
        HubError: the file cannot be used, or a key in `.git` cannot be moved out of it.
    """
    _move_out(common_dir)
    known = _read_id(_id_file(common_dir))
    return None if known is None else read(_own_file(known))


def own_file(common_dir: Path) -> Path:
    """Where those of a repository belong; it is given an id if it has none yet.

    Raises:
        HubError: the id cannot be written, or is none.
    """
    path = _id_file(common_dir)
    try:
        if _read_id(path) is None:
            write_new(path, os.urandom(16).hex() + "\n")
        return _own_file(_read_id(path) or "")
    except (RecordError, OSError) as error:
        raise HubError(f"{path} cannot be written: {error}", hint=f"see `ls -ld {path}`") from None


def find(common_dir: Path | None) -> Credentials:
    """The credentials that count here.

    Raises:
        HubError: there are none, or the file that counts cannot be used.
    """
    if common_dir is not None and (found := own(common_dir)) is not None:
        return found
    named = os.environ.get("AGENTHUB_CONFIG")
    places = [Path(named).expanduser()] if named else []
    for place in [*places, home_file(".agenthub") / "config.json"]:
        found = read(place)
        if found is not None:
            return found
        if place in places:
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
    """For us and for the `ah` client; what was at `path` stays beside it."""
    while not write_new(path, _as_json(credentials), mode=PRIVATE):
        keep_aside(path)


def leave_git(common_dir: Path) -> None:
    """Move keys out of `.git` as `own` does; what is no credentials is set aside there.

    Raises:
        HubError: a key cannot be moved.
    """
    try:
        read(_in_git(common_dir))
    except HubError:
        keep_aside(_in_git(common_dir))
    _move_out(common_dir)


def make_private(folder: Path) -> None:
    """Make `folder`, for its owner only; folders on the way to it are made like that too.

    Raises:
        OSError: it cannot be made.
    """
    for place in (*reversed(folder.parents), folder):
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        folder.chmod(0o700)


def keep_aside(path: Path) -> None:
    """Move what is at `path` beside it, never over anything: it can be got back."""
    for aside in _asides(path):
        with suppress(FileExistsError):
            with suppress(FileNotFoundError):
                rename_exclusive(path, aside)
            return


# ── the protocol's shell lines ──────────────────────────────────────────────────────────────


def shell_lines(agent: str, key: SecretStr) -> str:
    """For `source`: what is in quotes is taken as it is, whatever a hub chose for a key."""
    said = (("HUB_KEY", key.get_secret_value()), ("AGENT_ID", agent))
    return "".join(f'export {name}="{_escaped(value)}"\n' for name, value in said)


def parse_shell_lines(text: str) -> tuple[str, SecretStr] | None:
    """Agent and key of such a file, read and never sourced; None where it holds no such lines."""
    found = shell_assignments(text)
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


def _own_file(repository_id: str) -> Path:
    return hub_keys_folder() / f"{repository_id}.json"


def _in_git(common_dir: Path) -> Path:
    """Where earlier versions kept them: in sight of runs that see the repository."""
    return common_dir / "autohypothesis" / "hub.json"


def _id_file(common_dir: Path) -> Path:
    return common_dir / "autohypothesis" / "repository-id"


def _read_id(path: Path) -> str | None:
    """None where a repository has none yet."""
    try:
        known = read_bytes(path, _ID_LIMIT).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise HubError(
            f"{path} cannot be used: {error.problem}", hint=f"move it away and {_JOIN}"
        ) from None
    if not _ID.fullmatch(known):
        raise HubError(f"{path} holds no id of a repository", hint=f"move it away and {_JOIN}")
    return known


def _move_out(common_dir: Path) -> None:
    """Take keys of an earlier version out of `.git`. A kill or another process costs nothing.

    Raises:
        HubError: the file that counted is no credentials, or cannot be moved.
    """
    counted = _in_git(common_dir)
    if (found := read(counted)) is not None:
        path = own_file(common_dir)
        _move(counted, found, chain([path], _asides(path)))
    replaced = next(_asides(counted))
    with suppress(HubError):  # no credentials: no key of ours
        if (found := read(replaced)) is not None:
            _move(replaced, found, _asides(own_file(common_dir)))


def _move(old: Path, found: Credentials, places: Iterable[Path]) -> None:
    """Write what `old` holds to the first free one of `places`, then remove `old`."""
    try:
        make_private(hub_keys_folder())
        for place in places:
            if write_new(place, _as_json(found), mode=PRIVATE) or _holds(place, found):
                break
        old.unlink(missing_ok=True)
    except (RecordError, OSError) as error:
        raise HubError(
            f"the key in {old} cannot be moved to {hub_keys_folder()}, where no run can read it:"
            f" {error}",
            hint="name another folder: export AUTOHYPOTHESIS_CONFIG=FOLDER",
        ) from None


def _holds(path: Path, wanted: Credentials) -> bool:
    try:
        found = read(path)
    except HubError:
        return False
    return found is not None and replace(found, source="") == replace(wanted, source="")


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


def _escaped(value: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", value)
