"""What a person wrote in prose: proposers get it whole, and limits that nothing holds are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.charter import prose_limits
from autohypothesis.fleet.live.unbound_limits import unbound_limits
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.records.files import PAGE_LIMIT, read_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("VRAM under 39 GB", ("memory", 39 * 1024)),
        ("**Memory:** ≤ 39GB", ("memory", 39 * 1024)),
        ("Peak memory must not exceed 40,000 MB.", ("memory", 40_000)),
        ("Use no more than\n24 GiB of GPU memory.", ("memory", 24 * 1024)),
        ("39 GB of VRAM at most", ("memory", 39 * 1024)),
        ("It must fit into 24 GB", ("memory", 24 * 1024)),
        ("The model must fit on a 24GB card.", ("memory", 24 * 1024)),
        ("If a run exceeds 10 minutes, kill it.", ("time", 600)),
        ("Training must finish within 300 s.", ("time", 300)),
        ("At most 50M parameters.", ("parameters", 50)),
        ("keep the parameter count under 100 million", ("parameters", 100)),
        ("Do not change DEPTH.", ("name", "DEPTH")),
        ("`HEAD_DIM` must not be changed", ("name", "HEAD_DIM")),
        ("Leave WINDOW_PATTERN as it is.", ("name", "WINDOW_PATTERN")),
    ],
)
def test_a_plain_order_is_a_limit(text: str, limit: tuple[str, object]) -> None:
    (found,) = prose_limits(f"# Limits\n\n- fewer lines\n- {text}\n")
    assert (found.kind, found.name or found.amount) == limit
    assert found.line - 4 == text.partition("24")[0].count("\n")


@pytest.mark.parametrize(
    "text",
    [
        "It stayed under 39 GB at depth 12.", "We have up to 80 GB.", "A card with 80 GB",
        "Keep the data set under 10 GB.", "The script runs for a fixed time budget of 5 minutes.",
        "**VRAM** is a soft constraint. Some increase is acceptable.", "Answer within 5 minutes.",
        "Do not change more than one thing.", "Do not change DEPTH and HEAD_DIM at once.",
        "```\nVRAM under 39 GB\n```", "<!-- VRAM under 39 GB -->", "Is VRAM under 39 GB enough?",
        "Depth 12 was tried at most 10 minutes per run", "`run-loop --max 0 --hours 8` is a night.",
    ],
)  # fmt: skip
def test_a_story_an_example_and_another_size_are_no_limit(text: str) -> None:
    assert not list(prose_limits(f"# Notes\n\n{text}\n"))


@given(
    st.text(
        alphabet=st.sampled_from("underVRAM 39GBmost.`\n-*<!~#≤ 10 minparameters,()"), max_size=300
    )
)
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_and_its_lines_exist(text: str) -> None:
    lines = text.count("\n") + 1
    assert all(1 <= limit.line <= lines for limit in prose_limits(text))


def test_our_own_page_and_the_example_of_the_documents_name_no_limit_that_is_not_held() -> None:
    assert not list(prose_limits((ROOT / "program.md").read_text(encoding="utf-8")))
    page = (ROOT / "docs" / "program-md.md").read_text(encoding="utf-8")
    assert not list(prose_limits(page.split("````markdown")[1].split("````")[0]))


def test_status_names_what_the_prose_forbids_and_no_code_holds(fleet_project: Project) -> None:
    layout = fleet_project.layout
    prose = (
        "VRAM under 39 GB, and at most 50M parameters.\n\nDo not change RATE, WIDTH or `train.py`."
        " `README.md` must not be changed. No run longer than 5 minutes.\n"
    )
    layout.program.write_bytes(prose.encode() + b"\xff\r\n")
    assert read_text(layout.program, PAGE_LIMIT) == prose + "\ufffd\r\n"
    cures = ["memory_limit_mb: 39936", "num_params_M: {hard: 50}", "frozen: [RATE]",
             "frozen: [WIDTH]", "`artifacts`", "deadline_seconds: 300"]  # fmt: skip
    lines = [str(unbound) for unbound in unbound_limits(layout)]
    assert len(lines) == len(cures)
    assert all(cure in line for cure, line in zip(cures, lines, strict=True))
    assert lines[0].startswith("program.md, line 1, 'VRAM under 39 GB")
    assert set(lines) <= {need.what for need in overview(layout).needs}


@pytest.mark.parametrize("block", ["frozen: [RATE", "froozen: [RATE]", "ranges: {RATE: 0.1-0.3}"])
def test_status_names_a_block_that_cannot_be_read_where_no_observer_does(
    fleet_project: Project, block: str
) -> None:
    fleet_project.layout.program.write_text(f"# Goal\n\n```steering\n{block}\n```\n")
    (need,) = overview(fleet_project.layout).needs
    assert need.what.startswith("program.md line 4: ")


def test_what_a_block_or_the_task_holds_is_not_named(fleet_project: Project) -> None:
    layout = fleet_project.layout
    layout.root_task.write_text(
        "id: t\nartifacts: [train.py]\nrun: {deadline_seconds: 300}\n"
        "constraints: {num_params_M: {hard: 50}}\n"
    )
    layout.program.write_text(
        "VRAM under 39 GB, at most 50M parameters.\n\nNo run longer than 5 minutes.\n\n"
        "Do not change RATE.\n\n```steering\nmemory_limit_mb: 40000\nfrozen: [rate]\n```\n"
    )
    assert unbound_limits(layout) == []
    layout.program.write_text(
        "VRAM under 20 GB; 2 GPUs.\n\n```steering\nmemory_limit_mb: 40000\n```\n"
    )
    (unbound,) = unbound_limits(layout)
    assert unbound.limit.endswith("'VRAM under 20 GB; 2 GPUs.': no code holds that")
    assert unbound.cure.startswith("write `memory_limit_mb: 20480`")


def test_a_page_that_cannot_be_read_is_no_charter_and_stops_nothing(fleet_project: Project) -> None:
    layout = fleet_project.layout
    layout.program.mkdir()
    assert read_text(layout.program, PAGE_LIMIT) == "" and unbound_limits(layout) == []
