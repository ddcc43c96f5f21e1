"""Commits as bundles, for other machines and from sources that are not trusted; files on a ref.

git's own `bundle` wants a ref to name and checks nothing that it takes in. So the header is written
and read here, which is a few lines of text before a pack, and a foreign pack is unpacked and looked
at beside the repository: what is refused leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from autohypothesis.errors import GitError
from autohypothesis.records.git import Repository, parse_listing
from autohypothesis.records.git_call import CHECKOUT_TIMEOUT_S, ENVIRONMENT, Answer, batch, call

FOLDER = b"40000"
PLAIN = "100644"
MAX_PATHS = 100_000
"""Files of one commit."""
MAX_TREES = 50_000
"""Different folders, of all commits that are looked at together."""
MAX_LEVELS = 64

HEADER_LIMIT = 64 * 1024
MAX_NAMES = 1_000
"""Heads and prerequisites of one bundle."""
MAX_COMMITS = 50_000
"""Maximum number of commits in one bundle."""
INTAKE_S = 60.0
"""Seconds that git may work on a foreign pack."""

_PIECE = 8 << 20
_OVERLAP = 64 << 10
"""Bytes; what is looked for in a file is shorter."""
_VERSIONS = {b"# v2 git bundle": 2, b"# v3 git bundle": 3}
_NAMED = re.compile(r"(-?)([0-9a-f]{40}|[0-9a-f]{64})(?: (.*))?", re.DOTALL)
_AT_ONCE = 500
"""Paths or objects in one call."""


class Header(NamedTuple):
    prerequisites: list[str]
    heads: list[str]
    size: int
    """Bytes before the pack."""


def first_parents(repository: Repository, commit: str) -> list[str]:
    """`commit` and what it is built on, the newest first."""
    return _ask(repository, "rev-list --first-parent", commit).text.split()


def count_new(repository: Repository, commit: str, known: str | None) -> int:
    """Return the number of commits that `create` would put into a bundle."""
    return int(_ask(repository, "rev-list --count", *_range(commit, known)).text)


def create(repository: Repository, commit: str, known: str | None, target: IO[bytes]) -> None:
    """Write a bundle of `commit` to `target`, without the history of `known`.

    Raises:
        GitError: the history of this clone is cut off where the bundle would need it.
    """
    _refuse_cut(repository, commit, known)
    needs = f"-{known}\n" if known else ""
    version = (
        "# v2 git bundle\n" if len(commit) == 40 else "# v3 git bundle\n@object-format=sha256\n"
    )
    target.write(f"{version}{needs}{commit} HEAD\n\n".encode())
    wanted = "".join(f"{word}\n" for word in _range(commit, known)).encode()
    words = "pack-objects --revs --thin --stdout --delta-base-offset -q"
    call(words, (), repository.root, stdin=wanted, timeout=CHECKOUT_TIMEOUT_S, output=target)
    target.flush()


def contents(repository: Repository, commit: str, known: str | None) -> Iterator[tuple[str, bytes]]:
    """All that `create` would send: what it is, for people, and what is in it, piece by piece."""
    listed = _ask(repository, "rev-list --objects", *_range(commit, known)).text.splitlines()
    paths = dict(line.partition(" ")[::2] for line in listed)
    asked = "".join(f"{name}\n" for name in paths).encode()
    with tempfile.TemporaryFile() as objects:
        _ask(repository, "cat-file --batch", stdin=asked, output=objects)
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
    if edges & set(_ask(repository, "rev-list", *_range(commit, known)).text.split()):
        raise GitError(
            f"{repository.root} is a shallow clone, and {commit[:12]} needs what it lacks",
            hint="get the rest: git fetch --unshallow",
        )


def parse_header(bundle: bytes) -> Header:
    """Read the header of a bundle.

    Raises:
        GitError: it is no bundle, or one that we would not make.
    """
    end = bundle.find(b"\n\n", 0, HEADER_LIMIT)
    first, *lines = bundle[: max(end, 0)].split(b"\n")
    if end < 0 or first not in _VERSIONS:
        raise _no_bundle("it does not begin as one")
    if len(lines) > MAX_NAMES:
        raise _no_bundle(f"it has more than {MAX_NAMES:,} heads and prerequisites")
    prerequisites: list[str] = []
    heads: list[str] = []
    for line in (line.decode("utf-8", "replace") for line in lines):
        if line.startswith("@") and _VERSIONS[first] == 3:
            if not line.startswith("@object-format="):
                raise _no_bundle(f"it asks for {line[1:60]!r}, which is not supported")
            continue
        match = _NAMED.fullmatch(line)
        if match is None or (not match[1] and not match[3]):
            raise _no_bundle("its header is damaged")
        (prerequisites if match[1] else heads).append(match[2])
    return Header(prerequisites, heads, end + 2)


def take_in(repository: Repository, bundle: bytes, commit: str, ref: str) -> None:
    """Have `ref` hold `commit` out of a bundle that was received; nothing is checked out.

    Raises:
        GitError: the bundle is damaged, does not hold the commit with all that it stands on, or
            has a tree that cannot be listed; then the repository is as it was.
    """
    header = parse_header(bundle)
    if commit not in header.heads:
        raise GitError(f"the bundle does not bring {commit[:12]}", hint="ask the hub again")
    with _quarantine(repository) as (folder, settings):
        words = f"index-pack --stdin --fix-thin --strict --max-input-size={len(bundle)}"
        _ask(repository, words, stdin=bundle[header.size :], settings=settings)
        _refuse_incomplete(repository, commit, settings)
        _publish(folder / "pack", repository.common_dir / "objects" / "pack")
    if not repository.compare_and_swap(ref, commit, None) and repository.read_ref(ref) != commit:
        raise GitError(f"{ref} in {repository.root} holds something else", hint="delete it there")


@contextmanager
def _quarantine(repository: Repository) -> Iterator[tuple[Path, dict[str, str]]]:
    """A place for objects beside the repository's; git's own gc clears what a kill leaves."""
    objects = repository.common_dir / "objects"
    with tempfile.TemporaryDirectory(prefix="tmp_objdir-incoming-", dir=objects) as folder:
        settings = {
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
            "GIT_QUARANTINE_PATH": folder,
            "GIT_ALLOC_LIMIT": "256m",  # a small pack of deltas can ask for a gigabyte
        }
        yield Path(folder), settings


def _refuse_incomplete(repository: Repository, commit: str, settings: Mapping[str, str]) -> None:
    new = ["--not", "--all"]
    kind = _ask(repository, "cat-file -t", commit, settings=settings).text
    if kind != "commit":
        raise GitError(f"{commit[:12]} is a {kind}, no commit", hint="ask the hub again")
    many = ["--format=%T", f"--max-count={MAX_COMMITS + 1}", commit, *new]
    roots = _ask(repository, "rev-list --no-commit-header", *many, settings=settings).text.split()
    if len(roots) > MAX_COMMITS:
        raise GitError(f"the bundle brings more than {MAX_COMMITS:,} commits")

    def read(trees: list[str]) -> dict[str, bytes]:
        asked = "".join(f"{tree}\n" for tree in trees).encode()
        answer = _ask(repository, "cat-file --batch", stdin=asked, settings=settings)
        found = list(batch(answer.out))
        for name, kind, _ in found:
            if kind != "tree":
                raise GitError(f"{name[:12]} is {kind}, where a folder should be")
        return {name: content for name, _, content in found}

    _refuse_endless(roots, read)
    _ask(repository, "rev-list --objects --quiet", commit, *new, settings=settings)


def _publish(pack: Path, target: Path) -> None:
    """The pack, then its index: git looks for the index, so it finds both or neither."""
    target.mkdir(exist_ok=True)
    found = sorted(pack.iterdir(), key=lambda path: (path.suffix == ".idx", path.name))
    for path in found:
        os.replace(path, target / path.name)


def _items(tree: bytes, id_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Mode and id of what is in one tree; `index-pack --strict` has seen that it is well formed."""
    at = 0
    while at < len(tree):
        end = tree.index(b"\0", at)
        mode = tree[at:end].partition(b" ")[0]
        at = end + 1 + id_bytes
        yield mode, tree[end + 1 : at].hex()


