"""Every table, imported in one place so that metadata, migrations and tests see the same schema."""

from sqlalchemy import BigInteger, Integer
from sqlmodel import SQLModel

from marketplace.adapting.tables import Job
from marketplace.catalogue.tables import (
    Alias,
    Filing,
    Listing,
    ModelVersion,
    PriceVersion,
    Publication,
)
from marketplace.choosing.tables import Choice, SampleSet
from marketplace.claims.tables import (
    ClaimBatch,
    ClaimedTransfer,
    ClaimLine,
    Clawback,
    Correction,
    Invoice,
    InvoiceBacking,
)
from marketplace.evidence.tables import EvidenceFile
from marketplace.findings.tables import Finding, FindingContract, FindingDisposition, FindingSighting
from marketplace.integrity.tables import DayRoot, JournalSegment, LedgerCheck
from marketplace.keys.tables import ApiKey
from marketplace.ledger.tables import CapCounter, LedgerAccount, LedgerEntry, LedgerTransfer
from marketplace.nodes.tables import ServingNode
from marketplace.organisations.tables import AuditEvent, Member, Notice, OneTimeToken, Organisation, WebSession
from marketplace.review.tables import Review
from marketplace.usage.tables import SelfPayMeter, TrialCount, Usage
from marketplace.vouchers.tables import (
    Application,
    CheckOverride,
    EpochWriteOff,
    LeaseRow,
    NodeEpoch,
    Objection,
    OtherSubsidy,
    Programme,
    Reservation,
    Revocation,
    Subscription,
    TrancheApproval,
    Voucher,
)

__all__ = [
    "Alias", "ApiKey", "Application", "AuditEvent", "CapCounter", "CheckOverride", "Choice", "ClaimBatch", "ClaimLine",
    "ClaimedTransfer", "Clawback", "Correction", "DayRoot", "EpochWriteOff", "EvidenceFile", "Filing",
    "Finding", "FindingContract", "FindingDisposition", "FindingSighting", "Invoice",
    "InvoiceBacking", "Job", "JournalSegment", "LeaseRow", "LedgerAccount", "LedgerCheck", "LedgerEntry",
    "LedgerTransfer", "Listing", "Member", "ModelVersion", "NodeEpoch", "Notice", "Objection", "OneTimeToken",
    "Organisation", "OtherSubsidy", "PriceVersion", "Programme", "Publication", "Reservation", "Review",
    "Revocation", "SampleSet", "SelfPayMeter", "ServingNode", "Subscription", "TrancheApproval", "TrialCount", "Usage",
    "Voucher", "WebSession",
]  # fmt: skip

# SQLModel maps int to a 32-bit INTEGER, which PostgreSQL takes at its word: an instant in milliseconds needs 64 bits.
for _table in SQLModel.metadata.tables.values():
    for _column in _table.columns:
        if type(_column.type) is Integer and not _column.primary_key:
            _column.type = BigInteger()
