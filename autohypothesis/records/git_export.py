"""The tree of a commit in a folder: no repository in it, and no program of the repository run.

git fills the folder through an index and a git folder of our own. That folder has the
repository's objects and its rules for line ends, and nothing else of its configuration: no hook,
no filter, no remote. The one filter it knows is git-lfs, with objects that are on this disk.
Folders and indexes lie in `.git/autohypothesis/`, where no run may write.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from autohypothesis.errors import GitError
from autohypothesis.plain import some_of
from autohypothesis.records.files import FileStamp, file_stamp, write_atomic
from autohypothesis.records.git import Entry, Repository, parse_listing
from autohypothesis.records.git_call import (
    CHECKOUT_TIMEOUT_S,
    NO_CONFIGURATION,
    Answer,
    batch,
    call,
)

SUBMODULE = "160000"
_POINTER = re.compile(
    rb"version https://git-lfs.github.com/spec/v1\n(?:ext-.*\n)*oid sha256:([0-9a-f]{64})\n"
)
_OWN = "autohypothesis"
_LFS_FILES = ":(attr:filter=lfs)"
_CONVERSIONS = (
    r"^(core\.(autocrlf|eol|symlinks|ignorecase|precomposeunicode|attributesfile)"
    r"|lfs\.storage|filter\..*\.(smudge|process))$"
)
"""The settings that decide what a checked-out file looks like."""
_TRUST = (
    "\ttrustctime = true", "\tcheckstat = default", "\tfilemode = true",
    "\tignorestat = false", "\tsparsecheckout = false",
)  # fmt: skip
"""Whatever the user set: a file counts as unchanged only if its change time and inode say so."""
_LFS = (
    "[lfs]", '\turl = ""', "\tskipdownloaderrors = true",
    '[filter "lfs"]', "\tprocess = git-lfs filter-process", "\trequired = false",
)  # fmt: skip
"""git-lfs without a server: what is not on this disk stays a pointer."""
_FILTER = re.compile(rb"\bfilter=([^\s\"]+)")


class Part(NamedTuple):
    """A tree and the git folder that has its objects: the repository's, or a submodule's."""

    source: Path
    commit: str
    entries: Mapping[str, Entry]
    prefix: str = ""
    """Path of the submodule, with a slash at its end; empty for the repository itself."""

    def files(self) -> dict[str, Entry]:
        """Path -> entry, without submodules."""
        return {
            self.prefix + path: entry
            for path, entry in self.entries.items()
            if entry.mode != SUBMODULE
        }


# ── what a commit consists of ───────────────────────────────────────────────────────────────


def parts(repository: Repository, commit: str) -> list[Part]:
    """The tree of `commit`, then those of its submodules, and of theirs.

    Raises:
        GitError: a submodule was never fetched.
    """
    own = Part(repository.common_dir, commit, repository.entries(commit))
    return [own, *_submodules(own, repository.root)]


def _submodules(part: Part, checkout: Path) -> Iterator[Part]:
    links = {path: entry.blob for path, entry in part.entries.items() if entry.mode == SUBMODULE}
    names = _submodule_names(part.source, part.commit) if links else {}
    for path, commit in links.items():
        source = _source_of(part, checkout, path, names.get(path), commit)
        if source is not None:
            inner = Part(source, commit, _entries(source, commit), f"{part.prefix}{path}/")
            yield inner
            yield from _submodules(inner, checkout)
        elif path in names:  # else git leaves its folder empty as well
            raise GitError(
                f"submodule {part.prefix}{path} is not here at {commit[:12]}, which the commit"
                " names",
                hint=f"run `git submodule update --init --recursive -- {part.prefix}{path}`",
            )


@lru_cache(maxsize=32)
def _submodule_names(source: Path, commit: str) -> dict[str, str]:
    listed = ["--blob", f"{commit}:.gitmodules", "--get-regexp", r"^submodule\..*\.path$"]
    answer = _ask(source, "config -z", *listed, accept=(0, 1, 128))
    return {
        path: key.removeprefix("submodule.").removesuffix(".path")
        for key, _, path in (record.partition("\n") for record in answer.records)
    }


def _source_of(part: Part, checkout: Path, path: str, name: str | None, commit: str) -> Path | None:
    candidates = []
    if name and ".." not in name.split("/"):
        candidates.append(part.source / "modules" / name)
    inside = checkout / part.prefix / path / ".git"
    if inside.is_dir():
        candidates.append(inside)
    elif inside.is_file():
        with suppress(OSError):
            said = inside.read_text("utf-8", "surrogateescape").removeprefix("gitdir:").strip()
            candidates.append(Path(os.path.normpath(inside.parent / said)))
    return next((one for one in candidates if _has(one, commit)), None)


def _has(source: Path, commit: str) -> bool:
    try:
        _entries(source, commit)  # remembered, also of a folder that is gone since
        return source.is_dir()
    except GitError:
        return False


@lru_cache(maxsize=64)
def _entries(source: Path, commit: str) -> dict[str, Entry]:
    return parse_listing(_ask(source, "ls-tree -r -z --full-tree", commit).records)


def _ask(
    source: Path, words: str, *args: str, stdin: bytes = b"", accept: tuple[int, ...] = (0,)
) -> Answer:
    """A question to the git folder `source`, wherever its checkout is."""
    if not source.is_dir():
        raise GitError(f"{source} is not there")
    settings = {"GIT_DIR": str(source), "GIT_WORK_TREE": str(source)}
    limit = CHECKOUT_TIMEOUT_S
    return call(words, args, source, settings, stdin=stdin, timeout=limit, accept=accept)


# ── filling a folder ────────────────────────────────────────────────────────────────────────


def fill(part: Part, target: Path, index: Path) -> None:
    """Make `target` hold the files of `part`, as a checkout does; what has not changed stays.

    Files of other names stay too. The index has one user; a lock of git's that is there is left
    by a kill.

    Raises:
        GitError: git cannot, for a damaged index too; the message has its words.
    """
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(index) as user:
        index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
        _run(part, "read-tree --reset -u", part.commit, index=index, target=target, lock=user)


@contextmanager
def exclusive(index: Path) -> Iterator[IO[bytes]]:
    """Wait until no git works on `index`, that of a killed checkout included."""
    index.parent.mkdir(parents=True, exist_ok=True)
    with index.with_name(f"{index.name}.user").open("wb") as user:
        fcntl.flock(user, fcntl.LOCK_EX)
        yield user


def refuse_missing(repository: Repository, commit: str) -> None:
    """See that a checkout of `commit` can be made.

    Raises:
        GitError: a submodule, or contents of git-lfs, are not on this disk.
    """
    root = repository.root
    refuse_absent(absent_contents(parts(repository, commit), root), root)


def absent_contents(parts: Sequence[Part], checkout: Path) -> list[str]:
    """Return the files of git-lfs in a `checkout` whose contents are not on this disk."""
    return [
        part.prefix + path
        for part in parts
        if b"lfs" in filters_named(part, checkout / part.prefix)
        for path in _absent(part)
    ]


def refuse_absent(paths: Sequence[str], root: Path) -> None:
    """Raise the error about files of git-lfs whose contents are absent, if any are."""
    if not paths:
        return
    pull = f"run `git lfs pull` in {root}"
    raise GitError(
        f"{some_of(paths)}: the contents are kept by git-lfs, and are not on this disk",
        hint=pull if shutil.which("git-lfs") else f"install git-lfs, then {pull}",
    )


def _absent(part: Part) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="autohypothesis-lfs-") as folder:
        index = Path(folder) / "index"
        _run(part, "read-tree", part.commit, index=index, target=Path(folder))
        listed = _run(part, "ls-files -z --", _LFS_FILES, index=index, target=Path(folder)).records
    paths = [path for path in listed if part.entries[path].mode != SUBMODULE]
    asked = "".join(f"{part.entries[path].blob}\n" for path in paths).encode()
    blobs = batch(_ask(part.source, "cat-file --batch", stdin=asked).out)
    return [path for path, (_, _, blob) in zip(paths, blobs, strict=True) if _lacks(part, blob)]


def _lacks(part: Part, blob: bytes) -> bool:
    """Whether a blob is a pointer to contents that are not in the store of git-lfs."""
    pointer = _POINTER.match(blob)
    if pointer is None:
        return False
    name = pointer[1].decode()
    inside = _lfs_storage(part) / "objects" / name[:2] / name[2:4] / name
    return shutil.which("git-lfs") is None or not inside.is_file()


def _lfs_storage(part: Part) -> Path:
    return part.source / dict(_conversions(part.source)).get("lfs.storage", "lfs")


def filters_named(part: Part, target: Path) -> set[bytes]:
    """The filters that the attributes of a checkout, or of its repository, name."""
    files = [target / path for path in part.entries if path.rpartition("/")[2] == ".gitattributes"]
    named: set[bytes] = set()
    for file in [*files, part.source / "info" / "attributes"]:
        with suppress(OSError):
            named |= set(_FILTER.findall(file.read_bytes()))
    return named


def filters_left_out(part: Part, target: Path) -> list[str]:
    """Filters that the user's own checkout applies and an export does not."""
    named = {one.decode("utf-8", "replace") for one in filters_named(part, target)} - {"lfs"}
    if not named:
        return []
    keys = [key for key, value in _conversions(part.source) if key.startswith("filter.") and value]
    return sorted({one for one in named if any(key.startswith(f"filter.{one}.") for key in keys)})


