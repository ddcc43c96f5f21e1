"""Files of the format before this one are read as they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autohypothesis.errors import RecordError
from autohypothesis.fleet.roster.roster import read_manifest
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import load, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import FORMAT, Plan

BEFORE = Path(__file__).parent / f"format-{FORMAT - 1}"
"""A baseline and a kept change, as the last version with that format left them."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Path(shutil.copytree(BEFORE, tmp_path / "search")))


def test_the_previous_format_folds_to_the_rows_that_it_had(layout: Layout) -> None:
    before = [json.loads(line) for line in layout.ledger.read_text().splitlines()]
    layout.ledger.unlink()
    sync(layout)
    rows = [json.loads(line) for line in layout.ledger.read_text().splitlines()]
    before[0]["delta"] = 0.0  # a baseline had null
    assert [{key: row[key] for key in old} for row, old in zip(rows, before, strict=True)] == before
    assert len(rows) == 2 and {row["status"] for row in rows} == {"keep"}


def test_manifest_and_plans_of_the_previous_format_are_read(layout: Layout) -> None:
    manifest = read_manifest(layout)
    assert manifest is not None and (manifest.tag, manifest.format) == ("t", FORMAT)
    for path in layout.plans.glob("*.json"):
        assert load(Plan, path).experiment_id == path.stem


def test_a_newer_format_is_refused_by_name(layout: Layout) -> None:
    document = json.loads(layout.manifest.read_text())
    write_json(layout.manifest, {**document, "format": FORMAT + 1})
    with pytest.raises(RecordError, match=r"manifest\.json.*format"):
        read_manifest(layout)
