"""From charges to the government's payment and back: batches, lines, corrections, clawbacks; two persons each."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from marketplace.catalogue.tables import Filing, Listing
from marketplace.claims import batches, clawbacks, corrections, invoices
from marketplace.claims.assembly import Candidate
from marketplace.claims.charged import Charged, decide_units
from marketplace.claims.document import sha256_of
from marketplace.claims.states import BATCH, decide_reversal
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer, ClaimLine, Clawback, Correction
from marketplace.claims.tracing import claim_of, line_trace
from marketplace.clock import policy_date
from marketplace.db import reading, transaction
from marketplace.ledger import accounts
from marketplace.ledger.rebuild import trial_balance
from marketplace.ledger.tables import CapCounter, LedgerTransfer
from marketplace.organisations.tables import AuditEvent, Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.usage.rounding import Meter, accumulate
from marketplace.usage.tables import Usage
from marketplace.vouchers import closing, issuing
from marketplace.vouchers.tables import Programme, Reservation, Subscription, Voucher
from model_store.blobs import FolderBlobs
from model_store.errors import BadInput, Conflict, Forbidden, NotFound, PaymentRequired
from tests.marketplace.shelf import add_organisation
from tests.marketplace.stores import on_both_stores, unguarded
from tests.marketplace.town import CHEN, DAY, LIN, Node, Town


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc)


def trade(town: Town, calls: int = 100, **changes: Any) -> Node:
    """A voucher of 1,000 fen, and calls of which it pays a third; the node has stopped."""
    town.voucher(1_000, **changes)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=calls)
    node.stop()
    return node


def today(town: Town) -> str:
    return policy_date(town.now).isoformat()


def first_day(town: Town) -> str:
    """Of its batches' period: a fortnight before the town began."""
    return policy_date(town.began - 14 * DAY).isoformat()


def new_batch(town: Town, member: str = CHEN) -> str:
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one().id
        return batches.create(session, programme, first_day(town), today(town), member=member).id


def freeze(town: Town, blobs: FolderBlobs, batch: str, member: str = CHEN) -> ClaimBatch:
    with transaction(town.engine) as session:
        return batches.freeze(session, batches.get_batch(session, batch), blobs, member=member, at_ms=town.now)


def advance(town: Town, batch: str, *decisions: str, member: str = LIN) -> ClaimBatch:
    for decision in decisions:
        with transaction(town.engine) as session:
            row = batches.get_batch(session, batch)
            batches.advance(session, row, decision, member=member, at_ms=town.now)
    return town.get(ClaimBatch, batch)


def approved(town: Town, blobs: FolderBlobs) -> str:
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "review", "publish", "approve")
    return batch


def paid(town: Town, blobs: FolderBlobs) -> str:
    return pay(town, approved(town, blobs))


def pay(town: Town, batch: str) -> str:
    total = town.get(ClaimBatch, batch).total_fen
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        batches.enter_payment(
            session, row, reference="国库 1", paid_on="2027-02-01", amount_fen=total, member=CHEN, at_ms=town.now
        )
    with transaction(town.engine) as session:
        batches.confirm_payment(session, batches.get_batch(session, batch), member=LIN, at_ms=town.now)
    return batch


def lines(town: Town, batch: str) -> list[ClaimLine]:
    return [row for row in town.rows(ClaimLine) if row.batch_id == batch]


def reject(town: Town, batch: str) -> None:
    """Its only line."""
    (line,) = lines(town, batch)
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        found = batches.get_line(session, row, line.id)
        batches.decide_line(session, row, found, "reject", member=LIN, at_ms=town.now, reason="材料不实")


def pool(town: Town) -> dict[str, Any]:
    with reading(town.engine) as session:
        return issuing.pool_position(session, session.exec(select(Programme)).one())


def candidates(town: Town, batch: str) -> list[Candidate]:
    with reading(town.engine) as session:
        return batches.candidates(session, session.get_one(ClaimBatch, batch), town.now)


# --- the way of a batch -----------------------------------------------------------------------------------------------


PAID_TO = [("reimburse", "enterprise"), ("deduct", "platform"), ("deduct", "provider")]


@pytest.mark.parametrize(("mode", "payee"), PAID_TO)
def test_p9_and_p10_a_batch_is_frozen_approved_and_paid(town, blobs, mode, payee):
    trade(town, settlement_mode=mode, payee=payee)  # 37 fen, of which 12 are the voucher's
    batch = new_batch(town)
    assert [candidate.subsidy_fen for candidate in candidates(town, batch)] == [12]
    row = freeze(town, blobs, batch)
    assert (row.state, row.total_fen) == ("frozen", 12)
    assert (town.total("Q.used"), town.balance(accounts.batched(batch))) == (0, 12)
    town.check()
    advance(town, batch, "submit", "review", "publish", "approve")
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        payment = {"reference": "国库 1", "paid_on": "2027-02-01", "amount_fen": 12}
        batches.enter_payment(session, row, **payment, member=CHEN, at_ms=town.now)
    with pytest.raises(Forbidden, match="TWO_PERSONS"), transaction(town.engine) as session:
        batches.confirm_payment(session, batches.get_batch(session, batch), member=CHEN, at_ms=town.now)
    with transaction(town.engine) as session:
        batches.confirm_payment(session, batches.get_batch(session, batch), member=LIN, at_ms=town.now)
    assert town.total("Q.paid") == 12
    owed = town.total("M.recv.gov")
    assert owed == 0
    assert town.balance(accounts.BANK) == (12 if payee == "platform" else 0)
    # of 37 fen the vendor's share is 34 (fee 1, VAT 2); what the city has paid it itself the market owes it no more
    assert town.total("M.pay.provider") == -(34 - (12 if payee == "provider" else 0))
    assert [line.state for line in lines(town, batch)] == ["accepted"]
    assert advance(town, batch, "reconcile").state == "reconciled"
    position = pool(town)
    assert position["conserved"]
    assert (position["used_fen"], position["paid_fen"]) == (12, 12)
    town.check()


