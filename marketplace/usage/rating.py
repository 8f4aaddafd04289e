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
    lines: dict[tuple[str, str], tuple[PriceLine, dict[str, Any], int]] = field(default_factory=dict)

    @classmethod
    def of(cls, row: LeaseRow, reservation: Reservation | None, voucher: Voucher | None) -> LeaseBasis:
        basis = cls(
            row,
            reservation,
            kind=row.kind,
            holder=(row.node, row.epoch, row.organisation_id),
            contract=(row.reservation_id, row.subscription_id),
            granted_fen=row.granted_fen,
            eligible_micro=row.eligible_micro,
            own_micro=row.own_micro,
        )
        if voucher is not None:
            basis.last_use_ms = end_of_day_ms(date.fromisoformat(voucher.use_by))
        for line in row.prices:
            price = PriceLine(**{name: line[name] for name in LINE_FIELDS})
            basis.lines[line["model"], line["price_version"]] = (price, line, _lapse_ms(line["filing_valid_until"]))
        return basis


@dataclass(frozen=True, slots=True)
class Rated:
    """`reason` "": good. `eligible`: the voucher pays its share of it."""

    reason: str = ""
    eligible: bool = False
    listing_id: str = ""
    provider_id: str = ""


def rate(record: UsageRecord, basis: LeaseBasis | None, node: str, epoch: int) -> Rated:
    """Judge one record; a good one is added to its lease's running totals.

    Use-by and filing are judged on the instant of use. Reasons: LEASE_UNKNOWN, LEASE_FOREIGN (of another node, epoch or
    organisation), PRICE_UNKNOWN, AMOUNT_MISMATCH.
    """
    if basis is None:
        return Rated("LEASE_UNKNOWN")
    if basis.holder != (node, epoch, record.organisation):
        return Rated("LEASE_FOREIGN")
    model = record.model.rpartition("@")[0] or record.model
    if basis.kind == "free":
        _, line, _ = basis.lines.get((model, ""), (None, {}, 0))
        found = Rated(listing_id=line.get("listing_id", ""), provider_id=line.get("provider_id", ""))
        return found if record.amount_micro == 0 else Rated("AMOUNT_MISMATCH")
    known = basis.lines.get((model, record.price_version))
    if known is None:
        return Rated("PRICE_UNKNOWN")
    price, line, lapse = known
    try:
        amount = rate_usage(record.units, price)
    except ValueError:
        amount = -1
    if amount != record.amount_micro:
        return Rated("AMOUNT_MISMATCH", False, line["listing_id"], line["provider_id"])
    eligible = (
        basis.reservation is not None
        and price.ratio_num > 0
        and record.occurred_at_ms <= min(lapse, basis.last_use_ms)
        and is_covered(basis.eligible_micro, amount, price.ratio_num, price.ratio_den, basis.granted_fen)
    )
    if eligible:
        basis.eligible_micro += amount
        # rounded down, so that what is ingested never passes the credit that the node counted exactly
        basis.own_micro += amount + (-amount * price.ratio_num // price.ratio_den)
    else:
        basis.own_micro += amount
    return Rated("", eligible, line["listing_id"], line["provider_id"])


def _lapse_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else _NEVER
