"""Bundles that we make are whole; what somebody sends is taken in wholly or leaves nothing."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.errors import GitError
from autohypothesis.records import git_bundle
from autohypothesis.records.git import Repository
from tests.conftest import run_git as git

REF = "refs/hub/x"


def _commit(root: Path, text: str) -> str:
    (root / "train.py").write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", text)
    return git(root, "rev-parse", "HEAD")


def _bundle(root: Path, commit: str, known: str | None = None) -> bytes:
    with tempfile.TemporaryFile() as target:
        git_bundle.create(Repository(root), commit, known, target)
        target.seek(0)
        return target.read()


@pytest.fixture
def empty(tmp_path: Path, own_locks: Path) -> Path:
    root = tmp_path / "empty"
    root.mkdir()
    git(root, "init", "-q")
    return root


def _state(root: Path) -> tuple[str, list[str]]:
    files = (root / ".git" / "objects").rglob("*")
    return git(root, "for-each-ref"), sorted(str(path) for path in files)


def test_git_itself_takes_what_we_make(foreign: Path, tmp_path: Path) -> None:
    base, new = git(foreign, "rev-parse", "HEAD"), _commit(foreign, "x = 1\n")
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    whole.write_bytes(_bundle(foreign, new))
    thin.write_bytes(_bundle(foreign, new, base))
    assert "complete history" in git(foreign, "bundle", "verify", str(whole))
    git(tmp_path, "clone", "-q", str(whole), "clone")
    assert git(tmp_path / "clone", "rev-parse", "HEAD") == new
    git(foreign, "bundle", "verify", str(thin))
    assert git_bundle.parse_header(thin.read_bytes()).prerequisites == [base]
    assert len(thin.read_bytes()) < len(whole.read_bytes())
    assert git_bundle.count_new(Repository(foreign), new, base) == 1


def test_a_commit_is_taken_in_without_a_checkout(foreign: Path, empty: Path) -> None:
    new = _commit(foreign, "x = 1\n")
    git_bundle.take_in(Repository(empty), _bundle(foreign, new), new, REF)
    assert git(empty, "rev-parse", REF) == new
    assert git(empty, "show", f"{new}:train.py") == "x = 1"
    assert [path.name for path in empty.iterdir()] == [".git"]
    git(empty, "fsck", "--full", "--strict")
    before = _state(empty)
    git_bundle.take_in(Repository(empty), _bundle(foreign, new), new, REF)
    assert _state(empty) == before


def test_a_thin_bundle_is_taken_on_what_is_there(foreign: Path, empty: Path) -> None:
    base, new = git(foreign, "rev-parse", "HEAD"), _commit(foreign, "x = 1\n")
    thin = _bundle(foreign, new, base)
    before = _state(empty)
    with pytest.raises(GitError):
        git_bundle.take_in(Repository(empty), thin, new, REF)
    assert _state(empty) == before
    git_bundle.take_in(Repository(empty), _bundle(foreign, base), base, "refs/hub/base")
    git_bundle.take_in(Repository(empty), thin, new, REF)
    git(empty, "fsck", "--full", "--strict")


# ── what is refused ─────────────────────────────────────────────────────────────────────────


def _flipped(bundle: bytes) -> bytes:
    return bundle[:-30] + bytes([bundle[-30] ^ 0xFF]) + bundle[-29:]


def _cut(foreign: Path, new: str) -> bytes:
    """As from a shallow clone: complete by its header, and without the parent."""
    head, pack = _bundle(foreign, new, f"{new}^").split(b"\n\n", 1)
    return b"\n".join(line for line in head.split(b"\n") if line[:1] != b"-") + b"\n\n" + pack


def _lying(foreign: Path, new: str) -> bytes:
    """Names the commit and brings another."""
    base = git(foreign, "rev-parse", f"{new}^")
    return _bundle(foreign, base).replace(base.encode(), new.encode(), 1)


def _without(foreign: Path, new: str, name: str) -> bytes:
    """All of it but one object, in a pack that is whole."""
    listed = git(foreign, "rev-list", "--objects", new).splitlines()
    left = git(foreign, "rev-parse", f"{new}{name}")
    names = "".join(f"{line.split()[0]}\n" for line in listed if left not in line).encode()
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"], cwd=foreign, input=names, capture_output=True
    )
    return f"# v2 git bundle\n{new} HEAD\n\n".encode() + pack.stdout


SPOILED: dict[str, Callable[[Path, str], bytes]] = {
    "no file": lambda foreign, new: _without(foreign, new, ":train.py"),
    "no folder": lambda foreign, new: _without(foreign, new, "^{tree}"),
    "torn": lambda foreign, new: _bundle(foreign, new)[:-40],
    "flipped": lambda foreign, new: _flipped(_bundle(foreign, new)),
    "cut": _cut,
    "another": lambda foreign, new: _bundle(foreign, f"{new}^"),
    "lying": _lying,
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_bundle_leaves_nothing_behind(how: str, foreign: Path, empty: Path) -> None:
    new = _commit(foreign, "x = 1\n")
    bad, before = SPOILED[how](foreign, new), _state(empty)
    with pytest.raises(GitError):
        git_bundle.take_in(Repository(empty), bad, new, REF)
    assert _state(empty) == before


def _object(root: Path, kind: str, content: bytes) -> str:
    """Put an object into a repository as it is, however odd."""
    whole = b"%s %d\0" % (kind.encode(), len(content)) + content
    name = hashlib.sha1(whole).hexdigest()
    path = root / ".git" / "objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(zlib.compress(whole))
    return name


def _entry(root: Path, name: bytes) -> str:
    """A tree with one file."""
    blob = bytes.fromhex(_object(root, "blob", b"x\n"))
    return _object(root, "tree", b"100644 " + name + b"\0" + blob)


def _nested(root: Path, levels: int, width: int) -> str:
    """A tree of trees. `ls-tree -r` on a wide one never ends, and git's own checks pass it."""
    tree = _entry(root, b"a")
    for _ in range(levels):
        inner = bytes.fromhex(tree)
        tree = _object(root, "tree", b"".join(b"40000 %d\0" % n + inner for n in range(width)))
    return tree


