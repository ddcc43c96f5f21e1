"""Whoever answers is not trusted: each bad answer is one clear error, and the key goes nowhere."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from autohypothesis.errors import HubError, UsageError
from autohypothesis.hub.client import http
from autohypothesis.hub.client.address import checked_server
from autohypothesis.hub.client.hub import Hub
from autohypothesis.hub.client.refusals import PassingError
from tests.hub.client.stand_in import Handler, StandIn, serving

KEY = "key-of-ada-0"
COMMIT = {"hash": "a" * 40, "parent_hash": "", "agent_id": "x", "message": "m", "created_at": "x"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENT", http.Patience(pauses=(0.0, 0.0)))


def _drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    with suppress(OSError):
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


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
    "dripping": (_drip, "had not ended"),
    "torn": (_torn, "hung up"),
    "silent": (lambda h: time.sleep(0.8), "took too long"),
    "gone": (lambda h: h.connection.close(), "hung up"),
    "500 page": (lambda h: h.say(500, b"<html>nginx", "text/html"), "500: a web page"),
    "a list for a refusal": (lambda h: h.say(400, b"[1]"), "400: [1]"),
    "the key": (lambda h: h.say(400, f'{{"error":"no {KEY}"}}'.encode()), "400: no …"),
    "escapes": (lambda h: h.say(400, b'{"error":"\\u001b[31mred\\nline"}'), "400: [31mred line"),
    "wait": (lambda h: h.say(429, b'{"error":"slow down"}', Retry_After="7"), "slow down"),
}  # fmt: skip
SLOW = ("dripping", "silent")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_one_clear_line(
    name: str, hub: Hub, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, words = BAD[name]
    limit = 0.4 if name in SLOW else 60.0  # the others are read in time on a busy machine too
    patience = http.Patience(read=limit, pauses=(0.0, 0.0))
    monkeypatch.setattr(hub._wire, "_patience", patience)
    monkeypatch.setattr(http, "TOTAL_S", limit)
    stand_in.behave = lambda handler: act(handler) is not Ellipsis
    with pytest.raises(HubError) as caught:
        hub.commits()
    said = str(caught.value)
    assert words in said
    assert stand_in.url in said and "/api/git/commits" in said
    assert caught.value.hint
    assert len(said.splitlines()) == 1 and said.isprintable()
    assert KEY not in said + repr(caught.value.__dict__)


def test_a_hub_that_is_down_is_named(home: Path) -> None:
    with pytest.raises(PassingError, match=r"127\.0\.0\.1:9/.* nothing listens there") as caught:
        Hub("http://127.0.0.1:9").leaves()
    assert not caught.value.arrived
    with pytest.raises(HubError, match="the name is not known"):
        Hub("http://hub.invalid").leaves()


def test_reading_is_tried_again(hub: Hub, stand_in: StandIn) -> None:
    answers = iter([True, True, False])

    def busy(handler: Handler) -> bool:
        if next(answers):
            handler.say(503, b"{}")
            return True
        return False

    stand_in.behave = busy
    assert hub.commits() == []


def test_a_post_is_never_said_twice(hub: Hub, stand_in: StandIn) -> None:
    """It was taken, and the answer was lost: whether to go on is for somebody to look at."""
    hub.ensure_channel("results")
    stand_in.behave = lambda handler: handler.connection.close() is None
    stand_in.asked.clear()
    with pytest.raises(PassingError, match="may stand there nevertheless"):
        hub.post("results", "hello")
    assert stand_in.asked == ["POST /api/channels/results/posts"]


def test_a_redirect_carries_the_key_nowhere(hub: Hub, stand_in: StandIn, tmp_path: Path) -> None:
    with serving(tmp_path / "other.git") as other:
        stand_in.behave = lambda h: h.say(307, b"", Location=other.url + h.path) is None
        for ask in (hub.commits, lambda: hub.create_channel("x")):
            with pytest.raises(HubError, match="not followed"):
                ask()
        assert other.asked == []


def test_a_netrc_is_not_read(hub: Hub, stand_in: StandIn, home: Path) -> None:
    """requests sends what it finds there in place of the key."""
    (home / ".netrc").write_text("machine 127.0.0.1 login x password secret\n")
    hub.commits()
    Hub(stand_in.url).register("grace")
    assert stand_in.headers[-2]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in stand_in.headers[-1]


def test_a_proxy_is_not_asked_for_this_machine(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.commits() == []


@pytest.mark.parametrize(
    "address",
    ["hub.example.org", "ftp://hub", "http://", "http://u:secret@hub", "http://hub?k=1",
     "http://a b", "http://hub:99999", "file:///etc/passwd", "http://hub/\n", ""],
)  # fmt: skip
def test_what_is_no_address_of_a_hub_is_refused(address: str) -> None:
    if address.endswith("\n"):
        assert checked_server(address) == "http://hub"
        return
    with pytest.raises(UsageError) as caught:
        checked_server(address)
    assert "secret" not in str(caught.value)


def test_a_key_shows_itself_nowhere(stand_in: StandIn) -> None:
    hub = Hub(stand_in.url, SecretStr("very-secret"))
    with pytest.raises(HubError) as caught:
        hub.commits()
    assert "401" in str(caught.value) and "join" in caught.value.hint
    assert "very-secret" not in repr(hub.__dict__) + repr(hub._wire.__dict__) + str(caught.value)
