"""The loop over a task: what is kept, where it goes, and what a kill or a second loop costs."""

from __future__ import annotations

import itertools
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.commands import task as command
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.records import locks
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Decision, now
from tests.artifact.conftest import MUTATE, SCORE, Letters
from tests.conftest import ROOT, Answer, NewRepository, called, forked, run_git, wait_until

FIELDS = {
    "task_id", "status", "reason", "candidate_score", "diff_summary", "iteration_id",
    "baseline_score", "baseline_hash", "candidate_hash", "metrics", "changed_files", "added",
    "removed", "durations", "exit_codes", "sandbox", "started_at",
}  # fmt: skip


def test_what_is_better_is_kept_and_the_users_branch_follows(letters: Letters) -> None:
    before = letters.state()["head"]
    ran = letters.run("--iterations", "2", "--seed", "0")
    assert ran.code == 0, ran.said
    assert len(ran.lines) == 2 and all(line.keys() >= FIELDS for line in ran.lines)
    assert {line["status"] for line in ran.lines} == {"keep", "discard"}
    kept = [line for line in ran.lines if line["status"] == "keep"]
    assert kept[0]["baseline_score"] == 0 and kept[0]["candidate_score"] > 0
    assert kept[0]["metrics"]["lines"] == 2 and kept[0]["changed_files"] == [
        "tasks/letters/text.txt"
    ]
    head = run_git(letters.root, "rev-parse", "HEAD")
    assert head == kept[-1]["commit"] != before
    assert head == run_git(letters.root, "rev-parse", "autoresearch/letters")
    assert letters.text.read_text().count("x") == kept[-1]["candidate_score"]
    assert run_git(letters.root, "status", "--porcelain") == ""
    assert letters.kept_lines() == ran.lines


def test_a_branch_that_is_dirty_or_elsewhere_is_left_alone_and_told(letters: Letters) -> None:
    (letters.root / "README.md").write_text("edited, and not committed\n")
    before = letters.state()
    ran = letters.run("--seed", "1")
    assert ran.only["status"] == "keep"
    assert letters.state() == before
    assert "adopt" in ran.said and "not committed, so no part of this: README.md" in ran.said
    run_git(letters.root, "checkout", "-q", "README.md")
    run_git(letters.root, "switch", "-qc", "elsewhere")
    (letters.root / "other.txt").write_text("mine")
    letters.commit("mine")
    ran = letters.run("--seed", "2")
    assert "which your branch is not built on" in ran.said
    assert ran.only["status"] == "keep" and ran.only["baseline_score"] > 0
    assert run_git(letters.root, "log", "-1", "--format=%s") == "mine"


def test_a_mutator_is_told_what_the_search_is_for(letters: Letters) -> None:
    (letters.root / "program.md").write_text("Shorter \xe9 words.\n", encoding="latin-1")
    letters.write(mutate=MUTATE.replace('print(f"', "print(told['charter'].strip(), f\""))
    assert "Shorter \ufffd words." in letters.run("--seed", "0").only["description"]


def test_the_active_search_stays_the_active_one(letters: Letters) -> None:
    (letters.root / "train.py").write_text("print('val_bpb: 1.0')\n")
    letters.commit("a training")
    letters("run-experiment", "--baseline", "--decide", "--tag", "mine")
    layout = Layout(letters.root)
    before = read_json(layout.manifest)
    assert letters.run("--seed", "0").only["status"] == "keep"
    after = read_json(layout.manifest)
    settings = after["earlier"].pop("letters")
    assert settings["task"] == "letters" and settings["task_file"] == "tasks/letters/task.yaml"
    assert after == before and after["tag"] == "mine"
    assert letters.run("--seed", "1").code == 0, "its search goes on"
    assert [row["id"] for row in json.loads(letters("runs", "--json").stdout)] == [
        "baseline-mine-1"
    ]
    assert len(json.loads(letters("runs", "--json", "--tag", "letters").stdout)) == 3


BOTH_ENDS = MUTATE.replace('"xy"[seed % 2]', '"x"').replace(
    'text.read_text() + letter * (1 + seed % 3) + "\\n"',
    '"xxx\\n" + text.read_text() if seed % 2 else text.read_text() + "xx\\n"',
)


