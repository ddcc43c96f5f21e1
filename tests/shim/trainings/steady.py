"""Says that it is there, then prints progress for argv[1] seconds."""

import os
import sys
import time

run_dir = os.environ["AUTOHYPOTHESIS_RUN_DIR"]
seconds = float(sys.argv[1])
with open(os.path.join(run_dir, "pid.part"), "w") as file:
    file.write(str(os.getpid()))
os.rename(os.path.join(run_dir, "pid.part"), os.path.join(run_dir, "pid"))
begin = time.monotonic()
step = 0
while (used := time.monotonic() - begin) < seconds:
    step += 1
    share = 100 * used / seconds
    print(f"step {step:05d} ({share:.1f}%) | loss: {9 / step:.6f} | tok/sec: 1,000", flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.01)
print("---\nval_bpb: 1.25", flush=True)
