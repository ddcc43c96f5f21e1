"""Whether an honest training works in each sandbox of this machine, tried with torch itself."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autohypothesis import confine, sandbox
from autohypothesis.engine import program
from autohypothesis.sandbox import Confinement, Kind

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


class Trial(NamedTuple):
    """What became of one kind: `problem` is empty where it works, else one line; `fix` a command
    or a setting."""

    kind: Kind
    worked: str
    problem: str = ""
    fix: str = ""


def trials(*, gpus: bool) -> list[Trial]:
    """Return a trial of each kind, best first, and remember which is the best that works.

    A kind that fails lowers what later runs take, and never a run.
    """
    found = [_tried(kind, gpus=gpus) for kind in ("bwrap", "landlock")]
    working = [one.kind for one in found if not one.problem]
    if not found[0].problem:
        sandbox.note_limit(None)
    elif sandbox.works("bwrap", gpus=gpus):  # only the trial shows it: runs have to be told
        sandbox.note_limit(working[0] if working else "none", found[0].problem)
    return found


def _tried(kind: Kind, *, gpus: bool) -> Trial:
    if problem := _absent(kind):
        return Trial(kind, "", *problem)
    with tempfile.TemporaryDirectory(prefix="ah-") as name:
        home, temporary = Path(name, "home"), Path(name, "tmp")
        home.mkdir()
        temporary.mkdir()
        granted = Confinement(
            read=sandbox.system_folders(), write=(home,), temporary=temporary, gpus=gpus
        )
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "TMPDIR": "/tmp" if kind == "bwrap" else str(temporary),
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if gpus else "",
        }
        words = [sys.executable, "-c", _TRIAL, "gpu" if gpus else "cpu"]
        ended = program.run(
            words, cwd=home, environment=environment, timeout_s=TRIAL_S, confined=(granted, kind)
        )
    if ended.exit_code == 0:
        return Trial(kind, ended.out.strip() or "Python")
    said = "it did not end in time" if ended.exit_code is None else ended.last_words()
    return Trial(kind, "", said, "`isolation: none` in task.yaml runs without; report it, please")


def _absent(kind: Kind) -> tuple[str, str] | None:
    """Why there is no such sandbox here, and the one thing that would change it."""
    if kind == "landlock":
        if confine.landlock_abi():
            return None
        return "the kernel has no Landlock", "Linux 5.13 or newer, with landlock in its lsm= list"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed", "apt-get install bubblewrap (or dnf, pacman)"
    if sandbox.works("bwrap"):
        return None
    for name, bad, value in _SWITCHES:
        try:
            if Path("/proc/sys", name).read_text().strip() == bad:
                return (
                    "this user may not make namespaces",
                    f"sysctl -w {name.replace('/', '.')}={value}",
                )
        except OSError:
            continue
    return "bubblewrap may not make namespaces", "allow them in the settings of the container"


_SWITCHES: Sequence[tuple[str, str, str]] = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)
"""Settings that forbid bubblewrap to a user, what they then hold, and what allows it."""
