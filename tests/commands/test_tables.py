"""Tables: whole in a pipe; on a narrow terminal columns are left out before a text is cut."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, Group, RenderableType
from rich.text import Text

from autohypothesis.terminal.experiments import runs_table
from autohypothesis.terminal.parts import SHORTENED, TextTable, facts, grid, paragraphs, titled
from autohypothesis.terminal.screen import Screen

ROW = {
    "id": "h-a-long-name-0001-1", "status": "keep", "val_bpb": 1.5, "metric_value": 1.5,
    "metric_name": "val_bpb", "delta": -0.1, "peak_vram_gb": 1.5, "num_steps": 410,
    "description": "MATRIX_LR 0.04 -> 0.08, again",
}  # fmt: skip


def shown(item: RenderableType, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(item)
    return text.getvalue()


@pytest.mark.parametrize(
    ("width", "names"),
    [(120, {"memory", "steps"}), (90, {"memory"}), (80, set()), (60, set())],
)
def test_memory_and_steps_give_way_before_the_description(width: int, names: set[str]) -> None:
    text = shown(runs_table([ROW]), width)
    head, line = text.splitlines()
    assert {"memory", "steps"} & set(head.split()) == names
    assert ROW["description"] in line or width < 80
    assert "…" in line or width >= 80, "what is cut ends in an ellipsis"
    assert ROW["id"] in line and len(line) <= width


@pytest.mark.parametrize("width", range(20, 80, 3))
def test_on_any_screen_a_cell_is_whole_or_ends_in_an_ellipsis(width: int) -> None:
    cells = ["h-nov30-0002-1", "1.863542", "12.5GB", "-0.0679/0.03", "search", "0.4213"]
    lines = shown(TextTable([f"name{at}" for at in range(6)], [cells], right=[1, 2]), width)
    assert max(map(len, lines.splitlines())) <= width
    words = lines.splitlines()[1].split()
    assert len(words) == len(cells)
    for word, cell in zip(words, cells, strict=True):
        assert word == cell or (word[-1] == "…" and cell.startswith(word[:-1])), lines


class Pipe(io.StringIO):
    def isatty(self) -> bool:
        return False


def test_nothing_is_cut_where_the_output_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    pipe: Any = Pipe()
    monkeypatch.setattr("sys.stdout", pipe)
    long = "a sentence of more than a line " * 6
    Screen().print(runs_table([ROW | {"description": long}] * 2))
    Screen().print(titled("lines", grid([("name", long)], {"no_wrap": True}, SHORTENED)))
    Screen().print(Group(facts([("best", long)]), paragraphs("!", [long]), Text(f"next: {long}")))
    lines = pipe.getvalue().splitlines()
    assert [line.count(long.strip()) for line in lines] == [0, 1, 1, 0, 0, 1, 1, 1, 1]
    assert "steps" in lines[0] and "…" not in pipe.getvalue()


def test_a_pipe_that_is_told_its_width_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    pipe: Any = Pipe()
    monkeypatch.setattr("sys.stdout", pipe)
    Screen().print(runs_table([ROW]))
    assert all(len(line) <= 40 for line in pipe.getvalue().splitlines())
