"""Whether what is charged may be claimed now: a pure decision with one reason, the first that fails in this order.

Nothing left after corrections → related party → redeem-by → least spend → findings that hold → other subsidies →
corrections outside the period → invoices. What no wait mends comes first; what depends on other lines comes last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from marketplace.claims.stacked import decide_claimable
from marketplace.vouchers.programme import ProgrammeFile


class LeftOut(StrEnum):
    """Why not: a closed list, as `eligibility.Reason` is for calls and applications. Words: `refusals.LEFT_OUT`."""

    NOTHING_TO_CLAIM = "NOTHING_TO_CLAIM"
    RELATED_PARTY = "RELATED_PARTY"
    REDEEM_BY_OVER = "REDEEM_BY_OVER"
    SPEND_TOO_SMALL = "SPEND_TOO_SMALL"
    FINDING_OPEN = "FINDING_OPEN"
    OTHER_SUBSIDY = "OTHER_SUBSIDY"
    CORRECTION_OUTSIDE = "CORRECTION_OUTSIDE"
    INVOICE_MISSING = "INVOICE_MISSING"


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """One reservation's part of a claim, in fen. `units`: (gross, subsidy) of each charge less what was taken back."""

    units: Sequence[tuple[int, int]]
    related: bool  # enterprise and provider, as the programme judges it
    redeem_by: date | None
    settled_fen: int  # gross of the reservation so far, claimed or not
    findings: Collection[str]  # codes about the contract that nobody has dismissed
    other_room_fen: int | None  # what other declared subsidies leave; None: none is declared
    used_fen: int  # what the ledger has of the reservation's use in no batch
    invoice_room_fen: int | None  # what the contract's invoices can still back; None: the programme asks for none


@dataclass(frozen=True, slots=True)
class ClaimDecision:
    """`reason` None: the first `count` units are claimed, the others held back for other subsidies."""

    count: int = 0
    reason: LeftOut | None = None


def decide_claim(programme: ProgrammeFile, facts: ClaimFacts, day: date) -> ClaimDecision:
    """`day`: of the freeze, in Asia/Shanghai."""
    reason = _decide_by_itself(programme, facts, day)
    if reason is not None:
        return ClaimDecision(0, reason)
    count = len(facts.units)
    if facts.other_room_fen is not None:
        count = decide_claimable([subsidy for _, subsidy in facts.units], facts.other_room_fen)
    gross, subsidy = (sum(part) for part in zip((0, 0), *facts.units[:count], strict=True))
    if subsidy <= 0:
        return ClaimDecision(0, LeftOut.OTHER_SUBSIDY)
    if subsidy > facts.used_fen:
        return ClaimDecision(count, LeftOut.CORRECTION_OUTSIDE)
    if facts.invoice_room_fen is not None and gross > facts.invoice_room_fen:
        return ClaimDecision(count, LeftOut.INVOICE_MISSING)
    return ClaimDecision(count)


def _decide_by_itself(programme: ProgrammeFile, facts: ClaimFacts, day: date) -> LeftOut | None:
    if sum(subsidy for _, subsidy in facts.units) <= 0:
        return LeftOut.NOTHING_TO_CLAIM
    if facts.related and programme.related_party_policy == "refuse":
        return LeftOut.RELATED_PARTY
    if facts.redeem_by is not None and day > facts.redeem_by:
        return LeftOut.REDEEM_BY_OVER
    if facts.settled_fen < programme.min_spend_fen:
        return LeftOut.SPEND_TOO_SMALL
    if not set(programme.signals.hold_claims_on).isdisjoint(facts.findings):
        return LeftOut.FINDING_OPEN
    return None
