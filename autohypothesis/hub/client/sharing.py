"""Commits to a hub and from it."""

from __future__ import annotations

import tempfile
from typing import NamedTuple

from autohypothesis.errors import HubError
from autohypothesis.hub.client.hub import Hub, first_known
from autohypothesis.hub.client.wire import BUNDLE_LIMIT, Commit
from autohypothesis.records import git_bundle
from autohypothesis.records.git import Repository
from autohypothesis.records.secrets import refuse_secrets

FETCHED = "refs/hub/"
"""Other people's commits, by their full hash."""


class Sent(NamedTuple):
    commit: str
    commits: int
    """New to the hub; 0: it had it already."""
    on: str | None
    """The commit of the hub's that the first of them is built on; None: all history was sent."""
    bytes: int
    hashes: list[str]


class Fetched(NamedTuple):
    commit: Commit
    ref: str
    bytes: int
    """0: it was here already."""


def push(hub: Hub, repository: Repository, commit: str) -> Sent:
    """Send `commit` with as much of its history as the hub lacks.

    Raises:
        HubError: the hub refuses, or the bundle is larger than any hub takes.
        SecretError: a message, a file or a name in it holds a secret; nothing was sent.
    """
    line = git_bundle.first_parents(repository, commit)
    at = first_known(hub, line)
    known = line[at] if at < len(line) else None
    if at == 0:
        return Sent(commit, 0, known, 0, [commit])
    with tempfile.TemporaryFile() as bundle:
        git_bundle.create(repository, commit, known, bundle)
        size = bundle.tell()
        if size > BUNDLE_LIMIT:
            raise HubError(
                f"{commit[:12]} with what the hub lacks has {size:,} bytes, and a hub takes"
                f" {BUNDLE_LIMIT:,}",
                hint="begin with a commit without history: git checkout --orphan NAME",
            )
        held = git_bundle.contents(repository, commit, known)
        refuse_secrets(f"the push of {commit[:12]}", held)
        hashes = hub.push(bundle)
    return Sent(commit, git_bundle.count_new(repository, commit, known), known, size, hashes)


def fetch(hub: Hub, repository: Repository, wanted: str) -> Fetched:
    """Have a commit of the hub's under `refs/hub/`, by its hash or the beginning of one.

    Raises:
        HubError: the hub has no such commit, or another one.
        GitError: what it sent is not taken in.
    """
    found = hub.commit(wanted)
    if not found.hash.startswith(wanted):
        raise HubError(
            f"{hub.server} answered with commit {found.hash[:12]}, asked for {wanted}",
            hint="give the full hash: python orchestrator.py hub log --json",
        )
    ref = FETCHED + found.hash
    if repository.read_ref(ref) == found.hash:
        return Fetched(found, ref, 0)
    bundle = hub.bundle(found.hash)
    git_bundle.take_in(repository, bundle, found.hash, ref)
    return Fetched(found, ref, len(bundle))
