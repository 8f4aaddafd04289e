"""What proves the ledger: the root of each day, the hashes of the journals that usage came from, the nightly checks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Integer
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER


class DayRoot(SQLModel, table=True):
    """`root` over the transfers posted on that day (Asia/Shanghai), by id, and from layout 2 on the journal segments
    recorded on it; `chain` binds it to all days before."""

    __tablename__ = "day_root"
    day: str = Field(primary_key=True)  # ISO
    transfers: int
    root: str
    chain: str
    closed_at_ms: int = Field(default_factory=now_ms, sa_column=Column(BigInteger, nullable=False))
    layout: int = Field(default=1, sa_column=Column(BigInteger, nullable=False, server_default="1"))
    segments: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))


class JournalSegment(SQLModel, table=True):
    """The first `bytes` bytes of a journal, by their SHA-256: all of a sealed one, or what an open one held when a day
    was closed (`prefix`). Append-only. `recorded_at_ms` says in which day's tree it is a leaf."""

    __tablename__ = "journal_segment"
    node: str = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    kind: str = Field(primary_key=True)  # sealed | prefix
    bytes: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    first_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    count: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: str
    recorded_at_ms: int = Field(default_factory=now_ms, sa_column=Column(BigInteger, nullable=False, index=True))


class LedgerCheck(SQLModel, table=True):
    """One rebuild of every balance and cap counter from the entries, held against those that are kept, and of what was
    charged from the usage. Append-only.

    `sha256` is that of the rebuilt state, `kept_sha256` that of the kept one; `wrong` shows the first differences.
    """

    __tablename__ = "ledger_check"
    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    at_ms: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    sound: bool
    transfers: int
    entries: int
    accounts: int
    caps: int
    last_transfer: int
    sha256: str
    kept_sha256: str
    wrong_count: int
    wrong: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    took_ms: int
