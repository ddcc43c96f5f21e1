"""Whole files: written so that a reader sees the old one or the new one, read without trust.

Standard library only: the shim imports this, and must start in a blink.

Whoever writes under research/ may be killed at any instant, and anyone may put anything there: a
named pipe, a link to /dev/zero, a gigabyte of nothing. A read here is bounded in time and memory,
and says what it found where a file should be. A missing file raises `FileNotFoundError`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from autohypothesis.errors import RecordError, UnwritableError, faults_in
from autohypothesis.system import disk_full_advice, rename_exclusive

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

JSON_LIMIT = 4 * 1024 * 1024
PAGE_LIMIT = 1024 * 1024
"""Bytes of a page that a person wrote."""
"""Bytes. The largest document we write, exit.json with its samples, has some twenty thousand."""
ASIDE = ".set-aside-"
"""Stands before the time in the name of a file that was moved aside."""
MTIME_GRANULARITY_NS = 100_000_000
"""A file or folder that changed this recently may change again with the same time."""
MAX_DEPTH = 64
"""Levels of nesting; the deepest document we write has six."""
MAX_DIGITS = 4_000
"""Digits of an integer; Python itself refuses 4,301."""

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_READ = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_SWEEP_AGE_S = 60.0
_PIECE = 1024 * 1024

# Cheap tests on the raw bytes decide whether the slower, careful decoding is needed at all.
_MAY_OVERFLOW = re.compile(rb"[eE]\+?\d{3}|(?<!\d)\d{300}")
_MAY_BE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# ── names ───────────────────────────────────────────────────────────────────────────────────


def shown(text: object) -> str:
    r"""A path or a name for people and for JSON: bytes that are no UTF-8 as `\xfe`, line breaks and
    other control characters escaped, all else as it is.

    File names are bytes. Python keeps those that are no text as half surrogate pairs, which neither
    JSON nor a terminal takes.
    """
    name = str(text)
    if name.isprintable():
        return name
    readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in readable
    )


def is_utf8(name: str) -> bool:
    """Whether a file's name is text, so that JSON can hold it."""
    return name.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in name)


# ── writing ─────────────────────────────────────────────────────────────────────────────────


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True, mode: int = 0o644) -> None:
    """Puts `data` at `path`, whole or not at all, with `mode`; makes the folder if need be.

    Whatever was at `path` is replaced, a link itself rather than what it points to. With
    `durable=False`, for what can be made again, a power cut may lose the file; a kill leaves it
    whole or absent.

    Raises:
        UnwritableError: naming the path and the system's reason; `path` is as it was before.
    """
    content = data.encode("utf-8", "replace") if isinstance(data, str) else data
    with _replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(temporary, content, durable, mode)
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that is renamed to `path`; raise as `write_atomic`."""
    temporary = path.parent / f".{path.name[:180]}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        yield temporary
    except OSError as error:
        raise UnwritableError(
            f"cannot write {path}: {error.strerror or error}",
            hint=disk_full_advice(error.errno) or "see `df -h` and `ls -ld`",
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def write_extended(path: Path, size: int, more: bytes) -> None:
    """Replace `path` by its first `size` bytes with `more` after them, whole or not at all.

    It is for what can be made again. Its memory does not grow with the file.

    Raises:
        UnwritableError: naming the path and the system's reason; `path` is as it was before.
    """
    with _replacing(path) as temporary:
        with path.open("rb") as old, temporary.open("xb") as new:
            with suppress(AttributeError, OSError):  # not on every system and file system
                while size and (done := os.copy_file_range(old.fileno(), new.fileno(), size)):
                    size -= done
            while size and (piece := old.read(min(size, _PIECE))):
                size -= new.write(piece)
            new.write(more)
        os.replace(temporary, path)


def write_new(path: Path, data: bytes | str, *, durable: bool = True, mode: int = 0o644) -> bool:
    """Write like `write_atomic`, but never over anything; return False where `path` exists."""
    beside = path.with_name(f".{path.name[:180]}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    write_atomic(beside, data, durable=durable, mode=mode)
    try:
        rename_exclusive(beside, path)
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
    return True


def make_private(folder: Path) -> None:
    """Make `folder` and the folders on the way to it, for their owner only, or raise OSError."""
    for part in (*reversed(folder.parents), folder):
        with suppress(FileExistsError):
            part.mkdir(mode=0o700)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        folder.chmod(0o700)


def require_writable(*folders: Path) -> None:
    """See that nothing stops at a read-only folder halfway; one that is absent will be made.

    Raises:
        UnwritableError: naming the first folder that may not be written.
    """
    for folder in folders:
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UnwritableError(
                f"{folder} cannot be written, so nothing was begun",
                hint=f"see `ls -ld {folder}` and `df -h`",
            )


def _write_whole(path: Path, content: bytes, durable: bool, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the file system can do that."""
    with open_folder(folder) as descriptor, suppress(OSError):
        os.fsync(descriptor)


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder: names are looked up from there in less time."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Puts `value`, plain data or a pydantic model, at `path` as JSON that any parser takes."""
    write_atomic(path, to_json(value, indent=2) + "\n", durable=durable)


