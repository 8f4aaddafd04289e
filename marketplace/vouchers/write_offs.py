"""Writing off a lost node's epoch, by two persons (../shared/design/vouchers.md, invariant 7).

A lease is given back when its journal is sealed and ingested. Where the node is gone with its disk that never comes:
then one person proposes to give the leases back without it, with a reason, and another approves. The approval fences
the epoch first: it gets no lease any more, and nothing of its journal is charged as if nothing had happened.

Should the journal turn up later, what its node may have used beyond what was ingested by then (`exposed_fen`) is set
aside again, as far as the reservation still has it and is not over (P4). Records that this covers are charged as ever,
once; what nothing covers any more is quarantined (LEASE_WRITTEN_OFF) and charged to nobody.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.ids import new_id
from marketplace.ledger import accounts, postings
from marketplace.ledger.posting import balance, balances, post_all
from marketplace.organisations import audit
from marketplace.organisations.notices import notify_operators
from marketplace.usage.tables import Usage
from marketplace.vouchers.closing import OPEN, settle_leases
from marketplace.vouchers.lease_rows import month_of, own_cost_micro
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.tables import LIVE, EpochWriteOff, LeaseRow, NodeEpoch, Reservation, Subscription
from marketplace.vouchers.write_off_refusals import refused, write_off_not_found
from serving.metering import MICRO_PER_FEN

LIVE_STATES = ("proposed", "approved")
SILENCE_MS = 600_000  # a node that was heard of within ten minutes is not lost
RUNNING_MS = 300_000  # so much longer than its time a lease may be used by a node whose clock is behind
OWN_NODE = "local"


def propose(
    session: Session, node: str, epoch: int, reason: str, *, member: str, at_ms: int, seen_at_ms: int | None
) -> EpochWriteOff:
    """One person's proposal. `seen_at_ms`: when the node was heard of last, None where it was not since the start.

    `Forbidden` PERSON_REQUIRED; `BadInput` REASON_REQUIRED; `NotFound` WRITE_OFF_NOT_FOUND; `Conflict` WRITE_OFF_STATE,
    NODE_REACHABLE, LEASES_RUNNING, WRITE_OFF_OWN_NODE.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    if not reason.strip():
        raise refused("REASON_REQUIRED")
    row = _epoch(session, node, epoch)
    if row.state != "open" or _live(session, node, epoch) is not None:
        raise refused("WRITE_OFF_STATE")
    _check_lost(session, row, at_ms, seen_at_ms)
    made = EpochWriteOff(id=new_id("wof"), node=node, epoch=epoch, reason=reason.strip(), proposed_by=member)
    session.add(made)
    session.flush()
    _record(session, made, "propose", member, reason=made.reason)
    return made


