"""What the commands say of files that a run does not have, and what they record."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from autohypothesis.commands import doctor
from autohypothesis.records.layout import Layout
from tests.conftest import Cli, Git

READS = """import os
found = [name for name in ("data/x", "part/p.txt") if os.path.exists(name)]
print("val_bpb:", 1.0 + len(found))
print("peak_vram_mb: 0")
"""


def commit(root: Path, git: Git) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "more")


def with_data(root: Path, git: Git) -> None:
    (root / "train.py").write_text(READS)
    (root / ".gitignore").write_text("data\n")
    (root / "data").mkdir()
    (root / "data" / "x").write_text("0.5\n")
    commit(root, git)


def runtime(root: Path) -> list[dict[str, object]]:
    files = sorted(Layout(root).runs.glob("*/metadata.json"), key=lambda one: one.stat().st_mtime)
    return [json.loads(one.read_text())["runtime"] for one in files]


def test_what_a_run_lacks_is_named_and_the_line_that_is_printed_brings_it(
    cli: Cli, foreign: Path, git: Git
) -> None:
    with_data(foreign, git)
    first = cli("run-experiment", "--baseline")
    assert first.stdout.startswith("1.000000\t")
    assert "a run does not have data/ (4 bytes)" in first.stderr
    assert "'/data/' >> .worktreeinclude" in first.stderr
    (check,) = [
        check for check in json.loads(cli("doctor", "--json").stdout)["checks"]
        if check["name"] == "checkout"
    ]  # fmt: skip
    assert check["verdict"] == "warning" and "data/ (4 bytes)" in check["detail"]
    assert ".worktreeinclude" in check["hint"]
    (foreign / ".worktreeinclude").write_text("/data/\n")
    second = cli("run-experiment", "--baseline")
    assert second.stdout.startswith("2.000000\t"), second.stderr
    assert "data/" not in second.stderr
    before, after = runtime(foreign)
    assert before["checkout_lacks"] == ["data/ (4 bytes)"]
    assert after["included"].keys() == {"data/"}  # type: ignore[attr-defined]
    assert "data/ (4 bytes)" not in str(after["checkout_lacks"])
    assert before["platform_key"] != after["platform_key"]
    assert before["task_hash"] == after["task_hash"]


def test_a_fleet_and_a_loop_say_it_too(cli: Cli, foreign: Path, git: Git) -> None:
    with_data(foreign, git)
    assert "data/ (4 bytes)" in cli("init-fleet", "--cpu-workers", "1", "--tag", "t").stderr
    assert "data/ (4 bytes)" in cli("run-loop", "--max", "1", "--tag", "u").stderr


def test_up_names_what_runs_lack_once(cli: Cli, foreign: Path, git: Git) -> None:
    with_data(foreign, git)
    up = cli("up", "--cpu-workers", "1", "--max-runs", "1")
    assert up.returncode == 0 and up.stderr.count("data/ (4 bytes)") == 1, up.stderr


def test_a_submodule_that_is_not_here_stops_a_search_before_it_begins(
    cli: Cli, foreign: Path, git: Git
) -> None:
    part = foreign.parent / "part"
    part.mkdir()
    git(part, "init", "-q")
    (part / "p.txt").write_text("x\n")
    commit(part, git)
    git(foreign, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(part))
    (foreign / "train.py").write_text(READS)
    commit(foreign, git)
    assert cli("run-experiment", "--baseline").stdout.startswith("2.000000\t")
    shutil.rmtree(foreign / ".git" / "modules")
    shutil.rmtree(foreign / "part")
    for words in (["run-experiment", "--baseline"], ["run-loop", "--max", "1"], ["init-fleet"]):
        answer = cli(*words)
        assert answer.returncode == 1
        assert "git submodule update --init --recursive -- part" in answer.stderr
    assert len(runtime(foreign)) == 1


def test_a_script_that_asks_git_for_its_version_has_one_where_the_task_says_so(
    cli: Cli, foreign: Path, git: Git
) -> None:
    (foreign / "train.py").write_text(
        "import subprocess\n"
        "words = ['git', 'describe', '--dirty']\n"
        "said = subprocess.run(words, capture_output=True, text=True).stdout.strip()\n"
        "print('val_bpb:', {'v0.0.0': 1.0, '': 2.0}[said])\nprint('peak_vram_mb: 0')\n"
    )
    git(foreign, "tag", "-a", "-m", "mine", "v9")
    (foreign / "task.yaml").write_text("id: t\nartifacts: [train.py]\n")
    commit(foreign, git)
    assert cli("run-experiment", "--baseline").stdout.startswith("2.000000\t")
    (foreign / "task.yaml").write_text("id: t\nartifacts: [train.py]\nrun: {git: true}\n")
    commit(foreign, git)
    answer = cli("run-experiment", "--baseline", "--tag", "again")
    assert answer.stdout.startswith("1.000000\t"), answer.stderr


def test_a_run_leaves_the_worktree_of_its_worker_alone(cli: Cli, foreign: Path, git: Git) -> None:
    assert cli("init-fleet", "--cpu-workers", "1", "--tag", "t").returncode == 0
    place = foreign / "worktrees" / "cpu0"
    (place / "train.py").write_text("# half an idea\n")
    assert cli("up", "--max-runs", "1").returncode == 0
    assert (place / "train.py").read_text() == "# half an idea\n"
    assert git(place, "branch", "--show-current") == "autoresearch/t-cpu0"
    assert (foreign / "worktrees" / ".runs" / "cpu0" / "train.py").exists()


def test_doctor_has_a_line_and_a_fix_for_each_thing_that_is_missing(
    cli: Cli, foreign: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_data(foreign, git)
    page = "No more than 8 GB of memory.\n\n```steering\nfrozn: [DEPTH]\n```\n"
    (foreign / "program.md").write_text(page)
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    answer = cli("doctor")
    lines = dict(line.split(": ", 1) for line in answer.stdout.splitlines())
    assert "memory_limit_mb: 8192" in lines["warning  charter"]
    assert "frozn" in lines["warning  steering"] and "prune" in lines["warning  disk"]
    wrong = {name: line for name, line in lines.items() if not name.startswith("     ok")}
    assert all("; " in line for line in wrong.values()), wrong


def test_doctor_names_a_damaged_manifest_with_the_command_that_mends_it(
    cli: Cli, foreign: Path
) -> None:
    made = ("init-fleet", "--tag", "t", "--cpu-workers", "1")
    assert cli(*made).returncode == 0
    manifest = Layout(foreign).manifest
    manifest.write_text('{"tag": "t", "workers": "x"}')
    cli("sync")
    answer = cli("doctor", "--json")
    named = [one for one in json.loads(answer.stdout)["checks"] if "manifest" in one["detail"]]
    assert answer.returncode == 1 and [one["name"] for one in named] == ["manifest"]
    aside, mended = named[0]["hint"].split(" && ")
    assert mended == "python orchestrator.py init-fleet --tag t"
    subprocess.run(aside, shell=True, check=True)
    assert cli(*shlex.split(mended)[2:]).returncode == 0
    assert '"manifest"' not in cli("doctor", "--json").stdout
