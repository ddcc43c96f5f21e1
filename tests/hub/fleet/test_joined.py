"""A fleet and a real hub: what differs is refused by name, and a hub in trouble delays nobody."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autohypothesis import sandbox
from autohypothesis.engine.project import Project
from autohypothesis.errors import HubError, UsageError
from autohypothesis.fleet.hub_sync import incoming
from autohypothesis.fleet.hub_sync.incoming import ClaimRequest, FeedReader
from autohypothesis.fleet.hub_sync.outgoing import PENDING, REFUSED, SENT, HubReporter, Outbox
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.hub.client import credentials, http
from autohypothesis.hub.client import hub as hub_client
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.fleet import coordination
from autohypothesis.hub.fleet.coordination import (
    HubClaims,
    refuse_other_task,
    task_terms,
    tell_task,
    verify,
)
from autohypothesis.hub.fleet.courier import CourierProcess
from autohypothesis.records.files import read_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from tests.conftest import called, wait_until
from tests.conftest import run_git as git
from tests.fleet.conftest import fleet_project as fleet_project
from tests.fleet.conftest import fleet_root as fleet_root
from tests.fleet.observing import Hands, Listed, idea, observer, turns
from tests.fleet.observing import calm as calm
from tests.fleet.test_worker import Asked
from tests.hub.conftest import Hub, Start
from tests.hub.fleet.test_two_fleets import free_port


@pytest.fixture
def hub(start: Start) -> Hub:
    return start("--port", str(free_port()))


def member(hub: Hub, name: str = "ada") -> Credentials:
    return Credentials(hub.url, name, SecretStr(hub.agent(name).key))


@pytest.fixture
def decided(fleet_project: Project) -> Project:
    """A baseline and a keep."""
    decide(fleet_project, 2.0, 2)
    return fleet_project


def tell(project: Project) -> None:
    sync(project.layout)
    queue = Queue(project.layout, "t")
    telling = HubReporter(project, queue, Outbox(project.layout))
    assert telling.turn(read_ledger(project.layout)) and telling.problems == []


def decide(project: Project, rate: float, count: int) -> None:
    """One more idea, until so many experiments are decided."""
    watched = observer(project, Listed([[idea(RATE=rate)]]))
    turns(watched, lambda: watched.history.counted() >= count, Hands(project, "w0"))
    watched.last_turn()


def courier_status(project: Project) -> Any:
    status = presence.read_role(project.layout, presence.COURIER)
    assert status is not None
    return status


def left(project: Project, state: str) -> list[str]:
    folder = project.layout.outbox_state(state)
    return sorted(path.stem for path in folder.glob("[!.]*.json"))


def other_task(task_hash: str, name: str) -> dict[str, str | float]:
    return {"task_hash": task_hash, "name": name, "metric": "val_bpb", "direction": "minimize",
            "min_delta": 0.1}  # fmt: skip


# ── agreeing ────────────────────────────────────────────────────────────────────────────────


def test_another_task_of_the_same_name_is_refused_by_both_hashes(
    hub: Hub, fleet_project: Project
) -> None:
    bob, terms = member(hub, "bob").client(), task_terms(fleet_project)
    member(hub).client().tell_task(other_task("f" * 64, str(terms["name"])))
    for refuse in (lambda: refuse_other_task(bob, terms), lambda: tell_task(bob, fleet_project)):
        with pytest.raises(HubError) as refused:
            refuse()
        assert "fffffff" in refused.value.problem
        assert str(terms["task_hash"])[:7] in refused.value.problem


def test_other_data_under_the_same_profile_is_refused_by_both_hashes(
    hub: Hub, fleet_project: Project
) -> None:
    ada = member(hub).client()
    terms = task_terms(fleet_project)
    ada.tell_task({**terms, "profile": "cpu", "data_hash": "1" * 12})
    with pytest.raises(HubError, match=r"profile 'cpu'.* is 1{12} .* 2{12} here"):
        refuse_other_task(ada, {**terms, "profile": "cpu", "data_hash": "2" * 12})
    refuse_other_task(ada, {**terms, "profile": "h100", "data_hash": "2" * 12})


# ── telling ─────────────────────────────────────────────────────────────────────────────────


def test_results_lines_and_commits_arrive_and_the_best_moves(hub: Hub, decided: Project) -> None:
    """Also what is put beside the courier at work, until it is stopped."""
    tell(decided)
    courier, stop = CourierProcess(decided, member(hub)), Asked()
    thread = threading.Thread(target=courier.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: len(left(decided, SENT)) == 6)
        more = {"channel": "discussion", "content": "more"}
        assert Outbox(decided.layout).put("post", "more", more)
        wait_until(lambda: not left(decided, PENDING))
    finally:
        stop.leave()
        thread.join(60)
    assert not thread.is_alive()
    status = courier_status(decided)
    assert (status.state, status.details["told"], len(left(decided, SENT))) == ("stopped", 7, 7)
    reader = hub.agent("reader")
    (best,) = reader.get("/api/best")
    assert best["result"]["value"] == pytest.approx(1.3)
    assert best["result"]["description"] == "RATE 2.0"
    posts = reader.get("/api/channels/results/posts")
    assert len(posts) == 2 and posts[0]["content"].startswith(
        f"commit:{best['result']['commit'][:7]} platform:CPU val_bpb:1.300000"
    )
    lineage = reader.get(f"/api/git/commits/{best['result']['commit']}/lineage")
    told = ["RATE 2.0", "baseline of train: minimize val_bpb"]
    assert [one["message"] for one in lineage] == told
    assert len(reader.get("/api/results")) == 2, "the lines are no results of their own"


def test_a_hub_from_an_old_backup_is_told_nothing_twice_and_takes_what_is_new(
    hub: Hub, decided: Project, tmp_path: Path
) -> None:
    """It has forgotten all that was told since; the next keep brings its history along."""
    ada = member(hub)
    hub.end()
    shutil.copytree(hub.data, tmp_path / "backup")
    hub.start()
    tell(decided)
    assert CourierProcess(decided, ada).once().sent == 6
    hub.end()
    shutil.rmtree(hub.data)
    (tmp_path / "backup").rename(hub.data)
    hub.start()
    decide(decided, 3.0, 3)
    tell(decided)
    done = CourierProcess(decided, ada).once()
    assert (done.sent, done.refused, done.left) == (3, 0, 0)
    reader = hub.agent("reader")
    posts = reader.get("/api/channels/results/posts")
    assert [post["content"].partition("| ")[2] for post in posts] == ["RATE 3.0"]
    newest = reader.get("/api/git/commits")[0]["hash"]
    assert len(reader.get(f"/api/git/commits/{newest}/lineage")) == 3


def test_a_hub_that_searches_something_else_is_told_nothing_and_the_courier_says_why(
    hub: Hub, decided: Project
) -> None:
    ada = member(hub)
    ada.client().tell_task(other_task("f" * 64, "train"))
    tell(decided)
    courier = CourierProcess(decided, ada)
    courier.turn()
    assert "task 'train' is fffffff" in courier_status(decided).problems[0]
    assert left(decided, REFUSED) == [] and len(left(decided, PENDING)) == 6
    assert hub.agent("reader").get("/api/channels") == []


def test_a_secret_in_what_is_told_is_refused_by_name_and_the_rest_is_delivered(
    hub: Hub, decided: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_S3cretS3cretS3cret"
    kept = next(row for row in read_ledger(decided.layout) if row["description"] == "RATE 2.0")
    plan = decided.layout.plan(kept["id"])
    plan.write_text(plan.read_text().replace("RATE 2.0", f"RATE {secret}"))
    monkeypatch.setenv("HF_TOKEN", secret)
    tell(decided)
    done = CourierProcess(decided, member(hub)).once()
    assert (done.sent, done.refused, done.left, done.error) == (3, 3, 0, "")
    for kind in ("push", "result", "line"):
        path = decided.layout.outbox_entry(REFUSED, kind, kept["id"])
        said = read_json(path)["last_error"]
        assert "holds the value of $HF_TOKEN" in said and secret not in said
    courier = CourierProcess(decided, member(hub, "bob"))
    for path in decided.layout.outbox_state(REFUSED).glob("*.json"):
        path.rename(decided.layout.outbox_state(PENDING) / path.name)
    courier.turn()
    assert "3 were refused: see " in " ".join(courier_status(decided).problems)
    reader = hub.agent("reader")
    shown = [
        reader.get(f"/api/{path}") for path in ("results", "git/commits", "channels/results/posts")
    ]
    assert [len(one) for one in shown] == [1, 1, 1] and secret not in str(shown)


def test_a_courier_hears_others_and_fetches_what_can_be_tried(
    hub: Hub, decided: Project, tmp_path: Path
) -> None:
    bob = tmp_path / "bob"
    git(tmp_path, "clone", "-q", str(decided.layout.root), str(bob))
    tell(decided)
    CourierProcess(decided, member(hub)).once()
    # bob is on the same platform: his ledger is a copy, his commits are not.
    shutil.copytree(decided.layout.research, bob / "research")
    shutil.copy(decided.layout.ledger, bob / "experiments.jsonl")
    git(bob, "branch", "autoresearch/t", "origin/autoresearch/t")
    project = Project.open(bob)
    courier = CourierProcess(project, member(hub, "bob"))
    courier.turn()
    feed = FeedReader(project.layout).heard()
    assert feed is not None and [one.agent_id for one in feed.board] == ["ada", "ada"]
    best = feed.board[0]
    assert project.repository.read_ref(f"refs/hub/{best.commit}") == best.commit
    assert feed.frontier[0].hash == best.commit
    assert courier_status(project).details["reachable"] is True


# ── claims ──────────────────────────────────────────────────────────────────────────────────


IDEA = ClaimRequest("a" * 64, "b" * 64, f"n1:{'c' * 40}", "an idea", 600.0)


def reachable(project: Project) -> None:
    """A courier that says that the hub answers."""
    presence.write_role(
        project.layout,
        presence.own_status(presence.COURIER, state="working", details={"reachable": True}),
    )


def test_two_fleets_ask_and_one_is_given_it(hub: Hub, fleet_project: Project) -> None:
    ada, bob = member(hub), member(hub, "bob")
    ada.client().tell_task(other_task("b" * 64, "x"))
    reachable(fleet_project)
    first = HubClaims(ada, fleet_project.layout)
    assert first.claim(IDEA).verdict == "granted" == first.claim(IDEA).verdict
    answer = HubClaims(bob, fleet_project.layout).claim(IDEA)
    assert answer.verdict == "refused" and "ada" in answer.reason


@pytest.fixture
def silent() -> Iterator[str]:
    """A hub that takes connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_hub_that_hangs_is_asked_once_and_then_left_alone(
    silent: str, fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordination, "HURRIED", http.HURRIED._replace(read=1.0, total=1.0))
    reachable(fleet_project)
    claims = HubClaims(Credentials(silent, "ada", SecretStr("k")), fleet_project.layout)
    began = time.monotonic()
    assert claims.claim(IDEA).verdict == "unknown"
    once = time.monotonic() - began
    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(claims.claim, [IDEA] * 20))
    assert {one.verdict for one in answers} == {"unknown"}
    assert time.monotonic() - began < max(once, 1.0), "somebody waited again"


