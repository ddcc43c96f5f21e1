"""How the shim starts a child: fork, arrange, exec, and tell the parent if it failed.

A plain fork is safe here because the shim has one thread. Between fork and exec the child makes
system calls only, in an order that leaves no gap: it asks to die with the shim, then looks whether
the shim is dead already.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autohypothesis import system
from autohypothesis.errors import LaunchError

_PIPE_BYTES = 1 << 20
_KEPT = {signal.SIGKILL, signal.SIGSTOP}  # nobody can change these


class Child(NamedTuple):
    """A started child, and when (monotonic); `output` is the read end of its stdout and stderr,
    not blocking."""

    pid: int
    started: float
    output: int


def spawn(
    command: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    *,
    cores: Sequence[int] | None,
    inherit: Sequence[int] = (),
) -> Child:
    """Start `command` in a session of its own, with exactly `env`, and `inherit` kept open.

    Raises LaunchError that names the command and the folder, if it cannot be executed.
    """
    output, child_output = os.pipe()
    failure, child_failure = os.pipe()
    parent = os.getpid()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(command, cwd, env, cores, inherit, parent, child_output, child_failure)
    os.close(child_output)
    os.close(child_failure)
    with os.fdopen(failure, "rb") as pipe:
        problem = pipe.read().decode(errors="replace")  # ends at exec, or with the child
    if problem:
        os.waitpid(pid, 0)
        os.close(output)
        raise LaunchError(
            f"cannot start {command[0]!r} in {cwd}: {problem}", hint="check run.command"
        )
    os.set_blocking(output, False)
    _widen(output)
    return Child(pid, started, output)


def _become(
    command: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    cores: Sequence[int] | None,
    inherit: Sequence[int],
    parent: int,
    output: int,
    failure: int,
) -> None:
    """The child's side. Never returns: whatever happens ends in exec or exit."""
    try:
        os.setsid()
        system.die_with_parent(parent)
        # What Python or a shell ignores, exec hands on; a training expects the defaults.
        for number in signal.valid_signals() - _KEPT:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        system.set_affinity(cores)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        for fd in inherit:
            os.set_inheritable(fd, True)
        os.chdir(cwd)
        os.execvpe(command[0], list(command), dict(env))
    except BaseException as error:
        # The boundary of the child process: the parent turns these words into an error.
        words = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        os.write(failure, words.encode(errors="replace"))
    finally:
        os._exit(127)


def _widen(pipe: int) -> None:
    """A wide pipe lets a talkative training write on while the shim does something else."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):
        return  # not Linux, or over this user's pipe limit: the default of 64 KiB works
