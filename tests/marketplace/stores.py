"""A fresh market database on either store, for tests that must say the same on both.

A module says `def pytest_generate_tests(metafunc): on_both_stores(metafunc)`: whatever uses the fixture `engine` there
runs on SQLite and on a real PostgreSQL. That is one throw-away server for the whole session with one database, made by
the migrations and emptied between two tests, which takes a few hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, inspect, text

from marketplace.db import open_database
from marketplace.migrations.upgrade import upgrade
from tests.postgres import postgres_server

STORES = ("sqlite", "postgresql")


def on_both_stores(metafunc: pytest.Metafunc, *, only_sqlite: tuple[str, ...] = ()) -> None:
    """`only_sqlite`: tests, and fixtures whose tests are about what was written, not about where it is kept."""
    if "engine" in metafunc.fixturenames:
        spared = set(only_sqlite) & {metafunc.function.__name__, *metafunc.fixturenames}
        metafunc.parametrize("engine", STORES[:1] if spared else STORES, indirect=True)


class PostgresMarket:
    """A market's database on a server of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        engine = self.empty()
        upgrade(engine)  # as a market does: the migrations, guards and all
        engine.dispose()

    def empty(self) -> Engine:
        """An engine on it, without a row in it."""
        engine = open_database(self._url)
        tables = [name for name in inspect(engine).get_table_names() if name != "alembic_version"]
        clear = [f'DELETE FROM "{name}"' for name in tables]
        unguarded(engine, *clear, *(f"ALTER SEQUENCE {name} RESTART" for name in inspect(engine).get_sequence_names()))
        return engine


def postgres_market() -> Iterator[PostgresMarket]:
    """Skips where PostgreSQL is not installed."""
    for url in postgres_server():
        yield PostgresMarket(url)


def unguarded(engine: Engine, *statements: str) -> None:
    """Change what the triggers protect, as whoever owns the database could."""
    on_postgres = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        if on_postgres:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers in this transaction
        else:
            for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(text(statement))
