"""A voucher is taken away by two persons, and every voucher is closed once nothing of it is in motion any more."""

from datetime import date
from functools import partial

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from marketplace.claims import clawbacks
from marketplace.claims.tables import ClaimLine, Clawback
from marketplace.clock import end_of_day_ms
from marketplace.db import transaction
from marketplace.ledger.tables import CapCounter
from marketplace.organisations.tables import AuditEvent, Notice
from marketplace.reports.voucher_tables import REGISTER
from marketplace.vouchers import closing, issuing, revoking
from marketplace.vouchers.ending import EndFacts, Waits, close_vouchers, decide_closed
from marketplace.vouchers.tables import Application, LeaseRow, Reservation, Revocation, Subscription, Voucher
from model_store.errors import BadInput, Conflict, Forbidden, NotFound, PaymentRequired
from tests.marketplace.stores import on_both_stores
from tests.marketplace.test_claims import approved, correct, paid
from tests.marketplace.test_reports import report
from tests.marketplace.town import CHEN, DAY, LIN

LAST = date(2027, 6, 30)
ENDED = EndFacts("expired", LAST)


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc)


def propose(town, voucher, member=CHEN, reason="合同不实"):
    with transaction(town.engine) as session:
        revoking.propose(session, voucher, reason, member=member)


def confirm(town, voucher, member=LIN):
    with transaction(town.engine) as session:
        revoking.confirm(session, voucher, member=member, at_ms=town.now)


def revoke(town, voucher):
    propose(town, voucher)
    confirm(town, voucher)


def close(town):
    with transaction(town.engine) as session:
        return [row.id for row in close_vouchers(session, town.now)]


def expire(town):
    with transaction(town.engine) as session:
        return [row.id for row in closing.expire_vouchers(session, town.now)]


def refused(kind, code, act):
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code


def actions_of(town, voucher):
    return [event.action for event in town.rows(AuditEvent) if event.subject == voucher]


# --- revocation -------------------------------------------------------------------------------------------------------


def test_a_revoked_voucher_pays_nothing_new_and_gives_back_all_that_no_node_holds(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=900)  # 300 fen of it are set aside
    programme = town.get(Voucher, voucher).programme_id
    node = town.node()
    node.call(count=30)
    leased = town.total("Q.lease")
    assert leased > 0
    propose(town, voucher)
    node.call()  # until another person confirms it, it goes on
    confirm(town, voucher)
    row = town.get(Voucher, voucher)
    assert (row.state, row.returned_fen) == ("revoked", 1_000 - leased)
    assert (town.total("Q.avail"), town.total("Q.resv"), town.total("Q.lease")) == (0, 0, leased)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - leased
    town.check()
    node.book.expire("org_factory")
    refused(PaymentRequired, "VOUCHER_REVOKED", node.call)
    refused(PaymentRequired, "VOUCHER_REVOKED", town.node("n2").call)
    town.check()
    node.stop()
    town.check()
    assert (town.total("Q.used"), town.total("Q.lease"), town.total("Q.resv")) == (3, 0, 0)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 3
    assert town.get(Voucher, voucher).returned_fen == 997  # exactly what was not used
    assert town.rows(Reservation)[0].state == "expired"
    assert {cap.held_fen for cap in town.rows(CapCounter)} == {0}


def test_another_voucher_pays_from_then_on(town):
    programme = town.programme()
    first, second = town.voucher(500, programme), town.voucher(500, programme)
    town.subscribe(contract_fen=900)
    node = town.node()
    node.call()
    paying = town.rows(Reservation)[0].voucher_id
    other = second if paying == first else first
    revoke(town, paying)
    node.book.expire("org_factory")
    node.call(count=50)
    node.stop()
    assert {row.voucher_id: row.posted_subsidy_fen > 0 for row in town.rows(Reservation)}[other]
    town.check()


