"""What a search without a model would get wrong: the order, the bounds, and its memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autohypothesis.engine.task import Knob
from autohypothesis.fleet.proposing import Trial
from autohypothesis.proposers import joint
from autohypothesis.proposers.history import History
from autohypothesis.proposers.knobs import Axis, canonical, knobs_of, settings_key
from autohypothesis.proposers.search import KnobSearch
from autohypothesis.schema import Proposal, Setting, Steering

MakeProject = Callable[..., Any]


def full(project: Any, proposal: Proposal) -> tuple[object, ...]:
    return settings_key(project.settings(proposal), tuple(sorted(project.reference)))


def seen(project: Any) -> set[tuple[object, ...]]:
    names = tuple(sorted(project.reference))
    keys = {settings_key(trial.settings, names) for trial in project.trials}
    tried = {trial.hypothesis_id for trial in project.trials}
    waiting = [*project.open, *(one for one in project.closed if one.hypothesis_id not in tried)]
    return keys | {full(project, one) for one in waiting} | {settings_key(project.reference, names)}


def check(project: Any, answer: list[Proposal]) -> None:
    """Inside every limit, and never again what is known already."""
    knobs = knobs_of(project.situation())
    known = seen(project)
    for proposal in answer:
        assert full(project, proposal) not in known, proposal.title
        known.add(full(project, proposal))
        for name, value in proposal.config_overrides.items():
            assert name not in project.steering.frozen
            assert Axis(name, knobs[name]).allows(value), (name, value)
            limits = project.steering.ranges.get(name)
            if limits and not isinstance(value, (str, list, bool)):
                assert limits[0] <= value <= limits[1]
        assert proposal.prediction is not None and proposal.rationale
        assert "\n" not in proposal.title


# ── the course of a search ──────────────────────────────────────────────────────────────────


def test_a_laptop_search_finds_the_shallower_model_at_once(project: MakeProject) -> None:
    place = project().baseline()
    asked = place.search(KnobSearch(), 8)
    assert {"DEPTH": 2} in [proposal.config_overrides for proposal in asked]
    assert place.reference["DEPTH"] == 2
    before = place.best
    place.search(KnobSearch(), 12)
    assert place.best < 1.9 + 0.04 <= 2.02 and place.best <= before
    assert place.reference["TOTAL_BATCH_SIZE"] == 512 and place.reference["MATRIX_LR"] == 0.08


def test_a_metric_that_grows_is_searched_upwards(project: MakeProject) -> None:
    def hill(values: Mapping[str, Setting]) -> float:
        return 1 - (float(values["DEPTH"]) - 5) ** 2 / 100  # type: ignore[arg-type]

    place = project(metric=hill, maximize=True).baseline()
    place.search(KnobSearch(), 30)
    assert place.reference["DEPTH"] == 5


def test_one_idea_a_hypothesis_while_single_moves_pay(project: MakeProject) -> None:
    asked = project().baseline().search(KnobSearch(), 25)
    assert all(len(proposal.config_overrides) == 1 for proposal in asked)
    assert [next(iter(p.config_overrides)) for p in asked[:3]] == [
        "DEPTH",
        "DEPTH",
        "TOTAL_BATCH_SIZE",
    ]


def test_an_improvement_is_followed_and_says_so(project: MakeProject) -> None:
    place = project().baseline()
    first, second = place.search(KnobSearch(), 2)
    assert first.title == "DEPTH 3 -> 2"
    assert second.title == "DEPTH 2 -> 1"
    assert "3 -> 2 improved val_bpb by 0.04" in second.rationale
    assert second.prediction.delta == pytest.approx(-0.02)


@pytest.mark.parametrize("reason", ["not_confirmed", "constraint", "by_hand"])
def test_a_better_score_that_was_overruled_is_not_followed(
    project: MakeProject, reason: str
) -> None:
    """The lucky seed of a refuted change, or a keep that a person took back."""
    place = project().baseline()
    better = {**place.reference, "MATRIX_LR": 0.08}
    for status, follows in (("keep", True), ("discard", False)):
        tried = Trial("h-1", "h-1", better, 1.0, status, code_hash=place.code, reason=reason)
        place.trials[1:] = [tried]
        answer = {each.title: each for each in KnobSearch().propose(place.situation(), 30)}
        further = answer["MATRIX_LR 0.04 -> 0.056"].rationale
        assert ("0.04 -> 0.08 improved val_bpb" in further) == follows


def test_the_way_back_comes_last(project: MakeProject) -> None:
    """With a smaller batch three layers are a new setting, and still no promising one."""
    place = project().baseline()
    place.search(KnobSearch(), 6)
    assert place.reference["DEPTH"] == 2 and place.reference["TOTAL_BATCH_SIZE"] == 512
    titles = [proposal.title for proposal in KnobSearch().propose(place.situation(), 20)]
    assert not {"DEPTH 2 -> 3", "DEPTH 2 -> 4", "TOTAL_BATCH_SIZE 512 -> 1024"} & set(titles)


def test_a_direction_that_lost_is_not_followed(project: MakeProject) -> None:
    """Neither further on nor in smaller steps, however many ideas are asked for."""
    place = project(metric=lambda v: 2 + abs(math.log2(v["MATRIX_LR"] / 0.04)) / 10).baseline()
    asked = place.search(KnobSearch(), 12)
    assert [
        p.config_overrides["MATRIX_LR"] for p in asked if "MATRIX_LR" in p.config_overrides
    ] == [
        0.08,
        0.02,
    ]
    left = KnobSearch().propose(place.situation(), 30)
    assert len(left) == 30
    assert not [p.title for p in left if list(p.config_overrides) == ["MATRIX_LR"]]


def test_a_choice_that_crashed_is_in_no_joint_move(
    project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = project(metric=lambda v: None if v["WINDOW_PATTERN"] == "SL" else 2.0).baseline()
    place.search(KnobSearch(), 30)
    monkeypatch.setattr(joint, "PATIENCE_S", 0.0)  # by lot, which would take any
    answer = KnobSearch(mix=1.0).propose(place.situation(), 60)
    windows = [p.config_overrides.get("WINDOW_PATTERN") for p in answer]
    assert "SL" not in windows and "SSL" in windows


def test_what_lies_beyond_a_crash_is_avoided(project: MakeProject) -> None:
    """Deep models crash; so would deeper ones, alone or with other changes."""

    def fragile(values: Mapping[str, Setting]) -> float | None:
        return None if float(values["DEPTH"]) >= 4 else 2.0  # type: ignore[arg-type]

    place = project(metric=fragile).baseline()
    asked = place.search(KnobSearch(), 70)
    deep = [p.title for p in asked if p.config_overrides.get("DEPTH", 0) >= 4]
    assert deep == ["DEPTH 3 -> 4"]
    assert any(len(p.config_overrides) > 1 for p in asked)


def test_a_crash_of_the_machine_is_no_evidence(project: MakeProject) -> None:
    """Its hypothesis waits again, or was given up after the third time."""
    for again in (True, False):
        place = project(metric=lambda v: None if v["DEPTH"] == 2 else 2.0).baseline()
        first = KnobSearch().propose(place.situation(), 1)[0]
        place.run(first)
        hypothesis = place.closed.pop()
        if again:
            place.open.append(hypothesis.model_copy(update={"closed": None}))
        else:
            place.closed.append(hypothesis.model_copy(update={"closed": "abandoned"}))
        titles = [proposal.title for proposal in KnobSearch().propose(place.situation(), 100)]
        assert first.title == "DEPTH 3 -> 2" not in titles
        assert "DEPTH 3 -> 1" in titles  # the real crash of 2 would stand in its way


def test_constants_that_follow_others_are_not_settings(project: MakeProject) -> None:
    """MODEL_DIM changes with DEPTH: a move of one knob is one all the same, and is known again."""
    source = "DEPTH = 3\nASPECT_RATIO = 32\nMODEL_DIM = DEPTH * ASPECT_RATIO\n"
    place = project(sources={"train.py": source})
    place.reference["MODEL_DIM"] = 96
    place.baseline()
    move = KnobSearch().propose(place.situation(), 1)[0]
    settings = {**place.settings(move), "MODEL_DIM": 64}
    place.trials.append(Trial("h-1", "h-test-0001", settings, 2.2, "discard", code_hash=place.code))
    answer = KnobSearch().propose(place.situation(), 40)
    assert move.title == "DEPTH 3 -> 2" not in [proposal.title for proposal in answer]
    assert any("3 -> 2 +0.1" in proposal.rationale for proposal in answer)


def test_a_list_that_spans_machines_is_walked_by_neighbours(project: MakeProject) -> None:
    place = project(metric=lambda v: 2.0).baseline()
    asked = place.search(KnobSearch(mix=0.3), 60)
    sizes = {p.config_overrides["TOTAL_BATCH_SIZE"] for p in asked
             if "TOTAL_BATCH_SIZE" in p.config_overrides}  # fmt: skip
    assert sizes == {512, 2048}
    place = project(metric=lambda v: 2.0)
    place.reference["TOTAL_BATCH_SIZE"] = 4096  # its upper neighbour is 16 times as large
    asked = place.baseline().search(KnobSearch(), 60)
    assert all(p.config_overrides.get("TOTAL_BATCH_SIZE", 0) < 65536 for p in asked)


def test_a_change_that_was_refused_before_its_run_is_never_proposed_again(
    project: MakeProject,
) -> None:
    place = project().baseline()
    hypothesis = place.queue(KnobSearch().propose(place.situation(), 1)[0])
    place.open.remove(hypothesis)
    place.closed.append(hypothesis.model_copy(update={"closed": "abandoned"}))
    titles = [proposal.title for proposal in place.search(KnobSearch(), 40)]
    assert hypothesis.title not in titles


def test_both_ways_of_a_knob_may_be_under_way_but_not_two_steps_of_one(
    project: MakeProject,
) -> None:
    place = project().baseline()
    answer = KnobSearch().propose(place.situation(), 12)
    assert [p.title for p in answer[:4]] == [
        "DEPTH 3 -> 2", "TOTAL_BATCH_SIZE 1024 -> 512", "MATRIX_LR 0.04 -> 0.08",
        "ASPECT_RATIO 32 -> 16",
    ]  # fmt: skip
    assert "DEPTH 3 -> 4" in [p.title for p in answer]
    assert "DEPTH 3 -> 1" not in [p.title for p in answer]


def test_what_the_observer_refuses_is_not_offered_until_the_reference_moves(
    project: MakeProject,
) -> None:
    place, search = project().baseline(), KnobSearch()
    first = search.propose(place.situation(), 1)[0]
    place.refused = {first.title: "tried elsewhere"}
    second = search.propose(place.situation(), 1)[0]
    place.refused = {second.title: "tried elsewhere"}
    third = search.propose(place.situation(), 1)[0]
    assert len({first.title, second.title, third.title}) == 3


def test_joint_moves_come_after_a_plateau_and_turn_a_few_knobs(project: MakeProject) -> None:
    place = project(metric=lambda v: 2.0).baseline()
    asked = place.search(KnobSearch(), 60)
    sizes = [len(proposal.config_overrides) for proposal in asked]
    assert sizes[:28] == [1] * 28
    assert all(2 <= size <= 4 for size in sizes[28:]) and len(sizes) == 60


def test_a_keep_ends_the_plateau(project: MakeProject) -> None:
    hidden = {"DEPTH": 2, "HEAD_DIM": 16}

    def trap(values: Mapping[str, Setting]) -> float:
        """Only both together help."""
        return 1.0 if all(values[name] == value for name, value in hidden.items()) else 2.0

    place = project(metric=trap).baseline()
    asked = place.search(KnobSearch(), 120)
    assert place.best == 1.0
    won = next(n for n, trial in enumerate(place.trials[1:]) if trial.status == "keep")
    assert len(asked[won].config_overrides) > 1
    assert len(asked[won + 1].config_overrides) == 1


def test_a_mix_has_its_share_of_joint_moves_from_the_start(project: MakeProject) -> None:
    asked = project().baseline().search(KnobSearch(mix=0.5), 20)
    joint = sum(len(proposal.config_overrides) > 1 for proposal in asked)
    assert 5 <= joint <= 15


def test_people_go_first(project: MakeProject) -> None:
    """A person who names no priority gets 0."""
    answer = KnobSearch().propose(project().baseline().situation(), 30)
    priorities = [proposal.priority for proposal in answer]
    assert max(priorities) < 0 and priorities == sorted(priorities, reverse=True)


def test_replicates_are_evidence_not_ideas(project: MakeProject) -> None:
    place = project().baseline()
    for number in range(5):
        again = Trial(
            f"baseline-test-{number + 2}",
            "baseline-test",
            dict(place.reference),
            2.0,
            "replicate",
            seed=number,
            code_hash=place.code,
        )
        place.trials.append(again)
    check(place, list(KnobSearch().propose(place.situation(), 10)))


def test_a_thousand_trials_do_not_hold_up_a_fleet(project: MakeProject) -> None:
    import optuna  # noqa: F401  its import is paid once

    place, random = project().baseline(), Random(1)
    for number in range(1000):
        values = {**place.reference, "MATRIX_LR": random.uniform(0.01, 0.16),
                  "EMBEDDING_LR": random.uniform(0.2, 2), "DEPTH": random.randint(1, 5),
                  "WEIGHT_DECAY": random.uniform(0, 0.4)}  # fmt: skip
        status = "keep" if number % 20 == 0 else "discard"
        name, value = f"h-{number}", random.random()
        place.trials.append(Trial(name, name, values, value, status, code_hash=place.code))
    for mix in (0.0, 1.0):
        began = time.process_time()
        answer = KnobSearch(mix=mix).propose(place.situation(), 8)
        assert time.process_time() - began < 2 * 5  # a hang guard at five times the goal
        assert len(answer) == 8
        check(place, list(answer))


# ── other code ──────────────────────────────────────────────────────────────────────────────


def test_the_gain_of_an_edit_is_not_credited_to_a_setting(project: MakeProject) -> None:
    """Another activation function gained 0.4, once with one layer less."""
    place = project().baseline()
    expected = KnobSearch().propose(place.situation(), 8)
    place.edited("squared ReLU", place.best - 0.4)  # type: ignore[operator]
    place.edited("squared ReLU and less", place.best - 0.4, DEPTH=2)  # type: ignore[operator]
    axes = {name: Axis(name, knob) for name, knob in place.knobs.items()}
    history = History(place.situation(), axes)
    assert history.effects == [] and len(history.trials) == 1
    assert not history.crashes("DEPTH", 2)
    answer = KnobSearch().propose(place.situation(), 8)
    assert answer == expected, "the values that were tried on other code are new here"


def test_a_kept_edit_begins_with_its_own_evidence(project: MakeProject) -> None:
    place, proposer = project().baseline(), KnobSearch()
    place.search(proposer, 30)
    tried = len(place.trials)
    moved = place.reference
    place.refused = dict.fromkeys((one.title for one in proposer.propose(place.situation(), 9)), "")
    assert proposer.propose(place.situation(), 1)[0].title not in place.refused
    refused = set(place.refused)
    place.refused = {}
    place.edited("squared ReLU", 1.0, kept=True)
    answer = proposer.propose(place.situation(), 40)
    assert refused & {one.title for one in answer}, "it was refused on the old code"
    assert "has not been turned alone before" in answer[0].rationale
    assert all("so far" not in proposal.rationale for proposal in answer)
    assert place.reference == moved
    singles = [one.config_overrides for one in answer if len(one.config_overrides) == 1]
    before = {trial.hypothesis_id for trial in place.trials[:tried]}
    again = [
        past.config_overrides for past in place.closed
        if past.hypothesis_id in before and past.config_overrides in singles
    ]  # fmt: skip
    assert again, "what lost on the old code may win on this one"
    place.run(answer[0])
    axes = {name: Axis(name, knob) for name, knob in place.knobs.items()}
    assert len(History(place.situation(), axes).effects) == 1


# ── limits ──────────────────────────────────────────────────────────────────────────────────


def test_a_reference_outside_the_range_moves_into_it(project: MakeProject) -> None:
    place = project(steering=Steering(ranges={"DEPTH": (1, 2), "MATRIX_LR": (0.1, 0.2)})).baseline()
    first = KnobSearch().propose(place.situation(), 40)
    check(place, list(first))
    assert {"DEPTH": 2} in [proposal.config_overrides for proposal in first]
    assert {"MATRIX_LR": 0.1} in [proposal.config_overrides for proposal in first]


def test_a_search_that_may_not_start_anything_proposes_nothing(project: MakeProject) -> None:
    assert not KnobSearch().propose(project(steering=Steering(stop=True)).baseline().situation(), 3)


NUMBERS = st.floats(min_value=1e-4, max_value=1e3, allow_nan=False)


@st.composite
def any_knobs(draw: st.DrawFn) -> dict[str, tuple[Knob, Setting]]:
    """Knobs with values that need not lie inside of them."""
    made: dict[str, tuple[Knob, Setting]] = {}
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["float", "log", "int", "numbers", "words", "truth"]))
        low = draw(NUMBERS)
        high = low * draw(st.floats(1.01, 50))
        value: Setting = draw(st.one_of(st.just(low), st.just(high), NUMBERS))
        if kind in ("float", "log"):
            knob = Knob(low=low, high=high, log=kind == "log")
        elif kind == "int":
            knob = Knob(type="int", low=int(low), high=int(high) + 2)
            value = int(float(value))  # type: ignore[arg-type]
        elif kind == "numbers":
            choices = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=6, unique=True))
            knob, value = Knob(type="choice", choices=tuple(sorted(choices))), choices[0]
        elif kind == "words":
            choices = draw(st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True))
            knob, value = Knob(type="choice", choices=tuple(choices)), choices[-1]
        else:
            knob, value = Knob(type="choice", choices=(False, True)), draw(st.booleans())
        made[f"KNOB_{number}"] = (knob, value)
    return made


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it makes a new one each call
)
@given(
    made=any_knobs(),
    random=st.randoms(use_true_random=False),
    mix=st.sampled_from([None, 0.3, 1.0]),
)
def test_no_landscape_makes_it_leave_its_limits(
    project: MakeProject, made: dict[str, tuple[Knob, Setting]], random: Random, mix: float | None
) -> None:
    """Whatever comes back, crashes and refusals included: in bounds, new, one knob at a time."""
    place = project(
        metric=lambda values: None if random.random() < 0.1 else random.uniform(1, 2),
        knobs={name: knob for name, (knob, _) in made.items()},
        reference={"OTHER": 1, **{name: value for name, (_, value) in made.items()}},
        steering=Steering(ranges={"KNOB_0": (0.01, 500)}),
    )
    place.best = 1.9
    place.baseline()
    search = KnobSearch(mix=mix)
    for _ in range(6):
        answer = list(search.propose(place.situation(), random.randint(1, 3)))
        check(place, answer)
        for proposal in answer:
            if len(proposal.config_overrides) == 1:
                continue
            assert "Several knobs" in proposal.rationale
        for proposal in answer:
            fate = random.random()
            hypothesis = None if fate < 0.6 else place.queue(proposal)
            if hypothesis is None:
                if full(place, proposal) not in seen(place):
                    place.run(proposal)
            elif fate > 0.8:
                place.open.remove(hypothesis)
                place.closed.append(hypothesis.model_copy(update={"closed": "abandoned"}))


# ── values ──────────────────────────────────────────────────────────────────────────────────


def test_equal_settings_are_equal_however_they_are_written() -> None:
    assert canonical(1) == canonical(1.0) != canonical(True)
    assert canonical([0.8, 0.95]) == canonical((0.8, 0.95))
    assert canonical(0.1 + 0.2) == canonical(0.3)
    assert canonical(1048576) != canonical(1048577)


@pytest.mark.parametrize(
    ("knob", "value", "wanted"),
    [
        (Knob(low=0.003, high=0.3, log=True), 0.04, [0.02, 0.08, 0.0286, 0.056]),
        (Knob(low=0.0, high=0.5), 0.2, [0.075, 0.325, 0.138, 0.263]),
        (Knob(low=0.0, high=0.2), 0.0, [0.05, 0.025]),
        (Knob(type="int", low=1, high=12), 3, [2, 4, 1, 5]),
        (Knob(type="int", low=16, high=128), 32, [16, 64, 24, 48]),
        (Knob(type="int", low=1, high=9999), 384, [192, 768, 288, 576]),
        (Knob(type="choice", choices=(16, 32, 64, 128)), 32, [16, 64]),
        (Knob(type="choice", choices=("L", "SL", "SSL")), "L", ["SL", "SSL"]),
        (Knob(type="choice", choices=(False, True)), False, [True]),
        (Knob(low=0.003, high=0.3, log=True), 5.0, [0.3]),
    ],
)
def test_steps_stay_round_and_inside(knob: Knob, value: Setting, wanted: list[Setting]) -> None:
    assert [step.value for step in Axis("X", knob).steps(value)] == wanted
