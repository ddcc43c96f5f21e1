"""The chain of decisions: each line of decisions.jsonl names the one before by its hash.

A line is signed by the fleet's key, so none can be added by hand. The last one is anchored: its
place and hash are signed in a blob under `refs/autohypothesis/anchor/`, moved by compare-and-swap,
so none can be taken off the end. The anchor may lag by what was appended after it, which the next
settle completes; one that is ahead of the journal is a finding. A journal from before the chain is
pinned by the hash of all its lines, and goes on with a line that repeats that hash.

A line that a kill has cut off stays where it is; the next one says so. Nothing else is repaired.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from autohypothesis.errors import SignatureError
from autohypothesis.records import jsonl
from autohypothesis.records.files import opened, read_bytes, to_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.signing import (
    Keys,
    Signer,
    open_envelope,
    own_signer,
    pre_authentication_encoding,
    sealed_envelope,
    trusted_keys,
)
from autohypothesis.schema import Decision, Strict, Time, now

ANCHOR = "refs/autohypothesis/anchor/decisions"
_LINE_TYPE = "application/vnd.autohypothesis.decision+json"
_ANCHOR_TYPE = "application/vnd.autohypothesis.anchor+json"
_OURS = {"place", "previous", "genesis", "repaired", "signed_by", "signature"}
_END = re.compile(
    rb',"place":(\d+),"previous":"([0-9a-f]{64})"(?:,"genesis":"([0-9a-f]{64})")?'
    rb'(?:,"repaired":(\d+))?(?:,"signed_by":"([0-9a-f]{64})","signature":"([\w+/=]+)")?\}'
)
"""What the journal itself writes at the end of a line."""
_WINDOW = 64 * 1024


class Anchor(Strict):
    """The signed end of the journal."""

    lines: int
    """Number of lines, records or not."""
    head: str
    """SHA-256 of the last one, without its break."""
    recorded_at: Time = Field(default_factory=now)
    pinned_lines: int = 0
    """Lines from before the chain, or that a person has accepted as they are."""
    pinned_hash: str = ""
    """SHA-256 of those with their breaks."""
    unattested: tuple[str, ...] = ()
    """Experiments that an earlier version had collected, and not decided, when they were pinned."""
    taken_in: tuple[str, ...] = ()
    """Commits that the reference was moved to without a decision, by a command or a person."""
    is_accepted: bool = False
    """A person has taken the pinned lines as they are."""
    lost: tuple[str, ...] = ()
    """SHA-256 of lines that attestations name, and that were gone when the rest was accepted."""


@dataclass(frozen=True)
class Link:
    """One line of the journal."""

    line: bytes
    place: int | None = None
    """None: it is no link of the chain."""
    previous: str = ""
    genesis: str = ""
    repaired: bool = False
    signed_by: str = ""
    signature: str = ""

    @classmethod
    def of(cls, line: bytes) -> Link:
        match = _END.fullmatch(line, max(line.rfind(b',"place":'), 0))
        if match is None:
            return cls(line)
        place, previous, genesis, repaired, key, signature = match.groups(b"")
        return cls(
            line, int(place), previous.decode(), genesis.decode(), bool(repaired),
            key.decode(), signature.decode(),
        )  # fmt: skip

    @property
    def hash(self) -> str:
        return _sha256(self.line)

    def check_signature(self, keys: Keys) -> None:
        """Raise SignatureError, in words that follow the number of the line."""
        if not self.signature:
            raise SignatureError("is signed by no key: no command of this fleet wrote it")
        body = self.line[: self.line.rfind(b',"signature":"')] + b"}"
        signed = pre_authentication_encoding(_LINE_TYPE, body)
        keys.check(self.signed_by, self.signature, signed)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ── writing ─────────────────────────────────────────────────────────────────────────────────


_written: dict[Path, tuple[str, Anchor]] = {}
"""`.git` of a repository -> the anchor that this process has written last: it is asked for again
where another has moved it."""


class DecisionChain:
    """The journal of a repository and its anchor. What writes is called under the lock `settle`.

    Without a key lines are chained and not signed, and nothing is anchored.
    """

    def __init__(self, repository: Repository, layout: Layout) -> None:
        self.repository = repository
        self.layout = layout
        self.signer = own_signer()

    def begin(self) -> None:
        """Pin a journal in which nothing is signed: an empty one, or that of an earlier version."""
        if self.signer is None:
            return
        if not self._last().signature and ANCHOR not in self.repository.refs(ANCHOR):
            content = _content(self.layout)
            self._write(_pinned(content, self._undecided(content) if content else []), None)

    def _last(self) -> Link:
        return last_link(self.layout)

    def append(self, decision: Decision) -> None:
        """Add to decisions.jsonl, on the disk when this returns.

        Raises:
            RecordError: the disk is full, or decisions.jsonl is no file.
        """
        fields = decision.model_dump(mode="json", exclude=_OURS)
        jsonl.append_made(
            self.layout.decisions,
            lambda descriptor, size: _next_line(fields, descriptor, size, self.signer),
        )

    def advance(self) -> None:
        """Anchor what was appended since, if all of it is ours.

        An anchor that the journal does not continue stays where it is, for `verify` to name.
        """
        known = _written.get(self.repository.common_dir)
        with suppress(SignatureError):
            if known is None or not self._advance(*known):
                self._advance(*self._anchor())

    def _advance(self, blob: str | None, anchor: Anchor | None) -> bool:
        """Return whether the anchor was at `blob`."""
        if anchor is None or anchor.head == self._last().hash:
            return True
        links = read_links(self.layout)
        if len(links) <= anchor.lines or any(problems_of(links, anchor, trusted_keys())):
            return True
        end = {"lines": len(links), "head": links[-1].hash, "recorded_at": now()}
        return self._write(anchor.model_copy(update=end), blob)

    def take_in(self, commit: str) -> None:
        """Note a commit that the reference was moved to without a decision."""
        self.begin()
        with suppress(SignatureError):
            blob, anchor = self._anchor()
            if anchor is not None:
                taken = (*anchor.taken_in, commit)
                self._write(anchor.model_copy(update={"taken_in": taken}), blob)

    def accept(self, references: Iterable[str], lost: Iterable[str]) -> Anchor | None:
        """Pin the journal and the references as they are; return the anchor, None without a key.

        Args:
            lost: hashes of the lines that are known to have been, and are gone.
        """
        content = _content(self.layout)
        said = {"taken_in": (*references,), "is_accepted": True, "lost": (*lost,)}
        pinned = _pinned(content, self._undecided(content)).model_copy(update=said)
        if self.signer is None:
            return None
        self._write(pinned, self.repository.read_ref(ANCHOR))
        return pinned

    def _anchor(self) -> tuple[str | None, Anchor | None]:
        """Return the blob of the anchor, and what it says; None where there is none, or no key."""
        blob = self.repository.read_ref(ANCHOR) if self.signer else None
        return blob, None if blob is None else read_anchor(self.repository, blob, trusted_keys())

    def _undecided(self, content: bytes) -> list[str]:
        """Return the collected experiments without attestation that no decision names."""
        folders = sorted(self.layout.runs.iterdir()) if self.layout.runs.is_dir() else []
        return [
            run.folder.name
            for run in map(RunPaths, folders)
            if run.result.exists()
            and not run.attestation.exists()
            and f'"experiment_id":"{run.folder.name}"'.encode() not in content
        ]

    def _write(self, anchor: Anchor, old: str | None) -> bool:
        """Move the anchor, if it is at `old`; return whether it was, or there is no key."""
        if self.signer is None:
            return True
        blob = self.repository.write_blob(sealed_envelope(self.signer, _ANCHOR_TYPE, anchor))
        _written.pop(self.repository.common_dir, None)
        if not self.repository.compare_and_swap(ANCHOR, blob, old):
            return False
        _written[self.repository.common_dir] = blob, anchor
        return True


def _next_line(
    fields: dict[str, object], descriptor: int, size: int, signer: Signer | None
) -> bytes:
    """Return the line that follows in the journal, after a break where the last one was cut off."""
    last, torn = _last_lines(descriptor, size)
    chained = {**fields, "place": 0, "previous": _sha256(torn or last.line)}
    if last.place is not None:
        chained["place"] = last.place + 1 + bool(torn)
    else:
        whole = os.pread(descriptor, size, 0)
        chained["place"] = whole.count(b"\n") + bool(torn)
        if all(Link.of(line).place is None for line in whole.split(b"\n")):
            chained["genesis"] = _sha256(whole)
    if torn:
        chained["repaired"] = len(torn)
    if signer is None:
        line = to_json(chained).encode("utf-8", "replace")
    else:
        body = to_json({**chained, "signed_by": signer.key_id}).encode("utf-8", "replace")
        signature = signer.sign(pre_authentication_encoding(_LINE_TYPE, body))
        line = body[:-1] + f',"signature":"{signature}"}}'.encode()
    return (b"\n" if torn else b"") + line + b"\n"


def _last_lines(descriptor: int, size: int) -> tuple[Link, bytes]:
    """Return the last whole line, and what stands behind it without a break."""
    window = 0
    while True:
        window = min(size, max(_WINDOW, 4 * window))
        whole, _, torn = os.pread(descriptor, window, size - window).rpartition(b"\n")
        if window == size or b"\n" in whole:
            return Link.of(whole.rpartition(b"\n")[2]), torn


def _pinned(content: bytes, unattested: list[str]) -> Anchor:
    *lines, torn = content.split(b"\n")
    return Anchor(
        lines=len(lines),
        head=_sha256(lines[-1] if lines else b""),
        pinned_lines=len(lines),
        pinned_hash=_sha256(content[: len(content) - len(torn)]),
        unattested=tuple(unattested),
    )


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def _content(layout: Layout) -> bytes:
    try:
        return read_bytes(layout.decisions, jsonl.FILE_LIMIT)
    except FileNotFoundError:
        return b""


def read_links(layout: Layout) -> list[Link]:
    """Return the lines of the journal; one that is cut off only where it is a whole decision.

    Raises:
        RecordError: decisions.jsonl is no regular file, or far too large.
    """
    *lines, torn = _content(layout).split(b"\n")
    return [Link.of(line) for line in (*lines, torn) if line is not torn or _is_record(torn)]


def last_link(layout: Layout) -> Link:
    """Return the last whole line of the journal; an empty one where there is none."""
    try:
        with opened(layout.decisions) as (descriptor, status):
            return _last_lines(descriptor, status.st_size)[0]
    except FileNotFoundError:
        return Link(b"")


def _is_record(line: bytes) -> bool:
    return bool(jsonl.parse(line)[0])


def read_anchor(repository: Repository, blob: str, keys: Keys) -> Anchor:
    """Return what the anchor says.

    Raises:
        SignatureError: no trusted key has signed it, or it is no anchor; in words that follow its
            name.
    """
    value = open_envelope(repository.read_blob(blob), _ANCHOR_TYPE, keys)
    try:
        return Anchor.model_validate(value)
    except ValueError:
        raise SignatureError("is no anchor of this version") from None


def problems_of(links: Sequence[Link], anchor: Anchor | None, keys: Keys) -> Iterator[str]:
    """Yield what is wrong with the journal, each in words that follow its name.

    Signatures are asked for after the anchored line only: the hash of that one covers all before.
    Where the chain is broken, every line is asked, to name the one that was edited.
    """
    first = next((n for n, link in enumerate(links) if link.genesis), len(links))
    pinned = anchor.pinned_lines if anchor is not None else first
    genesis = links[first].genesis if first < len(links) else _sha256(b"")
    wanted = anchor.pinned_hash if anchor is not None else genesis
    if _sha256(b"".join(link.line + b"\n" for link in links[:pinned])) != wanted:
        yield f"has other lines than were pinned: one of the first {pinned} was edited or deleted"
    broken = [n for n in range(pinned, len(links)) if not _continues(links, n)]
    held = anchor is not None and _is_anchored(links, anchor)
    asked = anchor.lines if anchor is not None and held and not broken else pinned
    bad: dict[int, str] = {}
    for number in range(asked, len(links)):
        if not _is_cut_off(links, number):
            try:
                links[number].check_signature(keys)
            except SignatureError as error:
                bad[number] = error.problem
    yield from (f"line {number + 1} {why}" for number, why in bad.items())
    yield from (_gap(links, n) for n in broken if n not in bad and n - 1 not in bad)
    if anchor is not None and not held and not broken and not bad:
        yield _other_end(links, anchor)


def _continues(links: Sequence[Link], number: int) -> bool:
    before = links[number - 1].hash if number else _sha256(b"")
    return links[number].previous == before or _is_cut_off(links, number)


def _is_cut_off(links: Sequence[Link], number: int) -> bool:
    """Return whether the next line says that a kill has cut this one off."""
    link, following = links[number], links[number + 1 : number + 2]
    said = any(later.repaired and later.previous == link.hash for later in following)
    return said and link.place is None and not _is_record(link.line)


def _is_anchored(links: Sequence[Link], anchor: Anchor) -> bool:
    if not anchor.lines:
        return True
    return anchor.lines <= len(links) and links[anchor.lines - 1].hash == anchor.head


def _gap(links: Sequence[Link], number: int) -> str:
    place, before = links[number].place, links[number - 1].place if number else -1
    missing = (place or 0) - (before or 0) - 1
    if missing > 0:
        return f"lacks {_decisions(missing)} before line {number + 1}: deleted"
    return f"line {number + 1} does not follow the one before it: lines were added or moved"


def _other_end(links: Sequence[Link], anchor: Anchor) -> str:
    missing = anchor.lines - len(links)
    if missing > 0:
        return f"lacks its last {_decisions(missing)}: {anchor.lines} lines were anchored"
    return f"has another line {anchor.lines} than was anchored: that one was deleted"


def _decisions(count: int) -> str:
    return f"{count} decision{'s' * (count != 1)}"
