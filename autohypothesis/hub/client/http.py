"""One request to a hub: bounded in time and size, and every failure is an error of ours.

The host that answers is not trusted. A redirect is never followed, since it would carry the key to
another host; a compressed answer is refused, since it can grow without end; the key is struck out
of every message.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from http.cookiejar import DefaultCookiePolicy
from typing import IO, Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.util.retry import Retry

from autohypothesis import __version__
from autohypothesis.errors import HubError, UsageError
from autohypothesis.plain import table_text
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import refuse_secrets, texts_in

T = TypeVar("T")

JSON_LIMIT = 16 << 20
"""Bytes of a list; five hundred of the longest posts have as many."""
ERROR_LIMIT = 64 << 10
"""Bytes of an error that are read."""
_CHUNK = 64 << 10
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PASSING = (502, 503, 504)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each retry


class Patience(NamedTuple):
    """Limits of one request, in seconds."""

    connect: float = 5.0
    """For a hub to be reached."""
    read: float = 30.0
    """Between two pieces of an answer."""
    retries: int = 2
    backoff: float = 0.5
    """Before the second retry, doubled for each after it."""
    total: float = 300.0
    """From the look-up of the hub's name to the last byte, all tries together."""


PATIENT = Patience()
HURRIED = Patience(connect=1.0, read=3.0, retries=0, total=3.0)
"""For an answer that is of no use later."""

# ── addresses ───────────────────────────────────────────────────────────────────────────────


