"""The normal form `n1` of artifacts, and the hash that tells one change from another. Pure.

Two commits with the same artifacts differ by author and time, and two editors by line ends. What
is the same work has the same name here, on every machine: git's tree hash of the artifacts alone,
once their texts are in normal form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha1

NORMAL_FORM = "n1"
TREE = re.compile(rf"{NORMAL_FORM}:[0-9a-f]{{40}}")
_BLANKS = re.compile(rb"[ \t]+(?=\n|\Z)")
_FILE, _FOLDER = b"100644", b"40000"


def normal(content: bytes) -> bytes:
    """LF, no blanks at the ends of lines, and one line end at the last; an empty file stays so."""
    text = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = _BLANKS.sub(b"", text).rstrip(b"\n")
    return text + b"\n" if text else b""


def tree_of(files: Mapping[str, bytes]) -> str:
    """`n1:<hash>` of artifacts by their paths, as git would hash a folder of just these."""
    blobs = {path: _hashed(b"blob", normal(content)) for path, content in files.items()}
    return f"{NORMAL_FORM}:{_tree(blobs).hex()}"


def _tree(blobs: Mapping[str, bytes]) -> bytes:
    """The hash of a folder; git sorts a folder as if its name ended in a slash."""
    folders: dict[str, dict[str, bytes]] = {}
    entries: list[tuple[bytes, bytes, bytes]] = []
    for path, blob in blobs.items():
        name, _, rest = path.partition("/")
        if rest:
            folders.setdefault(name, {})[rest] = blob
        else:
            entries.append((name.encode("utf-8", "surrogateescape"), _FILE, blob))
    for name, inner in folders.items():
        entries.append((name.encode("utf-8", "surrogateescape"), _FOLDER, _tree(inner)))
    entries.sort(key=lambda one: one[0] + (b"/" if one[1] == _FOLDER else b""))
    return _hashed(b"tree", b"".join(mode + b" " + name + b"\0" + h for name, mode, h in entries))


def _hashed(kind: bytes, content: bytes) -> bytes:
    header = kind + b" " + str(len(content)).encode() + b"\0"
    return sha1(header + content, usedforsecurity=False).digest()
