"""One pass over research/runs and research/plans: what is there, and what changed since.

Whether a file changed is asked with one `lstat`; ten thousand bundles are a matter of a tenth of a
second. Nothing is opened here but what is new.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from autohypothesis.records.bundles import (
    ABSENT,
    MODELS,
    Bundle,
    Damage,
    read_content,
    read_document,
    read_folder,
)
from autohypothesis.records.files import is_utf8
from autohypothesis.records.ids import slug
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.rows import PAGE_LIMIT, Planned
from autohypothesis.schema import Plan

_FILES = tuple(name for name, _ in MODELS)
_RESULT_INODE = 3 * _FILES.index("result.json")
_NO_RUN = ABSENT * (len(_FILES) + 1)
_SETTLING_NS = 100_000_000
"""A file changed this recently may change again within the same tick of the file system's clock."""
LOOK_AGAIN = -1
"""A hash of integers is the same in every process, and never -1."""
_PAGE_BYTES = 1024 * 1024
_IS_ID = ID.fullmatch


NOT_UTF8 = "has a name that is not UTF-8, and is left alone; give it another name"


class Found(NamedTuple):
    """Where one experiment's records lie; None for what it has not got."""

    experiment_id: str
    run: str | None
    plan: str | None
    page: str | None


class Content(NamedTuple):
    """One experiment's records, read."""

    bundle: Bundle | None
    planned: Planned
    damage: list[Damage]
    signature: int
    """Of inode, time and size of every file; LOOK_AGAIN when one changed just now."""


def find(layout: Layout) -> tuple[dict[str, Found], list[Damage]]:
    """Every experiment that has a run folder or a plan, and what lies there and is neither."""
    damage: list[Damage] = []
    by_id = {_id(n): path for n, path in _names(layout.runs, damage, folders=True).items()}
    plans: dict[str, str] = {}
    pages: dict[str, str] = {}
    for name, path in _names(layout.plans, damage, folders=False).items():
        stem, _, suffix = name.rpartition(".")
        if suffix in ("json", "md"):
            key = stem if stem in by_id else _id(stem)
            (plans if suffix == "json" else pages)[key] = path
    found = {
        key: Found(key, by_id.get(key), plans.get(key), pages.get(key))
        for key in sorted(by_id.keys() | plans.keys())
    }
    return found, damage


def _id(name: str) -> str:
    return name if _IS_ID(name) else slug(name)


def _names(folder: Path, damage: list[Damage], *, folders: bool) -> dict[str, str]:
    """Name and path of each entry; a run must be a folder, and no link to one."""
    names: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not is_utf8(entry.name):
                    damage.append(Damage(entry.path, NOT_UTF8))
                    continue
                if folders and not entry.is_dir(follow_symlinks=False):
                    damage.append(Damage(entry.path, "is not the folder of a run"))
                    continue
                names[entry.name] = entry.path
    except FileNotFoundError:
        pass
    except OSError as error:
        damage.append(Damage(str(folder), f"cannot be listed: {error.strerror}"))
    return names


class Probe:
    """Asks for the signatures of all files that a row is made from, as `read` notes them.

    Relative to two open folders: the kernel then does not walk the same long path again and again.
    """

    def __init__(self, layout: Layout) -> None:
        self._folders = [_opened(layout.runs), _opened(layout.plans)]
        self._skip = [len(f"{layout.runs}/"), len(f"{layout.plans}/")]

    def close(self) -> None:
        for folder in self._folders:
            if folder is not None:
                os.close(folder)

    def __call__(self, found: Found) -> int:
        signatures: list[int] = []
        runs, plans = self._folders
        if found.run is None:
            signatures += _NO_RUN
        else:
            prefix, ask = found.run[self._skip[0] :] + "/", os.stat
            for name in _FILES:
                try:
                    status = ask(prefix + name, dir_fd=runs, follow_symlinks=False)
                    signatures += (status.st_ino, status.st_mtime_ns, status.st_size)
                except OSError:
                    signatures += ABSENT
            has_result = signatures[_RESULT_INODE]
            signatures += ABSENT if has_result else _signature(prefix + "shim.json", runs)
        for path in (found.plan, found.page):
            signatures += ABSENT if path is None else _signature(path[self._skip[1] :], plans)
        return hash(tuple(signatures))


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _signature(path: str, folder: int | None) -> tuple[int, int, int]:
    try:
        status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return ABSENT
    return status.st_ino, status.st_mtime_ns, status.st_size


def read(found: Found) -> Content:
    """All records of one experiment, whatever state they are in."""
    started = time.time_ns()
    bundle = read_folder(found.run) if found.run is not None else None
    damage = list(bundle.damage) if bundle else []
    signatures = list(bundle.signatures) if bundle else list(_NO_RUN)
    plan = page = None
    if found.plan is None:
        signatures += ABSENT
    else:
        plan = read_document(found.plan, Plan, damage, signatures)
    if found.page is None:
        signatures += ABSENT
    else:
        page = _read_page(found.page, damage, signatures)
    settling = max(signatures[1::3]) > started - _SETTLING_NS
    signature = LOOK_AGAIN if settling else hash(tuple(signatures))
    return Content(bundle, Planned(plan, page), damage, signature)


def _read_page(path: str, damage: list[Damage], signatures: list[int]) -> str | None:
    content = read_content(path, _PAGE_BYTES, damage, signatures)
    if content is None:
        return None
    try:
        return content.decode()[:PAGE_LIMIT]
    except UnicodeDecodeError as error:
        damage.append(Damage(path, f"is not UTF-8: {error.reason} at byte {error.start}"))
        return None
