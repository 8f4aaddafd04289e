"""Fixtures shared by every test: an empty database, a market in this process, a client, a market in its own process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from marketplace.db import create_tables, open_database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty SQLite database with every table."""
    engine = open_database(f"sqlite:///{tmp_path / 'market.db'}")
    create_tables(engine)
    yield engine
    engine.dispose()
