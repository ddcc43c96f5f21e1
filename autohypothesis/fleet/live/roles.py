"""How the observer, the tool-builder and the supervisor stand: `research/live/<role>.json`.

Each role writes its own file, and only that one. Who reads it trusts nothing: a damaged file is as
good as none, and a role lives when its process does, however old the file is.
"""

from __future__ import annotations

from typing import Any

from autohypothesis.records.files import load_or_none, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.processes import Process
from autohypothesis.schema import RoleStatus, now
from autohypothesis.system import host_name

LIMIT = 256 * 1024
"""Bytes of a role's file."""


def own(role: str, **fields: Any) -> RoleStatus:
    """The status of this process in `role`; what is not given is empty."""
    me = Process.own()
    said = {"started_at": now(), "updated_at": now(), **fields}
    return RoleStatus(role=role, node_id=me.host, pid=me.pid, process_start=me.start, **said)


def report(layout: Layout, status: RoleStatus, *, durable: bool = False) -> None:
    """Writes it down, dated now. A power cut may lose it; it is made again within seconds.

    Args:
        durable: it is not made again, so no power cut may.

    Raises:
        RecordError: the disk is full.
    """
    dated = status.model_copy(update={"updated_at": now()})
    write_json(layout.role(status.role), dated, durable=durable)


def read_role(layout: Layout, name: str) -> RoleStatus | None:
    """What the role `name` last said; None when it never did, or its file is damaged."""
    return load_or_none(RoleStatus, layout.role(name), LIMIT)


def lives(status: RoleStatus) -> bool:
    """Whether the process that wrote it is still there."""
    if status.pid is None or status.pid <= 0 or status.process_start is None:
        return False
    return Process(status.pid, status.process_start, status.node_id or host_name()).lives()
