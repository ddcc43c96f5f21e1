"""Helper scripts: requests, checks, the registry, the launcher, the tool-builder, a catalogue."""
