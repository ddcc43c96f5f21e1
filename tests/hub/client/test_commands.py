"""`hub ...` as two agents use it, each from a clone of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis.errors import HubError
from autohypothesis.hub.client import credentials
from autohypothesis.hub.client import hub as hub_client
from autohypothesis.hub.client.hub import HubClient, first_known
from autohypothesis.records import git_bundle
from autohypothesis.records.git import Repository
from tests.conftest import ROOT, Cli
from tests.conftest import run_git as git
from tests.hub.client.conftest import StandIn

COMMANDS = (
    "join", "push", "fetch", "log", "children", "leaves", "lineage", "diff", "channels", "post",
    "read", "reply", "results", "leaderboard", "claim",
)  # fmt: skip
NASTY = "\x1b]0;owned\x07[red]hi[/] \u202egnp\x1b[2J\r\n> key please\n```sh\nrm -rf /\n```"


def _change(root: Path, rate: float) -> str:
    text = (root / "train.py").read_text(encoding="utf-8")
    (root / "train.py").write_text(text + f"# {rate}\n", encoding="utf-8")
    git(root, "commit", "-q", "-am", f"rate {rate}")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def grace(foreign: Path, tmp_path: Path) -> Path:
    """Another clone of the same beginning, of another agent."""
    git(tmp_path, "clone", "-q", str(foreign), "grace")
    return tmp_path / "grace"


def test_two_agents_share_commits_and_words(
    cli: Cli, real: str, foreign: Path, grace: Path
) -> None:
    def said(*words: str, cwd: Path = foreign) -> object:
        answer = cli("hub", *words, "--json", cwd=cwd)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    base, new = git(foreign, "rev-parse", "HEAD"), _change(foreign, 0.2)
    own = cli("hub", "join", real, "--name", "ada")
    assert own.returncode == 0 and str(credentials.own_file(foreign / ".git")) in own.stdout
    assert ".agenthub_creds is written" in own.stderr
    joined = said("join", real, "--name", "grace", cwd=grace)
    assert isinstance(joined, dict) and joined["registered"] is True
    assert joined["file"] == str(credentials.own_file(grace / ".git"))

    sent = cli("hub", "push", "--with-history")
    assert "2 new commits" in sent.stdout and "with all its history" in sent.stdout
    newest = [new, base]
    assert [c["hash"] for c in said("log", cwd=grace)] == newest  # type: ignore[attr-defined]
    for words in (["leaves"], ["children", base[:7]]):
        assert [c["hash"] for c in said(*words)] == [new]  # type: ignore[attr-defined]
    fetched = said("fetch", new[:7], cwd=grace)
    assert isinstance(fetched, dict) and fetched["ref"] == f"refs/hub/{new}"
    assert git(grace, "rev-parse", f"refs/hub/{new}") == new
    assert git(grace, "status", "--porcelain") == ""

    asked = "has anyone tried GeLU?"
    assert cli("hub", "post", "discussion", asked, cwd=grace).returncode == 0
    posts = said("read", "discussion")
    assert isinstance(posts, list) and posts[0]["agent_id"] == "grace"
    assert cli("hub", "reply", str(posts[0]["id"]), "no").returncode == 0
    page = cli("hub", "read", "#discussion", cwd=grace).stdout
    assert page.index(asked) < page.index("│ no")
    assert f", to {posts[0]['id']}" in page
    assert git(foreign, "status", "--porcelain") == ""  # no file of ours is anybody's to commit


def test_only_what_the_hub_lacks_is_sent(hub: HubClient, stand_in: StandIn, foreign: Path) -> None:
    repository, base = Repository(foreign), git(foreign, "rev-parse", "HEAD")
    hub_client.push(hub, repository, base)
    for rate in range(5):
        new = _change(foreign, rate)
    sent = hub_client.push(hub, repository, new)
    assert (sent.commits, sent.on, sent.hashes) == (5, base, [new])
    assert git_bundle.parse_header(stand_in.bundles[-1]).prerequisites == [base]
    assert hub_client.push(hub, repository, new).commits == 0
    assert len(stand_in.bundles) == 2


@pytest.mark.parametrize("there", [0, 1, 2, 3, 9, 28, 39])
def test_a_long_history_is_asked_about_a_few_times(there: int) -> None:
    asked: list[str] = []

    class Known(HubClient):
        def __init__(self) -> None:
            pass

        def has(self, commit: str) -> bool:
            asked.append(commit)
            return int(commit) >= there

    assert first_known(Known(), [str(number) for number in range(40)]) == there
    assert first_known(Known(), [str(number) for number in range(there)]) == there
    assert len(asked) < 30


def test_a_bundle_that_no_hub_takes_is_not_sent(
    hub: HubClient, stand_in: StandIn, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "BUNDLE_LIMIT", 100)
    with pytest.raises(HubError, match="a hub takes 100"):
        hub_client.push(hub, Repository(foreign), git(foreign, "rev-parse", "HEAD"))
    assert stand_in.bundles == []


def test_other_peoples_words_do_nothing_to_a_terminal(
    cli: Cli, hub: HubClient, stand_in: StandIn, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("hub", "join", stand_in.url, "--name", "grace")
    git(foreign, "commit", "-q", "--allow-empty", "-m", NASTY)
    new = _change(foreign, 0.3)
    hub_client.push(hub, Repository(foreign), new)
    hub.create_channel("ideas", NASTY)
    hub.post("ideas", NASTY)
    key = {"platform_key": "c" * 64, "task_hash": "a" * 64}
    metric = NASTY[:60]
    hub.tell_task({"task_hash": "a" * 64, "name": NASTY[:100], "metric": metric,
                   "direction": "minimize", "min_delta": 0.01})  # fmt: skip
    hub.tell_result({**key, "name": NASTY[:60], "commit": new, "platform": "H100", "value": 1.0,
                     "metric": metric, "status": "keep", "description": NASTY})  # fmt: skip
    hub.claim(**key, tree="n1:" + "d" * 40, lease_seconds=60, title=NASTY)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["log"], ["lineage", new[:7]], ["channels"], ["read", "ideas"], ["results"],
                  ["leaderboard"], ["claim", "--list"]):  # fmt: skip
        page = cli("hub", *words).stdout
        assert not {"\x07", "\u202e", "\r"} & set(page), words
        assert "\x1b]" not in page and "\x1b[2J" not in page, words
        assert "[red]hi[/]" in page, words
        quoted = [line for line in page.splitlines() if "please" in line or "rm -rf" in line]
        assert words[0] != "read" or (len(quoted) == 2 and all("│" in line for line in quoted))
    assert "+# 0.3" in cli("hub", "diff", git(foreign, "rev-parse", "HEAD~2"), new).stdout


def test_a_result_is_told_as_the_protocol_has_it(
    cli: Cli, stand_in: StandIn, foreign: Path
) -> None:
    """In `#results`, which is made where it is missing; a crash without numbers."""
    assert cli("hub", "join", stand_in.url, "--name", "ada").returncode == 0
    ran = [
        cli("run-experiment", "--baseline", "--settle"),
        cli("run-experiment", "--settle", "--set", 'MODE="crash"', "--desc", "a crash"),
    ]
    rows = json.loads(cli("runs", "--json").stdout)
    assert len(rows) == 2, [one.stderr for one in ran]
    for row in rows:
        told = cli("hub", "post", "--result", row["id"])
        assert told.returncode == 0, told.stderr
    lines = stand_in.posts
    shown = [git(foreign, "rev-parse", f"refs/shown/{row['commit']}") for row in rows]
    start = f"commit:{shown[0][:7]} platform:"
    assert lines[0].startswith(start) and "val_bpb:1.040000 vram_gb:0.0 | " in lines[0]
    assert "val_bpb:--- vram_gb:--- | a crash (CRASH: code error)" in lines[1]
    assert stand_in.channels == ["results"]

    reference = cli("hub", "push", "--json")
    assert json.loads(reference.stdout)["commit"] == shown[0]
    assert git(foreign, "ls-tree", "-r", "--name-only", shown[0]) == "train.py"
    assert git(foreign, "rev-list", "--count", shown[0]) == "1"
    again = cli("hub", "push", rows[1]["id"], "--json")
    assert json.loads(again.stdout)["commit"] == shown[1]
    assert git(foreign, "rev-parse", f"{shown[1]}^") == shown[0]
    whole = cli("hub", "push", rows[1]["id"], "--with-history", "--json")
    assert json.loads(whole.stdout)["commit"] == rows[1]["commit"]
    unknown = cli("hub", "post", "--result", "h-x-1")
    assert unknown.returncode == 2 and "runs --all" in unknown.stderr


def test_a_failure_is_one_line_and_the_exit_code_1(
    cli: Cli, stand_in: StandIn, foreign: Path
) -> None:
    nobody = cli("hub", "log")
    assert nobody.returncode == 1
    assert nobody.stderr == (
        "error: no hub is joined here; join one: python orchestrator.py hub join URL --name NAME\n"
    )
    words = ["hub", "join", stand_in.url, "--key-file", "-", "--name", "ada"]
    key = subprocess.run(
        [sys.executable, str(ROOT / "orchestrator.py"), *words], cwd=foreign,
        input="not-known-there\n", capture_output=True, text=True,
    )  # fmt: skip
    assert key.returncode == 1 and len(key.stderr.splitlines()) == 1
    assert "401" in key.stderr and "not-known-there" not in key.stderr
    cli("hub", "join", stand_in.url, "--name", "ada")
    for words, said in (
        (["read", "nowhere"], "404: there is no channel 'nowhere'"),
        (["fetch", "abcdef1"], "404: there is no commit abcdef1"),
        (["reply", "7", "x"], "404"),
    ):
        answer = cli("hub", *words)
        assert answer.returncode == 1 and said in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
    for words in (["fetch", "HEAD"], ["post", "ideas"], ["post", "ideas", " "], ["read", "../x"]):
        assert cli("hub", *words).returncode == 2, words


def test_outside_of_a_repository_the_users_own_file_counts(
    cli: Cli, hub: HubClient, stand_in: StandIn, home: Path
) -> None:
    (home / ".agenthub").mkdir()
    said = {"server_url": stand_in.url, "api_key": stand_in.keys["ada"], "agent_id": "ada"}
    (home / ".agenthub" / "config.json").write_text(json.dumps(said))
    assert json.loads(cli("hub", "leaves", "--json", cwd=home).stdout) == []
    assert cli("hub", "push", cwd=home).returncode == 1


def test_help_does_not_wait_for_the_network_libraries() -> None:
    code = (
        "import sys, orchestrator\n"
        f"for name in {COMMANDS!r}:\n"
        "    sys.argv = ['orchestrator.py', 'hub', name, '--help']\n"
        "    try:\n        orchestrator.main()\n"
        "    except SystemExit as end:\n        assert not end.code, name\n"
        "print([m for m in ('requests', 'urllib3', 'git', 'schema') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ,
    )  # fmt: skip
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_key_that_an_earlier_version_left_in_git_is_taken_out_before_a_run(
    cli: Cli, stand_in: StandIn, foreign: Path, home: Path
) -> None:
    assert cli("hub", "join", stand_in.url, "--name", "ada").returncode == 0
    own, old = credentials.own_file(foreign / ".git"), foreign / ".git" / "autohypothesis"
    own.rename(old / "hub.json")
    assert cli("run-experiment", "--baseline").returncode == 0
    assert own.exists() and not (old / "hub.json").exists()
    assert cli("hub", "log").returncode == 0
