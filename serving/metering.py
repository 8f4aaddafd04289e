"""What a call costs, what it is recorded as, and the lease it is charged against: the one choke point for metering.

Money on the wire and on disk is integer micro-fen (10^-6 fen; 1 yuan = 100 fen = 10^8 micro-fen).
`rate_usage` is the only rating there is: the node calls it before it answers, ingest calls it again, and a
mismatch is quarantined, never posted (../shared/design/vouchers.md, "Lease and journal, version 1").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

MICRO_PER_FEN = 1_000_000
UNITS = ("calls", "rows", "images", "tokens_in", "tokens_out", "ms")
LeaseKind = Literal["subsidised", "self_pay", "free"]


class PriceLine(msgspec.Struct, frozen=True, gc=False):
    """One price a lease covers. `micro_per_unit` in micro-fen; the voucher's share is ratio_num / ratio_den of it.

    `filing_valid_until` is an ISO-8601 instant with zone, or "" where the price carries no filing.
    """

    price_version: str
    model: str  # vendor/name
    unit: str  # one of UNITS
    micro_per_unit: int
    ratio_num: int = 0
    ratio_den: int = 1
    filing_valid_until: str = ""


class Lease(msgspec.Struct):
    """A block of entitlement and credit that the ledger has already set aside for one node (format version 1).

    `remaining_micro`: what the voucher may still pay under this lease; `credit_micro`: what the enterprise itself may
    still owe under it. Both were reserved before the node saw them. Instants are Unix milliseconds, UTC.
    `subject` is what the lease belongs to at the node: organisation id.
    """

    lease_id: str
    node: str
    epoch: int
    kind: LeaseKind
    organisation: str
    reservation: str  # reservation id; "" where kind is self_pay or free
    subscription: str  # subscription id; "" where free
    remaining_micro: int
    credit_micro: int
    opened_at_ms: int
    expires_at_ms: int
    prices: list[PriceLine]


class UsageRecord(msgspec.Struct, frozen=True, gc=False):
    """One metered run. Never content: two digests only. `usage_id` is a ULID minted at the node."""

    usage_id: str
    key_id: str
    organisation: str
    model: str  # vendor/name@version
    adapter: str
    price_version: str
    lease_id: str
    units: dict[str, int]
    amount_micro: int
    occurred_at_ms: int
    status: str  # ok | unresolved
    request_digest: str
    response_digest: str
    purpose: str = "use"  # use | trial


def rate_usage(units: Mapping[str, int], price: PriceLine) -> int:
    """Micro-fen for `units` at `price`: units[price.unit] × micro_per_unit. Integers in, integer out, never
    negative.
    """
    count = units.get(price.unit, 0)
    if count < 0:
        raise ValueError(f"negative units: {price.unit}={count}")
    return count * price.micro_per_unit
