"""Says that it is there, and ends when somebody has made the file `go` beside."""

import os
import time

run_dir = os.environ["AUTOHYPOTHESIS_RUN_DIR"]
with open(os.path.join(run_dir, "pid.part"), "w") as file:
    file.write(str(os.getpid()))
os.rename(os.path.join(run_dir, "pid.part"), os.path.join(run_dir, "pid"))
while not os.path.exists(os.path.join(run_dir, "go")):
    time.sleep(0.01)
print("---\nval_bpb: 1.25", flush=True)
