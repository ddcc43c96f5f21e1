"""The state and the results of a fleet, gathered from files."""
