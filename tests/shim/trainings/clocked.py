"""Burns CPU time under a budget clock that writes clock.jsonl; argv[1] says how it cheats.

argv: manner, budget in seconds, clock.
"""

import json
import os
import sys
import time

manner, budget, clock = sys.argv[1], float(sys.argv[2]), sys.argv[3]
path = os.path.join(os.environ["AUTOHYPOTHESIS_RUN_DIR"], "clock.jsonl")
real_cpu, real_monotonic = time.process_time, time.monotonic
factor = 0.5 if manner == "slow" else 1.0
if manner == "slow":
    # A clock that runs at half speed makes twice the time out of a budget.
    time.process_time = lambda: real_cpu() * factor
    time.monotonic = lambda: real_monotonic() * factor


def now() -> float:
    return time.process_time() if clock == "cpu" else time.monotonic()


def note(event: str, **more: object) -> None:
    line = {"event": event, "clock": clock, "wall": time.time(), "monotonic": time.monotonic()}
    line |= {"cpu": time.process_time(), "budget_seconds": budget, **more}
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


if manner == "early":
    note("early_draw")
if manner == "child" and os.fork() == 0:
    while real_cpu() < 10:
        pass
if manner != "silent":
    note("start")
begin = now()
while now() - begin < budget:
    pass
if manner not in ("silent", "unstopped"):
    note("stop", elapsed=now() - begin)
print(f"---\nval_bpb: 1.5\ntraining_seconds: {budget}")
