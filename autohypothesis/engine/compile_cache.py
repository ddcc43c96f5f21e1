"""What compilers keep for the next time: torch's, triton's and CUDA's caches.

A cache is code. So each run has its own, in its home, which goes with it; it begins as a copy of
the one that the baseline left, since that ran the user's own script and nothing that was proposed.
Only plain files are copied, and no link is followed: a run may leave anything in its home.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from autohypothesis.records.files import remove_folder

VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TORCH_EXTENSIONS_DIR": "extensions",
}
"""Variable -> its folder below the cache of a run."""
_PARTS = (".cache", "compiled")
MOST_BYTES = 1 << 30
MOST_FILES = 20_000
MOST_LEVELS = 16
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def cache_of(home: Path) -> Path:
    return home.joinpath(*_PARTS)


def variables(home: Path) -> dict[str, str]:
    """The variables that have compilers keep their caches in `home`."""
    return {name: str(cache_of(home) / folder) for name, folder in VARIABLES.items()}


def seed_folder(common_dir: Path, platform_key: str) -> Path:
    """Where the cache of a platform's baseline is kept, below a repository's `.git`."""
    return common_dir / "autohypothesis" / "compiled" / platform_key[:16]


def begin(home: Path, seed: Path) -> None:
    """Copy the baseline's cache into the home of a run, where there is one."""
    if seed.is_dir():
        with suppress(OSError, shutil.Error):  # a compiler then does the work again
            shutil.copytree(seed, cache_of(home), dirs_exist_ok=True)


def keep(home: Path, seed: Path) -> None:
    """Keep the cache that a baseline left, unless there is one already, or it is too large."""
    if seed.exists():
        return
    beside = seed.with_name(f"{seed.name}.{os.getpid()}")
    try:
        with ExitStack() as opened, suppress(OSError):
            folder: int | None = None
            for part in (str(home), *_PARTS):
                folder = os.open(part, _READ | os.O_DIRECTORY, dir_fd=folder)
                opened.callback(os.close, folder)
            if folder is not None and _copied(folder, beside):
                os.rename(beside, seed)
    finally:
        if beside.exists():
            remove_folder(beside)


def _copied(folder: int, target: Path) -> bool:
    """Copy the plain files below an open folder; False where they are none, or too many."""
    files = size = 0
    with closing(_plain_files(folder)) as found:
        for path, file in found:
            with os.fdopen(file, "rb") as source:
                size += os.fstat(source.fileno()).st_size
                files += 1
                if size > MOST_BYTES or files > MOST_FILES:
                    return False
                place = target / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                place.chmod(0o755 if os.fstat(source.fileno()).st_mode & 0o100 else 0o644)
    return files > 0


def _plain_files(
    folder: int, prefix: str = "", level: int = 0
) -> Generator[tuple[str, int], None, None]:
    """The path and a descriptor of each plain file below a folder, for the caller to close; links
    are passed by."""
    for name in sorted(os.listdir(folder)):
        try:
            file = os.open(name, _READ, dir_fd=folder)
        except OSError:
            continue
        mode = os.fstat(file).st_mode
        if stat.S_ISREG(mode):
            yield prefix + name, file
            continue
        try:
            if stat.S_ISDIR(mode) and level < MOST_LEVELS:
                yield from _plain_files(file, f"{prefix}{name}/", level + 1)
        finally:
            os.close(file)
