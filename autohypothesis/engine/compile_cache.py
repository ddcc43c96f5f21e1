"""What compilers keep for the next time: torch's, triton's and CUDA's caches.

A cache is code. So each run has its own, in its home, which goes with it; it begins as a copy of
the one that the baseline left, since that ran the user's own script and nothing that was proposed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from autohypothesis.records.files import remove_folder

VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TORCH_EXTENSIONS_DIR": "extensions",
}
"""Variable -> its folder below the cache of a run."""
MOST_BYTES = 1 << 30
MOST_FILES = 20_000


def cache_of(home: Path) -> Path:
    return home / ".cache" / "compiled"


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
            shutil.copytree(seed, cache_of(home), symlinks=True, dirs_exist_ok=True)


def keep(home: Path, seed: Path) -> None:
    """Keep the cache that a baseline left, unless there is one already, or it is too large."""
    cache = cache_of(home)
    if seed.exists() or not cache.is_dir() or not _is_small(cache):
        return
    beside = seed.with_name(f"{seed.name}.{os.getpid()}")
    try:
        seed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(cache, beside, symlinks=True)
        os.rename(beside, seed)
    except (OSError, shutil.Error):
        remove_folder(beside)


def _is_small(folder: Path) -> bool:
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
            files += 1
        if size > MOST_BYTES or files > MOST_FILES:
            return False
    return files > 0
