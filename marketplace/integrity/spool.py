"""Rows that are sorted and looked up on disk, so that memory does not grow with them: a SQLite file of one's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CACHE_KIB = 8_192


@contextmanager
def spool(folder: Path, *tables: str) -> Iterator[sqlite3.Connection]:
    """A throw-away database in `folder` with these tables: nothing in it outlives the block, nor is it ever committed.

    Text compares byte by byte, as Python's does: the order is the same whatever the market's own database is.
    """
    path = folder / "spool.db"
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{_CACHE_KIB}"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        for table in tables:
            database.execute(table)
        yield database
    finally:
        database.close()
        path.unlink(missing_ok=True)
