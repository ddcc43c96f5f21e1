"""Output that is not text, or not lines."""

import os
import sys

if sys.argv[1] == "bytes":
    os.write(1, b"\xff\xfe\x00 broken \xc3\nval_bpb: 1.5\n")
elif sys.argv[1] == "returns":
    for number in range(1, 5):
        os.write(
            1, b"\rstep %05d (%d.0%%) | loss: %d.5 | tok/sec: 9" % (number, 25 * number, number)
        )
    os.write(1, b"\n---\nval_bpb: 1.5\n")
elif sys.argv[1] == "twice":
    os.write(1, b"---\nval_bpb: 0.5\nnum_steps: 1\n")
    os.write(1, b"step 00009 (99.0%) | loss: 1.0 |\n---\nval_bpb: 1.5\nnum_steps: 2\n")
elif sys.argv[1] == "unended":
    os.write(1, b"---\nval_bpb: 1.5")
elif sys.argv[1] == "endless":
    for _ in range(64):
        os.write(1, b"x" * (1 << 20))
    os.write(1, b"\nval_bpb: 1.5\n")
