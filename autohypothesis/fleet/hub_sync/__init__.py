"""Reports to a hub and news from it; it knows no hub, only seams to one."""
