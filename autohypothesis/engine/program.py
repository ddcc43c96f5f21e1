"""The programs of a task and of the user: how one is run, and what it may read, write and reach.

A program leads a session of its own and carries a mark in its environment, so that all it starts is
ended with it. It is killed when its caller ends; all of it is killed before an answer returns.

A run writes to its checkout, to `out/` in its run folder, and to a home and a /tmp of its own. Its
record, other runs, the repository's `.git` and every key that we know of are out of its reach.
Under `strict` it reads nothing but programs, its checkout and its data, without the validation
text; under `writes` it reads the whole disk but for those. docs/trust.md lists both.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

from autohypothesis import confine, sandbox
from autohypothesis.engine import processes
from autohypothesis.engine.environment import resolved, site_folders
from autohypothesis.engine.processes import ProcessLimit
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import PRISTINE
from autohypothesis.errors import LaunchError
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.sandbox import UNCONFINED, Kind, SandboxSpec

OUT_LIMIT = 4 * 1024 * 1024
"""Bytes of an answer; `--json` of a helper script over 10,000 experiments has a tenth."""
ERR_LIMIT = 64 * 1024
"""Bytes at the end of standard error that are kept."""
CALL_VARIABLE = "AUTOHYPOTHESIS_ASKED"
"""Variable in the environment of a program and of all that it starts, unique to the call."""
MAX_PROCESSES = 512
"""Processes that a program may have at once; `run.max_processes` is for trainings alone."""
_LOOK_S = 0.1
_DRAIN_S = 2.0


class ProgramEnd(NamedTuple):
    """Exit and output of a program."""

    exit_code: int | None
    """None: it was ended, for its time, its output or its processes, or was cancelled."""
    out: str
    err: str
    seconds: float
    overflow: bool = False
    """It said more than it may; `out` is what came first."""
    too_many: str = ""
    """Message with its number of processes, where there were too many; else empty."""

    def limit(self, timeout_s: float) -> str:
        """Return the limit that was exceeded, as a predicate: "took over 10 s"."""
        if self.too_many:
            return f"had {self.too_many}"
        return f"took over {timeout_s:g} s"

    def last_words(self) -> str:
        """Return the last line that it printed, for an error message."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else "it printed nothing"


def run(
    words: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    stdin: bytes = b"",
    capture: bool = True,
    out_limit: int = OUT_LIMIT,
    tail: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    confined: SandboxSpec = UNCONFINED,
) -> ProgramEnd:
    """Run a program to its end, or to `timeout_s`, or until `cancelled`.

    Args:
        words: a program from the PATH or a file seen from `cwd`, and its arguments. No shell.
        capture: without it the program prints where this process prints.
        tail: keep the end of what it says, however much that is, and let it go on.

    Raises:
        OSError: there is no such program, or it may not be run.
    """
    mark, began, too_many = uuid.uuid4().hex, time.monotonic(), ""
    limit = ProcessLimit()
    with (
        _own_temporary(confined, {**environment, CALL_VARIABLE: mark}) as (spec, inside),
        _process(words, cwd, inside, spec, has_input=bool(stdin), capture=capture) as process,
    ):
        out = _Output(process.stdout, out_limit, tail=tail)
        err = _Output(process.stderr, ERR_LIMIT, tail=True)
        if process.stdin is not None:
            threading.Thread(target=_write_stdin, args=(process.stdin, stdin), daemon=True).start()
        limit.hold(MAX_PROCESSES, lambda: len(processes.find_marked(f"{CALL_VARIABLE}={mark}")))
        code: int | None = None
        while code is None and (left := began + timeout_s - time.monotonic()) > 0:
            too_many = limit.excess()
            if too_many or out.overflow or cancelled():
                break
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(min(left, _LOOK_S))
    code = None if out.overflow else code
    seconds = time.monotonic() - began
    return ProgramEnd(code, out.text(), err.text(), seconds, out.overflow, too_many)


@contextmanager
def _own_temporary(
    spec: SandboxSpec, environment: Mapping[str, str]
) -> Iterator[tuple[SandboxSpec, Mapping[str, str]]]:
    """Make a folder for temporary files of a program in a sandbox; bubblewrap makes it its /tmp."""
    if spec.kind == "none" or spec.temporary is not None or Path("/tmp") in spec.read:
        yield spec, environment
        return
    with tempfile.TemporaryDirectory(prefix="ah-", ignore_cleanup_errors=True) as name:
        inside = "/tmp" if spec.kind == "bwrap" else name
        yield replace(spec, temporary=Path(name)), {**environment, "TMPDIR": inside}


