"""Forks without end; every process sleeps for 20 s and goes. 3,000 processes, whatever happens.

argv[1] == tree: each child forks as well. argv[1] == threads: one process with 200 threads.
argv[2]: how many processes at most.
"""

import os
import sys
import threading
import time

manner, most = sys.argv[1], int(sys.argv[2])
print("a bomb", flush=True)
if manner == "threads":
    for _ in range(most):
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
    time.sleep(20)
depth, made = 0, 0
while made < most and (manner != "tree" or depth < 11):  # 2 ** 11 is under 3,000
    made += 1
    depth += manner == "tree"
    try:
        if os.fork() == 0 and manner != "tree":
            break
    except OSError:
        time.sleep(0.05)
time.sleep(20)
