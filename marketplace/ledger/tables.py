"""The double-entry ledger. Transfers and entries are append-only (triggers refuse UPDATE and DELETE); an account's
balance is derived from its entries, kept beside them under a CHECK, and rebuilt by replay every night."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, String
from sqlmodel import Field, SQLModel

import marketplace.ledger.guards  # noqa: F401  (creating the tables installs the append-only triggers)
from marketplace.clock import now_ms

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER


class LedgerAccount(SQLModel, table=True):
    """`code` such as Q.avail[vch_…] or M.pay.provider[org_…]. `floor_zero` accounts may never go below 0."""

    __tablename__ = "ledger_account"
    __table_args__ = (CheckConstraint("floor_zero = 0 OR balance_fen >= 0", name="balance_never_below_zero"),)
    code: str = Field(primary_key=True)
    ledger: str = Field(index=True)  # Q | M
    floor_zero: int = 1
    balance_fen: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))


class LedgerTransfer(SQLModel, table=True):
    """One event's posting. `event_key` is unique: posting the same event twice is refused by the database."""

    __tablename__ = "ledger_transfer"
    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    kind: str = Field(index=True)  # P1 … P14
    event_key: str = Field(unique=True)
    occurred_at_ms: int = Field(sa_column=Column(BigInteger, nullable=False))
    # a day's leaves are found by it
    posted_at_ms: int = Field(default_factory=now_ms, sa_column=Column(BigInteger, nullable=False, index=True))
    memo: str = ""


class LedgerEntry(SQLModel, table=True):
    __tablename__ = "ledger_entry"
    __table_args__ = (Index("ledger_entry_account", "account"),)
    transfer_id: int = Field(sa_column=Column(_BIG_ID, ForeignKey("ledger_transfer.id"), primary_key=True))
    line: int = Field(primary_key=True)
    account: str = Field(sa_column=Column(String, ForeignKey("ledger_account.code"), nullable=False))
    amount_fen: int = Field(sa_column=Column(BigInteger, nullable=False))


class CapCounter(SQLModel, table=True):
    """C.ent[p,e,period], C.contract[c], C.pool[p,tranche]; p is a programme's code, whatever the version."""

    __tablename__ = "cap_counter"
    __table_args__ = (
        CheckConstraint("used_fen + held_fen <= limit_fen", name="cap_holds"),
        CheckConstraint("used_fen >= 0 AND held_fen >= 0", name="cap_never_negative"),
    )
    code: str = Field(primary_key=True)
    limit_fen: int = Field(sa_column=Column(BigInteger, nullable=False))
    used_fen: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    held_fen: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
