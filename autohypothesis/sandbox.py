"""bubblewrap: what a program may write to, and what it sees of the machine.

Where it is missing, or this user may not use it, the callers fall back to hashes: they compare
what was there before with what is there afterwards. Nothing else of the house knows its options.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

PRIVATE_BYTES = 1 << 30
"""Of the memory file system that stands for /tmp, and of the one for the home folder."""


def sandbox_command(
    command: Sequence[str],
    *,
    read_only: Iterable[str] = (),
    tmpfs: str | None = None,
    tmpfs_bytes: int = 0,
) -> list[str]:
    """`command` under bwrap: the same files, none to be changed below `read_only`.

    Over `tmpfs` lies a small memory file system. It dies with whoever started it. Ask
    `has_sandbox` first.
    """
    wrapped = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/"]
    for folder in read_only:
        wrapped += ["--ro-bind", folder, folder]
    if tmpfs is not None:
        wrapped += ["--size", str(tmpfs_bytes), "--tmpfs", tmpfs]
    return [*wrapped, "--", *command]


def isolated_command(
    command: Sequence[str],
    *,
    writable: Iterable[Path],
    readable: Iterable[Path] = (),
    fixed: Iterable[Path] = (),
    network: bool = False,
    devices: bool = False,
) -> list[str]:
    """`command` with the disk read-only, a /tmp and a home of its own, and processes of its own.

    All of it ends with the command. Ask `can_isolate` first.

    Args:
        writable: folders that it may change.
        readable: what it must see although it lies in /tmp or at home: its code, its data.
        fixed: files inside of `writable` that stay as they are.
        devices: whether it sees the machine's devices, a GPU among them.
    """
    wrapped = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL"]
    wrapped += [] if network else ["--unshare-net"]
    wrapped += ["--ro-bind", "/", "/"]
    wrapped += ["--dev-bind", "/dev", "/dev"] if devices else ["--dev", "/dev"]
    wrapped += ["--proc", "/proc"]
    private = _private_folders()
    for folder in private:
        wrapped += ["--size", str(PRIVATE_BYTES), "--tmpfs", str(folder)]
    seen = {*map(_real, readable), *_programs(command, private)}
    seen |= {Path("/run/systemd/resolve")} if network else set()
    for path in sorted(path for path in seen if any(_is_below(path, one) for one in private)):
        wrapped += ["--ro-bind-try", str(path), str(path)]
    for path in map(_real, writable):
        wrapped += ["--bind", str(path), str(path)]
    for path in map(_real, fixed):
        wrapped += ["--ro-bind-try", str(path), str(path)]
    return [*wrapped, "--", *command]


def _private_folders() -> list[Path]:
    """/tmp, the home folder, and /run, whose sockets lead to services that are in no sandbox.

    The outer one comes first where one is in another.
    """
    places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/run"), Path.home())
    wanted = {_real(one) for one in places}
    return sorted(one for one in wanted if one.is_dir() and one != Path("/"))


def _programs(command: Sequence[str], private: Sequence[Path]) -> set[Path]:
    """Where the Python of this process and the program itself are installed.

    Of a program that lies in a private folder itself only its file: its neighbours are private.
    """
    program = Path(command[0]).absolute()
    found = {Path(sys.prefix), Path(sys.base_prefix)}
    for file in (program, _real(program)):
        found.add(file if _real(file.parent) in private else file.parent)
    return {one for one in map(Path.absolute, found) if one != Path("/")}


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


@lru_cache(maxsize=1)
def has_sandbox() -> bool:
    """Whether bwrap is installed and this user may use it; asked once per process."""
    return _succeeds(sandbox_command(["true"]))


@lru_cache(maxsize=1)
def can_isolate() -> bool:
    """Whether `isolated_command` works here: it needs more of the kernel than `sandbox_command`."""
    with tempfile.TemporaryDirectory() as folder:
        return _succeeds(isolated_command(["/bin/true"], writable=[Path(folder)]))


def _succeeds(words: Sequence[str]) -> bool:
    try:
        done = subprocess.run(words, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
