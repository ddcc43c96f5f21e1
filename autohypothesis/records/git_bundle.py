"""Commits as bundles: made for other machines, and taken in from sources that are not trusted.

git's own `bundle` wants a ref to name and checks nothing that it takes in. So the header is written
and read here, which is a few lines of text before a pack, and a foreign pack is unpacked and looked
at beside the repository: what is refused leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from autohypothesis.errors import GitError
from autohypothesis.records.git import Repository
from autohypothesis.records.git_call import CHECKOUT_TIMEOUT_S, call

FOLDER = "40000"
MOST_PATHS = 100_000
"""Files of one commit."""
MOST_TREES = 50_000
"""Different folders, of all commits that are looked at together."""
MOST_LEVELS = 64

Read = Callable[[list[str]], Mapping[str, bytes]]
"""Ids of trees -> what is in each, as git stores it."""

HEADER_LIMIT = 64 * 1024
MOST_NAMES = 1_000
"""Heads and prerequisites of one bundle."""
MOST_COMMITS = 50_000
"""That one bundle may bring."""
INTAKE_S = 60.0
"""Seconds that git may work on a foreign pack."""

_PIECE = 8 << 20
_OVERLAP = 64 << 10
"""Bytes; what is looked for in a file is shorter."""
_VERSIONS = {b"# v2 git bundle": 2, b"# v3 git bundle": 3}
_NAMED = re.compile(r"(-?)([0-9a-f]{40}|[0-9a-f]{64})(?: (.{0,1000}))?")
_CAREFUL = "-c core.bigFileThreshold=1m"
_MODEST = {"GIT_ALLOC_LIMIT": "256m"}
"""A small pack of deltas can ask for a gigabyte."""


class Header(NamedTuple):
    prerequisites: list[str]
    heads: dict[str, str]
    """Name -> commit."""
    size: int
    """Bytes before the pack."""


# ── making one ──────────────────────────────────────────────────────────────────────────────


def first_parents(repository: Repository, commit: str) -> list[str]:
    """`commit` and what it is built on, the newest first."""
    return _ask(repository, "rev-list --first-parent", commit).split()


def count_new(repository: Repository, commit: str, known: str | None) -> int:
    """Return the number of commits that `create` would put into a bundle."""
    return int(_ask(repository, "rev-list --count", *_range(commit, known)))


def create(repository: Repository, commit: str, known: str | None, target: IO[bytes]) -> None:
    """Write a bundle of `commit` to `target`, without what whoever has `known` has.

    Raises:
        GitError: the history of this clone is cut off where the bundle would need it.
    """
    _refuse_cut(repository, commit, known)
    needs = f"-{known}\n" if known else ""
    version = (
        "# v2 git bundle\n" if len(commit) == 40 else "# v3 git bundle\n@object-format=sha256\n"
    )
    target.write(f"{version}{needs}{commit} HEAD\n\n".encode())
    call(
        "pack-objects --revs --thin --stdout --delta-base-offset -q",
        (),
        repository.root,
        stdin="".join(f"{word}\n" for word in _range(commit, known)).encode(),
        timeout=CHECKOUT_TIMEOUT_S,
        output=target,
    )
    target.flush()


def contents(repository: Repository, commit: str, known: str | None) -> Iterator[tuple[str, bytes]]:
    """All that `create` would send: what it is, for people, and what is in it, piece by piece."""
    listed = _ask(repository, "rev-list --objects", *_range(commit, known)).splitlines()
    paths = dict(line.partition(" ")[::2] for line in listed)
    with tempfile.TemporaryFile() as objects:
        call(
            "cat-file --batch",
            (),
            repository.root,
            stdin="".join(f"{name}\n" for name in paths).encode(),
            timeout=CHECKOUT_TIMEOUT_S,
            output=objects,
        )
        objects.seek(0)
        while head := objects.readline():
            name, kind, size = head.decode("ascii").split()
            what = f"the message of commit {name[:7]}"
            if kind != "commit":
                what = f"{'a name in ' if kind == 'tree' else ''}{paths[name] or 'the root folder'}"
            for piece in _pieces(objects, int(size)):
                yield what, piece
            objects.read(1)


def _pieces(source: IO[bytes], left: int) -> Iterator[bytes]:
    """The next `left` bytes; each piece begins with the end of the one before it."""
    end = b""
    while left > 0 and (piece := source.read(min(left, _PIECE))):
        left -= len(piece)
        yield end + piece
        end = piece[-_OVERLAP:]


def _range(commit: str, known: str | None) -> list[str]:
    return [commit, f"^{known}"] if known else [commit]


def _refuse_cut(repository: Repository, commit: str, known: str | None) -> None:
    try:
        edges = set((repository.common_dir / "shallow").read_text(encoding="ascii").split())
    except FileNotFoundError:
        return
    if edges & set(_ask(repository, "rev-list", *_range(commit, known)).split()):
        raise GitError(
            f"{repository.root} is a shallow clone, and {commit[:12]} needs what it lacks",
            hint="get the rest: git fetch --unshallow",
        )


# ── taking one in ───────────────────────────────────────────────────────────────────────────


def parse_header(bundle: bytes) -> Header:
    """Read the header of a bundle.

    Raises:
        GitError: it is no bundle, or one that we would not make.
    """
    end = bundle.find(b"\n\n", 0, HEADER_LIMIT)
    first, *lines = bundle[: max(end, 0)].split(b"\n")
    if end < 0 or first not in _VERSIONS:
        raise _no_bundle("it does not begin as one")
    if len(lines) > MOST_NAMES:
        raise _no_bundle(f"it has more than {MOST_NAMES:,} heads and prerequisites")
    prerequisites, heads = [], {}
    for line in (line.decode("utf-8", "replace") for line in lines):
        if line.startswith("@") and _VERSIONS[first] == 3:
            if not line.startswith("@object-format="):
                raise _no_bundle("it asks for what is not supported")
            continue
        match = _NAMED.fullmatch(line)
        if match is None or (not match[1] and not match[3]):
            raise _no_bundle("its header is damaged")
        if match[1]:
            prerequisites.append(match[2])
        else:
            heads[match[3]] = match[2]
    return Header(prerequisites, heads, end + 2)


def take_in(repository: Repository, bundle: bytes, commit: str, ref: str) -> None:
    """Have `ref` hold `commit` out of a bundle that was received; nothing is checked out.

    Raises:
        GitError: the bundle is damaged, does not hold the commit with all that it stands on, or
            has a tree that cannot be listed; then the repository is as it was.
    """
    header = parse_header(bundle)
    if commit not in header.heads.values():
        raise GitError(f"the bundle does not bring {commit[:12]}", hint="ask the hub again")
    with _quarantine(repository) as (folder, settings):
        call(
            f"{_CAREFUL} index-pack --stdin --fix-thin --strict --max-input-size={len(bundle)}",
            (),
            repository.root,
            settings,
            stdin=bundle[header.size :],
            timeout=INTAKE_S,
        )
        _refuse_incomplete(repository, commit, settings)
        _publish(folder / "pack", repository.common_dir / "objects" / "pack")
    if not repository.compare_and_swap(ref, commit, None) and repository.read_ref(ref) != commit:
        raise GitError(f"{ref} in {repository.root} holds something else", hint="delete it there")


@contextmanager
def _quarantine(repository: Repository) -> Iterator[tuple[Path, dict[str, str]]]:
    """A place for objects beside the repository's; git's own gc clears what a kill leaves."""
    objects = repository.common_dir / "objects"
    with tempfile.TemporaryDirectory(prefix="tmp_objdir-incoming-", dir=objects) as place:
        settings = {
            "GIT_OBJECT_DIRECTORY": place,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
            "GIT_QUARANTINE_PATH": place,
            **_MODEST,
        }
        yield Path(place), settings


def _refuse_incomplete(repository: Repository, commit: str, settings: Mapping[str, str]) -> None:
    """See that everything below `commit` is there and that all of it can be listed."""
    new = ["--not", "--all"]
    kind = _ask(repository, "cat-file -t", commit, settings=settings).strip()
    if kind != "commit":
        raise GitError(f"{commit[:12]} is a {kind}, no commit", hint="ask the hub again")
    many = ["--format=%T", f"--max-count={MOST_COMMITS + 1}", commit, *new]
    said = _ask(repository, "rev-list --no-commit-header", *many, settings=settings).split()
    if len(said) > MOST_COMMITS:
        raise GitError(f"the bundle brings more than {MOST_COMMITS:,} commits")

    def read(trees: list[str]) -> dict[str, bytes]:
        asked = "".join(f"{tree}\n" for tree in trees).encode()
        return dict(_trees(_raw(repository, "cat-file --batch", stdin=asked, settings=settings)))

    refuse_endless(said, read)
    _raw(repository, "rev-list --objects --quiet", commit, *new, settings=settings)


def _trees(out: bytes) -> Iterator[tuple[str, bytes]]:
    """The answers of `cat-file --batch` to ids of trees."""
    at = 0
    while at < len(out):
        end = out.index(b"\n", at)
        ident, kind, *size = out[at:end].decode().split(" ")
        if kind != "tree":
            raise GitError(f"{ident[:12]} is {kind}, where a folder should be")
        yield ident, out[end + 1 : end + 1 + int(size[0])]
        at = end + int(size[0]) + 2


def _publish(pack: Path, target: Path) -> None:
    """The pack, then its index: git looks for the index, so it finds both or neither."""
    target.mkdir(exist_ok=True)
    found = sorted(pack.iterdir(), key=lambda path: (path.suffix == ".idx", path.name))
    for path in found:
        os.replace(path, target / path.name)


# ── trees of foreign commits ────────────────────────────────────────────────────────────────


class Item(NamedTuple):
    mode: str
    name: str
    id: str


def parse_tree(content: bytes, id_bytes: int) -> list[Item]:
    """The items of one tree. `index-pack --strict` has seen that it is well formed."""
    found, at = [], 0
    while at < len(content):
        end = content.index(b"\0", at)
        mode, _, name = content[at:end].partition(b" ")
        at = end + 1 + id_bytes
        ident = content[end + 1 : at].hex()
        found.append(Item(mode.decode("ascii"), name.decode("utf-8", "surrogateescape"), ident))
    return found


def refuse_endless(roots: Iterable[str], read: Read) -> None:
    """See that every one of the trees `roots` can be listed.

    Raises:
        GitError: one has too many paths or levels, or there are too many trees.
    """
    folders: dict[str, list[str]] = {}
    files: dict[str, int] = {}
    level, depth = sorted(set(roots)), 0
    starts = list(level)
    while level:
        if len(folders) + len(level) > MOST_TREES or depth == MOST_LEVELS:
            raise _endless(f"more than {MOST_TREES:,} folders or {MOST_LEVELS} levels")
        for ident, content in read(level).items():
            items = parse_tree(content, len(ident) // 2)
            folders[ident] = [item.id for item in items if item.mode == FOLDER]
            files[ident] = len(items) - len(folders[ident])
        below = {inner for ident in level for inner in folders[ident]}
        level, depth = sorted(below - folders.keys()), depth + 1
    _refuse_many(starts, folders, files)


def _refuse_many(
    starts: Iterable[str], folders: Mapping[str, list[str]], files: Mapping[str, int]
) -> None:
    """Paths below each tree, counted once per tree; no tree can be inside itself."""
    paths: dict[str, int] = {}

    def count(ident: str) -> int:
        if ident not in paths:
            paths[ident] = 1 + files[ident] + sum(count(inner) for inner in folders[ident])
        return paths[ident]

    for start in starts:
        if count(start) > MOST_PATHS:
            raise _endless(f"more than {MOST_PATHS:,} paths")


def _endless(why: str) -> GitError:
    return GitError(f"a commit has {why}", hint="it was not taken in; leave it alone")


# ── calls ───────────────────────────────────────────────────────────────────────────────────


def _ask(
    repository: Repository, words: str, *args: str, settings: Mapping[str, str] | None = None
) -> str:
    return _raw(repository, words, *args, settings=settings or {}).decode("utf-8", "replace")


def _raw(
    repository: Repository,
    words: str,
    *args: str,
    settings: Mapping[str, str],
    stdin: bytes = b"",
) -> bytes:
    words = f"{_CAREFUL} {words}"
    return call(words, args, repository.root, settings, stdin=stdin, timeout=INTAKE_S).out


def _no_bundle(why: str) -> GitError:
    return GitError(f"that is no bundle of git's: {why}", hint="ask the hub again")
