"""Lease rows: found, made, renewed, and turned into what a node is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import Filing
from marketplace.clock import end_of_day_ms, instant, policy_date
from marketplace.ids import new_id
from marketplace.usage.tables import SelfPayMeter
from marketplace.vouchers.sale import Sale
from marketplace.vouchers.tables import LeaseRow
from serving.metering import Lease, PriceLine


@dataclass(frozen=True, slots=True)
class Ask:
    """One question at the desk. `held_*`: what the node still has under the lease it asks with."""

    organisation: str
    model: str
    node: str
    epoch: int
    need_micro: int
    held_voucher_micro: int
    held_credit_micro: int
    at_ms: int


def current_lease(session: Session, ask: Ask, subscription_id: str, listing_id: str) -> LeaseRow | None:
    """The open lease of (node, epoch, organisation, listing) under that subscription ("": a free one), locked."""
    query = select(LeaseRow).where(
        LeaseRow.node == ask.node,
        LeaseRow.epoch == ask.epoch,
        LeaseRow.organisation_id == ask.organisation,
        LeaseRow.subscription_id == subscription_id,
        LeaseRow.state == "open",
    )
    rows = session.exec(query.order_by(col(LeaseRow.id)).with_for_update())
    return next((row for row in rows if row.prices[-1]["listing_id"] == listing_id), None)


def own_cost_micro(session: Session, subscription_id: str, at_ms: int) -> int:
    """What the enterprise itself owes for the month of that instant, as ingested so far."""
    meter = session.get(SelfPayMeter, (subscription_id, month_of(at_ms)))
    return meter.cum_gross_micro if meter is not None else 0


def month_of(at_ms: int) -> str:
    """YYYY-MM in Asia/Shanghai."""
    return f"{instant(at_ms):%Y-%m}"


def next_month_ms(at_ms: int) -> int:
    """The first instant of the next calendar month in Asia/Shanghai."""
    day = policy_date(at_ms)
    first = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return end_of_day_ms(first) + 1 - 86_400_000


def price_line(
    sale: Sale, filing: Filing | None, model: str, price_version: str, unit: str, micro_per_unit: int
) -> dict[str, Any]:
    """A price line as the row keeps it: the wire's fields, and what ingest writes beside each usage. The `filing` is
    the one that the model stands under now ("": none), whether or not a voucher asks for it."""
    return {
        "price_version": price_version, "model": model, "unit": unit, "micro_per_unit": micro_per_unit, "ratio_num": 0,
        "ratio_den": 1, "filing_valid_until": "", "filing_valid_from": "", "listing_id": sale.listing.id,
        "provider_id": sale.provider_id, "filing_id": filing.id if filing else "",
        "filing_number": filing.number if filing else "",
    }  # fmt: skip


def under_filing(row: LeaseRow, filing: Filing | None) -> bool:
    """Whether the lease was made under this filing: one of another is not renewed, so that which filing a use was under
    never depends on when it is ingested. Leases from before filings were recorded are under none."""
    return bool(row.prices[-1].get("filing_id") == (filing.id if filing else ""))


def new_row(ask: Ask, kind: str, subscription: str, reservation: str, line: dict[str, Any], expires: int) -> LeaseRow:
    return LeaseRow(
        id=new_id("lea"),
        node=ask.node,
        epoch=ask.epoch,
        kind=kind,
        organisation_id=ask.organisation,
        subscription_id=subscription,
        reservation_id=reservation,
        prices=[line],
        opened_at_ms=ask.at_ms,
        expires_at_ms=expires,
    )


def renew(row: LeaseRow, line: dict[str, Any], expires: int) -> None:
    """Every line it ever had stays on a lease, the current one last: older usage is still rated by its own."""
    row.expires_at_ms = expires
    if row.prices[-1] != line:
        row.prices = [*(old for old in row.prices if old != line), line]


def wire(row: LeaseRow, voucher_micro: int, credit_micro: int) -> Lease:
    line = PriceLine(**{name: row.prices[-1][name] for name in PriceLine.__struct_fields__})
    return Lease(
        lease_id=row.id,
        node=row.node,
        epoch=row.epoch,
        kind=row.kind,  # type: ignore[arg-type]  # the column holds the same three words
        organisation=row.organisation_id,
        reservation=row.reservation_id,
        subscription=row.subscription_id,
        remaining_micro=voucher_micro,
        credit_micro=credit_micro,
        opened_at_ms=row.opened_at_ms,
        expires_at_ms=row.expires_at_ms,
        prices=[line],
    )
