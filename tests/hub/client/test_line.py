"""The protocol's one line: what agents post by hand is understood, what we post comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.hub.result_line import ResultLine, parse, results_in, write

EXAMPLES = {
    "commit:a1b2c3d platform:H100 val_bpb:0.9932 vram_gb:44.2 | increase LR to 0.04":
        ResultLine("a1b2c3d", "H100", 0.9932, 44.2, "increase LR to 0.04"),
    "commit:b2c3d4e platform:M4-Max val_bpb:1.0050 vram_gb:44.0 | switch to GeLU (DISCARD)":
        ResultLine("b2c3d4e", "M4-Max", 1.005, 44.0, "switch to GeLU", "DISCARD"),
    "commit:c3d4e5f platform:A100 val_bpb:--- vram_gb:--- | double model width (CRASH: OOM)":
        ResultLine("c3d4e5f", "A100", None, None, "double model width", "CRASH", "OOM"),
}  # fmt: skip


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_protocol_are_read(text: str) -> None:
    assert parse(text) == EXAMPLES[text]
    assert parse(write(EXAMPLES[text])) == EXAMPLES[text]


lines = st.builds(
    ResultLine,
    commit=st.from_regex(r"[0-9a-f]{7}", fullmatch=True),
    platform=st.text(max_size=20) | st.sampled_from(["|", "a | b", "M4 Max"]),
    value=st.none() | st.floats(min_value=0, max_value=1e6),
    memory_gb=st.none() | st.floats(min_value=0, max_value=1e5),
    description=st.text(max_size=80)
    | st.sampled_from(
        ["undo the DISCARD", "a | b", "(CRASH)", "CRASHED", "x (DISCARD: y)", "use `x`"]
    ),
    mark=st.sampled_from(["", "DISCARD", "CRASH"]),
    reason=st.text(max_size=20),
    metric=st.just("val_bpb") | st.sampled_from(["accuracy", "val loss", "", "commit", "a:b|c"]),
)


@settings(deadline=None)
@given(lines)
def test_what_is_written_is_read_back(line: ResultLine) -> None:
    text = write(line)
    assert len(text.splitlines()) == 1
    assert parse(text) == line


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    for found in results_in(text):
        assert parse(write(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "commit:a1b2c3d platform:H100 val_bpb:nan vram_gb:1 | x",
        "commit:a1b2c3d platform:H100 val_bpb:-1 vram_gb:1 | x",
        "commit:a1b2c3d platform:H100 val_bpb:1e999 vram_gb:1 | x",
        "commit:zzz platform:H100 val_bpb:1 vram_gb:1 | x",
        "commit:a1b2c3d val_bpb:1 vram_gb:1 | no platform",
        "I saw that commit:a1b2c3d platform:H100 val_bpb:0.9 vram_gb:1 | is fast",
        "commit:a1b2c3d platform:H100 | no number",
        "",
    ],
)
def test_what_is_no_result_is_not_taken_for_one(text: str) -> None:
    assert parse(text) is None


def test_results_are_found_in_a_post_and_quoted_ones_are_left() -> None:
    own = "commit:a1b2c3d vram_gb:44.2 val_bpb:0.99 platform:H100 | CRASHED at first, then well"
    post = f"# two\n\n- `{next(iter(EXAMPLES))}`\n> {own.replace('0.99', '0.1')}\n{own}\n"
    found = results_in(post)
    assert [one.value for one in found] == [0.9932, 0.99]
    assert found[1].mark == "CRASH"
