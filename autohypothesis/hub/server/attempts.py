"""Hourly limits. Attempts count, not successes, and they are counted on disk."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Iterable

from sqlalchemy import delete, func, insert, select

from autohypothesis.hub.server.database import Database, attempts
from autohypothesis.hub.server.refusals import RefusedError

HOUR_S = 3600.0


def count(database: Database, kind: str, whose: Iterable[tuple[str, int]]) -> None:
    """Count one attempt at `kind` for each of `whose`, names with their limits.

    What is refused here is not counted: whoever waits gets through, and the table stays small.

    Raises:
        RefusedError: 429, one of them has made all its attempts of the last hour.
    """
    now = time.time()
    with database.write() as connection:
        connection.execute(delete(attempts).where(attempts.c.at <= now - HOUR_S))
        for who, most in whose:
            mine = (attempts.c.kind == kind) & (attempts.c.who == who)
            made, first = connection.execute(
                select(func.count(), func.min(attempts.c.at)).where(mine)
            ).one()
            if made >= most:
                raise _too_many(kind, most, who, (first or now) + HOUR_S - now)
            connection.execute(insert(attempts).values(kind=kind, who=who, at=now))


def _too_many(kind: str, most: int, who: str, wait: float) -> RefusedError:
    seconds = max(1, math.ceil(wait))
    return RefusedError(
        429,
        f"too many attempts: {who} may make {most} of kind {kind!r} an hour",
        hint=f"try again in {seconds} s",
        wait=seconds,
    )


def agent(name: str) -> str:
    return f"agent {name}"


def address(value: str) -> str:
    """What is counted as one address: whoever has one IPv6 address has 2^64 of them."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        return f"address {value[:60]}"
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        parsed = mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
    return f"address {parsed}"
