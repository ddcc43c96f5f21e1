"""The database: SQLAlchemy core, so that another can follow; SQLite with one writer for now.

Reads see the last commit and wait for nobody. Writes are one at a time, and begin with the lock
that they need, so that no transaction fails half-way for want of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import OperationalError

from autohypothesis.hub.server.refusals import RefusedError, disk_full

BUSY_S = 8.0
"""How long a write waits for another. Some clients give up after ten."""

metadata = MetaData()

agents = Table(
    "agents",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("role", String(8), nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32)),
)
attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("who", String(80), nullable=False),
    Column("at", Float, nullable=False),
    Index("attempts_of", "kind", "who", "at"),
    Index("attempts_at", "at"),
)
commits = Table(
    "commits",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("parent_hash", String(64), nullable=False),
    Column("agent_id", String(63), nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
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
    Column("agent_id", String(63), nullable=False),
    Column("created_at", String(32), nullable=False),
)
channels = Table(
    "channels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(31), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
)
posts = Table(
    "posts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("channel_id", ForeignKey("channels.id"), nullable=False),
    Column("agent_id", String(63), nullable=False),
    Column("parent_id", ForeignKey("posts.id"), index=True),
    Column("content", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Index("posts_in", "channel_id", "id"),
)
tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", String(64), primary_key=True),
    Column("name", String(120), nullable=False, unique=True),
    Column("metric", String(80), nullable=False),
    Column("direction", String(8), nullable=False),
    Column("min_delta", Float, nullable=False),
    Column("baseline", String(64), nullable=False),
    Column("agent_id", String(63), nullable=False),
    Column("created_at", String(32), nullable=False),
)
task_data = Table(
    "task_data",
    metadata,
    Column("task_hash", ForeignKey("tasks.task_hash"), primary_key=True),
    Column("profile", String(80), primary_key=True),
    Column("data_hash", String(200), nullable=False),
)
results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("agent_id", String(63), nullable=False),
    Column("name", String(120), nullable=False),
    Column("source", String(8), nullable=False),
    Column("post_id", ForeignKey("posts.id")),
    Column("created_at", String(32), nullable=False),
    Column("commit", String(64), nullable=False),
    Column("platform", String(63), nullable=False),
    Column("platform_key", String(64), nullable=False),
    Column("task_hash", String(64), nullable=False),
    Column("metric", String(80), nullable=False),
    Column("value", Float),
    Column("status", String(16), nullable=False),
    Column("confirmation", String(16), nullable=False),
    Column("seed", BigInteger),
    Column("budget_seconds", Float),
    Column("steps", BigInteger),
    Column("memory_gb", Float),
    Column("log_hash", String(64), nullable=False),
    Column("tree", String(64), nullable=False),
    Column("description", Text, nullable=False),
    Column("reason", Text, nullable=False),
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
"""`standing`, `reproduced`, `refuted`, `ranked` and `score` follow from the rest (`verdicts.py`).

They are kept so that a board or a state is read from an index. `score` is the value with its sign
turned where the task maximizes: less is better.
"""
claims = Table(
    "claims",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("platform_key", String(64), nullable=False),
    Column("task_hash", String(64), nullable=False),
    Column("tree", String(64), nullable=False),
    Column("title", Text, nullable=False),
    Column("agent_id", String(63), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
    Column("state", String(8), nullable=False),
    Column("result", ForeignKey("results.id")),
    Index("claims_of", "agent_id", "id"),
    Index("claims_held", "state", "expires_at"),
    sqlite_autoincrement=True,  # the number of one that was given back is never another's
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
    Column("id", Integer, primary_key=True),
    Column("platform_key", String(64), nullable=False),
    Column("task_hash", String(64), nullable=False),
    Column("result", ForeignKey("results.id"), nullable=False),
    Column("since", String(32), nullable=False),
    Index("bests_of", "platform_key", "task_hash", "id"),
)
"""All that ever were the best, in their order: one that is refuted gives way to the one before."""


def now() -> datetime:
    return datetime.now(timezone.utc)


def written(moment: datetime) -> str:
    """RFC 3339, UTC, to the microsecond: the earlier of two is also the smaller text."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def stamp(later: int = 0) -> str:
    """Now, and `later` microseconds on, as it is `written`."""
    return written(now() + timedelta(microseconds=later))


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
        with _in_words(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, or as if it had never been."""
        if not self._turn.acquire(timeout=BUSY_S):
            raise _busy()
        try:
            with _in_words(), self._writer.begin() as connection:
                yield connection
        finally:
            self._turn.release()

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
def _in_words() -> Iterator[None]:
    """A lock that does not come free and a full disk are the hub's trouble, not a mistake of it."""
    try:
        yield
    except OperationalError as error:
        reason = str(error.orig)
        if "locked" in reason or "busy" in reason:
            raise _busy() from error
        if "full" in reason:
            raise disk_full() from error
        raise


def _busy() -> RefusedError:
    return RefusedError(
        503, f"the hub's database was busy for {BUSY_S:g} s; nothing was stored", wait=5
    )