def two_providers(town: Town) -> None:
    """100 calls of 0.37 fen each of two vendors' models, all of which the voucher pays, without fee or tax."""
    with transaction(town.engine) as session:
        add_organisation(session, "smith", "vendor", uscc=demo_code(7), is_demo=True, legal_person="演示")
        session.flush()
        town.list_model(session, "smith/copper", 370_000, filing_id="flg_1")
    terms = {"ratio": {"num": 1, "den": 1}, "tax_basis": {"fee_bp": 0, "vat_bp": 0}, "clawback_policy": "proportional"}
    town.voucher(1_000, **terms, settlement_mode="deduct", payee="provider")
    for model in ("vendor/steel", "smith/copper"):
        town.subscribe(contract_fen=400, model=model)
    node = town.node()
    for model, count in (("vendor/steel", 100), ("smith/copper", 200)):
        node.call(model, count)
    node.stop()


def test_a_city_that_pays_providers_itself_leaves_none_of_them_owed_and_the_market_no_cash(town, blobs):
    """Each by its own lines; a line that was taken out before is not settled, a clawback is the enterprise's to pay."""
    two_providers(town)
    owed = [town.balance(accounts.payable_provider(each)) for each in ("org_vendor", "org_smith")]
    assert (owed, town.total("M.recv.gov"), town.total("M.recv.ent")) == ([-37, -74], 111, 0)
    record = next(row for row in town.rows(Usage) if row.model == "smith/copper@1")
    taken = correct(town, record.usage_id)
    batch = paid(town, blobs)
    assert {line.provider_id: line.subsidy_fen for line in lines(town, batch)} == {
        "org_vendor": 37,
        "org_smith": 74 - taken.subsidy_fen,
    }
    for each in ("org_vendor", "org_smith"):
        assert town.balance(accounts.payable_provider(each)) == 0
    assert (town.total("M.recv.gov"), town.total("M.recv.ent"), town.balance(accounts.BANK)) == (0, 0, 0)
    line = next(line for line in lines(town, batch) if line.provider_id == "org_smith")
    claw(town, line.id, 10, ("confirm", LIN))
    assert (town.total("M.recv.claw"), town.total("M.recv.gov")) == (10, -10)  # passed on once it is paid back
    assert town.balance(accounts.payable_provider("org_smith")) == 0  # it did the work
    for decision in ("demand", "recover"):
        decide_claw(town, decision)
    assert (town.total("M.recv.claw"), town.total("M.recv.gov"), town.balance(accounts.BANK)) == (0, 0, 0)
    with reading(town.engine) as session:
        assert trial_balance(session)["balanced"]
    town.check()


def test_a_line_rejected_before_the_payment_is_still_owed_to_its_provider(town, blobs):
    two_providers(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit")
    rejected = next(line for line in lines(town, batch) if line.provider_id == "org_smith")
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        found = batches.get_line(session, row, rejected.id)
        batches.decide_line(session, row, found, "reject", member=LIN, at_ms=town.now, reason="材料不实")
    advance(town, batch, "review", "publish", "approve")
    pay(town, batch)
    assert town.balance(accounts.payable_provider("org_vendor")) == 0
    assert town.balance(accounts.payable_provider("org_smith")) == -74
    assert (town.total("M.recv.ent"), town.total("M.recv.gov"), town.balance(accounts.BANK)) == (74, 0, 0)
    town.check()


def test_the_frozen_document_is_kept_under_its_hash_and_names_what_it_rests_on(town, blobs):
    node = trade(town)
    row = freeze(town, blobs, new_batch(town))
    document = json.loads(blobs.path(row.sha256).read_text(encoding="utf-8"))
    assert sha256_of(document) == row.sha256
    (line,) = document["lines"]
    assert line["usage_count"] == len(node.acknowledged)
    assert sum(each["subsidy_fen"] for each in line["transfers"]) == line["subsidy_fen"] == document["total_fen"]
    assert line["enterprise"]["uscc"]
    standing = {transfer.id for transfer in town.rows(LedgerTransfer)}
    assert {each["id"] for each in line["transfers"]} <= standing


def test_a_charge_is_claimed_once_and_what_comes_later_goes_into_the_next_batch(town, blobs):
    trade(town)
    freeze(town, blobs, new_batch(town))
    again = new_batch(town)
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, again)
    late = town.node("n2")
    late.call(count=100)
    late.stop()
    assert freeze(town, blobs, again).total_fen == 12
    assert town.total("Q.batch") == 24
    town.check()


def one_fen_calls(town: Town) -> None:
    """The model costs a fen a call, of which the voucher pays a third."""
    with transaction(town.engine) as session:
        town.price(session, session.get_one(Listing, "lst_vendor/steel"), 1_000_000)
    town.now += 1_000
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)


def one_by_one(town: Town, name: str, calls: int) -> Node:
    """Each call is taken in by itself: two of three charges have no fen of the voucher."""
    node = town.node(name)
    for _ in range(calls):
        node.call()
        node.flush()
    node.stop()
    return node


def test_a_line_has_the_gross_that_its_subsidy_is_a_share_of_however_the_calls_came_in(town, blobs):
    one_fen_calls(town)
    node = one_by_one(town, "n1", 30)
    correct(town, node.acknowledged[0].usage_id)  # its charge has no subsidy; by the running total a fen of it goes
    batch = new_batch(town)
    row = freeze(town, blobs, batch)
    (line,) = lines(town, batch)
    assert (line.gross_fen, line.subsidy_fen, line.usage_count) == (29, 9, 30)
    document = json.loads(blobs.path(row.sha256).read_text(encoding="utf-8"))
    assert sum(each["gross_fen"] for each in document["lines"][0]["transfers"]) == 29
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, new_batch(town))
    town.check()


