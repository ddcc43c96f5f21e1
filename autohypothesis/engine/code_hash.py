"""Tells a change of the code from a change of the settings, by two hashes of the artifacts.

Runs with one code hash differ in their settings alone, so one can say what a setting did, whichever
way the change was written down. A run with another one says nothing about a setting.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from autohypothesis.engine.constants import blanked, settable_names
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError
from autohypothesis.records.git import Repository


class ArtifactHashes(NamedTuple):
    """What the artifacts of a commit are.

    Attributes:
        tree: hash of paths and contents; equal: the same files.
        code: hash of the same without the values of the settings.
        settings: the names of those, in lower case: `code` and their values say everything.
    """

    tree: str
    code: str
    settings: frozenset[str]


def tree_hash(repository: Repository, task: Task, commit: str) -> str:
    """Return the SHA-256 of the artifacts of a commit or tree: their paths and contents.

    Raises:
        GitError: there is no such commit.
    """
    entries = repository.entries(commit)
    return _digest((path, entries[path].blob) for path in sorted(task.artifacts_in(entries)))


def artifact_hashes(
    repository: Repository, task: Task, commit: str, settings: Mapping[str, Any]
) -> ArtifactHashes:
    """Return the hashes of the artifacts of a commit or tree.

    Args:
        settings: as config.json records them. A constant that they lack, or that is in two files,
            is code.

    Raises:
        GitError: there is no such commit.
    """
    entries = repository.entries(commit)
    paths = sorted(task.artifacts_in(entries))
    sources = {path: repository.show_file(commit, path) for path in paths if path.endswith(".py")}
    homes: Counter[str] = Counter()
    for source in sources.values() if len(sources) > 1 else ():
        with suppress(ChangeError):
            homes.update({name.lower() for name in settable_names(source)})
    known = {name: value for name, value in settings.items() if homes[name] < 2}
    blank, names = {}, set[str]()
    for path, source in sources.items():
        with suppress(ChangeError):  # a text that cannot be read is code as a whole
            content, found = blanked(source, known)
            blank[path] = hashlib.sha256(content).hexdigest()
            names |= {name.lower() for name in found}
    return ArtifactHashes(
        _digest((path, entries[path].blob) for path in paths),
        _digest((path, blank.get(path, entries[path].blob)) for path in paths),
        frozenset(names),
    )


def _digest(parts: Iterable[tuple[str, str]]) -> str:
    named = "".join(f"{path}\0{content}\0" for path, content in parts)
    return hashlib.sha256(os.fsencode(named)).hexdigest()
