"""Sharing between machines: a server that one lab runs, and the client that every fleet has."""