def test_a_period_whose_share_comes_to_a_fen_in_the_next_has_no_line_and_can_be_claimed_with_that(town, blobs):
    one_fen_calls(town)
    first = today(town)
    one_by_one(town, "n1", 2)
    town.now += DAY
    one_by_one(town, "n2", 1)
    assert shown(town, batch_of(town, first, first)) == [(2, 0, "NOTHING_TO_CLAIM")]
    assert shown(town, batch_of(town, today(town), today(town))) == [(1, 1, "")]
    both = batch_of(town, first, today(town))
    assert shown(town, both) == [(3, 1, "")]
    row = freeze(town, blobs, both)
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, batch_of(town, first, first))
    advance(town, row.id, "submit", "return")
    assert shown(town, batch_of(town, first, today(town))) == [(3, 1, "")]
    town.check()


def test_a_charge_whose_correction_went_with_another_day_is_not_claimed_without_it(town, blobs):
    """It has no fen of the voucher, and took one of the next day's when it was corrected."""
    one_fen_calls(town)
    first = today(town)
    node = one_by_one(town, "n1", 6)
    town.now += DAY
    one_by_one(town, "n2", 6)
    correct(town, node.acknowledged[0].usage_id)
    later = batch_of(town, today(town), today(town))
    assert shown(town, later) == [(5, 1, "")]
    freeze(town, blobs, later)
    assert shown(town, batch_of(town, first, first)) == [(5, 2, "")]
    advance(town, later, "submit", "return")
    assert shown(town, batch_of(town, first, first)) == [(5, 1, "")]  # both at once again
    freeze(town, blobs, batch_of(town, first, first))
    assert shown(town, batch_of(town, today(town), today(town))) == [(6, 2, "")]
    town.check()


def test_a_charge_of_use_that_the_voucher_pays_nothing_of_is_in_no_line(town):
    one_fen_calls(town)
    voucher = town.rows(Voucher)[0].id
    node = town.node()
    town.now = town.end_of(voucher) - 50
    node.call(count=3)
    node.flush()
    (last,) = node.call()
    node.flush()
    late = msgspec.structs.replace(last, usage_id=last.usage_id[:-4] + "LATE", occurred_at_ms=town.end_of(voucher) + 1)
    town.now += DAY
    node.journal.usage(late)
    node.flush()
    assert town.get(Usage, late.usage_id).lease_kind == "self_pay"
    assert town.rows(Reservation)[0].posted_gross_fen == 5
    assert [each.gross_fen for each in candidates(town, new_batch(town))] == [4]


def bind_anew(town: Town, valid_from: str = "2027-06-01") -> None:
    """vendor/steel from now on stands under another filing, which by its days cannot be that of any use before."""
    with transaction(town.engine) as session:
        session.add(
            Filing(
                id="flg_2", number="演示-不是备案号-2", model_name="m", holder="h", valid_from=valid_from, is_demo=True
            )
        )
        session.flush()
        session.get_one(Listing, "lst_vendor/steel").filing_id = "flg_2"


def frozen_lines(blobs: FolderBlobs, row: ClaimBatch) -> list[dict[str, Any]]:
    return json.loads(blobs.path(row.sha256).read_text(encoding="utf-8"))["lines"]


def test_invariant_5_a_use_keeps_the_filing_of_its_time_whatever_its_listing_is_bound_to_later(town, blobs):
    node = trade(town)
    bind_anew(town)
    row = freeze(town, blobs, new_batch(town))
    (line,) = frozen_lines(blobs, row)
    (filing,) = line["filings"]
    assert line["filing_required"]
    assert (filing["id"], filing["number"], filing["valid_from"]) == ("flg_1", "演示-不是备案号-1", "2026-01-01")
    ids = "".join(f"{usage_id}\n" for usage_id in sorted(record.usage_id for record in node.acknowledged))
    assert (filing["usage_count"], filing["usage_sha256"]) == (100, hashlib.sha256(ids.encode()).hexdigest())
    with reading(town.engine) as session:
        (claimed,) = lines(town, row.id)
        traced = line_trace(session, session.get_one(ClaimBatch, row.id), claimed)
    assert {(used["filing"]["number"], used["filing"]["valid_at_use"]) for used in traced["usage"]} == {
        ("演示-不是备案号-1", True)
    }


def test_invariant_5_which_filing_a_use_was_under_does_not_depend_on_when_it_is_ingested(town, blobs):
    """A listing is bound anew between two calls on one node: another lease, although nothing was ingested yet."""
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    first = node.call(count=3)
    bind_anew(town, "2026-06-01")
    node.book.expire(listing_id="lst_vendor/steel")  # as the market tells its nodes
    second = node.call(count=2)
    node.stop()
    used = {row.usage_id: row.filing_id for row in town.rows(Usage)}
    assert [used[record.usage_id] for record in first + second] == ["flg_1"] * 3 + ["flg_2"] * 2
    town.check()
    assert town.total("Q.lease") == 1  # the first lease's remainder came back too, but for what waits for its fen


def test_usage_from_before_filings_were_recorded_is_said_to_have_none_recorded(town, blobs):
    trade(town)
    unguarded(town.engine, "UPDATE usage SET filing_id = NULL")
    row = freeze(town, blobs, new_batch(town))
    (line,) = frozen_lines(blobs, row)
    assert [(each["id"], each["number"], each["usage_count"]) for each in line["filings"]] == [("", "", 100)]
    with reading(town.engine) as session:
        (claimed,) = lines(town, row.id)
        traced = line_trace(session, session.get_one(ClaimBatch, row.id), claimed)
    assert not any(used["filing"]["recorded"] for used in traced["usage"])


