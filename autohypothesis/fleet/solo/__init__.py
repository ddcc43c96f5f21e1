"""A search on one machine by one process: a fleet of one."""
