"""Helper scripts that ship with the project: published, never imported; each stands alone."""
