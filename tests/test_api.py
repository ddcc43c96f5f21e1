"""The Python API: the example of docs/python.md, and what is lazy about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis import Search
from autohypothesis.errors import ChangeError, QueueError
from tests.conftest import ROOT

EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_example_of_the_page_runs(foreign: Path) -> None:
    (example,) = EXAMPLE.findall((ROOT / "docs" / "python.md").read_text())
    assert len(example.splitlines()) <= 12
    answer = subprocess.run(
        [sys.executable, "-c", example], cwd=foreign, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    *table, best = answer.stdout.splitlines()
    assert [line.split()[1:] for line in table[1:]] == [
        ["baseline-t-1", "keep", "1.04"], ["h-t-0001-1", "keep", "1.01"]
    ]  # fmt: skip
    assert best == "h-t-0001-1 1.01"


def test_what_cannot_work_is_refused_before_it_waits(foreign: Path) -> None:
    search = Search(foreign, tag="t")
    assert (search.tag, search.rows(), search.best()) == ("t", [], None)
    with pytest.raises(ChangeError, match="NO_SUCH"):
        search.propose({"NO_SUCH": 1})
    search.propose({"RATE": 0.2})
    with pytest.raises(QueueError, match="not taken"):
        search.propose({"RATE": 0.2}, title="the same")


def test_the_package_alone_imports_nothing() -> None:
    code = "import sys, autohypothesis; print([m for m in sys.modules if 'autohypothesis.' in m])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout == "[]\n"
