"""run-experiment, as published scripts call it, on a repository that shares no file with ours."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.records.layout import Layout
from tests.conftest import ROOT, Cli, Git, rows, wait_until


def edit(root: Path, old: str, new: str) -> None:
    script = root / "train.py"
    script.write_text(script.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def test_a_clean_checkout_is_the_baseline_and_prints_the_published_line(
    cli: Cli, foreign: Path
) -> None:
    answer = cli("run-experiment")
    assert answer.returncode == 0, answer.stderr
    value, memory, seconds, log = answer.stdout.rstrip("\n").split("\t")
    assert (value, memory) == ("1.040000", "12.5")
    assert 0 < float(seconds) < 60
    assert "val_bpb: 1.04" in Path(log).read_text()
    (row,) = rows(cli)
    assert str(row["id"]).startswith("baseline-")
    assert row["parent_commit"] is None
    assert row["attested"] is False
    metadata = json.loads(Layout(foreign).run(str(row["id"])).metadata.read_text())
    assert metadata["runtime"]["home"] == "links"


def test_what_is_in_the_working_tree_is_run_and_stays_as_it_is(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment").returncode == 0
    edit(foreign, "RATE = 0.1", "RATE = 0.2")
    before = (git(foreign, "status", "--porcelain"), git(foreign, "rev-parse", "HEAD"))
    answer = cli("run-experiment", "--desc", "a larger rate")
    assert answer.stdout.startswith("1.010000\t")
    assert (git(foreign, "status", "--porcelain"), git(foreign, "rev-parse", "HEAD")) == before
    row = rows(cli)[-1]
    assert row["description"] == "a larger rate"
    assert row["decision_status"] == "review_pending"
    diff = Layout(foreign).run(str(row["id"])).diff.read_text()
    assert "+RATE = 0.2" in diff


def test_an_edit_that_was_run_is_refused_with_its_result_in_whichever_way_it_comes_again(
    cli: Cli, foreign: Path, git: Git, tmp_path: Path
) -> None:
    assert cli("run-experiment", "--settle", "--tag", "t").returncode == 0
    edit(foreign, "RATE = 0.1", "RATE = 0.1  # an edit")
    assert cli("run-experiment", "--settle", "--desc", "a remark").returncode == 0
    first = str(rows(cli)[-1]["id"])
    patch = tmp_path / "same.diff"
    patch.write_text(git(foreign, "diff") + "\n")
    again = [cli("run-experiment"), cli("propose", "--diff", "--title", "again")]
    git(foreign, "checkout", "train.py")
    again += [
        cli("run-experiment", "--patch", str(patch)),
        cli("propose", "--patch", str(patch), "--title", "again"),
    ]
    for answer in again:
        assert answer.returncode == 1 and answer.stdout == "", answer.stdout
        assert f"it was run before, as {first}: discard, within_noise" in answer.stderr
    assert len(rows(cli)) == 2 and len(list(Layout(foreign).plans.glob("*.json"))) == 2
    decisions = Layout(foreign).decisions  # as an older version wrote them
    decisions.write_text(re.sub(r'(?<="tree_hash":)"\w+"', '""', decisions.read_text()))
    assert f"as {first}: discard" in cli("run-experiment", "--patch", str(patch)).stderr
    seeded = cli("run-experiment", "--patch", str(patch), "--seed", "43")
    assert seeded.returncode == 0, seeded.stderr
    assert rows(cli)[-1]["seed"] == 43
    assert cli("run-experiment", "--baseline").returncode == 0, "no edit: a repeat on purpose"
    value = cli("run-experiment", "--set", "RATE=0.3")
    assert value.returncode == 0, value.stderr
    undecided = cli("run-experiment", "--set", "rate=0.30")
    assert "not decided yet, val_bpb 1.000000" in undecided.stderr
    edit(foreign, "RATE = 0.1", "RATE = (")
    crashed, again = cli("run-experiment", "--settle"), cli("run-experiment")
    assert crashed.stdout.startswith("-\t") and not again.stdout
    assert ": crash, code_error, train.py line" in again.stderr


@pytest.mark.parametrize(
    ("override", "kind", "code"),
    [("MODE=crash", "code_error", 1), ("MODE=twice", "invalid", 1), ("MODE=vandal", "invalid", 1)],
)  # fmt: skip
def test_a_failure_has_its_kind_its_reason_and_never_a_number(
    cli: Cli, override: str, kind: str, code: int
) -> None:
    answer = cli("run-experiment", "--set", override)
    assert answer.returncode == code, answer.stderr
    assert answer.stdout.startswith("-\t")
    row = rows(cli)[-1]
    assert row["failure_kind"] == kind
    assert row["metric_value"] is None
    assert kind in answer.stderr
    if override == "MODE=vandal":
        assert "data.txt" in answer.stderr


def test_a_log_without_the_metric_names_those_it_has_and_the_task_file_that_takes_one(
    cli: Cli, foreign: Path, git: Git
) -> None:
    lines = [f"step {n}: train loss {2 - n / 10}, val loss {3 - n / 10}" for n in (1, 2)]
    (foreign / "train.py").write_text("".join(f"print({line!r})\n" for line in lines))
    git(foreign, "commit", "-qam", "prints its losses at each evaluation")
    answer = cli("run-experiment")
    assert answer.returncode == 1
    said, advice, *task = answer.stderr.rstrip("\n").splitlines()[-7:]
    assert said == "no_metric: the log holds no finite val_bpb; it has val_loss 2.8, train_loss" + (
        " 1.8, step 2"
    )
    assert advice.endswith("this task.yaml takes it:") and len(task) == 5
    (foreign / "task.yaml").write_text("\n".join(task))
    answer = cli("run-experiment")
    assert answer.stdout.startswith("2.800000\t"), answer.stderr
    (foreign / "task.yaml").write_text("\n".join(task).replace(", parse: {take: last}", ""))
    answer = cli("run-experiment")
    assert "2 different values of val_loss (2.9, 2.8)" in answer.stderr
    assert answer.returncode == 1 and "take: last" in answer.stderr


def test_two_ranks_that_print_one_value_have_one_value(cli: Cli, foreign: Path, git: Git) -> None:
    (foreign / "train.py").write_text('print("INFO:root:val_bpb: 1.5\\n" * 2)\n')
    git(foreign, "commit", "-qam", "two ranks")
    assert cli("run-experiment").stdout.startswith("1.500000\t")


def test_a_log_is_copied_into_the_repository_that_was_named_and_its_path_is_absolute(
    cli: Cli, foreign: Path, tmp_path: Path
) -> None:
    answer = cli("run-experiment", "--repo", f"../{foreign.name}", "--log", "f.log", cwd=foreign)
    assert answer.stdout.split("\t")[3] == f"{foreign / 'f.log'}\n", answer.stderr
    assert "val_bpb: 1.04" in (foreign / "f.log").read_text()


def test_an_edit_that_does_not_parse_is_a_crash_like_any_other_and_holds_no_device(
    cli: Cli, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run-experiment", "--settle").returncode == 0
    monkeypatch.setattr(LocalExecutor, "submit", lambda *_: pytest.fail("a device was taken"))
    edit(foreign, "RATE = 0.1", "RATE = = 0.1")
    answer = cli("run-experiment", "--settle", "--desc", "a typo")
    assert answer.returncode == 1 and "train.py line" in answer.stderr
    value, memory, seconds, log = answer.stdout.rstrip("\n").split("\t")
    assert (value, memory, seconds) == ("-", "-", "0.00")
    assert "does not parse" in Path(log).read_text()
    row = rows(cli)[-1]
    assert (row["status"], row["failure_kind"], row["val_bpb"]) == ("crash", "code_error", None)
    run = Layout(foreign).run(str(row["id"]))
    assert "+RATE = = 0.1" in run.diff.read_text()
    table = (foreign / "results.tsv").read_text().splitlines()
    assert table[-1].split("\t")[1:] == ["0.000000", "0.0", "crash", "a typo"]


def test_a_training_past_its_deadline_exits_two(cli: Cli, foreign: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(
        "id: short\nroot: repository\nartifacts: [train.py]\n"
        "run: {command: [python, train.py], deadline_seconds: 1}\n"
    )
    answer = cli("run-experiment", "--task", str(task), "--set", "SLEEP=60")
    assert answer.returncode == 2, answer.stderr
    assert rows(cli)[-1]["failure_kind"] == "timeout"


def test_wrong_usage_exits_one_here_and_two_elsewhere(cli: Cli) -> None:
    for words, code in ((("run-experiment", "--nope"), 1), (("runs", "--nope"), 2)):
        answer = cli(*words)
        assert answer.returncode == code
        assert answer.stderr.count("\n") == 1
        assert f"python orchestrator.py {words[0]} --help" in answer.stderr


def test_repo_is_taken_before_and_after_and_from_a_worktree(
    cli: Cli, foreign: Path, tmp_path: Path, git: Git
) -> None:
    assert cli("run-experiment").returncode == 0
    elsewhere = tmp_path / "elsewhere"
    git(foreign, "worktree", "add", "-q", "--detach", str(elsewhere))
    expected = [row["id"] for row in rows(cli)]
    for words, cwd in (
        (("--repo", str(foreign), "runs", "--json"), tmp_path),
        (("runs", "--json", "--repo", str(foreign)), tmp_path),
        (("runs", "--json"), elsewhere),
    ):
        answer = cli(*words, cwd=cwd)
        assert [row["id"] for row in json.loads(answer.stdout)] == expected, answer.stderr


def needs(cli: Cli) -> str:
    """What `status` says of unrecorded runs."""
    entries = json.loads(cli("status", "--json").stdout)["needs"]
    return " ".join(each["what"] for each in entries if each["run"].endswith("sync"))


def begun(root: Path, seconds: float, file: str) -> subprocess.Popen[str]:
    """A run of so many seconds as a process, once it has written `file`."""
    words = ("run-experiment", "--set", f"SLEEP={seconds}")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "orchestrator.py"), *words],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: list(Layout(root).runs.glob(f"*/{file}")))
    return process


def test_a_run_whose_starter_was_killed_is_collected_once_by_sync(cli: Cli, foreign: Path) -> None:
    process = begun(foreign, 1.5, "shim.json")
    process.kill()
    process.communicate()
    assert rows(cli)[-1]["execution_status"] == "running"
    runs = Layout(foreign).runs
    assert "still runs, and the process that began it is gone" in needs(cli)
    wait_until(lambda: list(runs.glob("*/exit.json")))
    wait_until(lambda: "ended, and not recorded" in needs(cli))  # its shim leaves a little later
    assert cli("sync").returncode == 0
    assert not needs(cli)
    (result,) = runs.glob("*/result.json")
    first = result.read_bytes()
    assert cli("sync").returncode == 0
    assert result.read_bytes() == first
    row = rows(cli)[-1]
    assert row["execution_status"] == "completed"
    assert row["metric_value"] == pytest.approx(1.04)


def test_a_training_that_installs_a_package_is_invalid_or_cannot(
    cli: Cli, foreign: Path, held_by: str
) -> None:
    """Into the repository's own environment, as an agent would."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(foreign / ".venv")], check=True
    )
    edit(foreign, "time.sleep(SLEEP)", "import pathlib, sysconfig\n"
         "made = pathlib.Path(sysconfig.get_path('purelib')) / 'pip-1.0.dist-info'\n"
         "made.mkdir()\n(made / 'METADATA').write_text('Name: pip\\nVersion: 1.0\\n')")  # fmt: skip
    answer = cli("run-experiment")
    assert answer.returncode == 1
    row = rows(cli)[-1]
    assert row["failure_kind"] == ("invalid" if held_by == "none" else "code_error")
    reasons = ("pip",) if held_by == "none" else ("Read-only file system", "Permission denied")
    assert any(reason in " ".join(map(str, row["notes"])) for reason in reasons)  # type: ignore[arg-type]
    installed = list((foreign / ".venv").rglob("site-packages/pip-1.0.dist-info"))
    assert bool(installed) == (held_by == "none")


