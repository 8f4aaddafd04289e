"""Other declared subsidies at the freeze: which charges of a contract may be claimed beside them.

Judged on what was really settled of the contract so far, so that all public money together is within the bound at every
instant; what is held back can be claimed once more has been settled. Whole charges move, as everywhere in a claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimLine
from marketplace.vouchers.eligibility import Share, decide_share
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.reservations import declared_fen
from marketplace.vouchers.tables import Reservation


def decide_claimable(subsidies_fen: Sequence[int], room_fen: int) -> int:
    """How many charges from the first on may be claimed: the most whose sum stays within the room.

    A correction (negative) may bring the sum back under the bound, so the longest beginning counts, not the first stop.
    """
    return max((count for count, total in enumerate(accumulate(subsidies_fen), 1) if total <= room_fen), default=0)


def share_of_settled(session: Session, rules: ProgrammeFile, subscription_id: str) -> Share | None:
    """What vouchers may pay of the contract as settled so far, each of its ratios of what was settled at it; None where
    no other subsidy is declared on it."""
    declared = declared_fen(session, subscription_id)
    if not declared:
        return None
    rows = session.exec(select(Reservation).where(Reservation.subscription_id == subscription_id))
    settled = [(row.posted_gross_fen, Fraction(row.ratio_num, row.ratio_den)) for row in rows]
    return decide_share(rules, settled, declared_fen=declared)


def claimed_subsidy(session: Session, subscription_id: str) -> int:
    """What of the contract stands in a batch or was paid, less what was clawed back."""
    query = select(func.sum(ClaimLine.subsidy_fen - ClaimLine.clawed_fen)).where(
        ClaimLine.subscription_id == subscription_id, col(ClaimLine.state).in_(("in_batch", "accepted"))
    )
    return int(session.exec(query).one() or 0)
