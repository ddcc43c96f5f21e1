"""The command that trains, its environment, its Python, and the caches of its compilers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import site
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from autohypothesis.engine.task import Task
from autohypothesis.errors import LaunchError, TaskError
from autohypothesis.records.files import remove_folder

INHERITED = frozenset(
    {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM",
        "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CC", "CXX",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "UV_CACHE_DIR", "WSL_DISTRO_NAME", "VIRTUAL_ENV",
    }
)  # fmt: skip
"""Names, not patterns: what is not listed here (keys, tokens, agents' settings) stays outside."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip

OURS = "AUTOHYPOTHESIS_"


def program_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a user's own program: its PATH, home and keys, and no device.

    Our variables are for trainings, and for the processes of a fleet.
    """
    kept = {name: value for name, value in parent.items() if not name.startswith(OURS)}
    kept.pop("SEED", None)
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}


def scoring_environment(training: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the environment of what scores a run: its own home and no bytecode of the run's.

    A training may have left a `usercustomize` in its home, or compiled Python beside a source.
    """
    temporary = {"TMPDIR": str(home)} if training.get("TMPDIR", "/tmp") != "/tmp" else {}
    return {
        **training,
        **temporary,
        "HOME": str(home),
        "PYTHONNOUSERSITE": "1",
        "PYTHONPYCACHEPREFIX": str(home / "compiled"),
    }


NO_OP_COMMAND = ("true",)
"""The command where there is no training: the shim holds the device for the scorer alone."""


@dataclass(frozen=True)
class TrainingCommand:
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it needs beside the training's own."""
    python: str | None = None
    """The interpreter whose distributions are watched; None when it cannot be known."""


def training_command(task: Task, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """Return the command of `task` in the repository at `root`.

    `run.command`, where `python` means the Python of this process; else nothing at all where a
    program scores the artifacts as they are; else that of `script_command`.

    Raises:
        TaskError: there is no command, and no single script to run.
    """
    if task.run.command is None and task.scorer.type == "command":
        return TrainingCommand(NO_OP_COMMAND)
    if task.run.command is None:
        return script_command(_script(task), root, environment)
    words = resolved(task.run.command, root)
    name, venv = Path(words[0]).name, _venv_python(root)
    if name == "uv":
        return TrainingCommand(words, _uv_environment(root), venv)
    path = environment.get("PATH", "")
    python = shutil.which(words[0], path=path) if name.startswith("python") else None
    return TrainingCommand(words, {}, python or venv)


def script_command(script: str, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """Return how the repository at `root` runs its own script.

    `uv run` where there is a `uv.lock` and uv in the PATH of `environment`; else the Python in
    `.venv`; else this one.
    """
    venv = _venv_python(root)
    uv = shutil.which("uv", path=environment.get("PATH", ""))
    if uv is not None and (root / "uv.lock").is_file():
        return TrainingCommand((uv, "run", script), _uv_environment(root), venv)
    python = venv or sys.executable
    return TrainingCommand((python, script), {}, python)


def resolved(words: Sequence[str], root: Path) -> tuple[str, ...]:
    """Return `words` with `python` as the Python of this process, and `.venv/...` as the root's
    own: a worktree has none."""
    first = words[0]
    if first in ("python", "python3"):
        first = sys.executable
    elif first.removeprefix("./").startswith(".venv/"):
        first = str(root / first)
    return (first, *words[1:])


def _script(task: Task) -> str:
    """Return the one artifact that is a Python file, seen from the folder of the run."""
    scripts = [
        path for path in task.artifacts if path.endswith(".py") and not set("*!") & set(path)
    ]
    if len(scripts) != 1:
        raise TaskError(
            f"task {task.id} has no run.command, and {len(scripts)} of its artifacts are scripts",
            hint=f"set run.command in {task.source or 'task.yaml'}",
        )
    return os.path.relpath(scripts[0], task.run.cwd)


def _venv_python(root: Path) -> str | None:
    python = root / ".venv" / "bin" / "python"
    return str(python) if python.exists() else None


def _uv_environment(root: Path) -> dict[str, str]:
    """Return variables for the root's environment as it is: a worktree must get none of its own."""
    return {"UV_PROJECT_ENVIRONMENT": str(root / ".venv"), "UV_NO_SYNC": "1"}


_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")
_SITE_FOLDERS_SCRIPT = (
    "import json, site, sys;"
    "print(json.dumps([p for p in sys.path if p] + [site.getusersitepackages()]))"
)
_ABSENT_SCRIPT = (
    "import importlib.util, json, sys;"
    "print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n) is None]))"
)
TIMEOUT_S = 30.0


@lru_cache(maxsize=32)
def site_folders(python: str = sys.executable) -> tuple[Path, ...]:
    """Return where `python` looks for installed distributions, its own and the user's.

    Raises:
        LaunchError: it cannot be started.
    """
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        folders = [*sys.path, site.getusersitepackages()]
    else:
        folders = _query_python(python, _SITE_FOLDERS_SCRIPT)
    paths = dict.fromkeys(Path(folder) for folder in folders if os.path.isabs(folder))
    return tuple(path for path in paths if path.name in ("site-packages", "dist-packages"))


def absent_modules(python: str, names: Sequence[str]) -> list[str]:
    """Return which modules `python` cannot find. None of them is imported.

    Raises:
        LaunchError: it cannot be started.
    """
    return _query_python(python, _ABSENT_SCRIPT, names)


def _query_python(python: str, script: str, words: Sequence[str] = ()) -> list[str]:
    """Return the list that a script of ours prints under `python` as JSON."""
    try:
        answer = subprocess.run(
            [python, "-c", script, *words],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd="/",
            start_new_session=True,
        )
        return [str(item) for item in json.loads(answer.stdout)]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise LaunchError(
            f"{python} does not start: {error}", hint="set run.command in the task file"
        ) from error


def installed(folders: Iterable[str]) -> dict[str, int]:
    """Return metadata folder -> when the list of its files was written, in nanoseconds."""
    metadata: dict[str, int] = {}
    for folder in folders:
        with suppress(OSError):  # the user's own folder mostly does not exist
            entries = (entry for entry in os.scandir(folder) if entry.name.endswith(_METADATA))
            metadata |= {entry.path: _written(entry) for entry in entries}
    return metadata


def packages(folders: Iterable[str]) -> dict[str, str]:
    """Return each entry of site-packages folders -> a digest of inode, change time and size of all
    its files: a third of a second for fifty thousand files.

    Without compiled Python, which an import may write.
    """
    found: dict[str, str] = {}
    for folder in folders:
        with suppress(OSError):
            for entry in os.scandir(folder):
                if entry.name != "__pycache__":
                    stamps = sorted(_stamps(entry))
                    found[entry.path] = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    return found


def _stamps(top: os.DirEntry[str]) -> Iterator[tuple[str, int, int, int]]:
    """Yield path, inode, change time and size of every file of an entry; links are not followed."""
    waiting = [top]
    while waiting:
        entry = waiting.pop()
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                waiting += (each for each in os.scandir(entry) if each.name != "__pycache__")
            else:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status.st_ino, status.st_ctime_ns, status.st_size


def version_of(name: str, metadata: Iterable[str]) -> str:
    """Return the version of the distribution `name` among metadata folders, or ""."""
    for path in metadata:
        own, _, rest = os.path.basename(path).partition("-")
        if own.lower() == name and rest.endswith(_METADATA[:2]):
            return rest.removesuffix(".dist-info").removesuffix(".egg-info")
    return ""


def _written(entry: os.DirEntry[str]) -> int:
    for path in (os.path.join(entry.path, "RECORD"), entry.path):
        with suppress(OSError):
            return os.stat(path).st_mtime_ns
    return 0


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return what was installed, removed or changed, in words."""
    words = []
    for path in sorted(before.keys() | after.keys()):
        name = os.path.basename(path)
        if path not in before:
            words.append(f"{name} was installed in {os.path.dirname(path)}")
        elif path not in after:
            words.append(f"{name} was removed from {os.path.dirname(path)}")
        elif before[path] != after[path]:
            words.append(f"{name} in {os.path.dirname(path)} was changed or installed again")
    return words


# A cache is code. So each run has its own, in its home, which goes with it; it begins as a copy of
# the one that the baseline left, since that ran the user's own script and nothing that was
# proposed. Only plain files are copied, and no link is followed: a run may leave anything there.

CACHE_VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TORCH_EXTENSIONS_DIR": "extensions",
}
"""Variable -> its folder below the cache of a run."""
_CACHE = Path(".cache", "compiled")
MAX_BYTES = 1 << 30
MAX_FILES = 20_000


def compile_cache_variables(home: Path) -> dict[str, str]:
    """Return the variables that have compilers keep their caches in `home`."""
    return {name: str(home / _CACHE / folder) for name, folder in CACHE_VARIABLES.items()}


def compile_cache_folder(common_dir: Path, platform_key: str) -> Path:
    """Return where the cache of a platform's baseline is kept, below a repository's `.git`."""
    return common_dir / "autohypothesis" / "compiled" / platform_key[:16]


def start_compile_cache(home: Path, seed: Path) -> None:
    """Copy the baseline's cache into the home of a run, where there is one."""
    if seed.is_dir():
        with suppress(OSError, shutil.Error):  # a compiler then does the work again
            shutil.copytree(seed, home / _CACHE, dirs_exist_ok=True)


def keep_compile_cache(home: Path, seed: Path) -> None:
    """Keep the cache that a baseline left, unless there is one already or it is too large."""
    if seed.exists() or any((home / part).is_symlink() for part in (_CACHE.parent, _CACHE)):
        return
    files = list(_plain_files(home / _CACHE))
    if not files or len(files) > MAX_FILES or sum(size for _, size in files) > MAX_BYTES:
        return
    beside = seed.with_name(f"{seed.name}.{os.getpid()}")
    with suppress(OSError):
        for path, _ in files:
            copy = beside / path.relative_to(home / _CACHE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy, follow_symlinks=False)
            copy.chmod(0o755 if path.lstat().st_mode & 0o100 else 0o644)
        os.rename(beside, seed)
    if beside.exists():
        remove_folder(beside)


def _plain_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each plain file below a folder that no process writes to any more, and its size."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in sorted(names)):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size