def test_ctrl_c_ends_the_training_and_leaves_a_record(cli: Cli, foreign: Path) -> None:
    process = begun(foreign, 60.0, "events.jsonl")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("\n") == 1
    assert "1 cancelled" in cli("status").stdout, "it is counted at once"
    row = rows(cli)[-1]
    assert (row["status"], row["failure_kind"]) == ("cancelled", "cancelled")


def test_an_edit_in_a_linked_worktree_is_what_is_run(
    cli: Cli, foreign: Path, tmp_path: Path, git: Git
) -> None:
    agents = tmp_path / "an agent's checkout"
    git(foreign, "worktree", "add", "-q", "--detach", str(agents))
    edit(agents, "RATE = 0.1", "RATE = 0.2")
    answer = cli("run-experiment", cwd=agents)
    assert answer.stdout.startswith("1.010000\t"), answer.stderr
    assert "RATE = 0.1" in (foreign / "train.py").read_text()


def test_a_checkout_that_lacks_what_was_kept_is_not_run_as_if_it_undid_it(
    cli: Cli, foreign: Path
) -> None:
    assert cli("run-experiment", "--settle").returncode == 0
    assert cli("run-experiment", "--settle", "--set", "RATE=0.2").returncode == 0
    edit(foreign, "SLEEP = 0.0", "SLEEP = 0.01")
    answer = cli("run-experiment")
    assert answer.returncode == 1
    assert "adopt" in answer.stderr
    edit(foreign, "RATE = 0.1", "RATE = 0.2")
    assert cli("run-experiment").returncode == 0
    diff = Layout(foreign).run(str(rows(cli)[-1]["id"])).diff.read_text()
    assert "SLEEP" in diff
    assert "-RATE" not in diff


