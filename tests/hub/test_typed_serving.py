"""The typed side where an operator, a restart or a kill has a part in it."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from autohypothesis.hub.protocol import (
    BestRequest,
    BoardQuery,
    ClaimQuery,
    KeyQuery,
    NewClaimRequest,
    ResultQuery,
    ResultRequest,
    TaskRequest,
)
from autohypothesis.hub.server import boards, results, tasks
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.service import Caller

from .conftest import Agent, Hub, HubProcess, Start, StartProcess, admin
from .test_typed import TREE, Post, World, line, task_body, world

NEW = ("bests", "claims", "results", "task_data", "tasks")
"""Tables that the first half of the hub did not have; those that refer to others first."""


def said_on(agent: Agent) -> Post:
    agent.send("/api/channels", {"name": "results"})

    def say(content: str) -> dict[str, Any]:
        return dict(agent.send("/api/channels/results/posts", {"content": content}).json)

    return say


# ── limits and roles ────────────────────────────────────────────────────────────────────────


def test_every_typed_write_counts_as_an_attempt(start: Start) -> None:
    hub = start("--results", "4", "--claims", "4")
    agent, other = hub.agent("ada"), hub.agent("bob")
    task = agent.send("/api/tasks", task_body())
    assert [
        task.status,
        agent.send("/api/tasks", "no object").status,
        agent.send("/api/results", {}).status,
        agent.send("/api/best", {"result": 1, "expected": None}).status,
    ] == [201, 400, 400, 404]
    for path in ("/api/tasks", "/api/results", "/api/best"):
        answer = agent.send(path, {})
        assert answer.status == 429 and "'result'" in answer.error
        assert 0 < int(answer.headers["retry-after"]) <= 3600
    here = World(agent, task.json, "CPU", "c" * 64)
    claim = here.claim()
    assert [
        claim.status,
        here.claim(tree="").status,
        agent.delete("/api/claims/999").status,
        agent.delete(f"/api/claims/{claim.json['id']}").status,
    ] == [201, 400, 404, 204]
    assert here.claim().status == 429
    delete = agent.delete("/api/claims/999")
    assert delete.status == 429 and "'claim'" in delete.error
    for path in ("/api/tasks", "/api/results", "/api/claims", "/api/best", "/api/leaderboard"):
        assert agent(path).status == 200
    assert here.claim(other).status == 201


def test_a_task_is_forgotten_while_it_has_no_results(start: Start) -> None:
    hub = start()
    ada = hub.agent("ada")
    wrong, used = task_body(name="pretrain"), world(ada)
    assert ada.send("/api/tasks", wrong).status == 201
    right = {**task_body(), "name": "pretrain"}
    assert ada.send("/api/tasks", right).status == 409
    done = admin(hub, "forget-task", wrong["task_hash"][:10])
    assert done.returncode == 0 and "pretrain" in done.stdout
    assert ada.send("/api/tasks", right).status == 201
    assert [one["task_hash"] for one in ada.get("/api/tasks")].count(wrong["task_hash"]) == 0

    used.tell()
    for start_of, said in (
        (used.task["task_hash"], "there are results of task"),
        (wrong["task_hash"], "there is no task"),
        ("xyz", "is not a hash"),
    ):
        refused = admin(hub, "forget-task", start_of)
        assert refused.returncode == 1 and said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert used.task in ada.get("/api/tasks")


# ── what was there before, and what is killed ───────────────────────────────────────────────


def test_a_hub_of_the_first_half_gets_its_tables_and_its_results(start: Start) -> None:
    """Its posts are read once, with the times at which they were made."""
    hub = start()
    ada = hub.agent("ada")
    post = said_on(ada)
    here = world(ada)
    posts = [post(line("aaaaaaa", here.platform)), post("none"), post(line("bbbbbbb", "other"))]
    before = ada.get("/api/results")
    hub.end()
    with closing(sqlite3.connect(hub.data / "hub.sqlite3")) as connection, connection:
        for table in NEW:
            connection.execute(f"DROP TABLE {table}")
    for restart in (1, 2):
        ada.hub = hub.start().url
        found = ada.get("/api/results")
        assert found == before
        assert [one["post_id"] for one in found] == [posts[2]["id"], posts[0]["id"]]
        if restart == 1:
            hub.end()
    here = world(ada)
    assert here.claim().status == 201


def sent_and_never_answered(hub: Hub, agent: Agent, path: str, value: Any) -> socket.socket:
    """A request whose answer nobody reads."""
    host, port = hub.url.removeprefix("http://").split(":")
    body = json.dumps(value).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {agent.key}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + body)
    return connection


def killed_once(hub: HubProcess, there: Callable[[sqlite3.Connection], Any]) -> None:
    """kill -9, as soon as the database shows it."""
    with closing(sqlite3.connect(hub.data / "hub.sqlite3", timeout=30)) as connection:
        until = time.monotonic() + 60
        while not there(connection):
            assert time.monotonic() < until
    hub.end(signal.SIGKILL)


def test_a_kill_between_a_write_and_its_answer_leaves_all_of_it_once(
    start_process: StartProcess,
) -> None:
    """A claim, the result that ends it, and a check that refutes another result."""
    hub = start_process()
    ada, bob = hub.agent("ada"), hub.agent("bob")
    here = world(ada)
    original = here.tell(bob)
    body = here.body(tree=TREE)
    checks = here.body(commit=original["commit"], verifies=original["id"], value=9.0)

    def killed(path: str, value: Any, there: str) -> None:
        with sent_and_never_answered(hub, ada, path, value):
            killed_once(hub, lambda db: db.execute(there).fetchone())
        ada.hub = bob.hub = hub.start().url

    killed("/api/claims", here.idea(), "SELECT id FROM claims")
    (held,) = bob.get("/api/claims")
    assert here.claim(bob).status == 409
    again = here.claim()
    assert (again.status, again.json["id"]) == (201, held["id"])
    killed("/api/results", body, "SELECT id FROM results WHERE id = 2")
    result = ada.send("/api/results", body)
    assert (result.status, result.json["id"]) == (200, 2)
    assert ada.get(f"/api/claims/{held['id']}")["state"] == "done"
    killed("/api/results", checks, "SELECT id FROM results WHERE id = 3")
    for _ in range(2):
        assert here.state(original) == ("refuted", 0, 1)
        assert ada.send("/api/results", checks).status == 200


@pytest.mark.slow
def test_kills_at_any_moment_leave_one_holder_of_every_key(start_process: StartProcess) -> None:
    hub = start_process("--claims", "100000", "--results", "100000", "--connections", "400")
    agents = [hub.agent(f"agent-{number}") for number in range(4)]
    here = world(agents[0])
    for turn in range(6):
        trees = [f"n1:{turn * 50 + number:040x}" for number in range(50)]
        open_ones = [
            sent_and_never_answered(hub, agent, "/api/claims", here.idea(tree=tree))
            for tree in trees
            for agent in agents
        ]
        killed_once(
            hub,
            lambda db, most=turn * 20 + 20: (
                db.execute("SELECT count(*) FROM claims").fetchone()[0] >= most
            ),
        )
        for one in open_ones:
            one.close()
        url = hub.start().url
        for agent in agents:
            agent.hub = url
        held = here.ada.get("/api/claims?limit=1000")
        assert len({one["tree"] for one in held}) == len(held)
        for one in held[:5]:
            answers = [here.claim(agent, tree=one["tree"]) for agent in agents]
            assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
            granted = next(answer for answer in answers if answer.status == 201)
            assert granted.json["id"] == one["id"]


def test_a_line_and_its_post_are_stored_together(start: Start) -> None:
    """A post that is refused leaves no result, one that is taken leaves all of them."""
    hub = start("--posts", "1")
    ada = hub.agent("ada")
    here = world(ada)
    post = said_on(ada)
    assert "id" in post("\n".join(line(f"{number:07x}", here.platform) for number in range(250)))
    assert len(ada.get(f"/api/results?platform={here.platform}&limit=1000")) == 200
    assert "error" in post(line("fffffff", here.platform))
    assert len(here.results()) == 50


def test_no_question_about_results_reads_all_of_them(tmp_path: Path) -> None:
    """Of a plan, not of a clock: no question about the newest, a board or a claim scans them."""
    database = Database(tmp_path / "hub.sqlite3")
    asked: list[tuple[str, Any]] = []
    for engine in (database._readers, database._writer):
        event.listen(
            engine, "before_cursor_execute",
            lambda conn, cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )  # fmt: skip
    key, task, caller = "c" * 64, "a" * 64, Caller("agent-1", "push")
    terms = TaskRequest(task_hash=task, name="x", metric="m", direction="minimize", min_delta=0)
    tasks.tell_task(database, caller, terms)
    told = ResultRequest(
        name="x", commit="abcd" * 10, platform="CPU", platform_key=key, task_hash=task,
        metric="m", value=1.0, status="keep", tree=TREE,
    )  # fmt: skip
    number = results.tell_result(database, caller, told)[0]["id"]
    boards.swap_best(database, BestRequest(result=number, expected=None))
    for filters in ({}, {"platform": "CPU"}, {"agent": "agent-1"}, {"state": "refuted"},
                    {"commit": "abcd"}, {"status": "crash"}, {"verifies": 7}, {"platform_key": key},
                    {"platform_key": key, "task_hash": task}):  # fmt: skip
        results.newest_results(database, ResultQuery(**filters))
    assert len(boards.leaderboard(database, BoardQuery())) == 1
    boards.every_best(database, KeyQuery())
    wanted = NewClaimRequest(platform_key=key, task_hash=task, tree=TREE, lease_seconds=60)
    tasks.claim(database, caller, wanted)
    tasks.held_claims(database, ClaimQuery())
    with database.read() as connection:
        for statement, parameters in list(asked):
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps = [row[3] for row in plan]
                assert not [one for one in steps if unaided(one, statement)], (statement, steps)
    database.close()


def unaided(step: str, statement: str) -> bool:
    """Whether a step reads or sorts results from end to end, for more than its newest."""
    newest = "ORDER BY results.id DESC" in statement
    if "TEMP B-TREE FOR ORDER BY" in step:
        return newest and 'results."commit" >=' not in statement  # a beginning has few
    alone = newest and "WHERE" not in statement
    return step.startswith("SCAN results") and "INDEX" not in step and not alone
