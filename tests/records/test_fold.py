"""The pure fold: what a bundle says, what was decided, and what older tools left."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from autohypothesis.fleet.sync import sync
from autohypothesis.records.history import best_kept
from autohypothesis.records.ledger import parse_ledger, refold
from autohypothesis.records.rows import curve
from autohypothesis.schema import Row


def folded(lab: Any) -> dict[str, Row]:
    """The rows of a cold fold, by id."""
    rows = parse_ledger(refold(lab.layout, cold=True).content)
    return {row["id"]: Row.model_validate(row) for row in rows}


def test_a_bundle_becomes_a_row(lab: Any) -> None:
    lab.whole("h-nov20-0001-1", 1.5, "keep")
    row = folded(lab)["h-nov20-0001-1"]
    assert (row.status, row.execution_status, row.decision_status) == ("keep", "completed", "keep")
    assert (row.val_bpb, row.metric_value, row.ordinal, row.delta) == (1.5, 1.5, 1, 0.0)
    assert (row.peak_vram_gb, row.depth, row.num_steps, row.seed) == (2.0, 4, 100, 7)
    assert (row.matrix_lr, row.adam_betas) == (0.04, [0.8, 0.95])
    assert row.rationale == "because"
    assert row.bpb_at_checkpoints == {"25": 1.875, "50": 1.75, "75": 1.625, "100": 1.5}
    assert row.still_improving is True
    assert row.improvement_rate == pytest.approx(0.5)
    assert row.train_bpb == 1.5
    assert not row.notes


def test_order_and_delta_follow_the_decisions_of_each_tag(lab: Any) -> None:
    for name, value, status in [
        ("a-1", 1.50, "keep"), ("b-1", 1.40, "keep"), ("c-1", 1.45, "discard"),
        ("d-1", None, "crash"), ("e-1", 1.30, "keep"),
    ]:  # fmt: skip
        lab.whole(name, value, status)
    lab.bundle("other-1", 0.5, tag="nov21")
    lab.decide("other-1", "keep", 0.5, tag="nov21")
    lab.bundle("f-1", 1.2)
    rows = folded(lab)
    assert [rows[key].ordinal for key in ("a-1", "b-1", "c-1", "d-1", "e-1")] == [1, 2, 3, 4, 5]
    assert [rows[key].delta for key in ("a-1", "b-1", "c-1", "d-1", "e-1")] == [
        0.0, pytest.approx(-0.1), pytest.approx(0.05), None, pytest.approx(-0.1),
    ]  # fmt: skip
    assert (rows["other-1"].ordinal, rows["other-1"].delta) == (1, 0.0)
    assert (rows["f-1"].ordinal, rows["f-1"].delta, rows["f-1"].status) == (None, None, "completed")
    assert list(rows) == ["a-1", "b-1", "c-1", "d-1", "e-1", "other-1", "f-1"]


def test_only_one_platform_is_compared(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    run = lab.bundle("b-1", 1.2)
    metadata = json.loads((run / "metadata.json").read_text())
    metadata["runtime"]["platform_key"] = "another"
    lab.put(run / "metadata.json", metadata)
    lab.decide("b-1", "keep", 1.2, platform_key="another")
    assert folded(lab)["b-1"].delta == 0.0


def test_more_may_be_better(lab: Any) -> None:
    for name, value in (("a-1", 0.7), ("b-1", 0.9), ("c-1", 0.8)):
        lab.bundle(name, None, metric_name="accuracy", metric_value=value, direction="maximize")
        lab.decide(name, "keep" if value != 0.8 else "discard", value)
    rows = folded(lab)
    assert rows["b-1"].delta == pytest.approx(0.2)
    assert rows["c-1"].delta == pytest.approx(-0.1)
    assert rows["c-1"].val_bpb is None


def test_a_retracted_keep_is_compared_with_no_more(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    lab.whole("b-1", 1.1, "keep")
    lab.decide("b-1", "discard", 1.1, confirmation="refuted")
    lab.whole("c-1", 1.4, "keep")
    rows = folded(lab)
    assert rows["c-1"].delta == pytest.approx(-0.1)
    assert (rows["b-1"].status, rows["b-1"].ordinal) == ("discard", 2)
    assert rows["b-1"].delta == pytest.approx(-0.4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "0.000000", "nan", True, "x"])
def test_what_is_no_score_is_null_and_never_the_best(lab: Any, value: object) -> None:
    lab.bundle("a-1", value, metric_value=value)
    lab.decide("a-1", "keep", 0.0)
    lab.whole("b-1", 1.5, "keep")
    rows = folded(lab)
    assert (rows["a-1"].val_bpb, rows["a-1"].metric_value) == (None, None)
    assert (rows["b-1"].delta, rows["b-1"].ordinal) == (0.0, 2)


def test_a_bundle_of_an_older_tool(lab: Any) -> None:
    run = lab.layout.runs / "Exp_007"
    lab.put(run / "config.json", {"hyperparameters": {"DEPTH": 8, "MATRIX_LR": "0.04"}})
    lab.put(
        run / "result.json",
        {
            "status": "completed",
            "decision_status": "keep",
            "recorded_at": "2025-11-20T01:02:03",
            "commit": "abc1234",
            "metrics": {"val_bpb": "0.9979", "peak_vram_gb": "44.5", "num_steps": "953"},
        },
    )
    (row,) = folded(lab).values()
    assert row.id.startswith("exp-007-")
    assert row.model_extra == {"source_id": "Exp_007"}
    assert (row.val_bpb, row.peak_vram_gb, row.num_steps) == (0.9979, 44.5, 953)
    assert (row.depth, row.matrix_lr) == (8, 0.04)
    assert row.timestamp is not None
    assert row.timestamp.isoformat() == "2025-11-20T01:02:03+00:00"
    assert (row.status, row.decision_status, row.decided_by) == ("keep", "keep", "imported")


def test_an_old_crash_at_zero(lab: Any) -> None:
    lab.bundle("a-1", 0.0, status="failed", decision_status="crash", metric_value=None)
    lab.bundle("b-1", 1.2, status="failed", failure_kind="timeout", failure_detail="600 s passed")
    old, new = folded(lab)["a-1"], folded(lab)["b-1"]
    assert (old.status, old.decision_status, old.val_bpb) == ("crash", "crash", None)
    assert (new.status, new.val_bpb, new.failure_kind) == ("failed", None, "timeout")
    assert new.notes == ["600 s passed"]


def test_a_stamp_is_shown_only_while_its_record_may_be_one_that_cannot_be_read(lab: Any) -> None:
    lab.bundle("a-1", 1.5, decision_status="keep", decision_id="d-77")
    lab.bundle("b-1", 1.5, decision_status="keep")
    rows = folded(lab)
    assert (rows["a-1"].status, rows["a-1"].decision_status) == ("damaged", "keep")
    assert "'d-77', which decisions.jsonl lacks" in rows["a-1"].notes[0]
    assert (rows["b-1"].status, rows["b-1"].decision_status) == ("completed", "review_pending")
    lab.layout.decisions.write_bytes(b"\xff\n")
    sync(lab.layout)
    rows = lab.rows()
    assert (rows["a-1"]["status"], rows["a-1"]["ordinal"]) == ("keep", None)
    assert best_kept(list(rows.values())) is None


def test_planned_running_and_abandoned_runs(lab: Any) -> None:
    from autohypothesis.records.locks import Process

    for name in ("planned-1", "running-1", "dead-1", "ended-1"):
        lab.plan(name)
    own = Process.own()
    lab.put(lab.layout.run("running-1").shim, {"pid": own.pid, "start": own.start})
    lab.put(lab.layout.run("dead-1").shim, {"pid": own.pid, "start": own.start - 9})
    ended = {"experiment_id": "ended-1", "status": "exited", "exit_code": 0}
    ended["ended_at"] = "2026-11-20T00:00:00Z"
    lab.put(lab.layout.run("ended-1").exit, ended)
    rows = folded(lab)
    assert {row.id: row.status for row in rows.values()} == {
        "planned-1": "planned", "running-1": "running", "dead-1": "failed", "ended-1": "completed",
    }  # fmt: skip
    assert rows["dead-1"].failure_kind == "infra"
    assert "not collected" in rows["ended-1"].notes[0]
    assert rows["planned-1"].description == "idea planned-1"


def test_one_bad_file_makes_its_row_invalid(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    lab.whole("b-1", 1.4, "keep")
    lab.layout.run("b-1").result.write_text('{"status": "great"}')
    rows = folded(lab)
    assert rows["b-1"].status == "artifact_invalid"
    assert rows["b-1"].notes[0].startswith("result.json is not as it should be: status")
    assert rows["a-1"].status == "keep"


def test_a_decision_outlives_its_bundle(lab: Any) -> None:
    lab.decide("a-1", "keep", 1.5, commit="abc", detail="gone")
    row = folded(lab)["a-1"]
    assert (row.status, row.val_bpb, row.commit, row.ordinal) == ("keep", 1.5, "abc", 1)


def test_a_decision_written_twice_counts_once(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    line = lab.layout.decisions.read_text()
    lab.layout.decisions.write_text(line + line)
    lab.whole("b-1", 1.4, "keep")
    assert folded(lab)["b-1"].ordinal == 2


# ── curves ──────────────────────────────────────────────────────────────────────────────────


def test_a_noisy_flat_end_is_no_improvement() -> None:
    noisy = [[k / 40, 1.0, 2.0 + (0.01 if k % 2 else -0.01), 1.0] for k in range(41)]
    assert curve(noisy, 60).still_improving is False


def test_samples_that_are_few_torn_or_out_of_order() -> None:
    assert curve([], 60).checkpoints == {}
    assert curve([[0.5, 1.0]], 60).last is None
    assert curve([[None, 1.0, None, None], [0.5, None, 1.5, None]], 60).checkpoints == {"50": 1.5}
    seen = curve([[1.0, 0, 1.0, 0], [0.25, 0, 2.0, 0], [0.5, 0, 1.5, 0]], None)
    assert (seen.last, seen.rate, seen.still_improving) == (1.0, None, None)
    assert seen.checkpoints == {"25": 2.0, "50": 1.5, "100": 1.0}
