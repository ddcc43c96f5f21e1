"""What one call of the loop was asked for, written down so that the next one can finish it.

`research/live/loop.json` holds it. The same call again goes on with a session that was not
finished, however it was ended and however long ago; any other call begins another.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from autohypothesis.errors import RecordError
from autohypothesis.fleet.live import roles
from autohypothesis.fleet.live.presence import LOOP
from autohypothesis.fleet.queue.chronicle import Chronicle, is_lost
from autohypothesis.records.layout import Layout
from autohypothesis.records.tables import harmless
from autohypothesis.schema import Decision, Identifier, RoleStatus, Time, Tolerant, now

OVER = ("finished", "failed")
"""States of a loop that has nothing left to do."""
NAME_LENGTH = 80


class Session(Tolerant):
    """A number of experiments, from where the tag stood when they were asked for."""

    tag: Identifier
    name: str = ""
    """In front of the title of each experiment."""
    most: int | None = None
    """Experiments, the baseline included where it has to run; None: until stopped."""
    first: int = 0
    """How many of the tag counted before it."""
    begun: Time

    @property
    def limit(self) -> int | None:
        """How many of the tag may count at its end."""
        return None if self.most is None else self.first + self.most

    def decisions(self, chronicle: Chronicle) -> list[Decision]:
        """Its own so far, in their order; what was lost to infrastructure is none."""
        counted = [one for one in chronicle.latest.values() if not is_lost(one)]
        return counted[self.first :]

    def how_far(self, chronicle: Chronicle) -> str:
        """`3 of 6 experiments`."""
        done = len(self.decisions(chronicle))
        total = "" if self.most is None else f" of {self.most}"
        return f"{done}{total} experiment{'s' * (done != 1 or self.most is not None)}"


def named(text: str) -> str:
    """A name as every table, commit and terminal can take it: one short line."""
    return harmless(text)[:NAME_LENGTH].strip()


def open_session(
    layout: Layout, chronicle: Chronicle, *, name: str, most: int | None
) -> tuple[Session, bool]:
    """The session of a call, and whether an earlier call began it.

    Raises:
        RecordError: it cannot be written down, so nothing may begin.
    """
    before, state = _last(layout)
    asked = (chronicle.tag, name, most)
    if (
        before is not None
        and state not in OVER
        and most is not None
        and (before.tag, before.name, before.most) == asked
        and before.first <= chronicle.counted()
    ):
        return before, True
    session = Session(
        tag=chronicle.tag, name=name, most=most, first=chronicle.counted(), begun=now()
    )
    write(layout, session, "starting", session.how_far(chronicle), durable=True)
    return session, False


def write(
    layout: Layout,
    session: Session,
    state: str,
    action: str,
    *,
    problems: list[str] | None = None,
    started: datetime | None = None,
    durable: bool = False,
) -> None:
    """How the loop stands.

    Raises:
        RecordError: the disk is full.
    """
    status = roles.own(
        LOOP,
        state=state,
        started_at=started or now(),
        last_action=action,
        last_action_at=now(),
        problems=problems or [],
        details={"session": session.model_dump(mode="json")},
    )
    roles.report(layout, status, durable=durable)


def _last(layout: Layout) -> tuple[Session | None, str]:
    """The session of the last call and the state it was left in; a damaged one is none."""
    status: RoleStatus | None = roles.read_role(layout, LOOP)
    try:
        said = status.details.get("session") if status is not None else None
        return (Session.model_validate(said), status.state) if said and status else (None, "")
    except (ValidationError, RecordError):
        return None, ""