def test_a_line_s_trace_lists_every_check_of_its_application_with_result_and_time(town, blobs):
    trade(town)
    row = freeze(town, blobs, new_batch(town))
    with reading(town.engine) as session:
        (claimed,) = lines(town, row.id)
        found = line_trace(session, session.get_one(ClaimBatch, row.id), claimed)["application"]
    assert found["id"] == town.get(Voucher, claimed.voucher_id).application_id
    made = {check["code"]: (check["passed"], check["at_ms"]) for check in found["checks"]}
    assert made == dict.fromkeys(("standing", "uscc", "filing", "cap", "pool", "evidence"), (True, town.now))


def test_of_two_batches_that_race_for_a_charge_one_is_refused_by_the_database(town, blobs):
    trade(town)
    freeze(town, blobs, new_batch(town))
    (claimed, *_) = town.rows(ClaimedTransfer)
    with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"), transaction(town.engine) as session:
        session.add(ClaimedTransfer(transfer_id=claimed.transfer_id, line_id=claimed.line_id))


def test_p11_a_returned_batch_frees_its_charges_for_another(town, blobs):
    trade(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "return")
    assert (town.total("Q.batch"), town.total("Q.used")) == (0, 12)
    assert [line.state for line in lines(town, batch)] == ["returned"]
    assert freeze(town, blobs, new_batch(town)).total_fen == 12
    town.check()


@pytest.mark.parametrize("mode", ["reimburse", "deduct"])
def test_p12_a_rejected_line_goes_back_to_the_pool_and_is_never_claimed_again(town, blobs, mode):
    trade(town, settlement_mode=mode, payee="enterprise" if mode == "reimburse" else "platform")
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit")
    (line,) = lines(town, batch)
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        found = batches.get_line(session, row, line.id)
        batches.decide_line(session, row, found, "reject", member=LIN, at_ms=town.now, reason="材料不实")
    assert town.total("Q.unissued") == 1_000_000 - 1_000 + 12
    assert town.total("M.recv.gov") == 0
    assert town.total("M.recv.ent") == 37  # all of it is the enterprise's to pay
    held = {row.code.partition("[")[0]: row.held_fen for row in town.rows(CapCounter)}
    assert held["C.ent"] == 988
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, new_batch(town))
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        advance(town, batch, "review", "publish", "approve")  # nothing is left to approve
    town.check()


def test_two_persons_freeze_and_approve_and_the_notice_runs_its_days(town, blobs):
    trade(town)
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one()
        programme.document = programme.document | {"notice_days": 3}
        session.add(programme)
    batch = new_batch(town)
    freeze(town, blobs, batch, member=CHEN)
    advance(town, batch, "submit", "review", "publish")
    with pytest.raises(Forbidden, match="TWO_PERSONS"):
        advance(town, batch, "approve", member=CHEN)
    with pytest.raises(Conflict, match="NOTICE_RUNNING"):
        advance(town, batch, "approve", member=LIN)
    town.pass_days(3)
    assert advance(town, batch, "approve", member=LIN).approved_by == LIN
    with pytest.raises(Forbidden, match="PERSON_REQUIRED"):
        new_batch(town, member="")


def test_invariant_5_each_claimed_fen_leads_to_usage_price_filing_contract_invoice_and_payment(town, blobs):
    trade(town)
    contract = town.rows(Subscription)[0].id
    enter_invoice(town, contract, "26440000000001", 37)
    batch = paid(town, blobs)
    (line,) = lines(town, batch)
    with reading(town.engine) as session:
        traced = line_trace(session, session.get_one(ClaimBatch, batch), session.get_one(ClaimLine, line.id))
        up = claim_of(session, traced["usage"][0]["transfer_id"], to_operator=True)
    assert line.subsidy_fen == town.balance(accounts.paid(town.rows(Programme)[0].id)) == 12
    carried = [row for row in traced["usage"] if row["transfer_id"] in {each["id"] for each in traced["transfers"]}]
    assert sum(row["amount_micro"] for row in carried) * 1 // 3_000_000 == line.subsidy_fen
    for row in carried:
        assert row["amount_micro"] == row["units"] * row["micro_per_unit"] > 0
        assert row["price_version"]
        assert row["filing"]["valid_at_use"]
    assert traced["contract"]["id"] == contract
    assert [each["number"] for each in traced["invoices"]] == ["26440000000001"]
    assert (up["line_id"], up["payment"]["reference"]) == (line.id, "国库 1")


def test_a_payment_of_another_amount_is_refused(town, blobs):
    trade(town)
    batch = approved(town, blobs)
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        facts = {"reference": "x", "paid_on": "2027-02-01", "member": CHEN, "at_ms": town.now}
        with pytest.raises(Conflict, match="PAYMENT_MISMATCH"):
            batches.enter_payment(session, row, amount_fen=11, **facts)


