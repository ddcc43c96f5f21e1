"""The header of a bundle, read by us: git would believe it.

# v2 git bundle
-<hash> <comment>        a commit that the sender expects here; any number
<hash> <ref>             a head; at least one
                         an empty line, then the pack
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autohypothesis.hub.server.refusals import BundleError
from autohypothesis.hub.server.settings import Limits

_SIGNATURES = (b"# v2 git bundle", b"# v3 git bundle")
_LINE = re.compile(rb"(-?)([0-9a-f]{40}) ?(.*)", re.DOTALL)
PACK_HEADER = 12
"""Bytes: "PACK", version, number of objects."""


@dataclass(frozen=True, slots=True)
class Header:
    heads: tuple[str, ...]
    """Each once, in the sender's order."""
    prerequisites: tuple[str, ...]
    objects: int
    """As many as the pack says it holds."""
    pack_at: int
    """Bytes before the pack."""


def parse(start: bytes, limits: Limits) -> Header:
    """The header of a bundle that begins with `start`, the first `header_bytes` and some more.

    Raises:
        BundleError: it is none, or says more than `limits` allow.
    """
    head, end, _ = start.partition(b"\n\n")
    if not end or len(head) > limits.header_bytes:
        what = "an empty body" if not start else "no header that ends"
        raise BundleError(what, hint="send what `git bundle create FILE HEAD` makes, as it is")
    signature, *lines = head.split(b"\n")
    if signature not in _SIGNATURES:
        raise BundleError("it does not begin as a git bundle does")
    if signature == _SIGNATURES[1]:
        lines = _without_capabilities(lines)
    heads: dict[str, None] = {}
    prerequisites: dict[str, None] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or not (found[1] or found[3]):
            raise BundleError(f"a line of the header is neither a head nor a commit: {line[:60]!r}")
        (prerequisites if found[1] else heads)[found[2].decode()] = None
    _at_most("heads", len(heads), limits.heads)
    _at_most("prerequisites", len(prerequisites), limits.prerequisites)
    if not heads:
        raise BundleError("it has no head")
    pack_at = len(head) + len(end)
    return Header(tuple(heads), tuple(prerequisites), _objects(start, pack_at, limits), pack_at)


def _without_capabilities(lines: list[bytes]) -> list[bytes]:
    said = [line for line in lines if line.startswith(b"@")]
    for line in said:
        if line != b"@object-format=sha1":
            raise BundleError(f"it asks for {line[1:60]!r}, which this hub does not take")
    return lines[len(said) :]


def _objects(start: bytes, at: int, limits: Limits) -> int:
    opening = start[at : at + PACK_HEADER]
    if len(opening) < PACK_HEADER or opening[:4] != b"PACK":
        raise BundleError("no pack follows its header")
    number = int.from_bytes(opening[8:], "big")
    _at_most("objects", number, limits.objects)
    return number


def _at_most(what: str, number: int, most: int) -> None:
    if number > most:
        raise BundleError(f"it has {number:,} {what}; at most {most:,} are taken")
