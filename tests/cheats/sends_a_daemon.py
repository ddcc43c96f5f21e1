"""Tries to exchange its weights after its end, by a process that outlives it."""

import os
import time

if __name__ == "__main__":
    training = os.getpid()
    if os.fork() == 0:
        os.setsid()
        while os.getppid() == training:
            time.sleep(0.1)
        time.sleep(0.5)
        with open(os.environ["AUTOHYPOTHESIS_RUN_DIR"] + "/weights.pt", "wb") as file:
            file.write(b"others")
        os._exit(0)
