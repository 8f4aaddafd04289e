"""What a call would cost an organisation before it subscribes: price, the voucher's share, and what is left to pay."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from marketplace.catalogue.tables import Listing
from marketplace.clock import policy_date
from marketplace.vouchers.eligibility import decide_coverage
from marketplace.vouchers.reservations import held_vouchers, ratio_for
from marketplace.vouchers.sale import find_sale, offer_of, relation_between

ANY_CONTRACT_FEN = 10**12  # a quote knows no contract yet: the programme's minimum is left to subscribing


def quote_calls(session: Session, listing: Listing, organisation_id: str, units: int, at_ms: int) -> dict[str, Any]:
    """`{units, unit, micro_per_unit, gross_micro, voucher_micro, self_paid_micro, ratio, voucher_id, free}` for `units`
    units. The voucher's share is what the first voucher in burn order that covers the listing would pay."""
    sale = find_sale(session, listing, organisation_id, at_ms)
    if sale.price is None or sale.free:
        return {"units": units, "unit": "calls", "micro_per_unit": 0, "gross_micro": 0, "voucher_micro": 0,
                "self_paid_micro": 0, "ratio": None, "voucher_id": None, "free": sale.free or "unpriced"}  # fmt: skip
    gross = units * sale.price.micro_per_unit
    offer = offer_of(session, sale)
    relation = relation_between(session, organisation_id, sale.provider_id)
    share, ratio, voucher = 0, None, None
    for held in held_vouchers(session, organisation_id):
        related, day = held.rules.relates(relation), policy_date(at_ms)
        decision = decide_coverage(
            held.rules, held.fact, offer, related=related, contract_fen=ANY_CONTRACT_FEN, day=day
        )
        if decision.passed:
            found = ratio_for(session, held, offer)
            share, ratio, voucher = gross * found.num // found.den, f"{found.num}/{found.den}", held.voucher.id
            break
    return {
        "units": units,
        "unit": sale.price.unit,
        "micro_per_unit": sale.price.micro_per_unit,
        "gross_micro": gross,
        "voucher_micro": share,
        "self_paid_micro": gross - share,
        "ratio": ratio,
        "voucher_id": voucher,
        "free": "",
    }
