"""analysis.ipynb runs as it is, and its cells compute what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import run
from autohypothesis.fleet.sync import sync
from tests.conftest import ROOT

EXAMPLE = ROOT / "docs" / "example"
ASK = """
import json
print("ANSWER" + json.dumps({
    "statuses": experiments["status"].tolist(), "values": experiments["value"].tolist(),
    "best": running_best.tolist(), "gains": gains["gain"].tolist(), "in_all": gains["in_all"].tolist(),
    "keep_rate": keep_rate, "kinds": rates.reset_index().to_dict("records"),
    "pairs": pairs[["predicted", "measured"]].to_numpy().tolist(), "memory": experiments["memory_gb"].tolist(),
}, default=float))
"""  # noqa: E501
Answer = dict[str, Any]
Notebook = Callable[[Path], tuple[Answer, int]]


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """Runs it in a folder: what its names hold at the end, and how many pictures it drew."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(folder: Path) -> tuple[Answer, int]:
        book = nbformat.read(ROOT / "analysis.ipynb", as_version=4)
        book.cells.append(nbformat.v4.new_code_cell(ASK))
        NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
        outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
        said = "".join(output.get("text", "") for output in outputs)
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        return json.loads(said.split("ANSWER")[1]), pictures

    return execute


def test_no_outputs_are_stored() -> None:
    book = json.loads((ROOT / "analysis.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_the_example_of_the_documents(notebook: Notebook, tmp_path: Path) -> None:
    """From experiments.jsonl; the table of another loop is read from results.tsv."""
    said, pictures = notebook(Path(shutil.copytree(EXAMPLE, tmp_path / "example")))
    assert pictures == 3
    assert said["statuses"] == ["keep", "keep", *["discard"] * 9]
    assert said["best"] == pytest.approx([1.963458, *[1.905149] * 10], abs=1e-6)
    assert said["gains"][1:] == pytest.approx([0.058309], abs=2e-6)
    assert said["in_all"] == pytest.approx([0.0, 0.058309], abs=2e-6)
    assert said["keep_rate"] == pytest.approx(0.1)
    assert said["kinds"][0] == {
        "kind": "DEPTH",
        "tried": 3,
        "kept": 1,
        "rate": pytest.approx(1 / 3),
    }
    assert said["pairs"] == []


def test_a_table_of_another_loop(notebook: Notebook, tmp_path: Path) -> None:
    (tmp_path / "results.tsv").write_text(
        "commit\tval_bpb\tpeak_vram_mb\tstatus\tdescription\n"
        '0aaaaaa\t0.9979\t38400\tkeep\tthe "original\n'
        "a3f2c91\t0.9697\t51200\tkeep\tSwiGLU\n"
        "c1a5f30\tcrash\t—\tcrash\tOOM\n"
        "d1a5f30\t0.000000\t0\tcrash\tOOM\n"
    )
    said, _ = notebook(tmp_path)
    assert said["memory"][:2] == [37.5, 50.0]
    assert said["best"] == [0.9979, *[0.9697] * 3] and said["keep_rate"] == pytest.approx(1 / 3)
    assert said["kinds"] == [{"kind": "code", "tried": 3, "kept": 1, "rate": pytest.approx(1 / 3)}]


def test_a_fresh_search_with_a_prediction_and_a_crash(notebook: Notebook, foreign: Path) -> None:
    project = Project.open(foreign).with_tag("t")
    changes = [Change(), Change(overrides={"RATE": 0.3}),
               Change(overrides={"MODE": "crash"})]  # fmt: skip
    for number, change in enumerate(changes):
        finished = run(
            project, Experiment(change, title=f"RATE {number}" if number else "baseline")
        )
        settle(project, [finished.experiment_id], decided_by="test")
        if number == 1:
            plan = project.layout.plan(finished.experiment_id)
            document = json.loads(plan.read_text())
            document["hypothesis"]["prediction"] = {"delta": -0.05}
            plan.write_text(json.dumps(document))
    sync(project.layout)
    said, pictures = notebook(foreign)
    assert said["statuses"] == ["keep", "keep", "crash"] and pictures == 4
    assert said["gains"][1] == pytest.approx(0.04)
    assert said["pairs"] == [[-0.05, pytest.approx(-0.04)]]
    assert said["kinds"] == [{"kind": "RATE", "tried": 2, "kept": 1, "rate": 0.5}]


def test_a_search_that_has_not_begun(notebook: Notebook, tmp_path: Path) -> None:
    (tmp_path / "experiments.jsonl").write_text("")
    said, _ = notebook(tmp_path)
    assert said["statuses"] == [] and said["kinds"] == []
