"""Claims: batches and their lines, what each line claims, invoices, corrections and clawbacks."""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


def _fen() -> Column:  # type: ignore[type-arg]
    return Column(BigInteger, nullable=False)


_HAS_PAYMENT = "payment_key IS NOT NULL"


class ClaimBatch(SQLModel, table=True):
    """What is claimed from the government for one programme and period. Frozen once, under the hash of its document."""

    __tablename__ = "claim_batch"
    __table_args__ = (
        CheckConstraint("total_fen >= 0", name="batch_never_negative"),
        Index(
            "claim_payment_once", "payment_key", unique=True,
            sqlite_where=text(_HAS_PAYMENT), postgresql_where=text(_HAS_PAYMENT),
        ),
    )  # fmt: skip
    id: str = Field(primary_key=True)
    programme_id: str = Field(foreign_key="programme.id", index=True)
    from_day: str  # ISO days in Asia/Shanghai, both counted
    to_day: str
    state: str = Field(default="assembling", index=True)
    total_fen: int = Field(default=0, sa_column=_fen())  # of lines that stand
    sha256: str = ""  # of the frozen document, which is kept as a blob under it
    created_by: str = ""
    frozen_by: str = ""
    frozen_at_ms: int | None = None
    notice_at_ms: int | None = None
    approved_by: str = ""
    payment_by: str = ""  # who entered the payment; another one confirms it
    payment: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    payment_key: str | None = None  # its reference as it is compared, while the payment stands: no other batch's
    paid_by: str = ""
    paid_at_ms: int | None = None
    note: str = ""
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())


class ClaimLine(SQLModel, table=True):
    """What one reservation adds to a batch. Charged usage is claimed by whole transfers (`ClaimedTransfer`)."""

    __tablename__ = "claim_line"
    __table_args__ = (CheckConstraint("subsidy_fen > 0 AND clawed_fen >= 0", name="line_is_positive"),)
    id: str = Field(primary_key=True)
    batch_id: str = Field(foreign_key="claim_batch.id", index=True)
    reservation_id: str = Field(foreign_key="reservation.id", index=True)
    voucher_id: str = Field(foreign_key="voucher.id", index=True)
    subscription_id: str
    organisation_id: str = Field(index=True)
    provider_id: str
    gross_fen: int = Field(sa_column=_fen())
    subsidy_fen: int = Field(sa_column=_fen())
    clawed_fen: int = Field(default=0, sa_column=_fen())
    usage_count: int = 0
    usage_sha256: str = ""  # over its usage ids and amounts
    state: str = Field(default="in_batch", index=True)  # in_batch | accepted | returned | rejected
    reason: str = ""


class ClaimedTransfer(SQLModel, table=True):
    """A charge (P5) or correction (P13) that stands in a line. The key is the rule: none is claimed twice at a time."""

    __tablename__ = "claimed_transfer"
    transfer_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    line_id: str = Field(foreign_key="claim_line.id", index=True)


class Invoice(SQLModel, table=True):
    """An invoice of a provider to an enterprise for one contract."""

    __tablename__ = "invoice"
    __table_args__ = (UniqueConstraint("number", "subscription_id", name="invoice_once_a_contract"),)
    id: str = Field(primary_key=True)
    number: str = Field(index=True)
    subscription_id: str = Field(foreign_key="subscription.id", index=True)
    organisation_id: str = Field(index=True)
    provider_id: str
    amount_fen: int = Field(sa_column=_fen())
    issued_on: str  # ISO day
    sha256: str = ""  # the file, kept as a blob; "": none was handed in
    entered_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())


class InvoiceBacking(SQLModel, table=True):
    """How much of an invoice backs a claimed line. Freed when the line comes back, kept when it is rejected."""

    __tablename__ = "invoice_backing"
    __table_args__ = (CheckConstraint("amount_fen > 0", name="backing_is_positive"),)
    invoice_id: str = Field(primary_key=True, foreign_key="invoice.id")
    line_id: str = Field(primary_key=True, foreign_key="claim_line.id", index=True)
    amount_fen: int = Field(sa_column=_fen())


class Correction(SQLModel, table=True):
    """One usage record that should not have been charged. Proposed by one person, posted (P13) by another."""

    __tablename__ = "correction"
    id: str = Field(primary_key=True)
    usage_id: str = Field(unique=True)  # a record is taken back once
    organisation_id: str = Field(index=True)
    state: str = Field(default="proposed", index=True)  # proposed | posted | declined
    reason: str
    proposed_by: str
    decided_by: str = ""
    gross_fen: int = Field(default=0, sa_column=_fen())
    subsidy_fen: int = Field(default=0, sa_column=_fen())
    transfer_id: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())


class Clawback(SQLModel, table=True):
    """Money that was paid for a line without right."""

    __tablename__ = "clawback"
    id: str = Field(primary_key=True)
    line_id: str = Field(foreign_key="claim_line.id", index=True)
    organisation_id: str = Field(index=True)
    amount_fen: int = Field(sa_column=_fen())
    state: str = Field(default="opened", index=True)  # opened | confirmed | demanded | recovered | written_off
    reason: str
    opened_by: str
    confirmed_by: str = ""
    ended_by: str = ""
    write_off_by: str = ""  # who proposed to write it off; another one does it
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())
