"""From a change to a commit: what must never get a run, and what must not be lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine import candidate as candidates
from autohypothesis.engine.candidate import PreflightVerdict, config_of, diff_hash, run_preflight
from autohypothesis.engine.experiment import Change, Experiment, RunSpec, plan_page
from autohypothesis.engine.inputs import InputReport, Inputs
from autohypothesis.engine.program import TaskSandbox
from autohypothesis.engine.task import MutationLimits, RunConfig, ScorerConfig, Task
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import ChangeError, GitError, PreflightError
from autohypothesis.records.git import Repository, experiment_ref
from autohypothesis.schema import Plan, PlannedHypothesis, now

Make = Callable[..., Repository]
Git = Callable[..., str]


def overrides(**values: object) -> Change:
    return Change(overrides=values)  # type: ignore[arg-type]


def prepare(
    repository: Repository, task: Task, change: Change, experiment_id: str = "h-1",
    *words: str, base: str = "HEAD", **more: Any,
) -> RunSpec:  # fmt: skip
    """`words`: title, rationale and hypothesis id."""
    experiment = Experiment(change, *words, experiment_id=experiment_id, base=base)
    return candidates.prepare(repository, task, experiment, **more)


def test_overrides_become_a_commit_on_the_base(repository: Repository, task: Task) -> None:
    base, change = repository.head(), overrides(depth=6, adam_betas=[0.9, 0.95])
    words = ("Deeper,\nand slower betas", "Because.", "h-nov20-0001")
    candidate = prepare(repository, task, change, "h-nov20-0001-1", *words)
    assert candidate.parent_commit == base
    source = repository.show_file(candidate.commit, "train.py").decode()
    assert "DEPTH = 6  # layers" in source and "ADAM_BETAS = (0.9, 0.95)" in source
    assert repository.experiments() == {"h-nov20-0001-1": candidate.commit}
    assert repository.patched_tree(base, candidate.diff) == repository.tree_of(candidate.commit)
    assert candidate.diff_stat == "1 file changed, 2 insertions(+), 2 deletions(-)"
    assert (candidate.lines_added, candidate.lines_removed) == (2, 2)
    settings = {"depth": 6, "matrix_lr": 0.04, "adam_betas": (0.9, 0.95), "total_batch_size": 1024}
    assert candidate.config == settings
    message = repository._run("log -1 --format=%B", candidate.commit).text
    assert message.splitlines()[:5] == [
        "Deeper, and slower betas", "", "Because.", "", "Experiment: h-nov20-0001-1",
    ]  # fmt: skip
    assert "Hypothesis: h-nov20-0001" in message
    assert not repository.edited_files()
    assert repository.head() == base


def test_a_baseline_is_the_base_itself(repository: Repository, task: Task) -> None:
    candidate = prepare(repository, task, Change(), "baseline-nov20-1")
    assert candidate.commit == repository.head()
    assert candidate.parent_commit is None
    assert (candidate.diff, candidate.diff_stat, candidate.lines_added) == ("", "", 0)
    assert candidate.config["depth"] == 4
    assert repository.experiments() == {"baseline-nov20-1": candidate.commit}


def test_the_working_tree_runs_as_it_is(repository: Repository, task: Task) -> None:
    clean = prepare(repository, task, Change(tree=repository.snapshot_tree()), "run-1")
    assert clean.parent_commit is None
    path = repository.root / "train.py"
    path.write_text(path.read_text().replace("0.04", "0.05"))
    tree = repository.snapshot_tree(also=["train.py"])
    edited = prepare(repository, task, Change(tree=tree), "run-2")
    assert edited.parent_commit == repository.head()
    assert edited.config["matrix_lr"] == 0.05
    (repository.root / "helper.py").write_text("cheat = 1\n")
    with pytest.raises(ChangeError, match=r"helper\.py may not change"):
        prepare(repository, task, Change(tree=repository.snapshot_tree()), "run-3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change(overrides={"DEPTH": 4}), "DEPTH is 4 already"),
        (Change(overrides={"SEED": 4}), "belongs to the orchestrator"),
        (Change(patch="nothing at all"), "does not apply"),
        (Change(instructions="Make it better."), "have to be implemented first"),
    ],
)
def test_a_refused_change_costs_no_run_and_leaves_no_ref(
    repository: Repository, task: Task, change: Change, said: str
) -> None:
    with pytest.raises(ChangeError, match=said):
        prepare(repository, task, change)
    assert repository.experiments() == {}


def _patch_to(repository: Repository, files: dict[str, bytes]) -> Change:
    head = repository.head()
    return Change(patch=repository.diff(head, repository.tree_with(head, files)))


def test_files_that_are_no_artifacts_stay(repository: Repository, task: Task) -> None:
    files = {"helper.py": b"x\n", "train.py": b"A = 1\n", "sitecustomize.py": b"x\n"}
    with pytest.raises(ChangeError) as caught:
        prepare(repository, task, _patch_to(repository, files))
    assert "helper.py, sitecustomize.py may not change" in caught.value.problem
    assert "train.py" in caught.value.problem


def test_an_artifact_stays_a_plain_file_of_its_mode(
    repository: Repository, task: Task, git: Git
) -> None:
    root = repository.root
    (root / "train.py").unlink()
    (root / "train.py").symlink_to("helper.py")
    with pytest.raises(ChangeError, match=r"train\.py becomes a symbolic link"):
        prepare(repository, task, Change(tree=repository.snapshot_tree()))
    git(root, "checkout", "-q", "--", "train.py")
    os.chmod(root / "train.py", 0o755)
    with pytest.raises(ChangeError, match=r"the mode of train\.py changes from 100644 to 100755"):
        prepare(repository, task, Change(tree=repository.snapshot_tree()), "h-2")
    (root / "train.py").unlink()
    with pytest.raises(ChangeError, match=r"train\.py is deleted"):
        prepare(repository, task, Change(tree=repository.snapshot_tree()), "h-3")


def test_a_submodule_is_no_artifact(make: Make, task: Task) -> None:
    repository = make()
    loose = task.model_copy(update={"artifacts": ("*",)})
    head = repository.head()
    with repository._index(head) as index:
        repository._run(f"update-index --add --cacheinfo 160000,{head},inner", index=index)
        tree = repository._run("write-tree", index=index).text
    with pytest.raises(ChangeError, match="inner becomes a submodule"):
        prepare(repository, loose, Change(tree=tree))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (MutationLimits(max_files=1), "2 files change, mutation.max_files is 1"),
        (MutationLimits(max_lines=9), r"\d+ lines change, mutation.max_lines is 9"),
        (MutationLimits(max_bytes=5), r"grows to \d+ bytes, mutation.max_bytes is 5"),
    ],
)
def test_a_change_keeps_within_its_limits(
    repository: Repository, task: Task, limits: MutationLimits, said: str
) -> None:
    limited = task.model_copy(update={"artifacts": ("*.py",), "mutation": limits})
    files = {"train.py": b"A = 1\nB = 2\n", "helper.py": b"C = 3\nD = 4\n"}
    with pytest.raises(ChangeError, match=said):
        prepare(repository, limited, _patch_to(repository, files))


def test_a_script_that_does_not_parse_is_refused_with_its_line(
    repository: Repository, task: Task
) -> None:
    files = {"train.py": b"A = 1\nB = (\n"}
    with pytest.raises(PreflightError, match=r"train\.py line 2 does not parse"):
        prepare(repository, task, _patch_to(repository, files))
    assert "h-1" in repository.experiments(), "the refused diff stays in git"


def test_an_id_is_used_once(repository: Repository, task: Task) -> None:
    first = prepare(repository, task, overrides(depth=5))
    with pytest.raises(GitError, match="exists and is another commit"):
        prepare(repository, task, overrides(depth=6))
    assert repository.read_ref(experiment_ref("h-1")) == first.commit


def test_the_constant_is_looked_for_in_every_script(make: Make, task: Task) -> None:
    repository = make({"a.py": "ALPHA = 1\nBOTH = 1\n", "b.py": "BETA = 1\nBOTH = 2\n", "c": "x"})
    several = task.model_copy(update={"artifacts": ("*.py",)})
    candidate = prepare(repository, several, overrides(beta=2, alpha=3))
    assert candidate.diff_stat.startswith("2 files changed")
    assert candidate.config == {"alpha": 3, "both": 1, "beta": 2}, "of equal names the first counts"
    assert candidates.settings_of(repository, several, candidate.commit) == candidate.config
    with pytest.raises(ChangeError, match=r"'both' is in a\.py and in b\.py"):
        prepare(repository, several, overrides(both=2), "h-2")
    with pytest.raises(ChangeError, match="there is no constant 'gamma'"):
        prepare(repository, several, overrides(gamma=2), "h-3")
    texts = task.model_copy(update={"artifacts": ("c",)})
    with pytest.raises(ChangeError, match="overrides set constants of Python files"):
        prepare(repository, texts, overrides(gamma=2), "h-4")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.py": "DEPTH = 1\n"}, ""),
        ({}, "the instructions change nothing"),
        ({"train.py": "A = 1\n", "new.py": "B = 1\n"}, r"new\.py may not change"),
    ],
)
def test_instructions_are_implemented_in_a_checkout_of_the_base(
    repository: Repository, task: Task, files: dict[str, str], said: str
) -> None:
    def implement(instructions: str, checkout: Path) -> str:
        for name, text in files.items():
            (checkout / name).write_text(text)
        return "wrote it"

    change, workspace = Change(instructions="Shorter."), Workspace(repository, "implement")
    with pytest.raises(ChangeError, match=said) if said else nullcontext():
        done = prepare(repository, task, change, workspace=workspace, implement=implement)
        assert repository.show_file(done.commit, "train.py") == b"DEPTH = 1\n"
        assert (done.title, repository.subject(done.commit)) == ("wrote it", "wrote it")


# ── preflight ───────────────────────────────────────────────────────────────────────────────

EVALUATOR = """
import json, os, sys
assert sys.argv[1] == "--preflight"
source = open(sys.argv[2]).read()
scope = {}
if "SILENT" in source:
    sys.exit("died of silence")