def decide(
    session: Session, row: EpochWriteOff, decision: str, *, member: str, at_ms: int, seen_at_ms: int | None
) -> EpochWriteOff:
    """approve (by another person: `Forbidden` TWO_PERSONS) or decline. What of the journal is here was ingested before.

    Raises as `propose`; WRITE_OFF_STATE too where the journal came first and the epoch is sealed.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    epoch = _epoch(session, row.node, row.epoch)
    if row.state != "proposed" or decision not in ("approve", "decline"):
        raise refused("WRITE_OFF_STATE")
    row.decided_by, row.decided_at_ms = member, at_ms
    if decision == "decline":
        row.state = "declined"
        _record(session, row, "decline", member)
        return row
    if member == row.proposed_by:
        raise forbidden("TWO_PERSONS")
    if epoch.state != "open":
        raise refused("WRITE_OFF_STATE")
    _check_lost(session, epoch, at_ms, seen_at_ms)
    _release(session, row, epoch, at_ms)
    _record(session, row, "approve", member, released_fen=row.released_fen)
    return row


def _check_lost(session: Session, row: NodeEpoch, at_ms: int, seen_at_ms: int | None) -> None:
    if row.node.split("-")[0] == OWN_NODE:
        raise refused("WRITE_OFF_OWN_NODE")
    if seen_at_ms is not None and at_ms - seen_at_ms < SILENCE_MS:
        raise refused("NODE_REACHABLE", seen_at_ms=seen_at_ms)
    ends = max((lease.expires_at_ms for lease in _leases(session, row) if lease.state in OPEN), default=0)
    if ends + RUNNING_MS > at_ms:
        raise refused("LEASES_RUNNING", until_ms=ends + RUNNING_MS)


def _release(session: Session, row: EpochWriteOff, epoch: NodeEpoch, at_ms: int) -> None:
    """Fence, then give back: never the other way round."""
    epoch.state, row.last_seq = "written_off", epoch.last_seq
    session.add(epoch)
    session.flush()
    before = {lease.id: lease.returned_fen for lease in _leases(session, epoch)}
    row.leases = {lease.id: _exposure(session, lease) for lease in _leases(session, epoch) if lease.state in OPEN}
    settle_leases(session, epoch.node, epoch.epoch, at_ms, write_off=row.id)
    row.released_fen = sum(lease.returned_fen - before[lease.id] for lease in _leases(session, epoch))
    row.state = "approved"


def decide_exposure(granted_fen: int, eligible_micro: int, num: int, den: int) -> int:
    """Whole fen that a node may have used under a lease beyond what was ingested: its grant less the voucher's share of
    that, rounded up."""
    return max(0, granted_fen - eligible_micro * num // (den * MICRO_PER_FEN))


def _exposure(session: Session, lease: LeaseRow) -> dict[str, int]:
    """What was ingested under a lease, and what its node may have used beyond that, in whole fen, rounded up."""
    exposed = 0
    if lease.reservation_id:
        reservation = session.get_one(Reservation, lease.reservation_id)
        ratio = (reservation.ratio_num, reservation.ratio_den)
        exposed = decide_exposure(lease.granted_fen, lease.eligible_micro, *ratio)
    return {
        "granted_fen": lease.granted_fen,
        "eligible_micro": lease.eligible_micro,
        "exposed_fen": exposed,
        "restored_fen": 0,
    }


# --- the journal turns up ---------------------------------------------------------------------------------------------


def restore(session: Session, node: str, epoch: int, at_ms: int) -> None:
    """Before a late journal is ingested: each lease gets again what its node may have used, where it is still there.
    Nothing where that was done already."""
    row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
    if row.state != "written_off":
        return
    write_off = _live(session, node, epoch)
    assert write_off is not None
    leases = [lease for lease in _leases(session, row) if lease.id in write_off.leases]
    # locks in the order of every writer: epoch, reservations, leases
    wanted = sorted({lease.reservation_id for lease in leases} - {""})
    query = select(Reservation).where(col(Reservation.id).in_(wanted)).order_by(col(Reservation.id))
    reservations = {each.id: each for each in session.exec(query.with_for_update())}
    facts = {lease_id: dict(known) for lease_id, known in write_off.leases.items()}
    for lease in leases:
        facts[lease.id]["eligible_micro"] = lease.eligible_micro  # corrections may have taken some of it back
        facts[lease.id]["restored_fen"] = _set_aside(session, write_off, lease, facts[lease.id], reservations, at_ms)
        _bound_credit(session, lease)
    write_off.leases = facts
    row.state = "late"
    session.add_all([write_off, row])
    session.flush()


def _set_aside(
    session: Session, write_off: EpochWriteOff, lease: LeaseRow, known: dict[str, int],
    reservations: dict[str, Reservation], at_ms: int,
) -> int:  # fmt: skip
    reservation = reservations.get(lease.reservation_id)
    if reservation is None or reservation.state not in LIVE:
        return 0  # self-paid, or over: what it had went back to its voucher or to the pool
    fen = min(known["exposed_fen"], balance(session, accounts.reserved(reservation.id), lock=True))
    lease.state = "draining"
    session.add(lease)
    if fen:
        lease.granted_fen += fen
        move = postings.p4_restored(reservation.id, lease.id, fen, lease.granted_fen, write_off.id, at_ms)
        post_all(session, [move])
    return fen


def _bound_credit(session: Session, lease: LeaseRow) -> None:
    """What the enterprise may still owe under it is bounded by what is left under its monthly cap by now."""
    if not lease.subscription_id:
        return
    subscription = session.get_one(Subscription, lease.subscription_id)
    if subscription.monthly_cap_fen is None:
        return
    cap = subscription.monthly_cap_fen * MICRO_PER_FEN
    months = {month_of(at): at for at in (lease.opened_at_ms, lease.expires_at_ms - 1)}
    room = min(cap - own_cost_micro(session, subscription.id, at) for at in months.values())
    others = select(LeaseRow).where(LeaseRow.subscription_id == subscription.id, col(LeaseRow.state).in_(OPEN))
    for each in session.exec(others):
        if each.id != lease.id:
            room -= max(0, each.credit_micro - each.own_micro)
    lease.credit_micro = min(lease.credit_micro, lease.own_micro + max(0, room))
    session.add(lease)


def note_turned_up(session: Session, node: str, epoch: int, at_ms: int) -> None:
    """After the late journal is ingested and settled: what became of its records, kept and told to the operators."""
    row = _live(session, node, epoch)
    if row is None or row.state != "approved":
        return
    of_late = select(func.count()).select_from(Usage).where(Usage.node == node, Usage.epoch == epoch)
    row.late_records = session.exec(of_late.where(Usage.seq > row.last_seq)).one()
    row.late_quarantined = session.exec(of_late.where(Usage.reason == "LEASE_WRITTEN_OFF")).one()
    row.state, row.turned_up_at_ms = "turned_up", at_ms
    all_of_it, refused_of_it = row.late_records, row.late_quarantined
    _record(session, row, "turned_up", "system", records=all_of_it, quarantined=refused_of_it)
    notify_operators(
        session,
        "LATE_JOURNAL",
        zh=f"已核销的节点 {node} 第 {epoch} 期日志已找回: {all_of_it} 条记录, 其中 {refused_of_it} 条已隔离",
        en=f"the journal of epoch {epoch} of node {node} has turned up after its write-off: {all_of_it} records, "
        f"{refused_of_it} of them quarantined because nothing covers them any more",
        link="/city/nodes",
    )


def note_recovered(session: Session, node: str, epoch: int, at_ms: int) -> None:
    """A journal that came before the second person did: the proposal has nothing left to write off."""
    row = _live(session, node, epoch)
    if row is not None and row.state == "proposed":
        row.state, row.decided_at_ms = "recovered", at_ms
        _record(session, row, "recovered", "system")


def leases_of_write_off(session: Session, epoch: NodeEpoch) -> dict[str, dict[str, int]]:
    """What a late epoch's leases are judged by."""
    row = _live(session, epoch.node, epoch.epoch)
    return {} if row is None else row.leases