def test_a_title_with_a_secret_asks_nobody_and_the_next_idea_is_asked_for(
    hub: Hub, fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_S3cretS3cretS3cret")
    reachable(fleet_project)
    claims = HubClaims(member(hub), fleet_project.layout)
    answer = claims.claim(replace(IDEA, title="hf_S3cretS3cretS3cret"))
    assert answer.verdict == "unknown" and "title holds the value of $HF_TOKEN" in answer.reason
    assert "has just not answered" not in claims.claim(IDEA).reason


def test_without_a_courier_nobody_is_asked(silent: str, fleet_project: Project) -> None:
    claims = HubClaims(Credentials(silent, "ada", SecretStr("k")), fleet_project.layout)
    assert claims.claim(IDEA) == claims.claim(IDEA)
    assert claims.claim(IDEA).reason == "no courier is at work"


# ── verifying ───────────────────────────────────────────────────────────────────────────────


def test_verify_says_why_a_result_is_not_queued(hub: Hub, decided: Project) -> None:
    ada, bob = member(hub).client(), member(hub, "bob").client()
    tell(decided)
    key = ada._http._key or SecretStr("")
    CourierProcess(decided, Credentials(hub.url, "ada", key)).once()
    terms = task_terms(decided)
    key = next(row["platform_key"] for row in read_ledger(decided.layout))
    given = {"commit": "d" * 40, "platform": "CPU", "metric": "val_bpb", "status": "keep",
             "value": 1.0, "task_hash": terms["task_hash"]}  # fmt: skip
    absent = bob.tell_result({**given, "name": "1", "platform_key": key})
    elsewhere = bob.tell_result({**given, "name": "2", "platform_key": "e" * 64})
    mine = ada.results(agent="ada")[0].id
    numbers = [absent.id, elsewhere.id, mine]
    rows = verify(ada, "ada", decided, numbers, 10)
    assert [row.hypothesis_id for row in rows] == [None, None, None]
    assert "there is no commit" in rows[0].reason
    assert rows[1].reason == "it is of another platform: CPU"
    assert rows[2].reason == "it is our own"


def test_verify_before_anything_ran_says_what_to_run(hub: Hub, fleet_project: Project) -> None:
    with pytest.raises(UsageError, match=r"orchestrator\.py up"):
        verify(member(hub).client(), "ada", fleet_project, [], 5)


def claimed(hub: Hub, decided: Project) -> tuple[int, str]:
    """Result and commit of bob, who says that he is better."""
    root = decided.layout.root
    bob = member(hub, "bob").client()
    git(root, "checkout", "-q", "--orphan", "theirs")
    text = (root / "train.py").read_text().replace("RATE = 1.0", "RATE = 5.0")
    (root / "train.py").write_text(text)
    git(root, "commit", "-q", "-am", "RATE 5")
    commit = git(root, "rev-parse", "HEAD")
    hub_client.push(bob, Repository(root), commit)
    git(root, "checkout", "-q", "main")
    tell_task(bob, decided)
    terms = task_terms(decided)
    key = next(row["platform_key"] for row in read_ledger(Layout(root)))
    told = bob.tell_result(
        {"name": "1", "commit": commit, "platform": "CPU", "platform_key": key, "value": 1.0,
         "task_hash": terms["task_hash"], "metric": "val_bpb", "status": "keep"}
    )  # fmt: skip
    return told.id, commit


def test_a_commit_that_was_fetched_is_queued_once(hub: Hub, decided: Project) -> None:
    told, commit = claimed(hub, decided)
    ada = member(hub).client()
    (row,) = verify(ada, "ada", decided, [], 5)
    assert row.result == told and row.hypothesis_id
    found = Queue(decided.layout, "t").read(row.hypothesis_id)
    assert found is not None and found[1].artifacts_from == commit and found[1].priority < 0
    assert verify(ada, "ada", decided, [], 5) == []
    (again,) = verify(ada, "ada", decided, [told], 5)
    assert again.reason == f"it is {row.hypothesis_id} here"


def test_without_a_sandbox_nothing_is_queued_unless_it_is_trusted(
    hub: Hub, decided: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, _ = claimed(hub, decided)
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(tmp_path / "settings"))
    root = decided.layout.root
    credentials.make_private(tmp_path / "settings" / "hubs")
    credentials.write(credentials.own_file(root / ".git"), member(hub))
    monkeypatch.setattr(sandbox, "best_kind", lambda **_: "none")
    queue = Queue(decided.layout, "t")
    for more in ([], [str(told)]):
        answer = called("hub", "verify", *more, cwd=root)
        assert answer.returncode == 2 and "outside of a sandbox" in answer.stderr
        assert "--trust" in answer.stderr and incoming.source_id_of(told) not in queue.sources()
    answer = called("hub", "verify", "--trust", cwd=root)
    assert answer.returncode == 0 and incoming.source_id_of(told) in queue.sources()


def test_who_shares_no_longer_is_told_that_adopted_code_has_the_network(
    start: Start, fleet_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(tmp_path / "settings"))
    hub = start("--open-registration")
    words = ("init-fleet", "--tag", "t", "--cpu-workers", "1", "--hub")
    joined, left, again = (
        called(*words, where, cwd=fleet_root) for where in (hub.url, "none", "none")
    )
    assert (joined.returncode, left.returncode, again.returncode) == (0, 0, 0), joined.stderr
    news = "what was adopted from others stays, and has the network from now on"
    assert [news in one.stderr for one in (joined, left, again)] == [False, True, False]


def test_a_fleet_that_cannot_be_made_leaves_nothing_joined(
    start: Start, fleet_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setenv("HOME", str(tmp_path))
    hub, words = start("--open-registration"), ("init-fleet", "--tag", "t", "--cpu-workers")
    no_device = called(*words, "1000", "--hub", hub.url, cwd=fleet_root)
    assert no_device.returncode != 0 and not list((tmp_path / "settings").rglob("*.json"))

    def refuses(*_: object) -> None:
        raise HubError("it searches something else")

    with monkeypatch.context() as patch:
        patch.setattr(coordination, "tell_task", refuses)
        assert called(*words, "1", "--hub", hub.url, cwd=fleet_root).returncode == 1
    assert called("hub", "log", cwd=fleet_root).stderr.startswith("error: no hub is joined here")
    assert not (tmp_path / ".agenthub_creds").exists()
    made = called(*words, "1", "--hub", hub.url, cwd=fleet_root)
    assert made.returncode == 0, "its name is taken, by itself: the key was kept"
    assert called("hub", "log", cwd=fleet_root).returncode == 0
