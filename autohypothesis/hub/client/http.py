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
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from http.cookiejar import DefaultCookiePolicy
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.util.retry import Retry

from autohypothesis import __version__
from autohypothesis.errors import HubError, UsageError
from autohypothesis.plain import table_text
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import refuse_secrets, texts_in

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

JSON_LIMIT = 16 << 20
"""Bytes of a list; five hundred of the longest posts have as many."""
ERROR_LIMIT = 64 << 10
"""Bytes of an error that are read."""
_CHUNK = 64 << 10
_LEFT_OUT = 20
"""Problems of records that are remembered."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PASSING = (502, 503, 504)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each retry


class Patience(NamedTuple):
    """Limits of one request, in seconds."""

    connect: float = 5.0
    """Maximum time until a hub is reached."""
    read: float = 30.0
    """Maximum pause between two pieces of an answer."""
    retries: int = 2
    backoff: float = 0.5
    """Pause before the second retry, doubled for each after it."""
    total: float = 300.0
    """Maximum time from the look-up of the name to the last byte, all tries together."""


PATIENT = Patience()
HURRIED = Patience(connect=1.0, read=3.0, retries=0, total=3.0)
"""For an answer that is of no use later."""

# ── addresses ───────────────────────────────────────────────────────────────────────────────


def checked_server(server: str) -> str:
    """Return the address of a hub, without the last slash.

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


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class _Cut(HTTPAdapter):
    """Makes a connection for each try, also to a proxy, and can cut them all.

    The limits of `requests` hold between two bytes, so a hub that drips would hold its caller
    without end. Here the caller goes on when the time is up, and cuts the connection, which ends
    the thread that waits.
    """

    def __init__(self, retry: Retry) -> None:
        super().__init__(max_retries=retry)
        self._connections: list[socket.socket] = []
        self._over = False
        self._turn = threading.Lock()
        self.arrived = True
        """Whether the request may have been taken; False while there is no connection yet."""

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        adapter = self

        class Watched(pool.ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                adapter.arrived = False
                return adapter._watched(super()._new_conn())

        pool.ConnectionCls = Watched
        # An answer need not say that the connection ends with it: no try uses the one before.
        pool._put_conn = lambda connection: connection.close() if connection else None
        return pool

    def _watched(self, made: socket.socket) -> socket.socket:
        with self._turn:
            if self._over:
                made.close()
                raise TimeoutError("given up")
            self._connections.append(made.dup())  # TLS takes `made` itself away
            self.arrived = True
        return made

    def cut(self) -> None:
        """End every connection; none is made after that."""
        with self._turn:
            self._over = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._connections.clear()


class HttpConnection:
    """Sends requests to one hub, as one agent or without a key; answers are checked.

    Raises, in every method:
        HubError: the hub refuses, or its answer cannot be used.
    """

    def __init__(
        self, server: str, key: SecretStr | None = None, patience: Patience | None = None
    ) -> None:
        self.server = checked_server(server)
        self.left_out: list[str] = []
        """Problems of records that were left out of lists, the last few."""
        self._key = key
        self._patience = patience or PATIENT

    def get(self, path: str, shape: type[T]) -> T:
        return self._shaped(path, self._send("GET", path), shape)

    def get_list(self, path: str, shape: type[R], **params: str | int) -> list[R]:
        """Return a list without its bad records: each costs itself alone.

        Empty `params` are left out. None of the records is good: HubError.
        """
        given = {name: value for name, value in params.items() if value not in ("", None)}
        records = self._shaped(path, self._send("GET", path, params=given), list[object])
        good: list[R] = []
        bad: list[HubError] = []
        for place, record in enumerate(records):
            try:
                good.append(shape.model_validate(record))
            except ValidationError as error:
                bad.append(self._misshapen(path, error, str(place)))
        if bad and not good:
            raise bad[0]
        self.left_out += [error.problem for error in bad]
        del self.left_out[:-_LEFT_OUT]
        return good

    def get_bytes(self, path: str, limit: int) -> bytes:
        """Return the body that GET answers, `limit` bytes at most."""
        return self._send("GET", path, limit=limit)

    def post(
        self, path: str, value: Mapping[str, Any], shape: type[T], *, repeatable: bool = False
    ) -> T:
        """Send JSON once, and again only where no connection was made.

        Where it is `repeatable`, the hub takes it for the same when it comes twice.

        Raises:
            SecretError: a text of it holds a secret; nothing was sent.
        """
        refuse_secrets(f"what goes to {self.server}{path}", texts_in(value))
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._send("POST", path, repeatable=repeatable, data=body, headers=headers)
        except HubUnavailableError as error:
            if error.arrived and not repeatable:
                error.hint = "it may stand there nevertheless: look before you send it again"
            raise
        return self._shaped(path, answer, shape)

    def post_file(self, path: str, source: IO[bytes], shape: type[T]) -> T:
        """POST a file from its beginning; repeatable, since a hub takes the same bundle twice."""
        source.seek(0)
        headers = {"Content-Type": "application/octet-stream"}
        return self._shaped(path, self._send("POST", path, data=source, headers=headers), shape)

    def delete(self, path: str) -> None:
        self._send("DELETE", path, repeatable=False)

    def wrong(self, path: str, why: str) -> HubError:
        """Return the error for an answer that cannot be used."""
        return HubError(
            self._without_key(f"{self.server}{path} answered {why}"),
            hint=f"see whether a hub runs there: curl -s {self.server}/api/health",
        )

    # ── one request, with one deadline ──────────────────────────────────────────────────────

    def _send(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        limit: int = JSON_LIMIT,
        **how: Any,
    ) -> bytes:
        retry = Retry(
            total=self._patience.retries, backoff_factor=self._patience.backoff,
            status_forcelist=_PASSING, raise_on_status=False, respect_retry_after_header=False,
            allowed_methods=None if repeatable else {"GET"},
        )  # fmt: skip
        adapter, answer = _Cut(retry), Future[bytes]()

        def work() -> None:
            try:
                answer.set_result(self._answer(adapter, method, path, limit, **how))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, name="hub request", daemon=True).start()
        try:
            wait([answer], self._patience.total)
            if not answer.done():
                raise TimeoutError(f"timed out after {self._patience.total:g} s")
            return answer.result()
        except (requests.RequestException, HTTPError, OSError) as error:
            raise self._unreached(path, error, adapter.arrived) from None
        finally:
            adapter.cut()

    def _answer(self, adapter: _Cut, method: str, path: str, limit: int, **how: Any) -> bytes:
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, adapter)
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.headers["Accept-Encoding"] = "identity"
            session.headers["Connection"] = "close"
            session.headers["User-Agent"] = f"autohypothesis/{__version__}"
            response = session.request(
                method, self.server + path, auth=self._signed, allow_redirects=False, stream=True,
                timeout=(self._patience.connect, self._patience.read),
                proxies={"no_proxy": ",".join(_LOOPBACK)} if is_loopback(self.server) else None,
                **how,
            )  # fmt: skip
            with closing(response):
                return self._body(path, response, limit)

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key. It is set without one too: else requests would read a netrc."""
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request

    def _body(self, path: str, response: requests.Response, limit: int) -> bytes:
        if not 200 <= response.status_code < 300:
            raise self._refused(path, response)
        if response.headers.get("Content-Encoding", "").lower() not in ("", "identity"):
            raise self.wrong(path, "in a compression that was not asked for")
        promised = response.headers.get("Content-Length", "")
        too_long = promised.isascii() and promised.isdigit() and int(promised[:20]) > limit
        body = b"" if too_long else _read(response, limit)
        if too_long or len(body) > limit:
            raise self.wrong(path, f"with more than {limit:,} bytes")
        return body

    # ── answers ───────────────────────────────────────────────────────────────────────────

    def _shaped(self, path: str, body: bytes, shape: type[T]) -> T:
        try:
            return TypeAdapter(shape).validate_python(parse_json(body))
        except ValidationError as error:
            raise self._misshapen(path, error) from None
        except ValueError as error:
            page = body.lstrip()[:1] == b"<"
            why = "with a web page, no JSON" if page else f"with what {error}"
            raise self.wrong(path, why) from None

    def _misshapen(self, path: str, error: ValidationError, *place: str) -> HubError:
        first = error.errors(include_url=False, include_input=False)[0]
        where = table_text(".".join([*place, *map(str, first["loc"])]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        return self.wrong(path, f"with the wrong shape: {why}")

    def _unreached(self, path: str, error: Exception, arrived: bool) -> HubUnavailableError:
        """Return the error for a request without an answer; the libraries' are a page long."""
        text = str(error).lower()
        why = next((words for sign, words in _REASONS if sign.lower() in text), "")
        why = why or table_text(f"{type(error).__name__}: {error}")
        made = HubUnavailableError(
            f"{self.server}{path} cannot be reached: {why}",
            hint=f"see whether it runs: curl -s {self.server}/api/health",
        )
        reason = getattr(error.args[0], "reason", None) if error.args else None
        unconnected = isinstance(reason, (NewConnectionError, ConnectTimeoutError))
        made.arrived = arrived and not unconnected
        return made

    def _refused(self, path: str, response: requests.Response) -> HubError:
        """Return the error for a status: the hub's own words, and what to run next."""
        status = response.status_code
        if 300 <= status < 400:
            to = table_text(response.headers.get("Location", "elsewhere"))
            return self.wrong(path, f"{status}, a redirect to {to}, which is not followed")
        kinds: dict[int, type[HubError]] = {404: HubNotFoundError, 409: HubConflictError}
        kind = HubUnavailableError if status in _PASSING else kinds.get(status, HubError)
        join = f"python orchestrator.py hub join {self.server} --name NAME"
        wait_s = table_text(response.headers.get("Retry-After", ""))
        hints = {
            401: f"the key is not known there; join again: {join} --replace",
            403: f"with a key from its operator: {join} --key-file FILE",
            404: "see what there is: python orchestrator.py hub log, or hub channels",
            429: f"try again in {wait_s} s" if wait_s.isdigit() else "try again in an hour",
        }
        other = f"look at the hub: curl -s {self.server}/api/health"
        if status < 500:
            other = f"see what it takes: {self.server}/docs"
        body = _read(response, ERROR_LIMIT)[:ERROR_LIMIT].decode("utf-8", "replace")
        words = _reason_in(self._without_key(body).encode())
        made = kind(
            f"{self.server}{path} answered {status}: {words}", hint=hints.get(status, other)
        )
        made.status = status
        return made

    def _without_key(self, text: str) -> str:
        """Return `text` without our key, should a hub have sent it back."""
        return text.replace(self._key.get_secret_value(), "…") if self._key else text


def _reason_in(body: bytes) -> str:
    """Return a hub's reason for a refusal, on one line."""
    if body.lstrip()[:1] == b"<":
        return "a web page, no reason given"
    words: Any = body.decode("utf-8", "replace")
    with suppress(ValueError):
        value = parse_json(body)
        if isinstance(value, dict):
            words = value.get("error") or value.get("detail") or value
    return table_text(words if isinstance(words, str) else json.dumps(words)) or "no reason given"


def _read(response: requests.Response, limit: int) -> bytes:
    """Return the body, or a little more than `limit` bytes of it."""
    body = bytearray()
    # One receive at a time: a plain read waits for a whole piece, however long it drips.
    while len(body) <= limit and (part := response.raw.read1(_CHUNK, decode_content=False)):
        body += part
    return bytes(body)
