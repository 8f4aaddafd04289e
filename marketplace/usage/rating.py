"""Usage records rated a second time against the lease they were admitted under. What does not agree is quarantined."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from marketplace.clock import end_of_day_ms
from marketplace.usage.rounding import is_covered
from marketplace.vouchers.tables import LeaseRow, Reservation, Voucher
from serving.metering import PriceLine, UsageRecord, rate_usage

LINE_FIELDS = PriceLine.__struct_fields__
_NEVER = 1 << 62
CLOCK_MS = 300_000  # a node's clock may be so far off the market's
RUN_MS = 600_000  # and a run that a lease admitted may end so much later


@dataclass(frozen=True, slots=True)
class Late:
    """A lease that was written off and whose journal turned up: what the voucher may still pay under it is what could
    be set aside again, beyond the gross it had paid its share of by then; and what the enterprise may still owe."""

    eligible_micro: int
    restored_fen: int
    credit_micro: int


@dataclass(slots=True)
class LeaseBasis:
    """A lease with all that its usage is judged by. `eligible_micro` and `own_micro` grow as records are rated.

    What is asked of every record is kept in plain fields: reading a mapped attribute costs ten times as much.
    """

    row: LeaseRow
    reservation: Reservation | None = None
    kind: str = ""
    holder: tuple[str, int, str] = ("", 0, "")  # node, epoch, organisation
    contract: tuple[str, str] = ("", "")  # reservation or "", subscription or ""
    granted_fen: int = 0
    last_use_ms: int = _NEVER
    eligible_micro: int = 0
    own_micro: int = 0
    late: Late | None = None
    skewed: bool = False  # its node's clock was measured off, further than is allowed
    first_ms: int = 0  # a clock that is right says an instant between these two for whatever is used under the lease
    last_ms: int = _NEVER
    lines: dict[tuple[str, str], tuple[PriceLine, dict[str, Any], int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, row: LeaseRow, reservation: Reservation | None, voucher: Voucher | None, late: Late | None = None,
        *, skewed: bool = False,
    ) -> LeaseBasis:  # fmt: skip
        basis = cls(
            row,
            reservation,
            kind=row.kind,
            holder=(row.node, row.epoch, row.organisation_id),
            contract=(row.reservation_id, row.subscription_id),
            granted_fen=row.granted_fen,
            eligible_micro=row.eligible_micro,
            own_micro=row.own_micro,
            late=late,
            skewed=skewed,
            first_ms=row.opened_at_ms - CLOCK_MS,
            last_ms=row.expires_at_ms + RUN_MS + CLOCK_MS,
        )
        if voucher is not None:
            basis.last_use_ms = end_of_day_ms(date.fromisoformat(voucher.use_by))
        for line in row.prices:
            price = PriceLine(**{name: line[name] for name in LINE_FIELDS})
            begins = _instant_ms(line.get("filing_valid_from", ""), 0)
            lapses = _instant_ms(line["filing_valid_until"], _NEVER)
            basis.lines[line["model"], line["price_version"]] = (price, line, begins, lapses)
        return basis


@dataclass(frozen=True, slots=True)
class Rated:
    """`reason` "": good. `eligible`: the voucher pays its share of it. `filing_id`: what the model stood under, "" for
    none, None where its lease does not say (it is from before leases did, or unknown)."""

    reason: str = ""
    eligible: bool = False
    listing_id: str = ""
    provider_id: str = ""
    filing_id: str | None = None


def rate(record: UsageRecord, basis: LeaseBasis | None, node: str, epoch: int) -> Rated:
    """Judge one record; a good one is added to its lease's running totals.

    Use-by and filing are judged on the instant of use. Reasons: LEASE_UNKNOWN, LEASE_FOREIGN (of another node, epoch or
    organisation), PRICE_UNKNOWN, AMOUNT_MISMATCH, LEASE_WRITTEN_OFF (the lease was given back by two persons, and
    nothing is left that could carry this record: it is charged to nobody), CLOCK_SKEWED (the instant of use cannot be
    right, or the node's clock was measured off: by it use-by, filing and month would be judged).
    """
    if basis is None:
        return Rated("LEASE_UNKNOWN")
    if basis.holder != (node, epoch, record.organisation):
        return Rated("LEASE_FOREIGN")
    model = record.model.rpartition("@")[0] or record.model
    if basis.kind == "free":
        _, line, _, _ = basis.lines.get((model, ""), (None, {}, 0, 0))
        found = Rated("", False, line.get("listing_id", ""), line.get("provider_id", ""), line.get("filing_id"))
        return found if record.amount_micro == 0 else Rated("AMOUNT_MISMATCH")
    known = basis.lines.get((model, record.price_version))
    if known is None:
        return Rated("PRICE_UNKNOWN")
    price, line, begins, lapses = known
    sold = (line["listing_id"], line["provider_id"], line.get("filing_id"))
    try:
        amount = rate_usage(record.units, price)
    except ValueError:
        amount = -1
    if amount != record.amount_micro:
        return Rated("AMOUNT_MISMATCH", False, *sold)
    if basis.skewed or not basis.first_ms <= record.occurred_at_ms <= basis.last_ms:
        return Rated("CLOCK_SKEWED", False, *sold)
    within = begins <= record.occurred_at_ms <= min(lapses, basis.last_use_ms)
    payable = basis.reservation is not None and price.ratio_num > 0 and within
    eligible = payable and _is_covered(basis, amount, price)
    # rounded down, so that what is ingested never passes the credit that the node counted exactly
    own = amount + (-amount * price.ratio_num // price.ratio_den) if eligible else amount
    late = basis.late
    if late is not None and (payable != eligible or basis.own_micro + own > late.credit_micro):
        return Rated("LEASE_WRITTEN_OFF", False, *sold)
    basis.eligible_micro += amount if eligible else 0
    basis.own_micro += own
    return Rated("", eligible, *sold)


def _is_covered(basis: LeaseBasis, amount: int, price: PriceLine) -> bool:
    used, granted = basis.eligible_micro, basis.granted_fen
    if basis.late is not None:
        used, granted = used - basis.late.eligible_micro, basis.late.restored_fen
    return is_covered(used, amount, price.ratio_num, price.ratio_den, granted)


def _instant_ms(text: str, without: int) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else without
