"""How a fleet stands and what it did, gathered from files for whoever looks."""
