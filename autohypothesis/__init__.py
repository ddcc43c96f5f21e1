"""Autohypothesis: a fleet of research agents whose results can be believed in the morning."""

__version__ = "0.1.0"
