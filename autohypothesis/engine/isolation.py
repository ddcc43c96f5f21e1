"""The rights of each program of a task: the training, the scorer, the mutator, the preflight.

A run writes to its checkout, to `out/` in its run folder, and to a home and a /tmp of its own. Its
record, other runs, the repository's `.git` and every key that we know of are out of its reach.
Under `strict` it reads nothing but programs, its checkout and its data, without the validation
text; under `writes` it reads the whole disk but for those. docs/trust.md lists both.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from autohypothesis import confine, sandbox
from autohypothesis.engine import program
from autohypothesis.engine.environment import site_folders
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import PRISTINE
from autohypothesis.errors import LaunchError
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.sandbox import Kind, SandboxSpec

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
_MOST_LINKS = 400
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
    """What the programs of one task may read, write and reach.

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
        """Return the rights of a training: no validation data, no repository."""
        return self._of_run(
            write=(checkout, run.out, run.home),
            temporary=temporary,
            held_out=sandbox.existing(self.held_out),
        )

    def scoring(self, checkout: Path, run: RunPaths, evaluator: Path | None) -> SandboxSpec:
        """Return the rights of what scores a run: it reads weights and data, changes neither."""
        write: tuple[Path, ...] = (run.scoring_home,)
        if self.task.scorer.type == "command":
            write = (checkout, run.out, run.scoring_home)
        read = (checkout, run.config, run.weights, run.out, *_folder_of(evaluator))
        return self._of_run(read=read, write=write, temporary=run.scoring_home)

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
            return tuple(sandbox.confined([program.resolve(words[0], cwd), *words[1:]], spec))
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
        root = self.repository.root
        ours = (self.layout.research, self.repository.common_dir, *root.glob(".env*"))
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
            if is_real or is_lock or child in unseen or made >= _MOST_LINKS:
                continue
            (here / child.name).symlink_to(child)
            made += 1


TRIAL_S = 180.0
_TRIAL = """
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


class SandboxTrial(NamedTuple):
    """The trial of one kind: `problem` is empty where it works; `fix` is a command or a setting."""

    kind: Kind
    worked: str
    problem: str = ""
    fix: str = ""


def trials(*, gpus: bool) -> list[SandboxTrial]:
    """Return a trial of each kind, best first, and remember which is the best that works.

    A kind that fails lowers what later runs take, and never a run.
    """
    bwrap, landlock = tried = [_tried(kind, gpus=gpus) for kind in ("bwrap", "landlock")]
    if not bwrap.problem:
        sandbox.note_limit(None)
    elif sandbox.works("bwrap", gpus=gpus):  # only the trial shows it: runs have to know
        sandbox.note_limit("none" if landlock.problem else "landlock", bwrap.problem)
    return tried


def _tried(kind: Kind, *, gpus: bool) -> SandboxTrial:
    if absent := _absent(kind):
        return SandboxTrial(kind, "", *absent)
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
        words = [sys.executable, "-c", _TRIAL, "gpu" if gpus else "cpu"]
        ended = program.run(
            words, cwd=home, environment=environment, timeout_s=TRIAL_S, confined=spec
        )
    if ended.exit_code == 0:
        return SandboxTrial(kind, ended.out.strip() or "Python")
    problem = "it did not end in time" if ended.exit_code is None else ended.last_words()
    fix = "`isolation: none` in task.yaml runs without; report it, please"
    return SandboxTrial(kind, "", problem, fix)


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