def checked_server(server: str) -> str:
    """The address of a hub, without the last slash.

    Raises:
        UsageError: it is no http address, or holds a password, which would be shown in errors.
    """
    server = server.strip()
    try:
        parts = urlsplit(server)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if fits and ("@" in parts.netloc or parts.query or parts.fragment):
        raise UsageError(
            "the address of a hub holds no name, password, query or fragment",
            hint="give one as https://hub.example.org",
        )
    if not fits or not server.isprintable() or " " in server:
        raise UsageError(
            f"{table_text(server)!r} is no address of a hub",
            hint="give one as http://127.0.0.1:8000",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_loopback(server: str) -> bool:
    return (urlsplit(server).hostname or "") in _LOOPBACK


def is_readable_on_the_way(server: str) -> bool:
    """Whether the key crosses a network in the clear: plain HTTP to another machine."""
    return urlsplit(server).scheme == "http" and not is_loopback(server)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


class HubUnavailableError(HubError):
    """There was no answer; there may be one in a moment."""

    arrived = True
    """Whether the request may have been taken; False while there was no connection."""


class HubNotFoundError(HubError):
    """404."""


class HubConflictError(HubError):
    """409: there is one of that name, or another agent was faster."""


_REASONS = (
    ("timed out after", "its answer took too long, and had not ended"),
    ("timed out", "it took too long"),
    ("Connection refused", "nothing listens there"),
    ("resolve", "the name is not known"),
    ("Name or service", "the name is not known"),
    ("CERTIFICATE", "its certificate is not valid"),
    ("Connection broken", "it hung up in the middle of its answer"),
    ("IncompleteRead", "it hung up in the middle of its answer"),
    ("Connection reset", "it hung up"),
    ("aborted", "it hung up"),
)


def _unreached(server: str, path: str, error: Exception) -> HubUnavailableError:
    """The error for a request without an answer; the libraries' own texts are a page long."""
    text = str(error).lower()
    why = next((words for sign, words in _REASONS if sign.lower() in text), "")
    why = why or table_text(f"{type(error).__name__}: {error}")
    made = HubUnavailableError(
        f"{server}{path} cannot be reached: {why}",
        hint=f"see whether it runs: curl -s {server}/api/health",
    )
    reason = getattr(error.args[0], "reason", None) if error.args else None
    made.arrived = not isinstance(reason, (NewConnectionError, ConnectTimeoutError))
    return made


def _refusal(server: str, path: str, status: int, body: bytes, retry_after: str) -> HubError:
    """The error for an answer with `status`: the hub's own words, and what to run next."""
    kinds: dict[int, type[HubError]] = {404: HubNotFoundError, 409: HubConflictError}
    kind = HubUnavailableError if status in _PASSING else kinds.get(status, HubError)
    join = f"python orchestrator.py hub join {server} --name NAME"
    later = f"try again in {retry_after} s" if retry_after.isdigit() else "try again in an hour"
    hints = {
        401: f"the key is not known there; join again: {join} --replace",
        403: f"with a key from its operator: {join} --key-file FILE",
        404: "see what there is: python orchestrator.py hub log, or hub channels",
        429: later,
    }
    other = f"look at the hub: curl -s {server}/api/health"
    if status < 500:
        other = f"see what it takes: {server}/docs"
    problem = f"{server}{path} answered {status}: {_words_of(body)}"
    made = kind(problem, hint=hints.get(status, other))
    made.status = status
    return made


def _words_of(body: bytes) -> str:
    """The hub's reason, on one line."""
    value: Any = None
    with suppress(ValueError):
        value = parse_json(body)
    if isinstance(value, dict):
        words = value.get("error") or value.get("detail") or value
        words = words if isinstance(words, str) else json.dumps(words)
        return table_text(words) or "no reason given"
    if body.lstrip()[:1] == b"<":
        return "a web page, no reason given"
    return table_text(body.decode("utf-8", "replace")) or "no reason given"


# ── one deadline for a request and its answer ───────────────────────────────────────────────


class Exchange(Generic[T]):
    """A call of `work` in a thread of its own, which ends in time whatever is slow.

    The limits of `requests` hold between two bytes, so a hub that drips would hold its caller
    without end. Here the caller goes on when the time is up, and the connection is cut, which ends
    the thread.
    """

    def __init__(self, work: Callable[[requests.Session], T], retry: Retry) -> None:
        self._work = work
        self._retry = retry
        self._answer: Future[T] = Future()
        self._connections: list[socket.socket] = []
        self.arrived = True
        """Whether the request may have been taken; False while there is no connection yet."""
        self._over = False
        self._turn = threading.Lock()

    def within(self, seconds: float) -> T:
        """Return the result of `work`, or raise its error.

        Raises:
            TimeoutError: it has not ended in `seconds`.
        """
        threading.Thread(target=self._run, name="hub request", daemon=True).start()
        try:
            wait([self._answer], seconds)
            if self._answer.done():
                return self._answer.result()
        finally:
            self._cut()
        raise TimeoutError(f"timed out after {seconds:g} s")

    def _run(self) -> None:
        try:
            with requests.Session() as session:
                for scheme in ("http://", "https://"):
                    session.mount(scheme, _Adapter(self, self._retry))
                self._answer.set_result(self._work(session))
        except BaseException as error:
            self._answer.set_exception(error)

    def connected(self, connect: Callable[[], socket.socket]) -> socket.socket:
        """A new connection, which is cut when the time is up; none is made after that."""
        self.arrived = False
        made = connect()
        with self._turn:
            if self._over:
                made.close()
                raise TimeoutError("given up")
            self._connections.append(made.dup())  # TLS takes `made` itself away
            self.arrived = True
        return made

    def _cut(self) -> None:
        with self._turn:
            self._over = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._connections.clear()


class _Adapter(HTTPAdapter):
    """Makes a connection for each try, one that the exchange can cut, also to a proxy."""

    def __init__(self, exchange: Exchange[Any], retry: Retry) -> None:
        super().__init__(max_retries=retry)
        self._exchange = exchange

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        exchange = self._exchange

        class Watched(pool.ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                return exchange.connected(super()._new_conn)

        pool.ConnectionCls = Watched
        # An answer need not say that the connection ends with it: no try uses the one before.
        pool._put_conn = lambda connection: connection.close() if connection else None
        return pool


# ── requests ────────────────────────────────────────────────────────────────────────────────


class HttpAnswer(NamedTuple):
    """An answer with a status that was expected."""

    status: int
    body: bytes


class HttpConnection:
    """Sends requests to one hub, as one agent or without a key."""

    def __init__(
        self, server: str, key: SecretStr | None = None, patience: Patience | None = None
    ) -> None:
        self.server = checked_server(server)
        self._key = key
        self._patience = patience or PATIENT

    def get(
        self, path: str, params: Mapping[str, Any] | None = None, *, or_404: bool = False
    ) -> Any:
        """The JSON that GET answers; with `or_404` None for a 404."""
        accept = (200, 404) if or_404 else (200,)
        answer = self._send("GET", path, accept, params=dict(params or {}))
        return None if answer.status == 404 else self._json(path, answer.body)

    def get_bytes(self, path: str, limit: int) -> bytes:
        """The body that GET answers, `limit` bytes at most."""
        return self._send("GET", path, (200,), limit=limit).body

    def post(
        self,
        path: str,
        value: Mapping[str, Any],
        *,
        accept: tuple[int, ...] = (201,),
        repeatable: bool = False,
    ) -> Any:
        """The JSON that POST answers.

        It is sent once, and again only where no connection was made; or where it is `repeatable`,
        since the hub takes it for the same when it comes twice.

        Raises:
            SecretError: a text of it holds a secret; nothing was sent.
        """
        refuse_secrets(f"what goes to {self.server}{path}", texts_in(value))
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._send(
                "POST", path, accept, repeatable=repeatable, data=body, headers=headers
            )
        except HubUnavailableError as error:
            if error.arrived and not repeatable:
                error.hint = "it may stand there nevertheless: look before you send it again"
            raise
        return self._json(path, answer.body)

    def post_file(self, path: str, source: IO[bytes]) -> Any:
        """POST a file from its beginning; repeatable, since a hub takes the same bundle twice."""
        source.seek(0)
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._send("POST", path, (200, 201), data=source, headers=headers)
        return self._json(path, answer.body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path, (204,), repeatable=False)

    def wrong(self, path: str, why: str) -> HubError:
        """The error for an answer that cannot be used."""
        return HubError(
            self._without_key(f"{self.server}{path} answered {why}"),
            hint=f"see whether a hub runs there: curl -s {self.server}/api/health",
        )

    def _send(
        self,
        method: str,
        path: str,
        accept: tuple[int, ...],
        *,
        repeatable: bool = True,
        limit: int = JSON_LIMIT,
        **how: Any,
    ) -> HttpAnswer:
        # A connection of its own for each try: a hub may hang up on an idle one just when it is
        # used again, and then it is not known whether a post arrived.
        def work(session: requests.Session) -> HttpAnswer:
            with closing(self._open(session, method, path, **how)) as response:
                if response.status_code not in accept:
                    raise self._refused(path, response)
                if response.headers.get("Content-Encoding", "").lower() not in ("", "identity"):
                    raise self.wrong(path, "in a compression that was not asked for")
                promised = response.headers.get("Content-Length", "")
                too_long = promised.isascii() and promised.isdigit() and int(promised[:20]) > limit
                body = b"" if too_long else _read(response, limit)
                if too_long or len(body) > limit:
                    raise self.wrong(path, f"with more than {limit:,} bytes")
                return HttpAnswer(response.status_code, body)

        retry = Retry(
            total=self._patience.retries, backoff_factor=self._patience.backoff,
            status_forcelist=_PASSING, raise_on_status=False, respect_retry_after_header=False,
            allowed_methods=None if repeatable else {"GET"},
        )  # fmt: skip
        exchange = Exchange(work, retry)
        try:
            return exchange.within(self._patience.total)
        except (requests.RequestException, HTTPError, OSError) as error:
            failed = _unreached(self.server, path, error)
            failed.arrived = failed.arrived and exchange.arrived
            raise failed from None

    def _open(
        self, session: requests.Session, method: str, path: str, **how: Any
    ) -> requests.Response:
        session.headers.update(
            {
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": f"autohypothesis/{__version__}",
            }
        )
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        return session.request(
            method,
            self.server + path,
            auth=_Bearer(self._key),
            timeout=(self._patience.connect, self._patience.read),
            allow_redirects=False,
            stream=True,
            proxies={"no_proxy": ",".join(_LOOPBACK)} if is_loopback(self.server) else None,
            **how,
        )

    def _json(self, path: str, body: bytes) -> Any:
        try:
            return parse_json(body)
        except ValueError as error:
            page = body.lstrip()[:1] == b"<"
            why = "with a web page, no JSON" if page else f"with what {error}"
            raise self.wrong(path, why) from None

    def _refused(self, path: str, response: requests.Response) -> HubError:
        status = response.status_code
        if 300 <= status < 400:
            to = table_text(response.headers.get("Location", "elsewhere"))
            return self.wrong(path, f"{status}, a redirect to {to}, which is not followed")
        body = _read(response, ERROR_LIMIT)[:ERROR_LIMIT]
        said = self._without_key(body.decode("utf-8", "replace")).encode()
        retry_after = table_text(response.headers.get("Retry-After", ""))
        return _refusal(self.server, path, status, said, retry_after)

    def _without_key(self, text: str) -> str:
        """`text` without our key, should a hub have sent it back."""
        return text.replace(self._key.get_secret_value(), "…") if self._key else text


def _read(response: requests.Response, limit: int) -> bytes:
    """The body, or a little more than `limit` bytes of it."""
    body = bytearray()
    # One receive at a time: a plain read waits for a whole piece, however long it drips.
    while len(body) <= limit and (part := response.raw.read1(_CHUNK, decode_content=False)):
        body += part
    return bytes(body)


class _Bearer(AuthBase):
    """Sends the key. Set without a key too: else requests would read a netrc."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request
