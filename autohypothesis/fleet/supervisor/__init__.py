"""What keeps a fleet alive: its processes, how they start and leave, and the snapshots."""
