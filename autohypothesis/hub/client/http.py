"""One request to a hub: bounded in time and size, and every way to fail is an error of ours.

Whoever answers is not trusted. A redirect is never followed, since it would carry the key to
somebody else; a compressed answer is refused, since it can grow without end; the key is struck out
of whatever is said.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http.cookiejar import DefaultCookiePolicy
from typing import IO, Any, NamedTuple

import requests
from pydantic import SecretStr
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from autohypothesis import __version__
from autohypothesis.errors import HubError
from autohypothesis.hub.client.address import LOOPBACK, checked_server, is_loopback
from autohypothesis.hub.client.exchange import Exchange
from autohypothesis.hub.client.refusals import PassingError, refusal, unreached
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import refuse_secrets, texts_in
from autohypothesis.records.tables import harmless

TOTAL_S = 300.0
"""How long one request and its answer may take altogether, however steadily they drip."""
JSON_LIMIT = 16 * 1024 * 1024
"""Bytes of a list; five hundred of the longest posts have as many."""
SAID_LIMIT = 64 * 1024
"""Bytes of an error that are read."""
_CHUNK = 64 * 1024


class Patience(NamedTuple):
    """Seconds."""

    connect: float = 5.0
    """For a hub to be reached."""
    read: float = 30.0
    """For it to say the next thing."""
    pauses: tuple[float, ...] = (0.2, 1.0)
    """Before each further try."""
    total: float | None = None
    """For one try, from the name of the hub to the last byte; None: `TOTAL_S`."""


PATIENT = Patience()
HURRIED = Patience(connect=1.0, read=3.0, pauses=(), total=3.0)
"""For what is of no use later."""


class Answer(NamedTuple):
    """An answer with a status that was expected."""

    status: int
    body: bytes


class Wire:
    """The way to one hub, for one agent or for nobody."""

    def __init__(
        self, server: str, key: SecretStr | None = None, patience: Patience | None = None
    ) -> None:
        self.server = checked_server(server)
        self._key = key
        self._patience = patience or PATIENT

    def ask(
        self, path: str, params: Mapping[str, str | int] | None = None, *, or_404: bool = False
    ) -> Any:
        """The JSON that GET answers; None for a 404 where that is an answer too."""
        accept = (200, 404) if or_404 else (200,)
        answer = self._tried("GET", path, accept, params=dict(params or {}))
        return None if answer.status == 404 else self._json(path, answer.body)

    def bytes_of(self, path: str, limit: int) -> bytes:
        """What GET answers, `limit` bytes at most."""
        return self._tried("GET", path, (200,), limit=limit).body

    def tell(
        self,
        path: str,
        value: Mapping[str, Any],
        *,
        accept: tuple[int, ...] = (201,),
        twice: bool = False,
    ) -> Any:
        """The JSON that POST answers. A post said twice stands there twice, so it is said once.

        What a hub takes for the same when it comes again may be said `twice`.

        Raises:
            SecretError: a text of it holds a secret; nothing was sent.
        """
        refuse_secrets(f"what goes to {self.server}{path}", texts_in(value))
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._tried("POST", path, accept, twice=twice, data=body, headers=headers)
        except PassingError as error:
            if error.arrived and not twice:
                error.hint = "it may stand there nevertheless: look before you send it again"
            raise
        return self._json(path, answer.body)

    def drop(self, path: str) -> None:
        """DELETE, once."""
        self._tried("DELETE", path, (204,), twice=False)

    def send(self, path: str, source: IO[bytes]) -> Any:
        """POST what is in a file; tried again, since a hub takes the same bundle twice."""
        headers = {"Content-Type": "application/octet-stream"}

        def rewound() -> dict[str, Any]:
            source.seek(0)
            return {"data": source, "headers": headers}

        answer = self._tried("POST", path, (200, 201), more=rewound)
        return self._json(path, answer.body)

    def wrong(self, path: str, why: str) -> HubError:
        """An answer that is none."""
        return HubError(
            self._without_key(f"{self.server}{path} answered {why}"),
            hint=f"see whether a hub runs there: curl -s {self.server}/api/health",
        )

    # ── one request ───────────────────────────────────────────────────────────────────────

    def _tried(
        self,
        method: str,
        path: str,
        accept: tuple[int, ...],
        *,
        twice: bool = True,
        more: Callable[[], dict[str, Any]] = dict,
        **how: Any,
    ) -> Answer:
        """Once, and again where it never came to an answer.

        Without `twice` only where nobody was there to hear it: what may have been heard is not
        said again.
        """
        for pause in self._patience.pauses:
            try:
                return self._once(method, path, accept, **how, **more())
            except PassingError as error:
                if error.arrived and not twice:
                    raise
                time.sleep(pause)
        return self._once(method, path, accept, **how, **more())

    def _once(
        self,
        method: str,
        path: str,
        accept: tuple[int, ...],
        *,
        limit: int = JSON_LIMIT,
        **how: Any,
    ) -> Answer:
        # A connection of its own for each request: a hub may hang up on an idle one just when it
        # is used again, and then nobody knows whether a post arrived.
        def work(session: requests.Session) -> Answer:
            with closing(self._open(session, method, path, **how)) as response:
                if response.status_code not in accept:
                    raise self._refusal(path, response)
                return Answer(response.status_code, self._body(path, response, limit))

        exchange = Exchange(work)
        try:
            return exchange.within(self._total_s)
        except (requests.RequestException, HTTPError, OSError) as error:
            failed = unreached(self.server, path, error)
            failed.arrived = failed.arrived and exchange.arrived
            raise failed from None

    @property
    def _total_s(self) -> float:
        return TOTAL_S if self._patience.total is None else self._patience.total

    def _open(
        self, session: requests.Session, method: str, path: str, **how: Any
    ) -> requests.Response:
        session.headers.update(
            {"Accept-Encoding": "identity", "User-Agent": f"autohypothesis/{__version__}"}
        )
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        return session.request(
            method,
            self.server + path,
            auth=_Bearer(self._key),
            timeout=(self._patience.connect, self._patience.read),
            allow_redirects=False,
            stream=True,
            proxies={"no_proxy": ",".join(LOOPBACK)} if is_loopback(self.server) else None,
            **how,
        )

    def _body(self, path: str, response: requests.Response, limit: int) -> bytes:
        """All of an answer.

        Raises:
            HubError: it is longer than `limit` bytes, or compressed.
        """
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise self.wrong(path, "in a compression that nobody asked for")
        body = bytearray()
        for part in self._parts(path, response, limit):
            body += part
            if len(body) > limit:
                raise self.wrong(path, f"with more than {limit:,} bytes")
        return bytes(body)

    def _parts(self, path: str, response: requests.Response, limit: int) -> Iterator[bytes]:
        """An answer as it arrives. Nothing is read of one that promises more than `limit`."""
        promised = response.headers.get("Content-Length", "")
        if promised.isascii() and promised.isdigit() and int(promised[:20]) > limit:
            raise self.wrong(path, f"with more than {limit:,} bytes")
        # One receive at a time: a plain read waits for a whole piece, however long it drips.
        while part := response.raw.read1(_CHUNK, decode_content=False):
            yield part

    # ── what went wrong ───────────────────────────────────────────────────────────────────

    def _json(self, path: str, body: bytes) -> Any:
        try:
            return parse_json(body)
        except ValueError as error:
            page = body.lstrip()[:1] == b"<"
            why = "with a web page, no JSON" if page else f"with what {error}"
            raise self.wrong(path, why) from None

    def _refusal(self, path: str, response: requests.Response) -> HubError:
        status = response.status_code
        if 300 <= status < 400:
            to = harmless(response.headers.get("Location", "elsewhere"))
            return self.wrong(path, f"{status}, a redirect to {to}, which is not followed")
        body = b""
        for part in self._parts(path, response, sys.maxsize):
            body += part
            if len(body) > SAID_LIMIT:
                break
        said = self._without_key(body[:SAID_LIMIT].decode("utf-8", "replace")).encode()
        wait = harmless(response.headers.get("Retry-After", ""))
        return refusal(self.server, path, status, said, wait)

    def _without_key(self, text: str) -> str:
        """`text` without our key, should a hub have sent it back."""
        return text.replace(self._key.get_secret_value(), "…") if self._key else text


class _Bearer(AuthBase):
    """The key as the contract has it. Given even for nobody: else a netrc would be read."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request
