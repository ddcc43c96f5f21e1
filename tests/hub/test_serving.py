"""Who gets in, how often, from where; and what a hub promises beside the contract."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until

from .conftest import (
    ADMIN_KEY,
    AS_JSON,
    Agent,
    Hub,
    HubProcess,
    MakeClone,
    Start,
    StartProcess,
    admin,
    ask,
    curl,
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """One for all tests that leave it as it was, but for agents and commits."""
    options = ("--name", "hub.example.org", "--channels", "3")
    hub = HubProcess(tmp_path_factory.mktemp("serving") / "data", options).start()
    yield hub
    hub.end()


def test_keys_roles_and_what_the_folder_shows(hub: Hub, clone: MakeClone) -> None:
    mine = clone()
    mine.commit("start")
    bundle = mine.bundle()
    reader, poster = hub.agent("reader", "read"), hub.agent("poster", "post")
    chief = hub.agent("chief", "admin")
    assert reader.get("/api/channels") == []
    assert reader.send("/api/channels", {"name": "results"}).status == 403
    assert poster.send("/api/channels", {"name": "results"}).status == 201
    assert poster.push(bundle).status == 403
    assert poster.send("/api/admin/agents", {"id": "friend"}).status == 403
    assert chief.send("/api/admin/agents", {"id": "friend", "role": "king"}).status == 400
    assert chief.push(bundle).status == 201
    operator = Agent(hub.url, "", ADMIN_KEY)
    assert operator.push(bundle).status == 403

    fresh = operator("/api/admin/agents/poster/rotate", "-X", "POST").json["api_key"]
    assert poster("/api/channels").status == 401
    poster.key = fresh
    assert poster("/api/channels").status == 200
    assert operator("/api/admin/agents/poster/revoke", "-X", "POST").status == 204
    assert poster("/api/channels").status == 401
    assert operator("/api/admin/agents/nobody/revoke", "-X", "POST").status == 404
    names = [one["id"] for one in operator.get("/api/admin/agents")]
    assert {"chief", "poster", "reader"} <= set(names)

    assert stat.S_IMODE(hub.data.stat().st_mode) == 0o700
    for path in hub.data.rglob("*"):
        assert not path.is_file() or chief.key.encode() not in path.read_bytes()


def test_the_operator_gives_keys_while_the_hub_serves(hub: Hub) -> None:
    agent = Agent(hub.url, "ada", admin(hub, "create", "ada", "--role", "read").stdout.strip())
    assert agent("/api/channels").status == 200
    assert admin(hub, "role", "ada", "post").returncode == 0
    assert agent.send("/api/channels/none/posts", {"content": "x"}).status == 404
    assert admin(hub, "revoke", "ada").returncode == 0
    assert agent("/api/channels").status == 401
    listed = json.loads(admin(hub, "list", "--json").stdout)
    (row,) = [one for one in listed if one["id"] == "ada"]
    assert row["role"] == "post" and row["revoked_at"]
    agent.key = admin(hub, "rotate", "ada").stdout.strip()
    assert agent("/api/channels").status == 200


def test_closed_registration_says_how_to_get_in(hub: Hub) -> None:
    answer = curl(*AS_JSON, "-d", '{"id":"ada"}', f"{hub.url}/api/register")
    assert answer.status == 403 and "hub admin create" in answer.error


def test_attempts_count_and_are_remembered_over_a_restart(start: Start, clone: MakeClone) -> None:
    limits = ("--pushes", "2", "--posts", "2", "--diffs", "2", "--registrations", "2")
    hub = start("--open-registration", *limits)
    agent, other = hub.agent("ada"), hub.agent("bob")
    for _ in range(2):
        assert agent.send("/api/git/push", "no bundle").status == 400
        assert agent.send("/api/channels/none/posts", {}).status == 400
        assert agent("/api/git/diff/abcd/abcd").status == 404
        assert curl(*AS_JSON, "-d", "{}", f"{hub.url}/api/register").status == 400
    hub.end()
    agent.hub = other.hub = hub.start().url
    mine = clone()
    mine.commit("start")
    for answer in (
        agent.push(mine.bundle()),
        agent.send("/api/channels/none/posts", {"content": "x"}),
        agent("/api/git/diff/abcd/abcd"),
        curl(*AS_JSON, "-d", '{"id":"eve"}', f"{hub.url}/api/register"),
    ):
        assert answer.status == 429 and answer.error
        assert 0 < int(answer.headers["retry-after"]) <= 3600
    assert other.push(mine.bundle()).status == 201


def test_only_a_named_proxy_says_who_asks_and_plain_http_is_warned_about(
    start_process: StartProcess,
) -> None:
    options = ("--open-registration", "--registrations", "1")
    words = (*AS_JSON, "-d", "{}", "-H")
    plain = start_process(*options)
    behind = start_process(*options, "--proxy", "127.0.0.1", "--host", "0.0.0.0")
    forwarded = [f"X-Forwarded-For: 9.9.9.9, 10.0.0.{number}" for number in range(3)]
    asked = [curl(*words, one, f"{plain.url}/api/register").status for one in forwarded]
    assert asked == [400, 429, 429]
    asked = [curl(*words, one, f"{behind.url}/api/register").status for one in forwarded]
    assert asked == [400, 400, 400]
    assert curl(*words, forwarded[0], f"{behind.url}/api/register").status == 429
    assert behind.process is not None and behind.process.stderr is not None
    assert "plain HTTP" in behind.process.stderr.readline()  # and the other one is loopback


def test_a_foreign_host_name_is_refused(hub: HubProcess) -> None:
    port = hub.url.rpartition(":")[2]
    for name in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""):
        answer = curl("-H", f"Host: {name}:{port}", f"{hub.url}/api/health")
        assert answer.status in (400, 421), name
    for name in ("localhost", "HUB.example.org", "127.0.0.1", "[::1]"):
        assert curl("-H", f"Host: {name}:{port}", f"{hub.url}/api/health").status == 200, name
    assert "warning" not in hub.said


def test_a_channel_that_exists_is_409_even_when_there_can_be_no_more(hub: Hub) -> None:
    agent, names = hub.agent("channels"), [f"c{number}" for number in range(4)]
    asked = [agent.send("/api/channels", {"name": name}).status for name in names]
    assert asked[0] == 201 and asked[-1] == 403
    assert len(agent.get("/api/channels")) == 3
    assert agent.send("/api/channels", {"name": "c0"}).status == 409


def test_a_relative_folder_works(tmp_path: Path, clone: MakeClone) -> None:
    hub, mine = HubProcess(Path("hub data"), cwd=tmp_path).start(), clone()
    mine.commit("start")
    assert hub.agent("ada").push(mine.bundle()).status == 201
    assert hub.end() == -signal.SIGTERM
    assert (tmp_path / "hub data" / "hub.sqlite3").is_file()


def test_one_folder_is_served_once(hub: Hub, start_process: StartProcess) -> None:
    with pytest.raises(AssertionError, match="another process serves"):
        start_process(data=hub.data)


def test_health_notices_a_repository_that_is_gone(start: Start) -> None:
    hub = start()
    (hub.data / "commits.git").rename(hub.data / "elsewhere")
    wait_until(lambda: ask("GET", f"{hub.url}/api/health").status == 503)
    assert "repository" in ask("GET", f"{hub.url}/api/health").error


@pytest.mark.slow
def test_a_database_that_is_locked_for_ten_seconds(start: Start) -> None:
    hub = start()
    agent = hub.agent("ada")
    other = sqlite3.connect(hub.data / "hub.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert agent.get("/api/channels") == []
    answer = agent.send("/api/channels", {"name": "results"})
    assert answer.status == 503 and "busy" in answer.error
    other.execute("ROLLBACK")
    other.close()
    assert agent.send("/api/channels", {"name": "results"}).status == 201


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_refuses_and_leaves_nothing(
    small_disk: Path, start: Start, clone: MakeClone
) -> None:
    hub, mine = start(data=small_disk / "hub"), clone()
    agent = hub.agent("ada")
    small = mine.commit("small")
    assert agent.push(mine.bundle()).status == 201
    for size in (1_200_000, 2_900_000):  # full while git unpacks it, and while it is received
        (mine.root / "large.bin").write_bytes(os.urandom(size))
        mine.commit(f"{size}")
        answer = agent.push(mine.bundle())
        assert answer.status == 507 and "disk" in answer.error, answer.body
        assert not any((hub.data / "incoming").iterdir())
        assert [one["hash"] for one in agent.get("/api/git/commits")] == [small]
        mine.git("reset", "-q", "--hard", small)
    mine.commit("small again")
    assert agent.push(mine.bundle()).status == 201


def test_a_key_of_any_agent_is_not_taken_in_whatever_it_is_sent_as(start: Start) -> None:
    """An agent with curl has no client that would stop it; what is stored everybody reads."""
    hub = start()
    mallory, victim = hub.agent("mallory"), hub.agent("victim")
    mallory.send("/api/channels", {"name": "keys"})
    told = {"name": "1", "commit": "abcd", "platform": "CPU", "metric": "m", "status": "keep",
            "value": 1.0}  # fmt: skip
    for path, value in (
        ("/api/channels/keys/posts", {"content": f"look: {victim.key}"}),
        ("/api/channels/keys/posts", {"content": f"look: {mallory.key}"}),
        ("/api/results", {**told, "description": victim.key}),
        ("/api/channels", {"name": "more", "description": victim.key}),
    ):
        answer = mallory.send(path, value)
        assert answer.status == 400 and "holds a key of a hub" in answer.error
        assert victim.key not in answer.error
    assert mallory.get("/api/channels/keys/posts") == []
    assert mallory.send("/api/channels/keys/posts", {"content": "ahk_ is a prefix"}).status == 201


# ── the OpenAPI description ─────────────────────────────────────────────────────────────────


def test_the_description_names_every_route(start: Start) -> None:
    hub = start()
    paths = curl(f"{hub.url}/openapi.json").json["paths"]
    for path in ("/api/git/push", "/api/git/fetch/{name}", "/api/channels/{name}/posts"):
        assert path in paths
    typed = {
        "/api/tasks": {"get", "post"}, "/api/results": {"get", "post"},
        "/api/results/{number}": {"get"}, "/api/leaderboard": {"get"},
        "/api/claims": {"get", "post"}, "/api/claims/{number}": {"get", "delete"},
        "/api/best": {"get", "post"},
    }  # fmt: skip
    assert {path: set(paths[path]) for path in typed} == typed
    body = paths["/api/results"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert set(body["required"]) == {"name", "commit", "platform", "metric", "status"}
    assert curl(f"{hub.url}/docs").status == 200


OPEN = {("get", "/api/health"), ("post", "/api/register")}


def test_no_other_route_answers_without_a_key_or_writes_for_a_reader(start: Start) -> None:
    hub = start("--registrations", "0")
    reader = {"Authorization": f"Bearer {hub.agent('reader', 'read').key}"}
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"})
    for path, methods in ask("GET", f"{hub.url}/openapi.json").json["paths"].items():
        url = hub.url + re.sub(r"{\w+}", "1234", path)
        for method in methods:
            for headers in wrong if (method, path) not in OPEN else ():
                answer = ask(method.upper(), url, **headers)
                assert answer.status == 401 and answer.error, (method, path, headers)
            if method != "get" and (method, path) not in OPEN:
                assert ask(method.upper(), url, **reader).status == 403, (method, path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_along_the_description_is_a_failure_of_ours(
    start: Start, tmp_path: Path
) -> None:
    """schemathesis makes the requests, right ones and wrong ones."""
    most = "1000000"
    limits = ("registrations", "pushes", "posts", "diffs", "results", "claims")
    options = [word for name in limits for word in (f"--{name}", most)]
    hub = start("--open-registration", *options)
    key = hub.agent("fuzz", "admin").key
    for token in (key, ADMIN_KEY):
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{hub.url}/openapi.json",
                "--checks", "not_a_server_error", "--max-examples", "40", "--seed", "1",
                "-H", f"Authorization: Bearer {token}", "--exclude-path-regex", "re(voke|tate)",
                "--suppress-health-check", "all",
            ],
            capture_output=True, text=True, timeout=600, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_ctrl_c_is_the_normal_end_of_a_hub(start_process: StartProcess) -> None:
    assert start_process().end(signal.SIGINT) == 0
