"""Claims as JSON."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from marketplace.catalogue.tables import Listing
from marketplace.claims.assembly import Candidate
from marketplace.claims.backing import free_of, lines_of_invoices
from marketplace.claims.batches import lines_of
from marketplace.claims.refusals import LEFT_OUT
from marketplace.claims.states import BATCH, CLAWBACK
from marketplace.claims.tables import ClaimBatch, ClaimLine, Clawback, Correction, Invoice
from marketplace.evidence.files import file_view, files_of
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.tables import Programme, Subscription

_BATCH = (
    "id", "programme_id", "from_day", "to_day", "state", "total_fen", "sha256", "created_by", "frozen_by",
    "frozen_at_ms", "notice_at_ms", "approved_by", "payment_by", "payment", "paid_by", "paid_at_ms", "note",
    "created_at_ms",
)  # fmt: skip
_LINE = (
    "id", "state", "reason", "reservation_id", "voucher_id", "subscription_id", "organisation_id", "provider_id",
    "gross_fen", "subsidy_fen", "clawed_fen", "usage_count", "usage_sha256",
)  # fmt: skip
_CORRECTION = (
    "id", "usage_id", "organisation_id", "state", "reason", "proposed_by", "decided_by", "gross_fen", "subsidy_fen",
    "transfer_id", "created_at_ms",
)  # fmt: skip
_CLAWBACK = (
    "id", "line_id", "organisation_id", "amount_fen", "state", "reason", "opened_by", "confirmed_by", "write_off_by",
    "ended_by", "created_at_ms",
)  # fmt: skip
_INVOICE = (
    "id", "number", "subscription_id", "organisation_id", "provider_id", "amount_fen", "issued_on", "sha256",
    "created_at_ms",
)  # fmt: skip


def batch_view(session: Session, row: ClaimBatch, *, with_lines: bool = False) -> dict[str, Any]:
    """A batch; `next` is what may be done with it now."""
    view = _pick(row, _BATCH)
    programme = session.get_one(Programme, row.programme_id)
    view |= {"programme": programme.code, "title_zh": programme.title_zh, "title_en": programme.title_en}
    view["next"] = [decision for state, decision in BATCH if state == row.state]
    if with_lines:
        view["lines"] = [line_view(session, line) for line in lines_of(session, row)]
    return view


def line_view(session: Session, line: ClaimLine) -> dict[str, Any]:
    view = _pick(line, _LINE)
    view |= _named(session, "organisation", line.organisation_id)
    view |= _named(session, "provider", line.provider_id)
    return view | {"model": _model(session, line.subscription_id)}


def candidate_view(session: Session, candidate: Candidate) -> dict[str, Any]:
    """What a freeze would make a line of, or why it would not."""
    zh, en = LEFT_OUT.get(candidate.reason, ("", ""))
    return {
        "reservation_id": candidate.reservation.id,
        "voucher_id": candidate.voucher.id,
        "subscription_id": candidate.reservation.subscription_id,
        "organisation_id": candidate.voucher.organisation_id,
        **_named(session, "organisation", candidate.voucher.organisation_id),
        "model": _model(session, candidate.reservation.subscription_id),
        "gross_fen": candidate.gross_fen,
        "subsidy_fen": candidate.subsidy_fen,
        "transfers": len(candidate.charges),
        "held_back_fen": sum(charge.subsidy_fen for charge in candidate.held_back),
        "left_out": candidate.reason,
        "zh": zh,
        "en": en,
        "findings": [{"id": row.id, "code": row.code, "state": row.state} for row in candidate.findings],
    }


def correction_view(row: Correction) -> dict[str, Any]:
    return _pick(row, _CORRECTION)


def clawback_view(row: Clawback) -> dict[str, Any]:
    return _pick(row, _CLAWBACK) | {"next": [decision for state, decision in CLAWBACK if state == row.state]}


def invoice_view(session: Session, row: Invoice) -> dict[str, Any]:
    """An invoice, the lines that it backs, and what of it backs nothing yet (over all contracts)."""
    return _pick(row, _INVOICE) | {
        "backs": lines_of_invoices(session, [row.id])[row.id],
        "free_fen": free_of(session, row),
        "files": [file_view(file) for file in files_of(session, [row.id])],
    }


def _named(session: Session, stem: str, organisation_id: str) -> dict[str, str]:
    row = session.get_one(Organisation, organisation_id)
    return {f"{stem}_zh": row.name_zh, f"{stem}_en": row.name_en}


def _model(session: Session, subscription_id: str) -> str:
    """Whose contract it is: an enterprise may have several with one provider."""
    contract = session.get_one(Subscription, subscription_id)
    return session.get_one(Listing, contract.listing_id).name


def _pick(row: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
