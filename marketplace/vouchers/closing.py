"""How entitlement comes back: lease to reservation (P6), contract to voucher (P7), a voucher that is over (lapsed or
revoked) to the pool (P8).

Nothing here runs before the journal that could still claim it is sealed and ingested: `settle_leases` is called by the
sealing of an epoch only, and an open lease's entitlement is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlmodel import Session, col, select

from marketplace.clock import end_of_day_ms
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import balance, balances, post_all
from marketplace.organisations import audit, notices
from marketplace.vouchers.locks import caps_of_voucher, lock_entitlement, lock_reservations
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import LIVE, OVER, LeaseRow, Programme, Reservation, Subscription, Voucher
from serving.metering import MICRO_PER_FEN

OPEN = ("open", "draining")
SEALED = ("sealed", "settled")
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Lost:
    """An epoch that two persons wrote off, and their decision."""

    node: str
    epoch: int
    write_off: str


def decide_returnable(leases: Sequence[LeaseRow], num: int, den: int) -> int:
    """Fen that the sealed leases of one reservation may still give back, together.

    What they were granted, less the ceiling of the voucher's share of all that was used under them (part of it may not
    be posted yet), less what they gave back. Open leases answer for themselves: a node never uses more than its grant.
    """
    sealed = [lease for lease in leases if lease.state in SEALED]
    share_micro_den = sum(lease.eligible_micro for lease in sealed) * num
    keep = -(-share_micro_den // (den * MICRO_PER_FEN))
    return max(0, sum(lease.granted_fen - lease.returned_fen for lease in sealed) - keep)


def settle_leases(session: Session, node: str, epoch: int, at_ms: int, write_off: str = "") -> None:
    """P6 for every lease of a sealed epoch. The caller has ingested the epoch's journal to its end; or two persons have
    written it off (`write_off`: their decision), and it is fenced."""
    query = select(LeaseRow).where(LeaseRow.node == node, LeaseRow.epoch == epoch, col(LeaseRow.state).in_(OPEN))
    reservations = sorted({row.reservation_id for row in session.exec(query)} - {""})
    locked = {row.id: row for row in lock_reservations(session, reservations)}
    for lease in session.exec(query.order_by(col(LeaseRow.id)).with_for_update()):
        lease.state = "sealed" if lease.reservation_id else "settled"
        session.add(lease)
    session.flush()
    lock_entitlement(session, list(locked.values()))
    lost = Lost(node, epoch, write_off) if write_off else None
    for reservation in reservations:
        return_remainders(session, locked[reservation], at_ms, lost)


def return_remainders(session: Session, reservation: Reservation, at_ms: int, lost: Lost | None = None) -> None:
    """P6 for the sealed leases of a reservation; the last one of a contract or voucher that is over completes it.

    The caller holds `lock_reservations` and `lock_entitlement`.
    """
    leases = _leases(session, reservation.id)
    voucher = session.get_one(Voucher, reservation.voucher_id)
    ended = session.get_one(Subscription, reservation.subscription_id).state == "ended"
    over = (ended or voucher.state in OVER) and not any(lease.state in OPEN for lease in leases)
    _give_back(session, reservation, leases, at_ms, everything=over, lost=lost)
    if not over:
        return
    if voucher.state in OVER:
        lapse(session, voucher, at_ms)
    else:
        release_idle(session, reservation, at_ms)
        reservation.state = "completed" if reservation.posted_gross_fen else "released"
        session.add(reservation)


def _give_back(
    session: Session,
    reservation: Reservation,
    leases: Sequence[LeaseRow],
    at_ms: int,
    *,
    everything: bool,
    lost: Lost | None = None,
) -> None:
    left = balances(session, [accounts.leased(lease.id) for lease in leases])
    allowed = decide_returnable(leases, reservation.ratio_num, reservation.ratio_den)
    moves = []
    for lease in leases:
        if lease.state not in SEALED:
            continue
        held = left[accounts.leased(lease.id)]
        fen = held if everything else min(held, allowed)
        if fen:
            allowed -= fen
            lease.returned_fen += fen
            facts = (reservation.id, lease.id, fen, lease.returned_fen)
            if lost is not None and (lease.node, lease.epoch) == (lost.node, lost.epoch):
                moves.append(postings.p6_written_off(*facts, lost.write_off, at_ms))
            else:
                moves.append(postings.p6_sealed(*facts, at_ms))
        lease.state = "settled" if fen == held else "sealed"
        session.add(lease)
    post_all(session, moves)


def release_idle(session: Session, reservation: Reservation, at_ms: int, at_most: int | None = None) -> int:
    """P7: what a reservation holds and no lease has goes back to its voucher, or `at_most` of it; answers how much."""
    cap = caps.open_cap(session, accounts.cap_contract(reservation.subscription_id), 0)  # caps before accounts
    idle = balance(session, accounts.reserved(reservation.id), lock=True)
    fen = idle if at_most is None else min(idle, at_most)
    if fen:
        reservation.released_fen += fen
        session.add(reservation)
        caps.release(session, cap, fen)
        move = postings.p7_contract_ended(reservation.voucher_id, reservation.id, fen, reservation.released_fen, at_ms)
        post_all(session, [move])
    return fen


def end_contract(session: Session, subscription: Subscription, *, actor: str, at_ms: int) -> Subscription:
    """End a contract: no new lease; idle entitlement goes back to the voucher at once, leased one when it is sealed."""
    if subscription.state == "ended":
        return subscription
    subscription.state, subscription.ended_at_ms = "ended", at_ms
    session.add(subscription)
    session.flush()
    live = _live_of(session, subscription_id=subscription.id)
    reservations = lock_reservations(session, [row.id for row in live])
    lock_entitlement(session, reservations)
    for reservation in live:
        release_idle(session, reservation, at_ms)
        return_remainders(session, reservation, at_ms)
    audit.record(
        session,
        actor=actor,
        organisation_id=subscription.organisation_id,
        action="subscription.end",
        subject=subscription.id,
    )
    return subscription


def expire_vouchers(session: Session, at_ms: int) -> list[Voucher]:
    """P8 for every voucher whose use-by day and grace for late usage are over. Safe to run as often as one likes."""
    query = (
        select(Voucher, Programme)
        .join(Programme, col(Programme.id) == col(Voucher.programme_id))
        .where(col(Voucher.state).in_(("active", "exhausted", "suspended")))
        .order_by(col(Voucher.id))
    )
    lapsed = []
    for voucher, programme in session.exec(query).all():
        grace = rules_of(programme).late_usage_grace_days * DAY_MS
        if at_ms > end_of_day_ms(date.fromisoformat(voucher.use_by)) + grace:
            lapsed.append(voucher)
    lock_whole(session, [voucher.id for voucher in lapsed])
    lapsed = [voucher for voucher in lapsed if voucher.state not in OVER]  # by another process, meanwhile
    for voucher in lapsed:
        fen = end_voucher(session, voucher, "expired", at_ms)
        audit.record(
            session,
            actor="system",
            organisation_id=voucher.organisation_id,
            action="voucher.expire",
            subject=voucher.id,
            returned_fen=fen,
        )
        notices.notify(
            session,
            voucher.organisation_id,
            "VOUCHER_EXPIRED",
            zh=f"模型券已于 {voucher.use_by} 到期, 未用的 {fen} 分已退回资金池",
            en=f"a voucher lapsed after {voucher.use_by}; {fen} unused fen went back to the pool",
            link=f"/console/vouchers/{voucher.id}",
        )
    return lapsed


def lock_whole(session: Session, voucher_ids: Sequence[str]) -> None:
    """Vouchers with all that lives under them, in the order of `vouchers.locks`; they are as they stand now."""
    live = [row.id for voucher in voucher_ids for row in _live_of(session, voucher_id=voucher, lock=False)]
    lock_entitlement(session, lock_reservations(session, live), voucher_ids)


def end_voucher(session: Session, voucher: Voucher, state: str, at_ms: int) -> int:
    """P6 and P8: what a voucher has that no open lease holds goes back to the pool; answers how many fen.

    `state`: expired or revoked. What open leases hold follows when they are settled. The caller holds `lock_whole`.
    """
    voucher.state, voucher.state_before = state, ""
    session.add(voucher)
    session.flush()
    for reservation in _live_of(session, voucher_id=voucher.id):
        leases = _leases(session, reservation.id)
        _give_back(session, reservation, leases, at_ms, everything=not any(lease.state in OPEN for lease in leases))
    return lapse(session, voucher, at_ms)


def lapse(session: Session, voucher: Voucher, at_ms: int) -> int:
    """P8: the voucher's own balance and its reservations' idle ones go back to the pool, and the caps are released."""
    reservations = _live_of(session, voucher_id=voucher.id)
    contracts = {accounts.cap_contract(row.subscription_id) for row in reservations}
    caps.lock_caps(session, contracts.union(caps_of_voucher(voucher)))  # before any account
    idle = {r.id: fen for r in reservations if (fen := balance(session, accounts.reserved(r.id), lock=True))}
    own = balance(session, accounts.available(voucher.id), lock=True)
    total = own + sum(idle.values())
    if total:
        voucher.returned_fen += total
        move = postings.p8_lapsed(voucher.programme_id, voucher.id, own, idle, voucher.returned_fen, at_ms)
        post_all(session, [move])
        for code in caps_of_voucher(voucher):
            caps.release(session, caps.open_cap(session, code, 0), total)
    for reservation in reservations:
        fen = idle.get(reservation.id, 0)
        reservation.released_fen += fen
        caps.release(session, caps.open_cap(session, accounts.cap_contract(reservation.subscription_id), 0), fen)
        # a sealed lease may still give back to its reservation: over only when there is none of either kind
        if all(lease.state == "settled" for lease in _leases(session, reservation.id)):
            reservation.state = "expired"
        session.add(reservation)
    session.add(voucher)
    session.flush()
    return total


def _leases(session: Session, reservation_id: str) -> list[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.reservation_id == reservation_id)
    return list(session.exec(query.order_by(col(LeaseRow.id)).with_for_update()))


def _live_of(
    session: Session, *, subscription_id: str = "", voucher_id: str = "", lock: bool = True
) -> list[Reservation]:
    query = select(Reservation).where(col(Reservation.state).in_(LIVE))
    if subscription_id:
        query = query.where(Reservation.subscription_id == subscription_id)
    if voucher_id:
        query = query.where(Reservation.voucher_id == voucher_id)
    query = query.order_by(col(Reservation.id))
    return list(session.exec(query.with_for_update() if lock else query))
