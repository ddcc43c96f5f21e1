"""The proposers that a user names, and results of other fleets, which a hub adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from autohypothesis.errors import UsageError
from autohypothesis.fleet.hub_sync import incoming
from autohypothesis.fleet.proposing import Proposer, Situation
from autohypothesis.proposers.command import Command
from autohypothesis.proposers.search import KnobSearch
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Manifest, OthersResult, Proposal, did_you_mean

BUILT_IN = ("search", "inbox", "command")
ENTRY_POINTS = "autohypothesis.proposers"
"""Group of the entry points by which other packages bring proposers: each names a callable
`(argument: str, root: Path) -> Proposer`, called with what follows the colon in `NAME:ARGUMENT`
and the root of the repository."""


class Inbox:
    """People, who write files into the inbox. Alone, it makes a fleet wait for them."""

    name = "inbox"
    asked_early = True

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


def of_search(
    manifest: Manifest | None, words: Sequence[str] | None, *, mix: float | None, root: Path
) -> list[Proposer]:
    """Return the named proposers, else those the search was begun with, else `search`.

    `search` stands in for programs and packages that fail or have nothing, unless the words name
    `search` or `inbox` themselves.
    """
    if manifest is not None:
        words, mix = words or manifest.proposers, manifest.mix if mix is None else mix
    named = configured(words or (), mix=mix, root=root)
    if {"search", "inbox"}.isdisjoint(proposer.name for proposer in named):
        named.append(KnobSearch(mix=mix, fills_in=True))
    return named


def _proposer(word: str, mix: float | None, root: Path) -> Proposer:
    name, colon, argument = word.partition(":")
    if word == "search":
        return KnobSearch(mix=mix)
    if word == "inbox":
        return Inbox()
    if name == "command" and colon:
        return Command(argument, root=root)
    registered = entry_points(group=ENTRY_POINTS)
    if name in BUILT_IN or name not in registered.names:
        near = did_you_mean(name, [*BUILT_IN, *registered.names])
        names = ", ".join(["search", "inbox", *sorted(registered.names)])
        raise UsageError(
            f"there is no proposer {word!r}{near}", hint=f"name {names} or command:PROGRAM"
        )
    proposer: Proposer = registered[name].load()(argument, root)
    return proposer


class OtherFleets:
    """Proposes results of other fleets, where they are said to be better than what is here.

    Such a commit becomes a hypothesis like any other, and the reference only if it wins here;
    either way the run tells whether the other fleet's result can be reproduced. It reads what the
    courier heard last, so that it never waits for a hub.
    """

    name = incoming.HUB_PROPOSER
    asked_early = True

    def __init__(self, layout: Layout) -> None:
        self._feed = incoming.FeedReader(layout)

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return results that are better by more than the noise, best first, each once."""
        heard = self._feed.heard()
        sign = 1.0 if situation.direction == "minimize" else -1.0
        kept = [
            sign * t.value for t in situation.trials if t.value is not None and t.status == "keep"
        ]
        if heard is None or not kept:
            return []
        known = [*situation.open, *situation.closed]
        tried = {hypothesis.source_id for hypothesis in known}
        commits = {hypothesis.artifacts_from for hypothesis in known}

        def rank(result: OthersResult) -> float:
            return sign * result.value if result.value is not None else float("inf")

        better = [
            result
            for result in heard.board
            if (result.metric, result.status) == (situation.metric, "keep")
            and result.state != "refuted"
            and min(kept) - rank(result) >= situation.min_delta
            and incoming.source_id_of(result.id) not in tried
            and result.commit not in commits
        ]
        return [
            incoming.proposal_from_result(result, priority=incoming.BETTER_PRIORITY)
            for result in sorted(better, key=rank)[:count]
        ]
