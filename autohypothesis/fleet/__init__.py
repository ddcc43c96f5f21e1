"""Many iterations at once: rooms for each role, and sync, which turns bundles into the ledger."""
