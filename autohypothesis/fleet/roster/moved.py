"""A repository that was moved or copied to another folder, with its records and worktrees.

The manifest names the folder that it was written in. Worktrees and their repository name each other
by absolute paths. The first command that writes, while nothing of the search is at work, puts both
right; in a copy nothing of the original is touched.
"""

from __future__ import annotations

from pydantic import ValidationError

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.place import find_move
from autohypothesis.fleet.live.presence import list_active, read_manifest
from autohypothesis.fleet.roster import prompts
from autohypothesis.records.checkouts import repair_links
from autohypothesis.records.files import read_bytes, to_json, write_atomic
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Manifest


def settle_in(project: Project) -> str:
    """Have worktrees, manifest and prompts name this folder; return what was done, or "".

    While a process of the search is at work nothing is done: it knows the folder by another name.
    """
    repository, layout = project.repository, project.layout
    move = find_move(repository, layout)
    if move is None or list_active(layout):
        return ""
    how = str(move)  # as it is before anything is mended
    with hold(layout, "fleet", doing="following a move"), repository.lock():
        others = move.former is not None and not move.former.exists()
        repair_links(layout.root, repository.common_dir, move.worktrees, others=others)
        if move.former is not None:  # last: a kill before this leaves the move to be found again
            content = manifest_here(layout, read_bytes(layout.manifest))
            write_atomic(layout.manifest, content)
    manifest = read_manifest(layout)
    if manifest is not None and manifest.workers:
        prompts.write_all(project, manifest)
    return f"{how}: its worktrees and its manifest are put right"


def manifest_here(layout: Layout, content: bytes) -> bytes:
    """Return a manifest with the paths of this repository: it may be from another place."""
    try:
        former = to_json(Manifest.model_validate_json(content).repository_root)[1:-1]
    except ValidationError:  # damaged: it is kept as it is
        return content
    if not former:
        return content
    text, own = content.decode(), to_json(str(layout.root))[1:-1]
    return text.replace(f'"{former}"', f'"{own}"').replace(f'"{former}/', f'"{own}/').encode()