def _refuse_endless(roots: Sequence[str], read: Callable[[list[str]], dict[str, bytes]]) -> None:
    folders: dict[str, list[str]] = {}
    files: dict[str, int] = {}
    level, depth = sorted(set(roots)), 0
    while level:
        if len(folders) + len(level) > MAX_TREES or depth == MAX_LEVELS:
            raise _endless(f"more than {MAX_TREES:,} folders or {MAX_LEVELS} levels")
        for tree, content in read(level).items():
            items = list(_items(content, len(tree) // 2))
            folders[tree] = [inner for mode, inner in items if mode == FOLDER]
            files[tree] = len(items) - len(folders[tree])
        below = {inner for tree in level for inner in folders[tree]}
        level, depth = sorted(below - folders.keys()), depth + 1
    paths: dict[str, int] = {}

    def count(tree: str) -> int:
        """Paths below a tree, counted once; no tree can be inside itself."""
        if tree not in paths:
            paths[tree] = 1 + files[tree] + sum(count(inner) for inner in folders[tree])
        return paths[tree]

    if any(count(root) > MAX_PATHS for root in roots):
        raise _endless(f"more than {MAX_PATHS:,} paths")


def _endless(why: str) -> GitError:
    return GitError(f"a commit has {why}", hint="it was not taken in; leave it alone")


#
# They go in as one stream: git makes one pack of them, not a loose object for each, and copies of
# trees for what changed only. No index is read or written and no filter or attribute of the
# repository is applied, so that what comes out is byte for byte what went in.


def kept_refs(repository: Repository, prefix: str) -> list[str]:
    """Return the refs below `prefix`, the one that was written last first."""
    words = ["--sort=-committerdate", "--format=%(refname)", prefix]
    return _ask(repository, "for-each-ref", *words).text.split()


def listing(repository: Repository, commit: str, paths: Sequence[str]) -> dict[str, str]:
    """Return path -> blob, for the plain files of a commit at or below `paths`."""
    found = {}
    for some in _parts(paths):
        answer = _ask(repository, "ls-tree -r -z --full-tree", commit, "--", *some)
        entries = parse_listing(answer.records).items()
        found.update({path: entry.blob for path, entry in entries if entry.mode == PLAIN})
    return found


def blobs(repository: Repository, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the content of each of the blobs `names`, in their order.

    Raises:
        GitError: one of them is not in the repository.
    """
    for some in _parts(names):
        asked = "".join(f"{name}\n" for name in some).encode()
        for name, kind, content in batch(_ask(repository, "cat-file --batch", stdin=asked).out):
            if kind == "missing":
                raise GitError(f"object {name} is missing in {repository.root}")
            yield content


def keep(
    repository: Repository,
    ref: str,
    parent: str | None,
    files: Mapping[str, bytes],
    *,
    gone: Iterable[str] = (),
    message: str,
) -> str:
    """Move `ref` one commit further: `parent`'s tree with `files` in it and `gone` out of it.

    Raises:
        GitError: another process moved the ref meanwhile, which then stays as it is.
    """
    if (there := repository.read_ref(ref)) and there != parent:
        raise GitError(f"{ref} in {repository.root} was moved by another process meanwhile")
    who = f"{ENVIRONMENT['GIT_COMMITTER_NAME']} <{ENVIRONMENT['GIT_COMMITTER_EMAIL']}>"
    words = message.encode()
    parts = [f"commit {ref}\ncommitter {who} now\ndata {len(words)}\n".encode(), words, b"\n"]
    if parent is not None:
        parts.append(f"from {parent}\n".encode())
    parts += [b"D " + _spelled(path) + b"\n" for path in gone]
    for path, content in files.items():
        parts.append(b"M %s inline %s\n" % (PLAIN.encode(), _spelled(path)))
        parts += [b"data %d\n" % len(content), content, b"\n"]
    # fast-import moves the ref only forward from what it was
    _ask(repository, "fast-import --quiet --date-format=now", stdin=b"".join(parts))
    return repository.resolve(ref)


def _spelled(path: str) -> bytes:
    """A path for fast-import: in quotes, so that any name is one."""
    raw = path.encode("utf-8", "surrogateescape")
    return b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE))


def _ask(
    repository: Repository,
    words: str,
    *args: str,
    settings: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    output: IO[bytes] | None = None,
) -> Answer:
    """Ask about objects of others: no large one is read whole, and foreign ones have a limit."""
    limit = INTAKE_S if settings else CHECKOUT_TIMEOUT_S
    words = f"-c core.bigFileThreshold=1m {words}"
    return call(words, args, repository.root, settings, stdin=stdin, timeout=limit, output=output)


def _no_bundle(why: str) -> GitError:
    return GitError(f"that is no bundle of git's: {why}", hint="ask the hub again")
