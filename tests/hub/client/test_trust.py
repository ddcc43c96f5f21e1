"""Whoever answers is not trusted: each bad answer is one clear error, and the key goes nowhere."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autohypothesis.errors import HubError, UsageError
from autohypothesis.hub.client import http
from autohypothesis.hub.client.http import HubUnavailableError, checked_server
from autohypothesis.hub.client.hub import HubClient
from tests.hub.client.conftest import Handler, StandIn, serving

KEY = "some-key"
COMMIT = {"hash": "a" * 40, "parent_hash": "", "agent_id": "x", "message": "m", "created_at": "x"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENT", http.Patience(backoff=0.0))


def _endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with suppress(OSError):
        for _ in range(10_000):
            handler.wfile.write(b"2710\r\n" + b"[" * 10_000 + b"\r\n")


def _torn(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"[")


BAD: dict[str, tuple[Callable[[Handler], object], str]] = {
    "a web page": (lambda h: h.say(200, b"<html>hello</html>", "text/html"), "a web page"),
    "no JSON": (lambda h: h.say(200, b"[1,"), "not JSON"),
    "nothing": (lambda h: h.say(200, b""), "empty"),
    "an object": (lambda h: h.say(200, b'{"commits": []}'), "wrong shape"),
    "null": (lambda h: h.say(200, b"null"), "wrong shape"),
    "a bad hash": (lambda h: h.say(200, json.dumps([COMMIT]).encode()), "wrong shape"),
    "deep": (lambda h: h.say(200, b"[" * 50_000), "what is n"),
    "a redirect": (lambda h: h.say(302, b"", Location="http://127.0.0.1:1/"), "not followed"),
    "compressed": (
        lambda h: h.say(200, gzip.compress(b"[]"), Content_Encoding="gzip"), "compression"
    ),
    "huge": (lambda h: h.say(200, b"[", Content_Length=str(1 << 70)), "more than 16,777,216 bytes"),
    "endless": (_endless, "more than 16,777,216 bytes"),
    "torn": (_torn, "hung up"),
    "silent": (lambda h: time.sleep(0.8), "took too long"),
    "gone": (lambda h: h.connection.close(), "hung up"),
    "500 page": (lambda h: h.say(500, b"<html>nginx", "text/html"), "500: a web page"),
    "a list for a refusal": (lambda h: h.say(400, b"[1]"), "400: [1]"),
    "the key": (
        lambda h: h.say(400, f'{{"error":"no {h.hub.keys["ada"]}"}}'.encode()), "400: no …"
    ),
    "escapes": (lambda h: h.say(400, b'{"error":"\\u001b[31mred\\nline"}'), "400: [31mred line"),
    "wait": (lambda h: h.say(429, b'{"error":"slow down"}', Retry_After="7"), "slow down"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_one_clear_line(
    name: str, hub: HubClient, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, words = BAD[name]
    limit = 0.4 if name == "silent" else 60.0  # the others are read in time on a busy machine too
    patience = http.Patience(read=limit, backoff=0.0, total=limit)
    monkeypatch.setattr(hub._http, "_patience", patience)
    stand_in.behave = lambda handler: act(handler) is not Ellipsis
    with pytest.raises(HubError) as caught:
        hub.commits()
    said = str(caught.value)
    assert words in said
    assert stand_in.url in said and "/api/git/commits" in said
    assert caught.value.hint
    assert len(said.splitlines()) == 1 and said.isprintable()
    assert stand_in.keys["ada"] not in said + repr(caught.value.__dict__)


@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_a_hub_that_drips_without_end_is_left_and_its_connection_cut(
    part: str, stand_in: StandIn
) -> None:
    """It drips until it is hung up on: a client that waits for its end never returns."""
    begin = {"status": b"HTTP/1.1 ", "headers": b"HTTP/1.1 200 OK\r\nX: ",
             "body": b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"}[part]  # fmt: skip
    cut = threading.Event()

    def drip(handler: Handler) -> bool:
        handler.wfile.write(begin)
        try:
            while True:
                handler.wfile.write(b"1")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            cut.set()
        return True

    stand_in.behave = drip
    patience = http.HURRIED._replace(total=0.5)
    with pytest.raises(HubUnavailableError, match="too long, and had not ended") as caught:
        HubClient(stand_in.url, SecretStr(KEY), patience).commits()
    assert caught.value.arrived
    assert cut.wait(60), "the connection stayed open"


def test_a_name_server_that_is_slow_holds_nobody(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    asked = socket.getaddrinfo

    def slow(host: Any, *words: Any, **more: Any) -> Any:
        answered.wait()
        return asked("127.0.0.1", *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        with pytest.raises(HubUnavailableError, match="too long") as caught:
            HubClient("http://hub.example", None, http.HURRIED._replace(total=0.5)).commits()
    finally:
        answered.set()
    assert not caught.value.arrived


# ── single bad values ───────────────────────────────────────────────────────────────────────


GOOD_COMMIT = {"hash": "a" * 40, "message": "fine", "created_at": "2026-05-04T03:02:01Z"}
GOOD_POST = {"id": 1, "channel_id": 1, "content": "fine", "created_at": "2026-05-04T03:02:01Z"}
GOOD_RESULT = {"id": 1, "commit": "a" * 40, "created_at": "2026-05-04T03:02:01Z"}
GOOD_TASK = {"task_hash": "t", "created_at": "2026-05-04T03:02:01Z"}
HUGE = "9" * 3_000
LISTS: dict[str, tuple[dict[str, Any], Callable[[HubClient], list[Any]], dict[str, list[str]]]] = {
    "commits": (GOOD_COMMIT, lambda hub: hub.commits(), {}),
    "posts": (
        GOOD_POST, lambda hub: hub.posts("results"),
        {"id": ["null", HUGE, "1e999", '"x"'], "parent_id": [HUGE, "1.5"]},
    ),
    "results": (
        GOOD_RESULT, lambda hub: hub.results(),
        {"id": ["null", HUGE], "seed": ["18446744073709551616", HUGE, "-" + HUGE, "1e300"],
         "steps": [HUGE], "reproduced": ["null", "1e999"]},
    ),
    "tasks": (GOOD_TASK, lambda hub: hub.tasks(), {"min_delta": ["null", "1e999", "-1"]}),
}  # fmt: skip
TIMES = [
    "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "10000-01-01T00:00:00Z",
    "+010000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2026-13-45T99:00:00Z", "", "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_one_bad_value_costs_its_own_record(kind: str, stand_in: StandIn) -> None:
    good, ask, fields = LISTS[kind]
    times = {"created_at": [*map(json.dumps, TIMES), "null", HUGE]}
    for name, value in ((name, one) for name, some in {**times, **fields}.items() for one in some):
        bad = json.dumps({**good, name: "BAD"}).replace('"BAD"', value)
        body = f"[{json.dumps(good)}, {bad}, {json.dumps(good)}]".encode()
        stand_in.behave = lambda handler, body=body: handler.say(200, body) is None
        hub = HubClient(stand_in.url, SecretStr(KEY))
        assert len(ask(hub)) == 2, (name, value)
        (said,) = hub.left_out
        assert f"1.{name}" in said and said.isprintable() and len(said) < 1_000


def test_a_number_that_is_none_is_no_number_and_the_result_stays(stand_in: StandIn) -> None:
    for value in ("1e999", "NaN", "null", '"x"', HUGE):
        body = json.dumps([{**GOOD_RESULT, "value": "BAD"}]).replace('"BAD"', value).encode()
        stand_in.behave = lambda handler, body=body: handler.say(200, body) is None
        assert HubClient(stand_in.url, SecretStr(KEY)).results()[0].value is None


def test_a_length_in_strange_digits_is_no_length(hub: HubClient, stand_in: StandIn) -> None:
    def answer(handler: Handler) -> bool:
        handler.wfile.write("HTTP/1.1 200 OK\r\nContent-Length: ²\r\n\r\n[]".encode("latin-1"))
        return True

    stand_in.behave = answer
    with suppress(HubError):
        assert hub.commits() == []


def test_a_hub_that_is_down_is_named(home: Path) -> None:
    with pytest.raises(
        HubUnavailableError, match=r"127\.0\.0\.1:9/.* nothing listens there"
    ) as caught:
        HubClient("http://127.0.0.1:9").leaves()
    assert not caught.value.arrived
    with pytest.raises(HubError, match="the name is not known"):
        HubClient("http://hub.invalid").leaves()


def test_reading_is_tried_again_and_never_on_a_connection_that_was_left_open(
    hub: HubClient, stand_in: StandIn
) -> None:
    """A hub may hang up on an idle one just when it is used again, which costs a try."""
    peers: list[object] = []

    def behave(handler: Handler) -> bool:
        peers.append(handler.client_address)
        handler.left_open = True
        handler.say(503 if len(peers) < 3 else 200, b"[]")
        return True

    stand_in.behave = behave
    assert hub.commits() == []
    assert len(set(peers)) == 3


def test_a_post_is_never_said_twice(hub: HubClient, stand_in: StandIn) -> None:
    """It was taken, and the answer was lost: whether to go on is for somebody to look at."""
    hub.ensure_channel("results")
    stand_in.behave = lambda handler: handler.connection.close() is None
    stand_in.asked.clear()
    with pytest.raises(HubUnavailableError, match="may stand there nevertheless"):
        hub.post("results", "hello")
    assert stand_in.asked == ["POST /api/channels/results/posts"]


def test_a_redirect_carries_the_key_nowhere(
    hub: HubClient, stand_in: StandIn, tmp_path: Path
) -> None:
    with serving(tmp_path / "other.git") as other:
        stand_in.behave = lambda h: h.say(307, b"", Location=other.url + h.path) is None
        for ask in (hub.commits, lambda: hub.create_channel("x")):
            with pytest.raises(HubError, match="not followed"):
                ask()
        assert other.asked == []


def test_a_netrc_is_not_read(hub: HubClient, stand_in: StandIn, home: Path) -> None:
    """requests sends what it finds there in place of the key."""
    (home / ".netrc").write_text("machine 127.0.0.1 login x password secret\n")
    hub.commits()
    HubClient(stand_in.url).register("grace")
    assert stand_in.headers[-2]["Authorization"] == f"Bearer {stand_in.keys['ada']}"
    assert "Authorization" not in stand_in.headers[-1]


def test_a_proxy_is_not_asked_for_this_machine(
    hub: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.commits() == []


def test_what_is_no_address_of_a_hub_is_refused() -> None:
    assert checked_server("http://hub/\n") == "http://hub"
    for address in (
        "hub.example.org", "ftp://hub", "http://", "http://u:secret@hub", "http://hub?k=1",
        "http://a b", "http://hub:99999", "file:///etc/passwd", "",
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            checked_server(address)
        assert "secret" not in str(caught.value)


def test_a_key_shows_itself_nowhere(stand_in: StandIn) -> None:
    hub = HubClient(stand_in.url, SecretStr("very-secret"))
    with pytest.raises(HubError) as caught:
        hub.commits()
    assert "401" in str(caught.value) and "join" in caught.value.hint
    assert "very-secret" not in repr(hub.__dict__) + repr(hub._http.__dict__) + str(caught.value)
