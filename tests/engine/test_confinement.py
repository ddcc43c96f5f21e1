"""What a run can reach from inside: with bubblewrap, with Landlock alone, and with neither.

Each attack is a training script that tries something, prints what came of it, and a number.
"""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from autohypothesis import sandbox
from autohypothesis.engine import decide, runner
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.errors import LaunchError
from autohypothesis.records.layout import RunPaths
from autohypothesis.records.signing import keys_folder
from autohypothesis.schema import Metadata, Result
from autohypothesis.system import user_config_folder
from tests.conftest import ROOT, run_git

TRIES = """
import json, os, pathlib, signal, socket, sys, time
out = pathlib.Path(os.environ["AUTOHYPOTHESIS_RUN_DIR"])
came = {}
def attempt(name, do):
    try:
        came[name] = repr(do())
    except BaseException as error:
        came[name] = type(error).__name__
"""
ENDS = '\nprint("came:", came)\nprint("val_bpb: 1.0\\npeak_vram_mb: 0")\n'


def hold_by(kind: sandbox.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: kind)


@pytest.fixture(params=["bwrap", "landlock"])
def sandboxed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with bubblewrap, and one with Landlock alone. Without either the attack works,
    and docs/trust.md says so."""
    hold_by(request.param, monkeypatch)
    return str(request.param)


class Ran(NamedTuple):
    """A run of an attack, and what it says came of it."""

    result: Result
    run: RunPaths
    came: dict[str, str]

    @property
    def metadata(self) -> Metadata:
        return Metadata.model_validate_json(self.run.metadata.read_bytes())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home."""
    folder = tmp_path / "users home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("AUTOHYPOTHESIS_CONFIG")
    return folder


def attack(root: Path, code: str, *, task: str = "", tag: str = "t") -> Ran:
    """Run `code` as the training of the repository at `root`."""
    (root / "train.py").write_text(TRIES + code + ENDS)
    if task:
        (root / "task.yaml").write_text(task)
    run_git(root, "add", "-A")
    run_git(root, "commit", "-qm", "an attack", "--allow-empty")
    project = Project.open(root).with_tag(tag)
    finished = runner.run(project, Experiment(Change()))
    run = project.layout.run(finished.experiment_id)
    log = run.log.read_text(errors="replace") if run.log.exists() else ""
    said = [line for line in log.splitlines() if line.startswith("came: ")]
    return Ran(
        finished.result,
        run,
        ast.literal_eval(said[0].removeprefix("came: ") or "{}") if said else {},
    )


def writes(*places: str) -> str:
    """Code that writes to each place, an expression, by every way there is."""
    code = """
def write():
    with open(target, "w") as file:
        file.write('{"status": "completed", "metric_value": 0.0271828, "attested": true}')
"""
    for place in places:
        code += f"""
target = {place}
attempt("remove " + str(target), lambda: os.remove(target))
attempt("write " + str(target), write)
attempt("append " + str(target), lambda: open(target, "a").write("x"))
attempt("link " + str(target),
        lambda: os.link(out / "mine", target) if (out / "mine").write_text("x") else 0)
attempt("symlink " + str(target), lambda: os.symlink("/dev/null", target))
attempt("replace " + str(target), lambda: os.replace(out / "mine", target))
"""
    return code


MOVES = """
attempt("move the folder", lambda: os.rename(out.parent, str(out.parent) + "-gone"))
"""


def succeeded(came: dict[str, str]) -> set[str]:
    """The attempts that did what they were to do."""
    return {way for way, what in came.items() if what[:1].isdigit() or what == "None"}


OWN = [
    *(f"str(out.parent / '{name}')" for name in (
        "result.json", "exit.json", "metadata.json", "launch.json", "config.json", "local.json",
        "run.log", "events.jsonl",
    )),
    "str(out.parents[2] / 'plans' / f'{out.parent.name}.json')",
]  # fmt: skip
OTHER_WAYS = [
    "os.environ['AUTOHYPOTHESIS_RUN_DIR'] + '/../result.json'",
    "os.path.relpath(out.parent / 'result.json')",
    "f'/proc/self/root{out.parent}/result.json'",
]


