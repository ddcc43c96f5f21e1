"""Holds argv[1] MiB for argv[2] seconds."""

import sys
import time

data = b"x" * (int(sys.argv[1]) << 20)
time.sleep(float(sys.argv[2]))
print(f"val_bpb: {len(data) and 1.5}")