def to_json(value: object, *, indent: int | None = None) -> str:
    """`value` as JSON text. A number that is not finite becomes null: JSON has no other."""
    separators = (",", ":") if indent is None else (",", ": ")
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )
    except (ValueError, TypeError):
        return json.dumps(
            _plain(value), ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def set_aside(path: Path) -> Path:
    """Rename what is at `path`; return its new place beside the old one."""
    aside = path.with_name(f"{path.name}{ASIDE}{time.time_ns()}")
    os.rename(path, aside)
    return aside


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Removes what killed writers left in `folder`: never a file whose writer may still live."""
    removed: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and not _lives(int(found["pid"])):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _SWEEP_AGE_S:
                        os.unlink(entry.path)
                        removed.append(Path(entry.path))
    return removed


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        pass
    return True


# ── reading ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def opened(path: Path | str, flags: int = _READ) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor on the regular file at `path`, with its status; nothing else is ever opened.

    Raises:
        FileNotFoundError: when nothing is there.
        RecordError: when something else is there: link, folder, pipe, socket or device.
    """
    descriptor, status = _open(path, flags)
    try:
        yield descriptor, status
    finally:
        os.close(descriptor)


def _open(path: Path | str, flags: int = _READ) -> tuple[int, os.stat_result]:
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{path} {_why_not(path, error)}", hint=_MOVE_AWAY) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise RecordError(f"{path} is {kind_of(status.st_mode)}, no file", hint=_MOVE_AWAY)
    return descriptor, status


_MOVE_AWAY = "move it away and run `python orchestrator.py sync`"


def kind_of(mode: int) -> str:
    return next((words for test, words in _KINDS if test(mode)), "a file")


def _why_not(path: Path | str, error: OSError) -> str:
    with suppress(OSError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            return f"is {kind_of(mode)}, no file"
    if error.errno == errno.ENOTDIR:
        return "lies below something that is no folder"
    return f"cannot be opened: {error.strerror}"


def read_bytes(path: Path | str, limit: int = JSON_LIMIT) -> bytes:
    """The content of the regular file at `path`.

    Raises:
        FileNotFoundError: when nothing is there.
        RecordError: when it is no regular file, or larger than `limit` bytes (then nothing of it
            is read), or cannot be read.
    """
    return read_with_status(path, limit)[0]


def read_text(path: Path | str, limit: int) -> str:
    """Return the text at `path`; empty where there is none that can be read.

    A byte that is no UTF-8 is replaced.
    """
    with suppress(FileNotFoundError, RecordError):
        return read_bytes(path, limit).decode("utf-8", "replace")
    return ""


def read_with_status(path: Path | str, limit: int = JSON_LIMIT) -> tuple[bytes, os.stat_result]:
    """Return the content like `read_bytes`, and its `stat`, by which a later change is seen."""
    descriptor, status = _open(path)
    size = status.st_size
    try:
        if size > limit:
            raise RecordError(
                f"{path} has {size:,} bytes, more than the {limit:,} that are read", hint=_MOVE_AWAY
            )
        # A file that grows meanwhile is one that is appended to: the rest is read next time.
        return os.read(descriptor, size), status
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_json(path: Path | str, limit: int = JSON_LIMIT, *, exact: bool = False) -> Any:
    """The JSON document at `path`; NaN, infinities and 1e999 are read as None.

    With `exact`, which is for what people and agents write, they are refused.

    Raises:
        FileNotFoundError: when nothing is there.
        RecordError: naming the path and what is wrong with it.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content, exact=exact)
    except ValueError as error:
        raise RecordError(f"{path} {error}", hint=_MOVE_AWAY) from None


def load(model: type[Model], path: Path, limit: int = JSON_LIMIT) -> Model:
    """Read and validate the document at `path`.

    Raises:
        FileNotFoundError: when nothing is there.
        RecordError: naming the path and what is wrong with it.
    """
    value = read_json(path, limit)
    try:
        return validated(model, value)
    except ValueError as error:
        raise RecordError(f"{path} {error}", hint="mend it, or move it away") from None


def load_or_none(model: type[Model], path: Path, limit: int = JSON_LIMIT) -> Model | None:
    """Return the document like `load`, or None where the file is absent or damaged."""
    try:
        return load(model, path, limit)
    except (FileNotFoundError, RecordError):
        return None


def read_object(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read the JSON object at `path`; empty where the file is absent, damaged, or no object."""
    try:
        value = read_json(path, limit)
    except (FileNotFoundError, RecordError):
        return {}
    return value if isinstance(value, dict) else {}


def as_object(value: object) -> dict[str, Any]:
    """Return `value` if it is an object of JSON.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    if isinstance(value, dict):
        return value
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    raise ValueError(f"holds {kinds.get(type(value), 'a number')}, no object")


def validated(model: type[Model], value: object) -> Model:
    """`value` as a `model`.

    Raises:
        ValueError: in words that follow the name of the file.
    """
    document = as_object(value)
    try:
        return model.model_validate(document)
    except ValueError as error:
        raise ValueError(f"is not as it should be: {faults_in(error)}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None


def parse_json(content: bytes, *, exact: bool = False) -> Any:
    """`content` as JSON; what is no finite number is None, or with `exact` refused.

    Raises:
        ValueError: in words that follow the name of the file: "is empty", "is not UTF-8, ...".
    """
    if not content.strip():
        raise ValueError("is empty")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    careful = bool(_MAY_OVERFLOW.search(content))

    def finite(word: str) -> float | None:
        number = float(word)
        if not math.isfinite(number) and exact:
            raise ValueError(f"{word[:20]}, which is no finite number")
        return number if math.isfinite(number) else None

    try:
        value = json.loads(
            text,
            parse_constant=finite,
            parse_float=finite if careful else None,
            parse_int=_bounded if careful else None,
        )
        if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
            _check_depth(value)
    except RecursionError:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON: {error.msg} at {where}") from None
    except ValueError as error:
        raise ValueError(f"holds {error}") from None
    return _without_surrogates(value) if _MAY_BE_SURROGATE.search(content) else value


def _bounded(digits: str) -> int:
    """Reading an integer takes time with the square of its length."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS:,} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    """Level by level, not by recursion: the interpreter's own limit differs between versions."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise RecursionError


def _children(item: Any) -> list[Any]:
    inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [child for child in inner if isinstance(child, (dict, list))]


def _without_surrogates(value: Any) -> Any:
    """Half a surrogate pair is no character, and could not be written again."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


class FileStamp(NamedTuple):
    """Fields of `lstat` of a file: while they are equal, nothing wrote to it."""

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(
            status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        )


def file_stamp(path: Path | str) -> FileStamp | None:
    """Return the stamp of what is at `path`, which may be a link; None where nothing is."""
    try:
        return FileStamp.of(os.lstat(path))
    except OSError:
        return None


def remove_folder(path: Path) -> None:
    """Delete a tree, although a training took away the rights to its folders, or made it so deep
    that Python cannot follow."""
    with suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        for words in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*words, "--", str(path)], check=False, stderr=subprocess.DEVNULL)