def test_it_takes_two_persons_and_a_reason(town):
    voucher = town.voucher(1_000)
    refused(Forbidden, "PERSON_REQUIRED", partial(propose, town, voucher, ""))
    refused(BadInput, "REASON_REQUIRED", partial(propose, town, voucher, CHEN, " "))
    refused(NotFound, "VOUCHER_NOT_FOUND", partial(propose, town, "vch_none"))
    refused(NotFound, "VOUCHER_NOT_FOUND", partial(confirm, town, "vch_none"))
    refused(Conflict, "REVOCATION_STATE", partial(confirm, town, voucher))
    propose(town, voucher)
    refused(Conflict, "REVOCATION_STATE", partial(propose, town, voucher, LIN))
    refused(Forbidden, "TWO_PERSONS", partial(confirm, town, voucher, CHEN))
    refused(Forbidden, "PERSON_REQUIRED", partial(confirm, town, voucher, ""))
    assert town.get(Voucher, voucher).state == "active"
    confirm(town, voucher)
    refused(Conflict, "REVOCATION_STATE", partial(confirm, town, voucher))
    refused(Conflict, "VOUCHER_STATE", partial(propose, town, voucher))
    assert actions_of(town, voucher)[-2:] == ["voucher.propose_revocation", "voucher.revoke"]
    (told,) = [notice for notice in town.rows(Notice) if notice.code == "VOUCHER_REVOKED"]
    assert told.organisation_id == "org_factory"
    assert "合同不实" in told.text_zh
    assert "1000 unused fen" in told.text_en
    town.check()


def test_a_proposal_is_declined_by_another_or_withdrawn_by_who_made_it_and_may_be_made_again(town):
    voucher = town.voucher(1_000)

    def decide(what, member, reason="查无此事"):
        with transaction(town.engine) as session:
            what(session, voucher, reason, member=member, at_ms=town.now)

    refused(Conflict, "REVOCATION_STATE", partial(decide, revoking.decline, LIN))
    propose(town, voucher)
    refused(Forbidden, "TWO_PERSONS", partial(decide, revoking.decline, CHEN))
    refused(BadInput, "REASON_REQUIRED", partial(decide, revoking.decline, LIN, ""))
    refused(Forbidden, "PROPOSER_ONLY", partial(decide, revoking.withdraw, LIN))
    for what in (revoking.decline, revoking.withdraw):
        refused(Forbidden, "PERSON_REQUIRED", partial(decide, what, ""))
    decide(revoking.decline, LIN)
    propose(town, voucher)
    decide(revoking.withdraw, CHEN, "")
    assert [row.state for row in town.rows(Revocation)] == ["declined", "withdrawn"]
    row = town.get(Voucher, voucher)
    assert (row.state, row.returned_fen, town.balance(f"Q.avail[{voucher}]")) == ("active", 0, 1_000)
    revoke(town, voucher)
    assert town.get(Voucher, voucher).state == "revoked"


def test_the_database_keeps_one_live_proposal_a_voucher(town):
    voucher = town.voucher(1_000)
    propose(town, voucher)
    with pytest.raises(IntegrityError), transaction(town.engine) as session:
        session.add(Revocation(id="rvk_2", voucher_id=voucher, reason="x", proposed_by=LIN))


def test_a_voucher_that_lapsed_meanwhile_is_not_revoked_and_a_revoked_one_does_not_lapse(town):
    first, second = (town.voucher(1_000, town.programme()) for _ in range(2))
    revoke(town, second)
    propose(town, first)
    town.pass_days(60)
    assert expire(town) == [first]
    refused(Conflict, "VOUCHER_STATE", partial(confirm, town, first))
    assert (town.get(Voucher, first).state, town.get(Voucher, second).state) == ("expired", "revoked")
    town.check()


