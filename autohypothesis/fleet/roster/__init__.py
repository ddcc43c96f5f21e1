"""The members of a fleet: devices, worktrees, prompts, and what earlier searches left."""
