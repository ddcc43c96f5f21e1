"""What others are to be told is told once, whatever is killed, and never holds anybody up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.errors import DeliveryError, LockError, UndeliverableError
from autohypothesis.fleet.hub_sync import outgoing
from autohypothesis.fleet.hub_sync.outgoing import EntryCourier, Outbox, pause_s
from autohypothesis.records import locks
from autohypothesis.records.layout import Layout
from autohypothesis.schema import OutboxEntry
from tests.fleet.conftest import Forked


class Collector:
    """Hears everything, unless `trouble` has something to say."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.trouble: Callable[[OutboxEntry], Exception | None] = lambda _: None

    def mark(self, entry: OutboxEntry) -> Any:
        return len(self.heard)

    def found(self, entry: OutboxEntry) -> str | None:
        return "found" if entry.name in self.heard[entry.mark :] else None

    def deliver(self, entry: OutboxEntry) -> str:
        error = self.trouble(entry)
        if error is not None:
            raise error
        self.heard.append(entry.name)
        return f"r-{entry.name}"


def _unreached() -> DeliveryError:
    error = DeliveryError("nobody there")
    error.reached = False
    return error


@pytest.fixture
def box(layout: Layout) -> Outbox:
    return Outbox(layout)


def _states(box: Outbox) -> dict[str, list[str]]:
    folders = {state: box.layout.outbox_state(state) for state in ("pending", "sent", "refused")}
    return {
        state: sorted(path.name for path in folder.glob("[!.]*"))
        for state, folder in folders.items()
    }


def test_things_are_told_once_and_in_order(box: Outbox) -> None:
    courier = Collector()
    for name in ("c", "a", "b"):
        assert box.put("post", name, {"text": name})
        assert not box.put("post", name, {"text": "again"})
    assert box.deliver(courier)[:3] == (3, 0, 0)
    assert courier.heard == ["c", "a", "b"]
    assert not box.put("post", "a", {"text": "later again"})
    assert box.deliver(courier)[:3] == (0, 0, 0)
    assert _states(box)["sent"] == ["post.a.json", "post.b.json", "post.c.json"]
    assert _states(box)["pending"] == []


def test_a_hub_that_is_down_loses_nothing_and_is_not_asked_for_each(box: Outbox) -> None:
    courier, asked = Collector(), set()

    def down(entry: OutboxEntry) -> Exception:
        asked.add(entry.name)
        return _unreached()

    courier.trouble = down
    for name in "abc":
        box.put("post", name, {})
    for _ in range(outgoing.MAX_TRIES + 5):
        done = box.deliver(courier)
    assert asked == {"a"}
    assert (done.left, done.error) == (3, "nobody there")
    courier.trouble = lambda _: None
    assert box.deliver(courier).sent == 3
    assert courier.heard == ["a", "b", "c"]


def test_one_that_always_fails_is_set_aside_and_holds_nothing_up(box: Outbox) -> None:
    courier = Collector()
    courier.trouble = lambda entry: DeliveryError("500") if entry.name == "a" else None
    box.put("post", "a", {})
    box.put("post", "b", {})
    assert box.deliver(courier)[:3] == (1, 0, 1)
    for _ in range(outgoing.MAX_TRIES):
        box.deliver(courier)
    assert _states(box)["refused"] == ["post.a.json"]
    assert "given up after 20 tries: 500" in (
        box.layout.outbox_entry("refused", "post", "a").read_text()
    )


def test_what_is_refused_for_good_is_not_tried_again(box: Outbox) -> None:
    courier = Collector()
    courier.trouble = lambda _: UndeliverableError("no such channel")
    box.put("post", "a", {})
    assert box.deliver(courier)[:3] == (0, 1, 0)
    courier.trouble = lambda _: None
    assert box.deliver(courier)[:3] == (0, 0, 0)
    assert not box.put("post", "a", {})


def test_what_was_sent_and_still_waits_is_not_told_again(box: Outbox) -> None:
    """As a kill between the two leaves it, and a hub that cannot be asked about it."""
    box.put("post", "a", {})
    waiting = box.layout.outbox_entry("pending", "post", "a")
    content = waiting.read_bytes()
    assert box.deliver(Collector()).sent == 1
    waiting.write_bytes(content)
    assert box.deliver(courier := Collector()).left == 0
    assert (courier.heard, _states(box)["pending"]) == ([], [])


def test_a_damaged_entry_stops_no_other(box: Outbox) -> None:
    box.put("post", "a", {})
    box.put("post", "b", {})
    box.layout.outbox_entry("pending", "post", "a").write_text("{")
    assert box.deliver(courier := Collector()).sent == 1
    assert courier.heard == ["b"]
    assert _states(box)["refused"] == ["post.a.json"]


def test_only_one_delivers_at_a_time(box: Outbox) -> None:
    box.put("post", "a", {})
    with locks.hold(box.layout, "outbox", doing="test"), pytest.raises(LockError):
        box.deliver(Collector())


def test_many_who_put_the_same_thing_put_it_once(box: Outbox) -> None:
    taken: list[bool] = []
    start = threading.Barrier(8)

    def put() -> None:
        start.wait()
        taken.append(box.put("post", "a", {}))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    assert _states(box)["pending"] == ["post.a.json"]


class ToFile(EntryCourier):
    """A hub: the lines of a file."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []

    def mark(self, entry: OutboxEntry) -> int:
        return len(self.lines())

    def found(self, entry: OutboxEntry) -> str | None:
        return "known" if entry.name in self.lines()[entry.mark :] else None

    def deliver(self, entry: OutboxEntry) -> str:
        with self.told.open("a") as file:
            file.write(f"{entry.name}\n")
        return "told"


CALLS = [
    "autohypothesis.fleet.hub_sync.outgoing.write_json",
    "autohypothesis.fleet.hub_sync.outgoing.Path.unlink",
    "tests.fleet.test_outbox.ToFile.mark",
    "tests.fleet.test_outbox.ToFile.deliver",
]


@pytest.mark.parametrize("moment", range(1, 22))
def test_a_kill_at_any_step_loses_and_repeats_nothing(
    moment: int, box: Outbox, killed_at: Callable[..., bool]
) -> None:
    courier = ToFile(box.layout.root / "told")
    for name in "ab":
        box.put("post", name, {})
    assert killed_at(moment, CALLS, lambda: box.deliver(courier)) == (moment <= 20)
    box.deliver(courier)
    assert courier.lines() == ["a", "b"]
    assert _states(box) == {
        "pending": [], "sent": ["post.a.json", "post.b.json"], "refused": [],
    }  # fmt: skip


def deliver_all(tell: Callable[[str], None], root: Path) -> None:
    Outbox(Layout(root)).deliver(ToFile(root / "told"))


def test_kills_at_any_time_lose_and_repeat_nothing(
    box: Outbox, forked: Callable[..., Forked]
) -> None:
    root, names = box.layout.root, [f"n{number}" for number in range(60)]
    for name in names:
        box.put("post", name, {})
    chance, courier = random.Random(5), ToFile(box.layout.root / "told")
    for _ in range(6):
        before, delivering = len(courier.lines()), forked(deliver_all, root)
        while delivering.process.is_alive() and len(courier.lines()) == before:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        delivering.end(kill=True)
    box.deliver(courier)
    assert courier.lines() == names
    assert _states(box)["pending"] == []


def test_pauses_grow_and_end_somewhere() -> None:
    pauses = [pause_s(failures) for failures in range(100)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[1] and pauses[-1] == outgoing.LONGEST_PAUSE_S
