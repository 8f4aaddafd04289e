"""Other declared subsidies and invoices: what they leave for a voucher when it is set aside, drawn on and claimed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.claims import batches, invoices
from marketplace.claims.backing import decide_backing
from marketplace.claims.tables import ClaimBatch, ClaimLine, InvoiceBacking
from marketplace.clock import policy_date
from marketplace.db import transaction
from marketplace.vouchers import subscriptions, subsidies
from marketplace.vouchers.subsidies import declare
from marketplace.vouchers.tables import OtherSubsidy, Reservation
from model_store.blobs import FolderBlobs
from model_store.errors import BadInput, Conflict, PaymentRequired
from tests.marketplace.town import CHEN, LIN, Town


def declared(town: Town, contract: str, fen: int) -> str:
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, contract, None)
        facts: dict[str, Any] = {"programme": "技改补贴", "authority": "工信局", "amount_fen": fen}
        return declare(session, row, **facts, actor="f", at_ms=town.now).id


def reserved(town: Town) -> int:
    return sum(row.amount_fen - row.released_fen for row in town.rows(Reservation))


def calls(town: Town, count: int) -> None:
    node = town.node()
    node.call(count=count)
    node.stop()


def frozen(town: Town, blobs: FolderBlobs) -> dict[str, Any]:
    """The document of a batch of all days, frozen now."""
    today = policy_date(town.now).isoformat()
    with transaction(town.engine) as session:
        batch = batches.create(session, "town", "2027-01-01", today, member=CHEN)
        sha256 = batches.freeze(session, batch, blobs, member=CHEN, at_ms=town.now).sha256
    return dict(json.loads(blobs.path(sha256).read_bytes()))


def left_out(town: Town) -> list[tuple[str, int]]:
    """(reason, fen held back) of what a batch made now would show."""
    today = policy_date(town.now).isoformat()
    with transaction(town.engine) as session:
        batch = batches.create(session, "town", "2027-01-01", today, member=CHEN)
        found = batches.candidates(session, batch, town.now)
        return [(each.reason, sum(charge.subsidy_fen for charge in each.held_back)) for each in found]


def test_without_stacking_another_subsidy_frees_what_was_set_aside_and_the_voucher_pays_no_more(town):
    town.voucher(1_000)
    contract = town.subscribe(contract_fen=900)
    assert reserved(town) == 300
    other = declared(town, contract, 1)
    assert reserved(town) == 0
    node = town.node()
    with pytest.raises(PaymentRequired, match="OTHER_SUBSIDY"):
        node.call()
    with transaction(town.engine) as session:
        row = subsidies.get_subsidy(session, other, None)
        subsidies.withdraw(session, row, "登记有误", actor=CHEN, at_ms=town.now)
        with pytest.raises(Conflict, match="SUBSIDY_WITHDRAWN"):
            subsidies.withdraw(session, row, "登记有误", actor=CHEN, at_ms=town.now)
    node.call()
    assert reserved(town) == 300
    town.check()


def test_with_stacking_another_subsidy_lowers_what_is_set_aside_to_the_bound(town):
    town.voucher(1_000, stacking="cap_total_ratio", stacking_max={"num": 1, "den": 2})
    contract = town.subscribe(contract_fen=900)
    declared(town, contract, 100)
    assert reserved(town) == 300  # 450 together leaves 350
    declared(town, contract, 200)
    assert reserved(town) == 150
    declared(town, contract, 500)
    assert reserved(town) == 0
    town.check()


def test_what_a_node_holds_already_is_judged_again_at_the_freeze(town, blobs):
    """Declared after use: the charges stand, and are claimed only as far as all subsidies stay within the bound."""
    town.voucher(1_000, stacking="cap_total_ratio", stacking_max={"num": 1, "den": 2})
    contract = town.subscribe(contract_fen=900)
    for _ in range(3):
        calls(town, 81)  # 29.97 fen each time
    assert [town.balance(f"Q.used[{row.id}]") for row in town.rows(Reservation)] == [29]
    declared(town, contract, 30)  # half of 89 is 44: 14 are left for the voucher
    assert left_out(town) == [("", 20)]
    line = frozen(town, blobs)["lines"][0]
    assert line["subsidy_fen"] == 9
    assert [(each["programme"], each["amount_fen"]) for each in line["other_subsidies"]] == [("技改补贴", 30)]
    assert left_out(town) == [("OTHER_SUBSIDY", 0)]
    town.check()


def test_without_stacking_nothing_of_the_contract_is_claimed_beside_another_subsidy(town, blobs):
    town.voucher(1_000)
    contract = town.subscribe(contract_fen=900)
    calls(town, 100)
    declared(town, contract, 1)
    assert left_out(town) == [("OTHER_SUBSIDY", 0)]
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        frozen(town, blobs)


def test_all_subsidies_of_a_contract_stay_within_the_bound_whenever_they_are_declared(town, blobs):
    """Used, declared and claimed in turns: at every freeze the sum is at most half of what was settled."""
    town.voucher(10_000, stacking="cap_total_ratio", stacking_max={"num": 1, "den": 2})
    contract = town.subscribe(contract_fen=3_000)
    for count, other in ((200, 5), (150, 0), (300, 40), (10, 0), (90, 25)):
        calls(town, count)
        if other:
            declared(town, contract, other)
        with contextlib.suppress(Conflict):  # where there is no room for anything
            frozen(town, blobs)
        settled = sum(row.posted_gross_fen for row in town.rows(Reservation))
        claimed = sum(line.subsidy_fen for line in town.rows(ClaimLine))
        others = sum(row.amount_fen for row in town.rows(OtherSubsidy))
        assert claimed == 0 or 2 * (claimed + others) <= settled
        town.check()
    assert town.rows(ClaimLine)


def test_a_declaration_says_what_who_and_how_much(town):
    town.voucher(1_000)
    contract = town.subscribe(contract_fen=900)
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, contract, None)
        for wrong in ({"programme": " "}, {"authority": ""}, {"amount_fen": 0}, {"amount_fen": 10**13}):
            facts: dict[str, Any] = {"programme": "技改", "authority": "工信局", "amount_fen": 5}
            with pytest.raises(BadInput) as refused:
                declare(session, row, **(facts | wrong), actor="f", at_ms=town.now)
            assert refused.value.field in wrong


# --- invoices ---------------------------------------------------------------------------------------------------------

INVOICE = {"evidence_schema": [{"code": "invoice", "title_zh": "发票", "title_en": "Invoice", "kind": "file"}],
           "checks": [{"code": "standing"}]}  # fmt: skip


def invoice(town: Town, contract: str, number: str, fen: int, day: str = "2027-01-10") -> None:
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, contract, None)
        invoices.enter(session, row, number=number, amount_fen=fen, issued_on=day, actor="f")


@given(st.integers(0, 500), st.lists(st.integers(0, 200), max_size=6))
def test_what_backs_a_line_is_enough_or_all_there_is_and_no_invoice_gives_more_than_it_has(needed, free):
    taken = decide_backing(needed, [(str(number), fen) for number, fen in enumerate(free)])
    assert sum(fen for _, fen in taken) == min(needed, sum(free))
    assert all(0 < fen <= free[int(number)] for number, fen in taken)


def test_one_invoice_backs_one_line_and_then_only_what_is_left_of_it(town, blobs):
    town.voucher(1_000, **INVOICE)
    contract = town.subscribe(contract_fen=900)
    calls(town, 100)  # 37 fen
    invoice(town, contract, "A1", 36)
    assert left_out(town) == [("INVOICE_MISSING", 0)]
    invoice(town, contract, "A2", 10, "2027-01-11")
    document = frozen(town, blobs)
    backs = {each["number"]: each["backs_fen"] for each in document["lines"][0]["invoices"]}
    assert backs == {"A1": 36, "A2": 1}
    calls(town, 50)
    assert left_out(town) == [("INVOICE_MISSING", 0)]  # 18 more, and 9 are left
    invoice(town, contract, "A3", 9, "2027-01-12")
    assert frozen(town, blobs)["lines"][0]["gross_fen"] == 18
    assert sum(row.amount_fen for row in town.rows(InvoiceBacking)) == 55


def test_a_line_that_comes_back_frees_its_invoices_and_a_rejected_one_does_not(town, blobs):
    town.voucher(1_000, **INVOICE)
    contract = town.subscribe(contract_fen=900)
    calls(town, 100)
    invoice(town, contract, "A1", 37)
    for decision, left in (("return", 0), ("reject", 1)):
        frozen(town, blobs)
        batch = next(row.id for row in town.rows(ClaimBatch) if row.state == "frozen")
        with transaction(town.engine) as session:
            row = batches.get_batch(session, batch)
            batches.advance(session, row, "submit", member=LIN, at_ms=town.now)
            line = batches.lines_of(session, row, "in_batch")[0]
            facts: dict[str, Any] = {"member": LIN, "at_ms": town.now, "reason": "材料有误"}
            batches.decide_line(session, row, line, decision, **facts)
        assert len(town.rows(InvoiceBacking)) == left
    town.check()


def test_an_invoice_entered_for_two_contracts_is_one_invoice_with_one_amount(town, blobs):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/copper", filing_id="flg_1")
    town.voucher(1_000, **INVOICE)
    contracts = [town.subscribe(contract_fen=900, model=f"vendor/{name}") for name in ("steel", "copper")]
    node = town.node()
    for name in ("steel", "copper"):
        node.call(f"vendor/{name}", count=100)
    node.stop()
    invoice(town, contracts[0], "A1", 50)
    with pytest.raises(Conflict, match="INVOICE_DIFFERS"):
        invoice(town, contracts[1], "A1", 60)
    with pytest.raises(Conflict, match="INVOICE_DIFFERS"):
        invoice(town, contracts[1], "A1", 50, "2027-01-11")
    invoice(town, contracts[1], "A1", 50)
    assert len(frozen(town, blobs)["lines"]) == 1  # 37 of 50: the other contract's 37 are not covered
    assert [reason for reason, _ in left_out(town)] == ["INVOICE_MISSING"]
    invoice(town, contracts[1], "A2", 24, "2027-01-12")
    invoice(town, contracts[0], "A2", 24, "2027-01-12")
    assert len(frozen(town, blobs)["lines"]) == 1
    assert sum(row.amount_fen for row in town.rows(InvoiceBacking)) == 74