def test_a_suspended_voucher_is_revoked_too_and_is_not_resumed(town):
    voucher = town.voucher(1_000)
    with transaction(town.engine) as session:
        issuing.suspend(session, issuing.get_voucher(session, voucher), actor=CHEN)
    revoke(town, voucher)

    def resume():
        with transaction(town.engine) as session:
            issuing.resume(session, issuing.get_voucher(session, voucher), actor=CHEN)

    refused(Conflict, "VOUCHER_STATE", resume)
    assert town.get(Voucher, voucher).returned_fen == 1_000


def test_what_a_revoked_voucher_gave_back_may_be_proposed_for_again_and_what_was_used_of_it_not(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    revoke(town, voucher)
    application = town.get(Voucher, voucher).application_id

    def left():
        with transaction(town.engine) as session:
            return issuing.left_of(session, session.get_one(Application, application))

    assert town.total("Q.used") == 12
    assert left() == 988
    town.now = town.end_of(voucher) + 100 * DAY
    assert close(town) == [voucher]
    assert left() == 988


def test_what_was_used_before_is_claimed_and_paid_and_may_be_clawed_back(town, blobs):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    revoke(town, voucher)
    assert close(town) == []  # 12 fen may still be claimed
    paid(town, blobs)
    assert close(town) == [voucher]
    assert close(town) == []
    line = town.rows(ClaimLine)[0].id
    with transaction(town.engine) as session:
        row = clawbacks.open_clawback(session, line, 12, "重复申报", member=CHEN)
    with transaction(town.engine) as session:
        clawbacks.decide(session, clawbacks.get_clawback(session, row.id), "confirm", member=LIN, at_ms=town.now)
    assert town.get(Voucher, voucher).state == "closed"
    assert town.total("Q.claw") == 12
    town.check()


def test_the_register_tells_revoked_and_closed(town, blobs):
    voucher = town.voucher(1_000)
    revoke(town, voucher)
    (row,) = report(town, blobs, REGISTER.name)
    assert (row["state"], row["returned_fen"]) == ("revoked", 1_000)
    assert close(town) == [voucher]
    (row,) = report(town, blobs, REGISTER.name)
    assert row["state"] == "closed"
    steps = [step.split()[1] for step in row["history"].split(" ; ")]
    assert steps == ["propose", "issue", "propose_revocation", "revoke", "close"]


# --- closed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "day", "waits"),
    [
        (EndFacts("active", LAST), LAST, Waits.NOT_ENDED),
        (EndFacts("suspended", LAST, 1, 1, 1, 1, 1), LAST, Waits.NOT_ENDED),
        (EndFacts("proposed", LAST), LAST, Waits.NOT_ENDED),
        (EndFacts("closed", LAST), LAST, Waits.NOT_ENDED),
        (EndFacts("expired", LAST, 1, 1, 1, 1, 1), LAST, Waits.LEASE_OPEN),
        (EndFacts("exhausted", LAST, 0, 1, 1, 1, 1), LAST, Waits.HELD),
        (EndFacts("revoked", LAST, 0, 0, 1, 1, 1), LAST, Waits.CLAIMABLE),
        (EndFacts("revoked", LAST, 0, 0, 1, 1, 1), date(2027, 7, 1), Waits.BATCHED),
        (EndFacts("expired", LAST, 0, 0, 1, 0, 1), date(2027, 7, 1), Waits.CLAWBACK),
        (EndFacts("expired", LAST, 0, 0, 1, 0, 0), date(2027, 7, 1), None),
        (EndFacts("exhausted", LAST), date(2027, 1, 1), None),
        (EndFacts("revoked", LAST), date(2027, 1, 1), None),
    ],
)
def test_a_voucher_is_closed_once_nothing_of_it_is_in_motion(facts, day, waits):
    assert decide_closed(facts, day) == waits


