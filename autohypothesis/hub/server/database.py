"""The hub's tables: SQLAlchemy core, so that another database can follow; SQLite for now.

Reads see the last commit and wait for no writer. Writes are one at a time, and begin with the lock
that they need, so that no transaction fails half-way for want of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    text,
)
from sqlalchemy.exc import OperationalError

from autohypothesis.hub.server.refusals import HubRefusalError, disk_full

Row = dict[str, Any]

BUSY_S = 8.0
"""Seconds that a write waits for another one. Some clients give up after ten."""

metadata = MetaData()


def _number() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _texts(**sizes: int | None) -> Iterator[Column[str]]:
    """Text columns that are never null, with their largest number of characters; None: any."""
    for name, size in sizes.items():
        yield Column(name, String(size) if size else Text(), nullable=False)


agents = Table(
    "agents",
    metadata,
    Column("id", String(63), primary_key=True),
    *_texts(role=8),
    Column("key_hash", String(64), nullable=False, unique=True),
    *_texts(created_at=32),
    Column("revoked_at", String(32)),
)
attempts = Table(
    "attempts",
    metadata,
    _number(),
    *_texts(kind=16, who=80),
    Column("at", Float, nullable=False),
    Index("attempts_of", "kind", "who", "at"),
    Index("attempts_at", "at"),
)
commits = Table(
    "commits",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    *_texts(parent_hash=64, agent_id=63, message=None, created_at=32),
    Column("leaf", Boolean, nullable=False),
    Index("commits_of", "agent_id", "number"),
    Index("commits_leaf", "leaf", "number"),
)
parents = Table(
    "parents",
    metadata,
    Column("child", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("parent", String(64), nullable=False, index=True),
)
pushes = Table(
    "pushes",
    metadata,
    Column("id", String(32), primary_key=True),
    *_texts(agent_id=63, created_at=32),
)
channels = Table(
    "channels",
    metadata,
    _number(),
    Column("name", String(31), nullable=False, unique=True),
    *_texts(description=None, created_at=32),
)
posts = Table(
    "posts",
    metadata,
    _number(),
    Column("channel_id", ForeignKey("channels.id"), nullable=False),
    *_texts(agent_id=63),
    Column("parent_id", ForeignKey("posts.id"), index=True),
    *_texts(content=None, created_at=32),
    Index("posts_in", "channel_id", "id"),
)
tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", String(64), primary_key=True),
    Column("name", String(120), nullable=False, unique=True),
    *_texts(metric=80, direction=8),
    Column("min_delta", Float, nullable=False),
    *_texts(baseline=64, agent_id=63, created_at=32),
)
task_data = Table(
    "task_data",
    metadata,
    Column("task_hash", ForeignKey("tasks.task_hash"), primary_key=True),
    Column("profile", String(80), primary_key=True),
    *_texts(data_hash=200),
)
results = Table(
    "results",
    metadata,
    _number(),
    *_texts(agent_id=63, name=120, source=8),
    Column("post_id", ForeignKey("posts.id")),
    *_texts(created_at=32, commit=64, platform=63, platform_key=64, task_hash=64, metric=80),
    Column("value", Float),
    *_texts(status=16, confirmation=16),
    Column("seed", BigInteger),
    Column("budget_seconds", Float),
    Column("steps", BigInteger),
    Column("memory_gb", Float),
    *_texts(log_hash=64, tree=64, description=None, reason=None),
    Column("verifies", ForeignKey("results.id")),
    Column("verdict", String(16)),
    Column("standing", Integer, nullable=False),
    Column("reproduced", Integer, nullable=False),
    Column("refuted", Integer, nullable=False),
    Column("ranked", Boolean, nullable=False),
    Column("score", Float),
    Index("results_name", "agent_id", "name", unique=True),
    Index("results_of", "agent_id", "id"),
    Index("results_commit_of", "agent_id", "commit"),
    Index("results_commit", "commit"),
    Index("results_tree", "tree", "platform_key", "task_hash"),
    Index("results_key", "platform_key", "id"),
    Index("results_task", "task_hash", "id"),
    Index("results_platform", "platform", "id"),
    Index("results_status", "status", "id"),
    Index("results_standing", "standing", "id"),
    Index("results_verifies", "verifies", "id"),
    Index(
        "results_board",
        "ranked", "platform", "platform_key", "task_hash", "metric", "standing", "score", "id",
    ),
)  # fmt: skip
"""`standing`, `reproduced`, `refuted`, `ranked` and `score` follow from the rest (`results.py`).