def changed(
    repository: Repository, commit: str, checkout: Path, paths: Collection[str]
) -> list[str]:
    """Return the plain files of `commit`, of those at `paths`, that differ from a checkout."""
    found = []
    for part in parts(repository, commit) if paths else ():
        own = part.files()
        inside = [path.removeprefix(part.prefix) for path in paths if path in own]
        found += [part.prefix + path for path in _differing(part, checkout / part.prefix, inside)]
    return found


def _differing(part: Part, target: Path, paths: Collection[str]) -> list[str]:
    if not paths:
        return []
    with tempfile.TemporaryDirectory(prefix="autohypothesis-compare-") as folder:
        fresh, index = Path(folder) / "tree", Path(folder) / "index"
        fresh.mkdir()
        _run(part, "read-tree", part.commit, index=index, target=fresh)
        listed = b"".join(os.fsencode(path) + b"\0" for path in paths)
        _run(part, "checkout-index --stdin -z", index=index, target=fresh, stdin=listed)
        return [path for path in paths if digest(target / path) != digest(fresh / path)]


def digest(path: Path) -> str:
    """A hash of a plain file's content, or how it cannot be read."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "no plain file"
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
        return found.hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def one_commit(part: Part, commit: str, tag: str, target: Path, index: Path) -> None:
    """Make `place/.git` a repository of its own that holds `commit`, which has no parent.

    It has all its objects, so it leads nowhere else. HEAD is at a branch, and `tag` is there.
    """
    folder = target / ".git"
    for inner in ("objects/pack", "refs/heads"):
        (folder / inner).mkdir(parents=True)
    pack = str(folder / "objects" / "pack" / "pack")
    wanted = f"{commit}\n".encode()
    _ask(part.source, "pack-objects --quiet --revs", pack, stdin=wanted)
    (folder / "refs" / "heads" / "main").write_text(f"{commit}\n")
    (folder / "config").write_text("\n".join([*_core(part), ""]), "utf-8", "surrogateescape")
    (folder / "index").write_bytes(index.read_bytes())
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    settings = {"GIT_DIR": str(folder), "GIT_COMMITTER_DATE": "@0 +0000", **NO_CONFIGURATION}
    tagging = ["--annotate", "--no-sign", "--message", tag, tag, commit]
    call("tag", tagging, target, settings)


# ── our own git folder ──────────────────────────────────────────────────────────────────────


def _run(
    part: Part,
    words: str,
    *args: str,
    index: Path,
    target: Path,
    stdin: bytes = b"",
    lock: IO[bytes] | None = None,
) -> Answer:
    settings = {
        "GIT_DIR": str(_own_folder(part)),
        "GIT_OBJECT_DIRECTORY": str(part.source / "objects"),
        "GIT_INDEX_FILE": str(index),
        "GIT_WORK_TREE": str(target),
        **NO_CONFIGURATION,
    }
    limit = CHECKOUT_TIMEOUT_S
    return call(words, args, target, settings, stdin=stdin, timeout=limit, lock=lock)


def _own_folder(part: Part) -> Path:
    """A git folder without objects whose configuration is ours; made or mended as needed."""
    folder = part.source / _OWN / "export"
    lines = [*_core(part), *(_lfs(part) if shutil.which("git-lfs") else []), ""]
    _keep(folder / "config", os.fsencode("\n".join(lines)))
    _keep(folder / "HEAD", b"ref: refs/heads/none\n")
    (folder / "refs").mkdir(exist_ok=True)
    attributes = part.source / "info" / "attributes"
    _keep(folder / "info" / "attributes", attributes.read_bytes() if attributes.is_file() else b"")
    return folder


def _lfs(part: Part) -> list[str]:
    """git-lfs as the one filter; without the program its files stay pointers."""
    return [*_LFS, "[lfs]", f"\tstorage = {_quoted(str(_lfs_storage(part)))}"]


def _keep(path: Path, content: bytes) -> None:
    """See that a file has this content; the usual case is one read."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomic(path, content, durable=False)


