"""The two-person rule for proposals that are rows of their own: who may decide one, and that it is decided."""

from __future__ import annotations

from sqlmodel import Session

from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.tables import Revocation, TrancheApproval

Proposal = Revocation | TrancheApproval


def check_person(member: str) -> None:
    """`Forbidden` PERSON_REQUIRED for a key that belongs to nobody."""
    if not member:
        raise forbidden("PERSON_REQUIRED")


def check_another(row: Proposal, member: str) -> None:
    """`Forbidden` TWO_PERSONS for who proposed it."""
    if member == row.proposed_by:
        raise forbidden("TWO_PERSONS")


def check_proposer(row: Proposal, member: str) -> None:
    """`Forbidden` PROPOSER_ONLY for anybody else."""
    if member != row.proposed_by:
        raise forbidden("PROPOSER_ONLY")


def settle(session: Session, row: Proposal, state: str, member: str, note: str, at_ms: int) -> None:
    """What came of a proposal, by whom and why."""
    row.state, row.decided_by, row.note, row.decided_at_ms = state, member, note, at_ms
    session.add(row)
    session.flush()
