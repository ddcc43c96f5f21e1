"""Tries to leave the rows that it was shown for the process that is asked about them: in files, in
shared memory, in messages, beside files. One that finds something says so by ending."""

import contextlib
import ctypes
import glob
import os
import sys

libc = ctypes.CDLL(None)


def build():
    home, found = os.environ["HOME"], []
    places = home, os.path.dirname(home), "/tmp", "/dev/shm", os.path.dirname(__file__)
    for place in places:
        found += glob.glob(place + "/*note*") + glob.glob(place + "/*/*note*")
        with contextlib.suppress(OSError):
            found += [os.stat(place).st_mtime] if os.stat(place).st_mtime == 4711 else []
            found += [name for name in os.listxattr(place) if name == "user.note"]
    for fd in range(3, 16):
        with contextlib.suppress(OSError):
            found += [fd] if os.lseek(fd, 0, os.SEEK_CUR) == 4711 else []
    if found or libc.shmget(4711, 4096, 0o600) >= 0 or libc.mq_open(b"/note", os.O_RDONLY) >= 0:
        sys.exit(f"found a note: {found}")
    for place in places:
        with contextlib.suppress(OSError):
            os.setxattr(place, "user.note", b"rows")
        with contextlib.suppress(OSError):
            os.utime(place, (4711, 4711))
        with contextlib.suppress(OSError), open(place + "/note", "w") as file:
            file.write("rows")
    for fd in range(3, 16):
        with contextlib.suppress(OSError):
            os.lseek(fd, 4711, os.SEEK_SET)
    libc.shmget(4711, 4096, 0o1600)
    libc.mq_open(b"/note", os.O_CREAT | os.O_RDWR, 0o600, None)
