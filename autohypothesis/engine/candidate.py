"""A candidate: one commit that is ready to run, and what is to be known about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autohypothesis.plain import plain, plain_line
from autohypothesis.records.git_facts import FileChange

MAX_TITLE = 100


@dataclass(frozen=True)
class Candidate:
    """What `prepare` hands to `execute`."""

    experiment_id: str
    commit: str
    base: str
    """The commit that the change was applied to; `commit` itself where nothing was changed."""
    diff: str = ""
    diff_stat: str = ""
    diff_hash: str = ""
    lines_added: int = 0
    lines_removed: int = 0
    files: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    title: str = ""
    num_params: int | None = None

    @property
    def parent_commit(self) -> str | None:
        """None for a baseline: the base as it stands."""
        return self.base if self.commit != self.base else None


def diff_stat(changes: Sequence[FileChange]) -> str:
    """`1 file changed, 2 insertions(+), 1 deletion(-)`, as git says it; empty for no change."""
    if not changes:
        return ""
    added = sum(one.added or 0 for one in changes)
    removed = sum(one.removed or 0 for one in changes)
    parts = [f"{len(changes)} file{_s(len(changes))} changed"]
    if added:
        parts.append(f"{added} insertion{_s(added)}(+)")
    if removed:
        parts.append(f"{removed} deletion{_s(removed)}(-)")
    return ", ".join(parts)


def diff_hash(diff: str) -> str:
    """One hash for one edit, wherever in the file it lands: files and changed lines, in order.

    Line numbers, context and blob ids are left out, so the same idea on another base is known
    again. The empty diff hashes too: every baseline has the same.
    """
    return hashlib.sha256("\n".join(_edits(diff)).encode("utf-8", "surrogateescape")).hexdigest()


def _edits(diff: str) -> Iterator[str]:
    """The lines of `diff` that say what is done."""
    inside = False
    for line in diff.splitlines():
        if line.startswith("diff --git "):
            inside = False
            yield line
        elif line.startswith("@@ "):
            inside = True
        elif (inside and line.startswith(("+", "-"))) or line.startswith(
            ("new file", "deleted file", "literal ", "delta ")
        ):
            yield line


def config_of(literals: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> dict[str, Any]:
    """The flat, lower-case settings of an experiment: what the model is built from.

    Literals come from the script as it is written, all else from the preflight's import. The seed
    is not a setting. A script without upper-case names has its literals taken instead.
    """
    every = {**(evaluated or {}), **literals}
    chosen = {name: value for name, value in every.items() if name.isupper()} or every
    return {
        name.lower(): value
        for name, value in chosen.items()
        if name.lower() != "seed" and _is_plain(value)
    }


def commit_message(title: str, experiment_id: str, hypothesis_id: str, rationale: str) -> str:
    subject = plain_line(title)[:MAX_TITLE].strip() or f"Experiment {experiment_id}"
    trailers = [f"Experiment: {experiment_id}"]
    if hypothesis_id:
        trailers.append(f"Hypothesis: {hypothesis_id}")
    rationale = plain(rationale).strip()
    body = f"{rationale}\n\n" if rationale else ""
    return f"{subject}\n\n{body}" + "\n".join(trailers) + "\n"


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _s(count: int) -> str:
    return "" if count == 1 else "s"
