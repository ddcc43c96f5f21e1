"""The published line of each iteration, derived from its bundle: `work/results.jsonl`.

The lines go to standard output as well. A kill between a decision and its line
costs nothing: the next loop writes what is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.records import jsonl
from autohypothesis.records.files import read_object
from autohypothesis.records.outputs import refuse_foreign_lines
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import Decision


class ResultLines:
    """The file of one tag's iterations.

    Raises:
        FleetError: a file of the user's has its name.
    """

    def __init__(self, project: Project) -> None:
        refuse_foreign_lines(project.repository, project.layout)
        self._project = project
        self._path = project.layout.task_results
        news = jsonl.read_new(self._path, 0)
        self._written = {(one.get("tag"), one.get("iteration_id")) for one in news.records}

    def missing(self, decisions: Sequence[Decision]) -> Iterator[Decision]:
        """Yield decided iterations that have no line yet; baselines and repeats are none."""
        for one in decisions:
            known = (one.tag, one.experiment_id) in self._written
            if not known and one.base_commit is not None and one.decision_status != "replicate":
                yield one

    def write(self, decision: Decision) -> dict[str, Any]:
        """Append the line of one decision, and return it.

        Raises:
            RecordError: the disk is full.
        """
        line = line_of(self._project, decision)
        jsonl.append(self._path, line)
        self._written.add((decision.tag, decision.experiment_id))
        return line


def line_of(project: Project, decision: Decision) -> dict[str, Any]:
    """Return what is known of one iteration; unknown scores and times are null."""
    run = project.layout.run(decision.experiment_id)
    result, ended, metadata = map(read_object, (run.result, run.exit, run.metadata))
    runtime = _part(metadata, "runtime")
    mutation = _part(result.get("evidence"), "mutation")
    score = _part(ended, "score")
    changed = _changed(project, decision)
    return {
        "task_id": project.task.id,
        "iteration_id": decision.experiment_id,
        "tag": decision.tag,
        "status": "lost" if decision.reason in NOT_EVIDENCE else decision.decision_status,
        "reason": decision.reason,
        "detail": decision.detail,
        "description": result.get("title") or "",
        "candidate_score": decision.metric_value,
        "baseline_score": decision.reference_value,
        "baseline_hash": artifacts_hash(project, str(decision.base_commit)),
        "candidate_hash": artifacts_hash(project, decision.commit),
        "commit": decision.commit,
        "metrics": {k: v for k, v in _part(result, "metrics").items() if v is not None},
        "diff_summary": runtime.get("diff_stat") or "",
        "changed_files": sorted(changed),
        "added": sum(added for added, _ in changed.values()),
        "removed": sum(removed for _, removed in changed.values()),
        "durations": {
            "mutator": mutation.get("seconds"),
            "run": ended.get("wall_seconds"),
            "scorer": score.get("seconds"),
        },
        "exit_codes": {
            "mutator": mutation.get("exit_code"),
            "run": ended.get("exit_code"),
            "scorer": score.get("exit_code"),
        },
        "sandbox": runtime.get("sandbox") or mutation.get("sandbox") or "",
        "confirmation": decision.confirmation,
        "started_at": ended.get("started_at") or metadata.get("recorded_at"),
    }


def artifacts_hash(project: Project, commit: str) -> str:
    """Return the SHA-256 of the artifacts of a commit: their paths and contents."""
    try:
        entries = project.repository.entries(commit)
    except AutohypothesisError:
        return ""
    named = "".join(
        f"{path}\0{entries[path].blob}\0" for path in sorted(project.task.artifacts_in(entries))
    )
    return hashlib.sha256(os.fsencode(named)).hexdigest()


def _changed(project: Project, decision: Decision) -> dict[str, tuple[int, int]]:
    """Return path -> lines added and removed, of the candidate against its base."""
    if not decision.base_commit or decision.base_commit == decision.commit:
        return {}
    try:
        changes = project.repository.changes(decision.base_commit, decision.commit)
    except (AutohypothesisError, RecordError):
        return {}
    return {one.path: (one.added or 0, one.removed or 0) for one in changes}


def _part(document: object, name: str) -> Mapping[str, Any]:
    found = document.get(name) if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else {}
