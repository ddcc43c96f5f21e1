"""What a training may see of the environment it was started from: an allow-list, no secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

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
