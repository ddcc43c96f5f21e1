"""The processes of a fleet, how they start and leave, and the snapshots."""
