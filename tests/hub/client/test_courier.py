"""An outbox and a hub: what a fleet has to say stands there once, whatever the hub does."""

from __future__ import annotations

from pathlib import Path

import pytest

from autohypothesis.fleet.hub_sync.outgoing import Outbox
from autohypothesis.hub.client import http
from autohypothesis.hub.client.hub import HubClient
from autohypothesis.hub.fleet.courier import HubDelivery
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from tests.hub.client.conftest import Handler, StandIn
from tests.hub.conftest import Agent


@pytest.fixture
def box(foreign: Path) -> Outbox:
    return Outbox(Layout(foreign))


@pytest.fixture
def courier(
    hub: HubClient, box: Outbox, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> HubDelivery:
    monkeypatch.setattr(http, "PATIENT", http.Patience(backoff=0.0))
    return HubDelivery(hub, "ada", Repository(foreign), box)


def _put(box: Outbox, name: str, channel: str = "results", content: str = "same") -> None:
    assert box.put("post", name, {"channel": channel, "content": content})


def test_an_answer_that_was_lost_is_looked_for(
    box: Outbox, courier: HubDelivery, stand_in: StandIn, hub: HubClient
) -> None:
    """It stands there, between an older one and others' of the same words."""
    hub.post("results", "same")

    def lose(handler: Handler) -> bool:
        if handler.command != "POST":
            return False
        stand_in.behave = lambda _: False
        for agent in (stand_in.hub.agent("grace"), Agent(stand_in.url, "", stand_in.keys["ada"])):
            agent.send("/api/channels/results/posts", {"content": "same"})
        return True  # and nothing is answered

    _put(box, "a")
    stand_in.behave = lose
    assert box.deliver(courier).error
    assert box.deliver(courier).sent == 1
    assert len(stand_in.posts) == 3
    _put(box, "b")  # the same words of another entry are news
    assert box.deliver(courier).sent == 1
    assert len(stand_in.posts) == 4


def test_words_that_were_said_before_do_not_count(
    box: Outbox, courier: HubDelivery, stand_in: StandIn, hub: HubClient
) -> None:
    """A try that never arrived is not found in what stood there already."""
    hub.post("results", "same")
    _put(box, "a")
    stand_in.behave = lambda handler: handler.command == "POST"
    assert box.deliver(courier).error
    stand_in.behave = lambda _: False
    assert box.deliver(courier).sent == 1
    assert stand_in.posts == ["same", "same"]


def test_a_hub_of_yesterday_is_told_again(
    box: Outbox, courier: HubDelivery, stand_in: StandIn, hub: HubClient
) -> None:
    """Restored from a backup while an entry was on its way: what it forgot it hears once."""
    hub.post("results", "old")
    _put(box, "a")

    def forget(handler: Handler) -> bool:
        if handler.command == "POST":
            stand_in.forget_posts()
            stand_in.behave = lambda _: False
            return True
        return False

    stand_in.behave = forget
    assert box.deliver(courier).error
    assert box.deliver(courier).sent == 1
    assert stand_in.posts == ["same"]


@pytest.mark.parametrize(("status", "waits"), [(401, True), (429, True), (500, True), (403, True),
                                               (400, False), (413, False)])  # fmt: skip
def test_a_refusal_of_the_thing_is_final_and_one_of_us_is_not(
    status: int, waits: bool, box: Outbox, courier: HubDelivery, stand_in: StandIn
) -> None:
    _put(box, "a")
    stand_in.behave = lambda handler: handler.say(status, b'{"error": "no"}') is None
    done = box.deliver(courier)
    assert (done.left, done.refused) == ((1, 0) if waits else (0, 1))
    stand_in.behave = lambda _: False
    assert box.deliver(courier).sent == int(waits)


def test_what_cannot_be_sent_is_set_aside(
    box: Outbox, courier: HubDelivery, stand_in: StandIn
) -> None:
    _put(box, "a", channel="No Such Name")
    _put(box, "b", content="x" * 40_000)
    box.put("push", "c", {"commit": "f" * 40})
    box.put("smoke", "d", {})
    assert box.deliver(courier)[:3] == (0, 4, 0)
    assert stand_in.posts == []