def test_a_round_is_decided_best_first_whoever_ends_last(letters: Letters) -> None:
    """One puts three on top and is slower, one puts two below; then both are in."""
    slow = SCORE.replace("print(", 'import time; time.sleep(text.count("xxx"))\nprint(')
    letters.text.write_text("".join(f"{number}\n" for number in range(9)))
    letters.write(mutate=BOTH_ENDS, score=slow)
    ran = letters.run("--iterations", "2", "--parallel", "2")
    assert [line["status"] for line in ran.lines] == ["keep", "discard"], ran.said
    best, other = ran.lines
    assert (best["candidate_score"], other["candidate_score"]) == (3, 2)
    assert other["reason"] == "stale_base"
    again = letters.run("--iterations", "1").only
    assert again["iteration_id"].startswith(other["iteration_id"].rsplit("-", 1)[0])
    assert (again["status"], again["candidate_score"]) == ("keep", 5)
    assert again["description"] == other["description"]
    told = json.loads(letters("digest", "--json").stdout)["proposers"]
    assert [(each["proposer"], each["kept"]) for each in told] == [("mutator", 2)]


def test_two_of_a_round_that_touch_the_same_lines_are_not_tried_for_ever(letters: Letters) -> None:
    letters.write(mutate=MUTATE.replace('"xy"[seed % 2]', '"x"'))
    first = letters.run("--iterations", "2", "--parallel", "2").lines
    assert [line["status"] for line in first] == ["keep", "discard"]
    again, other = letters.run("--iterations", "2").lines
    assert (again["status"], again["reason"]) == ("discard", "nothing_new")
    assert "does not apply" in again["detail"]
    assert other["exit_codes"]["mutator"] == 0


