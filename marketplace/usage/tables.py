"""Metered usage as ingested from journals, and the charges posted from it."""

from sqlalchemy import JSON, BigInteger, Column, Index, text
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms

_WAITING = "transfer_id IS NULL AND subscription_id <> '' AND status <> 'quarantined'"


class Usage(SQLModel, table=True):
    """One usage record, at most once for ever: `usage_id` is the primary key."""

    __tablename__ = "usage"
    __table_args__ = (
        Index("usage_org_time", "organisation_id", "occurred_at_ms"),
        # what still waits for a fen to be posted: a handful of rows, found without walking a reservation's millions
        Index("usage_waiting", "subscription_id", sqlite_where=text(_WAITING), postgresql_where=text(_WAITING)),
    )
    usage_id: str = Field(primary_key=True)
    key_id: str
    organisation_id: str
    listing_id: str = Field(default="", index=True)
    model: str  # vendor/name@version
    adapter: str = ""
    price_version: str = ""
    lease_id: str = ""
    lease_kind: str = "free"  # how it was charged: subsidised (the voucher pays its share) | self_pay | free
    subscription_id: str = Field(default="", index=True)
    reservation_id: str = Field(default="", index=True)
    provider_id: str = Field(default="", index=True)
    units: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    amount_micro: int = Field(sa_column=Column(BigInteger, nullable=False))
    occurred_at_ms: int = Field(sa_column=Column(BigInteger, nullable=False))
    status: str = "ok"  # ok | unresolved | quarantined
    purpose: str = "use"
    reason: str = ""  # why it is quarantined; "" otherwise
    request_digest: str = ""
    response_digest: str = ""
    node: str = ""
    epoch: int = 0
    seq: int = 0
    transfer_id: int | None = Field(default=None, index=True)  # the P5 that carries it; None while only micro-fen wait
    ingested_at_ms: int = Field(default_factory=now_ms, sa_column=Column(BigInteger, nullable=False))
    filing_id: str | None = None  # what the model stood under when its lease was made; "": none; None: not recorded


class SelfPayMeter(SQLModel, table=True):
    """Cumulative own cost per subscription, rounded down as a reservation's is; and the month's total for the cap."""

    __tablename__ = "self_pay_meter"
    subscription_id: str = Field(primary_key=True)
    month: str = Field(primary_key=True)  # YYYY-MM in Asia/Shanghai; "" carries the cumulative rounding
    cum_gross_micro: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    posted_gross_fen: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))


class TrialCount(SQLModel, table=True):
    """Free trial runs of an organisation on one policy day."""

    __tablename__ = "trial_count"
    organisation_id: str = Field(primary_key=True)
    day: str = Field(primary_key=True)
    runs: int = 0
