"""The courier: the process of a fleet that speaks to its hub, so that nobody else has to wait.

It delivers what the outbox holds, writes down what the hub says, and says of itself whether the
hub answers. It decides nothing, and a fleet without it runs as one without a hub.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, HubError, LockError
from autohypothesis.fleet.hub_sync.incoming import COURIER
from autohypothesis.fleet.hub_sync.outbox import PENDING, REFUSED, DiskOutbox, Round, pause_s
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.hub.client.courier import HubCourier
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.client.refusals import PassingError
from autohypothesis.hub.client.typed import TypedHub
from autohypothesis.hub.fleet.agreement import agree
from autohypothesis.hub.fleet.listening import Listener
from autohypothesis.records import locks
from autohypothesis.schema import now

LISTEN_S = 5.0
"""Between two looks at what others do."""
AGREE_S = 60.0
"""Between two tries to agree with a hub that has another task of our name."""
LOOK_S = 0.5
LOCK_S = 5.0


class Courier:
    """One project's courier to one hub."""

    def __init__(self, project: Project, credentials: Credentials) -> None:
        self.project = project
        self.outbox = DiskOutbox(project.layout)
        self._hub = TypedHub.of(credentials)
        self._agent = credentials.agent
        self._courier = HubCourier(
            self._hub, credentials.agent, project.repository, self.outbox.receipt
        )
        self._listener = Listener(self._hub, credentials.agent, project)
        self._began: datetime = now()
        self._agreed = self._reachable = False
        self._due = {"agree": 0.0, "deliver": 0.0, "listen": 0.0, "report": 0.0}
        self._failures = 0
        self._problems: dict[str, str] = {}
        self._counts = {"told": 0, "refused": 0}
        self._reported: tuple[Any, ...] = ()

    def run(self, stop: StopRequest) -> None:
        """Until asked to stop; then what waits is delivered once more, if the hub answers.

        Raises:
            LockError: another courier is at work; the message names it.
        """
        with locks.hold(self.project.layout, COURIER, doing="speaking to the hub", timeout=LOCK_S):
            self._report("starting")
            while not stop.requested:
                self.turn()
                stop.wait(LOOK_S)
            if self._agreed and self._reachable:
                self.deliver()
            self._report("stopped")

    def once(self) -> Round:
        """Deliver what waits.

        Raises:
            HubError: it does not answer, or searches something else.
            LockError: another process is at it.
        """
        agree(self._hub, self.project)
        return self.outbox.deliver(self._courier)

    def turn(self) -> None:
        """One look: what is due is done, and what it came to is said."""
        moment = time.monotonic()
        if not self._agreed and moment >= self._due["agree"]:
            self._agree()
        if self._agreed and moment >= self._due["deliver"] and self._waiting():
            self.deliver()
        if self._agreed and moment >= self._due["listen"]:
            self._listen()
        self._report("working" if self._agreed else "waiting")

    def deliver(self) -> Round | None:
        """One round through the outbox; None while another process is at it."""
        try:
            done = self.outbox.deliver(self._courier)
        except LockError:
            return None
        except AutohypothesisError as error:  # a full disk
            self._failed("deliver", error)
            return None
        self._counts["told"] += done.sent
        self._counts["refused"] += done.refused
        self._failures = self._failures + 1 if done.error and not done.sent else 0
        self._due["deliver"] = time.monotonic() + (pause_s(self._failures) if done.error else 0.0)
        self._problems.pop("deliver", None)
        if done.refused:
            aside = self.project.layout.outbox_state(REFUSED)
            self._problems["refused"] = f"{self._counts['refused']} were refused: see {aside}"
        if done.error:
            self._problems["deliver"] = f"{done.left} wait to be told: {done.error}"
            self._due["listen"] = min(self._due["listen"], self._due["deliver"])
        return done

    def _agree(self) -> None:
        try:
            agree(self._hub, self.project)
        except PassingError as error:
            self._failed("agree", error)
            self._due["agree"] = time.monotonic() + pause_s(1)
        except AutohypothesisError as error:
            self._failed("agree", error)
            self._due["agree"] = time.monotonic() + AGREE_S
        else:
            self._agreed = self._reachable = True
            self._problems.pop("agree", None)

    def _listen(self) -> None:
        self._hub.left_out.clear()
        try:
            self._listener.listen()
        except AutohypothesisError as error:
            self._failed("listen", error)
        else:
            self._reachable = True
            self._problems.pop("listen", None)
        self._problems.pop("left out", None)
        if self._hub.left_out:
            self._problems["left out"] = f"left out: {self._hub.left_out[-1]}"
        self._due["listen"] = time.monotonic() + LISTEN_S

    def _failed(self, what: str, error: AutohypothesisError) -> None:
        self._problems[what] = error.problem
        if isinstance(error, HubError):
            self._reachable = False

    def _waiting(self) -> int:
        folder = self.project.layout.outbox_state(PENDING)
        return sum(1 for _ in folder.glob("[!.]*.json")) if folder.is_dir() else 0

    # ── what it says ──────────────────────────────────────────────────────────────────────

    def _report(self, state: str) -> None:
        """Best effort, and only what is new: whoever reads it asks whether we live."""
        details = {
            "hub": self._hub.server,
            "agent": self._agent,
            "reachable": self._reachable,
            "waiting": self._waiting(),
            **self._counts,
        }
        saying = (state, tuple(details.items()), tuple(self._problems.values()))
        if saying == self._reported and time.monotonic() < self._due["report"]:
            return
        status = presence.own_status(
            COURIER, state=state, started_at=self._began, details=details,
            last_action=f"{self._counts['told']} told to {self._hub.server} as {self._agent}",
            problems=[line[:500] for line in self._problems.values()],
        )  # fmt: skip
        try:
            presence.write_role(self.project.layout, status)
        except (AutohypothesisError, OSError):
            return
        self._reported = saying
        self._due["report"] = time.monotonic() + 2.0
