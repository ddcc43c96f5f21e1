"""The one exception tree. Every error names the thing, the value, and what to run next."""

from __future__ import annotations

from typing import Any

from autohypothesis.installation import suggested


class AutohypothesisError(Exception):
    """Anything this project refuses or could not do.

    `problem` names the thing and the value in one line; `hint` is the next command to run or
    the setting to change. The command line prints both and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = suggested(hint)

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}" if self.hint else self.problem


class UsageError(AutohypothesisError):
    """The command was called wrongly; nothing was done."""

    exit_code = 2


class RecordError(AutohypothesisError):
    """A file under research/ is damaged, too large, or not what its name promises."""


class UnwritableError(RecordError):
    """A file or folder cannot be written: it is read-only, or the disk is full."""


class SignatureError(RecordError):
    """A signature is missing, is by a key that is not trusted, or does not fit what it signs."""


class LockError(AutohypothesisError):
    """Another process holds the lock; the message names the holder."""


class GitError(AutohypothesisError):
    """git refused; the message holds the command and git's own words."""


class TaskError(AutohypothesisError):
    """task.yaml is wrong; the message holds file, line and the nearest right name."""

    exit_code = 2


class ChangeError(AutohypothesisError):
    """A change cannot be applied, touches what it may not, or changes nothing."""


class ConflictError(ChangeError):
    """A patch was made against another text than the one it is to be applied to."""


class NothingNewError(ChangeError):
    """A change that changes nothing, or only what was tried before: there is nothing to run."""


class PreflightError(AutohypothesisError):
    """A change that can be seen to fail before it costs a run."""


class ProgramUnavailableError(AutohypothesisError):
    """A task's own program ended without a judgement, through no fault of the change it was given.

    Trying again may help: the machine failed, or the program said so itself.
    """


class LeaseError(AutohypothesisError):
    """The device is held by another process, or the lock folder cannot be used."""


class LaunchError(AutohypothesisError):
    """A training could not be started."""


class SettleError(AutohypothesisError):
    """A decision cannot be taken: nothing to compare with, or not yet finished."""


class FleetError(AutohypothesisError):
    """A fleet cannot be made, started or repaired; nothing of the user's was overwritten."""


class QueueError(AutohypothesisError):
    """A hypothesis is not in the state that a step begins with."""


class ProposerError(AutohypothesisError):
    """A proposer failed, or answered what cannot be read."""


class ToolError(AutohypothesisError):
    """A helper script that is not published, was changed, or fails its checks."""


class HubError(AutohypothesisError):
    """A hub cannot be reached, refuses, or answers what is no answer."""

    status = 0
    """HTTP status of a refusal; 0: there was no answer."""


class DeliveryError(AutohypothesisError):
    """An entry could not be delivered just now; it stays in the outbox."""

    reached = True
    """Whether the receiver answered: a hub that is down does not count as a try."""


class UndeliverableError(DeliveryError):
    """It was refused for good: to try again would change nothing."""


class SecretError(AutohypothesisError):
    """A text that is to leave this machine holds a secret; the message only names it."""


class UnsupportedSystemError(AutohypothesisError):
    """This operating system lacks what the engine stands on."""


RECOVERABLE_ERRORS = (
    AutohypothesisError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)
"""Errors that cost the step in which they are raised, never the process: a damaged file, a full
disk, or a fault of our own, which `describe` names as one."""


_MAX_FAULTS = 3


def faults_in(error: Any) -> str:
    """Return the first faults of pydantic's ValidationError on one line, each with its place."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in faults[:_MAX_FAULTS]
    ]
    more = f" (and {len(faults) - _MAX_FAULTS} more)" if len(faults) > _MAX_FAULTS else ""
    return "; ".join(part.removeprefix(": ") for part in parts) + more


def describe(error: BaseException) -> str:
    """Return the words for a person; of a fault of our own also its type and the line it is in."""
    if isinstance(error, (AutohypothesisError, OSError)):
        return str(error)
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"a fault of autohypothesis itself, please report it: {error!r}{place}"
