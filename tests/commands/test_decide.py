"""Deciding, adopting, recording: what moves a reference, and what never may."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import reference_ref
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from tests.conftest import Cli, Git, rows


def run(cli: Cli, *words: str) -> str:
    """One settled experiment; its status."""
    answer = cli("run-experiment", "--settle", *words)
    assert answer.returncode == 0, answer.stderr
    return max(rows(cli), key=lambda row: row["timestamp"])["status"]


def reference(foreign: Path) -> str:
    return Project.open(foreign).reference()


def test_a_better_run_moves_the_reference_and_a_worse_one_does_not(cli: Cli, foreign: Path) -> None:
    assert run(cli) == "keep"
    start = reference(foreign)
    assert run(cli, "--set", "RATE=0.2") == "keep"
    kept = reference(foreign)
    assert kept != start
    assert run(cli, "--set", "RATE=0.9") == "discard"
    assert reference(foreign) == kept
    best = json.loads(cli("best", "--diff", "--json").stdout)
    assert best["row"]["metric_value"] == pytest.approx(1.01)
    assert "+RATE = 0.2" in best["diff"]
    lines = (foreign / "results.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert [line.split("\t")[3] for line in lines[1:]] == ["keep", "keep", "discard"]


def test_adopt_fast_forwards_a_clean_branch_and_nothing_else(
    cli: Cli, foreign: Path, git: Git
) -> None:
    run(cli)
    run(cli, "--set", "RATE=0.2")
    (foreign / "train.py").write_text("# mine\n")
    refused = cli("adopt")
    assert refused.returncode == 1
    assert "not committed" in refused.stderr
    assert (foreign / "train.py").read_text() == "# mine\n"
    git(foreign, "checkout", "-q", "train.py")
    assert cli("adopt").returncode == 0
    assert "RATE = 0.2" in (foreign / "train.py").read_text()
    assert git(foreign, "rev-parse", "HEAD") == reference(foreign)


@pytest.mark.parametrize("begun", ["merge", "rebase"])
def test_adopt_in_the_middle_of_a_merge_says_to_end_it_and_never_to_commit_it(
    cli: Cli, foreign: Path, git: Git, begun: str
) -> None:
    run(cli)
    script = foreign / "train.py"
    before = script.read_text()
    for branch, rate in (("mine", "0.2"), ("theirs", "0.4")):
        git(foreign, "switch", "-q", "-c", branch, reference(foreign))
        script.write_text(before.replace("RATE = 0.1", f"RATE = {rate}"))
        git(foreign, "commit", "-qam", branch)
    with pytest.raises(subprocess.CalledProcessError):
        git(foreign, begun, "mine")
    refused = cli("adopt")
    assert refused.returncode == 1 and f"in the middle of a {begun}" in refused.stderr
    assert "git status" in refused.stderr and "commit -a" not in refused.stderr
    torn = cli("run-experiment")
    assert torn.returncode == 1 and "train.py holds both sides of a merge" in torn.stderr
    assert len(rows(cli)) == 1
    script.write_text(script.read_text().replace("<<<<<<< ", "# "))
    assert "both sides" not in cli("run-experiment").stderr


def test_a_discard_cannot_be_adopted(cli: Cli) -> None:
    run(cli)
    run(cli, "--set", "RATE=0.9")
    discarded = rows(cli)[-1]["id"]
    answer = cli("adopt", discarded)
    assert answer.returncode == 2
    assert "discard" in answer.stderr


def test_a_decision_by_hand_is_recorded_with_its_reason(cli: Cli, foreign: Path) -> None:
    run(cli)
    cli("run-experiment", "--set", "RATE=0.9")
    waiting = rows(cli)[-1]["id"]
    answer = cli("decide", waiting, "keep", "--reason", "I like it", "--json")
    (decision,) = json.loads(answer.stdout)
    assert (decision["reason"], decision["detail"]) == ("by_hand", "I like it")
    assert reference(foreign) == decision["commit"]


def test_a_crash_cannot_be_kept_by_hand(cli: Cli) -> None:
    cli("run-experiment", "--set", "MODE=crash")
    crashed = rows(cli)[-1]["id"]
    answer = cli("decide", crashed, "keep")
    assert answer.returncode == 1
    assert "cannot be kept" in answer.stderr


def test_a_decision_written_into_result_json_decides_nothing_and_the_command_is_named(
    cli: Cli, foreign: Path
) -> None:
    run(cli)
    cli("run-experiment", "--set", "RATE=0.2")
    waiting = rows(cli)[-1]["id"]
    path = Layout(foreign).run(waiting).result
    path.write_text(json.dumps({**json.loads(path.read_text()), "decision_status": "keep"}))
    before = reference(foreign)
    answer = cli("sync")
    assert answer.returncode == 0
    assert f"decide {waiting} keep" in answer.stderr
    assert rows(cli)[-1]["ordinal"] is None
    assert reference(foreign) == before


def test_a_settle_that_was_killed_before_the_reference_moved_is_finished(
    cli: Cli, foreign: Path
) -> None:
    run(cli)
    start = reference(foreign)
    run(cli, "--set", "RATE=0.2")
    kept = reference(foreign)
    project = Project.open(foreign)
    # What a kill between the record and the move leaves behind.
    assert project.repository.compare_and_swap(reference_ref(project.active()), start, kept)
    result = project.layout.run(read_decisions(project.layout)[0][-1].experiment_id).result
    write_json(result, {**read_json(result), "decision_id": None})
    assert cli("decide").returncode == 0
    assert reference(foreign) == kept


def test_a_hand_made_run_is_recorded_and_never_attested(cli: Cli, foreign: Path) -> None:
    (foreign / "run.log").write_text("step 1\n---\nval_bpb: 0.997900\npeak_vram_mb: 45060.2\n")
    answer = cli("record", "run.log", "--desc", "by me")
    assert answer.returncode == 0, answer.stderr
    row = rows(cli)[-1]
    assert row["attested"] is False
    assert row["metric_value"] == pytest.approx(0.9979)
    assert row["peak_vram_gb"] == pytest.approx(44.004, abs=0.01)
    assert cli("show", str(row["id"])).returncode == 0


def test_a_hand_made_log_without_a_number_is_a_crash_with_its_reason(
    cli: Cli, foreign: Path
) -> None:
    (foreign / "run.log").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n")
    assert cli("record", "run.log").returncode == 0
    row = rows(cli)[-1]
    assert row["failure_kind"] == "oom"
    assert row["metric_value"] is None


@pytest.mark.parametrize("wrong", ["another file", "another history"])
def test_a_hand_made_commit_that_no_candidate_could_be_is_refused(
    cli: Cli, foreign: Path, git: Git, wrong: str
) -> None:
    run(cli)
    (foreign / "run.log").write_text("val_bpb: 0.5\n")
    if wrong == "another file":
        (foreign / "data.txt").write_text("easier data\n")
    else:
        git(foreign, "checkout", "-q", "--orphan", "elsewhere")
        (foreign / "train.py").write_text("# quite another script\n")
    git(foreign, "commit", "-qam", "mine")
    answer = cli("record", "run.log")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert ("data.txt" if wrong == "another file" else "not built on") in answer.stderr
    assert len(rows(cli)) == 1


def test_looking_and_deciding_need_no_task_that_can_be_loaded(
    cli: Cli, foreign: Path, git: Git
) -> None:
    run(cli)
    cli("run-experiment", "--set", "RATE=0.2")
    (foreign / "task.yaml").write_text("artefacts: [train.py]\n")
    answer = cli("decide", "--json")
    assert answer.returncode == 0, answer.stderr
    (decision,) = json.loads(answer.stdout)
    assert decision["decision_status"] == "keep"
    for words in (("runs",), ("show", decision["experiment_id"]), ("best", "--diff"), ("adopt",)):
        answer = cli(*words)
        assert answer.returncode == 0, (words, answer.stderr)
    assert git(foreign, "rev-parse", "HEAD") == decision["commit"]


def test_another_tag_starts_from_head_and_leaves_the_first_alone(cli: Cli) -> None:
    run(cli, "--tag", "first")
    run(cli, "--tag", "second")
    assert [row["tag"] for row in rows(cli)] == ["second"]
    assert len(json.loads(cli("runs", "--json", "--all").stdout)) == 2


def test_the_tag_of_another_tools_runs_begins_no_search(cli: Cli) -> None:
    answer = cli("run-experiment", "--tag", "imported")
    assert answer.returncode == 1 and "which another tool left here" in answer.stderr
    assert cli("runs", "--tag", "imported", "--json").returncode == 0  # it shows those


def test_every_listing_and_page_answers_in_json(cli: Cli) -> None:
    run(cli)
    identity = rows(cli)[0]["id"]
    for words in (("show", identity), ("best",), ("sync",), ("runs", "--all")):
        answer = cli(*words, "--json")
        assert json.loads(answer.stdout) is not None, words
    names = json.loads(cli("schema").stdout)
    assert len(names) > 20
    for name in list(names)[:3]:
        assert "properties" in json.loads(cli("schema", name).stdout), name


def test_an_id_that_no_experiment_has_is_named_as_that(cli: Cli, foreign: Path) -> None:
    assert cli("run-experiment", "--decide").returncode == 0
    for words in (
        ("decide", "crash"),
        ("decide", "h-1", "keep"),
        ("run-experiment", "--replicate", "h-1"),
        ("run-experiment", "--replicate", "h-1", "--seeds", "2"),
    ):
        answer = cli(*words)
        assert answer.returncode == 1 and "no experiment is called" in answer.stderr, words
