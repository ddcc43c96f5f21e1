"""Confine this process, then become a command.

    python -I -S -c "..." FOLDER POLICY COMMAND [ARG...]

The words of `-c` are in sandbox.py, and import this file from FOLDER; POLICY is the JSON that
`_policy` makes there. What is set here holds for the command and for all that it ever starts, and
cannot be taken back: no new privileges, no capability but the one that root needs to write to
folders of other users, Landlock for files, TCP, signals and abstract sockets, seccomp for the
system calls that Landlock does not see. Standard library only, since it starts in the way of every
run. Exits with `FAILED` and one line on stderr where it cannot keep its word.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct

TYPE_CHECKING = False  # the module that has it costs 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, NoReturn

FAILED = 125

# From linux/landlock.h; the numbers of the system calls are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALL_ABI_1 = (1 << 13) - 1
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_SINCE = ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_READ = EXECUTE | READ_FILE | READ_DIR
_TCP = 0b11  # bind and connect
_SCOPED = 0b11  # abstract sockets and signals

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 38, 22, 24
_CAP_DAC_OVERRIDE, _CAP_LAST = 1, 63

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> NoReturn:
    policy, command = json.loads(argv[1]), argv[2:]
    try:
        if policy.get("parent"):
            die_with(int(policy["parent"]))
        if policy.get("alive"):
            die_without(int(policy["alive"]))
        if policy.get("confine"):
            confine(policy)
    except OSError as error:
        _give_up(f"this process cannot be confined: {error}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        _give_up(f"cannot start {command[0]!r}: {error.strerror}")


def _give_up(words: str) -> NoReturn:
    os.write(2, f"confine: {words}\n".encode("utf-8", "replace"))
    os._exit(FAILED)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, and end now if it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(FAILED)


def die_without(pipe: int) -> None:
    """End now if the other end of `pipe` is closed; close this end otherwise.

    Inside of bubblewrap the parent cannot be seen. It may have ended before bubblewrap asked the
    kernel to be ended with it.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if poll.poll(0):
        os._exit(FAILED)
    os.close(pipe)


def confine(policy: dict[str, Any]) -> None:
    """Set everything that `policy` asks for on this process.

    Raises:
        OSError: the kernel refuses one of them.
    """
    if policy.get("drop_capabilities"):
        _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if policy.get("landlock"):
        _landlock(policy)
    _seccomp(
        sockets=not policy.get("close_sockets"),
        shared=not policy.get("close_shared"),
        notes=not policy.get("close_notes"),
    )


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel has; 0 where it has none."""
    version = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(int(version), 0)


def _prctl(option: int, value: int, more: Any = 0) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), more, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _drop_capabilities() -> None:
    """Keep only the right to pass by the modes of files: those Landlock decides on.

    Without it root in a container could not write to a folder that belongs to the user outside.
    """
    if os.geteuid() != 0:
        return
    for number in range(_CAP_LAST + 1):
        if number != _CAP_DAC_OVERRIDE and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # past the last one that this kernel knows, or not allowed to
    kept = 1 << _CAP_DAC_OVERRIDE
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    words = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    if _libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _landlock(policy: dict[str, Any]) -> None:
    abi = landlock_abi()
    if not abi:
        raise OSError(38, "the kernel has no Landlock")
    every = ALL_ABI_1 | sum(bit for since, bit in _SINCE if abi >= since)
    tcp = _TCP if abi >= 4 and policy.get("close_sockets") else 0
    scoped = _SCOPED if abi >= 6 else 0
    fields = (every, tcp, scoped)[: 1 if abi < 4 else 2 if abi < 6 else 3]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _libc.syscall(
        CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
    )
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for path in visible(policy["read"], policy["hidden"]):
        _allow(ruleset, path, _READ & every)
    for path in policy["listed"]:
        _allow(ruleset, path, READ_DIR)
    for path in (*visible(policy["write"], policy["protected"]), *policy["private"]):
        _allow(ruleset, path, every)
    for path in policy["use"]:
        _allow(ruleset, path, (READ_FILE | WRITE_FILE | READ_DIR | TRUNCATE | IOCTL_DEV) & every)
    for path in policy["fill"]:
        _allow(ruleset, path, (READ_FILE | WRITE_FILE | TRUNCATE) & every)
    if _libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint(0)) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    """Grant `access` beneath `path`; nothing where nothing is there."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, fd)
        if access and _libc.syscall(ADD_RULE, ruleset, 1, rule, ctypes.c_uint(0)) != 0:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    finally:
        os.close(fd)


def visible(roots: Iterable[str], hidden: Iterable[str]) -> Iterator[str]:
    """Yield the largest folders and files below `roots` that have nothing hidden in them.

    Landlock grants and never denies: around what is hidden each neighbour is granted by itself.
    A root that lies below something hidden is visible all the same.
    """
    hidden = {path.rstrip("/") or "/" for path in hidden}
    for path in (root.rstrip("/") or "/" for root in roots):
        below = path if path == "/" else f"{path}/"
        inside = {name for name in hidden if name.startswith(below) and name != path}
        if not inside:
            yield path
            continue
        try:
            children = {f"{below}{name}" for name in os.listdir(path)} - inside
        except OSError:
            continue
        # The target of a link is granted where it lies, or it is not to be seen.
        yield from visible((name for name in children if not os.path.islink(name)), inside)


_ARCHITECTURES = {
    # machine: audit number, socket, prlimit64, (keyrings),
    # (System V memory, semaphores and queues, POSIX queues, io_uring),
    # (modes, times and extended attributes of files)
    "x86_64": (
        0xC000003E, 41, 302, (248, 249, 250), (29, 30, 64, 65, 68, 69, 70, 240, 425),
        (90, 91, 268, 452, 132, 235, 261, 280, 188, 189, 190, 463),
    ),
    "aarch64": (
        0xC00000B7, 198, 261, (217, 218, 219), (194, 196, 190, 193, 186, 188, 189, 180, 425),
        (52, 53, 452, 88, 5, 6, 7, 463),
    ),
}  # fmt: skip
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_AF_UNIX, _AF_NETLINK = 1, 16


def _seccomp(*, sockets: bool, shared: bool, notes: bool) -> None:
    """Refuse keyrings and limits of other processes; and where it is not granted, sockets of every
    kind but local ones, what is shared with all processes of a user, and notes on files.

    On other architectures nothing is refused here, and `docs/trust.md` says what that leaves open.
    """
    known = _ARCHITECTURES.get(os.uname().machine)
    if known is None:
        return
    audit, socket, prlimit, keyrings, common, attributes = known
    refused = keyrings + (() if shared else common) + (() if notes else attributes)
    code = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_LOAD, 0, 0, 0),  # its number
    ]
    if audit == 0xC000003E:
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [
        (_EQUAL, 0, 3, prlimit),
        (_LOAD, 0, 0, 16),  # its first argument: the process, 0 for this one
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_LOAD, 0, 0, 0),
    ]
    if not sockets:
        code += [
            (_EQUAL, 0, 4, socket),
            (_LOAD, 0, 0, 16),  # its first argument: the family of the socket
            (_EQUAL, 2, 0, _AF_UNIX),
            (_EQUAL, 1, 0, _AF_NETLINK),
            (_RETURN, 0, 0, _ERRNO | _EAFNOSUPPORT),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    _install(b"".join(struct.pack("=HBBI", *line) for line in code))


def _install(program: bytes) -> None:
    held = ctypes.create_string_buffer(program, len(program))
    pointer = ctypes.cast(held, ctypes.c_void_p).value
    filter_of = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, pointer))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filter_of))
