"""Warnings at 80% and 100% of a voucher and of a monthly cap: one notice each, once."""

from __future__ import annotations

from sqlmodel import Session, col, func, select

from marketplace.organisations import notices
from marketplace.organisations.tables import Notice
from marketplace.vouchers.tables import Reservation, Subscription, Voucher
from serving.metering import MICRO_PER_FEN

THRESHOLDS = (80, 100)


def crossed(used: int, limit: int) -> list[int]:
    """Which thresholds (per cent) `used` of `limit` has reached; none where there is nothing to use up."""
    return [percent for percent in THRESHOLDS if limit > 0 and used * 100 >= limit * percent]


def notify_once(session: Session, organisation_id: str, code: str, *, zh: str, en: str, link: str) -> None:
    """A notice, unless the organisation has one of this code and link."""
    known = select(Notice.id).where(Notice.organisation_id == organisation_id, Notice.code == code, Notice.link == link)
    if session.exec(known.limit(1)).first() is None:
        notices.notify(session, organisation_id, code, zh=zh, en=en, link=link)
        session.flush()


def voucher_used(session: Session, voucher_id: str) -> int:
    """Fen that were used of a voucher: never more than its face."""
    total = select(func.sum(Reservation.posted_subsidy_fen)).where(col(Reservation.voucher_id) == voucher_id)
    return int(session.exec(total).one() or 0)


def warn_of_voucher(session: Session, voucher: Voucher) -> None:
    """Notices at 80% and 100%; a voucher of which all is used is exhausted."""
    session.flush()
    used = voucher_used(session, voucher.id)
    for percent in crossed(used, voucher.face_fen):
        _voucher_notice(session, voucher, percent, used)
    if used >= voucher.face_fen and voucher.state == "active":
        voucher.state = "exhausted"
        session.add(voucher)


def warn_of_exhaustion(session: Session, voucher: Voucher) -> None:
    """The 100% notice where what is left (crumbs in leases) no longer covers a call."""
    _voucher_notice(session, voucher, 100, voucher_used(session, voucher.id))


def warn_of_cap(session: Session, subscription: Subscription, month: str, own_micro: int) -> None:
    """Notices at 80% and 100% of the monthly cap on own cost."""
    cap = subscription.monthly_cap_fen
    if cap is None:
        return
    for percent in crossed(own_micro, cap * MICRO_PER_FEN):
        notify_once(
            session,
            subscription.organisation_id,
            f"MONTHLY_CAP_{percent}",
            zh=f"{month} 自付金额已达月度上限的 {percent}%(上限 {cap} 分)",
            en=f"own cost in {month} has reached {percent}% of the monthly cap of {cap} fen",
            link=f"/console/subscriptions/{subscription.id}?month={month}",
        )


def _voucher_notice(session: Session, voucher: Voucher, percent: int, used: int) -> None:
    notify_once(
        session,
        voucher.organisation_id,
        f"VOUCHER_{percent}",
        zh=f"模型券已使用 {used} 分, 达到票面 {voucher.face_fen} 分的 {percent}%"
        if percent < 100
        else "模型券余额已用完",
        en=f"{used} fen of a voucher's {voucher.face_fen} are used: {percent}%"
        if percent < 100
        else "a voucher is used up",
        link=f"/console/vouchers/{voucher.id}",
    )