@contextmanager
def _process(
    words: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    spec: SandboxSpec,
    *,
    has_input: bool,
    capture: bool,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program with `CALL_VARIABLE` in its environment; at its end all is killed."""
    pipe = subprocess.PIPE if capture else None
    program = [resolve(words[0], cwd), *words[1:]]
    alive, ours = os.pipe()
    try:
        process = subprocess.Popen(
            sandbox.confined(program, spec, parent=os.getpid(), alive=alive),
            cwd=cwd, env=environment, start_new_session=True, pass_fds=(alive,),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(alive)
    try:
        yield process
    finally:
        os.close(ours)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        processes.end_marked(f"{CALL_VARIABLE}={environment[CALL_VARIABLE]}")


def resolve(word: str, cwd: Path) -> str:
    """Return the file of a program: a missing one is known before anything starts.

    Raises:
        FileNotFoundError: there is no such program, neither in the PATH nor as seen from `cwd`.
    """
    if file := shutil.which(word if os.sep not in word else cwd / os.path.expanduser(word)):
        return str(file)
    raise FileNotFoundError(f"there is no program {word!r}")


def _write_stdin(stream: IO[bytes], content: bytes) -> None:
    with suppress(OSError, ValueError), stream:  # a program need not read what it is told
        stream.write(content)


class _Output:
    """The beginning or the end of a stream, read as fast as it is written."""

    def __init__(self, stream: IO[bytes] | None, limit: int, *, tail: bool = False) -> None:
        self.overflow = False
        self._limit, self._tail, self._kept = limit, tail, bytearray()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes] | None) -> None:
        if stream is None:
            return
        with suppress(OSError, ValueError), stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept += chunk
                self.overflow |= not self._tail and len(self._kept) > self._limit
                del self._kept[slice(-self._limit) if self._tail else slice(self._limit, None)]

    def text(self) -> str:
        """Return what was kept. An escaped process may hold the stream open."""
        self._reader.join(_DRAIN_S)
        return bytes(self._kept).decode("utf-8", "replace")


SUFFIXES = (".py", ".sh", ".js", ".rb", ".pl")
"""A word that ends like this is a script, which has to be there as well."""


class Named(NamedTuple):
    """One program of a task; `problem` says what is missing."""

    role: str
    command: str
    problem: str = ""
    to_add: tuple[str, ...] = ()
    """Scripts that are there, and have to be committed."""


def programs_of(task: Task, root: Path, tracked: Collection[str]) -> list[Named]:
    """Return every program that the task names, in the order in which they run.

    They run in a checkout of a commit, so a script has to be one of the `tracked` files.
    """
    named = (
        ("mutator", task.mutator.command, root / task.mutator.cwd),
        ("preflight", task.run.preflight, root / task.run.cwd),
        ("run", task.run.command, root / task.run.cwd),
        ("scorer", task.scorer.command, root / task.scoring_cwd),
    )
    return [
        Named(
            role,
            shlex.join(words),
            "; ".join(_missing(words, root, cwd, tracked)),
            tuple(_uncommitted(words, root, cwd, tracked)),
        )
        for role, words, cwd in named
        if words is not None
    ]


def _missing(
    words: Sequence[str], root: Path, cwd: Path, tracked: Collection[str]
) -> Iterator[str]:
    try:
        resolve(resolved(words, root)[0], cwd)
    except FileNotFoundError as error:
        yield str(error)
    for word in _scripts(words):
        if not (cwd / word).is_file():
            yield f"there is no script {word!r} in {cwd}"
    for path in _uncommitted(words, root, cwd, tracked):
        yield f"{path} is not committed, and is missing where it is run: git add {path}"


def _uncommitted(
    words: Sequence[str], root: Path, cwd: Path, tracked: Collection[str]
) -> Iterator[str]:
    """Yield the scripts of a command that are there and in no commit, from the top."""
    for word in _scripts(words):
        path = os.path.relpath(cwd / word, root)
        if (cwd / word).is_file() and path not in tracked:
            yield path


def _scripts(words: Sequence[str]) -> list[str]:
    return [word for word in words[1:] if word.endswith(SUFFIXES) and not Path(word).is_absolute()]


_LIBRARIES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "SSL_CERT_DIR")
"""Variables of the environment that name folders a program needs."""
_REAL_FOLDERS = (
    ".cache", ".cache/huggingface", ".cache/huggingface/hub", ".cache/huggingface/datasets",
    ".cache/torch", ".cache/torch/hub", ".cache/matplotlib", ".config", ".config/matplotlib",
    ".keras", ".keras/datasets", ".local", ".local/share",
)  # fmt: skip
"""Folders of a home that are made anew in the run's own, each after the one around it: programs
and libraries add to them."""
_NOT_LINKED = (".triton", ".nv", ".cache/torch_extensions", ".cache/uv", ".cache/compiled")
"""Caches that a run has to write to, and that hold code: see `compile_cache_variables`."""
_MAX_LINKS = 400
_OUTSIDE = (
    "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "GPG_AGENT_INFO",
    "UV_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
)  # fmt: skip
"""Variables that name folders and sockets which are not there in a sandbox."""


def sandbox_kind(task: Task, *, gpus: bool = False) -> Kind:
    """Return the sandbox that the programs of `task` run in on this machine."""
    return "none" if task.isolation_level == "none" else sandbox.best_kind(gpus=gpus)


@dataclass(frozen=True)
class TaskSandbox:
    """The rights of the programs of one task: what they may read, write and reach.

    Attributes:
        kind: of sandbox; "none" grants everything, since nothing is there to deny it.
        data: where the inputs of the task lie.
        held_out: what of it no training may read.
        python: the interpreter that trains; None: this one's libraries are shown.
        linked: files and folders of the user that the checkout has links to.
    """

    repository: Repository
    task: Task
    kind: Kind
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    python: str | None = None
    linked: tuple[Path, ...] = ()
    gpus: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.repository.root)

    def training(self, checkout: Path, run: RunPaths, temporary: Path) -> SandboxSpec:
        """Return the rights of a training: no repository, and no validation data unless it scores
        itself, in its log."""
        scores_itself = self.task.scorer.type == "log"
        return self._of_run(
            write=(checkout, run.out, run.home),
            temporary=temporary,
            held_out=() if scores_itself else sandbox.existing(self.held_out),
        )

    def scoring(self, checkout: Path, run: RunPaths, evaluator: Path | None) -> SandboxSpec:
        """Return the rights of what scores a run: it reads weights and data, changes neither."""
        write: tuple[Path, ...] = (run.scoring_home,)
        if self.task.scorer.type == "command":
            write = (checkout, run.out, run.scoring_home)
        read = (checkout, run.config, run.weights, run.out, *_folder_of(evaluator))
        return self._of_run(read=read, write=write, temporary=run.scoring_home)

    def host(self, candidate: Path, run: RunPaths, evaluator: Path) -> SandboxSpec:
        """Return the rights of the process that has a candidate's model, and is asked by a scorer
        outside: neither the text that judges it nor its own record, and no network."""
        spec = self._of_run(
            read=(candidate, *_folder_of(evaluator)),
            write=(run.scoring_home,),
            temporary=run.scoring_home,
            held_out=sandbox.existing(self.held_out),
        )
        return replace(spec, network=False, leaves_notes=False)

    def preflight(self, checkout: Path, evaluator: Path | None) -> SandboxSpec:
        """Return the rights of the test of a candidate before it runs."""
        read, held_out = (checkout, *_folder_of(evaluator)), sandbox.existing(self.held_out)
        return replace(self._of_run(read=read, held_out=held_out), gpus=False)

    def mutator(self, checkout: Path) -> SandboxSpec:
        """Return the rights of the program that makes a change: it writes to its checkout alone.

        Under `writes` it sees the repository's history, without the settings of git.
        """
        spec = replace(self._of_run(write=(checkout,)), gpus=False, fixed=(checkout / ".git",))
        if self.task.isolation_level == "strict":
            return spec
        common = self.repository.common_dir
        shown = tuple(path for path in spec.hidden if path != common)
        hidden = (*shown, *sandbox.existing((common / "config", common / "autohypothesis")))
        return replace(spec, read=(*spec.read, common), hidden=hidden)

    def locate(self) -> SandboxSpec:
        """Return the rights of the program that says where data is: it writes nothing, and reads
        all but keys and records, /tmp too, since data may lie there."""
        read = (Path("/"), Path("/tmp"), Path(tempfile.gettempdir()))
        return SandboxSpec(self.kind, read, hidden=self._hidden(), network=True)

    def environment(self, environment: Mapping[str, str], temporary: Path | None) -> dict[str, str]:
        """Return `environment` as it is in the sandbox: with `temporary` for its temporary files,
        and without the services of the session. `program.run` sees to it where that is None."""
        if self.kind == "none":
            return dict(environment)
        inside = {name: value for name, value in environment.items() if name not in _OUTSIDE}
        if temporary is not None:
            inside["TMPDIR"] = "/tmp" if self.kind == "bwrap" else str(temporary)
        return inside

    def command(self, words: Sequence[str], spec: SandboxSpec, cwd: Path) -> tuple[str, ...]:
        """Return `words` as a command that runs in a sandbox.

        Raises:
            LaunchError: there is no such program.
        """
        if spec.kind == "none":
            return tuple(words)
        try:
            return tuple(sandbox.confined([resolve(words[0], cwd), *words[1:]], spec))
        except FileNotFoundError as error:
            raise LaunchError(str(error), hint="check run.command and scorer.command") from error

    def _of_run(
        self,
        *,
        read: tuple[Path, ...] = (),
        write: tuple[Path, ...] = (),
        held_out: tuple[Path, ...] = (),
        temporary: Path | None = None,
    ) -> SandboxSpec:
        # Home and repository by name, in case that one of them lies in /tmp, which is not shown.
        disk = (Path("/"), Path(os.path.expanduser("~")), self.repository.root)
        base = disk if self.task.isolation_level == "writes" else self._programs()
        hidden = self._hidden()
        return SandboxSpec(
            self.kind,
            read=(*base, *sandbox.existing((*self._shown_data(hidden), *read))),
            write=write,
            hidden=hidden,
            held_out=held_out,
            temporary=temporary,
            network=self.task.has_network,
            gpus=self.gpus,
        )

    def _hidden(self) -> tuple[Path, ...]:
        root, research = self.repository.root, self.layout.research
        # A link in it leads to another disk, which is shown.
        linked = (path for path in research.glob("*") if path.is_symlink())
        ours = (research, *linked, self.repository.common_dir, *root.glob(".env*"))
        return (*sandbox.existing(ours), *sandbox.secret_places())

    def _shown_data(self, hidden: tuple[Path, ...]) -> tuple[Path, ...]:
        """Return where the data is, as a program says that a candidate may have changed.

        Raises:
            LaunchError: it would show what no run may see.
        """
        secret = sandbox.all_names(hidden)
        kept = [Path(os.path.realpath(folder)) for folder in (self.repository.root, Path.home())]
        for path in {Path(os.path.realpath(folder)) for folder in self.data}:
            is_inside = secret & {str(path), *map(str, path.parents)}
            if is_inside or any(path in (folder, *folder.parents) for folder in kept):
                raise LaunchError(
                    f"the data is said to lie in {path}, which no run may see",
                    hint="see inputs.locate of the task: it has to name a folder of data alone",
                )
        return (*self.data, *self.linked)

    def _programs(self) -> tuple[Path, ...]:
        words = ":".join(os.environ.get(name, "") for name in _LIBRARIES).split(":")
        named = [Path(word) for word in words if os.path.isabs(word)]
        python = self.python or sys.executable
        pythons = {
            self.repository.root / ".venv",
            *sandbox.python_folders(Path(python)),
            *self._editable(python),
        }
        return (*sandbox.system_folders(), *sandbox.existing([*named, *sorted(pythons)]))

    def _editable(self, python: str) -> list[Path]:
        """Return folders that a `.pth` file adds to the import path: packages under development.

        Never one around this repository, which would show what is hidden of it.
        """
        lines = [
            line
            for folder in site_folders(python)
            for file in folder.glob("*.pth")
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        ]
        root = self.repository.root
        folders = (Path(line) for line in lines if os.path.isabs(line))
        return [path for path in folders if path.is_dir() and path not in (root, *root.parents)]


def _folder_of(evaluator: Path | None) -> tuple[Path, ...]:
    """Return the folder with the pristine evaluator and all that it imports."""
    if evaluator is None:
        return ()
    return (next(folder for folder in evaluator.parents if folder.parent.name == PRISTINE),)


def link_home(run: RunPaths) -> None:
    """Fill the home of a run with links to what is in the user's.

    For a script of which nothing but its file is known: what it keeps in caches is found where it
    looks for it, and cannot be changed. Keys and the caches of compilers are left out.
    """
    user = Path(os.path.expanduser("~"))
    unseen = {*sandbox.secret_places(), *(user / name for name in _NOT_LINKED)}
    made = 0
    for name in ("", *_REAL_FOLDERS):
        there, here = user / name, run.home / name
        here.mkdir(exist_ok=True)
        for child in sorted(there.iterdir()) if there.is_dir() else ():
            is_real = str(Path(name, child.name)) in _REAL_FOLDERS
            is_lock = child.name.endswith((".lock", ".locks"))
            if is_real or is_lock or child in unseen or made >= _MAX_LINKS:
                continue
            (here / child.name).symlink_to(child)
            made += 1


TRIAL_S = 180.0
_PROBE_SCRIPT = """
import importlib.util, os, sys, tempfile
open(os.path.join(os.environ["HOME"], "probe"), "w").write("x")
tempfile.TemporaryFile().write(b"x")
__import__("multiprocessing").Lock()  # shared memory, as workers of a data loader need it
if importlib.util.find_spec("torch") is None:
    sys.exit(0)
import torch
assert float((torch.ones(64, 64) @ torch.ones(64, 64))[0, 0]) == 64.0
if sys.argv[1] == "gpu" and torch.version.cuda:
    assert torch.cuda.is_available(), "CUDA does not start: " + str(torch.cuda.device_count())
    x = torch.ones(1024, device="cuda")
    assert float(torch.compile(lambda t: (t * 2 + 1).sum())(x)) == 3072.0
    print("CUDA and a compiled kernel")
else:
    print("torch")
"""


class SandboxProbe(NamedTuple):
    """The trial of one kind: `problem` is empty where it works; `fix` is a command or a setting."""

    kind: Kind
    worked: str
    problem: str = ""
    fix: str = ""


def trials(*, gpus: bool) -> list[SandboxProbe]:
    """Return a trial of each kind, best first, and remember which is the best that works.

    A kind that fails lowers what later runs take, and never a run.
    """
    bwrap, landlock = tried = [_tried(kind, gpus=gpus) for kind in ("bwrap", "landlock")]
    if not bwrap.problem:
        sandbox.note_limit(None)
    elif sandbox.works("bwrap", gpus=gpus):  # only the trial shows it: runs have to know
        sandbox.note_limit("none" if landlock.problem else "landlock", bwrap.problem)
    return tried


def _tried(kind: Kind, *, gpus: bool) -> SandboxProbe:
    if absent := _absent(kind):
        return SandboxProbe(kind, "", *absent)
    with tempfile.TemporaryDirectory(prefix="ah-") as name:
        home, temporary = Path(name, "home"), Path(name, "tmp")
        home.mkdir()
        temporary.mkdir()
        spec = SandboxSpec(
            kind, sandbox.system_folders(), write=(home,), temporary=temporary, gpus=gpus
        )
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "TMPDIR": "/tmp" if kind == "bwrap" else str(temporary),
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if gpus else "",
        }
        words = [sys.executable, "-c", _PROBE_SCRIPT, "gpu" if gpus else "cpu"]
        ended = run(words, cwd=home, environment=environment, timeout_s=TRIAL_S, confined=spec)
    if ended.exit_code == 0:
        return SandboxProbe(kind, ended.out.strip() or "Python")
    problem = "it did not end in time" if ended.exit_code is None else ended.last_words()
    fix = "`isolation: none` in task.yaml runs without; report it, please"
    return SandboxProbe(kind, "", problem, fix)


def _absent(kind: Kind) -> tuple[str, str] | None:
    """Return why there is no such sandbox here, and the one thing that would change it."""
    if kind == "landlock":
        if confine.landlock_abi():
            return None
        return "the kernel has no Landlock", "Linux 5.13 or newer, with landlock in its lsm= list"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed", "apt-get install bubblewrap (or dnf, pacman)"
    if sandbox.works("bwrap"):
        return None
    for name, bad, value in _SWITCHES:
        with suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == bad:
                fix = f"sysctl -w {name.replace('/', '.')}={value}"
                return "this user may not make namespaces", fix
    return "bubblewrap may not make namespaces", "allow them in the settings of the container"


_SWITCHES: Sequence[tuple[str, str, str]] = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)
"""Settings that forbid bubblewrap to a user, what they then hold, and what allows it."""
