"""Tries to be taken at its word: it prints a score that its weights do not have."""

import atexit

if __name__ == "__main__":
    atexit.register(print, "val_bpb: 0.5")
