"""Whether anything new may begin: a person says stop in the steering, the observer ends the search.

Asked between the end of one training and the start of the next, so it costs a few `stat` calls
while nothing has changed.
"""

from __future__ import annotations

from autohypothesis.fleet.live import roles, steering
from autohypothesis.records.bundles import ABSENT, Signature, signature_of
from autohypothesis.records.layout import Layout
from autohypothesis.schema import RoleStatus


class Orders:
    """What binds one worker."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._seen: Signature = ABSENT
        self._observer: RoleStatus | None = None

    def against_beginning(self) -> str:
        """Why nothing may begin now; empty when it may."""
        if steering.combined(self._layout).stop:
            return "the steering says stop"
        return "the search is over" if self._is_closing() else ""

    def _is_closing(self) -> bool:
        """Whether the observer ends the search; a dead one's word is about an earlier search."""
        seen = signature_of(str(self._layout.role("observer")))
        if seen != self._seen:
            self._observer = roles.read_role(self._layout, "observer")
            self._seen = seen
        status = self._observer
        return status is not None and status.details.get("closing") is True and roles.lives(status)
