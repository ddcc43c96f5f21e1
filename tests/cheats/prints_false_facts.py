"""Tries to look smaller and quicker than it is: what it prints of itself is made up."""

import atexit

DEPTH = 4

if __name__ == "__main__":
    for fact in ("depth: 99", "seed: 7", "num_params_M: 1000", "training_seconds: 0.001"):
        atexit.register(print, fact)
