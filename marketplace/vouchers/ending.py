"""The end of a voucher: used up, lapsed or revoked, it is closed once nothing of it is in motion any more.

What was used and not claimed by its redeem-by day stays where it is (`Q.used`): the voucher closes with it. Closed is
no lock: what a correction takes back afterwards goes on to the pool, and what was paid may still be clawed back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimLine, Clawback
from marketplace.clock import policy_date
from marketplace.ledger import accounts
from marketplace.ledger.posting import balances
from marketplace.vouchers.auditing import CLAWBACK_OVER
from marketplace.vouchers.closing import OPEN
from marketplace.vouchers.issuing import record_step
from marketplace.vouchers.locks import lock_vouchers
from marketplace.vouchers.tables import LeaseRow, Reservation, Voucher

ENDED = ("exhausted", "expired", "revoked")
_UNSETTLED = (*OPEN, "sealed")
_CHUNK = 500  # vouchers of one statement


class Waits(StrEnum):
    """Why a voucher is not closed yet: a closed list, in the order of precedence."""

    NOT_ENDED = "NOT_ENDED"  # it may be used, or be used again
    LEASE_OPEN = "LEASE_OPEN"
    HELD = "HELD"
    CLAIMABLE = "CLAIMABLE"
    BATCHED = "BATCHED"
    CLAWBACK = "CLAWBACK"


@dataclass(frozen=True, slots=True)
class EndFacts:
    """What of a voucher may still move, in fen. `held_fen`: available, reserved and leased; `used_fen`: in no batch."""

    state: str
    redeem_by: date
    open_leases: int = 0
    held_fen: int = 0
    used_fen: int = 0
    batched_fen: int = 0
    clawbacks: int = 0  # under way


def decide_closed(facts: EndFacts, day: date) -> Waits | None:
    """Why the voucher is not closed on this day (Asia/Shanghai); None where nothing of it is in motion."""
    if facts.state not in ENDED:
        return Waits.NOT_ENDED
    if facts.open_leases:
        return Waits.LEASE_OPEN
    if facts.held_fen:
        return Waits.HELD
    if facts.used_fen and day <= facts.redeem_by:
        return Waits.CLAIMABLE
    if facts.batched_fen:
        return Waits.BATCHED
    return Waits.CLAWBACK if facts.clawbacks else None


def close_vouchers(session: Session, at_ms: int) -> list[Voucher]:
    """Close what `decide_closed` lets close. Nothing is posted. Safe to run as often as one likes."""
    ended = session.exec(select(Voucher).where(col(Voucher.state).in_(ENDED)).order_by(col(Voucher.id)))
    ready = _ready(session, list(ended), at_ms)
    # as they stand now: another process may have changed them meanwhile
    closed = _ready(session, lock_vouchers(session, [voucher.id for voucher in ready]), at_ms, whole=True)
    for voucher in closed:
        voucher.state_before, voucher.state = voucher.state, "closed"
        record_step(session, voucher, "close", "system", ended=voucher.state_before)
    session.flush()
    return closed


def _ready(session: Session, vouchers: Sequence[Voucher], at_ms: int, *, whole: bool = False) -> list[Voucher]:
    day, ready = policy_date(at_ms), []
    for start in range(0, len(vouchers), _CHUNK):
        part = vouchers[start : start + _CHUNK]
        facts = _facts_of(session, part, whole=whole)
        ready += [voucher for voucher in part if decide_closed(facts[voucher.id], day) is None]
    return ready


def _facts_of(session: Session, vouchers: Sequence[Voucher], *, whole: bool) -> dict[str, EndFacts]:
    """In a handful of queries for all of them: every pass of the housekeeping looks at all that ended.

    Settled leases hold nothing, and there may be a hundred thousand under one voucher. They are asked only where
    `whole`: once, before it is closed.
    """
    ids = [voucher.id for voucher in vouchers]
    of = dict(
        session.exec(select(Reservation.id, Reservation.voucher_id).where(col(Reservation.voucher_id).in_(ids))).all()
    )
    leases = select(LeaseRow.id, Reservation.voucher_id, LeaseRow.state)
    leases = leases.join(Reservation, col(Reservation.id) == col(LeaseRow.reservation_id))
    if not whole:
        leases = leases.where(col(LeaseRow.state).in_(_UNSETTLED))
    holders = {accounts.available(each): each for each in ids} | {accounts.reserved(row): of[row] for row in of}
    open_leases: Counter[str] = Counter()
    for lease, voucher, state in session.exec(leases.where(col(Reservation.voucher_id).in_(ids))):
        open_leases[voucher] += state in OPEN
        holders[accounts.leased(lease)] = voucher
    held, used = _sums(session, holders), _sums(session, {accounts.used(row): of[row] for row in of})
    batched, clawbacks = _claims_of(session, ids)
    return {
        voucher.id: EndFacts(
            voucher.state, date.fromisoformat(voucher.redeem_by), open_leases[voucher.id], held[voucher.id],
            used[voucher.id], batched[voucher.id], clawbacks[voucher.id],
        )
        for voucher in vouchers
    }  # fmt: skip


def _sums(session: Session, accounts_of: Mapping[str, str]) -> Counter[str]:
    """Voucher → fen in its accounts."""
    found: Counter[str] = Counter()
    for account, fen in balances(session, accounts_of).items():
        found[accounts_of[account]] += fen
    return found


def _claims_of(session: Session, ids: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Voucher → fen that stand in batches; clawbacks under way."""
    lines = select(ClaimLine.voucher_id, func.sum(ClaimLine.subsidy_fen)).group_by(col(ClaimLine.voucher_id))
    lines = lines.where(ClaimLine.state == "in_batch", col(ClaimLine.voucher_id).in_(ids))
    clawbacks = select(ClaimLine.voucher_id, func.count()).join(Clawback, col(Clawback.line_id) == col(ClaimLine.id))
    clawbacks = clawbacks.where(col(Clawback.state).not_in(CLAWBACK_OVER), col(ClaimLine.voucher_id).in_(ids))
    batched = {voucher: int(fen) for voucher, fen in session.exec(lines)}
    return Counter(batched), Counter(dict(session.exec(clawbacks.group_by(col(ClaimLine.voucher_id))).all()))
