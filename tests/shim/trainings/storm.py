"""Forks faster than anyone kills: every child forks another and ends."""

import os
import time

print("storm", flush=True)
for _ in range(4):
    if os.fork() == 0:
        while True:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(0.001)
time.sleep(60)
