"""Ignores SIGTERM, and so do its children."""

import os
import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        time.sleep(60)
print("deaf", flush=True)
time.sleep(60)