def test_one_payment_pays_one_batch(town, blobs):
    trade(town)
    first = paid(town, blobs)
    late = town.node("n2")
    late.call(count=100)
    late.stop()
    second = approved(town, blobs)

    def enter(reference: str) -> None:
        with transaction(town.engine) as session:
            row = batches.get_batch(session, second)
            facts = {"paid_on": "2027-02-01", "amount_fen": 12, "member": CHEN, "at_ms": town.now}
            batches.enter_payment(session, row, reference=reference, **facts)

    for same in ("国库 1", " 国库1 ", "国库 １"):
        with pytest.raises(Conflict, match="PAYMENT_TWICE") as refused:
            enter(same)
        assert (refused.value.field, refused.value.details) == ("reference", {"claim_id": first})
    assert town.get(ClaimBatch, second).payment == {}
    enter("国库 2")
    with pytest.raises(IntegrityError), transaction(town.engine) as session:  # the database refuses it too
        session.get_one(ClaimBatch, second).payment_key = town.get(ClaimBatch, first).payment_key
    with transaction(town.engine) as session:  # as two entries at the same instant left it before migration 0020
        session.get_one(ClaimBatch, second).payment = town.get(ClaimBatch, first).payment
    with pytest.raises(Conflict, match="PAYMENT_TWICE"), transaction(town.engine) as session:
        batches.confirm_payment(session, batches.get_batch(session, second), member=LIN, at_ms=town.now)
    advance(town, second, "unpay")
    assert town.get(ClaimBatch, second).payment_key is None
    enter("国库 2")
    town.check()


@pytest.mark.parametrize("state", sorted({state for state, _ in BATCH}))
def test_a_batch_does_only_what_its_state_allows(town, blobs, state):
    trade(town)
    batch = new_batch(town)
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        row.state = state
        session.add(row)
    allowed = {decision for before, decision in BATCH if before == state}
    for decision in {decision for _, decision in BATCH} - allowed - {"freeze", "pay", "confirm-payment"}:
        with pytest.raises(Conflict, match="CLAIM_STATE"):
            advance(town, batch, decision)


# --- what is left out -------------------------------------------------------------------------------------------------


def reasons(town: Town) -> list[str]:
    return [candidate.reason for candidate in candidates(town, new_batch(town))]


def test_invariant_10_parties_that_became_related_are_left_out_at_the_freeze(town, blobs):
    trade(town)
    with transaction(town.engine) as session:
        factory = session.get_one(Organisation, "org_factory")
        factory.controllers = ["person_1"]
        vendor = session.get_one(Organisation, "org_vendor")
        vendor.controllers = ["person_1"]
        session.add_all([factory, vendor])
    assert reasons(town) == ["RELATED_PARTY"]
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, new_batch(town))


def test_redeem_by_is_judged_on_the_day_of_the_freeze(town):
    trade(town, validity={"days": 30, "redeem_days": 10})
    town.pass_days(40)
    assert reasons(town) == [""]
    town.pass_days(1)
    assert reasons(town) == ["REDEEM_BY_OVER"]


def test_least_spend_is_of_what_was_settled(town):
    trade(town, min_spend_fen=38)  # 37 were
    assert reasons(town) == ["SPEND_TOO_SMALL"]


def test_invoices_must_cover_what_is_claimed_where_the_programme_asks_for_them(town, blobs):
    schema = [{"code": "invoice", "title_zh": "发票", "title_en": "invoice"}]
    town.programme(evidence_schema=schema)
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one().id
    voucher_with_evidence(town, programme)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    assert reasons(town) == ["INVOICE_MISSING"]
    contract = town.rows(Subscription)[0].id
    enter_invoice(town, contract, "1", 36)
    assert reasons(town) == ["INVOICE_MISSING"]
    enter_invoice(town, contract, "2", 1)
    assert reasons(town) == [""]
    freeze(town, blobs, new_batch(town))


def voucher_with_evidence(town: Town, programme: str) -> None:
    from marketplace.vouchers import applications

    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_factory")
        evidence = [{"code": "invoice", "value": "1"}]
        row = applications.create_application(
            session, owner, programme, requested_fen=1_000, evidence=evidence, actor="f"
        )
        applications.submit(session, row, actor="f")
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
        applications.publish(session, row, actor=CHEN, at_ms=town.now)
        applications.confirm(session, row, actor=CHEN, at_ms=town.now)
        voucher = issuing.propose(session, row, 1_000, member=CHEN, at_ms=town.now)
        issuing.approve(session, voucher, member=LIN, at_ms=town.now)


def enter_invoice(town: Town, contract: str, number: str, fen: int) -> None:
    with transaction(town.engine) as session:
        subscription = session.get_one(Subscription, contract)
        invoices.enter(session, subscription, number=number, amount_fen=fen, issued_on="2027-01-15", actor="f")


def test_an_invoice_is_entered_once_a_contract(town):
    trade(town)
    contract = town.rows(Subscription)[0].id
    enter_invoice(town, contract, "12345678", 37)
    with pytest.raises(Conflict, match="INVOICE_TWICE"):
        enter_invoice(town, contract, "12345678", 37)
    with pytest.raises(BadInput, match="INVOICE_INVALID"):
        enter_invoice(town, contract, "", 37)


# --- corrections ------------------------------------------------------------------------------------------------------


def correct(town: Town, usage_id: str, proposer: str = CHEN, decider: str = LIN) -> Correction:
    with transaction(town.engine) as session:
        row = corrections.propose(session, usage_id, "重复调用", member=proposer)
    with transaction(town.engine) as session:
        found = corrections.get_correction(session, row.id)
        return corrections.decide(session, found, "post", member=decider, at_ms=town.now)


@pytest.mark.parametrize("mode", ["reimburse", "deduct"])
def test_p13_a_correction_takes_back_what_was_charged_and_the_ratio_still_holds(town, blobs, mode):
    node = trade(town, settlement_mode=mode, payee="enterprise" if mode == "reimburse" else "platform")
    gross = subsidy = 0
    for record in node.acknowledged[:50]:
        row = correct(town, record.usage_id)
        gross, subsidy = gross + row.gross_fen, subsidy + row.subsidy_fen
    assert (gross, subsidy) == (37 - 18, 12 - 6)  # 50 calls of 0.37 fen are left
    assert town.total("Q.used") == 6
    assert town.total("M.recv.ent") + town.total("M.recv.gov") == 18
    assert -(town.total("M.pay.provider") + town.balance(accounts.FEE) + town.balance(accounts.VAT)) == 18
    town.check()
    assert freeze(town, blobs, new_batch(town)).total_fen == 6


