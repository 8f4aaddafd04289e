"""What a pack tells of its batch's payment: a file beside the frozen document, which was hashed before anybody paid."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, select

from marketplace.claims.tables import ClaimBatch
from marketplace.integrity.days import with_leaves
from marketplace.integrity.prover import Prover
from marketplace.integrity.verify_payment import PAID
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer


def payment_of(session: Session, batch: ClaimBatch, prover: Prover) -> dict[str, Any]:
    """{paid: false}, also while a payment is entered and not confirmed; or amount (fen), reference, day, who entered
    and who confirmed it (ids of members, as the frozen document has who froze it), when (ms), and its posting P10 with
    the proof, None where that day is not closed yet. `LookupError`: the ledger has no such posting."""
    if batch.state not in PAID:
        return {"paid": False}
    posted = session.exec(select(LedgerTransfer).where(LedgerTransfer.event_key == f"P10:{batch.id}")).first()
    if posted is None:
        raise LookupError(f"{batch.id} is {batch.state}, and the ledger has no payment of it")
    ((_, leaf),) = with_leaves(session, [posted], LedgerEntry.transfer_id == posted.id)
    return {
        "paid": True,
        "amount_fen": batch.payment["amount_fen"],
        "reference": batch.payment["reference"],
        "paid_on": batch.payment["paid_on"],
        "entered_by": batch.payment_by,
        "confirmed_by": batch.paid_by,
        "confirmed_at_ms": batch.paid_at_ms,
        "posting": leaf.decode(),
        "proof": prover.transfer(posted.id or 0, posted.posted_at_ms),
    }
