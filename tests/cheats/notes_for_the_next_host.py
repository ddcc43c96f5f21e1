"""Tries to leave the rows that it was shown for the process that is asked about them: in files, in
shared memory, in a daemon. One that finds something says so by ending."""

import contextlib
import ctypes
import glob
import os
import sys
import tempfile

libc = ctypes.CDLL(None)


def build():
    places = {
        os.environ["HOME"],
        tempfile.gettempdir(),
        "/tmp",
        "/dev/shm",
        os.getcwd(),
        os.path.dirname(os.environ["HOME"]),
        os.path.dirname(__file__),
    }
    notes = [glob.glob(place + "/*note*") + glob.glob(place + "/*/*note*") for place in places]
    memory = libc.shmget(4711, 4096, 0o600)
    queue = libc.mq_open(b"/note", os.O_RDONLY)
    if any(notes) or memory >= 0 or queue >= 0:
        sys.exit(f"found a note: {notes} {memory} {queue}")
    for place in places:
        with contextlib.suppress(OSError), open(place + "/note", "w") as file:
            file.write("rows")
    libc.shmget(4711, 4096, 0o1600)
    libc.mq_open(b"/note", os.O_CREAT | os.O_RDWR, 0o600, None)
