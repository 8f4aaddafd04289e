"""Who and what a voucher pays for: pure decisions, each with one reason, the first that fails in the order given here.

An application (`decide_*` below, one per check): standing → code (USCC) → filing → amount → cap → pool → evidence.
A call or contract (`decide_coverage`): programme → use-by → voucher's state → subject → relation → filing → related
party → least contract → other subsidies → what is left. Facts come in as arguments; nothing here reads a clock or a
database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from fractions import Fraction
from math import floor

from marketplace.organisations.uscc import is_valid
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.relations import LEAST_SHARE_BP, Party, find_relation


class Reason(StrEnum):
    """Why not: a closed list; each is also the stable code of a refusal."""

    ORGANISATION_NOT_APPROVED = "ORGANISATION_NOT_APPROVED"
    NOT_IN_SCOPE = "NOT_IN_SCOPE"
    DEMO_MISMATCH = "DEMO_MISMATCH"
    USCC_INVALID = "USCC_INVALID"
    NO_FILED_MODEL = "NO_FILED_MODEL"
    AMOUNT_INVALID = "AMOUNT_INVALID"
    CAP_REACHED = "CAP_REACHED"
    POOL_EXHAUSTED = "POOL_EXHAUSTED"
    TRANCHE_WAITS = "TRANCHE_WAITS"
    EVIDENCE_MISSING = "EVIDENCE_MISSING"
    PROGRAMME_CLOSED = "PROGRAMME_CLOSED"
    VOUCHER_SUSPENDED = "VOUCHER_SUSPENDED"
    VOUCHER_EXPIRED = "VOUCHER_EXPIRED"
    VOUCHER_REVOKED = "VOUCHER_REVOKED"
    SUBJECT_NOT_COVERED = "SUBJECT_NOT_COVERED"
    RELATION_NOT_COVERED = "RELATION_NOT_COVERED"
    FILING_INVALID = "FILING_INVALID"
    RELATED_PARTY = "RELATED_PARTY"
    CONTRACT_TOO_SMALL = "CONTRACT_TOO_SMALL"
    OTHER_SUBSIDY = "OTHER_SUBSIDY"
    CONTRACT_USED_UP = "CONTRACT_USED_UP"
    CONTRACT_ONCE = "CONTRACT_ONCE"
    VOUCHER_EXHAUSTED = "VOUCHER_EXHAUSTED"
    VOUCHER_REQUIRED = "VOUCHER_REQUIRED"


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` None: it passes."""

    reason: Reason | None = None

    @property
    def passed(self) -> bool:
        return self.reason is None


PASSED = Decision()


@dataclass(frozen=True, slots=True)
class FilingFact:
    """A register entry, by its days in Asia/Shanghai (`last` None: no end stated)."""

    number: str
    first: date
    last: date | None
    is_demo: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """The model that is called or contracted: what of it matters to a voucher."""

    is_derivative: bool
    reuses_weights: bool  # true for what is no derivative
    filing: FilingFact | None  # its own, or the root base's over weight-reusing relations
    tier: str


def decide_standing(programme: ProgrammeFile, party: Party) -> Decision:
    """Approved by the operator, of a kind that the programme is for; demonstrations only among themselves."""
    if party.status != "approved":
        return Decision(Reason.ORGANISATION_NOT_APPROVED)
    if party.kind not in programme.who:
        return Decision(Reason.NOT_IN_SCOPE)
    return Decision(Reason.DEMO_MISMATCH) if party.is_demo != programme.is_demo else PASSED


def decide_uscc(party: Party) -> Decision:
    return PASSED if is_valid(party.uscc) else Decision(Reason.USCC_INVALID)


def decide_filing(programme: ProgrammeFile, filing: FilingFact | None, day: date) -> Decision:
    """The filing holds on that day, and is no demonstration entry in a real programme."""
    if not programme.filing_required:
        return PASSED
    if filing is None or filing.is_demo != programme.is_demo:
        return Decision(Reason.FILING_INVALID)
    holds = filing.first <= day and (filing.last is None or day <= filing.last)
    return PASSED if holds else Decision(Reason.FILING_INVALID)


def decide_filed_model_exists(programme: ProgrammeFile, filings: Iterable[FilingFact], day: date) -> Decision:
    """Whether the register has any filing that the programme could pay for on that day."""
    if not programme.filing_required or any(decide_filing(programme, filing, day).passed for filing in filings):
        return PASSED
    return Decision(Reason.NO_FILED_MODEL)


def decide_cap(programme: ProgrammeFile, requested_fen: int, room_fen: int) -> Decision:
    """The amount is positive, within the cap, and within what the cap's period still has room for."""
    if not 0 < requested_fen <= programme.cap_fen:
        return Decision(Reason.AMOUNT_INVALID)
    return PASSED if requested_fen <= room_fen else Decision(Reason.CAP_REACHED)


def decide_pool(requested_fen: int, unissued_fen: int, held_back_fen: int = 0) -> Decision:
    """`held_back_fen`: the most that a tranche which waits for its approval could pay (`tranches.decide_held_back`)."""
    if requested_fen <= unissued_fen:
        return PASSED
    return Decision(Reason.TRANCHE_WAITS if requested_fen <= held_back_fen else Reason.POOL_EXHAUSTED)


def decide_evidence(programme: ProgrammeFile, given: Iterable[str]) -> Decision:
    """Every required piece of evidence is there."""
    needed = {item.code for item in programme.evidence_schema or () if item.required}
    return PASSED if needed <= set(given) else Decision(Reason.EVIDENCE_MISSING)


