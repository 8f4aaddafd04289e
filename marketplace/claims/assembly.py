"""What can be claimed: charges of a programme and period that stand in no batch yet, one line per reservation.

A charge (P5) belongs to the day of the last use in it, a correction (P13) to the day it was posted. What fails a check
now (related parties, redeem-by, invoices, findings) is left out with the reason, and can be claimed once that is
mended.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from sqlmodel import Session, col, func, select

from marketplace.claims.backing import Plan, invoices_of_contract
from marketplace.claims.stacked import claimed_subsidy, decide_claimable, share_of_settled
from marketplace.claims.tables import ClaimedTransfer, ClaimLine
from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.findings.dispositions import findings_about
from marketplace.findings.tables import Finding
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.usage.tables import Usage
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.sale import relation_between
from marketplace.vouchers.tables import Reservation, Voucher

_USED = accounts.used("")[:-1]  # what the accounts of use begin with
INVOICE = "invoice"  # the evidence code by which a programme asks for them


@dataclass(frozen=True, slots=True)
class Charged:
    """One transfer's part under one reservation. A correction's amounts are negative."""

    transfer_id: int
    kind: str
    event_key: str
    occurred_at_ms: int
    gross_fen: int
    subsidy_fen: int


@dataclass(slots=True)
class Candidate:
    """A line to be. `reason`: why it is left out; "" where it is not. `held_back`: charges that other subsidies leave
    no room for now."""

    reservation: Reservation
    voucher: Voucher
    charges: list[Charged] = field(default_factory=list)
    reason: str = ""
    held_back: list[Charged] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)  # about its contract, that nobody has dismissed

    @property
    def gross_fen(self) -> int:
        return sum(charge.gross_fen for charge in self.charges)

    @property
    def subsidy_fen(self) -> int:
        return sum(charge.subsidy_fen for charge in self.charges)


def assemble(
    session: Session, programme_id: str, rules: ProgrammeFile, from_day: date, to_day: date, at_ms: int
) -> list[Candidate]:
    """Every reservation of the programme with something unclaimed in these days, by id."""
    found: dict[str, Candidate] = {}
    for reservation_id, charge in _unclaimed(session, programme_id, from_day, to_day):
        candidate = found.get(reservation_id)
        if candidate is None:
            reservation = session.get_one(Reservation, reservation_id)
            voucher = session.get_one(Voucher, reservation.voucher_id)
            candidate = found[reservation_id] = Candidate(reservation, voucher)
        candidate.charges.append(charge)
    candidates = [found[reservation_id] for reservation_id in sorted(found)]
    about = findings_about(session, {each.reservation.subscription_id for each in candidates}, programme_id)
    taken = _Taken()
    for candidate in candidates:
        candidate.findings = about.get(candidate.reservation.subscription_id, [])
        candidate.reason = _reason_against(session, candidate, rules, at_ms)
        if not candidate.reason:
            candidate.reason = _beside_others(session, candidate, rules, taken)
    return candidates


@dataclass(slots=True)
class _Taken:
    """What candidates before this one would take: subsidy and gross of each contract, and of invoices."""

    subsidy: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gross: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    invoices: Plan = field(default_factory=Plan)


def _beside_others(session: Session, candidate: Candidate, rules: ProgrammeFile, taken: _Taken) -> str:
    """OTHER_SUBSIDY or INVOICE_MISSING where the contract has no room left for it; takes its part of the room else."""
    contract = candidate.reservation.subscription_id
    share = share_of_settled(session, rules, candidate.reservation)
    if share is not None:
        room = share.fen - claimed_subsidy(session, contract) - taken.subsidy[contract]
        count = decide_claimable([charge.subsidy_fen for charge in candidate.charges], room)
        kept, held_back = candidate.charges[:count], candidate.charges[count:]
        if sum(charge.subsidy_fen for charge in kept) <= 0:
            return "OTHER_SUBSIDY"
        candidate.charges, candidate.held_back = kept, held_back
    if needs_invoices(rules) and not _covered(session, contract, candidate.gross_fen, taken):
        return "INVOICE_MISSING"
    taken.subsidy[contract] += candidate.subsidy_fen
    taken.gross[contract] += candidate.gross_fen
    return ""


def _unclaimed(session: Session, programme_id: str, from_day: date, to_day: date) -> list[tuple[str, Charged]]:
    of_programme = select(Reservation.id).join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
    reservations = set(session.exec(of_programme.where(Voucher.programme_id == programme_id)))
    claimed = select(ClaimedTransfer.transfer_id)
    query = (
        select(LedgerTransfer, LedgerEntry)
        .join(LedgerEntry, col(LedgerEntry.transfer_id) == col(LedgerTransfer.id))
        .where(
            col(LedgerTransfer.kind).in_(("P5", "P13")),
            LedgerTransfer.occurred_at_ms >= start_of_day_ms(from_day),
            LedgerTransfer.occurred_at_ms <= end_of_day_ms(to_day),
            col(LedgerEntry.account).startswith(_USED, autoescape=True),
            col(LedgerTransfer.id).not_in(claimed),
        )
        .order_by(col(LedgerTransfer.id))
    )
    rows = [(t, e, e.account[len(_USED) : -1]) for t, e in session.exec(query)]
    rows = [row for row in rows if row[2] in reservations]
    gross = _gross(session, [transfer.id or 0 for transfer, _, _ in rows])
    return [
        (
            reservation_id,
            Charged(t.id or 0, t.kind, t.event_key, t.occurred_at_ms, gross.get(t.id or 0, 0), e.amount_fen),
        )
        for t, e, reservation_id in rows
    ]


def _gross(session: Session, transfer_ids: list[int]) -> dict[int, int]:
    """What provider, fee and VAT got of each transfer: its gross, negative where it was taken back."""
    found: dict[int, int] = defaultdict(int)
    for start in range(0, len(transfer_ids), 1_000):
        query = select(LedgerEntry.transfer_id, LedgerEntry.account, LedgerEntry.amount_fen)
        for transfer_id, account, fen in session.exec(
            query.where(col(LedgerEntry.transfer_id).in_(transfer_ids[start : start + 1_000]))
        ):
            if account.startswith("M.pay.provider[") or account in (accounts.FEE, accounts.VAT):
                found[transfer_id] -= fen
    return found


def _reason_against(session: Session, candidate: Candidate, rules: ProgrammeFile, at_ms: int) -> str:
    """The first of: nothing left after corrections, related parties, redeem-by, spend, findings that hold."""
    voucher, reservation = candidate.voucher, candidate.reservation
    if candidate.subsidy_fen <= 0:
        return "NOTHING_TO_CLAIM"
    related = rules.relates(relation_between(session, voucher.organisation_id, reservation.provider_id))
    if related and rules.related_party_policy == "refuse":
        return "RELATED_PARTY"
    if voucher.redeem_by and policy_date(at_ms).isoformat() > voucher.redeem_by:
        return "REDEEM_BY_OVER"
    if reservation.posted_gross_fen < rules.min_spend_fen:
        return "SPEND_TOO_SMALL"
    if any(finding.code in rules.signals.hold_claims_on for finding in candidate.findings):
        return "FINDING_OPEN"
    return ""


def needs_invoices(rules: ProgrammeFile) -> bool:
    return any(item.code == INVOICE and item.required for item in rules.evidence_schema or ())


def _covered(session: Session, contract: str, gross_fen: int, taken: _Taken) -> bool:
    """The contract's invoices are at least what was claimed of it so far and is claimed now, and what of them backs no
    line yet is enough: an invoice that is entered for two contracts counts once."""
    invoiced = sum(row.amount_fen for row in invoices_of_contract(session, contract))
    so_far = claimed_gross(session, contract) + taken.gross[contract]
    return invoiced >= so_far + gross_fen and taken.invoices.cover(session, contract, gross_fen)


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
