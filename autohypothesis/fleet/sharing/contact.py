"""How the courier stands, read by whoever must not wait for a hub that does not answer."""

from __future__ import annotations

from dataclasses import dataclass

from autohypothesis.fleet.live import roles
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.files import load_or_none
from autohypothesis.records.layout import Layout
from autohypothesis.schema import HubFeed, OthersCommit, OthersPost, OthersResult
from autohypothesis.schema import Others as Quoted

COURIER = "courier"
_FEED_LIMIT = 1 << 20
_LINE = 280
_RESULTS, _FRONTIER, _DISCUSSION = 16, 8, 8


@dataclass(frozen=True, slots=True)
class Contact:
    """What is known of the way to the hub."""

    is_open: bool
    """Whether the last thing that was sent or asked got an answer."""
    problem: str = ""


def contact(layout: Layout) -> Contact:
    """By the courier's own word, while it lives."""
    status = roles.read_role(layout, COURIER)
    if status is None or not roles.lives(status):
        return Contact(False, "no courier is at work")
    return Contact(bool(status.details.get("reachable")), "; ".join(status.problems))


class Feed:
    """What was last heard; read when it changed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._seen: Signature | None = None
        self._heard: HubFeed | None = None

    def heard(self) -> HubFeed | None:
        """None before the first word."""
        signature = signature_of(str(self._layout.hub_feed))
        if signature != self._seen:
            self._seen = signature
            self._heard = load_or_none(HubFeed, self._layout.hub_feed, _FEED_LIMIT)
        return self._heard


def quoted(feed: HubFeed | None) -> Quoted | None:
    """For the brief: a line for each, and short, whatever was said."""
    if feed is None:
        return None
    return Quoted(
        server=feed.server[:200],
        results=[_result(one) for one in [*feed.board, *feed.results][:_RESULTS]],
        frontier=[_commit(one) for one in feed.frontier[:_FRONTIER]],
        discussion=[_post(one) for one in feed.discussion[:_DISCUSSION]],
    )


def _result(one: OthersResult) -> str:
    value = "no value" if one.value is None else f"{one.metric} {one.value:g}"
    how = f"{one.state} by {one.reproduced}" if one.reproduced else one.state
    about = f"{one.commit[:7]} on {one.platform}: {value}, {one.status}, {how}"
    return _line(one.agent_id, f"{about}: {one.description}")


def _commit(one: OthersCommit) -> str:
    return _line(one.agent_id, f"{one.hash[:7]} {one.message}")


def _post(one: OthersPost) -> str:
    return _line(one.agent_id, one.content)


def _line(agent: str, said: str) -> str:
    """One line, and no control characters: nobody's words look like a section of ours."""
    words = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    text = f"{agent} said: {words}"
    return text if len(text) <= _LINE else f"{text[: _LINE - 1]}…"
