"""Prints argv[1] MiB of lines in blocks, a progress line in each, and a summary."""

import os
import sys

line = b"some line of a log that nobody will ever read, but somebody has to store\n"
block = line * ((1 << 20) // len(line))
total = int(sys.argv[1])
os.write(1, b"first line\n")
for number in range(total):
    rest = memoryview(
        block + b"step %05d (%.1f%%) | loss: 1.0 |\n" % (number, 100 * number / total)
    )
    while rest:
        rest = rest[os.write(1, rest) :]
os.write(1, b"---\nval_bpb: 1.125\n")
