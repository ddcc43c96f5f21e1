"""Tries to train longer than its budget: it goes on when it has stopped the clock."""

import atexit
import time


def work():
    """Six budgets of it."""
    until = time.process_time() + 6
    while time.process_time() < until:
        pass


if __name__ == "__main__":
    atexit.register(work)
