"""The scorer, and the process that has a candidate's model: nothing that a model does counts but
its logits; whatever else it does is its own failure, told in one line."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from autohypothesis import confine

MODEL = '''
import ctypes, gc, json, os, socket, sys, threading, time
import prepare, torch

RUN = RUN_FOLDER

class Bias(torch.nn.Module):
    """Says the same of every token."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(prepare.VOCAB_SIZE))
        self.asked = 0

    def forward(self, x):
        self.asked += 1
        logits = self.bias.expand(*x.shape, -1)
        FORWARD
        return logits

def scorer():
    """The socket to the scorer, found among all descriptors."""
    for fd in range(3, 64):
        try:
            found = socket.socket(fileno=os.dup(fd))
            found.getpeername()
            return found
        except OSError:
            pass

def build_model(config):
    BUILD
    return Bias()
'''
Score = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run_dir(prepare: ModuleType, tmp_path: Path) -> Path:
    """A run whose weights favour the first tokens a little."""
    import torch

    folder = tmp_path / "run"
    folder.mkdir()
    bias = torch.linspace(1, 0, prepare.VOCAB_SIZE)
    torch.save({"bias": bias}, folder / "weights.pt")
    (folder / "config.json").write_text('{"hyperparameters": {}}')
    return folder


@pytest.fixture
def scored(
    prepare: ModuleType, run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Score:
    """Exit code and last line of `--score` of a model that does something in `forward` or
    `build_model`."""

    def score(*options: str, forward: str = "pass", build: str = "pass") -> tuple[int, Any]:
        text = MODEL.replace("RUN_FOLDER", repr(str(run_dir)))
        indented = forward.strip().replace("\n", "\n        ")
        text = text.replace("FORWARD", indented)
        text = text.replace("BUILD", build.strip().replace("\n", "\n    "))
        (tmp_path / "train.py").write_text(text)
        words = ["--score", str(run_dir), "--train", str(tmp_path / "train.py"), *options]
        code = prepare.main(words)
        said = capfd.readouterr()
        lines = said.out.splitlines() or [json.dumps({"stderr": said.err})]
        assert len(lines) == 1, said.out
        return code, json.loads(lines[0])

    return score


def expected(prepare: ModuleType, run_dir: Path) -> float:
    """The value of the bias, computed from the counts of the tokens."""
    import torch

    bias = torch.load(run_dir / "weights.pt", weights_only=True)["bias"].double()
    tokens = torch.from_numpy(prepare.validation_tokens(prepare.load_prepared()).astype(np.int64))
    targets = tokens[tokens != len(bias) - 1]
    nats = float(bias.logsumexp(0) * len(targets) - bias[targets].sum())
    facts = prepare.load_prepared().manifest["validation"]
    return nats / np.log(2) / facts["bytes"]


def test_a_score_is_repeated_to_the_last_digit_by_its_order(
    prepare: ModuleType, scored: Score, run_dir: Path
) -> None:
    code, first = scored()
    assert code == 0 and first["val_bpb"] == pytest.approx(expected(prepare, run_dir), rel=1e-6)
    assert first["peeking"] == 0 and len(first["order"]) == 32
    _, again = scored("--order", first["order"])
    same = ("val_bpb", "peeking", "order", "tokens", "data_hash")
    assert [again[name] for name in same] == [first[name] for name in same]


FAILS = {
    "exits": ("os._exit(3)", "host", "the candidate's process exited 3 before it answered"),
    "dies": ("os.kill(os.getpid(), 9)", "host", "ended by signal 9"),
    "ends with words": (
        "os.write(2, b'\\x1b[31mno\\x07 more\\n'); os._exit(1)",
        "host", "exited 1 before it answered: [31mno more",
    ),
    "raises later": ("if self.asked > 9: 1 / 0", "shape", "ZeroDivisionError"),
    "forgets a row": ("logits = logits[1:]", "shape", "forward gave"),
    "gives too few logits": ("logits = logits[..., 1:]", "shape", "forward gave"),
    "gives nan": ("if self.asked > 9: logits = logits / 0", "not_finite", "not finite"),
    "answers with nothing": (
        "scorer().send(prepare.ANSWER.pack(self.asked, 0, b'')); time.sleep(1000)",
        "not_finite", "not finite",
    ),
    "answers half": ("scorer().send(b'xyz'); os._exit(0)", "host", "before it answered"),
    "answers twice": ("scorer().send(prepare.ANSWER.pack(self.asked, 0, b''))", "", ""),
    "answers another question": (
        "scorer().send(prepare.ANSWER.pack(7, 0, b''))", "host", "question 7, not 1",
    ),
    "gives a problem that there is not": (
        "scorer().send(prepare.ANSWER.pack(1, 99, b'infra\\nNo space'))", "host", "infra No space",
    ),
    "remembers what it was asked": (
        "logits = logits + 0.01 * self.asked * torch.arange(prepare.VOCAB_SIZE)", "peeking", "",
    ),
    "looks ahead": (
        "logits = logits.clone(); logits[:, :-1].scatter_(2, x[:, 1:, None], 5.0)",
        "peeking", "the model looks ahead",
    ),
    "looks at the row beside it": (
        "logits = logits + 0.01 * x.roll(1, 0)[..., None]", "peeking", "other rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "kind", "message"), FAILS.values(), ids=FAILS.keys())
def test_what_a_host_does_instead_of_answering_is_its_failure(
    scored: Score, forward: str, kind: str, message: str
) -> None:
    code, answer = scored(forward=forward)
    assert code == 1, answer
    assert answer["kind"] == kind or not kind, answer
    assert message in answer["error"] and "\n" not in answer["error"], answer


@pytest.fixture
def hurried(prepare: ModuleType, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose profile allows little time."""
    manifest = next(own_cache.rglob("manifest.json"))
    document = json.loads(manifest.read_text())
    document["profile"] |= {"start_allowance_s": 9.0, "evaluation_allowance_s": 1.0}
    manifest.write_text(json.dumps(document))
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(own_cache))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("forward", "build"),
    [
        pytest.param("pass", "time.sleep(1000)", marks=pytest.mark.slow, id="build"),
        pytest.param("time.sleep(1000)", "pass", id="forward"),
        pytest.param(
            "while True: os.write(2, b'x' * 4096)", "pass", marks=pytest.mark.slow, id="talks"
        ),
    ],
)
def test_a_host_that_hangs_is_ended(scored: Score, forward: str, build: str) -> None:
    code, answer = scored(forward=forward, build=build)
    assert (code, answer["kind"]) == (1, "timeout")
    assert "takes longer than 10 s" in answer["error"]


PRINTS = """
print('{"val_bpb": 0.1}', flush=True)
os.write(1, b'{"val_bpb": 0.1}\\n')
os.write(2, b'{"val_bpb": 0.1}\\n')
"""
PATCHES = """
for name in ("token_nats", "score", "_evaluation", "Exam", "Windows", "evaluate"):
    setattr(prepare, name, lambda *_: 0.0)
torch.nn.functional.cross_entropy = lambda *_, **__: torch.zeros(1)
json.dumps = lambda *_, **__: '{"val_bpb": 0.1}'
np = sys.modules["numpy"]
np.exp = np.log = lambda x, *_, **__: x * 0
"""
WEIGHTS = """
def change(path, data):
    try:
        with open(path, "r+b") as file:
            file.write(data)
    except OSError:
        pass
change(RUN + "/weights.pt", b"x" * 64)
for fd in range(3, 64):
    change(f"/proc/self/fd/{fd}", b"x" * 64)
    try:
        os.pwrite(fd, b"x" * 64, 0)
        os.ftruncate(fd, 0)
    except OSError:
        pass
"""
TARGETS = """
held = [o for o in gc.get_objects() if type(o).__name__ in ("Windows", "Exam", "Probe")]
frame, frames = sys._getframe(), []
while frame:
    frames.append(frame.f_code.co_name)
    frame = frame.f_back
assert not held and "answer" not in frames and "score" not in frames, (held, frames)
"""


@pytest.mark.parametrize("build", [PRINTS, PATCHES, WEIGHTS, TARGETS],
                         ids=["prints", "patches", "weights", "targets"])  # fmt: skip
def test_what_a_host_does_beside_answering_changes_nothing(
    prepare: ModuleType, scored: Score, run_dir: Path, build: str
) -> None:
    before = expected(prepare, run_dir)
    code, answer = scored(build=build)
    if build == WEIGHTS and answer.get("kind") in ("not_finite", "host"):
        return  # it has spoilt the memory of its own answers, and no other
    assert code == 0, answer
    assert answer["val_bpb"] == pytest.approx(before, rel=1e-6)


NOTES = """
import glob, tempfile
places = [os.environ["HOME"], tempfile.gettempdir(), "/tmp", "/dev/shm", "/var/tmp", RUN,
          os.path.dirname(RUN), os.getcwd(), HOME]
notes = [note for place in places for note in glob.glob(place + "/*/note-of-a-host")
         + glob.glob(place + "/note-of-a-host")]
assert not notes, notes
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        assert open(f"/proc/{name}/comm").read() != "note-of-a-host\\n"
    except OSError:
        pass
for place in places:
    try:
        open(place + "/note-of-a-host", "w").write("a row")
    except OSError:
        pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"note-of-a-host", 0, 0, 0)
        time.sleep(1000)
    os._exit(0)
time.sleep(0.2)
try:
    os.kill(os.getppid(), 9)
    os.kill(GRANDPARENT, 9)
except PermissionError:
    pass
for other in (os.getppid(), GRANDPARENT):
    try:
        open(f"/proc/{other}/mem", "rb")
        raise SystemExit("read the memory of another process")
    except PermissionError:
        pass
"""


@pytest.mark.skipif(confine.landlock_abi() < 6, reason="the kernel does not scope signals")
def test_a_host_leaves_nothing_to_the_next_one_and_reaches_no_other_process(
    scored: Score, tmp_path: Path
) -> None:
    build = NOTES.replace(", HOME]", f", {os.path.expanduser('~')!r}]")
    code, answer = scored(build=build.replace("GRANDPARENT", str(os.getpid())))
    assert code == 0, answer
    assert not list(tmp_path.rglob("note-of-a-host"))
    assert not [p for p in psutil.process_iter(["name"]) if p.info["name"] == "note-of-a-host"]


def test_answers_are_copied_before_they_are_read_and_their_memory_keeps_its_size(
    prepare: ModuleType,
) -> None:
    profile = prepare.load_prepared().profile
    exam = prepare.Exam(prepare.validation_windows(prepare.load_prepared()), profile, 4, "x")
    memory = prepare.SharedMemory(exam, profile.vocab_size, "cpu")
    x = exam.windows.inputs([0, 1], 8)
    memory.put(x)
    assert np.isnan(memory.copy(2, 8)).all()  # no answer yet, whatever the one before was
    hosts = mmap.mmap(memory.file, memory.size)
    assert (np.frombuffer(hosts, np.int32, x.size) == x.ravel()).all()
    answer = np.frombuffer(hosts, np.float32, 16 * profile.vocab_size, prepare._logits_at(2, 8))
    answer[:] = 1.0
    copy = memory.copy(2, 8)
    answer[:] = 2.0
    assert (copy == 1.0).all()
    if hasattr(os, "memfd_create"):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.file, 0)
    os.close(memory.file)


@pytest.mark.parametrize("spoil", ["link", "pipe", "folder"])
def test_weights_that_are_no_file_of_the_run_are_not_opened(
    scored: Score, run_dir: Path, tmp_path: Path, spoil: str
) -> None:
    (run_dir / "weights.pt").rename(tmp_path / "secret")
    if spoil == "link":
        (run_dir / "weights.pt").symlink_to(tmp_path / "secret")
    elif spoil == "pipe":
        os.mkfifo(run_dir / "weights.pt")
    else:
        (run_dir / "weights.pt").mkdir()
    code, answer = scored()
    assert (code, answer["kind"]) == (1, "weights"), answer


def test_a_folder_of_an_earlier_version_gets_its_tokens_at_the_first_score(
    prepare: ModuleType, scored: Score, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(own_cache))
    folder = prepare.load_prepared().path
    document = json.loads((folder / "manifest.json").read_text())
    del document["files"]["val.npy"]
    tokens = (folder / "val.npy").read_bytes()
    (folder / "val.npy").unlink()
    (folder / "manifest.json").write_text(json.dumps(document))
    assert scored()[0] == 0
    assert (folder / "val.npy").read_bytes() == tokens
    assert "val.npy" in prepare.load_prepared(verify=True).manifest["files"]
    (folder / "val.npy").write_bytes(tokens[:-1] + b"x")
    code, answer = scored()
    assert code == 1 and "val.npy is damaged" in answer["stderr"]
