"""Files of the user's checkout that are in no commit, as git finds them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from autohypothesis.records.git import TIMEOUT_S
from autohypothesis.records.git_call import call


def untracked(root: Path, *, leave_out: Collection[str], patterns: Sequence[str] = ()) -> list[str]:
    """Untracked files and folders below `root`, ignored or not; a folder ends in a slash.

    A folder without any tracked file stands for all that is in it, and is not read.

    Args:
        leave_out: names in `root` that are not looked at.
        patterns: in the syntax of .gitignore; with any, only what they match.
    """
    tops = sorted(set(os.listdir(root)) - {".git", *leave_out})
    if not tops:
        return []
    words = "--literal-pathspecs ls-files -z --others --directory"
    with tempfile.NamedTemporaryFile(prefix="autohypothesis-patterns-") as file:
        args = ["--no-empty-directory", "--", *tops]
        if patterns:
            file.write(os.fsencode("\n".join([*patterns, ""])))
            file.flush()
            args = ["--ignored", f"--exclude-from={file.name}", "--", *tops]
        answer = call(words, args, root, {}, stdin=b"", timeout=TIMEOUT_S, accept=(0,))
    return _outermost(answer.records)


def _outermost(listed: Sequence[str]) -> list[str]:
    """`listed` without what is inside of a folder that is listed itself."""
    found: list[str] = []
    for path in sorted(listed):
        if not (found and found[-1].endswith("/") and path.startswith(found[-1])):
            found.append(path)
    return found