def test_all_corrected_leaves_nothing_but_rounding_shares_at_zero(town):
    node = trade(town)
    for record in node.acknowledged:
        correct(town, record.usage_id)
    for code in ("Q.used", "M.recv.ent", "M.pay.provider"):
        assert town.total(code) == 0
    assert (town.balance(accounts.FEE), town.balance(accounts.VAT)) == (0, 0)
    assert reasons(town) == ["NOTHING_TO_CLAIM"] or reasons(town) == []
    town.check()


def test_a_record_is_corrected_once_by_two_persons_and_not_under_a_batch(town, blobs):
    node = trade(town)
    first, second = node.acknowledged[0].usage_id, node.acknowledged[1].usage_id
    with pytest.raises(Forbidden, match="TWO_PERSONS"):
        correct(town, first, CHEN, CHEN)
    with pytest.raises(Conflict, match="CORRECTION_TWICE"):
        correct(town, first)  # it was proposed already
    freeze(town, blobs, new_batch(town))
    with pytest.raises(Conflict, match="CORRECTION_CLAIMED"):
        correct(town, second)
    with pytest.raises(NotFound, match="CLAIM_NOT_FOUND"):
        correct(town, "no-such-usage")


def test_a_correction_whose_subsidy_a_later_claimed_charge_carried_says_so(town, blobs):
    """0.37 fen a call at one third: seven calls post 2 fen and no subsidy; two more post the third fen, and with it the
    subsidy of all nine."""
    node = trade(town, calls=7)
    assert (town.balance("M.recv.ent[org_factory]"), town.total("Q.used")) == (2, 0)
    town.now += DAY
    later = town.node("n2")
    later.call(count=2)
    later.stop()
    assert town.total("Q.used") == 1
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one().id
        batch = batches.create(session, programme, today(town), today(town), member=CHEN).id
    freeze(town, blobs, batch)
    with pytest.raises(Conflict, match="CORRECTION_CARRIED") as refused:
        correct(town, node.acknowledged[0].usage_id)
    assert refused.value.field == "usage_id"
    advance(town, batch, "submit", "return")
    correct(town, node.acknowledged[0].usage_id)
    assert town.total("Q.used") == 0
    town.check()


def test_a_correction_after_the_contract_s_end_goes_back_to_the_voucher_and_after_its_lapse_to_the_pool(town):
    node = trade(town)
    voucher = town.rows(Voucher)[0].id
    with transaction(town.engine) as session:
        contract = session.exec(select(Subscription)).one()
        closing.end_contract(session, contract, actor="f", at_ms=town.now)
    for record in node.acknowledged[:30]:
        correct(town, record.usage_id)
    assert town.balance(accounts.available(voucher)) == 1_000 - town.total("Q.used")
    town.check()
    town.pass_days(60)
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now)
    for record in node.acknowledged[30:60]:
        correct(town, record.usage_id)
    assert town.total("Q.unissued") == 1_000_000 - town.total("Q.used")
    town.check()


def test_calls_go_on_to_the_last_fen_after_corrections_under_an_open_lease(town):
    """Each correction gave a fen back that the node's lease still counted on, until ingest found no fen to charge."""
    town.voucher(10, ratio={"num": 1, "den": 1})
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/tin", 100_000, filing_id="flg_1")
    town.subscribe(contract_fen=1_000, model="vendor/tin")
    node = town.node()
    first = node.call("vendor/tin", 10)
    node.flush()
    for record in first[:5]:
        correct(town, record.usage_id)  # a tenth of a fen is taken back, and used again
        node.call("vendor/tin")
        node.flush()
    with pytest.raises(PaymentRequired):
        node.call("vendor/tin", 200)
    node.flush()
    assert len(node.acknowledged) - 5 == 95  # the node counts what was taken back as used
    assert town.total("Q.used") == 9
    node.stop()
    assert (town.total("Q.used"), town.total("Q.lease")) == (9, 1)  # half a fen is not posted yet: a whole one waits
    town.check()


def batch_of(town: Town, from_day: str, to_day: str) -> str:
    with transaction(town.engine) as session:
        return batches.create(session, "town", from_day, to_day, member=CHEN).id


def shown(town: Town, batch: str) -> list[tuple[int, int, str]]:
    return [(each.gross_fen, each.subsidy_fen, each.reason) for each in candidates(town, batch)]


@pytest.mark.parametrize("more", [0, 100])
def test_a_batch_of_the_days_before_a_correction_claims_only_what_it_left(town, blobs, more):
    """Calls of the 15th, corrected on the 16th: whatever was used since, the batch to the 15th has the corrections."""
    node = trade(town)
    first = today(town)
    town.now += DAY
    for record in node.acknowledged[:60]:
        correct(town, record.usage_id)
    assert town.total("Q.used") == 4  # 40 calls of 0.37 fen, a third of it
    if more:
        later = town.node("n2")
        later.call(count=more)
        later.stop()
    batch = batch_of(town, first, first)
    assert shown(town, batch) == [(14, 4, "")]
    assert freeze(town, blobs, batch).total_fen == 4
    assert [(line.gross_fen, line.subsidy_fen) for line in lines(town, batch)] == [(14, 4)]
    rest = batch_of(town, today(town), today(town))
    assert shown(town, rest) == ([(37, 13, "")] if more else [])  # the corrections are not taken off again
    town.check()


def test_a_correction_follows_its_charge_out_of_a_returned_batch_into_the_next(town, blobs):
    node = trade(town)
    first = today(town)
    town.now += DAY
    for record in node.acknowledged[:60]:
        correct(town, record.usage_id)
    batch = batch_of(town, first, first)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "return")
    again = batch_of(town, first, first)
    assert freeze(town, blobs, again).total_fen == 4
    town.check()


