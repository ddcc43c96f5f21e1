"""Many iterations at once. So far: sync, which turns bundles into the ledger."""
