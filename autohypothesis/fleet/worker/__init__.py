"""Who trains: one process per device, from claim to report."""
