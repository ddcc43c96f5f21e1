"""A second machine on the same research/: refused by name, since nobody can see who lives there."""

from __future__ import annotations

import pytest

from autohypothesis.errors import FleetError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.presence import refuse_another_machine
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Heartbeat, now
from autohypothesis.system import host_name


def beat(layout: Layout, node: str, state: str) -> None:
    one = Heartbeat(worker_id="gpu0", node_id=node, state=state, updated_at=now(), pid=1)
    assert presence.write_heartbeat(layout, one)


@pytest.mark.parametrize("role", ["observer", "supervisor", "tool-builder"])
def test_a_role_on_another_machine_is_named(layout: Layout, role: str) -> None:
    elsewhere = presence.own_status(role, state="working").model_copy(update={"node_id": "rack-7"})
    presence.write_role(layout, elsewhere)
    with pytest.raises(FleetError, match="rack-7") as refused:
        refuse_another_machine(layout)
    assert str(layout.live) in refused.value.hint
    presence.write_role(layout, elsewhere.model_copy(update={"state": "stopped"}))
    refuse_another_machine(layout)


def test_a_worker_on_another_machine_is_named_until_it_has_left(layout: Layout) -> None:
    beat(layout, "rack-7", "training")
    with pytest.raises(FleetError, match="gpu0 of another machine, rack-7"):
        refuse_another_machine(layout)
    beat(layout, "rack-7", "stopped")
    refuse_another_machine(layout)


def test_our_own_machine_and_an_old_file_without_a_name_are_no_strangers(layout: Layout) -> None:
    beat(layout, host_name(), "training")
    refuse_another_machine(layout)
    beat(layout, "", "training")
    refuse_another_machine(layout)