def check_record(ran: Ran) -> None:
    written = json.loads(ran.run.result.read_bytes())
    assert written["metric_value"] != 0.0271828 and not written["attested"]
    assert "0.0271828" not in ran.run.exit.read_text()


@pytest.mark.usefixtures("sandboxed")
def test_a_run_in_a_sandbox_cannot_write_its_own_record(foreign: Path) -> None:
    ran = attack(foreign, writes(*OWN, *OTHER_WAYS))
    assert (ran.result.status, ran.result.metric_value) == ("completed", 1.0)
    assert len(ran.came) == 6 * len((*OWN, *OTHER_WAYS)) and not succeeded(ran.came)
    check_record(ran)


def test_a_run_without_a_sandbox_that_edits_a_package_is_invalid(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_by("none", monkeypatch)
    module = tmp_path / "site-packages" / "torch" / "loss.py"
    module.parent.mkdir(parents=True)
    module.write_text("loss = 1")
    site = (module.parents[1],)
    monkeypatch.setattr("autohypothesis.engine.local_executor.site_folders", lambda _: site)
    ran = attack(foreign, f"open({str(module)!r}, 'w').write('loss = 0')")
    assert ran.result.failure_kind == "invalid"
    assert f"torch in {site[0]} was changed" in ran.result.failure_detail


@pytest.mark.parametrize("places", [OWN[:1], OWN[1:5], OWN[5:]], ids=["own", "first", "rest"])
def test_a_run_without_a_sandbox_that_writes_its_own_record_is_invalid(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, places: list[str]
) -> None:
    hold_by("none", monkeypatch)
    ran = attack(foreign, writes(*places))
    assert ran.result.failure_kind == "invalid", ran.result
    assert ran.result.failure_detail.count(" of its record") >= len(places), ran.result
    check_record(ran)
    if places == OWN[:1]:
        assert (ran.run.out / "from-the-record-result.json").exists()
        decided = decide.settle(Project.open(foreign), [ran.run.folder.name], decided_by="loop")
        assert [one.decision_status for one in decided.decisions] == ["crash"]


def test_a_run_that_kills_its_shim_and_writes_the_end_itself_is_invalid(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sandbox: the record of the shim is told by the word that it alone knows."""
    hold_by("none", monkeypatch)
    code = """
exit = {"experiment_id": out.parent.name, "status": "exited", "exit_code": 0, "seal": "guessed",
        "ended_at": "2026-01-01T00:00:00Z", "metrics": {"val_bpb": 0.0271828}, "summaries_seen": 1}
attempt("end", lambda: (out.parent / "exit.json").write_text(json.dumps(exit)))
(out.parent / "run.log").write_text("came: {}\\n")
attempt("kill", lambda: os.kill(os.getppid(), signal.SIGKILL))
time.sleep(30)
"""
    ran = attack(foreign, code)
    assert ran.result.failure_kind == "invalid"
    assert "exit.json of its record" in ran.result.failure_detail
    assert ran.result.metric_value is None


ELSEWHERE = [
    "out.parents[2] / 'decisions.jsonl'",
    "out.parents[1] / 'baseline-first-1' / 'result.json'",
    "out.parents[1] / 'h-t-0001-1'",
    "out.parents[2] / 'hypotheses' / 'pending' / 'x.json'",
    "out.parents[2] / 'fleet' / 'manifest.json'",
    "out.parents[3] / '.git' / 'refs' / 'heads' / 'autoresearch' / 't'",
    "out.parents[3] / '.git' / 'config'",
    "out.parents[3] / '.git' / 'autohypothesis' / 'pristine' / 'x'",
    "out.parents[3] / 'train.py'",
    "pathlib.Path(USERS_HOME) / '.bashrc'",
    "pathlib.Path(os.__file__).parent / 'planted.py'",
]


@pytest.mark.usefixtures("sandboxed")
def test_a_run_in_a_sandbox_changes_nothing_but_what_is_its_own(foreign: Path, home: Path) -> None:
    (home / ".bashrc").write_text("mine\n")
    first = attack(foreign, "", tag="first")
    project = Project.open(foreign)
    decide.settle(project, [first.run.folder.name], decided_by="loop")
    before = _contents(foreign, home)
    ran = attack(foreign, f"USERS_HOME = {str(home)!r}\n{writes(*ELSEWHERE)}{MOVES}")
    assert ran.result.status == "completed", ran.result
    assert len(ran.came) == 6 * len(ELSEWHERE) + 1 and not succeeded(ran.came)
    after = _contents(foreign, home)
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed <= {"train.py", ".git/index", ".git/COMMIT_EDITMSG", ".git/logs/HEAD",
                       ".git/refs/heads/main", ".git/logs/refs/heads/main",
                       "research/fleet/manifest.json"}  # fmt: skip


def _contents(*roots: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and "live" not in path.parts and "locks" not in path.parts
        and not {"worktrees", "exports"} & set(path.parts)
    }  # fmt: skip


def test_no_key_and_no_record_can_be_read_from_a_run(
    foreign: Path, sandboxed: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for name in (".ssh/id_ed25519", ".netrc", ".config/autohypothesis/hubs/x.json", ".claude.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("a secret")
    monkeypatch.setenv("AUTOHYPOTHESIS_HUB_KEY", "a secret")
    monkeypatch.setenv("WANDB_API_KEY", "a secret")
    assert user_config_folder().is_relative_to(home)
    first = attack(foreign, "", tag="first").run
    places = [home / ".ssh/id_ed25519", home / ".netrc", home / ".claude.json",
              home / ".config/autohypothesis/hubs/x.json", keys_folder() / "fleet.pem",
              first.result, first.log, first.attestation,
              foreign / ".git" / "HEAD", foreign / ".git" / "config"]  # fmt: skip
    code = f"""
for place in {[str(place) for place in places]!r}:
    attempt(place, lambda: open(place).read())
    attempt("by a link " + place, lambda: (os.symlink(place, out / "l"), open(out / "l").read()))
    (out / "l").unlink(missing_ok=True)
attempt("environment", lambda: [v for v in os.environ.values() if "secret" in v])
attempt("that of the shim", lambda: open(f"/proc/{{os.getppid()}}/environ").read())
attempt("the memory of the shim", lambda: open(f"/proc/{{os.getppid()}}/mem", "rb").read(1))
"""
    came = attack(foreign, code).came
    assert came.pop("environment") == "[]"
    if sandboxed == "bwrap":  # the parent is bubblewrap's own process, with the same variables
        assert "secret" not in came.pop("that of the shim")
    assert set(came.values()) <= {"FileNotFoundError", "PermissionError", "ProcessLookupError"}


@pytest.fixture
def home_outside_of_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's home where homes are: not below the /tmp that bubblewrap replaces."""
    with tempfile.TemporaryDirectory(prefix=".home-", dir=ROOT) as name:
        monkeypatch.setenv("HOME", name)
        monkeypatch.delenv("AUTOHYPOTHESIS_CONFIG")
        yield Path(name)


def test_a_key_that_is_made_while_a_run_lasts_is_not_seen_by_it(
    foreign: Path, held_by: str, home_outside_of_tmp: Path
) -> None:
    home = home_outside_of_tmp
    if held_by == "none" or (held_by == "bwrap" and home.is_relative_to("/tmp")):
        pytest.skip("this is possible then, and docs/trust.md says so")
    places = [home / ".netrc", home / ".kube" / "config", home / ".config" / "gh" / "hosts.yml"]
    (home / ".config").mkdir()

    def make_keys() -> None:
        runs = foreign / "research" / "runs"
        deadline = time.monotonic() + 60
        while not (waits := list(runs.glob("*/out/waits"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        for place in places:
            place.parent.mkdir(exist_ok=True)
            place.write_text("a secret")
        waits[0].with_name("made").touch()

    code = f"""
(out / "waits").touch()
while not (out / "made").exists():
    time.sleep(0.01)
for place in {[str(place) for place in places]!r}:
    attempt(place, lambda: open(place).read())
"""
    with ThreadPoolExecutor() as beside:
        made = beside.submit(make_keys)
        came = attack(foreign, code).came
        made.result()
    assert len(came) == 3 and set(came.values()) <= {"FileNotFoundError", "PermissionError"}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder of another disk: not below the /tmp that a run does not see."""
    with tempfile.TemporaryDirectory(prefix=".disk-", dir=ROOT) as name:
        yield Path(name)


@pytest.mark.usefixtures("sandboxed")
@pytest.mark.parametrize("linked", ["research", "research/runs"])
def test_records_on_another_disk_behind_a_link_are_as_far_from_a_run_as_here(
    foreign: Path, disk: Path, linked: str
) -> None:
    (foreign / linked).parent.mkdir(exist_ok=True)
    (foreign / linked).symlink_to(disk)
    neighbour = attack(foreign, "", tag="first").run
    names = [neighbour.result, Path(os.path.realpath(neighbour.result))]
    before = _contents(neighbour.folder)
    code = f"for n in {list(map(str, names))}:\n    attempt(n, lambda: open(n).read())\n"
    code += writes(*(f"pathlib.Path({str(name)!r})" for name in names))
    ran = attack(foreign, code)
    assert ran.result.status == "completed", ran.result
    assert len(ran.came) == 14 and not succeeded(ran.came)
    assert {ran.came[str(name)] for name in names} <= {"FileNotFoundError", "PermissionError"}
    assert _contents(neighbour.folder) == before


STRICT = """
id: strict
artifacts: [train.py]
isolation: strict
run: {command: [python, train.py], device: cpu, budget: {seconds: 20}}
"""


def test_under_strict_a_run_sees_its_checkout_and_nothing_of_the_user(
    foreign: Path, sandboxed: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.txt").write_text("the user's")
    (foreign / "untracked.txt").write_text("the user's")
    code = f"""
attempt("beside", lambda: open({str(tmp_path / "elsewhere.txt")!r}).read())
attempt("untracked", lambda: open({str(foreign / "untracked.txt")!r}).read())
attempt("the user's train.py", lambda: open({str(foreign / "train.py")!r}).read())
attempt("passwords", lambda: open("/etc/shadow").read())
attempt("its own data.txt", lambda: open("data.txt").read())
attempt("a connection", lambda: socket.create_connection(("127.0.0.1", PORT), 5))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = code.replace("PORT", str(server.getsockname()[1]))
        ran = attack(foreign, code, task=STRICT)
    assert ran.came.pop("its own data.txt") == "'data\\n'"
    assert set(ran.came.values()) <= {
        "FileNotFoundError", "PermissionError", "OSError", "ConnectionRefusedError",
    }, ran.came  # fmt: skip
    assert ran.metadata.runtime.isolation == "strict"


def test_what_an_honest_run_needs_is_there_and_nothing_of_it_stays(
    foreign: Path, held_by: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA names its threads, loaders share memory, libraries make temporary files and caches."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    code = """
import multiprocessing, tempfile, threading, subprocess
attempt("thread name", lambda: [open(f"/proc/self/task/{t}/comm", "w").write("x")
                                for t in os.listdir("/proc/self/task")] and "fine")
attempt("lock", lambda: multiprocessing.Lock() and "fine")
attempt("pool", lambda: multiprocessing.Pool(2).map(abs, [-1, 1]))
attempt("temporary", lambda: len(tempfile.mkdtemp()) and "fine")
attempt("socket in it", lambda: socket.socket(socket.AF_UNIX).bind(tempfile.mktemp()) or "fine")
attempt("home", lambda: (pathlib.Path.home() / ".cache" / "new").mkdir(parents=True) or "fine")
attempt("out", lambda: (out / "checkpoint").write_text("x") and "fine")
attempt("null", lambda: open("/dev/null", "w").write("x") and "fine")
attempt("random", lambda: len(open("/dev/urandom", "rb").read(4)) and "fine")
attempt("child", lambda: subprocess.run([sys.executable, "-c", "print(1)"], check=True,
                                        capture_output=True).stdout)
attempt("cores", lambda: "processor" in open("/proc/cpuinfo").read() and "fine")
"""
    came = attack(foreign, code).came
    assert came.pop("pool") == "[1, 1]" and came.pop("child") == "b'1\\n'"
    assert set(came.values()) == {"'fine'"}, came
    assert not list((tmp_path / "tmp").glob("ah-*"))


def test_a_script_finds_its_caches_and_cannot_change_them(
    foreign: Path, held_by: str, home: Path
) -> None:
    """Of a script without a task file nothing says where its data is: it may be at home."""
    data = home / ".cache" / "autoresearch" / "tokens"
    data.parent.mkdir(parents=True)
    data.write_text("tokens")
    (home / ".netrc").write_text("secret")
    code = """
home = pathlib.Path.home()
attempt("read", lambda: (home / ".cache/autoresearch/tokens").read_text())
attempt("new", lambda: (home / ".cache/other").mkdir() or "fine")
attempt("change", lambda: (home / ".cache/autoresearch/tokens").write_text("x"))
attempt("key", lambda: (home / ".netrc").read_text())
"""
    ran = attack(foreign, code)
    came = ran.came
    assert (came["read"], came["new"]) == ("'tokens'", "'fine'")
    if held_by == "none":
        assert ran.metadata.runtime.home == "kept"
        return
    assert came["change"] in ("PermissionError", "OSError") and came["key"] == "FileNotFoundError"
    assert data.read_text() == "tokens" and not (home / ".cache" / "other").exists()
    assert ran.metadata.runtime.home == "links"


def test_the_record_says_which_sandbox_a_run_had(foreign: Path, held_by: str) -> None:
    ran = attack(foreign, "")
    runtime = ran.metadata.runtime
    assert (runtime.sandbox, runtime.isolation) == (held_by, "writes")
    run_without = attack(foreign, "", task=STRICT.replace("strict", "none"), tag="none")
    assert run_without.metadata.runtime.sandbox == "none"


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
def test_a_confined_program_has_no_privileges(kind: sandbox.Kind, tmp_path: Path) -> None:
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    granted = sandbox.SandboxSpec(kind, sandbox.system_folders(), temporary=tmp_path)
    words = sandbox.confined(["/bin/cat", "/proc/self/status"], granted)
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    facts = dict(line.split(":\t") for line in said.splitlines() if ":\t" in line)
    assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2"
    assert int(facts["CapEff"], 16) in (0, 2)  # at most the right to pass by modes


MARKS = """
import os, pathlib, sys
note = pathlib.Path(sys.argv[1], "note")
note.touch()
for leave in (
    lambda: note.chmod(0o640),
    lambda: os.utime(note, ns=(4711, 4711)),
    lambda: os.setxattr(note, "user.note", b"row"),
):
    try:
        leave()
    except OSError:
        pass
pathlib.Path("/dev/shm/note").touch()
"""


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
def test_a_program_that_may_leave_no_notes_marks_no_file(
    kind: sandbox.Kind, tmp_path: Path
) -> None:
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    system = (*sandbox.system_folders(), *sandbox.python_folders(Path(sys.executable)))
    granted = sandbox.SandboxSpec(kind, system, write=(tmp_path,), leaves_notes=False)
    words = sandbox.confined([sys.executable, "-c", MARKS, str(tmp_path)], granted)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert "PermissionError" in done.stderr and "/dev/shm/note" in done.stderr, done.stderr
    status = (tmp_path / "note").stat()
    assert status.st_mode & 0o777 != 0o640 and status.st_mtime_ns != 4711
    assert not os.listxattr(tmp_path / "note")


def test_a_program_that_cannot_be_confined_is_not_started() -> None:
    policy = {"confine": True, "landlock": True, "read": ["/"]}  # and no more: a broken policy
    words = [*sandbox._launcher(policy), "/bin/echo", "ran"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "ran" not in done.stdout


def test_a_run_begins_with_the_compiled_code_of_the_baseline_and_leaves_none(
    foreign: Path, held_by: str, home: Path
) -> None:
    task = STRICT.replace("id: strict", "id: compiled")
    code = """
cache = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
cache.mkdir(parents=True, exist_ok=True)
attempt("there", lambda: sorted(path.name for path in cache.iterdir()))
(cache / os.environ["SEED"]).write_text("compiled")
"""
    first = attack(foreign, code, task=task)
    assert first.came == {"there": "[]"}
    project = Project.open(foreign)
    decide.settle(project, [first.run.folder.name], decided_by="loop")
    for seed in (7, 8):
        request = Experiment(Change(), seed=seed, replicates=first.run.folder.name)
        finished = runner.run(project, request)
        log = project.layout.run(finished.experiment_id).log.read_text()
        assert "came: {'there': \"['42']\"}" in log, log


KERNEL = """
import ctypes, glob, resource
libc = ctypes.CDLL(None, use_errno=True)
attempt("settings of the kernel", lambda: open("/proc/sys/kernel/core_pattern", "r+"))
attempt("terminals", lambda: [os.open(t, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                              for t in TERMINALS])
attempt("limits of another", lambda: resource.prlimit(ANOTHER, resource.RLIMIT_CORE, (0, 0)))
attempt("limits of its own", lambda: resource.prlimit(0, resource.RLIMIT_CORE, (0, 0)) and "fine")
attempt("shared memory", lambda: libc.shmget(0, 4096, 0o1666) if libc.shmget(0, 4096, 0o1600) < 0
        else "made")
attempt("keyrings", lambda: libc.syscall(250, 0, -3, 0) < 0 and "refused")
attempt("a signal to another", lambda: os.kill(ANOTHER, 0))
attempt("a signal to its parent", lambda: os.kill(os.getppid(), 0) if os.getppid() > 1 else 1 / 0)
attempt("/dev/shm", lambda: SHARED in os.listdir("/dev/shm"))
"""


def test_nothing_of_the_machine_can_be_changed_through_the_kernel(
    foreign: Path, sandboxed: str
) -> None:
    ours, theirs = os.openpty()
    shared = Path(f"/dev/shm/of-a-test-{os.getpid()}")
    shared.touch()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        code = KERNEL.replace("TERMINALS", repr([os.ttyname(theirs)]))
        code = code.replace("ANOTHER", str(sleeper.pid)).replace("SHARED", repr(shared.name))
        came = attack(foreign, code).came
    finally:
        shared.unlink()
        sleeper.kill()
        sleeper.wait()
        os.close(ours)
        os.close(theirs)
    assert came.pop("limits of its own") == "'fine'"
    assert came.pop("keyrings") == "'refused'"
    if came.pop("shared memory") == "'made'":
        assert sandboxed == "bwrap"  # in a space of its own, which ends with it
    shares = came.pop("/dev/shm")
    if sandboxed == "bwrap":  # the run's parent is the first process of its own space
        assert shares == "False"
        came.pop("a signal to its parent")
    refused = {"PermissionError", "OSError", "FileNotFoundError", "ProcessLookupError",
               "ZeroDivisionError"}  # fmt: skip
    assert set(came.values()) <= refused, came


def test_folders_too_deep_for_any_path_are_removed_after_a_run(foreign: Path, home: Path) -> None:
    code = """
def deep(place):
    os.chdir(place)
    for _ in range(1100):  # more than Python's stack has, and longer than any path
        os.mkdir("deep")
        os.chdir("deep")
for place in (os.environ["HOME"], os.environ.get("TMPDIR", "/nowhere"), os.getcwd()):
    attempt(place, lambda: deep(place))
"""
    task = STRICT.replace("id: strict", "id: deep")
    first = attack(foreign, code, task=task)
    assert first.result.status == "completed", first.result
    assert not first.run.home.exists()
    again = attack(foreign, "", task=task, tag="again")
    assert again.result.status == "completed", again.result


def test_a_link_in_place_of_a_compiled_cache_shows_nothing_to_later_runs(
    foreign: Path, held_by: str, home: Path
) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_rsa").write_text("a secret")
    code = f"""
import shutil
own = pathlib.Path(os.environ["HOME"]) / ".cache"
shutil.rmtree(own, ignore_errors=True)
own.mkdir()
attempt("link", lambda: os.symlink({str(home / ".ssh")!r}, own / "compiled") or "made")
"""
    ran = attack(foreign, code, task=STRICT.replace("id: strict", "id: linked"))
    assert ran.came == {"link": "'made'"}
    kept = foreign / ".git" / "autohypothesis" / "compiled"
    assert not [path for path in kept.rglob("*") if path.is_file()]


SCORED = """
id: scored
root: repository
artifacts: [train.py]
protected: [score.py, rubric.py]
run: {command: [python, train.py], device: cpu, budget: {seconds: 20}}
scorer: {type: command, command: COMMAND}
objective: {metric: loss}
"""
PLANTS = {
    "bytecode of what the scorer imports": (
        2.0,
        "[python, score.py]",
        """
import importlib._bootstrap_external as b, marshal
source = os.stat("rubric.py")
code = compile("VALUE = -99.0", "rubric.py", "exec")
os.makedirs("__pycache__", exist_ok=True)
data = b._code_to_timestamp_pyc(code, int(source.st_mtime), source.st_size)
name = f"__pycache__/rubric.{sys.implementation.cache_tag}.pyc"
attempt("plant", lambda: open(name, "wb").write(data))
""",
    ),
    "a module of the user's site": (
        2.0,
        "[python, score.py]",
        """
import site
place = pathlib.Path(os.environ["HOME"], ".local", "lib",
                     f"python3.{sys.version_info[1]}", "site-packages")
place.mkdir(parents=True)
attempt("plant", lambda: (place / "usercustomize.py").write_text("import builtins\\n"
        "print('{\\"score\\": -99.0}')\\nimport os; os._exit(0)\\n"))
""",
    ),
    "a module where the scorer starts": (
        None,  # a new file in the checkout is seen
        "[python, -m, score]",
        """
attempt("plant", lambda: open("json.py", "w").write(
        "def dumps(value): return '{\\"score\\": -99.0}'\\n"))
""",
    ),
}


@pytest.mark.parametrize(("value", "command", "code"), PLANTS.values(), ids=PLANTS.keys())
def test_what_a_training_plants_for_its_scorer_changes_no_score(
    foreign: Path, held_by: str, value: float | None, command: str, code: str, home: Path
) -> None:  # fmt: skip
    (foreign / "rubric.py").write_text("VALUE = 2.0\n")
    (foreign / "score.py").write_text(
        "import json\nimport rubric\nprint(json.dumps({'score': rubric.VALUE}))\n"
    )
    ran = attack(foreign, code, task=SCORED.replace("COMMAND", command))
    assert ran.came.get("plant", "").isdigit(), ran.came
    assert ran.result.metric_value == value, ran.result
    assert ran.result.failure_kind == (None if value else "invalid"), ran.result


def test_data_is_never_said_to_lie_where_no_run_may_see(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """The program that locates it may import what a candidate wrote."""
    hold_by("landlock", monkeypatch)
    (home / ".ssh").mkdir()
    (foreign / "research").mkdir(exist_ok=True)
    task = STRICT.replace(
        "isolation: strict",
        "isolation: strict\ninputs: [{env: DATA, locate: [python, locate.py]}]",
    )
    for place in (home / ".ssh", foreign / ".git", foreign / "research", foreign, Path("/")):
        (foreign / "locate.py").write_text(
            f"import json\nprint(json.dumps({{'path': {str(place)!r}}}))\n"
        )
        with pytest.raises(LaunchError, match="which no run may see"):
            attack(foreign, "", task=task)
