"""The typed side of the contract, for any hub: tasks, results, claims, bests and boards.

As test_conformance.py: `AUTOHYPOTHESIS_TEST_HUB=URL` names another one. What needs more than the
contract (limits, restarts, an operator) is in test_typed_serving.py.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from .conftest import Agent, Answer, register

TASK = {
    "task_hash", "name", "metric", "direction", "min_delta", "baseline", "data", "created_at",
    "agent_id",
}  # fmt: skip
TOLD = {
    "name", "commit", "platform", "platform_key", "task_hash", "metric", "value", "status",
    "confirmation", "seed", "budget_seconds", "steps", "memory_gb", "log_hash", "tree",
    "description", "reason", "verifies",
}  # fmt: skip
RESULT = TOLD | {
    "id", "agent_id", "source", "post_id", "created_at", "state", "reproduced", "refuted",
}  # fmt: skip
CLAIM = {
    "id", "platform_key", "task_hash", "tree", "title", "agent_id", "created_at", "expires_at",
    "state", "result",
}  # fmt: skip
BEST = {"platform", "platform_key", "task_hash", "result", "since"}
LARGEST = (1 << 63) - 1
TREE = "n1:" + "d" * 40
names = (f"e-{number}" for number in itertools.count())


def hash64() -> str:
    return secrets.token_hex(32)


@dataclass
class World:
    """A task with one platform, of which nobody else tells anything."""

    ada: Agent
    task: dict[str, Any]
    platform: str
    key: str

    def terms(self) -> dict[str, Any]:
        """What a task is told with, at least."""
        names = ("task_hash", "name", "metric", "direction", "min_delta")
        return {name: self.task[name] for name in names}

    def body(self, **changes: Any) -> dict[str, Any]:
        """A result that every hub takes, with a name of its own."""
        return {
            "name": next(names), "commit": secrets.token_hex(20), "platform": self.platform,
            "platform_key": self.key, "task_hash": self.task["task_hash"],
            "metric": self.task["metric"], "value": 1.0, "status": "keep", **changes,
        }  # fmt: skip

    def tell(self, agent: Agent | None = None, **changes: Any) -> dict[str, Any]:
        answer = (agent or self.ada).send("/api/results", self.body(**changes))
        assert answer.status == 201, answer.body
        return dict(answer.json)

    def again(self, agent: Agent, result: dict[str, Any], **changes: Any) -> Answer:
        """A run of `result` by `agent`."""
        same = {"commit": result["commit"], "verifies": result["id"], **changes}
        return agent.send("/api/results", self.body(**same))

    def idea(self, **changes: Any) -> dict[str, Any]:
        """The body of a claim."""
        return {"platform_key": self.key, "task_hash": self.task["task_hash"], "tree": TREE,
                "lease_seconds": 600, "title": "twice the heads", **changes}  # fmt: skip

    def claim(self, agent: Agent | None = None, **changes: Any) -> Answer:
        return (agent or self.ada).send("/api/claims", self.idea(**changes))

    def results(self) -> list[Any]:
        """All that was told of this platform, the newest first."""
        return list(self.ada.get(f"/api/results?platform={self.platform}"))

    def swap(self, result: Any, expected: Any, agent: Agent | None = None) -> Answer:
        return (agent or self.ada).send("/api/best", {"result": result, "expected": expected})

    def best(self) -> list[Any]:
        return list(self.ada.get(f"/api/best?platform_key={self.key}"))

    def state(self, result: dict[str, Any]) -> tuple[str, int, int]:
        found = self.ada.get(f"/api/results/{result['id']}")
        return found["state"], found["reproduced"], found["refuted"]


def task_body(**changes: Any) -> dict[str, Any]:
    return {
        "task_hash": hash64(), "name": f"task-{secrets.token_hex(6)}", "metric": "val_bpb",
        "direction": "minimize", "min_delta": 0.03, "profile": "cpu", "data_hash": hash64(),
        "baseline": "", **changes,
    }  # fmt: skip


def world(ada: Agent, **changes: Any) -> World:
    body = task_body(**changes)
    answer = ada.send("/api/tasks", body)
    assert answer.status == 201, answer.body
    return World(ada, dict(answer.json), f"P{secrets.token_hex(5)}", hash64())


@pytest.fixture(scope="module")
def ada(url: str) -> Agent:
    return register(url)


@pytest.fixture(scope="module")
def bob(url: str) -> Agent:
    return register(url)


@pytest.fixture(scope="module")
def eve(url: str) -> Agent:
    return register(url)


@pytest.fixture
def here(ada: Agent) -> World:
    return world(ada)


def is_time(text: str) -> bool:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).utcoffset() is not None


# ── bodies ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "key", "near"),
    [
        ("/api/tasks", "min_detla", "min_delta"), ("/api/results", "commmit", "commit"),
        ("/api/claims", "lease_second", "lease_seconds"), ("/api/best", "expect", "expected"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_one_and_no_word_of_our_libraries(
    ada: Agent, path: str, key: str, near: str
) -> None:
    answer = ada.send(path, {key: 1})
    assert answer.status == 400
    assert repr(key) in answer.error and repr(near) in answer.error
    assert not re.search(r"sqlite|sqlalchemy|pydantic|Traceback", answer.error, re.IGNORECASE)


WRONG = {
    "/api/tasks": [
        {"task_hash": "abc"}, {"name": ""}, {"name": "n" * 121}, {"direction": "up"},
        {"min_delta": -1}, {"min_delta": "0.1"}, {"min_delta": True}, {"baseline": "x"},
    ],
    "/api/results": [
        {"name": "post-12-1"}, {"commit": "abc"}, {"commit": "a" * 65}, {"commit": "abcd\n"},
        {"platform": "M4 Max"}, {"platform": "a|b"}, {"platform_key": "a" * 63},
        {"task_hash": "A" * 64}, {"tree": "d" * 40}, {"tree": "n2:" + "d" * 40},
        {"value": "0.9"}, {"value": True}, {"value": 10**400}, {"value": 1.0, "status": "crash"},
        {"status": "review_pending"}, {"seed": 1.5}, {"seed": 1 << 63}, {"memory_gb": -0.5},
        {"description": "x" * 2001}, {"reason": "x" * 201}, {"verifies": 0}, {"verifies": True},
    ],
    "/api/claims": [
        {"lease_seconds": 59}, {"lease_seconds": 86_401}, {"lease_seconds": 60.5}, {"tree": ""},
        {"platform_key": ""}, {"task_hash": ""}, {"title": "x" * 201},
    ],
    "/api/best": [{"result": "1"}, {"result": 1 << 63}, {"expected": 0}],
}  # fmt: skip


def test_a_wrong_value_is_refused_by_its_key(here: World) -> None:
    right = {"/api/tasks": task_body(), "/api/results": here.body(), "/api/claims": here.idea(),
             "/api/best": {"result": 1, "expected": None}}  # fmt: skip
    for path, wrong in WRONG.items():
        for changed in wrong:
            answer = here.ada.send(path, {**right[path], **changed})
            assert answer.status == 400 and next(iter(changed)) in answer.error, changed
            assert len(answer.error) < 1000


# ── tasks ───────────────────────────────────────────────────────────────────────────────────


def test_a_task_stands_as_it_was_told_first(ada: Agent, bob: Agent) -> None:
    body = task_body(baseline="b" * 40)
    first = ada.send("/api/tasks", body)
    assert first.status == 201 and set(first.json) == TASK
    assert first.json["agent_id"] == ada.name and is_time(first.json["created_at"])
    assert first.json["data"] == {"cpu": body["data_hash"]}
    kept = {"task_hash", "name", "metric", "direction", "min_delta", "baseline"}
    assert {name: first.json[name] for name in kept} == {name: body[name] for name in kept}
    again = bob.send("/api/tasks", body)
    assert (again.status, again.json) == (200, first.json)
    assert first.json in bob.get("/api/tasks")
    listed = [one["name"] for one in bob.get("/api/tasks")]
    assert listed == sorted(listed)


def test_a_known_task_has_no_other_terms_and_its_name_is_no_other_task(
    here: World, bob: Agent
) -> None:
    mine, theirs = here.task["task_hash"][:7], hash64()
    for changed, said in (
        ({"min_delta": 0.5}, f"task {mine} has min_delta 0.03 here, not 0.5"),
        ({"metric": "accuracy"}, f"task {mine} has metric val_bpb here, not accuracy"),
        ({"direction": "maximize"}, f"task {mine} has direction minimize here, not maximize"),
        ({"task_hash": theirs}, f"{here.task['name']!r} is {mine}… here, and yours is"
                                f" {theirs[:7]}…"),
    ):  # fmt: skip
        answer = bob.send("/api/tasks", {**here.terms(), **changed})
        assert answer.status == 409 and said in answer.error
    listed = bob.get("/api/tasks")
    assert here.task in listed and theirs not in [one["task_hash"] for one in listed]


def test_one_profile_has_one_data_hash(here: World, bob: Agent) -> None:
    body = {**here.terms(), "profile": "gpu", "data_hash": hash64()}
    joined = bob.send("/api/tasks", body)
    assert joined.status == 200
    assert joined.json["data"] == {**here.task["data"], "gpu": body["data_hash"]}
    other = bob.send("/api/tasks", {**body, "data_hash": "f" * 64})
    assert other.status == 409
    said = f"has data {body['data_hash'][:7]}… here, and yours is fffffff…"
    assert "profile gpu of task" in other.error and said in other.error
    silent = bob.send("/api/tasks", {**body, "data_hash": ""})
    assert (silent.status, silent.json) == (200, joined.json)


def test_a_baseline_that_nobody_said_is_filled_in_once(here: World, bob: Agent) -> None:
    for baseline in ("b" * 40, "c" * 40, ""):
        answer = bob.send("/api/tasks", {**here.terms(), "baseline": baseline})
        assert (answer.status, answer.json["baseline"]) == (200, "b" * 40)


# ── results ─────────────────────────────────────────────────────────────────────────────────


def test_a_result_comes_back_as_it_was_told(here: World) -> None:
    body = here.body(
        value=0.98765432109876, confirmation="provisional", seed=-7, budget_seconds=300,
        steps=LARGEST, memory_gb=44.25, log_hash="e" * 64, tree=TREE,
        description="größer\n“quoted” \x1b[31m", reason="OOM", verifies=None,
    )  # fmt: skip
    assert set(body) == TOLD
    answer = here.ada.send("/api/results", body)
    assert answer.status == 201 and set(answer.json) == RESULT
    found = answer.json
    assert {name: found[name] for name in TOLD} == body
    assert (found["agent_id"], found["source"], found["post_id"]) == (here.ada.name, "typed", None)
    assert (found["state"], found["reproduced"], found["refuted"]) == ("claimed", 0, 0)
    assert isinstance(found["id"], int) and is_time(found["created_at"])
    assert here.ada.get(f"/api/results/{found['id']}") == {**found, "verifications": []}


def test_a_result_that_is_told_again_stands_there_once(here: World, bob: Agent) -> None:
    """Also where it is told by many at once."""
    body = here.body()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: here.ada.send("/api/results", body), range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert all(answer.json == answers[0].json for answer in answers)
    for changed in ({"value": 1.1}, {"commit": "abcd"}, {"description": "x"}, {"seed": 1}):
        other = here.ada.send("/api/results", {**body, **changed})
        assert other.status == 409 and next(iter(changed)) in other.error
    theirs = bob.send("/api/results", body)
    assert theirs.status == 201 and theirs.json["id"] != answers[0].json["id"]
    assert len(here.results()) == 2


def test_no_hub_tells_of_a_value_that_is_no_number(here: World) -> None:
    """Whether it is refused or taken for none."""
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = json.dumps({**here.body(), "value": "BAD"}).replace('"BAD"', number)
        assert here.ada.post("/api/results", body.encode()).status in (201, 400)
    assert {one["value"] for one in here.results()} <= {None}


def test_a_result_needs_its_task(here: World) -> None:
    unknown = here.ada.send("/api/results", here.body(task_hash="0" * 64))
    assert unknown.status == 400 and "POST /api/tasks first" in unknown.error
    other = here.ada.send("/api/results", here.body(metric="accuracy"))
    assert other.status == 400 and "val_bpb, not accuracy" in other.error
    assert here.tell(task_hash="", metric="accuracy")["metric"] == "accuracy"


def test_results_are_found_by_what_they_are(here: World, bob: Agent) -> None:
    mine = here.tell(commit="abcdef12" + "0" * 32, status="discard")
    theirs = here.tell(bob, commit="abcdef99" + "0" * 32, tree=TREE)
    checked = here.again(bob, mine, value=0.5).json
    every = [checked["id"], theirs["id"], mine["id"]]

    def found(query: str) -> list[int]:
        rows = here.ada.get(f"/api/results?platform={here.platform}&{query}")
        assert all(set(row) == RESULT for row in rows)
        return [row["id"] for row in rows]

    assert found("") == every
    assert found(f"agent={bob.name}") == every[:2]
    assert found("status=discard") == [mine["id"]]
    assert found("state=reproduced") == [mine["id"]] and found("state=refuted") == []
    assert found("commit=abcdef9") == [theirs["id"]]
    assert found(f"commit={mine['commit']}") == [checked["id"], mine["id"]]
    assert found(f"verifies={mine['id']}") == [checked["id"]]
    assert found(f"platform_key={here.key}&task_hash={here.task['task_hash']}") == every
    assert found(f"platform_key={hash64()}") == []
    assert found("limit=2") == every[:2] and found("limit=2&offset=2") == every[2:]
    assert found("agent=nobody") == []


def test_what_is_not_there_and_a_wrong_question(ada: Agent) -> None:
    for path in ("/api/results", "/api/claims"):
        assert ada(f"{path}/{LARGEST}").status == 404
        for number in ("x", "0", "-1", "1.5", str(1 << 70), "%C2%B2"):
            answer = ada(f"{path}/{number}")
            assert answer.status == 400 and answer.error, number
    for query in ("status=kept", "state=known", "commit=abc", "limit=0", "limit=1001", "offset=-1",
                  f"verifies={1 << 70}"):  # fmt: skip
        answer = ada(f"/api/results?{query}")
        assert answer.status == 400 and answer.error, query


# ── verdicts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("direction", "again", "state"),
    [
        ("minimize", 1.03, "reproduced"),  # 1.03 - 1 is more than 0.03 to a computer
        ("minimize", 1.030001, "refuted"),
        ("maximize", 0.97, "reproduced"),
        ("maximize", 0.969999, "refuted"),
        ("maximize", None, "refuted"),
    ],
)
def test_the_verdict_follows_the_value(
    ada: Agent, bob: Agent, direction: str, again: float | None, state: str
) -> None:
    here = world(ada, direction=direction)
    result = here.tell(value=1.0)
    status = "keep" if again is not None else "crash"
    checked = here.again(bob, result, value=again, status=status)
    assert checked.status == 201 and checked.json["verifies"] == result["id"]
    counts = (1, 0) if state == "reproduced" else (0, 1)
    assert here.state(result) == (state, *counts)
    found = ada.get(f"/api/results/{result['id']}")
    assert found["verifications"] == [checked.json]
    assert here.state(checked.json) == ("claimed", 0, 0)


def test_the_latest_verdict_of_each_agent_counts_and_once(
    here: World, bob: Agent, eve: Agent
) -> None:
    """Whichever part of the commit it names."""
    result = here.tell()
    history = (
        (bob, 2.0, ("refuted", 0, 1)),
        (bob, 1.0, ("reproduced", 1, 0)),
        (eve, 2.0, ("claimed", 1, 1)),
        (bob, 3.0, ("refuted", 0, 2)),
        (eve, 1.01, ("claimed", 1, 1)),
        (bob, 1.02, ("reproduced", 2, 0)),
    )
    ids = []
    for agent, value, state in history:
        body = here.body(value=value, commit=result["commit"][:7], verifies=result["id"])
        told = [agent.send("/api/results", body) for _ in range(2)]
        assert [one.status for one in told] == [201, 200]
        ids.append(told[0].json["id"])
        assert here.state(result) == state
    found = here.ada.get(f"/api/results/{result['id']}")["verifications"]
    assert [one["id"] for one in found] == ids


def test_nobody_reproduces_their_own_result_and_everybody_may_take_it_back(
    here: World, bob: Agent
) -> None:
    result = here.tell()
    for confirmation in ("none", "confirmed", "provisional"):
        own = here.again(here.ada, result, value=1.0, confirmation=confirmation)
        assert own.status == 400 and "your own" in own.error
    assert here.again(bob, result).status == 201
    assert here.again(bob, result, confirmation="refuted").status == 201  # his word is his value
    assert here.state(result) == ("reproduced", 1, 0)
    back = here.again(here.ada, result, value=1.0, confirmation="refuted", status="discard")
    assert back.status == 201
    assert here.state(result) == ("refuted", 1, 0)


def test_what_cannot_be_compared_verifies_nothing(ada: Agent, bob: Agent, here: World) -> None:
    result, crash = here.tell(), here.tell(status="crash", value=None)
    keyless = here.tell(platform_key="")
    taskless = here.tell(task_hash="")
    other = world(ada)
    assert here.again(bob, {**result, "id": LARGEST}).status == 404
    checked = here.again(bob, result).json
    for answer in (
        here.again(bob, result, platform_key=other.key),
        here.again(bob, result, task_hash=other.task["task_hash"]),
        here.again(bob, result, platform_key=""),
        here.again(bob, result, task_hash=""),
        here.again(bob, result, commit=secrets.token_hex(20)),
        here.again(bob, crash),
        here.again(bob, keyless, platform_key=""),
        here.again(bob, taskless, task_hash=""),
        here.again(ada, checked),
    ):
        assert answer.status == 400 and answer.error, answer.body
    assert here.state(result) == ("reproduced", 1, 0)
    assert here.state(checked) == ("claimed", 0, 0)


# ── lines ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def post(ada: Agent) -> Callable[..., dict[str, Any]]:
    answer = ada.send("/api/channels", {"name": "results", "description": ""})
    assert answer.status in (201, 409)

    def say(content: str, agent: Agent = ada, channel: str = "results", **more: Any) -> Any:
        made = agent.send(f"/api/channels/{channel}/posts", {"content": content, **more})
        assert made.status == 201, made.body
        return made.json

    return say


Post = Callable[..., dict[str, Any]]


def line(commit: str, platform: str, value: str = "1.000000", told: str = "x") -> str:
    return f"commit:{commit} platform:{platform} val_bpb:{value} vram_gb:44.2 | {told}"


def test_every_line_of_a_post_is_a_result(here: World, post: Post) -> None:
    lines = [
        line("aaaaaaa", here.platform, told="wider"),
        "prose, and then",
        line("bbbbbbb", here.platform, "1.100000", "deeper (DISCARD)"),
        "> " + line("ccccccc", here.platform),
        line("ddddddd", here.platform, "---", "all of it (CRASH: OOM)"),
    ]
    made = post("\n".join(lines))
    crash, discard, keep = here.results()
    assert all(set(one) == RESULT for one in (crash, discard, keep))
    for place, one in enumerate((keep, discard, crash), 1):
        assert (one["source"], one["post_id"]) == ("line", made["id"])
        assert one["name"] == f"post-{made['id']}-{place}"
        assert (one["agent_id"], one["state"]) == (here.ada.name, "claimed")
        assert one["created_at"] == made["created_at"]
        assert (one["platform_key"], one["task_hash"], one["tree"]) == ("", "", "")
    assert (keep["commit"], keep["value"], keep["memory_gb"]) == ("aaaaaaa", 1.0, 44.2)
    assert (keep["status"], keep["description"], keep["metric"]) == ("keep", "wider", "val_bpb")
    assert (discard["status"], discard["value"]) == ("discard", 1.1)
    assert (crash["status"], crash["value"], crash["reason"]) == ("crash", None, "OOM")


def test_only_the_channel_of_results_tells_some_and_each_once(here: World, post: Post) -> None:
    same = line("aaaaaaa", here.platform)
    parent = post("what do you think?")
    post(f"{same}\n{same}", parent_id=parent["id"])
    here.ada.send("/api/channels", {"name": "discussion", "description": ""})
    post(line("bbbbbbb", here.platform), channel="discussion")
    post(same)
    assert len(here.results()) == 1
    post(line("aaaaaaa", here.platform, told="another seed"))
    assert len(here.results()) == 2


PAIRS = [
    ({}, "1.000000", "x", True),
    ({"value": 0.99999951}, "1.000000", "x", True),
    ({"status": "replicate"}, "1.000000", "x", True),
    ({"status": "discard"}, "1.000000", "x (DISCARD)", True),
    ({"status": "crash", "value": None}, "---", "x (CRASH: OOM)", True),
    ({"value": None}, "---", "x", True),
    ({"value": 1.000002}, "1.000000", "x", False),
    ({"status": "discard"}, "1.000000", "x", False),
    ({"status": "crash", "value": None}, "---", "x (DISCARD)", False),
    ({"value": None}, "1.000000", "x", False),
    ({"metric": "loss", "task_hash": ""}, "1.000000", "x", False),
]


@pytest.mark.parametrize("first", ["line", "typed"])
def test_a_line_and_a_typed_result_of_one_thing_are_one_result(
    ada: Agent, first: str, post: Post
) -> None:
    """In whichever order they come; what differs is another result."""
    for changed, value, told, same in PAIRS:
        here = world(ada)
        body = {"commit": secrets.token_hex(20), **changed}
        text = line(body["commit"][:7], here.platform, value, told)
        made = post(text) if first == "line" else None
        before = here.results()
        typed = here.tell(description="typed", **body)
        made = made or post(text)
        if not same:
            assert sorted(one["source"] for one in here.results()) == ["line", "typed"], changed
            continue
        assert here.results() == [{**typed, "post_id": made["id"]}], changed
        assert (typed["source"], typed["description"]) == ("typed", "typed")
        for one in before:
            assert (typed["id"], typed["created_at"]) == (one["id"], one["created_at"])
        post(text)
        assert len(here.results()) == 1


def test_a_line_may_have_more_of_the_hash_than_the_typed_result(here: World, post: Post) -> None:
    post(line("abcdef0123", here.platform))
    here.tell(commit="abcd")
    here.tell(commit="1234")
    post(line("1234567", here.platform))
    assert [one["source"] for one in here.results()] == ["typed", "typed"]
    post(line("1235678", here.platform))
    assert len(here.results()) == 3


def test_a_line_of_somebody_else_is_another_result(here: World, post: Post, bob: Agent) -> None:
    typed = here.tell()
    post(line(typed["commit"][:7], here.platform), bob)
    assert [one["agent_id"] for one in here.results()] == [bob.name, here.ada.name]


# ── claims ──────────────────────────────────────────────────────────────────────────────────


def test_a_claim_is_one_agents_and_is_renewed_by_its_own(here: World, bob: Agent) -> None:
    first = here.claim()
    assert first.status == 201 and set(first.json) == CLAIM
    assert (first.json["state"], first.json["result"]) == ("held", None)
    assert (first.json["agent_id"], first.json["title"]) == (here.ada.name, "twice the heads")
    end, begin = (datetime.fromisoformat(first.json[name].replace("Z", "+00:00"))
                  for name in ("expires_at", "created_at"))  # fmt: skip
    assert (end - begin).total_seconds() == 600
    taken = here.claim(bob)
    assert taken.status == 409
    assert taken.error == f"claimed by {here.ada.name} until {first.json['expires_at']}"
    again = here.claim(lease_seconds=1200, title="thrice")
    assert again.status == 201 and again.json["expires_at"] > first.json["expires_at"]
    kept = {"title": "thrice", "expires_at": again.json["expires_at"]}
    assert again.json == {**first.json, **kept}


def test_the_key_has_three_parts_and_claims_are_found_by_them(here: World, bob: Agent) -> None:
    other = {"platform_key": hash64(), "task_hash": hash64(), "tree": "n1:" + "e" * 40}
    mine = here.claim().json
    theirs = [here.claim(bob, **{name: value}).json for name, value in other.items()]
    query = f"/api/claims?platform_key={here.key}"
    every = [theirs[2], theirs[1], mine]
    assert here.ada.get(query) == every
    assert here.ada.get(f"{query}&task_hash={here.task['task_hash']}") == [theirs[2], mine]
    assert here.ada.get(f"{query}&limit=1&offset=1") == every[1:2]
    assert here.ada.get(f"{query}&agent={here.ada.name}") == [mine]


def test_of_sixteen_at_once_one_holds_the_claim(url: str, here: World) -> None:
    crowd = [register(url) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(here.claim, crowd))
    statuses = [answer.status for answer in answers]
    assert sorted(statuses) == [201] + [409] * 15
    winner = crowd[statuses.index(201)].name
    assert all(f"claimed by {winner} until " in one.error for one in answers if one.status == 409)
    (held,) = here.ada.get(f"/api/claims?platform_key={here.key}")
    assert held["agent_id"] == winner


def test_a_claim_ends_with_its_result_or_is_given_back(here: World, bob: Agent) -> None:
    claim = here.claim().json
    path = f"/api/claims/{claim['id']}"
    assert bob.delete(path).status == 403
    answer = here.ada.delete(path)
    assert (answer.status, answer.body) == (204, b"")
    assert here.ada.delete(path).status == 404
    claim = here.claim().json
    result = here.tell(tree=TREE)
    path = f"/api/claims/{claim['id']}"
    done = {**claim, "state": "done", "result": result["id"]}
    assert here.ada.get(path) == done
    tried = here.claim(bob)
    assert (tried.status, tried.error) == (409, f"tried by {here.ada.name}: result {result['id']}")
    assert here.ada.delete(path).status == 204
    assert here.ada.get(path) == done, "what is done stays as it is"


def test_running_it_again_is_no_try_of_ones_own(here: World, bob: Agent, eve: Agent) -> None:
    result = here.tell()
    assert here.again(bob, result, tree=TREE).status == 201
    assert here.claim(eve).status == 201
    assert here.again(eve, result, tree=TREE).status == 201
    assert len(here.ada.get(f"/api/claims?platform_key={here.key}")) == 1


# ── the best ────────────────────────────────────────────────────────────────────────────────


def test_the_best_moves_by_compare_and_swap(here: World, bob: Agent) -> None:
    first, second = here.tell(value=1.0), here.tell(bob, value=0.9)
    assert here.best() == []
    wrong = here.swap(first["id"], second["id"])
    assert wrong.status == 409 and "the best is none yet" in wrong.error
    made = here.swap(first["id"], None)
    assert made.status == 200 and set(made.json) == BEST
    assert made.json["result"] == first and is_time(made.json["since"])
    assert made.json["platform"] == here.platform
    assert here.best() == [made.json]
    stale = here.swap(second["id"], None, bob)
    assert stale.status == 409 and f"the best is result {first['id']}" in stale.error
    moved = here.swap(second["id"], first["id"], bob)
    assert moved.status == 200 and here.best() == [moved.json]
    query = f"/api/best?platform_key={here.key}&task_hash={here.task['task_hash']}"
    assert here.ada.get(query) == [moved.json]
    assert here.ada.get(f"/api/best?task_hash={hash64()}") == []
    assert moved.json in here.ada.get("/api/best")


def test_of_eight_swaps_at_once_one_is_made(here: World) -> None:
    found = [here.tell(value=1.0 - number / 10) for number in range(9)]
    assert here.swap(found[0]["id"], None).status == 200
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: here.swap(one["id"], found[0]["id"]), found[1:]))
    statuses = [answer.status for answer in answers]
    assert sorted(statuses) == [200] + [409] * 7
    won = answers[statuses.index(200)].json["result"]["id"]
    assert here.best()[0]["result"]["id"] == won
    assert all(f"the best is result {won}" in one.error for one in answers if one.status == 409)


def test_what_cannot_be_the_best(ada: Agent, here: World, bob: Agent) -> None:
    best = here.tell(value=1.0)
    assert here.swap(best["id"], None).status == 200
    refuted = here.tell(value=0.5)
    assert here.again(bob, refuted, value=0.9).status == 201
    checked = here.again(bob, best, value=0.8).json
    for unfit, said in (
        (here.tell(value=0.5, status="discard"), "status is discard"),
        (here.tell(value=0.5, status="replicate"), "status is replicate"),
        (here.tell(value=None), "no value"),
        (here.tell(value=0.5, platform_key=""), "no platform_key"),
        (refuted, "refuted"),
        (checked, "verifies"),
        (here.tell(value=1.0), "no better"),
        (here.tell(value=1.1), "no better"),
    ):
        answer = here.swap(unfit["id"], best["id"])
        assert answer.status == 400 and said in answer.error, answer.body
    assert here.swap(LARGEST, None).status == 404
    assert here.best()[0]["result"]["id"] == best["id"]


def test_a_refuted_best_gives_way_to_the_one_before(here: World, bob: Agent) -> None:
    chain: list[dict[str, Any]] = []
    for value in (1.0, 0.9, 0.8):
        chain.append(here.tell(value=value))
        expected = chain[-2]["id"] if len(chain) > 1 else None
        assert here.swap(chain[-1]["id"], expected).status == 200
    since = here.best()[0]["since"]
    assert here.again(bob, chain[1], value=5.0).status == 201
    assert here.best()[0]["result"]["id"] == chain[2]["id"]
    assert here.again(bob, chain[2], value=5.0).status == 201
    assert here.best()[0]["result"]["id"] == chain[0]["id"] and here.best()[0]["since"] < since
    stale = here.swap(here.tell(value=0.7)["id"], chain[2]["id"])
    assert stale.status == 409 and f"the best is result {chain[0]['id']}" in stale.error
    back = here.again(here.ada, chain[0], value=1.0, confirmation="refuted")
    assert back.status == 201 and here.best() == []
    assert here.swap(here.tell(value=3.0)["id"], None).status == 200


# ── boards ──────────────────────────────────────────────────────────────────────────────────


def test_reproduced_results_come_first_and_refuted_ones_last(here: World, bob: Agent) -> None:
    values = {"claimed": 0.5, "late": 0.5, "refuted": 0.1, "good": 0.9, "better": 0.8}
    found = {name: here.tell(value=value) for name, value in values.items()}
    for name in ("good", "better"):
        assert here.again(bob, found[name], value=values[name]).status == 201
    assert here.again(bob, found["refuted"], value=0.9).status == 201
    for other in ({"status": "discard"}, {"status": "replicate"}, {"value": None}):
        here.tell(**{"value": 0.01, **other})
    board = here.ada.get(f"/api/leaderboard?platform_key={here.key}")
    assert all(set(one) == RESULT | {"rank"} for one in board)
    order = ["better", "good", "claimed", "late", "refuted"]
    assert [one["id"] for one in board] == [found[name]["id"] for name in order]
    assert [one["rank"] for one in board] == [1, 2, 3, 4, 5]
    assert [one["state"] for one in board] == ["reproduced"] * 2 + ["claimed"] * 2 + ["refuted"]
    assert here.ada.get(f"/api/leaderboard?platform_key={here.key}&limit=2") == board[:2]


def test_the_best_of_a_task_that_maximizes_is_the_largest(ada: Agent) -> None:
    here = world(ada, direction="maximize")
    low, high, middle = (here.tell(value=value)["id"] for value in (-1.0, 3.0, 2.0))
    board = ada.get(f"/api/leaderboard?task_hash={here.task['task_hash']}")
    assert [one["value"] for one in board] == [3.0, 2.0, -1.0]
    assert here.swap(low, None).status == here.swap(high, low).status == 200
    assert here.swap(middle, high).status == 400


def test_results_that_cannot_be_compared_are_on_boards_of_their_own(
    ada: Agent, here: World, post: Post
) -> None:
    key = hash64()
    post(line("aaaaaaa", here.platform, "0.300000"))
    post(line("bbbbbbb", here.platform, "0.200000"))
    for value in (0.9, 0.8):
        here.tell(value=value)
        here.tell(value=value, platform_key=key)
    here.tell(metric="accuracy", task_hash="", platform_key="", value=0.7)
    found = ada.get(f"/api/leaderboard?platform={here.platform}&limit=1")
    boards = [(one["platform_key"], one["task_hash"], one["metric"]) for one in found]
    task = here.task["task_hash"]
    assert boards == [
        ("", "", "accuracy"), ("", "", "val_bpb"),
        *((one, task, "val_bpb") for one in sorted([key, here.key])),
    ]  # fmt: skip
    assert [one["value"] for one in found] == [0.7, 0.2, 0.8, 0.8]
    assert [one["rank"] for one in found] == [1] * 4
    everything = ada.get("/api/leaderboard?limit=1")
    keys = [[one[name] for name in ("platform", "platform_key", "task_hash", "metric")]
            for one in everything]  # fmt: skip
    assert keys == sorted(keys) and len(keys) == len({tuple(one) for one in keys})
