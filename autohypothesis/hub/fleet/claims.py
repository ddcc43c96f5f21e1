"""The right to try an idea, from a hub. When it does not answer at once, nobody waits for it."""

from __future__ import annotations

import threading
import time

from autohypothesis.errors import HubError, SecretError
from autohypothesis.fleet.hub_sync.incoming import ClaimAnswer, ClaimRequest, hub_connection
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.client.http import HURRIED
from autohypothesis.hub.client.refusals import TakenError
from autohypothesis.hub.client.typed import TypedHub
from autohypothesis.records.layout import Layout

SILENT_S = 30.0
"""After a question without an answer none is asked for so long."""


class HubClaims:
    """A `fleet.Claims`."""

    def __init__(self, credentials: Credentials, layout: Layout) -> None:
        self._hub = TypedHub.of(credentials, HURRIED)
        self._layout = layout
        self._silent_until = 0.0
        self._turn = threading.Lock()

    def claim(self, idea: ClaimRequest) -> ClaimAnswer:
        with self._turn:
            if time.monotonic() < self._silent_until:
                return ClaimAnswer("unknown", "the hub has just not answered")
            if not (way := hub_connection(self._layout)).is_open:
                return ClaimAnswer("unknown", way.problem or "the hub cannot be reached")
            return self._ask(idea)

    def _ask(self, idea: ClaimRequest) -> ClaimAnswer:
        try:
            self._hub.claim(
                platform_key=idea.platform_key,
                task_hash=idea.task_hash,
                tree=idea.tree,
                title=idea.title[:200],
                lease_seconds=int(idea.lease_seconds),
            )
        except TakenError as error:
            return ClaimAnswer("refused", error.problem)
        except SecretError as error:
            return ClaimAnswer("unknown", error.problem)
        except HubError as error:
            self._silent_until = time.monotonic() + SILENT_S
            return ClaimAnswer("unknown", error.problem)
        return ClaimAnswer("granted")
