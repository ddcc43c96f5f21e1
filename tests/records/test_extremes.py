"""Extreme values in any field of any document: each costs its own record, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from autohypothesis import system
from autohypothesis.fleet.overview.digest import digest
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.fleet.overview.results import device_intervals
from autohypothesis.fleet.sync import sync
from autohypothesis.records.bundles import canonical
from autohypothesis.records.files import parse_json, to_json
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import EARLIEST, FILES, LATEST, now, rfc3339, utc, whole

EXTREMES = (
    '"0001-01-01T00:00:00+01:00"', '"9999-12-31T23:59:59-14:00"', '"10000-01-01T00:00:00Z"',
    '"1969-12-31T23:59:59.999Z"', '"9999-12-31T23:59:59.999Z"', "1e999", "-1e999", "NaN", "null",
    "99999999999999999999", "18446744073709551616", "9223372036854775808", f"1{'0' * 400}",
    f"-1{'0' * 400}", "-5", "0", "1e308", "-1e308", "5e-324", "true", "[]", "{}", '"x"', '""',
    '"1e999"', r'"\ud800"', f"[[1{'0' * 400}, null, 1e308, -1]]", "253402300800", "-62135596801",
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, item in inner:
        yield (*at, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*at, key))


def changed(document: Any, at: tuple[Any, ...], raw: str) -> str:
    """The JSON text of `document` with `raw` in one place."""
    copy = here = json.loads(json.dumps(document))
    for key in at[:-1]:
        here = here[key]
    here[at[-1]] = "in its place"
    return json.dumps(copy).replace('"in its place"', raw)


@pytest.fixture(scope="module")
def whole_lab(new_lab: Any) -> Any:
    """A decided experiment that stays as it is, and one whose files are changed."""
    lab = new_lab()
    lab.whole("good-1", 1.5, "keep")
    lab.whole("bad-1", 1.4, "keep")
    root = str(lab.root)
    moment = rfc3339(now())
    lab.put(
        lab.layout.manifest,
        {"tag": "nov20", "created_at": moment, "repository_root": root, "workers": [],
         "shared_research_dir": root},
    )  # fmt: skip
    beat = {"worker_id": "cpu0", "updated_at": moment, "started_at": moment, "since": moment,
            "pid": 1, "process_start": 1.5, "busy_seconds": 3, "state": "training",
            "progress": {"progress_pct": 3}, "metrics": {"train_loss": 1}}  # fmt: skip
    lab.put(lab.layout.heartbeat("cpu0"), beat)
    lab.put(lab.layout.role("observer"), {**beat, "role": "observer", "last_action_at": moment})
    lab.put(lab.layout.run("live-1").shim, {"pid": 1, "start": 1.5, "boot": system.boot_id()})
    sync(lab.layout)
    return lab, {name: where(lab.layout).read_bytes() for name, where in TARGETS.items()}


TARGETS = {
    "config": lambda layout: layout.run("bad-1").config,
    "metadata": lambda layout: layout.run("bad-1").metadata,
    "result": lambda layout: layout.run("bad-1").result,
    "exit": lambda layout: layout.run("bad-1").exit,
    "plan": lambda layout: layout.plan("bad-1"),
    "shim": lambda layout: layout.run("live-1").shim,
    "manifest": lambda layout: layout.manifest,
    "heartbeat": lambda layout: layout.heartbeat("cpu0"),
    "role": lambda layout: layout.role("observer"),
    "leaderboard": lambda layout: layout.leaderboard,
    "decisions": lambda layout: layout.decisions,
}


def look(lab: Any) -> None:
    """Every reader of the whole; the experiment that nobody touched is as it was."""
    layout = lab.layout
    sync(layout, all=True)
    rows = read_ledger(layout)
    (good,) = [row for row in rows if row["id"] == "good-1"]
    assert (good["status"], good["val_bpb"], good["ordinal"]) == ("keep", 1.5, 1)
    overview(layout)
    digest(layout, "nov20")
    digest(layout, "nov20", since_hours=1)
    device_intervals(layout, rows, None, now())
    for path in (layout.ledger, layout.aggregate_experiments, layout.problems, layout.leaderboard):
        path.read_bytes().decode()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_extreme_value_anywhere_costs_its_own_record(whole_lab: Any, data: Any) -> None:
    lab, originals = whole_lab
    name = data.draw(st.sampled_from(sorted(TARGETS)))
    *lines, last = originals[name].strip().split(b"\n") if name == "decisions" else [
        originals[name]
    ]  # fmt: skip
    document = json.loads(last)
    at = data.draw(st.sampled_from(list(places(document))))
    text = changed(document, at, data.draw(st.sampled_from(EXTREMES)))
    path = TARGETS[name](lab.layout)
    path.write_bytes(b"\n".join([*lines, text.encode()]) + b"\n")
    try:
        look(lab)
    finally:
        path.write_bytes(originals[name])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_model_refuses_a_value_or_writes_it_so_that_it_reads_the_same(
    name: str, data: Any
) -> None:
    model: type[BaseModel] = FILES[name]
    fields = list(model.model_fields)
    document = {
        field: parse_json(data.draw(st.sampled_from(EXTREMES)).encode())
        for field in data.draw(st.lists(st.sampled_from(fields), unique=True))
    }
    try:
        made = model.model_validate(document)
    except ValidationError:
        return
    written = to_json(made).encode()
    assert to_json(model.model_validate(parse_json(written))).encode() == written
    assert canonical(model, written) == canonical(model, to_json(parse_json(written)).encode())


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-14:00",
                                  "10000-01-01T00:00:00Z", "1969-12-31T23:59:59Z"])  # fmt: skip
def test_what_is_no_time_of_an_experiment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        utc(text)


def test_the_first_and_the_last_time_can_be_computed_with() -> None:
    for moment in (utc(rfc3339(EARLIEST)), utc(LATEST - timedelta(milliseconds=1))):
        assert isinstance(moment, type(EARLIEST))
        assert moment - timedelta(seconds=1e8) < moment + timedelta(seconds=1e8)


@pytest.mark.parametrize(
    ("value", "read"),
    [(2**63, None), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2**53 + 1, 2**53 + 1),
     (10**400, None), ("18446744073709551616", None), (True, None), ("1,000", 1000)],
)  # fmt: skip
def test_an_integer_has_64_bits_and_keeps_them_all(value: object, read: int | None) -> None:
    assert whole(value) == read


@pytest.mark.parametrize("pid", [0, -1, -(2**40), 2**31, 2**70, 10**400])
@pytest.mark.parametrize("start", [0.0, 1e308, 10**400])
def test_what_is_no_process_is_neither_alive_nor_signalled(pid: int, start: float) -> None:
    assert not system.is_alive(pid, start)
    assert not system.signal_process(pid, start, 0)
    system.wait_for_end(pid, 0.0)