They are stored so that a board or a state is read from an index. `score` is the value with its sign
turned where the task maximizes: less is better.
"""
claims = Table(
    "claims",
    metadata,
    _number(),
    *_texts(platform_key=64, task_hash=64, tree=64, title=None),
    *_texts(agent_id=63, created_at=32, expires_at=32, state=8),
    Column("result", ForeignKey("results.id")),
    Index("claims_of", "agent_id", "id"),
    Index("claims_held", "state", "expires_at"),
    sqlite_autoincrement=True,  # the number of a claim that was given back is never used again
)
Index(
    "claims_key",
    claims.c.platform_key, claims.c.task_hash, claims.c.tree,
    unique=True,
    sqlite_where=text("state = 'held'"),
    postgresql_where=text("state = 'held'"),
)  # fmt: skip
bests = Table(
    "bests",
    metadata,
    _number(),
    *_texts(platform_key=64, task_hash=64),
    Column("result", ForeignKey("results.id"), nullable=False),
    *_texts(since=32),
    Index("bests_of", "platform_key", "task_hash", "id"),
)
"""Every best there was, in order: a refuted one gives way to the one before."""


def now() -> datetime:
    return datetime.now(timezone.utc)


def written(moment: datetime) -> str:
    """RFC 3339, UTC, to the microsecond: the earlier of two is also the smaller text."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """Parse a time that `written` made."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def stamp(later: int = 0) -> str:
    """Now plus `later` microseconds, `written`."""
    return written(now() + timedelta(microseconds=later))


def rows_of(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]


def row_of(connection: Connection, query: Select[Any]) -> Row | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def narrowed(query: Select[Any], wanted: object, **columns: ColumnElement[Any]) -> Select[Any]:
    """`query` with a condition for each of `columns` whose attribute of `wanted` is not None."""
    for name, column in columns.items():
        if (value := getattr(wanted, name)) is not None:
            query = query.where(column == value)
    return query


def inserted(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """The number of a new row."""
    key = connection.execute(insert(table).values(row)).inserted_primary_key
    assert key is not None  # SQLite tells the number of a row that it stored
    return int(key[0])


class Database:
    """The tables of one hub. Opening it makes what is missing."""

    def __init__(self, path: Path) -> None:
        self._readers = _engine(path, "BEGIN", connections=64)
        self._writer = _engine(path, "BEGIN IMMEDIATE", connections=1)
        self._turn = threading.Lock()
        with self.write() as connection:
            metadata.create_all(connection)
        path.chmod(0o600)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _refusals(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, or rolled back as a whole."""
        if not self._turn.acquire(timeout=BUSY_S):
            raise _busy()
        try:
            with _refusals(), self._writer.begin() as connection:
                yield connection
        finally:
            self._turn.release()

    def rows(self, query: Select[Any]) -> list[Row]:
        with self.read() as connection:
            return rows_of(connection, query)

    def row(self, query: Select[Any]) -> Row | None:
        """The first row of `query`; None: it has none."""
        with self.read() as connection:
            return row_of(connection, query)

    def scalar(self, query: Select[Any]) -> Any:
        """The one value that `query` gives."""
        with self.read() as connection:
            return connection.execute(query).scalar_one()

    def scalars(self, query: Select[Any]) -> list[Any]:
        with self.read() as connection:
            return list(connection.execute(query).scalars())

    def close(self) -> None:
        self._readers.dispose()
        self._writer.dispose()


def _engine(path: Path, begin: str, connections: int) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", pool_size=connections, max_overflow=0, pool_timeout=BUSY_S,
        connect_args={"timeout": BUSY_S},
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin as we say, not as the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn a lock that does not come free and a full disk into refusals."""
    try:
        yield
    except OperationalError as error:
        reason = str(error.orig)
        if "locked" in reason or "busy" in reason:
            raise _busy() from error
        if "full" in reason:
            raise disk_full() from error
        raise


def _busy() -> HubRefusalError:
    return HubRefusalError(
        503, f"the hub's database was busy for {BUSY_S:g} s; nothing was stored", wait=5
    )
