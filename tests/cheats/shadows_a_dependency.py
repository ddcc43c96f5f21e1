"""Tries to have its scorer, or the host before it knows the candidate, import its own modules."""

import atexit
import sys

NAMES = "json", "numpy", "torch", "mmap", "secrets", "random", "select", "sitecustomize"


def leave():
    for name in NAMES:
        with open(name + ".py", "w") as file:
            file.write("""print('{"val_bpb": 0.1}', flush=True); import os; os._exit(0)""")


if __name__ == "__main__":
    atexit.register(leave)


def build():
    import os
    import secrets

    found = [sys.modules[name] for name in NAMES if name in sys.modules]
    here = os.path.dirname(__file__)
    assert secrets in found and len(found) > 4
    assert not any(str(getattr(module, "__file__", "")).startswith(here) for module in found)
