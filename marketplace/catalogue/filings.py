"""The register of filed (备案) models, kept by the operator. A demonstration row can never pass for a real number."""

from __future__ import annotations

from datetime import date

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import Filing, Listing
from marketplace.ids import new_id
from marketplace.organisations import audit
from model_store.errors import BadInput, Conflict, NotFound

DEMO_NUMBER_PREFIX = "演示-不是备案号"
MAX_NUMBER_CHARACTERS = 120


def register_filing(
    session: Session,
    *,
    number: str,
    kind: str,
    model_name: str,
    holder: str,
    valid_from: str,
    valid_until: str = "",
    actor: str,
    is_demo: bool = False,
) -> Filing:
    """Enter a filing. `BadInput` by field; `Conflict` FILING_TAKEN."""
    number = number.strip()
    if kind not in ("备案", "登记"):
        raise _invalid("kind", "类型只能是 备案 或 登记", "a filing's kind is 备案 or 登记")
    if not 0 < len(number) <= MAX_NUMBER_CHARACTERS:
        raise _invalid("number", "请填写备案号", "give the filing's number")
    if number.startswith(DEMO_NUMBER_PREFIX) != is_demo:
        raise _invalid(
            "number",
            f"演示条目须以“{DEMO_NUMBER_PREFIX}”开头, 真实条目不得如此",
            f"a demonstration entry, and only such, begins with {DEMO_NUMBER_PREFIX}",
        )
    first = _day(valid_from, "valid_from")
    if valid_until and _day(valid_until, "valid_until") < first:
        raise _invalid("valid_until", "截止日期早于起始日期", "it ends before it begins")
    if session.exec(select(Filing).where(Filing.number == number)).first() is not None:
        raise Conflict(
            "FILING_TAKEN",
            zh=f"备案号 {number} 已登记",
            en=f"the filing {number} is already in the register",
            remedy_zh="请核对编号",
            remedy_en="check the number",
            field="number",
        )
    filing = Filing(
        id=new_id("flg"),
        number=number,
        kind=kind,
        model_name=model_name.strip(),
        holder=holder.strip(),
        valid_from=valid_from,
        valid_until=valid_until,
        is_demo=is_demo,
    )
    session.add(filing)
    audit.record(session, actor=actor, action="filing.register", subject=filing.id, number=number)
    return filing


def list_filings(session: Session) -> list[Filing]:
    return list(session.exec(select(Filing).order_by(col(Filing.is_demo), Filing.number)))


def get_filing(session: Session, filing_id: str) -> Filing:
    """A register entry by id or number; `NotFound` FILING_NOT_FOUND."""
    filing = session.get(Filing, filing_id) or session.exec(select(Filing).where(Filing.number == filing_id)).first()
    if filing is None:
        raise NotFound(
            "FILING_NOT_FOUND",
            zh=f"备案登记册中没有“{filing_id[:80]}”",
            en=f"the register has no filing {filing_id[:80]!r}",
            remedy_zh="请先由运营方登记该备案",
            remedy_en="the operator enters a filing first",
            field="filing",
        )
    return filing


def attach_filing(session: Session, listing: Listing, filing: Filing | None, *, actor: str) -> Listing:
    """Bind a listing to its filing (None: to none). The operator does it after comparing both."""
    listing.filing_id = filing.id if filing else None
    session.add(listing)
    audit.record(
        session,
        actor=actor,
        organisation_id=listing.organisation_id,
        action="listing.filing",
        subject=listing.name,
        filing=filing.number if filing else None,
    )
    return listing


def _day(text: str, field: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _invalid(field, "日期格式为 YYYY-MM-DD", "a day is written YYYY-MM-DD") from None


def _invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "FILING_INVALID", zh=zh, en=en, remedy_zh="请修改后重试", remedy_en="correct it and try again", field=field
    )