TREES: dict[str, tuple[Callable[[Path], str], str]] = {
    "without end": (lambda root: _nested(root, 40, 8), "more than 100,000 paths"),
    "too deep": (lambda root: _nested(root, 70, 1), "64 levels"),
    ".git": (lambda root: _entry(root, b".git"), ""),
    "..": (lambda root: _entry(root, b".."), ""),
    "a/b": (lambda root: _entry(root, b"a/b"), ""),
}


@pytest.mark.parametrize("name", TREES)
def test_a_hostile_tree_is_refused_at_once(name: str, foreign: Path, empty: Path) -> None:
    make, said = TREES[name]
    bad = git(foreign, "commit-tree", make(foreign), "-m", "bomb")
    before = _state(empty)
    with pytest.raises(GitError, match=said or None):
        git_bundle.take_in(Repository(empty), _bundle(foreign, bad), bad, REF)
    assert _state(empty) == before


def test_a_shallow_clone_says_that_it_cannot_push(foreign: Path, tmp_path: Path) -> None:
    _commit(foreign, "x = 1\n")
    git(tmp_path, "clone", "-q", "--depth", "1", foreign.as_uri(), "cut")
    with pytest.raises(GitError, match=r"shallow clone.*git fetch --unshallow"):
        _bundle(tmp_path / "cut", git(foreign, "rev-parse", "HEAD"))


START = b"# v2 git bundle\n"


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: START + rest))
def test_no_header_breaks_the_reader(content: bytes) -> None:
    try:
        header = git_bundle.parse_header(content)
    except GitError:
        return
    assert content[: header.size].endswith(b"\n\n")


def test_what_is_no_bundle_is_said_to_be_none() -> None:
    head = b"a" * 40 + b" HEAD\n"
    for header in (
        b"", START, START + head * 2000 + b"\n", START + b"x" * 70_000 + b"\n\n",
        b"# v3 git bundle\n@filter=blob:none\n" + head + b"\n",
        START + b"@object-format=sha1\n\n", START + head[1:] + b"\n", START + b"a" * 40 + b"\n\n",
    ):  # fmt: skip
        with pytest.raises(GitError, match="no bundle"):
            git_bundle.parse_header(header)
