"""Which distributions a Python has installed, seen from outside and without starting it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from autohypothesis.errors import LaunchError

_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")
_WHERE = (
    "import json, site, sys;"
    "print(json.dumps([p for p in sys.path if p] + [site.getusersitepackages()]))"
)
TIMEOUT_S = 30.0


@lru_cache(maxsize=32)
def site_folders(python: str = sys.executable) -> tuple[Path, ...]:
    """Where `python` looks for installed distributions, its own and the user's.

    Raises:
        LaunchError: it cannot be started.
    """
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        folders = [*sys.path, site.getusersitepackages()]
    else:
        folders = _ask(python)
    found = (Path(folder) for folder in folders if os.path.isabs(folder))
    return tuple(dict.fromkeys(path for path in found if _is_site(path)))


def _is_site(path: Path) -> bool:
    return path.name in ("site-packages", "dist-packages")


def _ask(python: str) -> list[str]:
    try:
        answer = subprocess.run(
            [python, "-c", _WHERE],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd="/",
            start_new_session=True,
        )
        return [str(folder) for folder in json.loads(answer.stdout)]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise LaunchError(
            f"{python} does not start: {error}", hint="set run.command in the task file"
        ) from error


def installed(folders: Iterable[str]) -> dict[str, int]:
    """Metadata name, with its folder -> when the list of its files was written, in nanoseconds."""
    found = {}
    for folder in folders:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # the user's own folder mostly does not exist
        for entry in entries:
            if entry.name.endswith(_METADATA):
                found[entry.path] = _written(entry)
    return found


def version_of(name: str, found: Iterable[str]) -> str:
    """The version of the distribution `name` among metadata folders; empty when it is not there."""
    for path in found:
        own, _, rest = os.path.basename(path).partition("-")
        if own.lower() == name and rest.endswith(_METADATA[:2]):
            return rest.removesuffix(".dist-info").removesuffix(".egg-info")
    return ""


def _written(entry: os.DirEntry[str]) -> int:
    for path in (os.path.join(entry.path, "RECORD"), entry.path):
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            continue
    return 0


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """What was installed, removed or installed again, in words."""
    words = []
    for path in sorted(before.keys() | after.keys()):
        name = os.path.basename(path)
        if path not in before:
            words.append(f"{name} was installed in {os.path.dirname(path)}")
        elif path not in after:
            words.append(f"{name} was removed from {os.path.dirname(path)}")
        elif before[path] != after[path]:
            words.append(f"{name} in {os.path.dirname(path)} was installed again")
    return words
