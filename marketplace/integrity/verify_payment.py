"""The payment in a pack: of the batch's amount, by two persons, and posted as it says. Amounts are fen."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from marketplace.clock import policy_date
from marketplace.integrity.opened import Pack
from marketplace.integrity.verify_amounts import Check
from marketplace.integrity.verify_claim import Claimed
from marketplace.integrity.verify_proofs import Roots, leads_to

PAID = ("paid", "reconciled")  # states of batches whose payment is confirmed


def verify_payment(
    pack: Pack, manifest: dict[str, Any], claimed: Claimed, roots: Roots, check: Check
) -> dict[str, Any]:
    """Answers what is to be told of it. That money arrived, no pack can prove: it has what was entered of it, and by
    whom. Raises what `opened.UNREADABLE` lists."""
    told, state = pack.document("payment.json"), manifest["state"]
    paid = told["paid"] is True
    check(paid == (state in PAID), f"payment.json: says {'paid' if paid else 'not paid'}, the batch is {state!r:.40}")
    if not paid:
        check(told == {"paid": False}, "payment.json: has a payment, and says that there is none")
        return {"paid": False}
    amount, entered, confirmed = told["amount_fen"], told["entered_by"], told["confirmed_by"]
    check(amount == claimed.fen, f"payment.json: {amount} fen were paid, the batch is {claimed.fen}")
    persons = all(isinstance(each, str) and each.strip() for each in (entered, confirmed))
    check(persons, "payment.json: does not say who entered and who confirmed it")
    check(entered != confirmed, f"payment.json: {entered!r:.60} entered and confirmed it, alone")
    date.fromisoformat(told["paid_on"])
    check(told["confirmed_at_ms"] >= claimed.frozen_at_ms, "payment.json: confirmed before the batch was frozen")
    _verify_posting(told, manifest["batch"], claimed.programme, check)
    names = ("amount_fen", "reference", "paid_on", "entered_by", "confirmed_by", "confirmed_at_ms")
    facts = {f"payment_{name}": told[name] for name in names}
    return {"paid": True} | facts | {"payment_in_a_closed_day": _verify_proof(told, roots, check)}


def _verify_posting(told: dict[str, Any], batch: str, programme: str, check: Check) -> None:
    """P10 moves just this amount from what the batch had claimed to what its programme has paid."""
    posting = json.loads(told["posting"])
    same = (posting["kind"], posting["event"], posting["occurred_at_ms"])
    check(same == ("P10", f"P10:{batch}", told["confirmed_at_ms"]), "payment.json: another event was posted")
    sums: dict[str, int] = {}
    for account, fen in posting["entries"]:
        for key in (account, account[0]):
            sums[key] = sums.get(key, 0) + fen
    balanced = not sums.get("Q") and not sums.get("M")
    check(balanced, "payment.json: its entries do not sum to zero")
    moved = -sums.get(f"Q.batch[{batch}]", 0), sums.get(f"Q.paid[{programme}]", 0)
    amount = told["amount_fen"]
    check(moved == (amount, amount), f"payment.json: {moved[0]} fen were posted as paid, not {amount}")


def _verify_proof(told: dict[str, Any], roots: Roots, check: Check) -> bool:
    """Whether its day is closed; then it has to lead to that day's root."""
    day = policy_date(json.loads(told["posting"])["posted_at_ms"]).isoformat()
    if told["proof"] is None:
        check(day not in roots, f"payment.json: {day} is closed, and it has no proof")
        return False
    same = leads_to(told["posting"].encode(), told["proof"], roots)
    check(same, f"payment.json: it is not what {day} was closed with")
    return same
