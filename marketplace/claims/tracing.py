"""Both ways through a claim: from a line down to the usage it rests on, and from a usage record up to its payment."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.catalogue.tables import Filing, PriceVersion
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer, ClaimLine, Clawback, Correction, Invoice
from marketplace.claims.views import batch_view, clawback_view, invoice_view, line_view
from marketplace.clock import policy_date
from marketplace.ledger.tables import LedgerTransfer
from marketplace.usage.tables import Usage
from marketplace.vouchers.overrides import overrides_of
from marketplace.vouchers.tables import Application, Reservation, Subscription, Voucher
from marketplace.vouchers.views import override_view

SHOWN = 200  # usage records of a line on its page; the pack has all


def line_trace(session: Session, batch: ClaimBatch, line: ClaimLine) -> dict[str, Any]:
    """What a line's fen rest on: postings, usage (the first `SHOWN` by id), prices, filings, contract, payment, and
    every check of the application that its voucher was issued on.

    A line that was given back holds no postings any more: `transfers` and `usage` are empty.
    """
    transfers = list(
        session.exec(
            select(LedgerTransfer)
            .join(ClaimedTransfer, col(ClaimedTransfer.transfer_id) == col(LedgerTransfer.id))
            .where(ClaimedTransfer.line_id == line.id)
            .order_by(col(LedgerTransfer.id))
        )
    )
    usage = _usage(session, line)
    reservation = session.get_one(Reservation, line.reservation_id)
    contract = session.get_one(Subscription, line.subscription_id)
    clawbacks = session.exec(select(Clawback).where(Clawback.line_id == line.id).order_by(col(Clawback.created_at_ms)))
    return {
        "batch": batch_view(session, batch),
        "line": line_view(session, line),
        "ratio": (reservation.ratio_num, reservation.ratio_den),
        "transfers": [{"id": row.id, "kind": row.kind, "posted_at_ms": row.posted_at_ms} for row in transfers],
        "usage": usage,
        "application": _application(session, line),
        "contract": {"id": contract.id, "contract_fen": contract.contract_fen, "state": contract.state},
        "invoices": invoices_of(session, line.subscription_id),
        "clawbacks": [clawback_view(row) for row in clawbacks],
    }


def _application(session: Session, line: ClaimLine) -> dict[str, Any]:
    """Each check with its result, when it was made and how long it held; and the failed ones that two persons let
    pass."""
    row = session.get_one(Application, session.get_one(Voucher, line.voucher_id).application_id)
    overrides = [override_view(each) for each in overrides_of(session, row.id)]
    return {"id": row.id, "state": row.state, "checks": row.checks, "overrides": overrides}


def _usage(session: Session, line: ClaimLine) -> list[dict[str, Any]]:
    query = (
        select(Usage, PriceVersion)
        .join(ClaimedTransfer, col(ClaimedTransfer.transfer_id) == col(Usage.transfer_id))
        .join(PriceVersion, col(PriceVersion.id) == col(Usage.price_version), isouter=True)
        .where(ClaimedTransfer.line_id == line.id)
        .order_by(col(Usage.usage_id))
        .limit(SHOWN)
    )
    rows = []
    for usage, price in session.exec(query):
        rows.append(
            {
                "usage_id": usage.usage_id,
                "occurred_at_ms": usage.occurred_at_ms,
                "model": usage.model,
                "amount_micro": usage.amount_micro,
                "transfer_id": usage.transfer_id,
                "price_version": usage.price_version,
                "unit": price.unit if price else "",
                "units": usage.units.get(price.unit, 0) if price else 0,
                "micro_per_unit": price.micro_per_unit if price else 0,
                "filing": filing_of(session, usage),
            }
        )
    return rows


def filing_of(session: Session, usage: Usage) -> dict[str, Any] | None:
    """The filing that a use was under, and whether it was valid on that policy day; None: the model stood under none.

    It is what the lease of the use says, not what the model stands under today. Usage ingested before that was kept has
    `recorded` False, and nothing else.
    """
    if usage.filing_id is None:
        return {"recorded": False, "number": "", "valid_from": "", "valid_until": "", "valid_at_use": None}
    if not usage.filing_id:
        return None
    filing = session.get_one(Filing, usage.filing_id)
    day = policy_date(usage.occurred_at_ms).isoformat()
    valid = filing.valid_from <= day and (not filing.valid_until or day <= filing.valid_until)
    return {
        "recorded": True,
        "number": filing.number,
        "valid_from": filing.valid_from,
        "valid_until": filing.valid_until,
        "valid_at_use": valid,
    }


def invoices_of(session: Session, subscription_id: str) -> list[dict[str, Any]]:
    """The invoices of a contract, oldest day first."""
    query = select(Invoice).where(Invoice.subscription_id == subscription_id)
    return [invoice_view(session, row) for row in session.exec(query.order_by(col(Invoice.issued_on), col(Invoice.id)))]


def claim_of(session: Session, transfer_id: int | None, *, to_operator: bool) -> dict[str, Any] | None:
    """The batch and line that a charge stands in, and the government's payment; None where it is not claimed.

    What was paid for the whole batch, others' lines with it, is told to operators only.
    """
    claimed = session.get(ClaimedTransfer, transfer_id) if transfer_id is not None else None
    if claimed is None:
        return None
    line = session.get_one(ClaimLine, claimed.line_id)
    batch = session.get_one(ClaimBatch, line.batch_id)
    told = ("reference", "paid_on", "amount_fen") if to_operator else ("reference", "paid_on")
    return {
        "claim_id": batch.id,
        "state": batch.state,
        "from_day": batch.from_day,
        "to_day": batch.to_day,
        "sha256": batch.sha256,
        "line_id": line.id,
        "line_state": line.state,
        "line_reason": line.reason,
        "subsidy_fen": line.subsidy_fen,
        "clawed_fen": line.clawed_fen,
        "transfers": session.exec(
            select(func.count()).select_from(ClaimedTransfer).where(ClaimedTransfer.line_id == line.id)
        ).one(),
        "payment": {name: batch.payment[name] for name in told} if batch.paid_at_ms else None,
        "paid_at_ms": batch.paid_at_ms,
    }


def correction_of(session: Session, usage_id: str) -> dict[str, Any] | None:
    """The correction of a usage record, without its persons; None where there is none."""
    row = session.exec(select(Correction).where(Correction.usage_id == usage_id)).first()
    if row is None:
        return None
    names = ("id", "state", "reason", "gross_fen", "subsidy_fen", "transfer_id", "created_at_ms")
    return {name: getattr(row, name) for name in names}
