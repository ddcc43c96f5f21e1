"""Fills the disk: with its own file (argv[1] == file), or by talking."""

import os
import sys

run_dir = os.environ["AUTOHYPOTHESIS_RUN_DIR"]
if sys.argv[1] == "file":
    with open(os.path.join(run_dir, "weights.pt"), "wb") as file:
        while True:
            file.write(b"x" * 65536)
            file.flush()
while True:
    os.write(1, b"a line\n" * 1000)