def test_commits_of_ones_own_do_not_hide_that_a_checkout_lacks_what_was_kept(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment", "--settle").returncode == 0
    assert cli("run-experiment", "--settle", "--set", "RATE=0.2").returncode == 0
    edit(foreign, "SLEEP = 0.0", "SLEEP = 0.01")
    git(foreign, "commit", "-qam", "my own")
    answer = cli("run-experiment")
    assert answer.returncode == 1 and "lacks what was kept since" in answer.stderr
    kept = rows(cli)[-1]["commit"][:12]
    assert f"git stash, then `git rebase {kept}`" in answer.stderr
    edit(foreign, "RATE = 0.1", "RATE = 0.2")
    assert cli("run-experiment").returncode == 0


def test_a_log_that_cannot_be_copied_is_said_before_the_training(cli: Cli, foreign: Path) -> None:
    answer = cli("run-experiment", "--log", "/no/such/folder/run.log")
    assert answer.returncode == 1
    assert "/no/such/folder" in answer.stderr
    assert not Layout(foreign).runs.exists()


def test_a_folder_that_cannot_be_written_is_one_line(cli: Cli, foreign: Path) -> None:
    (foreign / "research").write_text("in the way")
    answer = cli("run-experiment")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "research" in answer.stderr


def test_a_constant_that_is_set_leaves_the_edits_out_unless_both_are_asked_for(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert "edits" not in cli("run-experiment", "--baseline", "--tag", "t").stderr
    script = foreign / "train.py"
    script.write_text(script.read_text().replace("+ (RATE - 0.3)", "+ 1 + (RATE - 0.3)"))
    one = cli("run-experiment", "--set", "RATE=0.3")
    assert one.stdout.startswith("1.000000\t")
    assert "the edits of your working tree are not in this run; --with-edits takes" in one.stderr
    both = cli("run-experiment", "--set", "RATE=0.3", "--with-edits")
    assert both.stdout.startswith("2.000000\t") and "not in this run" not in both.stderr
    commits = [row["commit"] for row in rows(cli)]
    assert "RATE = 0.3" in git(foreign, "show", f"{commits[2]}:train.py")
    assert "RATE = 0.1" in script.read_text(), "the working tree stays as it is"
    for words in (["--with-edits"], ["--with-edits", "--baseline"]):
        refused = cli("run-experiment", *words)
        assert refused.returncode == 1 and "without --set" in refused.stderr


def test_a_baseline_that_waits_is_decided_before_the_run_that_needs_it(cli: Cli) -> None:
    assert cli("run-experiment", "--baseline", "--tag", "t").returncode == 0
    ran = cli("run-experiment", "--set", "RATE=0.3", "--decide")
    assert ran.returncode == 0, ran.stderr
    assert "baseline-t-1, which waited: keep" in ran.stderr
    assert [row["status"] for row in rows(cli)] == ["keep", "keep"]
