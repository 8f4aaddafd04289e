"""Every table, imported in one place so that metadata, migrations and tests see the same schema."""

from marketplace.adapting.tables import Job
from marketplace.catalogue.tables import (
    Alias, Filing, Listing, ListingFacet, ModelVersion, PriceVersion, Publication, SearchTerm,
)  # fmt: skip
from marketplace.choosing.tables import Choice, SampleSet
from marketplace.keys.tables import ApiKey
from marketplace.ledger.tables import CapCounter, LedgerAccount, LedgerEntry, LedgerTransfer
from marketplace.organisations.tables import AuditEvent, Member, Notice, OneTimeToken, Organisation, WebSession
from marketplace.review.tables import Review
from marketplace.usage.tables import SelfPayMeter, TrialCount, Usage
from marketplace.vouchers.tables import (
    Application, LeaseRow, NodeEpoch, Programme, Reservation, Subscription, Voucher,
)  # fmt: skip

__all__ = [
    "Alias", "ApiKey", "Application", "AuditEvent", "CapCounter", "Choice", "Filing", "Job", "LeaseRow", "LedgerAccount",
    "LedgerEntry", "LedgerTransfer", "Listing", "ListingFacet", "Member", "ModelVersion", "NodeEpoch", "Notice",
    "OneTimeToken", "Organisation", "PriceVersion", "Programme", "Publication", "Reservation", "Review", "SampleSet",
    "SearchTerm", "SelfPayMeter", "Subscription", "TrialCount", "Usage", "Voucher", "WebSession",
]  # fmt: skip
