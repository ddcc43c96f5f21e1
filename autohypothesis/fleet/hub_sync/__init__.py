"""What a fleet reports to a hub and hears from it; it knows no hub, only seams to one."""
