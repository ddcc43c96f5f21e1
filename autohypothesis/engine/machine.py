"""What the machine itself says about a failure, looked at by the shim when a training has failed.

A training can print any words and end itself by any signal. A failure that it could have caused
counts as one of the machine only where this evidence agrees.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from autohypothesis import system

if TYPE_CHECKING:
    from autohypothesis.engine.shim import Launch

ROOM_BYTES = 64 << 20
"""A disk that does not take so many more bytes is full."""
_CUDA_S = 30.0
_CUDA_SCRIPT = """
import ctypes
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
for name, words in (("cuInit", (0,)), ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), 0))):
    if code := getattr(cuda, name)(*words):
        raise SystemExit(f"{name} fails with CUDA error {code}")
"""


def machine_evidence(launch: Launch) -> dict[str, Any]:
    """Return the `machine` of exit.json: why it takes no more files, limits of file sizes (bytes)
    and CPU time (seconds), and why CUDA does not begin on the device; null where nothing is so."""
    cpu_limit = resource.getrlimit(resource.RLIMIT_CPU)[0]
    return {
        "no_room": no_room((launch.cwd, str(launch.run.folder), tempfile.gettempdir())),
        "file_limit": system.file_size_limit(),
        "cpu_limit": None if cpu_limit == resource.RLIM_INFINITY else cpu_limit,
        "cuda_error": cuda_error(launch.env) if launch.device.kind == "cuda" else None,
    }


def no_room(folders: Iterable[str]) -> str | None:
    """Return why one of the folders takes no file of `ROOM_BYTES`, and which; None: all do."""
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                _allocate(file.fileno())
        except OSError as error:
            if system.disk_full_advice(error.errno):
                return f"{os.strerror(error.errno or 0)}: {folder}"
    return None


def _allocate(fd: int) -> None:
    """Take `ROOM_BYTES` of the disk, or some by writing where a system cannot reserve them."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, ROOM_BYTES)
        except OSError as error:
            if system.disk_full_advice(error.errno):
                raise
        else:
            return
    os.write(fd, os.urandom(1 << 20))


def cuda_error(environment: Mapping[str, str]) -> str | None:
    """Return why a fresh process cannot begin on the first device that `environment` shows; None:
    it can."""
    kept = {name: environment[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in environment}
    shown = {"CUDA_VISIBLE_DEVICES": environment.get("CUDA_VISIBLE_DEVICES", "")}
    words = (sys.executable, "-I", "-S", "-c", _CUDA_SCRIPT)
    with suppress(OSError):
        try:
            done = subprocess.run(
                words, env={**kept, **shown}, capture_output=True, text=True, timeout=_CUDA_S
            )
        except subprocess.TimeoutExpired:
            return f"CUDA did not begin in {_CUDA_S:g} s"
        if done.returncode:
            return done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else "CUDA"
    return None
