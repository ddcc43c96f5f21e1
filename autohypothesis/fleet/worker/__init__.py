"""Training: one process per device, from claim to report."""
