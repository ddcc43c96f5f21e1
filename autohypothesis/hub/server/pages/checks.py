"""What each check of a result found, for the tables of pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from autohypothesis.hub.server.database import Database, results

Row = dict[str, Any]


def judged(database: Database, rows: Sequence[Row]) -> list[Row]:
    """`rows` of results, each with its `verdict`: None where it is no check of another one."""
    numbers = [row["id"] for row in rows if row["verifies"] is not None]
    query = select(results.c.id, results.c.verdict).where(results.c.id.in_(numbers))
    with database.read() as connection:
        found = {row.id: row.verdict for row in connection.execute(query)}
    return [{**row, "verdict": found.get(row["id"])} for row in rows]