def test_a_lapsed_voucher_waits_for_its_leases_its_claims_and_their_payment(town, blobs):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=100)
    assert close(town) == []
    town.now = town.end_of(voucher) + 2 * DAY
    expire(town)
    assert close(town) == []  # a node's lease is open
    node.stop()
    assert close(town) == []  # 12 fen may be claimed
    approved(town, blobs)
    town.pass_days(365)
    assert close(town) == []  # they stand in a batch
    row = town.get(Voucher, voucher)
    assert (row.state, town.total("Q.batch")) == ("expired", 12)


def test_what_was_not_claimed_by_the_last_day_stays_used_and_is_closed_with_its_voucher(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    calls = node.call(count=100)
    node.stop()
    programme = town.get(Voucher, voucher).programme_id
    town.now = town.end_of(voucher) + 2 * DAY
    expire(town)
    town.now = town.end_of(voucher) + 90 * DAY  # the redeem-by day, to its last instant
    assert close(town) == []
    town.now += 1
    assert close(town) == [voucher]
    row = town.get(Voucher, voucher)
    assert (row.state, row.state_before, town.total("Q.used")) == ("closed", "expired", 12)
    # a correction that comes after: what it takes back goes on to the pool
    for call in calls:
        correct(town, call.usage_id)
    assert (town.total("Q.used"), town.total("Q.lease"), town.total("Q.resv"), town.total("Q.avail")) == (0, 0, 0, 0)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000
    row = town.get(Voucher, voucher)
    assert (row.state, row.returned_fen) == ("closed", 1_000)
    town.check()


def test_while_it_waits_its_settled_leases_are_not_asked_in_each_pass(town):
    """There may be a hundred thousand; every pass of the housekeeping looks at each voucher that ended."""
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    for name in ("n1", "n2"):
        node = town.node(name)
        node.call(count=100)
        node.stop()
    town.now = town.end_of(voucher) + 3 * DAY
    assert expire(town) == [voucher]
    leases = [f"Q.lease[{row.id}]" for row in town.rows(LeaseRow)]
    asked: list[str] = []

    def listen(_connection, _cursor, _statement, parameters, _context, _many):
        asked.append(str(parameters))

    event.listen(town.engine, "before_cursor_execute", listen)
    assert close(town) == []
    assert not any(lease in parameters for parameters in asked for lease in leases)
    town.now = end_of_day_ms(date.fromisoformat(town.get(Voucher, voucher).redeem_by)) + 1
    assert close(town) == [voucher]
    assert all(any(lease in parameters for parameters in asked) for lease in leases)  # before it is closed they are
    event.remove(town.engine, "before_cursor_execute", listen)


def test_a_used_up_voucher_is_closed_before_its_use_by_day_and_the_reason_stays_that_it_is_used_up(town, blobs):
    voucher = town.voucher(12)
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/copper", 3_000_000, filing_id="flg_1")  # a fen of the voucher's a call
    contract = town.subscribe(3_000, "vendor/copper")
    node = town.node()
    node.call("vendor/copper", count=12)
    node.stop()
    assert town.get(Voucher, voucher).state == "exhausted"
    paid(town, blobs)
    assert town.total("Q.paid") == 12
    assert close(town) == [voucher]
    refused(PaymentRequired, "VOUCHER_EXHAUSTED", partial(town.node().call, "vendor/copper"))
    with transaction(town.engine) as session:
        closing.end_contract(session, session.get_one(Subscription, contract), actor="f", at_ms=town.now)
    town.check()


def test_a_clawback_under_way_keeps_it_from_being_closed(town, blobs):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    paid(town, blobs)
    revoke(town, voucher)
    with transaction(town.engine) as session:
        line = session.exec(select(ClaimLine)).one().id
        row = clawbacks.open_clawback(session, line, 12, "重复申报", member=CHEN).id
    assert close(town) == []
    with transaction(town.engine) as session:
        clawbacks.decide(session, clawbacks.get_clawback(session, row), "drop", member=LIN, at_ms=town.now)
    assert town.get(Clawback, row).state == "dropped"
    assert close(town) == [voucher]
