"""The proposers that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autohypothesis.errors import UsageError
from autohypothesis.fleet.proposing import (
    Proposer,
    Situation,
    check_proposer,
    registered_proposers,
)
from autohypothesis.proposers.command import Command
from autohypothesis.proposers.search import KnobSearch
from autohypothesis.schema import Proposal


class Inbox:
    """People, who write files into the inbox. Alone, it makes a fleet wait for them."""

    name = "inbox"

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return nothing: the observer reads the inbox itself."""
        return []


def configured(words: Sequence[str], *, mix: float | None, root: Path) -> list[Proposer]:
    """Return the proposers in the order in which they are asked; `search` when none is named.

    Args:
        mix: share of joint moves among those of `search`; None: after a plateau only.
        root: of the repository, where a command runs.

    Raises:
        UsageError: a word names no proposer, or `mix` is no share.
    """
    if mix is not None and not 0 <= mix <= 1:
        raise UsageError(f"--mix {mix:g} is no share", hint="give a number from 0 to 1")
    chosen = dict.fromkeys(word.strip() for word in words) or {"search": None}
    return [_proposer(word, mix, root) for word in chosen]


def _proposer(word: str, mix: float | None, root: Path) -> Proposer:
    check_proposer(word)
    name, _, argument = word.partition(":")
    if name == "search":
        return KnobSearch(mix=mix)
    if name == "inbox":
        return Inbox()
    if name == "command":
        return Command(argument, root=root)
    proposer: Proposer = registered_proposers()[name].load()(argument, root)
    return proposer
