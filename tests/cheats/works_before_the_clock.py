"""Tries to train longer than its budget: it does the work before it starts the clock."""

import time


def work():
    """Six budgets of it."""
    until = time.process_time() + 6
    while time.process_time() < until:
        pass


if __name__ == "__main__":
    work()
