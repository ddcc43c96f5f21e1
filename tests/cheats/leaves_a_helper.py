"""Tries to be scored with code that its training wrote: beside it, at home, in /tmp, in out/."""

import contextlib
import glob
import os
import sys
import tempfile

PLACES = (
    os.path.dirname(os.path.abspath(__file__)),
    os.environ["HOME"],
    os.environ.get("AUTOHYPOTHESIS_RUN_DIR", "/tmp"),
    tempfile.gettempdir(),
    "/tmp",
    "/dev/shm",
)

if __name__ == "__main__":
    for place in PLACES:
        with contextlib.suppress(OSError), open(place + "/helper_of_a_cheat.py", "w") as file:
            file.write("found = True")


def build():
    left = [path for place in PLACES for path in glob.glob(place + "/*helper_of_a_cheat*")]
    assert not left, left
    sys.path[:0] = PLACES
    with contextlib.suppress(ImportError):
        import helper_of_a_cheat

        sys.exit(f"imported {helper_of_a_cheat}")
