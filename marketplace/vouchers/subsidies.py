"""Other public money on a contract, declared by its enterprise: what it leaves for a voucher is judged when entitlement
is set aside, when a node asks for more, and again when a claim is frozen (it may be declared later than it was used).
"""

from __future__ import annotations

from fractions import Fraction

from sqlmodel import Session, col, func, select

from marketplace.claims.refusals import reason_of
from marketplace.ids import new_id
from marketplace.ledger import accounts, caps
from marketplace.ledger.posting import balance, lock_accounts
from marketplace.organisations import audit, notices
from marketplace.vouchers.closing import release_idle
from marketplace.vouchers.eligibility import decide_share
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.reservations import (
    declared_fen,
    foreseen,
    live_reservations,
    taken_at_ratios,
    taken_of_contract,
)
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import OtherSubsidy, Programme, Reservation, Subscription, Voucher
from model_store.errors import BadInput, Conflict, NotFound

MAX_FEN = 10**12
MOST = 50  # of one contract


def declare(
    session: Session, contract: Subscription, *, programme: str, authority: str, amount_fen: int, actor: str, at_ms: int
) -> OtherSubsidy:
    """Entitlement that is set aside beyond what is now allowed goes back to the voucher at once, as far as it is idle.

    `BadInput` SUBSIDY_INVALID, TEXT_TOO_LONG; `Conflict` SUBSIDIES_FULL.
    """
    programme, authority = bounded_text(programme, "programme", 200), bounded_text(authority, "authority", 200)
    if not programme or not authority:
        raise _invalid("programme" if not programme else "authority", "须写明补贴项目与主管部门",
                       "say the programme and the authority")  # fmt: skip
    if not 0 < amount_fen <= MAX_FEN:
        raise _invalid("amount_fen", "金额须大于零", "the amount is above zero")
    of_contract = select(func.count()).select_from(OtherSubsidy).where(OtherSubsidy.subscription_id == contract.id)
    if session.exec(of_contract).one() >= MOST:
        raise Conflict("SUBSIDIES_FULL", zh=f"一份合同最多申报 {MOST} 项", en=f"at most {MOST} of one contract",
                       remedy_zh="请合并申报", remedy_en="declare them together")  # fmt: skip
    row = OtherSubsidy(
        id=new_id("oss"),
        subscription_id=contract.id,
        organisation_id=contract.organisation_id,
        programme=programme,
        authority=authority,
        amount_fen=amount_fen,
        declared_by=actor,
        created_at_ms=at_ms,
    )
    session.add(row)
    session.flush()
    freed = _lower(session, contract, at_ms)
    _record(session, row, "declare", actor, amount_fen=amount_fen, contract=contract.id, freed_fen=freed)
    return row


def _lower(session: Session, contract: Subscription, at_ms: int) -> int:
    """P7 for what is set aside beyond what vouchers may still pay, all ratios together, newest first; answers how much.

    What of the contract nothing is set aside for yet may still be used at the highest of its ratios: what was then
    really settled is judged at the freeze.
    """
    declared, freed = declared_fen(session, contract.id), 0
    live = live_reservations(session, contract.id)
    taken = taken_at_ratios(session, contract.id)  # before anything of it is given back
    parts = foreseen(taken, contract.contract_fen, max((ratio for _, ratio in taken), default=Fraction(0)))
    caps.lock_caps(session, [accounts.cap_contract(contract.id)])  # caps before accounts: `vouchers.locks`
    lock_accounts(session, [accounts.available(row.voucher_id) for row in live])
    for reservation in reversed(live):
        programme = session.get_one(Programme, session.get_one(Voucher, reservation.voucher_id).programme_id)
        share = decide_share(rules_of(programme), parts, declared_fen=declared)
        beyond = taken_of_contract(session, contract.id) - share.fen
        idle = balance(session, accounts.reserved(reservation.id), lock=True)
        if (fen := min(beyond, idle)) > 0:
            freed += release_idle(session, reservation, at_ms, at_most=fen)
            session.flush()
    return freed


def withdraw(session: Session, row: OtherSubsidy, reason: str, *, actor: str, at_ms: int) -> OtherSubsidy:
    """An operator takes a declaration back that was made in error; the row stays. `Conflict` SUBSIDY_WITHDRAWN."""
    if row.withdrawn_at_ms is not None:
        raise Conflict("SUBSIDY_WITHDRAWN", zh="该申报已撤销", en="this declaration was withdrawn already",
                       remedy_zh="无需再次操作", remedy_en="there is nothing more to do")  # fmt: skip
    row.withdrawal = bounded_text(reason_of(reason), "reason")
    row.withdrawn_at_ms, row.withdrawn_by = at_ms, actor
    _record(session, row, "withdraw", actor, note=row.withdrawal)
    notices.notify(
        session,
        row.organisation_id,
        "SUBSIDY_WITHDRAWN",
        zh=f"其他补贴申报“{row.programme}”已撤销: {row.withdrawal}",
        en=f"the declaration of {row.programme} was withdrawn: {row.withdrawal}",
        link=f"/console/subscriptions/{row.subscription_id}",
    )
    return row


def get_subsidy(session: Session, subsidy_id: str, organisation_id: str | None) -> OtherSubsidy:
    """Locked; within one organisation, or any (None). `NotFound` SUBSIDY_NOT_FOUND."""
    row = session.exec(select(OtherSubsidy).where(OtherSubsidy.id == subsidy_id).with_for_update()).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise NotFound(
            "SUBSIDY_NOT_FOUND",
            zh=f"没有补贴申报“{subsidy_id[:60]}”",
            en=f"there is no declared subsidy {subsidy_id[:60]!r}",
            remedy_zh="请查看合约页",
            remedy_en="see the contracts' page",
        )
    return row


def list_subsidies(session: Session, organisation_id: str | None, subscription_id: str = "") -> list[OtherSubsidy]:
    """Oldest first; of one organisation, or of all."""
    query = select(OtherSubsidy)
    if organisation_id is not None:
        query = query.where(OtherSubsidy.organisation_id == organisation_id)
    if subscription_id:
        query = query.where(OtherSubsidy.subscription_id == subscription_id)
    return list(session.exec(query.order_by(col(OtherSubsidy.created_at_ms), col(OtherSubsidy.id))))


def retention_years(session: Session, subscription_id: str) -> int:
    """The longest that a programme which pays of the contract asks for; ten where none does."""
    of_contract = (
        select(Programme)
        .join(Voucher, col(Voucher.programme_id) == col(Programme.id))
        .join(Reservation, col(Reservation.voucher_id) == col(Voucher.id))
        .where(Reservation.subscription_id == subscription_id)
    )
    return max((rules_of(programme).retention_years for programme in session.exec(of_contract)), default=10)


def _record(session: Session, row: OtherSubsidy, action: str, actor: str, **details: object) -> None:
    session.add(row)
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action=f"subsidy.{action}",
        subject=row.id,
        **details,
    )


def _invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "SUBSIDY_INVALID", zh=zh, en=en, remedy_zh="请如实申报", remedy_en="declare it as it is", field=field
    )
