"""Pages about the files say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autohypothesis import schema
from autohypothesis.errors import UsageError
from autohypothesis.records.layout import Layout, Place, RunPaths, checked_id
from tests.docs.files_page import PAGE, page

ROOT = Path(schema.__file__).resolve().parents[1]


def code_paths() -> set[str]:
    """Every path below research/ that a Layout gives, with its placeholders."""
    layout = Layout(Path("/r"))
    run, plans = layout.runs / "<experiment_id>", layout.plans
    found = {
        getattr(layout, name) for name, value in vars(Layout).items() if isinstance(value, Place)
    }
    found |= {getattr(RunPaths(run), n) for n, v in vars(RunPaths).items() if isinstance(v, Place)}
    for derived in (layout.brief, layout.registry):
        found |= {layout.written_copy(derived), layout.replaced_version(derived)}
    found |= {plans / "<experiment_id>.json", plans / "<experiment_id>.md"}
    found |= {layout.hypotheses(state) for state in ("pending", "done")}
    found |= {layout.hypotheses(state) / "<worker>" for state in ("dispatched", "running")}
    found |= {layout.heartbeat("x").with_name("<worker>.json"), layout.locks / "<name>.lock"}
    inside = {str(path.relative_to("/r/research")) for path in found if "/research/" in str(path)}
    folders = {"plans", "runs", "aggregate", "locks"}
    return inside - folders


def page_paths() -> set[str]:
    text = (ROOT / "research" / "README.md").read_text()
    tree = re.search(r"```\n(.*?)```", text, re.S)
    assert tree is not None
    return {line.split()[0].rstrip("/") for line in tree[1].splitlines()}


def test_the_readme_shows_the_tree_of_the_code() -> None:
    assert page_paths() == code_paths()


def test_docs_files_is_current() -> None:
    assert (ROOT / PAGE).read_text() == page(), "run python -m tests.docs.files_page"


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a-", "x" * 64, "a\n", "ä", "a b"])
def test_no_id_leaves_its_folder(name: str) -> None:
    with pytest.raises(UsageError):
        checked_id(name)
