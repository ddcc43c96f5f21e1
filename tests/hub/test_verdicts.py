"""What follows from results, whatever they are: verdicts and states."""

from __future__ import annotations

from decimal import Decimal
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.hub.server.results import (
    Verdict,
    standing_of,
    verdict_of,
)
from autohypothesis.schema import Direction

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
