"""What still stands open of a programme: it is audited once nothing of it may still be used, claimed or owed."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimBatch, ClaimLine, Clawback
from marketplace.clock import policy_date
from marketplace.ledger import accounts
from marketplace.ledger.posting import balances
from marketplace.vouchers.tables import LeaseRow, Programme, Reservation, Voucher
from model_store.errors import Conflict

LIVE_VOUCHER = ("proposed", "active", "exhausted", "suspended")
BATCH_OVER = ("discarded", "returned", "reconciled")
CLAWBACK_OVER = ("dropped", "recovered", "written_off")


def open_matters(session: Session, programme: Programme, at_ms: int) -> dict[str, int]:
    """What is open, by its name: vouchers that may be used (or were proposed), fen that contracts and leases hold, fen
    used that may still be claimed (its redeem-by day is not over), claim batches and clawbacks under way."""
    vouchers = list(session.exec(select(Voucher).where(Voucher.programme_id == programme.id)))
    batches = select(func.count()).select_from(ClaimBatch).where(ClaimBatch.programme_id == programme.id)
    clawbacks = select(func.count()).select_from(Clawback).join(ClaimLine, col(ClaimLine.id) == col(Clawback.line_id))
    clawbacks = clawbacks.join(ClaimBatch, col(ClaimBatch.id) == col(ClaimLine.batch_id))
    clawbacks = clawbacks.where(ClaimBatch.programme_id == programme.id)
    held, unclaimed = _held_and_unclaimed(session, vouchers, policy_date(at_ms).isoformat())
    found = {
        "vouchers": sum(voucher.state in LIVE_VOUCHER for voucher in vouchers),
        "held_fen": held,
        "unclaimed_fen": unclaimed,
        "claim_batches": session.exec(batches.where(col(ClaimBatch.state).not_in(BATCH_OVER))).one(),
        "clawbacks": session.exec(clawbacks.where(col(Clawback.state).not_in(CLAWBACK_OVER))).one(),
    }
    return {name: count for name, count in found.items() if count}


def _held_and_unclaimed(session: Session, vouchers: list[Voucher], day: str) -> tuple[int, int]:
    """Fen that reservations and leases hold; fen used, not claimed, whose redeem-by day is not over on `day`."""
    redeem_by = {voucher.id: voucher.redeem_by for voucher in vouchers}
    query = select(Reservation.id, Reservation.voucher_id)
    of = dict(session.exec(query.where(col(Reservation.voucher_id).in_(list(redeem_by)))).all())
    leases = session.exec(select(LeaseRow.id).where(col(LeaseRow.reservation_id).in_(list(of))))
    held = balances(session, [*map(accounts.reserved, of), *map(accounts.leased, leases)])
    claimable = [each for each, voucher in of.items() if redeem_by[voucher] >= day]
    return sum(held.values()), sum(balances(session, map(accounts.used, claimable)).values())


def decide_settled(code: str, found: dict[str, int]) -> None:
    """`Conflict` PROGRAMME_NOT_SETTLED with what is open."""
    if not found:
        return
    raise Conflict(
        "PROGRAMME_NOT_SETTLED",
        zh=f"“{code}”尚有未了事项: {_told(found, 0)}",
        en=f"{code} is not settled yet: {_told(found, 1)}",
        remedy_zh="请待券到期、申报与追回办结后再审计",
        remedy_en="audit it once its vouchers have lapsed and its claims and clawbacks are through",
        details=dict[str, Any](found),
    )


_NAMES = {
    "vouchers": ("张券仍有效", "vouchers that are live"),
    "held_fen": ("分仍被合同占用", "fen held by contracts"),
    "unclaimed_fen": ("分已使用, 仍可申报", "fen used that may still be claimed"),
    "claim_batches": ("个申报批次未办结", "claim batches under way"),
    "clawbacks": ("笔追回未办结", "clawbacks under way"),
}


def _told(found: dict[str, int], language: int) -> str:
    return ("、", ", ")[language].join(f"{count} {_NAMES[name][language]}" for name, count in found.items())
