"""In-app notices to one organisation."""

from __future__ import annotations

from sqlmodel import Session, col, func, select

from marketplace.ids import new_id
from marketplace.organisations.tables import Notice, Organisation


def notify(session: Session, organisation_id: str, code: str, *, zh: str, en: str, link: str = "") -> Notice:
    """Leave a notice. `code` is stable (VOUCHER_80, VERSION_LISTED …); `link` a path of the market's web pages."""
    notice = Notice(
        id=new_id("ntc"), organisation_id=organisation_id, code=code, text_zh=zh, text_en=en, link=link, read_at_ms=None
    )
    session.add(notice)
    return notice


def notify_operators(session: Session, code: str, *, zh: str, en: str, link: str = "") -> None:
    """The same notice to every operator organisation."""
    for operator_id in session.exec(select(Organisation.id).where(Organisation.kind == "operator")):
        notify(session, operator_id, code, zh=zh, en=en, link=link)


def list_notices(session: Session, organisation_id: str, *, limit: int = 50) -> tuple[list[Notice], int]:
    """Newest first, and how many are unread."""
    mine = select(Notice).where(Notice.organisation_id == organisation_id)
    unread = session.exec(select(func.count()).select_from(mine.where(col(Notice.read_at_ms).is_(None)).subquery()))
    return list(session.exec(mine.order_by(col(Notice.created_at_ms).desc()).limit(limit))), unread.one()


def mark_read(session: Session, organisation_id: str, at_ms: int, notice_ids: list[str] | None = None) -> int:
    """Mark these notices (all, if None) of the organisation read; answers how many were not yet."""
    mine = select(Notice).where(Notice.organisation_id == organisation_id, col(Notice.read_at_ms).is_(None))
    if notice_ids is not None:
        mine = mine.where(col(Notice.id).in_(notice_ids))
    notices = list(session.exec(mine))
    for notice in notices:
        notice.read_at_ms = at_ms
        session.add(notice)
    return len(notices)
