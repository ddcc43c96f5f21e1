"""Runs one helper script, and refuses its writes below a protected folder; a program, no module.

    python guard.py SHA256 FOLDER SCRIPT [ARGS...]

Exactly the bytes that have the hash are run, whatever happens to the file meanwhile. A write that
was tried is refused, named on stderr, and ends in exit code `EXIT_WROTE` even if the script took no
notice of it. This holds for Python code in this process; the sandbox around it, where there is
one, holds for everything.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: names in it would hide modules of the standard library

import os
from hashlib import sha256
from types import ModuleType
from typing import Any

EXIT_WROTE = 77
EXIT_CHANGED = 78
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NO_FOLDER = 99
_CHANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.setxattr": ((0, _NO_FOLDER),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, _NO_FOLDER),),
    "os.utime": ((0, 3),),
}
"""Audit event -> which of its words are paths that change, and the folders they are seen from."""
_ITSELF = frozenset(f"os.{name}" for name in ("link", "remove", "rename", "rmdir", "symlink"))
"""Events that change a link rather than what it points to."""


def main() -> None:
    digest, folder, script = sys.argv[1:4]
    with open(script, "rb") as file:
        source = file.read()
    if sha256(source).hexdigest() != digest:
        print(f"{script} is not the file that was published", file=sys.stderr)
        sys.exit(EXIT_CHANGED)
    protected, refused = os.path.realpath(folder), list[str]()

    def hook(event: str, words: tuple[Any, ...]) -> None:
        for real in _changed(event, words):
            if real == protected or real.startswith(protected + os.sep):
                refused.append(real)
                os.write(2, f"refused: it writes to {real}\n".encode("utf-8", "replace"))
                raise PermissionError(f"a helper script may not write to {real}")

    sys.addaudithook(hook)
    sys.argv = sys.argv[3:]
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = script
    try:
        exec(compile(source, script, "exec"), module.__dict__)
    finally:
        if refused:
            sys.stdout.flush()
            os._exit(EXIT_WROTE)


def _changed(event: str, words: tuple[Any, ...]) -> list[str]:
    """Return the real paths that an audited call changes."""
    if event == "open":
        writes = isinstance(words[2], int) and words[2] & _WRITING
        return _real(words[0], -1, follow=True) if writes else []
    found = []
    for path, folder in _CHANGES.get(event, ()):
        seen_from = words[folder] if folder < len(words) else -1
        found += _real(words[path], seen_from, follow=event not in _ITSELF)
    return found


def _real(path: object, folder: int, *, follow: bool) -> list[str]:
    """Return `path` as seen from the open `folder`; nothing where that cannot be known."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return []
    name = os.fsdecode(path)
    if folder >= 0 and not os.path.isabs(name):
        try:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        except OSError:
            return []
    if follow:
        return [os.path.realpath(name)]
    parent, last = os.path.split(name.rstrip(os.sep) or os.sep)
    return [os.path.join(os.path.realpath(parent), last)]


if __name__ == "__main__":
    main()