def _core(part: Part) -> list[str]:
    """The lines of a configuration that say how files look, and how long an object's name is."""
    is_long = len(part.commit) == 64
    found = [one for one in _conversions(part.source) if one[0].startswith("core.")]
    lines = ["[core]", f"\trepositoryformatversion = {int(is_long)}", "\tbare = false"]
    lines += [f"\t{name.removeprefix('core.')} = {_quoted(value)}" for name, value in found]
    lines += _TRUST
    return [*lines, *(["[extensions]", "\tobjectformat = sha256"] if is_long else [])]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _conversions(source: Path) -> tuple[tuple[str, str], ...]:
    """The user's settings of `_CONVERSIONS`, asked for again when a configuration changes."""
    home = Path.home()
    files = (
        source / "config",
        Path(os.environ.get("GIT_CONFIG_GLOBAL") or home / ".gitconfig"),
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git" / "config",
    )
    return _asked_conversions(source, *(file_stamp(os.path.realpath(file)) for file in files))


@lru_cache(maxsize=32)
def _asked_conversions(source: Path, *_: FileStamp | None) -> tuple[tuple[str, str], ...]:
    answer = _ask(source, "config -z --get-regexp", _CONVERSIONS, accept=(0, 1))
    pairs = (record.partition("\n") for record in answer.records)
    return tuple(sorted({key: value if given else "true" for key, given, value in pairs}.items()))


# ── files of the user's checkout that are in no commit ──────────────────────────────────────


def untracked(root: Path, *, leave_out: Collection[str], patterns: Sequence[str] = ()) -> list[str]:
    """Untracked files and folders below `root`, ignored or not; a folder ends in a slash.

    A folder without any tracked file stands for all that is in it, and is not read.

    Args:
        leave_out: names in `root` that are not looked at.
        patterns: in the syntax of .gitignore; with any, only what they match.
    """
    tops = sorted(set(os.listdir(root)) - {".git", *leave_out})
    if not tops:
        return []
    words = "--literal-pathspecs ls-files -z --others --directory"
    with tempfile.NamedTemporaryFile(prefix="autohypothesis-patterns-") as file:
        args = ["--no-empty-directory", "--", *tops]
        if patterns:
            file.write(os.fsencode("\n".join([*patterns, ""])))
            file.flush()
            args = ["--ignored", f"--exclude-from={file.name}", "--", *tops]
        answer = call(words, args, root, {})
    return _outermost(answer.records)


def _outermost(listed: Sequence[str]) -> list[str]:
    found: list[str] = []
    for path in sorted(listed):
        if not (found and found[-1].endswith("/") and path.startswith(found[-1])):
            found.append(path)
    return found
