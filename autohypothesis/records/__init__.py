"""Files on disk: layout, ids, whole-file writes, locks, bundles, and the fold."""
