"""Prints argv[1] as its last words and exits 1, or ends itself with the signal argv[2]."""

import os
import signal
import sys

print(sys.argv[1], flush=True)
if len(sys.argv) > 2:
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
sys.exit(1)
