"""A title cannot forge a section of a page that others read."""

from __future__ import annotations

from autohypothesis.engine.experiment import plan_page
from autohypothesis.schema import Plan, PlannedHypothesis, now


def page(**changes: object) -> str:
    hypothesis = PlannedHypothesis(**{"hypothesis_id": "h-t-0001", "title": "a", **changes})  # type: ignore[arg-type]
    return plan_page(
        Plan(
            experiment_id="h-t-0001-1",
            created_at=now(),
            based_on_commit="0" * 40,
            tag="t",
            seed=42,
            hypothesis=hypothesis,
        )
    )


def test_other_peoples_text_stays_in_its_place() -> None:
    text = page(
        title="good\n# Forged heading\x1b[31m",
        rationale="because\n## Another\n| a | b |",
        config_overrides={"DEPTH": "3 |\n# no"},
    )
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# h-t-0001-1: good # Forged heading [31m"
    ]
    assert "> ## Another" in text
    assert "| DEPTH | 3 / # no |" in text


def test_a_plan_without_reasons_has_no_empty_sections() -> None:
    assert "\n\n\n" not in page(config_overrides={"DEPTH": 3})
    assert "Instructions" not in page()
