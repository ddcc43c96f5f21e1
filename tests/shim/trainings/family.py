"""Leaves a daemon behind: double fork, session of its own. argv: CPU seconds it burns, seconds it
then sleeps, and whether it closes what it inherited."""

import os
import sys
import time

burn, sleep, close = float(sys.argv[1]), float(sys.argv[2]), "close" in sys.argv[3:]
run_dir = os.environ["AUTOHYPOTHESIS_RUN_DIR"]


def say(name: str, text: str) -> None:
    with open(os.path.join(run_dir, name + ".part"), "w") as file:
        file.write(text)
    os.rename(os.path.join(run_dir, name + ".part"), os.path.join(run_dir, name))


if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if close:
            os.closerange(0, 64)
        say("daemon", str(os.getpid()))
        while time.process_time() < burn:
            pass
        say("burnt", "yes")
        time.sleep(sleep)
    os._exit(0)
os.wait()
if "wait" in sys.argv[3:]:
    while not os.path.exists(os.path.join(run_dir, "burnt")):
        time.sleep(0.01)
if "stay" in sys.argv[3:]:
    say("pid", str(os.getpid()))
    time.sleep(60)
print("---\nval_bpb: 1.5")