print("loading ...")
print(json.dumps({
    "ok": "HOPELESS" not in source,
    "problem": "a hopeless change" if "HOPELESS" in source else "",
    "constants": {"HEAD_DIM": 8, "CUDA": os.environ["CUDA_VISIBLE_DEVICES"], "SEED": 3,
                  "DATA": os.environ.get("DATA"), "ME": __file__, "TOKEN": os.environ.get("TOKEN")},
    "num_params": 1234,
}))
"""


@pytest.fixture
def model_task(task: Task) -> Task:
    return task.model_copy(
        update={
            "run": RunConfig(preflight=("python", "prepare.py", "--preflight", "train.py")),
            "scorer": ScorerConfig(type="model", evaluator="prepare.py"),
            "protected": ("prepare.py",),
        }
    )


def preflight(repository: Repository, task: Task, *command: str) -> PreflightVerdict:
    task = task.model_copy(update={"run": RunConfig(preflight=command)})
    sandbox = TaskSandbox(repository, task, "none")
    return run_preflight(sandbox, repository.root, None, Inputs())


@pytest.fixture
def searched(make: Make) -> Repository:
    return make({"train.py": "DEPTH = 1\nHEAD_DIM = f()\n", "prepare.py": EVALUATOR})


def test_the_preflight_runs_the_pristine_evaluator_without_gpu_or_secrets(
    searched: Repository, model_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    more = {"workspace": Workspace(searched, "preflight"),
            "inputs": Inputs({"DATA": InputReport(path="/data")})}  # fmt: skip
    candidate = prepare(searched, model_task, overrides(depth=2), **more)
    settings = dict(candidate.config)
    place = Path(str(settings.pop("me")))
    assert place.is_relative_to(searched.root / ".git" / "autohypothesis" / "pristine")
    assert place.read_text() == EVALUATOR
    assert settings == {"depth": 2, "head_dim": 8, "cuda": "", "data": "/data", "token": None}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("HOPELESS = 1\n", "a hopeless change"),
        ("SILENT = 1\n", "gave no verdict: died of silence"),
    ],
)
def test_a_hopeless_candidate_is_refused_in_seconds(
    searched: Repository, model_task: Task, code: str, said: str
) -> None:
    change = _patch_to(searched, {"train.py": code.encode()})
    with pytest.raises(PreflightError, match=said):
        prepare(searched, model_task, change, workspace=Workspace(searched, "preflight"))
    assert "h-1" in searched.experiments()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("python", "-c", "import time; time.sleep(60)"), "took over"),
        (("python", "-c", "import os\nwhile True: os.write(1, b'x' * 65536)"), "took over"),
        (("/absent/program",), r"does not start.*/absent/program"),
    ],
    ids=["hangs", "prints for ever", "is absent"],
)
def test_a_preflight_that_does_not_answer_is_ended_and_named(
    searched: Repository, model_task: Task, command: tuple[str, ...], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(candidates, "TIMEOUT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(PreflightError, match=said):
        preflight(searched, model_task, *command)
    assert time.monotonic() - started < 15


def test_a_verdict_counts_although_a_daemon_holds_the_output(
    searched: Repository, model_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autohypothesis.engine.program._DRAIN_S", 0.2)
    code = (
        "import subprocess, sys; print('{\"ok\": true}', flush=True);"
        "subprocess.Popen(['sleep', '5'], start_new_session=True)"
    )
    assert preflight(searched, model_task, "python", "-c", code).ok


# ── settings and hashes ─────────────────────────────────────────────────────────────────────


def test_settings_are_what_json_can_hold_and_never_the_seed() -> None:
    literals = {"DEPTH": 4, "SEED": 1, "CODES": {1, 2}, "B": b"x", "name": "lower"}
    evaluated = {"DEPTH": 5, "WIDTH": 64, "SEED": 2}
    settings = config_of(literals, evaluated)
    assert settings == {"depth": 4, "width": 64}
    assert json.dumps(settings)
    assert config_of({"learning_rate": 0.1}, None) == {"learning_rate": 0.1}
    mixed = {"DATA": "x", "lr": 0.1, "out": "y"}
    assert config_of(mixed, None, knobs=["lr"]) == {"data": "x", "lr": 0.1}


def test_the_same_idea_on_another_base_has_the_same_hash(
    repository: Repository, task: Task
) -> None:
    first = prepare(repository, task, overrides(depth=6))
    other = prepare(repository, task, overrides(matrix_lr=0.05), "h-2")
    again = prepare(repository, task, overrides(depth=6), "h-3", base=other.commit)
    assert first.diff != again.diff
    assert first.diff_hash == again.diff_hash
    assert first.diff_hash != other.diff_hash
    assert diff_hash("") != first.diff_hash


def test_indentation_is_part_of_an_idea(repository: Repository) -> None:
    head = repository.head()
    hashes = {
        diff_hash(repository.diff(head, repository.tree_with(head, {"train.py": text})))
        for text in (b"if x:\n    a()\nb()\n", b"if x:\n    a()\n    b()\n")
    }
    assert len(hashes) == 2


def test_other_peoples_text_stays_in_its_place_on_the_page_of_a_plan() -> None:
    hypothesis = PlannedHypothesis(
        hypothesis_id="h-t-0001", title="good\n# Forged heading\x1b[31m",
        rationale="because\n## Another\n| a | b |", config_overrides={"DEPTH": "3 |\n# no"},
    )  # fmt: skip
    plan = Plan(
        experiment_id="h-t-0001-1", created_at=now(), based_on_commit="0" * 40, tag="t", seed=42,
        hypothesis=hypothesis,
    )  # fmt: skip
    text = plan_page(plan)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# h-t-0001-1: good # Forged heading [31m"
    ]
    assert text.splitlines()[1::2][:3] == ["", "", "> ## Another"] and text.count("\n\n") == 3
    assert "> ## Another" in text and "| DEPTH | 3 / # no |" in text
