"""The database: one engine, transactions at the edge, SQLite (WAL, one writer) or PostgreSQL by URL.

`with transaction(engine) as session:` is the only way to write: it begins (IMMEDIATE on SQLite, so that a writer queues
instead of failing at upgrade), commits at the end and rolls back on any exception. Nothing commits inside it, and no
outbound call happens in it. `with reading(engine) as session:` never writes; nor does `snapshot`, one state throughout.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel, create_engine

import marketplace.tables  # noqa: F401  (registers every table on SQLModel.metadata)

BUSY_TIMEOUT_MS = 30_000
CONTENDED = ("40001", "40P01")  # serialization_failure, deadlock_detected
TRIES = 3
T = TypeVar("T")


def open_database(url: str) -> Engine:
    """An engine with the right settings for its dialect."""
    if not url.startswith("sqlite"):
        return create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1), pool_size=8, pool_pre_ping=True)
    arguments = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}
    pool = {} if ":memory:" in url or url == "sqlite://" else {"pool_size": 16, "max_overflow": 32}
    engine = create_engine(url, connect_args=arguments, **pool)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin for us: we say BEGIN IMMEDIATE below
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """One writing transaction: commits at the end, rolls back on any exception."""
    with (
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
        Session(bind=connection, expire_on_commit=False) as session,
    ):
        yield session
        session.flush()


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    with Session(engine, expire_on_commit=False) as session:
        try:
            yield session
        finally:
            session.expunge_all()  # a rollback expires what the session holds; rows read stay usable after it
            session.rollback()


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """As `reading`, and all of it sees the database as it stood at the first read, whatever is written meanwhile.

    SQLite's transactions do so by themselves; PostgreSQL's only at this level.
    """
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.connect().execution_options(**options) as connection, Session(bind=connection) as session:
        try:
            yield session
        finally:
            session.expunge_all()
            session.rollback()


def is_contended(error: BaseException) -> bool:
    """Whether the database ended a transaction for another writer's sake: nothing of it was kept, and it may be run
    again. PostgreSQL's deadlocks and serialization failures; on SQLite a writer that waited too long."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", "") in CONTENDED or "database is locked" in str(error.orig)


def retried(work: Callable[[], T]) -> T:
    """`work()`, up to three times where `is_contended`. It begins its transaction itself and does nothing beside it
    that would be done twice."""
    for left in reversed(range(TRIES)):
        try:
            return work()
        except DBAPIError as error:
            if not left or not is_contended(error):
                raise
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311  (not in step with whom it met)
    raise AssertionError("the last try answers or raises")


def create_tables(engine: Engine) -> None:
    """All tables on an empty database without migrations: for tests. A market runs Alembic (marketplace.migrations)."""
    SQLModel.metadata.create_all(engine)
