"""Who belongs to a fleet: devices, worktrees, prompts, and what earlier searches left."""
