"""Fixtures of several rooms' tests: a repository that shares no file with ours, its project."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from autohypothesis import installation, sandbox, system
from autohypothesis.engine import devices

ROOT = Path(__file__).resolve().parents[1]

# Images of containers often set this; then each of the many processes that the tests start would
# compile our modules anew, a sixth of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Who starts the suite with `&` or `nohup` has it ignore these, and so would all that it starts. A
# handler that does nothing is as deaf, and no child inherits it.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

SCRIPT = '''"""Somebody's script: no file of ours beside it, two printed lines."""
import multiprocessing
import os
import sys
import time

RATE = 0.1
SLEEP = 0.0
MODE = "train"

if MODE == "crash":
    raise ValueError("RATE is no good")
time.sleep(SLEEP)
if MODE == "twice":
    print("val_bpb: 0.5\\nother: 1\\n---")
print(f"step 00001 (50.0%) | loss: {2 - RATE:.6f} | lrm: 1.00 | dt: 3ms | tok/sec: 1,000 | "
      f"mfu: 0.0% | epoch: 1 | remaining: 1s", end="\\r")
print()
if MODE == "vandal":
    open("data.txt", "a").write("more")
if MODE == "nan":
    print("val_bpb: nan")
elif MODE != "silent":
    print(f"val_bpb: {1 + (RATE - 0.3) ** 2:.6f}")
    print("peak_vram_mb: 12.5")
'''


def small_disk(command: list[str], folder: str, size: int) -> list[str]:
    """`command` where a memory file system of `size` bytes lies over `folder`; needs bubblewrap."""
    disk = ["--size", str(size), "--tmpfs", folder]
    return ["bwrap", "--die-with-parent", "--dev-bind", "/", "/", *disk, "--", *command]


@pytest.fixture(params=["bwrap", "landlock", "none"])
def held_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with bubblewrap, one with Landlock alone, and one with neither; in this process."""
    kind = request.param
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: kind)
    return str(kind)


def wait_until(reached: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is so; a test that waits in vain says for what."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not so after {seconds:g} s: {reached}"
        time.sleep(0.02)


def run_git(folder: Path, *words: str) -> str:
    """git as a user runs it."""
    answer = subprocess.run(
        ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words],
        cwd=folder, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return answer.stdout.rstrip("\n")


def copy_of_the_project(root: Path, *, without: tuple[str, ...] = ()) -> list[str]:
    """Copy what git tracks or would track here to `root`; return the names, `without` these."""
    listing = run_git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    wanted = [name for name in names if not name.startswith(without)] if without else names
    for name in wanted:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    return wanted


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases of this test alone, and no git configuration of this machine."""
    folder = tmp_path / "locks"
    monkeypatch.setenv("AUTOHYPOTHESIS_LOCKS", str(folder))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


def forked(work: Callable[..., object], *args: object, **more: object) -> BaseProcess:
    """A process that does `work`, without the start of an interpreter."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args, kwargs=more)
    process.start()
    return process


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests sign with a key of their own, and leave this user's settings alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOHYPOTHESIS_CONFIG", str(tmp_path_factory.mktemp("settings")))
        yield


NewRepository = Callable[[Path, dict[str, str]], Path]


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> NewRepository:
    """Make a repository with one commit of `files` (path -> text): once, then by copying that."""
    templates: dict[str, Path] = {}

    def make(root: Path, files: dict[str, str]) -> Path:
        template = templates.get(repr(files))
        if template is None:
            template = tmp_path_factory.mktemp("repository")
            run_git(template, "init", "-q", "-b", "main")
            for path, text in files.items():
                (template / path).parent.mkdir(parents=True, exist_ok=True)
                (template / path).write_text(text, encoding="utf-8")
            run_git(template, "add", "-A")
            run_git(template, "-c", "commit.gpgSign=false", "commit", "-q", "-m", "start")
            templates[repr(files)] = template
        shutil.copytree(template, root)
        return root

    return make


@pytest.fixture
def foreign(tmp_path: Path, own_locks: Path, new_repository: NewRepository) -> Path:
    """A repository that is not ours, in a folder with a blank and an umlaut."""
    files = {"train.py": SCRIPT, "data.txt": "data\n"}
    return new_repository(tmp_path / "jemandes skript ü", files)


Answer = subprocess.CompletedProcess[str]
Cli = Callable[..., Answer]
Git = Callable[..., str]


def called(*words: str, cwd: Path, **env: str) -> Answer:
    """`orchestrator.py WORDS` in this process, where an interpreter's start costs nothing.

    Not for what is killed, interrupted, or has to have a pid of its own: see `started`.
    """
    import orchestrator

    with pytest.MonkeyPatch.context() as patch, taken() as said, open(os.devnull) as nothing:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["orchestrator.py", *words])
        patch.setattr(sys, "stdin", nothing)
        for name, value in env.items():
            patch.setenv(name, value)
        try:
            orchestrator.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            installation.given.clear()  # of this command line, as a process of its own forgets it
    assert code is None or isinstance(code, int), code
    return Answer(words, code or 0, said[0], said[1])


@contextmanager
def taken() -> Iterator[list[str]]:
    """Collect what this process and its children write to stdout and stderr: two texts, after."""
    said: list[str] = []
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(2)]
        for number, redirect in ((1, redirect_stdout), (2, redirect_stderr)):
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(files[number - 1].fileno(), number)
            raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115
            stack.enter_context(redirect(TextIOWrapper(raw, encoding="utf-8", write_through=True)))
        try:
            yield said
        finally:
            for file in files:
                file.seek(0)
                said.append(file.read().decode("utf-8", errors="replace"))


def rows(cli: Cli) -> list[dict[str, Any]]:
    """What `runs --json` lists."""
    answer = cli("runs", "--json")
    assert answer.returncode == 0, answer.stderr
    listed: list[dict[str, Any]] = json.loads(answer.stdout)
    return listed


def started(*words: str, cwd: Path, **env: str) -> Answer:
    """`orchestrator.py WORDS` as a process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "orchestrator.py"), *words],
        cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def cli(foreign: Path) -> Cli:
    """`orchestrator.py WORDS`, as a user of `foreign` calls it."""

    def call(*words: str, cwd: Path = foreign, **env: str) -> Answer:
        return called(*words, cwd=cwd, **env)

    return call


@pytest.fixture
def program(foreign: Path) -> Cli:
    """As `cli`, in a process of its own."""

    def call(*words: str, cwd: Path = foreign, **env: str) -> Answer:
        return started(*words, cwd=cwd, **env)

    return call


@pytest.fixture
def git() -> Callable[..., str]:
    return run_git


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Eight GPUs in a stand-in for NVML, and two cores; called with other facts, they hold."""
    path = tmp_path / "gpus.json"
    monkeypatch.setenv("STAND_IN_GPUS", str(path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    spec = importlib.util.spec_from_file_location("pynvml", ROOT / "tests/stand_in_nvml/pynvml.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(system, "physical_cores", lambda: [0, 2])
    monkeypatch.setattr(devices, "NVIDIA_NODES", f"{tmp_path}/nvidia[0-9]*")

    def change(**state: object) -> None:
        path.write_text(json.dumps(state))

    return change
