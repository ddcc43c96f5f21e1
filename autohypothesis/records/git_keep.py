"""Files that are kept on a ref of their own, outside every checkout.

They go in as one stream: git makes one pack of them, not a loose object for each, and copies of
trees for what changed only. No index is read or written and no filter or attribute of the
repository is applied, so that what comes out is byte for byte what went in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from autohypothesis.errors import GitError
from autohypothesis.records.git import Repository, parse_listing
from autohypothesis.records.git_call import CHECKOUT_TIMEOUT_S, ENVIRONMENT, call

PLAIN = "100644"
_AT_ONCE = 500
"""Paths or objects in one call."""


def kept_refs(repository: Repository, prefix: str) -> list[str]:
    """The refs below `prefix`, the one that was written last first."""
    words = ["--sort=-committerdate", "--format=%(refname)", prefix]
    return _call(repository, "for-each-ref", *words).decode().split()


def listing(repository: Repository, commit: str, paths: Sequence[str]) -> dict[str, str]:
    """Path -> blob, for the plain files of a commit at or below `paths`."""
    found = {}
    for some in _batches(paths):
        out = _call(repository, "ls-tree -r -z --full-tree", commit, "--", *some)
        records = [part.decode("utf-8", "surrogateescape") for part in out.split(b"\0") if part]
        entries = parse_listing(records).items()
        found.update({path: entry.blob for path, entry in entries if entry.mode == PLAIN})
    return found


def blob_id(content: bytes, like: str) -> str:
    """The id that `content` has in a repository with ids like this one."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content).hexdigest()


def contents(repository: Repository, blobs: Iterable[str]) -> Iterator[bytes]:
    """Yield the content of each of `blobs`, in their order.

    Raises:
        GitError: one of them is not in the repository.
    """
    for some in _batches(blobs):
        asked = "".join(f"{blob}\n" for blob in some).encode()
        out = _call(repository, "cat-file --batch", stdin=asked)
        at = 0
        for blob in some:
            end = out.index(b"\n", at)
            head = out[at:end].decode().split(" ")
            if len(head) != 3:
                raise GitError(f"object {blob} is missing in {repository.root}")
            size = int(head[2])
            yield out[end + 1 : end + 1 + size]
            at = end + size + 2


def keep(
    repository: Repository,
    ref: str,
    parent: str | None,
    files: Mapping[str, bytes],
    *,
    gone: Iterable[str] = (),
    message: str,
) -> str:
    """`ref` one commit further: `parent`'s tree with `files` in it and `gone` out of it.

    Raises:
        GitError: another process moved the ref meanwhile, which then stays as it is.
    """
    if (there := repository.read_ref(ref)) and there != parent:
        raise GitError(f"{ref} in {repository.root} was moved by another process meanwhile")
    stream = _stream(ref, parent, files, gone, message)
    _call(repository, "fast-import --quiet --date-format=now", stdin=stream)
    return repository.resolve(ref)


def _stream(
    ref: str, parent: str | None, files: Mapping[str, bytes], gone: Iterable[str], message: str
) -> bytes:
    """For `git fast-import`, which moves the ref only forward from what it was."""
    who = f"{ENVIRONMENT['GIT_COMMITTER_NAME']} <{ENVIRONMENT['GIT_COMMITTER_EMAIL']}>"
    words = message.encode()
    parts = [f"commit {ref}\ncommitter {who} now\ndata {len(words)}\n".encode(), words, b"\n"]
    if parent is not None:
        parts.append(f"from {parent}\n".encode())
    parts += [b"D " + _path(path) + b"\n" for path in gone]
    for path, content in files.items():
        parts.append(b"M %s inline %s\n" % (PLAIN.encode(), _path(path)))
        parts += [b"data %d\n" % len(content), content, b"\n"]
    return b"".join(parts)


def _path(path: str) -> bytes:
    """As the stream spells it: in quotes, so that any name is one."""
    raw = path.encode("utf-8", "surrogateescape")
    return b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def _batches(things: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(things)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _call(repository: Repository, words: str, *args: str, stdin: bytes = b"") -> bytes:
    return call(words, args, repository.root, stdin=stdin, timeout=CHECKOUT_TIMEOUT_S).out
