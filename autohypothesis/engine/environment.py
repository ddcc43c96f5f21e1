"""The command that trains, its environment, its Python, and the caches of its compilers."""

from __future__ import annotations

import json
import os
import shutil
import site
import stat
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
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
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

OURS = "AUTOHYPOTHESIS_"


def program_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """That of a user's own program: its PATH, home and keys, no device, and nothing of ours.

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


def child_environment(
    parent: Mapping[str, str],
    *,
    experiment_id: str,
    run_folder: Path,
    seed: int,
    save_weights: bool,
    home: Path | None,
    threads: int | None,
    cuda_device: str | None,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The complete environment of one training.

    Args:
        home: its own home folder; None keeps the user's, for scripts whose inputs no task names.
        threads: per process, for a CPU lane; None leaves the libraries' default.
        cuda_device: UUID of the leased GPU; None hides every GPU, so that a CPU run cannot
            take one that somebody else has leased.
        extra: the task's own variables, and the folders of its inputs. They win.
    """
    environment = {name: value for name, value in parent.items() if name in INHERITED}
    kept_home = parent.get("HOME", os.path.expanduser("~"))
    environment |= {
        "HOME": str(home) if home is not None else kept_home,
        "SEED": str(seed),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUTOHYPOTHESIS_RUN_DIR": str(run_folder),
        "AUTOHYPOTHESIS_EXPERIMENT_ID": experiment_id,
        "CUDA_VISIBLE_DEVICES": cuda_device or "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if save_weights:
        environment["AUTOHYPOTHESIS_SAVE_WEIGHTS"] = "1"
    if threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    return environment | dict(extra)


_OURS = ("python", "python3")
_NOTHING = ("true",)
"""What runs where there is nothing to run: the shim holds the device for the scorer alone."""


@dataclass(frozen=True)
class TrainingCommand:
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it needs beside the training's own."""
    python: str | None = None
    """The interpreter whose distributions are watched; None when it cannot be known."""


def training_command(task: Task, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """The command of `task` in the repository at `root`.

    `run.command`, where `python` means the Python of this process; else nothing at all where a
    program scores the artifacts as they are; else `uv run` where there is a
    `uv.lock` and uv in the PATH of `environment`; else the Python in `.venv`; else this one.

    Raises:
        TaskError: there is no command, and no single script to run.
    """
    if task.run.command is not None:
        return _as_said(task.run.command, root, environment)
    if task.scorer.type == "command":
        return TrainingCommand(_NOTHING)
    return script_command(_script(task), root, environment)


def script_command(script: str, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """How the repository at `root` runs its own script: `uv run`, its .venv, or this Python."""
    venv = _venv_python(root)
    uv = shutil.which("uv", path=environment.get("PATH", ""))
    if uv is not None and (root / "uv.lock").is_file():
        return TrainingCommand((uv, "run", script), _uv_environment(root), venv)
    python = venv or sys.executable
    return TrainingCommand((python, script), {}, python)


def resolved(words: Sequence[str], root: Path) -> tuple[str, ...]:
    """`words` with `python` as the Python of this process, and `.venv/...` as the root's own:
    a worktree has none."""
    first = words[0]
    if first in _OURS:
        first = sys.executable
    elif first.removeprefix("./").startswith(".venv/"):
        first = str(root / first)
    return (first, *words[1:])


def _as_said(command: Sequence[str], root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    words = resolved(command, root)
    if Path(words[0]).name == "uv":
        return TrainingCommand(words, _uv_environment(root), _venv_python(root))
    is_python = Path(words[0]).name.startswith("python")
    python = shutil.which(words[0], path=environment.get("PATH", "")) if is_python else None
    return TrainingCommand(words, {}, python or _venv_python(root))


def _script(task: Task) -> str:
    """The one artifact that is a Python file, as seen from the folder that the run starts in."""
    scripts = [path for path in task.artifacts if path.endswith(".py") and "*" not in path]
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
    """The root's environment, as it is: a worktree must get none of its own, nor change this."""
    return {"UV_PROJECT_ENVIRONMENT": str(root / ".venv"), "UV_NO_SYNC": "1"}


_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")
_WHERE = (
    "import json, site, sys;"
    "print(json.dumps([p for p in sys.path if p] + [site.getusersitepackages()]))"
)
TIMEOUT_S = 30.0


@lru_cache(maxsize=32)
def site_folders(python: str = sys.executable) -> tuple[Path, ...]:
    """Where `python` looks for installed distributions, its own and the user's.

    Raises:
        LaunchError: it cannot be started.
    """
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        folders = [*sys.path, site.getusersitepackages()]
    else:
        folders = _ask(python)
    found = (Path(folder) for folder in folders if os.path.isabs(folder))
    return tuple(dict.fromkeys(path for path in found if _is_site(path)))


def _is_site(path: Path) -> bool:
    return path.name in ("site-packages", "dist-packages")


def _ask(python: str) -> list[str]:
    try:
        answer = subprocess.run(
            [python, "-c", _WHERE],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd="/",
            start_new_session=True,
        )
        return [str(folder) for folder in json.loads(answer.stdout)]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise LaunchError(
            f"{python} does not start: {error}", hint="set run.command in the task file"
        ) from error


def installed(folders: Iterable[str]) -> dict[str, int]:
    """Metadata name, with its folder -> when the list of its files was written, in nanoseconds."""
    found = {}
    for folder in folders:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # the user's own folder mostly does not exist
        for entry in entries:
            if entry.name.endswith(_METADATA):
                found[entry.path] = _written(entry)
    return found


def version_of(name: str, found: Iterable[str]) -> str:
    """The version of the distribution `name` among metadata folders; empty when it is not there."""
    for path in found:
        own, _, rest = os.path.basename(path).partition("-")
        if own.lower() == name and rest.endswith(_METADATA[:2]):
            return rest.removesuffix(".dist-info").removesuffix(".egg-info")
    return ""


def _written(entry: os.DirEntry[str]) -> int:
    for path in (os.path.join(entry.path, "RECORD"), entry.path):
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            continue
    return 0


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """What was installed, removed or installed again, in words."""
    words = []
    for path in sorted(before.keys() | after.keys()):
        name = os.path.basename(path)
        if path not in before:
            words.append(f"{name} was installed in {os.path.dirname(path)}")
        elif path not in after:
            words.append(f"{name} was removed from {os.path.dirname(path)}")
        elif before[path] != after[path]:
            words.append(f"{name} in {os.path.dirname(path)} was installed again")
    return words


CACHE_VARIABLES = {
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


def _cache_of(home: Path) -> Path:
    return home.joinpath(*_PARTS)


def compile_cache_variables(home: Path) -> dict[str, str]:
    """The variables that have compilers keep their caches in `home`."""
    return {name: str(_cache_of(home) / folder) for name, folder in CACHE_VARIABLES.items()}


def compile_cache_folder(common_dir: Path, platform_key: str) -> Path:
    """Where the cache of a platform's baseline is kept, below a repository's `.git`."""
    return common_dir / "autohypothesis" / "compiled" / platform_key[:16]


def start_compile_cache(home: Path, seed: Path) -> None:
    """Copy the baseline's cache into the home of a run, where there is one."""
    if seed.is_dir():
        with suppress(OSError, shutil.Error):  # a compiler then does the work again
            shutil.copytree(seed, _cache_of(home), dirs_exist_ok=True)


def keep_compile_cache(home: Path, seed: Path) -> None:
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
