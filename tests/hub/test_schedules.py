"""Claims over random schedules on a clock of their own, and verdicts over random histories."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autohypothesis.hub.protocol import ClaimQuery, NewClaimRequest, ResultRequest
from autohypothesis.hub.server import results, tasks
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.refusals import HubRefusalError
from autohypothesis.hub.server.results import Verdict, standing_of, verdict_of
from autohypothesis.hub.server.service import Caller
from autohypothesis.schema import Direction

AGENTS = ("ada", "bob", "eve")
TREES = tuple(f"n1:{number:040x}" for number in range(3))
KEY, TASK = "c" * 64, ""
"""Without a task: a result needs none, and a claim's is made to fit below."""
LEASES = (60, 120)
"""As long as some waits: a lease is over at its end, not after it."""


@dataclass
class Held:
    """A claim as the machine remembers it."""

    number: int
    agent: str
    until: datetime


class ClaimRules(RuleBasedStateMachine):
    """What agents do, and what must then be true."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="claims-")
        self.database = Database(Path(self.folder.name) / "hub.sqlite3")
        self.moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(tasks, "now", lambda: self.moment)
        self.held: dict[str, Held] = {}
        self.tried: dict[str, set[str]] = {tree: set() for tree in TREES}
        self.numbers: set[int] = set()
        self.done: dict[int, int] = {}
        self.told = 0

    def teardown(self) -> None:
        self.patches.undo()
        self.database.close()
        self.folder.cleanup()

    def holder(self, tree: str) -> Held | None:
        found = self.held.get(tree)
        return found if found is not None and found.until > self.moment else None

    @rule(agent=st.sampled_from(AGENTS), tree=st.sampled_from(TREES), lease=st.sampled_from(LEASES))
    def claim(self, agent: str, tree: str, lease: int) -> None:
        wanted = NewClaimRequest.model_construct(
            platform_key=KEY, task_hash=TASK, tree=tree, lease_seconds=lease, title=agent
        )
        holder, others = self.holder(tree), self.tried[tree] - {agent}
        free = holder is None and not others
        if not free and (holder is None or holder.agent != agent):
            with pytest.raises(HubRefusalError) as refused:
                tasks.claim(self.database, Caller(agent, "push"), wanted)
            said = f"claimed by {holder.agent}" if holder is not None else "tried by"
            assert refused.value.status == 409 and said in str(refused.value)
            return
        made = tasks.claim(self.database, Caller(agent, "push"), wanted)
        if holder is None:
            assert made["id"] not in self.numbers  # a number is never another claim's
        else:
            assert made["id"] == holder.number
        self.numbers.add(made["id"])
        self.held[tree] = Held(made["id"], agent, self.moment + timedelta(seconds=lease))

    @rule(agent=st.sampled_from(AGENTS), tree=st.sampled_from(TREES))
    def tell(self, agent: str, tree: str) -> None:
        self.told += 1
        result, _ = results.tell_result(
            self.database, Caller(agent, "push"),
            ResultRequest(
                name=f"e-{self.told}", commit=f"{self.told:07x}", platform="CPU", platform_key=KEY,
                task_hash=TASK, metric="m", value=1.0, status="keep", tree=tree,
            ),
        )  # fmt: skip
        self.tried[tree].add(agent)
        found = self.held.get(tree)
        if found is not None and found.agent == agent:
            self.done[found.number] = result["id"]
            del self.held[tree]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), agent=st.sampled_from(AGENTS))
    def give_back(self, data: st.DataObject, agent: str) -> None:
        tree = data.draw(st.sampled_from(sorted(self.held)))
        found = self.held[tree]
        if found.agent != agent:
            with pytest.raises(HubRefusalError) as refused:
                tasks.release_claim(self.database, Caller(agent, "push"), found.number)
            assert refused.value.status == 403
            return
        tasks.release_claim(self.database, Caller(agent, "push"), found.number)
        del self.held[tree]

    @rule(seconds=st.sampled_from((1, 59, *LEASES)))
    def wait(self, seconds: int) -> None:
        self.moment += timedelta(seconds=seconds)

    @invariant()
    def what_is_done_names_its_result_for_good(self) -> None:
        for number, result in self.done.items():
            found = tasks.one_claim(self.database, number)
            assert (found["state"], found["result"]) == ("done", result)

    @invariant()
    def what_holds_is_what_is_listed(self) -> None:
        listed = tasks.held_claims(self.database, ClaimQuery())
        expected = {
            (found.number, found.agent, tree)
            for tree in TREES
            if (found := self.holder(tree)) is not None
        }
        assert {(one["id"], one["agent_id"], one["tree"]) for one in listed} == expected
        assert [one["id"] for one in listed] == sorted((one["id"] for one in listed), reverse=True)


TestClaims = ClaimRules.TestCase
TestClaims.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# ── verdicts ────────────────────────────────────────────────────────────────────────────────

OTHERS = ("bob", "eve", "dan", "ida")
values = st.floats(min_value=-1e6, max_value=1e6)
deltas = st.floats(min_value=0, max_value=10)
directions = st.sampled_from(get_args(Direction))
words = st.sampled_from(get_args(Verdict))
histories = st.lists(st.tuples(st.sampled_from(OTHERS), words), max_size=12)
History = list[tuple[str, Verdict]]


@given(histories)
def test_the_last_word_of_each_agent_counts_and_no_earlier_one(history: History) -> None:
    last = dict(history)
    found = standing_of("ada", history)
    assert found == standing_of("ada", list(last.items()))
    assert found == standing_of("ada", list(last.items())[::-1])
    assert found.reproduced + found.refuted == len(last)
    assert found.reproduced == sum(word == "reproduced" for word in last.values())


@given(histories)
def test_the_state_is_what_most_say(history: History) -> None:
    state, reproduced, refuted = standing_of("ada", history)
    order = {"refuted": reproduced < refuted, "claimed": reproduced == refuted,
             "reproduced": reproduced > refuted}  # fmt: skip
    assert [word for word, holds in order.items() if holds] == [state]


@given(histories, st.data())
def test_what_the_author_takes_back_stays_taken_back(history: History, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(history)))
    with_it: History = [*history[:place], ("ada", "refuted"), *history[place:]]
    found, without = standing_of("ada", with_it), standing_of("ada", history)
    assert found.state == "refuted"
    assert (found.reproduced, found.refuted) == (without.reproduced, without.refuted)


@given(values, values, deltas)
def test_maximizing_is_minimizing_seen_from_the_other_side(
    original: float, again: float, delta: float
) -> None:
    mirrored = verdict_of(-original, -again, "maximize", delta)
    assert verdict_of(original, again, "minimize", delta) == mirrored


@given(values, values, directions, deltas)
def test_as_good_is_reproduced_and_no_value_never_is(
    original: float, again: float, direction: Direction, delta: float
) -> None:
    better = min(original, again) if direction == "minimize" else max(original, again)
    assert verdict_of(original, better, direction, delta) == "reproduced"
    assert verdict_of(original, None, direction, delta) == "refuted"


@given(st.decimals(-1000, 1000, places=6), st.decimals(0, 10, places=6))
def test_exactly_the_tolerance_is_within_it(original: Decimal, delta: Decimal) -> None:
    """On paper, not as the computer subtracts."""
    at, past = original + delta, original + delta + Decimal("0.000001")
    assert verdict_of(float(original), float(at), "minimize", float(delta)) == "reproduced"
    assert verdict_of(float(original), float(past), "minimize", float(delta)) == "refuted"
