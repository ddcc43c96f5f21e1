"""Prints a progress line and a summary, and is done."""

print("step 00001 (50.0%) | loss: 2.990000 | dt: 3ms | tok/sec: 1,700,000 | remaining: 1s")
print("step 00002 (100.0%) | loss: 2.5 | bpb: 1.8312 | tok/sec: 1,600,000 | remaining: 0s")
print("---\nval_bpb:          0.997900\nnum_steps:        953\ndepth:            8")
