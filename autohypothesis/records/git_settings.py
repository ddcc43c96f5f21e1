"""How every call of git is made: what it may not do, who it is, and what it must not see."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SETTINGS = (
    "gc.auto=0",
    "maintenance.auto=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "core.splitIndex=false",
    "core.filesRefLockTimeout=5000",
    "core.packedRefsTimeout=5000",
    "commit.gpgSign=false",
    "merge.verifySignatures=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
)
OPTIONS = tuple(word for setting in _SETTINGS for word in ("-c", setting))
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "GIT_AUTHOR_NAME": "Autohypothesis",
    "GIT_AUTHOR_EMAIL": "fleet@autohypothesis.invalid",
    "GIT_COMMITTER_NAME": "Autohypothesis",
    "GIT_COMMITTER_EMAIL": "fleet@autohypothesis.invalid",
}
_INHERITED = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"}
"""Which configuration and which git: the user's choice. All else is one caller's state."""


def without_callers_state(ours: Mapping[str, str]) -> list[str]:
    """`env -u NAME ...` where it is needed: GitPython hands git all of our environment."""
    foreign = sorted(
        name
        for name in os.environ
        if name.startswith("GIT_")
        and not name.startswith("GIT_PYTHON_")
        and name not in _INHERITED
        and name not in ours
    )
    return ["env", *(word for name in foreign for word in ("-u", name))] if foreign else []
