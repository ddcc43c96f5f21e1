"""The contract, for any hub: `AUTOHYPOTHESIS_TEST_HUB=URL` names another one, open to register.

A hub of ours is started where no other is named. What needs more than the contract (limits,
restarts) is tested beside this file; the protocol's own lines are run by test_seed_script.py.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import os
import secrets
from datetime import datetime

import pytest

from .conftest import Agent, Clone, MakeClone, curl, register, registered

COMMIT = {"hash", "parent_hash", "agent_id", "message", "created_at"}
POST = {"id", "channel_id", "agent_id", "parent_id", "content", "created_at"}


@pytest.fixture(scope="module")
def ada(url: str) -> Agent:
    return register(url)


@pytest.fixture
def channel(ada: Agent) -> str:
    name = f"c-{secrets.token_hex(6)}"
    assert ada.send("/api/channels", {"name": name, "description": "d"}).status == 201
    return name


def unique(clone: Clone, message: str = "start") -> str:
    return clone.commit(message, salt=secrets.token_hex(8))


# ── who gets in ─────────────────────────────────────────────────────────────────────────────


def test_a_name_is_given_once(url: str) -> None:
    again = registered(url, json.dumps({"id": register(url).name}))
    assert again.status == 409 and again.error


def test_a_wrong_name_or_body_is_refused(url: str) -> None:
    for name in ("", "-a", ".a", "a b", "a/b", "ü", "a" * 64, "a\n", 1, None):
        answer = registered(url, json.dumps({"id": name}))
        assert answer.status == 400 and answer.error, name
    for body in ("", "no", "[]", "null", '"a"', "{}", "{" * 2000):
        answer = registered(url, body)
        assert answer.status == 400 and answer.error, body
    assert registered(url, json.dumps({"id": "x", "more": "x" * (64 << 10)})).status == 413


def test_health_and_page_need_no_key(url: str) -> None:
    health = curl(f"{url}/api/health")
    assert health.status == 200 and health.json == {"status": "ok"}
    page = curl(url + "/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")


def test_every_refusal_has_the_one_shape(ada: Agent) -> None:
    for words in (("/api/none",), ("/api/health", "-X", "DELETE"), ("/x/../y",)):
        answer = ada(*words)
        assert answer.status in (404, 405) and answer.error


# ── commits ─────────────────────────────────────────────────────────────────────────────────


def test_a_push_as_the_protocol_has_it(ada: Agent, clone: MakeClone) -> None:
    mine = clone()
    head = unique(mine, "a subject\n\nand a body")
    answer = ada.push(mine.bundle())
    assert answer.status == 201 and answer.json == {"hashes": [head]}
    commit = ada.get(f"/api/git/commits/{head}")
    assert set(commit) == COMMIT
    assert (commit["hash"], commit["parent_hash"]) == (head, "")
    assert (commit["agent_id"], commit["message"]) == (ada.name, "a subject")
    assert (
        datetime.fromisoformat(commit["created_at"].replace("Z", "+00:00")).utcoffset() is not None
    )


def test_a_thin_push_is_refused_until_its_parent_is_there(ada: Agent, clone: MakeClone) -> None:
    mine = clone()
    text = "\n".join(f"line {number} {secrets.token_hex(8)}" for number in range(300))
    base = mine.commit("base", train=text)
    whole = mine.bundle().read_bytes()
    head = mine.commit("thin", train=text.replace("line 7 ", "line seven "))
    thin = mine.bundle("HEAD", f"^{base}")
    answer = ada.push(thin)
    assert answer.status == 400 and "parent" in answer.error
    assert ada(f"/api/git/commits/{head}").status == 404
    assert ada.post("/api/git/push", whole).status == 201
    answer = ada.push(thin)
    assert (answer.status, answer.json) == (201, {"hashes": [head]})
    assert [one["hash"] for one in ada.get(f"/api/git/commits/{head}/lineage")] == [head, base]


def test_heads_are_all_named_and_a_merge_has_two_parents(ada: Agent, clone: MakeClone) -> None:
    mine = clone()
    base = unique(mine, "base")
    left = unique(mine, "left")
    mine.git("checkout", "-q", "-b", "other", base)
    right = mine.commit("right", other=secrets.token_hex(8))
    mine.git("merge", "-q", "--no-ff", "-m", "both", left)
    merge = mine.git("rev-parse", "HEAD")
    answer = ada.push(mine.bundle("main", "other"))
    assert answer.status == 201 and sorted(answer.json["hashes"]) == sorted([left, merge])
    assert ada.get(f"/api/git/commits/{merge}")["parent_hash"] == right
    for parent in (left, right):
        assert [one["hash"] for one in ada.get(f"/api/git/commits/{parent}/children")] == [merge]
    children = ada.get(f"/api/git/commits/{base}/children")
    assert {one["hash"] for one in children} == {left, right}


def test_a_large_body_is_read_with_and_without_a_length(ada: Agent, clone: MakeClone) -> None:
    """As curl sends it, and the `ah` client."""
    mine = clone()
    (mine.root / "large.bin").write_bytes(os.urandom(2 << 20))
    head, bundle = mine.commit("large"), mine.bundle()
    chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Content-Type:", "-T", str(bundle))
    expect = ("-H", "Expect: 100-continue", "--data-binary", f"@{bundle}")
    for words in (chunked, expect):
        answer = ada("/api/git/push", "-X", "POST", *words)
        assert (answer.status, answer.json) == (201, {"hashes": [head]})


def test_what_is_no_bundle_is_refused(ada: Agent) -> None:
    for body in (b"", b"no bundle", b"# v2 git bundle\n\n", os.urandom(5000)):
        answer = ada.post("/api/git/push", body)
        assert answer.status == 400 and "bundle" in answer.error


def test_short_hashes_of_commits_resolve(ada: Agent, clone: MakeClone) -> None:
    mine = clone()
    base, head = unique(mine, "base"), unique(mine, "head")
    ada.push(mine.bundle())
    assert ada.get(f"/api/git/commits/{head[:10]}")["hash"] == head
    assert [one["hash"] for one in ada.get(f"/api/git/commits/{base[:10]}/children")] == [head]
    assert len(ada.get(f"/api/git/commits/{head[:10]}/lineage")) == 2
    assert ada(f"/api/git/fetch/{head[:10]}").status == 200
    diff = ada(f"/api/git/diff/{base[:10]}/{head[:10]}")
    assert diff.status == 200 and diff.headers["content-type"].startswith("text/plain")
    assert ada(f"/api/git/diff/{head}/{head}").body == b""
    blob = mine.git("rev-parse", "HEAD:salt.py")
    for path in (f"commits/{blob}", f"fetch/{blob}", f"diff/{head}/{blob}"):
        assert ada(f"/api/git/{path}").status == 404, "a blob is no commit"


def test_an_ambiguous_hash_is_a_clear_error(ada: Agent, clone: MakeClone) -> None:
    mine = clone()
    tree = mine.tree(("100644", "salt", mine.object("blob", secrets.token_bytes(8))))
    found: dict[str, bytes] = {}
    for number in itertools.count():
        who = f"A <a@example.org> {1700000000 + number} +0000"
        content = f"tree {tree}\nauthor {who}\ncommitter {who}\n\nm\n".encode()
        start = hashlib.sha1(b"commit %d\0" % len(content) + content).hexdigest()[:4]
        if start in found:
            break
        found[start] = content
    for alike in (found[start], content):
        mine.git("update-ref", "HEAD", mine.object("commit", alike))
        assert ada.push(mine.bundle()).status == 201
    for path in ("commits/{}", "commits/{}/children", "commits/{}/lineage", "fetch/{}"):
        answer = ada("/api/git/" + path.format(start))
        assert answer.status == 400 and "ambiguous" in answer.error


def test_what_is_no_hash_is_refused(ada: Agent) -> None:
    paths = ("commits/{}", "commits/{}/children", "commits/{}/lineage", "fetch/{}", "diff/{}/{}")
    for name in ("abc", "ABCD", "xyz1", "a" * 65, "HEAD", "--all", "main"):
        for path in paths:
            answer = ada("/api/git/" + path.format(name, name))
            assert answer.status == 400 and answer.error, (path, name)


def test_an_unknown_hash(ada: Agent) -> None:
    name = secrets.token_hex(20)
    for path in (f"commits/{name}", f"fetch/{name}", f"diff/{name}/{name}"):
        answer = ada(f"/api/git/{path}")
        assert answer.status == 404 and answer.error
    assert ada.get(f"/api/git/commits/{name}/children") == []
    assert ada.get(f"/api/git/commits/{name}/lineage") == []


def test_pages_of_200_end(url: str, clone: MakeClone) -> None:
    agent, mine = register(url), clone()
    tree = mine.tree(("100644", "salt", mine.object("blob", secrets.token_bytes(8))))
    head, hashes = "", []
    for number in range(205):
        head = mine.commit_of(tree, *([head] if head else []), message=f"number {number}")
        hashes.append(head)
    mine.git("update-ref", "HEAD", head)
    assert agent.push(mine.bundle()).status == 201
    path = f"/api/git/commits?agent={agent.name}"
    first, second = agent.get(f"{path}&limit=200"), agent.get(f"{path}&limit=200&offset=200")
    assert [one["hash"] for one in first + second] == hashes[::-1]
    assert agent.get(f"{path}&limit=200&offset=205") == []
    assert len(agent.get(path)) == 50
    assert agent.get("/api/git/commits?agent=nobody-of-that-name") == []


def test_many_fetch_one_commit_at_a_time(ada: Agent, clone: MakeClone) -> None:
    mine, other = clone("mine"), clone("other")
    unique(mine, "one")
    head = unique(mine, "two")
    ada.push(mine.bundle())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ada(f"/api/git/fetch/{head}"), range(16)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["content-type"] for answer in answers} == {"application/octet-stream"}
    assert len({len(answer.body) for answer in answers}) == 1
    (other.root / "fetch.bundle").write_bytes(answers[0].body)
    other.git("bundle", "unbundle", "fetch.bundle")
    assert other.git("log", "--format=%s", head) == "two\none"


def test_pushes_side_by_side_are_all_whole(ada: Agent, clone: MakeClone) -> None:
    clones = [clone(f"clone{number}") for number in range(6)]
    heads = [unique(one) for one in clones]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ada.push, [one.bundle() for one in clones]))
    assert [answer.json for answer in answers] == [{"hashes": [head]} for head in heads]


# ── the board ───────────────────────────────────────────────────────────────────────────────


def test_a_channel_is_made_once(ada: Agent) -> None:
    name = f"c-{secrets.token_hex(6)}"
    made = ada.send("/api/channels", {"name": name, "description": "of tests"})
    assert made.status == 201 and set(made.json) == {"id", "name", "description", "created_at"}
    assert ada.send("/api/channels", {"name": name, "description": ""}).status == 409
    names = [one["name"] for one in ada.get("/api/channels")]
    assert name in names and names == sorted(names)


def test_a_wrong_channel_is_refused(ada: Agent) -> None:
    for name in ("", "Upper", "-a", "a b", "#results", "a" * 32, 7, None):
        answer = ada.send("/api/channels", {"name": name, "description": "d"})
        assert answer.status == 400 and answer.error, name


def test_posts_are_read_newest_first_with_replies(ada: Agent, channel: str) -> None:
    path = f"/api/channels/{channel}/posts"
    assert ada.get(path) == []
    form = ("-X", "POST", "-d", '{"content":"your message here"}')
    first = ada(path, *form)  # curl's own content type, as in the protocol without -H
    assert first.status == 201 and set(first.json) == POST
    assert first.json["parent_id"] is None and first.json["agent_id"] == ada.name
    second = ada.send(path, {"content": "**bold** ü", "parent_id": first.json["id"]})
    third = ada.send(path, {"content": "3", "parent_id": first.json["id"]})
    assert second.json["parent_id"] == first.json["id"]
    listed = ada.get(f"{path}?limit=50")
    assert listed == [third.json, second.json, first.json]
    assert ada.get(f"{path}?limit=1&offset=1") == [second.json]
    assert ada.get(f"/api/posts/{second.json['id']}") == second.json
    assert ada.get(f"/api/posts/{first.json['id']}/replies") == [second.json, third.json]
    assert ada.get(f"/api/posts/{third.json['id']}/replies") == []


def test_a_wrong_post_or_a_reply_to_another_channel_is_refused(ada: Agent, channel: str) -> None:
    path = f"/api/channels/{channel}/posts"
    for body in ({}, {"content": ""}, {"content": 1}, {"content": "x" * (32 * 1024 + 1)}):
        answer = ada.send(path, body)
        assert answer.status == 400 and answer.error
    for parent in (1 << 62, 1 << 70, "1", True, -1, 1.5, [1]):
        assert ada.send(path, {"content": "x", "parent_id": parent}).status == 400
    assert ada.send(path, {"content": "x" * (32 * 1024)}).status == 201
    elsewhere = f"c-{secrets.token_hex(6)}"
    ada.send("/api/channels", {"name": elsewhere, "description": ""})
    post = ada.send(f"/api/channels/{elsewhere}/posts", {"content": "x"}).json
    assert ada.send(path, {"content": "x", "parent_id": post["id"]}).status == 400


def test_what_is_not_on_the_board(ada: Agent) -> None:
    assert ada("/api/channels/none-of-that-name/posts").status == 404
    assert ada.send("/api/channels/none-of-that-name/posts", {"content": "x"}).status == 404
    for path in (f"/api/posts/{1 << 40}", f"/api/posts/{1 << 40}/replies", f"/api/posts/{10**30}"):
        assert ada(path).status == 404
    for path in ("/api/posts/x", "/api/posts/-1", "/api/posts/x/replies", "/api/posts/%C2%B2"):
        assert ada(path).status == 400
