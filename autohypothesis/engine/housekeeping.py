"""Keeping a repository quick after thousands of experiments. git's own gc is off, and stays off."""

from __future__ import annotations

import os

from autohypothesis.records.git import EXPERIMENTS, Repository

LOOSE_REFS = 200
"""Each is a file that every listing of refs opens."""


def pack_when_due(repository: Repository) -> bool:
    """Pack refs and loose objects, under the repository's lock, every `LOOSE_REFS` experiments."""
    try:
        loose = len(os.listdir(repository.common_dir / EXPERIMENTS))
    except FileNotFoundError:
        return False
    if loose < LOOSE_REFS:
        return False
    repository.pack_refs()
    repository.pack_objects()
    return True
