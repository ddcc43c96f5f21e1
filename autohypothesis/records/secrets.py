"""This user's secrets: where they are kept, and whether a text holds one.

Known are the hub keys in the user's files, the fleet's signing key, the values of environment
variables whose names say that they are secret, and whatever looks like a key that our hub gave out.
A secret is found as it is, broken over lines, in hex and in base64; a text that hides it otherwise
is not found out. So this is the second lock: the first is that no candidate can read a secret.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from autohypothesis.errors import RecordError, SecretError
from autohypothesis.records.files import parse_json, read_bytes
from autohypothesis.records.signing import private_key_file
from autohypothesis.system import user_config_folder

LEAST = 8
"""Characters of a secret that is looked for: a shorter one is found in ordinary words."""
FILE_LIMIT = 64 * 1024
"""Bytes of a file with a key."""

Known = Mapping[bytes, str]
"""Encoded form that is looked for -> description for people."""

_SECRET_NAME = re.compile(
    r"(?:KEYS?|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PWD|PASSPHRASE|CREDENTIALS?|(?:^|_)PAT)(?:_|$)",
    re.I,
)
_PLAIN_WORD = re.compile(r"[a-z]{0,15}|[0-9.]{0,15}")
"""Values such as `required` and `100000`: settings, no secrets."""
_HUB_KEY = re.compile(rb"ahk_[A-Za-z0-9_-]{43}")
_SHELL_LINE = re.compile(
    r"""\s*(?:export\s+)?(HUB_KEY|AGENT_ID)=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s"'\\$`;&|<>()]*))\s*"""
)
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def hub_keys_folder() -> Path:
    """A file for each repository that has joined a hub."""
    return user_config_folder() / "hubs"


def home_file(name: str) -> Path:
    return Path(os.path.expanduser("~")) / name


def shell_file() -> Path:
    """Return the file that the hub protocol's shell lines read."""
    return home_file(".agenthub_creds")


def _key_places() -> list[Path]:
    named = os.environ.get("AGENTHUB_CONFIG")
    places = [user_config_folder(), home_file(".agenthub")]
    places += [Path(os.path.abspath(os.path.expanduser(named)))] if named else []
    places += sorted(shell_file().parent.glob(f"{shell_file().name}*"))
    return [place for place in places if os.path.lexists(place)]


def shell_assignments(text: str) -> dict[str, str]:
    """`HUB_KEY` and `AGENT_ID` as a shell would set them; the text is read and never sourced."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SHELL_LINE.fullmatch(line):
            quoted = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else None
            found[match[1]] = next(v for v in (quoted, match[3], match[4], "") if v is not None)
    return found


def known_secrets() -> Known:
    """The secrets of this moment, in each form that is looked for."""
    found: dict[bytes, str] = {}
    for value, name in (*_of_files(), *_of_environment()):
        squeezed = _squeezed(value.encode("utf-8", "surrogateescape"))
        if len(squeezed) >= LEAST:
            found.update((form, name) for form in _forms(squeezed))
    return found


def find_secret(text: str | bytes, known: Known | None = None) -> str | None:
    """The name of a secret that `text` holds; None where it holds none. Never the secret."""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    squeezed = _squeezed(raw)
    views = (squeezed, squeezed.lower(), squeezed.translate(_STANDARD_ALPHABET))
    for form, name in (known_secrets() if known is None else known).items():
        if any(form in view for view in views):
            return name
    return "a key of a hub (ahk_…)" if has_hub_key(raw) else None


def has_hub_key(text: bytes) -> bool:
    """Whether something in `text` has the shape of a key that our hub gives out."""
    return _HUB_KEY.search(text) is not None


def refuse_secrets(what: str, texts: Iterable[tuple[str, str | bytes]]) -> None:
    """Refuses to let `texts`, (where, text), leave this machine with a secret in them.

    Raises:
        SecretError: naming `what` would have left, where in it the secret is, and which it is.
    """
    known = known_secrets()
    for where, text in texts:
        if (name := find_secret(text, known)) is not None:
            raise SecretError(
                f"{what} is stopped: {where} holds {name}",
                hint="take it out; if anybody else may have seen it, have a new one made",
            )


def texts_in(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON value, keys of objects included, each with the way to it."""
    if isinstance(value, str):
        yield where or "the text", value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"a key of {where or 'the object'}", str(key)
            yield from texts_in(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from texts_in(inner, f"{where}[{number}]")


def _of_files() -> Iterator[tuple[str, str]]:
    places = [hub_keys_folder(), *(one for one in _key_places() if one != user_config_folder())]
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            if path.is_file() and (key := _key_in(path)):
                yield key, f"the hub key in {path}"
    if private_key_file().is_file():
        for line in private_key_file().read_text("ascii", "replace").splitlines()[1:2]:
            yield line, "the key that signs this fleet's records"


def _key_in(path: Path) -> str:
    try:
        content = read_bytes(os.path.realpath(path), FILE_LIMIT)
    except (FileNotFoundError, RecordError):
        return ""
    try:
        value = parse_json(content)
    except ValueError:
        return shell_assignments(content.decode("utf-8", "replace")).get("HUB_KEY", "")
    key = value.get("api_key") if isinstance(value, Mapping) else None
    return key if isinstance(key, str) else ""


def _of_environment() -> Iterator[tuple[str, str]]:
    """A path is where a secret is, and none itself."""
    for name, value in os.environ.items():
        is_setting = os.path.isabs(value) or _PLAIN_WORD.fullmatch(value)
        if _SECRET_NAME.search(name) and not is_setting:
            yield value, f"the value of ${name}"


def _squeezed(text: bytes) -> bytes:
    """Without blanks and breaks, which an encoder or a line's end puts in."""
    return text.translate(None, b" \t\r\n\v\f\0")


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yield it as it is, in hex, and in base64 at each alignment within a longer text."""
    yield secret
    yield secret.hex().encode()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret)
        yield encoded[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6]
