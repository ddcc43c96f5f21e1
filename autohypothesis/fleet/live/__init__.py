"""What the processes of a fleet know of each other while they live, and what binds them all."""
