"""Invoices: entered by who was billed (or the operator), once a contract; the file is kept with them."""

from __future__ import annotations

from datetime import date

from sqlmodel import Session, col, select

from marketplace.claims.refusals import claim_not_found
from marketplace.claims.tables import Invoice
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.vouchers.tables import Subscription
from model_store.errors import BadInput, Conflict

MAX_NUMBER = 40
MAX_FEN = 10**13


def enter(
    session: Session,
    subscription: Subscription,
    *,
    number: str,
    amount_fen: int,
    issued_on: str,
    actor: str,
    sha256: str = "",
) -> Invoice:
    """`BadInput` INVOICE_INVALID, `Conflict` INVOICE_TWICE for a number that the contract has already, INVOICE_DIFFERS
    where the same number of this provider is entered for another contract with another amount or day."""
    number = number.strip()
    try:
        day = date.fromisoformat(issued_on)
    except ValueError:
        raise _invalid("issued_on", "开票日期须形如 2026-10-01", "the day is given as 2026-10-01") from None
    if not 0 < len(number) <= MAX_NUMBER or not number.isalnum():
        raise _invalid("number", f"发票号码须为 1 至 {MAX_NUMBER} 位字母或数字", "a number has letters and digits only")
    if not 0 < amount_fen <= MAX_FEN:
        raise _invalid("amount_fen", "金额须大于零", "the amount is above zero")
    known = select(Invoice.id).where(Invoice.number == number, Invoice.subscription_id == subscription.id)
    if session.exec(known).first() is not None:
        raise Conflict(
            "INVOICE_TWICE",
            zh=f"发票 {number} 已登记在该合同下",
            en=f"invoice {number} is entered for this contract already",
            remedy_zh="请核对发票号码",
            remedy_en="check the number",
            field="number",
        )
    _check_same_elsewhere(session, subscription.provider_id, number, amount_fen, day.isoformat())
    row = Invoice(
        id=new_id("inv"),
        number=number,
        subscription_id=subscription.id,
        organisation_id=subscription.organisation_id,
        provider_id=subscription.provider_id,
        amount_fen=amount_fen,
        issued_on=day.isoformat(),
        sha256=sha256,
        entered_by=actor,
    )
    session.add(row)
    session.flush()
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action="invoice.enter",
        subject=row.id,
        number=number,
        amount_fen=amount_fen,
    )
    return row


def _check_same_elsewhere(session: Session, provider_id: str, number: str, amount_fen: int, day: str) -> None:
    elsewhere = select(Invoice).where(Invoice.number == number, Invoice.provider_id == provider_id)
    for other in session.exec(elsewhere):
        if (other.amount_fen, other.issued_on) != (amount_fen, day):
            raise Conflict(
                "INVOICE_DIFFERS",
                zh=f"发票 {number} 已按另一金额或日期登记在其他合同下",
                en=f"invoice {number} is entered for another contract with another amount or day",
                remedy_zh="一张发票只有一个金额; 请核对原件",
                remedy_en="an invoice has one amount; look at the original",
                field="amount_fen",
            )


def get_invoice(session: Session, invoice_id: str, organisation_id: str | None) -> Invoice:
    """Locked; of one buyer, or any (None). `NotFound` CLAIM_NOT_FOUND."""
    row = session.exec(select(Invoice).where(Invoice.id == invoice_id).with_for_update()).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise claim_not_found("发票", "invoice", invoice_id)
    return row


def list_invoices(session: Session, organisation_id: str | None) -> list[Invoice]:
    """Newest first; of one organisation (as buyer or provider), or of all."""
    query = select(Invoice)
    if organisation_id is not None:
        own = (Invoice.organisation_id == organisation_id) | (Invoice.provider_id == organisation_id)
        query = query.where(own)
    return list(session.exec(query.order_by(col(Invoice.created_at_ms).desc(), col(Invoice.id).desc())))


def _invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "INVOICE_INVALID", zh=zh, en=en, remedy_zh="请按发票填写", remedy_en="as the invoice has it", field=field
    )