def test_what_corrections_outside_the_period_took_back_is_left_out_and_stops_no_other_line(town, blobs):
    """Nine calls of each day post a fen of subsidy each. Of the first day one is corrected, which takes no fen yet, and
    then all of the second: the last of these takes the first day's fen too."""
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/copper", filing_id="flg_1")
    town.voucher(1_000)
    for model in ("vendor/steel", "vendor/copper"):
        town.subscribe(contract_fen=900, model=model)
    made, first = [], today(town)
    for name, other in (("n1", 100), ("n2", 1)):
        node = town.node(name)
        made.append(node.call(count=9))
        node.call("vendor/copper", count=other)
        node.stop()
        town.now += DAY
    for record in (made[0][0], *made[1]):
        correct(town, record.usage_id)
    batch = batch_of(town, first, first)
    assert sorted(shown(town, batch)) == [(3, 1, "CORRECTION_OUTSIDE"), (37, 12, "")]
    assert freeze(town, blobs, batch).total_fen == 12
    both = batch_of(town, first, today(town))
    assert [(each.subsidy_fen, each.reason) for each in candidates(town, both)] == [(0, "NOTHING_TO_CLAIM")]
    town.check()


def test_a_correction_of_a_charge_without_subsidy_goes_with_the_claim_that_has_it(town, blobs):
    """Seven calls post 2 fen and no subsidy, two more the third fen and all the subsidy: it is the first day's record
    that is taken back, and the second day's charge that loses it."""
    node = trade(town, calls=7)
    town.now += DAY
    later = town.node("n2")
    later.call(count=2)
    later.stop()
    correct(town, node.acknowledged[0].usage_id)
    assert town.total("Q.used") == 0
    batch = batch_of(town, today(town), today(town))
    assert [(each.subsidy_fen, each.reason) for each in candidates(town, batch)] == [(0, "NOTHING_TO_CLAIM")]
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        freeze(town, blobs, batch)


def test_a_correction_that_comes_while_its_charge_is_being_frozen_waits_and_is_refused(town, blobs):
    node = trade(town)
    first = today(town)
    town.now += DAY
    later = town.node("n2")
    later.call(count=100)
    later.stop()
    batch = batch_of(town, first, first)
    with transaction(town.engine) as session:
        correction = corrections.propose(session, node.acknowledged[0].usage_id, "重复调用", member=CHEN).id

    def post_it() -> None:
        with transaction(town.engine) as session:
            corrections.decide(
                session, corrections.get_correction(session, correction), "post", member=LIN, at_ms=town.now
            )

    with ThreadPoolExecutor(1) as pool:
        with transaction(town.engine) as session:
            row = batches.get_batch(session, batch)
            batches.freeze(session, row, blobs, member=CHEN, at_ms=town.now)
            posted = pool.submit(post_it)
            wait([posted], timeout=0.3)
            assert not posted.done()
        with pytest.raises(Conflict, match="CORRECTION_CLAIMED"):
            posted.result(timeout=20)
    town.check()


AMOUNT = st.integers(-5, 20)


@given(st.lists(AMOUNT, max_size=8), st.lists(st.tuples(AMOUNT, st.integers(0, 12)), max_size=12))
def test_a_correction_is_in_the_unit_of_its_charge_and_in_none_where_that_is_of_other_days(subsidies, taken):
    charges = [Charged(number, "P5", "", 0, 0, fen) for number, fen in enumerate(subsidies, 1)]
    corrections = [Charged(100 + at, "P13", "", 0, 0, -fen, "u", of) for at, (fen, of) in enumerate(taken)]
    units = decide_units(charges, corrections)
    assert [unit.charges[0] for unit in units] == charges
    placed = {each.transfer_id: unit.charges[0].transfer_id for unit in units for each in unit.charges[1:]}
    for each in corrections:
        own = each.reverses if each.reverses in range(1, len(charges) + 1) else None
        first = 1 if not each.reverses and each.subsidy_fen and charges else None
        assert placed.get(each.transfer_id) == (own or first)


def test_a_self_paid_call_is_corrected_too(town):
    town.subscribe(contract_fen=0, on_voucher_end="self_pay")
    node = town.node()
    node.call(count=10)
    node.stop()
    assert town.total("M.recv.ent") == 3
    for record in node.acknowledged:
        correct(town, record.usage_id)
    assert town.total("M.recv.ent") == 0
    town.check()


AMOUNTS = st.lists(st.tuples(st.integers(0, 5_000_000), st.booleans()), min_size=1, max_size=30)


@given(AMOUNTS, st.integers(1, 100), st.integers(0, 100), st.randoms(use_true_random=False))
def test_taking_back_never_breaks_the_ratio_and_taking_back_all_leaves_nothing(amounts, num, more, random):
    den = num + more
    meter = Meter()
    for micro, eligible in amounts:
        meter = accumulate(meter, micro, micro if eligible else 0, num, den).meter
    order = list(amounts)
    random.shuffle(order)
    for micro, eligible in order:
        taken = decide_reversal(meter, micro, micro if eligible else 0, num, den)
        assert taken.gross_fen >= 0
        assert taken.subsidy_fen >= 0
        meter = taken.meter
        assert meter.posted_subsidy_fen * den <= meter.posted_gross_fen * num
        assert meter.posted_gross_fen * 1_000_000 <= meter.gross_micro
    assert meter == Meter()