def test_a_change_whose_confirming_run_was_lost_counts_as_tried(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirmation has run it again already."""
    project = Project.open(letters.root, task=letters.folder / "task.yaml").with_tag("letters")
    loop = command.loop_of(project, 1, 0)
    change, repeat = (
        Decision(
            decision_id=name, recorded_at=now(), tag="letters", experiment_id=name,
            base_commit=base, decision_status="crash", reason="infra", requeue=True,
        )
        for name, base in (("h-1-1", "c0"), ("h-2-1", None))
    )  # fmt: skip
    monkeypatch.setattr(loop, "make", lambda requests: [])
    monkeypatch.setattr(loop, "execute", lambda specs: None)
    kept = change.model_copy(update={"decision_status": "keep", "requeue": False})
    for ended, again in ((kept, []), (change, [change])):
        monkeypatch.setattr(loop, "decide", lambda: loop.decided.append(ended))  # noqa: B023
        monkeypatch.setattr(loop, "_confirm", lambda: loop.decided.append(repeat))
        assert loop._round([Experiment(Change())]) == (1 - len(again), again)


def test_more_side_by_side_than_there_are_lanes_is_refused(letters: Letters) -> None:
    ran = letters.run("--parallel", "999")
    assert ran.code == 2 and "CPU lanes" in ran.said and not ran.lines


LUCKY = SCORE.replace(
    'text.count("x")', 'text.count("x") + 9 * ("y" in text and os.environ["SEED"] == "42")'
).replace("import json", "import json, os")


def test_a_keep_that_was_not_moved_to_is_not_lost_by_a_commit_of_the_user(
    letters: Letters,
) -> None:
    """As a kill leaves it between the record of a decision and the move of the reference."""
    before = run_git(letters.root, "rev-parse", "HEAD")
    kept = letters.run("--seed", "1").only["commit"]
    run_git(letters.root, "update-ref", "refs/autohypothesis/reference/letters", before)
    layout = Layout(letters.root)
    result = layout.run(read_decisions(layout)[0][-1].experiment_id).result
    write_json(result, {**read_json(result), "decision_id": None})
    run_git(letters.root, "reset", "-q", "--hard", before)
    (letters.root / "README.md").write_text("another line\n")
    run_git(letters.root, "commit", "-qam", "by hand")
    ran = letters.run("--seed", "1")
    assert "which your branch is not built on" in ran.said
    reference = run_git(letters.root, "rev-parse", "refs/autohypothesis/reference/letters")
    run_git(letters.root, "merge-base", "--is-ancestor", kept, reference)


def test_a_task_and_a_training_search_do_not_share_a_tag(letters: Letters) -> None:
    (letters.root / "train.py").write_text('print("val_bpb: 1.5\\npeak_vram_mb: 1")\n')
    letters.commit("a training")
    letters.run("--seed", "1")
    refused = letters("run-experiment", "--baseline", "--settle", "--tag", "letters")
    assert refused.returncode == 1 and "is a search of task 'letters'" in refused.stderr
    own = letters("run-experiment", "--baseline", "--settle")
    assert own.returncode == 0 and own.stdout.startswith("1.5"), own.stderr


def test_an_implementer_makes_what_people_put_into_words(letters: Letters) -> None:
    words = "text.write_text(text.read_text() + told['instructions'])\n"
    letters.write(
        mutate=MUTATE.replace("text.write_text(text.read_text() + letter", words + "0 and (letter")
    )
    letters.edit_task("mutator: {type: command", "mutator: {type: implementer")
    idea = {"title": "three of them", "instructions": "xxx\n"}
    inbox = letters.root / "research" / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "idea.json").write_text(json.dumps(idea))
    ran = letters.run("--iterations", "5")
    assert ran.only["description"] == "three of them" and ran.only["candidate_score"] == 3
    assert "nothing is left" in ran.said
    answer = letters("propose", "--instructions", "xx", "--title", "two more")
    assert answer.returncode == 0 and "somebody has to" not in answer.stderr, answer.stderr
    assert letters.run("--iterations", "5").only["candidate_score"] == 5


KNOBS_TASK = """
id: knobs
artifacts: [train.py]
mutator: {type: overrides}
run: {command: [python, train.py], device: cpu}
objective: {metric: loss, direction: minimize}
"""


def test_ideas_that_the_steering_forbids_or_that_wait_twice_are_refused_and_not_run(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    script = "RATE = 1.0\nSTEPS = 2\nprint(f'loss: {1 / RATE / STEPS}')\n"
    files = {"train.py": script, "task.yaml": KNOBS_TASK}
    root = new_repository(tmp_path / "repository", files)
    (root / "train.py").write_text(script.replace("1.0", "9.0"))
    patch = run_git(root, "diff") + "\n"
    run_git(root, "checkout", "-q", "train.py")
    inbox = root / "research" / "inbox"
    inbox.mkdir(parents=True)
    (root / "research" / "steering.md").write_text("```steering\nfrozen: [RATE]\n```\n")
    ideas = [
        {"config_overrides": {"RATE": 9.0}}, {"config_overrides": {"STEPS": 1}},
        {"config_overrides": {"STEPS": 1}}, {"patch": patch},
    ]  # fmt: skip
    for number, change in enumerate(ideas):
        idea = {"title": f"idea {number}", "priority": 9 - number, **change}
        (inbox / f"{number}.json").write_text(json.dumps(idea))
    answer = called("task", "run", ".", "--iterations", "2", cwd=root)
    ran, refused = (json.loads(line) for line in answer.stdout.splitlines())
    assert (ran["description"], ran["candidate_score"]) == ("idea 1", 1.0)
    assert (refused["description"], refused["detail"]) == (
        "idea 3", "RATE is frozen by the steering",
    )  # fmt: skip
    assert "(idea 0) was refused: RATE is frozen by the steering" in answer.stderr
    assert "(idea 2) was refused: the same is in the queue already" in answer.stderr


def test_check_says_what_a_task_leads_to_and_what_is_missing(letters: Letters) -> None:
    def checked(*words: str) -> Answer:
        return letters("task", "check", "tasks/letters", *words)

    good = checked("--json")
    report = json.loads(good.stdout)
    assert good.returncode == 0 and report["ok"]
    assert report["artifacts"] == ["tasks/letters/text.txt"] and report["protected"] == 2
    (letters.folder / "other.py").write_text("")
    letters.edit_task("letters/mutate.py]", "letters/other.py]")
    bad = checked()
    assert bad.returncode == 1 and "other.py is not committed" in bad.stdout
    letters.edit_task("letters/other.py]", "letters/mutate.py]")
    (letters.folder / "mutate.py").unlink()
    run_git(letters.root, "rm", "-q", "--cached", "tasks/letters/mutate.py")
    letters.edit_task(", mutate.py]", "]")
    bad = checked()
    assert bad.returncode == 1 and "there is no script 'tasks/letters/mutate.py'" in bad.stdout


def test_a_published_task_file_runs_in_its_folders_and_check_shows_how_it_was_read(
    letters: Letters,
) -> None:
    text = (letters.folder / "task.yaml").read_text()
    for old, new in (
        ("[text.txt]", "{include: ['*.txt'], exclude: [keep.txt]}"),
        ("tasks/letters/mutate.py], timeout_seconds", "mutate.py], cwd: tasks/letters, timeout"),
        ("run: {device: cpu}", "runner: {command: [python, -c, pass], cwd: tasks, timeout: 9}"),
        ("timeout_seconds: 20", "timeout: 20"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new, 1)
    mutate = MUTATE.replace('"tasks/letters/text.txt"', '"text.txt"')
    (letters.folder / "keep.txt").write_text("k\n")
    (letters.folder / "mutate.py").write_text(mutate)
    (letters.folder / "task.yaml").write_text(text + "constraints: []\nlogging: {to: x}\n")
    letters.commit("the published spelling")
    report = json.loads(letters("task", "check", "tasks/letters", "--json").stdout)
    assert report["artifacts"] == ["tasks/letters/text.txt"]
    assert report["folders"] == {"mutator": "tasks/letters", "run": "tasks", "scorer": "."}
    assert report["limits"]["run_seconds"] == 9 and report["limits"]["mutator_seconds"] == 20
    shown = letters("task", "check", "tasks/letters").stdout
    assert "mutate.py (in tasks/letters/)" in shown and "logging has no effect" in shown
    ran = letters.run("--seed", "0")
    assert ran.code == 0 and len(ran.only["changed_files"]) == 1, ran.said
    assert "logging has no effect" in ran.said


def test_on_a_terminal_an_iteration_is_a_line_to_read(letters: Letters) -> None:
    own, terminal = pty.openpty()
    words = [sys.executable, str(ROOT / "orchestrator.py"), "task", "run", "tasks/letters"]
    with subprocess.Popen(
        words, cwd=letters.root, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.PIPE
    ) as process:
        os.close(terminal)
        process.communicate(timeout=120)
    shown = os.read(own, 65536).decode()
    os.close(own)
    assert re.search(r"(?:keep|discard)\W.*one more", shown) and '{"' not in shown, shown
    assert len(letters.kept_lines()) == 1


def test_a_task_that_is_not_committed_says_to_commit_it_first(letters: Letters) -> None:
    run_git(letters.root, "rm", "-q", "--cached", "tasks/letters/mutate.py")
    letters.edit_task(", mutate.py]", "]", commit=False)
    run_git(letters.root, "commit", "-qm", "without")
    for staged in (False, True):
        if staged:
            run_git(letters.root, "add", "-A")
        answer = letters("task", "run", "tasks/letters")
        assert answer.returncode == 2
        assert "commit the task first: git add tasks/letters/mutate.py" in answer.stderr
    run_git(letters.root, "rm", "-q", "--cached", "tasks/letters/text.txt")
    answer = letters("task", "run", "tasks/letters")
    assert "artifacts.0: 'text.txt' is in no commit" in answer.stderr


def test_the_published_wrapper_runs_one_iteration(letters: Letters, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run_task.py"), "--task", "tasks/letters/task.yaml",
         "--seed", "1"],
        cwd=letters.root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert [json.loads(line)["status"] for line in answer.stdout.splitlines()] == ["keep"]


def test_the_branch_of_the_search_follows_what_is_kept_under_its_user_as_well(
    letters: Letters,
) -> None:
    run_git(letters.root, "switch", "-q", "-c", "autoresearch/letters")
    ran = letters.run("--iterations", "2", "--seed", "0")
    kept = [line["commit"] for line in ran.lines if line["status"] == "keep"]
    assert run_git(letters.root, "rev-parse", "HEAD") == kept[-1], ran.said
    assert "autoresearch/letters moved from" in ran.said
    letters.text.write_text("xxxxxxxx\n")
    run_git(letters.root, "commit", "-qam", "by hand")
    ran = letters.run("--seed", "2")
    assert "goes on from your commit" in ran.said and ran.only["baseline_score"] == 8


def test_a_discard_leaves_the_checkout_and_is_measured_once_the_user_takes_it(
    letters: Letters,
) -> None:
    before = letters.state()
    line = letters.run("--seed", "0").only  # the baseline is experiment 1: the seed is odd, a y
    assert (line["status"], line["reason"]) == ("discard", "within_noise")
    assert letters.state() == before
    ref = f"refs/experiments/{line['iteration_id']}"
    assert run_git(letters.root, "rev-parse", ref) == line["commit"]
    run_git(letters.root, "merge", "-q", "--ff-only", line["commit"])
    ran = letters.run("--seed", "1")
    assert "measuring" in ran.said and ran.only["baseline_score"] == 0


def test_the_search_goes_on_from_a_commit_of_the_user_and_measures_another_rubric(
    letters: Letters,
) -> None:
    letters.run("--seed", "1")
    letters.text.write_text("xxxxxxxx\n")
    run_git(letters.root, "commit", "-qam", "by hand")
    ran = letters.run("--seed", "2")
    assert "goes on from your commit" in ran.said
    assert ran.only["baseline_score"] == 8
    letters.write(score=SCORE.replace('text.count("x")', '100 + text.count("x")'))
    assert letters.run("--seed", "1").only["baseline_score"] > 100


def test_the_same_change_is_measured_again_by_another_rubric_only(letters: Letters) -> None:
    letters.write(mutate=MUTATE.replace("letter * (1 + seed % 3)", '"y"'))
    first, second = letters.run("--iterations", "2").lines
    assert (first["status"], first["reason"]) == ("discard", "within_noise")
    assert (second["status"], second["reason"]) == ("discard", "nothing_new")
    assert first["iteration_id"] in second["detail"] and second["candidate_score"] is None
    assert (second["commit"], second["candidate_hash"]) == (None, None), "the base is no candidate"
    assert second["description"] and second["baseline_hash"] == first["baseline_hash"]
    rows = (letters.root / "results.tsv").read_text().splitlines()
    assert len(rows) == 3, rows  # header, baseline, the first
    letters.edit_task("min_delta: 0.5", "min_delta: 0.4")
    assert letters.run().only["reason"] == "within_noise"


def test_a_lucky_seed_is_not_kept_and_a_win_is_met_again(letters: Letters) -> None:
    letters.write(score=LUCKY, more="policy: {replicates: 1}\n")
    lucky = letters.run("--seed", "0").only
    assert (lucky["status"], lucky["reason"]) == ("discard", "not_confirmed"), lucky
    assert lucky["confirmation"] == "refuted" and lucky["candidate_score"] >= 9
    ran = letters.run("--seed", "0", "--parallel", "2")  # four runs later: an x
    assert (ran.only["status"], ran.only["confirmation"]) == ("keep", "confirmed"), ran.said
    assert len(letters.kept_lines()) == 2
    rows = (letters.root / "results.tsv").read_text().splitlines()
    assert len(rows) == 4, "repeats are no results"


def test_a_killed_confirmation_is_finished_with_the_task_that_it_began_with(
    letters: Letters,
) -> None:
    letters.write(mutate=MUTATE.replace('"xy"[seed % 2]', '"x"'),
                  score=SCORE.replace("print(", "import time; time.sleep(0.3)\nprint("),
                  more="policy: {replicates: 1}\n")  # fmt: skip
    process = letters.start("task", "run", "tasks/letters")
    plans = letters.root / "research" / "plans"
    wait_until(lambda: list(plans.glob("h-*-0002-1.json")))
    process.kill()
    process.communicate()
    letters.edit_task("timeout_seconds: 20}\nobj", "timeout_seconds: 21}\nobj")
    first = letters.run("--iterations", "1").lines[0]
    assert (first["status"], first["confirmation"]) == ("keep", "confirmed")
    assert "1 further pair" in first["detail"]
    assert len(list(plans.glob("*.json"))) < 12


def test_the_plan_of_another_process_is_forgotten_once_that_is_gone(letters: Letters) -> None:
    letters.run("--seed", "1")
    (letters.root / "research" / "steering.md").write_text("```steering\nstop: true\n```\n")
    folder = letters.root / "research" / "plans"
    plan = json.loads(next(folder.glob("h-*.json")).read_text())
    (folder / "h-letters-0099-1.json").write_text(
        json.dumps({**plan, "experiment_id": "h-letters-0099-1", "worker_id": "solo-7"})
    )
    with locks.hold(Layout(letters.root), "worktree-solo-7", doing="a preflight"):
        assert letters.run("--iterations", "5").lines == [], "the steering says stop"
        assert (folder / "h-letters-0099-1.json").exists()
    letters.run()
    assert not (folder / "h-letters-0099-1.json").exists()


@pytest.mark.parametrize(
    ("letter", "old", "new", "most"),
    [
        ("y", "mutator:", "budget: {hours: 0.0000001}\nmutator:", 0),
        ("y", "mutator:", "policy: {patience: 1}\nmutator:", 1),
        ("x", "min_delta: 0.5", "min_delta: 0.5, target: 1", 1),
    ],
    ids=["hours", "patience", "target"],
)
def test_a_limit_of_the_task_ends_the_loop(
    letters: Letters, letter: str, old: str, new: str, most: int
) -> None:
    letters.write(mutate=MUTATE.replace('"xy"[seed % 2]', repr(letter)))
    letters.edit_task(old, new, commit=True)
    ran = letters.run("--iterations", "0")
    assert ran.code == 0 and len(ran.lines) == most
    assert letters.run("--iterations", "3").lines == [] or letter == "y"


def test_a_second_loop_is_refused_by_name_and_ctrl_c_leaves_nothing_behind(
    letters: Letters,
) -> None:
    marker = letters.root.parent / "started"
    letters.write(
        mutate=f"import time, os\nopen({str(marker)!r}, 'w')\ntime.sleep(60)\n",
        timeout=60, more="sandbox: none\n",
    )  # fmt: skip
    before = letters.state()
    process = letters.start("task", "run", "tasks/letters")
    wait_until(marker.exists)
    second = letters.run()
    assert second.code == 1 and "task run letters" in second.said
    assert f"pid {process.pid}" in second.said
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    assert letters.state() == before
    assert list((letters.root / "research" / "plans").glob("h-*")) == []


def assert_all_decided_once(letters: Letters) -> None:
    ids = [line["iteration_id"] for line in letters.kept_lines()]
    assert len(ids) == len(set(ids))
    lines = (letters.root / "research" / "decisions.jsonl").read_text().splitlines()
    decisions = [json.loads(line) for line in lines]
    decided = [decision["experiment_id"] for decision in decisions]
    assert len(decided) == len(set(decided))
    assert set(ids) == {one["experiment_id"] for one in decisions if one["base_commit"]}
    assert set(os.listdir(letters.root / "research" / "runs")) <= set(decided)
    plans = (letters.root / "research" / "plans").glob("[!.]*")
    assert {path.stem for path in plans} <= set(decided)
    reference = run_git(letters.root, "rev-parse", "autoresearch/letters")
    assert reference == run_git(letters.root, "rev-parse", "HEAD")
    assert run_git(letters.root, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 12))]
)
def test_a_killed_loop_loses_nothing_and_doubles_nothing(letters: Letters, trial: int) -> None:
    letters.write(score=SCORE.replace("print(", "import time; time.sleep(0.2)\nprint("))
    chance = random.Random(trial)
    for _ in range(3 if trial else 2):
        process = letters.start("task", "run", "tasks/letters", "--iterations", "0")
        time.sleep(1.0 + 2.5 * chance.random())
        process.kill()
        process.communicate()
    ran = letters.run("--iterations", "1")
    assert ran.code == 0, ran.said
    assert_all_decided_once(letters)


def run_until(letters: Letters, is_moment: Callable[[str], bool]) -> None:
    """One iteration in this process, killed as it would change a file for which it is the moment.

    It is asked about each new folder of a run and each whole file, those of locks left out.
    """

    def audit(event: str, given: tuple[object, ...]) -> None:
        path = str(given[event == "os.rename"]) if event in ("os.rename", "os.mkdir") else ""
        is_new = event == "os.rename" or ("/runs/" in path and not os.path.exists(path))
        if path and is_new and "/locks/" not in path and is_moment(path):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    letters.once()


def was_killed(letters: Letters, is_moment: Callable[[str], bool]) -> bool:
    process = forked(run_until, letters, is_moment)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize(
    ("refused", "names"),
    [(False, ["/out", "local.json", "run-spec.json"]), (True, ["metadata.json", "result.json"])],
)
def test_a_loop_killed_while_it_writes_a_bundle_takes_it_back(
    letters: Letters, refused: bool, names: list[str]
) -> None:
    """The folder is there, and nothing in it that could be judged."""
    if refused:
        letters.write(mutate="raise SystemExit('no idea')\n")
    assert letters.once().code == 0
    runs = letters.root / "research" / "runs"
    before = set(os.listdir(runs))
    for name in names:
        assert was_killed(letters, lambda path: "/runs/h-" in path and path.endswith(name))  # noqa: B023
    assert len(set(os.listdir(runs)) - before) == 1, "each took the one before back"
    assert letters.once().code == 0
    assert_all_decided_once(letters)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_loop_killed_before_any_change_of_its_records_loses_and_doubles_nothing(
    letters: Letters,
) -> None:
    assert letters.once().code == 0
    for moment in range(1, 1000):
        changes = itertools.count(1)
        if not was_killed(letters, lambda path: next(changes) == moment):  # noqa: B023
            break
    assert moment > 15
    assert letters.once().code == 0
    assert_all_decided_once(letters)
