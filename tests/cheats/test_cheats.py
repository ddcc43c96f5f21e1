"""Trainings that cheat the score, on the `test` profile: each is prevented, or detected by name."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import pytest

from autohypothesis import sandbox
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.inputs import Inputs, find_inputs
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import run
from autohypothesis.schema import FailureKind, Result
from tests.conftest import run_git

HERE = Path(__file__).parent
BASE = (HERE / "base.txt").read_text()
HONEST: tuple[None, str] = None, ""
"""What was tried had no effect: the score is the one that the same model has without it."""
OPEN = HONEST
"""It is possible, and the row does not say that it was done; docs/trust.md does."""
EXPECTED: dict[str, tuple[FailureKind | None, str]] = {
    "answers_before_it_computes": ("nan", "not finite"),
    "blames_the_disk": ("code_error", "No space left on device"),
    "claims_a_full_disk": ("code_error", "No space left on device"),
    "edits_packages": HONEST,
    "ends_itself": ("code_error", "SIGKILL: the machine knows no reason"),
    "dresses_its_logits": HONEST,
    "hides_a_helper": HONEST,
    "knows_the_questions": ("invalid", "the model looks"),
    "leaves_a_helper": HONEST,
    "leaves_itself_changed": ("invalid", "train.py was changed"),
    "looks_ahead_in_company": ("invalid", "the model looks"),
    "looks_ahead_later": ("invalid", "the model looks"),
    "looks_for_targets": HONEST,
    "notes_for_the_next_host": HONEST,
    "prints_a_better_score": HONEST,
    "patches_the_evaluator": HONEST,
    "prints_an_answer": ("code_error", "process ended before it answered"),
    "prints_false_facts": HONEST,
    "puts_files_back": HONEST,
    "reads_the_library": OPEN,
    "reads_the_text": HONEST,
    "remembers_rows": ("invalid", "the model looks"),
    "rewrites_the_weights": HONEST,
    "sends_a_daemon": HONEST,
    "shadows_a_dependency": HONEST,
    "spells_out_data": HONEST,
    "takes_earlier_weights": HONEST,
    "tells_the_next_row": ("invalid", "the model looks at"),
    "works_after_the_clock": ("invalid", "of cpu time outside of its clock"),
    "works_before_the_clock": ("invalid", "of cpu time outside of its clock"),
}
REMARKS = {
    "prints_false_facts": (
        "it printed depth 99, which is 4",
        "it printed seed 7",
        "it printed num_params_M 1000",
        "it printed training_seconds 0.001",
    ),
    "spells_out_data": ("train.py:6 is a line of 3,0",),
}
"""What is noted in the row, and shown with a keep."""
AS_A_CHANGE = ("spells_out_data", "works_after_the_clock", "works_before_the_clock")


def test_every_cheat_says_what_it_tries_and_has_an_expected_end() -> None:
    files = {path.stem: path for path in HERE.glob("*.py")}
    del files["conftest"], files[Path(__file__).stem]
    assert files.keys() == EXPECTED.keys()
    assert all(path.read_text().startswith('"""Tries to ') for path in files.values())


def outcome(project: Project, name: str) -> Result:
    """The result of a cheat; of some as a change, which is seen beside an honest baseline."""
    root, source = project.layout.root, (HERE / f"{name}.py").read_text() + BASE
    if name in AS_A_CHANGE:
        assert run(project, Experiment(Change())).result.status == "completed"
        tree = project.repository.tree_with(project.reference(), {"train.py": source.encode()})
        return run(project, Experiment(Change(tree=tree))).result
    (root / "train.py").write_text(source)
    run_git(root, "commit", "-qam", "a cheat")
    project = Project.open(root).with_tag("cheat")
    return run(project, Experiment(Change())).result


@pytest.mark.slow
def test_without_a_sandbox_a_printed_score_that_the_weights_do_not_have_is_invalid(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: "none")
    result = outcome(project, "prints_a_better_score")
    assert (result.failure_kind, result.attested) == ("invalid", False)
    assert "printed a score of 0.5, its weights have " in result.failure_detail


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_cheat_is_prevented_or_detected(
    project: Project,
    name: str,
    kind: sandbox.Kind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not sandbox.works(kind):
        pytest.skip(f"{kind} does not work here")
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: kind)
    earlier = project.layout.run("earlier").weights
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"weights")
    result = outcome(project, name)
    expected, words = EXPECTED[name]
    assert result.failure_kind == expected, result.failure_detail
    assert words in result.failure_detail
    noted = "\n".join(result.evidence["remarks"])
    assert all(remark in noted for remark in REMARKS.get(name, ())), noted
    assert bool(noted) == (name in REMARKS)
    if expected is None:
        inputs = find_inputs(project.task, project.layout.root)
        assert isinstance(inputs, Inputs)
        facts = next(iter(inputs.reports.values())).model_dump()["constants"]
        uniform = facts["eval_tokens"] * math.log2(facts["vocab_size"]) / facts["eval_bytes"]
        assert result.metric_value == pytest.approx(uniform, rel=1e-6)
        assert result.attested and result.evidence["scorer"]["scored"] == "outside"
        assert result.evidence["scorer"]["evaluator"]["validation_hidden"] is False
    if expected is None and name not in AS_A_CHANGE:  # what is recorded is what was scored
        (recorded,) = {*earlier.parents[1].glob("*/weights.pt")} - {earlier}
        with zipfile.ZipFile(recorded) as weights:
            assert not any(weights.read("weights/data/0"))
