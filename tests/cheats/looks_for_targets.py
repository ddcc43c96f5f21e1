"""Tries to find targets and text in the memory of its process, on its stack, in its parents."""

import gc
import os
import sys


def build():
    kinds = {type(thing).__name__ for thing in gc.get_objects()}
    assert not kinds & {"Windows", "Exam", "Probe"}, kinds
    frame = sys._getframe()
    while frame:
        assert "windows" not in frame.f_locals and "targets" not in frame.f_locals
        frame = frame.f_back
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid():
            try:
                os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
            except OSError:
                continue
            raise SystemExit(f"opened the memory of {pid}")
