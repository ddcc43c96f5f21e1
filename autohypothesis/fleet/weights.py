"""Which saved weights are worth their disk.

A commit and its seed make the weights again, so only those are kept that are needed soon: of the
reference, the best, and runs that are not decided yet. The rest has a budget, so that a search of a
week does not fill a disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.records.history import best_kept, of_tag

DISK_BUDGET_BYTES = 20 << 30
"""Of all weights together; under it, a group that is being repeated keeps its own as well."""


def trim(project: Project, rows: Iterable[Mapping[str, Any]]) -> int:
    """Remove weights that are not needed; return the bytes that were freed.

    Args:
        rows: of the ledger, all tags; another tag's weights are left alone.
    """
    own = list(of_tag(rows, project.active()))
    reference, best = project.reference(), best_kept(own)
    needed = {  # what is damaged may be mended
        str(row["id"])
        for row in own
        if row is best or row.get("commit") == reference or row.get("status") == "damaged"
    }
    repeated = {str(row["replicates"]) for row in own if row.get("replicates")}
    decided = (str(row["id"]) for row in own if row.get("ordinal") is not None)
    sizes = {name: size for name in decided if (size := _size(project, name))}
    held = sum(size for name, size in sizes.items() if name in needed)
    freed = 0
    for name, size in sizes.items():
        if name in needed:
            continue
        if name in repeated and held + size <= DISK_BUDGET_BYTES:
            held += size
            continue
        with suppress(FileNotFoundError):  # another turn was faster
            project.layout.run(name).weights.unlink()
            freed += size
    return freed


def _size(project: Project, experiment_id: str) -> int:
    try:
        return project.layout.run(experiment_id).weights.stat().st_size
    except OSError:
        return 0
