"""Ideas on their way: the queue whose states are folders, the inbox, and the brief."""