@given(AMOUNTS, AMOUNTS, st.integers(1, 100), st.integers(0, 100))
def test_charging_goes_on_after_a_correction_and_catches_up(before, after, num, more):
    """What is posted once nothing waits is the same as if the corrected record had never been."""
    den = num + more
    meter = Meter()
    for micro, eligible in before:
        meter = accumulate(meter, micro, micro if eligible else 0, num, den).meter
    micro, eligible = before[0]
    meter = decide_reversal(meter, micro, micro if eligible else 0, num, den).meter
    plain = Meter()
    for micro, eligible in before[1:]:
        plain = accumulate(plain, micro, micro if eligible else 0, num, den).meter
    for micro, eligible in [*after, (200_000_000, False)]:
        meter = accumulate(meter, micro, micro if eligible else 0, num, den).meter
        plain = accumulate(plain, micro, micro if eligible else 0, num, den).meter
    assert meter == plain


# --- clawbacks --------------------------------------------------------------------------------------------------------


def claw(town: Town, line: str, fen: int, *decisions: tuple[str, str], opener: str = CHEN) -> Clawback:
    with transaction(town.engine) as session:
        row_id = clawbacks.open_clawback(session, line, fen, "虚假用量", member=opener).id
    for decision, member in decisions:
        with transaction(town.engine) as session:
            row = clawbacks.get_clawback(session, row_id)
            clawbacks.decide(session, row, decision, member=member, at_ms=town.now)
    return town.get(Clawback, row_id)


def decide_claw(town: Town, decision: str) -> None:
    """Of the only one there is."""
    (opened,) = town.rows(Clawback)
    with transaction(town.engine) as session:
        clawbacks.decide(session, clawbacks.get_clawback(session, opened.id), decision, member=LIN, at_ms=town.now)


def test_p14_what_was_paid_is_clawed_back_by_two_persons_and_recovered(town, blobs):
    trade(town)
    batch = paid(town, blobs)
    (line,) = lines(town, batch)
    with pytest.raises(BadInput, match="CLAWBACK_AMOUNT"):
        claw(town, line.id, 11)  # the programme says full
    with pytest.raises(Forbidden, match="TWO_PERSONS"):
        claw(town, line.id, 12, ("confirm", CHEN))
    with pytest.raises(BadInput, match="CLAWBACK_AMOUNT"):
        claw(town, line.id, 12)  # that one is open still
    for decision in ("confirm", "demand", "recover"):
        decide_claw(town, decision)
        town.check()
    assert (town.total("Q.paid"), town.total("Q.claw")) == (0, 12)
    assert town.total("M.recv.claw") == town.total("M.recv.gov") == 0
    assert pool(town)["clawed_fen"] == 12
    assert pool(town)["conserved"]


def test_a_proportional_clawback_is_written_off_by_two_persons(town, blobs):
    trade(town, clawback_policy="proportional")
    (line,) = lines(town, paid(town, blobs))
    row = claw(town, line.id, 5, ("confirm", LIN), ("demand", LIN), ("write-off", LIN), ("write-off", LIN))
    assert row.state == "demanded"  # the same person twice is one person
    assert town.total("M.recv.claw") == 5
    with transaction(town.engine) as session:
        found = clawbacks.get_clawback(session, row.id)
        clawbacks.decide(session, found, "write-off", member=CHEN, at_ms=town.now)
    assert town.get(Clawback, row.id).state == "written_off"
    assert town.total("M.recv.claw") == 0
    assert town.total("Q.paid") == 7
    town.check()


def test_every_decision_on_claims_is_in_the_audit_log(town, blobs):
    trade(town)
    batch = paid(town, blobs)
    done = [event.action for event in town.rows(AuditEvent) if event.subject == batch]
    assert done == [
        f"claim.{each}"
        for each in ("create", "freeze", "submit", "review", "publish", "approve", "pay", "confirm-payment")
    ]


def test_reservations_lines_and_balances_agree_over_many_batches(town, blobs):
    trade(town, calls=40)
    frozen: list[str] = []
    for number in range(3):
        node = town.node(f"m{number}")
        node.call(count=30 + number)
        node.stop()
        batch = new_batch(town)
        freeze(town, blobs, batch)
        frozen.append(batch)
        town.check()
    advance(town, frozen[1], "submit", "return")
    (reservation,) = town.rows(Reservation)
    claimed = sum(line.subsidy_fen for line in town.rows(ClaimLine) if line.state == "in_batch")
    assert claimed + town.total("Q.used") == reservation.posted_subsidy_fen
    assert date.fromisoformat(town.get(ClaimBatch, frozen[0]).to_day) == policy_date(town.now)


# --- what is said of bad input ----------------------------------------------------------------------------------------


def test_a_reason_is_asked_for_wherever_something_is_taken_back(town, blobs):
    node = trade(town)
    with pytest.raises(BadInput, match="REASON_REQUIRED"), transaction(town.engine) as session:
        corrections.propose(session, node.acknowledged[0].usage_id, "  ", member=CHEN)
    (line,) = lines(town, paid(town, blobs))
    with pytest.raises(BadInput, match="REASON_REQUIRED"), transaction(town.engine) as session:
        clawbacks.open_clawback(session, line.id, 12, "\t", member=CHEN)


def test_a_payment_s_day_is_named_where_it_is_wrong(town, blobs):
    trade(town)
    batch = approved(town, blobs)
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        facts = {"reference": "x", "amount_fen": 12, "member": CHEN, "at_ms": town.now}
        with pytest.raises(BadInput) as refused:
            batches.enter_payment(session, row, paid_on="the first of May", **facts)
        assert (refused.value.code, refused.value.field) == ("PAYMENT_DAY", "paid_on")
        with pytest.raises(BadInput) as refused:
            batches.enter_payment(session, row, paid_on="2027-05-01", **facts | {"reference": " \u3000 "})
        assert (refused.value.code, refused.value.field) == ("PAYMENT_REFERENCE", "reference")
