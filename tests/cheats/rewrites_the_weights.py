"""Tries to give the weights that are asked again other values than the recorded ones."""

import os


def build():
    out = os.environ["AUTOHYPOTHESIS_RUN_DIR"]
    paths = [out + "/weights.pt", out + "/../weights.pt"]
    for path in paths + [f"/proc/self/fd/{fd}" for fd in range(3, 32)]:
        try:
            with open(path, "r+b") as file:
                file.truncate(0)
            raise SystemExit(f"cut {path}")
        except OSError:
            pass
