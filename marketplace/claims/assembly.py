"""What can be claimed: charges of a programme and period that stand in no batch yet, one line per reservation.

Facts are gathered here, `decisions.decide_claim` judges them. What fails a check now (related parties, redeem-by,
invoices, findings, what lies outside the period) is left out with the reason, and can be claimed once that is mended.
Which charges a period has, and which corrections go with them, is told in `charged`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from sqlmodel import Session, col, func, select

from marketplace.claims.backing import Plan, invoices_of_contract
from marketplace.claims.charged import Charged, Unit, unclaimed
from marketplace.claims.decisions import ClaimFacts, decide_claim
from marketplace.claims.stacked import claimed_subsidy, share_of_settled
from marketplace.claims.tables import ClaimLine
from marketplace.clock import policy_date
from marketplace.findings.dispositions import findings_about
from marketplace.findings.tables import Finding
from marketplace.ledger import accounts
from marketplace.ledger.posting import balance
from marketplace.usage.tables import Usage
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.sale import relation_between
from marketplace.vouchers.tables import Reservation, Voucher

INVOICE = "invoice"  # the evidence code by which a programme asks for them


@dataclass(slots=True)
class Candidate:
    """A line to be. `reason`: why it is left out; "" where it is not. `held_back`: charges that other subsidies leave
    no room for now."""

    reservation: Reservation
    voucher: Voucher
    units: list[Unit] = field(default_factory=list)
    reason: str = ""
    held_back: list[Unit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)  # about its contract, that nobody has dismissed

    @property
    def charges(self) -> list[Charged]:
        return [charge for unit in self.units for charge in unit.charges]

    @property
    def gross_fen(self) -> int:
        return sum(unit.gross_fen for unit in self.units)

    @property
    def subsidy_fen(self) -> int:
        return sum(unit.subsidy_fen for unit in self.units)


def assemble(
    session: Session,
    programme_id: str,
    rules: ProgrammeFile,
    from_day: date,
    to_day: date,
    at_ms: int,
    *,
    lock: bool = False,
) -> list[Candidate]:
    """Every reservation of the programme with something unclaimed in these days, by id. `lock`: as `unclaimed`."""
    candidates = []
    for reservation_id, units in sorted(unclaimed(session, programme_id, from_day, to_day, lock=lock).items()):
        reservation = session.get_one(Reservation, reservation_id)
        candidates.append(Candidate(reservation, session.get_one(Voucher, reservation.voucher_id), units))
    about = findings_about(session, {each.reservation.subscription_id for each in candidates}, programme_id)
    taken = _Taken()
    for candidate in candidates:
        candidate.findings = about.get(candidate.reservation.subscription_id, [])
        decision = decide_claim(rules, _facts(session, candidate, rules, taken), policy_date(at_ms))
        candidate.reason = str(decision.reason or "")
        if decision.count:
            kept, candidate.held_back = candidate.units[: decision.count], candidate.units[decision.count :]
            candidate.units = kept
        if not candidate.reason:
            taken.add(session, candidate, rules)
    return candidates


@dataclass(slots=True)
class _Taken:
    """What candidates before this one would take: subsidy and gross of each contract, and of invoices."""

    subsidy: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gross: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    invoices: Plan = field(default_factory=Plan)

    def add(self, session: Session, candidate: Candidate, rules: ProgrammeFile) -> None:
        contract = candidate.reservation.subscription_id
        self.subsidy[contract] += candidate.subsidy_fen
        self.gross[contract] += candidate.gross_fen
        if needs_invoices(rules):
            self.invoices.take(session, contract, candidate.gross_fen)


def _facts(session: Session, candidate: Candidate, rules: ProgrammeFile, taken: _Taken) -> ClaimFacts:
    """What `decide_claim` judges, beside what the candidates before it would take."""
    voucher, reservation = candidate.voucher, candidate.reservation
    contract = reservation.subscription_id
    share = share_of_settled(session, rules, contract)
    room = None if share is None else share.fen - claimed_subsidy(session, contract) - taken.subsidy[contract]
    return ClaimFacts(
        units=[(unit.gross_fen, unit.subsidy_fen) for unit in candidate.units],
        related=rules.relates(relation_between(session, voucher.organisation_id, reservation.provider_id)),
        redeem_by=date.fromisoformat(voucher.redeem_by) if voucher.redeem_by else None,
        settled_fen=reservation.posted_gross_fen,
        findings={finding.code for finding in candidate.findings},
        other_room_fen=room,
        used_fen=balance(session, accounts.used(reservation.id)),
        invoice_room_fen=_invoice_room(session, contract, taken) if needs_invoices(rules) else None,
    )


def needs_invoices(rules: ProgrammeFile) -> bool:
    return any(item.code == INVOICE and item.required for item in rules.evidence_schema or ())


def _invoice_room(session: Session, contract: str, taken: _Taken) -> int:
    """Gross fen that the contract's invoices can still back: of all that they say what was claimed of it is gone, and
    what backs other lines; an invoice that is entered for two contracts counts once."""
    invoiced = sum(row.amount_fen for row in invoices_of_contract(session, contract))
    so_far = claimed_gross(session, contract) + taken.gross[contract]
    return min(invoiced - so_far, taken.invoices.room(session, contract))


def claimed_gross(session: Session, subscription_id: str) -> int:
    """Gross of the contract's lines that stand in a batch or were paid."""
    lines = select(func.sum(ClaimLine.gross_fen)).where(
        ClaimLine.subscription_id == subscription_id, col(ClaimLine.state).in_(("in_batch", "accepted"))
    )
    return int(session.exec(lines).one() or 0)


def usage_digest(session: Session, transfer_ids: list[int]) -> tuple[int, str]:
    """How many usage records these transfers carry, and SHA-256 over `usage_id<TAB>amount_micro<LF>` in id order."""
    rows: list[tuple[str, int]] = []
    for start in range(0, len(transfer_ids), 1_000):
        query = select(Usage.usage_id, Usage.amount_micro)
        rows += session.exec(query.where(col(Usage.transfer_id).in_(transfer_ids[start : start + 1_000]))).all()
    digest = hashlib.sha256()
    for usage_id, amount in sorted(rows):
        digest.update(f"{usage_id}\t{amount}\n".encode())
    return len(rows), digest.hexdigest()