# --- reading ----------------------------------------------------------------------------------------------------------


def get_write_off(session: Session, row_id: str) -> EpochWriteOff:
    """`NotFound` WRITE_OFF_NOT_FOUND."""
    row = session.get(EpochWriteOff, row_id)
    if row is None:
        raise write_off_not_found(row_id)
    return row


def list_write_offs(session: Session) -> list[EpochWriteOff]:
    """Newest first."""
    return list(session.exec(select(EpochWriteOff).order_by(col(EpochWriteOff.created_at_ms).desc())))


def held_fen(session: Session, epoch: NodeEpoch) -> int:
    """What the leases of an epoch hold of vouchers."""
    ids = [lease.id for lease in _leases(session, epoch) if lease.reservation_id]
    return sum(balances(session, [accounts.leased(each) for each in ids]).values())


def _epoch(session: Session, node: str, epoch: int) -> NodeEpoch:
    row = session.get(NodeEpoch, (node, epoch), with_for_update=True)
    if row is None:
        raise write_off_not_found(f"{node}-{epoch}")
    return row


def _live(session: Session, node: str, epoch: int) -> EpochWriteOff | None:
    query = select(EpochWriteOff).where(EpochWriteOff.node == node, EpochWriteOff.epoch == epoch)
    return session.exec(query.where(col(EpochWriteOff.state).in_(LIVE_STATES)).with_for_update()).first()


def _leases(session: Session, row: NodeEpoch) -> list[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.node == row.node, LeaseRow.epoch == row.epoch)
    return list(session.exec(query.order_by(col(LeaseRow.id))))


def _record(session: Session, row: EpochWriteOff, action: str, member: str, **details: Any) -> None:
    session.add(row)
    subject = f"{row.node}-{row.epoch}"
    audit.record(
        session, actor=member, action=f"epoch.write_off.{action}", subject=subject, write_off=row.id, **details
    )