def decide_related(caller: Party, provider: Party) -> bool:
    """One organisation, one code, one legal person, a shared holder, or one holds the other, by what the two declare;
    from a quarter on. A programme's own threshold and holders in between: `ProgrammeFile.relates`, `relation_between`.
    """
    relation = find_relation(caller, provider)
    return relation is not None and relation.share_bp >= LEAST_SHARE_BP


@dataclass(frozen=True, slots=True)
class VoucherFact:
    """A voucher as far as a decision needs it. `state`: of a closed one, how it ended."""

    state: str
    use_by: date
    programme_state: str


def decide_voucher(voucher: VoucherFact, day: date) -> Decision:
    """The voucher may be drawn on that day: its programme and its use-by day are not over, it is neither revoked nor
    suspended.

    A programme that is frozen or closed issues nothing more, and what it issued is paid all the same.
    """
    if voucher.programme_state not in ("active", "frozen", "closed"):
        return Decision(Reason.PROGRAMME_CLOSED)
    if voucher.state == "expired" or day > voucher.use_by:
        return Decision(Reason.VOUCHER_EXPIRED)
    if voucher.state == "revoked":
        return Decision(Reason.VOUCHER_REVOKED)
    return PASSED if voucher.state in ("active", "exhausted") else Decision(Reason.VOUCHER_SUSPENDED)


def decide_coverage(
    programme: ProgrammeFile,
    voucher: VoucherFact,
    offer: Offer,
    *,
    related: bool,
    contract_fen: int,
    day: date,
    declared_fen: int = 0,
) -> Decision:
    """Whether this voucher pays its share of a call of `offer` on `day`, money left aside; in the order above."""
    standing = decide_voucher(voucher, day)
    if not standing.passed:
        return standing
    if programme.subject != "both" and (programme.subject == "derivative") != offer.is_derivative:
        return Decision(Reason.SUBJECT_NOT_COVERED)
    if not offer.reuses_weights:
        return Decision(Reason.RELATION_NOT_COVERED)
    filing = decide_filing(programme, offer.filing, day)
    if not filing.passed:
        return filing
    if related and programme.related_party_policy == "refuse":
        return Decision(Reason.RELATED_PARTY)
    if contract_fen < programme.min_spend_fen:
        return Decision(Reason.CONTRACT_TOO_SMALL)
    stacks = programme.stacking != "none" or not declared_fen
    return PASSED if stacks else Decision(Reason.OTHER_SUBSIDY)


@dataclass(frozen=True, slots=True)
class Share:
    """What vouchers of a programme may pay of a contract, all together; `reason` where it is nothing."""

    fen: int
    reason: Reason | None = None


def decide_share(
    programme: ProgrammeFile, parts: Sequence[tuple[int | Fraction, Fraction]], *, declared_fen: int
) -> Share:
    """Ratio × gross of each part together, less what other declared subsidies leave no room for. `parts`: the gross fen
    at each ratio of a contract, and that ratio.

    `none`: any other subsidy on the contract rules the voucher out. `cap_total_ratio`: voucher and declared subsidies
    together are at most `stacking_max` of the gross (what its own ratios give where that is not set), cut to whole fen.
    """
    own = floor(sum((gross * ratio for gross, ratio in parts), Fraction(0)))
    if declared_fen <= 0:
        return Share(own)
    if programme.stacking == "none":
        return Share(0, Reason.OTHER_SUBSIDY)
    most = programme.stacking_max
    within = own if most is None else floor(sum(gross for gross, _ in parts) * most.fraction)
    room = within - declared_fen
    return Share(min(own, room)) if room > 0 else Share(0, Reason.OTHER_SUBSIDY)


_FURTHEST = (
    Reason.PROGRAMME_CLOSED,
    Reason.VOUCHER_EXPIRED,
    Reason.VOUCHER_REVOKED,
    Reason.VOUCHER_SUSPENDED,
    Reason.SUBJECT_NOT_COVERED,
    Reason.RELATION_NOT_COVERED,
    Reason.FILING_INVALID,
    Reason.RELATED_PARTY,
    Reason.CONTRACT_TOO_SMALL,
    Reason.OTHER_SUBSIDY,
    Reason.VOUCHER_EXHAUSTED,
    Reason.CONTRACT_USED_UP,
    Reason.CONTRACT_ONCE,
)


def decide_reason(reasons: Sequence[Reason]) -> Reason:
    """The one reason to tell when no voucher pays: that of the voucher that came furthest; VOUCHER_REQUIRED if none."""
    return max(reasons, key=_FURTHEST.index, default=Reason.VOUCHER_REQUIRED)


@dataclass(frozen=True, slots=True)
class Burnable:
    """What the burn order looks at. `breadth`: how much the programme covers, narrower first."""

    priority: int
    use_by: date
    breadth: int
    issued_at_ms: int
    voucher: str


def burn_order(found: Iterable[Burnable]) -> list[Burnable]:
    """Priority → earliest use-by → narrowest scope → oldest → id."""
    return sorted(found, key=lambda b: (b.priority, b.use_by, b.breadth, b.issued_at_ms, b.voucher))


def breadth(programme: ProgrammeFile) -> int:
    """A programme for base models or derivatives only is narrower than one for both; one that needs a filing, too."""
    return 2 * (programme.subject == "both") + (not programme.filing_required)
