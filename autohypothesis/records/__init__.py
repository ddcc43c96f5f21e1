"""Files on disk: layout, ids, whole-file writes, locks, bundles, the fold, the ledger and git."""
