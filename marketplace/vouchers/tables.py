"""Tables of programmes, applications, vouchers, contracts (subscriptions), reservations and leases."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, text
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms

_LIVE_WRITE_OFF = "state IN ('proposed', 'approved')"
_LIVE_TRANCHE = "state IN ('proposed', 'approved')"
_LIVE_REVOCATION = "state IN ('proposed', 'confirmed')"
DROPPED = ("declined", "withdrawn")  # a proposed voucher that came to nothing
NEVER_ISSUED = ("proposed", *DROPPED)
OVER = ("expired", "revoked", "closed")  # nothing is drawn on it any more; what comes back goes on to the pool
LIVE = ("held", "drawing")  # a reservation that a contract may still draw on


def _fen() -> Column:  # type: ignore[type-arg]
    return Column(BigInteger, nullable=False)


class Programme(SQLModel, table=True):
    """A voucher programme: one versioned data file, activated. `document` is the file as activated."""

    __tablename__ = "programme"
    id: str = Field(primary_key=True)
    code: str = Field(index=True)  # dongguan-model-2025, dongguan-compute-2025, demo-…
    version: int = 1
    title_zh: str
    title_en: str
    state: str = Field(default="draft", index=True)  # draft | active | frozen | closed | audited
    document: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    is_demo: bool = False
    activated_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms)


class Application(SQLModel, table=True):
    __tablename__ = "application"
    id: str = Field(primary_key=True)
    programme_id: str = Field(foreign_key="programme.id", index=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    state: str = Field(default="draft", index=True)
    requested_fen: int = Field(sa_column=_fen())
    purpose: str = ""
    evidence: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    checks: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    decided_by: str = ""
    note: str = ""
    created_at_ms: int = Field(default_factory=now_ms)
    submitted_by: str = ""
    public_notice_at_ms: int | None = None  # when the public notice began
    notice_paused_days: int = 0  # calendar days that objections stopped it
    objected_at_ms: int | None = None  # when the standing objection came in
    # what a supplement was asked for: [{code, at_ms, was}]
    asked: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))


class CheckOverride(SQLModel, table=True):
    """A failed check let pass, for the reason that it failed with. One person proposes, another approves."""

    __tablename__ = "check_override"
    id: str = Field(primary_key=True)
    application_id: str = Field(foreign_key="application.id", index=True)
    code: str
    failed_reason: str
    reason: str
    state: str = "proposed"  # proposed | approved | declined
    proposed_by: str
    decided_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms)


class Objection(SQLModel, table=True):
    """What somebody holds against an application on public notice. Name and contact are for operators only."""

    __tablename__ = "objection"
    id: str = Field(primary_key=True)
    application_id: str = Field(foreign_key="application.id", index=True)
    name: str
    contact: str
    reason: str
    state: str = Field(default="open", index=True)  # open | dismissed | upheld | closed (another one was upheld)
    decision: str = ""  # the operator's reason
    decided_by: str = ""
    decided_at_ms: int | None = None
    created_at_ms: int = Field(default_factory=now_ms)


class Voucher(SQLModel, table=True):
    """券. Face value in fen; issue needs two persons: `proposed_by` and `approved_by` differ."""

    __tablename__ = "voucher"
    id: str = Field(primary_key=True)
    application_id: str = Field(foreign_key="application.id", index=True)
    programme_id: str = Field(foreign_key="programme.id", index=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    face_fen: int = Field(sa_column=_fen())
    # proposed | declined | withdrawn | active | exhausted | expired | suspended | revoked | closed
    state: str = Field(default="proposed", index=True)
    use_by: str  # ISO day, Asia/Shanghai
    redeem_by: str = ""
    priority: int = 100
    proposed_by: str = ""
    approved_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms)
    issued_at_ms: int | None = None
    tranche: str = ""  # of the programme's pool
    cap_code: str = ""  # the C.ent counter that holds the face value
    pool_code: str = Field(default="", sa_column_kwargs={"server_default": ""})  # the C.pool counter that holds it
    returned_fen: int = Field(default=0, sa_column=_fen())  # went back to the pool (P8)
    state_before: str = ""  # what a suspension interrupted; of a closed one, how it ended


class TrancheApproval(SQLModel, table=True):
    """A tranche with `own_approval`, released by two persons. At most one proposed or approved for each of a version;
    what was approved holds for later versions, up to its `fen`."""

    __tablename__ = "tranche_approval"
    __table_args__ = (
        Index(
            "tranche_approval_live", "programme_id", "tranche", unique=True,
            sqlite_where=text(_LIVE_TRANCHE), postgresql_where=text(_LIVE_TRANCHE),
        ),
    )  # fmt: skip
    id: str = Field(primary_key=True)
    programme_id: str = Field(foreign_key="programme.id", index=True)
    tranche: str
    fen: int = Field(sa_column=_fen())  # the tranche's amount in the file, as proposed
    state: str = "proposed"  # proposed | approved | declined | withdrawn
    proposed_by: str
    decided_by: str = ""
    note: str = ""  # why it was declined or withdrawn
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())
    decided_at_ms: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))


class Revocation(SQLModel, table=True):
    """A voucher to be taken away, by two persons. At most one proposed or confirmed for each voucher."""

    __tablename__ = "revocation"
    __table_args__ = (
        Index(
            "revocation_live", "voucher_id", unique=True,
            sqlite_where=text(_LIVE_REVOCATION), postgresql_where=text(_LIVE_REVOCATION),
        ),
    )  # fmt: skip
    id: str = Field(primary_key=True)
    voucher_id: str = Field(foreign_key="voucher.id", index=True)
    state: str = "proposed"  # proposed | confirmed | declined | withdrawn
    reason: str
    proposed_by: str
    decided_by: str = ""
    note: str = ""  # why it was declined or withdrawn
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_fen())
    decided_at_ms: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))


class Subscription(SQLModel, table=True):
    """A contract: an enterprise takes a listing (and derivatives of it) at its published price."""

    __tablename__ = "subscription"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    listing_id: str = Field(foreign_key="listing.id", index=True)
    provider_id: str = Field(foreign_key="organisation.id")
    contract_fen: int = Field(default=0, sa_column=_fen())  # gross it foresees; the reservation is ≤ ratio × this
    on_voucher_end: str = "refuse"  # refuse | self_pay
    monthly_cap_fen: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))  # own cost per month
    state: str = Field(default="active", index=True)  # active | ended
    created_at_ms: int = Field(default_factory=now_ms)
    ended_at_ms: int | None = None


class OtherSubsidy(SQLModel, table=True):
    """Other public money on a contract, as its enterprise declares it. Never changed; withdrawn by an operator."""

    __tablename__ = "other_subsidy"
    id: str = Field(primary_key=True)
    subscription_id: str = Field(foreign_key="subscription.id", index=True)
    organisation_id: str = Field(index=True)
    programme: str
    authority: str
    amount_fen: int = Field(sa_column=_fen())
    declared_by: str
    created_at_ms: int = Field(default_factory=now_ms)
    withdrawn_by: str = ""
    withdrawn_at_ms: int | None = None
    withdrawal: str = ""  # why


class Reservation(SQLModel, table=True):
    """Entitlement set aside from one voucher for one subscription. Cumulative micro amounts carry the rounding."""

    __tablename__ = "reservation"
    id: str = Field(primary_key=True)
    voucher_id: str = Field(foreign_key="voucher.id", index=True)
    subscription_id: str = Field(foreign_key="subscription.id", index=True)
    provider_id: str
    amount_fen: int = Field(sa_column=_fen())
    ratio_num: int
    ratio_den: int
    state: str = Field(default="held", index=True)  # proposed | held | drawing | released | completed | expired
    cum_gross_micro: int = Field(default=0, sa_column=_fen())
    cum_eligible_micro: int = Field(default=0, sa_column=_fen())
    posted_gross_fen: int = Field(default=0, sa_column=_fen())
    posted_subsidy_fen: int = Field(default=0, sa_column=_fen())
    released_fen: int = Field(default=0, sa_column=_fen())  # went back to the voucher (P7)
    created_at_ms: int = Field(default_factory=now_ms)


class LeaseRow(SQLModel, table=True):
    """What the market knows of a lease it gave to a serving node. Wire form: serving.metering.Lease."""

    __tablename__ = "lease"
    id: str = Field(primary_key=True)
    node: str = Field(index=True)
    epoch: int
    kind: str  # subsidised | self_pay | free
    organisation_id: str = Field(index=True)
    subscription_id: str = Field(default="", index=True)
    reservation_id: str = Field(default="", index=True)
    granted_fen: int = Field(default=0, sa_column=_fen())  # voucher entitlement moved into Q.lease so far
    credit_micro: int = Field(default=0, sa_column=_fen())  # own cost granted so far
    eligible_micro: int = Field(default=0, sa_column=_fen())  # gross ingested that the voucher pays its share of
    own_micro: int = Field(default=0, sa_column=_fen())  # the enterprise's own cost ingested
    returned_fen: int = Field(default=0, sa_column=_fen())  # went back to the reservation (P6)
    state: str = Field(default="open", index=True)  # open | draining | sealed | settled
    prices: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    opened_at_ms: int = Field(default_factory=now_ms)
    expires_at_ms: int


class NodeEpoch(SQLModel, table=True):
    """Fencing: a node's journal of an epoch is accepted only while it is the node's newest or until it is sealed."""

    __tablename__ = "node_epoch"
    node: str = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    state: str = "open"  # open | written_off (two persons, its journal away) | late (that has turned up) | sealed
    last_seq: int = Field(default=0, sa_column=_fen())  # ingested up to here
    offset_bytes: int = Field(default=0, sa_column=_fen())
    sha256: str = ""
    torn_tail: bool = False
    # what the node's clock is off the market's, where that is more than is allowed; 0 where it is not
    skew_ms: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    opened_at_ms: int = Field(default_factory=now_ms)


class EpochWriteOff(SQLModel, table=True):
    """The leases of a lost node's epoch given back without its journal: `proposed_by` and `decided_by` differ.

    `leases`: lease → {granted_fen, eligible_micro, exposed_fen, restored_fen}: what was ingested under it by then, what
    its node may have used beyond that, and what of it was set aside again when the journal turned up after all.
    """

    __tablename__ = "epoch_write_off"
    __table_args__ = (
        Index(
            "epoch_write_off_live", "node", "epoch", unique=True,
            sqlite_where=text(_LIVE_WRITE_OFF), postgresql_where=text(_LIVE_WRITE_OFF),
        ),
    )  # fmt: skip
    id: str = Field(primary_key=True)
    node: str
    epoch: int
    state: str = "proposed"  # proposed | declined | recovered (the journal came first) | approved | turned_up
    reason: str
    proposed_by: str
    decided_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms)
    decided_at_ms: int | None = None
    last_seq: int = Field(default=0, sa_column=_fen())  # ingested up to here when it was approved
    released_fen: int = Field(default=0, sa_column=_fen())  # went back to its reservations at the approval
    leases: dict[str, dict[str, int]] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    turned_up_at_ms: int | None = None
    late_records: int = 0
    late_quarantined: int = 0  # of them not covered by anything any more: charged to nobody
