"""Fits a line to eight points by gradient descent and prints how well."""

RATE = 0.01
STEPS = 20
MOMENTUM = 0.0

POINTS = [(x / 4, 3 * x / 4 - 1) for x in range(8)]

slope = offset = 0.0
speed = [0.0, 0.0]
for _ in range(STEPS):
    errors = [(slope * x + offset - y, x) for x, y in POINTS]
    gradient = [sum(e * x for e, x in errors) / 8, sum(e for e, _ in errors) / 8]
    speed = [MOMENTUM * speed[side] - RATE * gradient[side] for side in (0, 1)]
    slope, offset = slope + speed[0], offset + speed[1]

loss = sum((slope * x + offset - y) ** 2 for x, y in POINTS) / 8
print(f"loss: {loss:.6f}")
