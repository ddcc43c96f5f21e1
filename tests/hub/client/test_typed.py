"""The client's typed side, as methods and as commands, against the real hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autohypothesis.errors import HubError
from autohypothesis.hub.client.http import HubUnavailableError
from autohypothesis.hub.client.hub import HubClient
from tests.conftest import Answer, Cli
from tests.hub.client.conftest import Handler, StandIn

KEY, TASK, TREE = "c" * 64, "a" * 64, "n1:" + "d" * 40
TERMS: dict[str, Any] = {
    "task_hash": TASK, "name": "pretrain", "metric": "val_bpb", "direction": "minimize",
    "min_delta": 0.01,
}  # fmt: skip


def member(url: str, name: str) -> HubClient:
    return HubClient(url, SecretStr(HubClient(url).register(name).api_key))


def body(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "commit": "b" * 40, "platform": "H100", "platform_key": KEY,
        "task_hash": TASK, "metric": "val_bpb", "value": 1.0, "status": "keep", **changes,
    }  # fmt: skip


@pytest.fixture
def ada(real: str) -> HubClient:
    hub = member(real, "ada")
    hub.tell_task(TERMS)
    return hub


@pytest.fixture
def bob(real: str) -> HubClient:
    return member(real, "bob")


def test_what_a_hub_takes_for_the_same_is_said_again_after_a_lost_answer(
    stand_in: StandIn, home: Path
) -> None:
    """The first time it hangs up; a swap may have been made by then, so it is said once."""
    said: list[str] = []
    answers = {"/api/results": RESULT, "/api/claims": CLAIM}

    def lose(handler: Handler) -> bool:
        said.append(handler.path)
        if said.count(handler.path) > 1:
            handler.say(200, json.dumps(answers[handler.path]).encode())
        return True

    stand_in.behave = lose
    hub = HubClient(stand_in.url, SecretStr("key"))
    assert hub.tell_result(body("e-1")).id == 7
    claim = hub.claim(platform_key=KEY, task_hash=TASK, tree=TREE, lease_seconds=60)
    assert claim.id == 5
    with pytest.raises(HubUnavailableError, match="/api/best"):
        hub.swap_best(7, None)
    with pytest.raises(HubUnavailableError):
        hub.release(5)
    assert said == [*["/api/results"] * 2, *["/api/claims"] * 2, "/api/best", "/api/claims/5"]


RESULT = {"id": 7, "commit": "abcd", "created_at": "2026-01-01T00:00:00"}
CLAIM = {"id": 5, "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-01T01:00:00Z"}


def test_a_hub_of_another_kind_is_read_with_patience(stand_in: StandIn, home: Path) -> None:
    """It may know more and say less; a commit that is none is no answer."""
    more = {**RESULT, "seed": None, "value": None, "description": None, "score": {"mmlu": 1}}
    stand_in.behave = lambda handler: handler.say(200, json.dumps([more]).encode()) is None
    hub = HubClient(stand_in.url, SecretStr("key"))
    (found,) = hub.results()
    assert (found.description, found.state, found.reproduced) == ("", "claimed", 0)
    assert found.model_dump()["score"] == {"mmlu": 1}
    assert found.created_at.utcoffset() is not None
    more["commit"] = "--upload-pack=x"
    with pytest.raises(HubError, match="wrong shape"):
        hub.results()


# ── commands ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def joined(cli: Cli, ada: HubClient, bob: HubClient, real: str) -> Cli:
    """`hub WORDS` as agent `grace`."""
    assert cli("hub", "join", real, "--name", "grace").returncode == 0
    return lambda *words: cli("hub", *words)


def rows(answer: Answer) -> Any:
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_results_are_shown_and_told_apart(
    joined: Cli, ada: HubClient, bob: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = joined("results")
    assert (nothing.returncode, nothing.stdout) == (0, "") and "no such results" in nothing.stderr
    good = ada.tell_result(body("e-1", description="wider [bold]heads[/]"))
    poor = ada.tell_result(body("e-2", commit="e" * 40, value=0.5))
    crash = bob.tell_result(body("e-3", status="crash", value=None, platform="A100"))
    bob.tell_result(body("v-1", verifies=good.id))
    bob.tell_result(body("v-2", commit="e" * 40, verifies=poor.id))

    def ids(*words: str) -> list[int]:
        return [one["id"] for one in rows(joined("results", *words, "--json"))]

    assert ids("--state", "reproduced") == [good.id]
    assert ids("--platform", "A100") == ids("--status", "crash") == [crash.id]
    assert ids("--commit", "eeee", "--agent", "ada") == [poor.id]
    assert len(ids("--limit", "2")) == 2 and len(ids()) == 5

    monkeypatch.setenv("COLUMNS", "160")
    by_id = {line.split()[0]: line for line in joined("results").stdout.splitlines()[1:]}
    for result, words in (
        (good, ("reproduced ×1", "1.0000", "wider [bold]heads[/]")),
        (poor, ("refuted ×1", "eeeeeee")),
        (crash, ("claimed", "crash", "–")),
    ):
        assert all(word in by_id[str(result.id)] for word in words)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = joined("results").stdout
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "reproduced ×1" in narrow and "val_bpb 0.5000 " in narrow and "eeeeeee" in narrow
    wrong = joined("results", "--state", "known")
    assert wrong.returncode == 1 and "reproduced" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_boards_are_shown_one_after_another(
    joined: Cli, ada: HubClient, bob: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing on any board" in joined("leaderboard").stderr
    for number, value in enumerate((0.9, 0.8, 0.7)):
        ada.tell_result(body(f"e-{number}", value=value))
    bob.tell_result(body("v", value=0.9, verifies=1))
    bob.post("results", "commit:1234567 platform:A100 val_bpb:1.2 vram_gb:1 | narrower")
    found = rows(joined("leaderboard", "--json"))
    assert [(one["platform"], one["rank"]) for one in found] == [
        ("A100", 1), ("H100", 1), ("H100", 2), ("H100", 3),
    ]  # fmt: skip
    assert [one["value"] for one in found] == [1.2, 0.9, 0.7, 0.8]
    only = rows(joined("leaderboard", "--platform", "H100", "--task-hash", TASK,
                       "--platform-key", KEY, "--limit", "1", "--json"))  # fmt: skip
    assert only == found[1:2]
    monkeypatch.setenv("COLUMNS", "140")
    page = joined("leaderboard").stdout
    assert page.index("A100, as told in posts") < page.index("narrower")
    assert page.index("narrower") < page.index("H100 (key ccccccc), task aaaaaaa")
    assert page.index("reproduced ×1") < page.index("0.700000") < page.index("0.800000")


def test_a_claim_is_made_renewed_shown_and_given_back(joined: Cli, ada: HubClient) -> None:
    of = ("--tree", TREE, "--platform-key", KEY, "--task-hash", TASK)
    assert "nothing is claimed" in joined("claim", "--list").stderr
    first = rows(joined("claim", *of, "--title", "wider", "--lease", "60", "--json"))
    assert (first["agent_id"], first["title"], first["state"]) == ("grace", "wider", "held")
    again = joined("claim", *of)
    assert f"claim {first['id']} is yours until 2" in again.stdout
    (listed,) = rows(joined("claim", "--list", "--json"))
    assert listed["id"] == first["id"] and listed["expires_at"] > first["expires_at"]
    assert rows(joined("claim", "--list", "--task-hash", "b" * 64, "--json")) == []
    ada.claim(platform_key=KEY, task_hash=TASK, tree="n1:" + "e" * 40, lease_seconds=60)
    page = joined("claim", "--list").stdout
    assert "grace" in page and "ada" in page and "n1:eeeeeee" in page
    taken = joined("claim", *of[2:], "--tree", "n1:" + "e" * 40)
    assert taken.returncode == 1 and "claimed by ada until" in taken.stderr
    assert taken.stderr.rstrip().endswith("python orchestrator.py hub claim --list")
    theirs = joined("claim", "--release", str(first["id"] + 1))
    assert theirs.returncode == 1 and "ada's" in theirs.stderr
    assert f"claim {first['id']} is given back" in joined("claim", "--release", "1").stdout
    assert joined("claim", "--release", str(first["id"])).returncode == 1


def test_options_that_say_nothing_together_are_refused(cli: Cli) -> None:
    for words in (
        (), ("--tree", TREE), ("--list", "--tree", TREE), ("--list", "--lease", "60"),
        ("--list", "--title", "x"), ("--release", "1", "--list"),
        ("--release", "1", "--platform-key", KEY), ("--lease", "59"),
    ):  # fmt: skip
        answer = cli("hub", "claim", *words)
        assert answer.returncode == 2 and len(answer.stderr.splitlines()) == 1, words
