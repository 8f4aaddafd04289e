"""From application to voucher to contract and back: eligibility, two persons, caps, reservations, ends."""

from datetime import date
from fractions import Fraction

import pytest
from sqlalchemy import text
from sqlmodel import select

from marketplace.catalogue.tables import Filing, Listing
from marketplace.db import reading, transaction
from marketplace.ledger.tables import CapCounter
from marketplace.organisations.tables import AuditEvent, Notice, Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.vouchers import applications, closing, dropping, eligibility, issuing, sale, subscriptions
from marketplace.vouchers.eligibility import (
    Burnable,
    Decision,
    FilingFact,
    Offer,
    Party,
    Reason,
    VoucherFact,
    decide_share,
)
from marketplace.vouchers.objections import decide_objection, object_to
from marketplace.vouchers.quote import quote_calls
from marketplace.vouchers.refusals import words
from marketplace.vouchers.reservations import decide_amount, firm_age_years
from marketplace.vouchers.rollout import get_programme, set_programme_state
from marketplace.vouchers.tables import Application, LeaseRow, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import crossed
from model_store.errors import BadInput, Conflict, Forbidden, NotFound, PaymentRequired
from tests.marketplace.shelf import add_listing
from tests.marketplace.stores import STORES
from tests.marketplace.town import CHEN, LIN, START, programme_file

DAY = date(2027, 1, 15)
FACTORY = Party("org_factory", "enterprise", "approved", demo_code(1), is_demo=True)
VENDOR = Party("org_vendor", "vendor", "approved", demo_code(0), is_demo=True)
FILED = FilingFact("演示", date(2026, 1, 1), None, True)
PLAIN = Offer(is_derivative=False, reuses_weights=True, filing=FILED, tier="small")
LIVE = VoucherFact("active", DAY, "active")


# --- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"status": "suspended", "kind": "operator", "is_demo": False}, Reason.ORGANISATION_NOT_APPROVED),
        ({"kind": "operator", "is_demo": False}, Reason.NOT_IN_SCOPE),
        ({"is_demo": False}, Reason.DEMO_MISMATCH),
    ],
)
def test_standing_is_judged_in_order(changes, reason):
    party = Party(**{name: getattr(FACTORY, name) for name in Party.__slots__} | changes)
    assert eligibility.decide_standing(programme_file(), party).reason == reason


def test_each_check_of_an_application_has_its_reason():
    programme = programme_file(evidence_schema=[{"code": "contract", "title_zh": "合同", "title_en": "contract"}])
    e = eligibility
    assert e.decide_uscc(FACTORY).passed
    assert e.decide_uscc(Party("o", "enterprise", "approved", "123")).reason == Reason.USCC_INVALID
    assert e.decide_cap(programme, 100, 100).passed
    assert e.decide_cap(programme, 0, 100).reason == Reason.AMOUNT_INVALID
    assert e.decide_cap(programme, 500_001, 600_000).reason == Reason.AMOUNT_INVALID
    assert e.decide_cap(programme, 101, 100).reason == Reason.CAP_REACHED
    assert e.decide_pool(100, 100).passed
    assert e.decide_pool(101, 100).reason == Reason.POOL_EXHAUSTED
    assert e.decide_evidence(programme, ["contract", "more"]).passed
    assert e.decide_evidence(programme, []).reason == Reason.EVIDENCE_MISSING
    assert e.decide_filed_model_exists(programme, [FILED], DAY).passed
    assert e.decide_filed_model_exists(programme, [], DAY).reason == Reason.NO_FILED_MODEL
    assert e.decide_filed_model_exists(programme_file(filing_required=False), [], DAY).passed


@pytest.mark.parametrize(
    ("filing", "holds"),
    [
        (FILED, True),
        (None, False),
        (FilingFact("x", date(2027, 1, 15), date(2027, 1, 15), True), True),
        (FilingFact("x", date(2027, 1, 16), None, True), False),
        (FilingFact("x", date(2026, 1, 1), date(2027, 1, 14), True), False),
        (FilingFact("x", date(2026, 1, 1), None, False), False),  # a real filing in a demonstration, or the other way
    ],
)
def test_invariant_5_a_filing_must_hold_on_the_day_of_use(filing, holds):
    decision = eligibility.decide_filing(programme_file(), filing, DAY)
    assert decision == (Decision() if holds else Decision(Reason.FILING_INVALID))


@pytest.mark.parametrize(
    ("caller", "provider", "related"),
    [
        ({}, {}, False),
        ({"organisation": "org_vendor"}, {}, True),
        ({"uscc": "X"}, {"uscc": "X"}, True),
        ({"uscc": ""}, {"uscc": ""}, False),
        ({"legal_person": "王"}, {"legal_person": "王"}, True),
        ({"legal_person": "王", "is_demo": True}, {"legal_person": "王"}, False),  # demonstrations share a placeholder
        ({"controllers": frozenset({"p1", "p2"})}, {"controllers": frozenset({"p2"})}, True),
        ({"uscc": "X"}, {"controllers": frozenset({"X"})}, True),
        ({"controllers": frozenset({"Y"})}, {"uscc": "Y"}, True),
        ({"controllers": frozenset({""})}, {"uscc": ""}, False),
    ],
)
def test_invariant_10_related_parties_are_known_by_code_person_and_control(caller, provider, related):
    one = Party(**{"organisation": "org_a", "kind": "enterprise", "status": "approved", "uscc": "A"} | caller)
    two = Party(**{"organisation": "org_vendor", "kind": "vendor", "status": "approved", "uscc": "V"} | provider)
    assert eligibility.decide_related(one, two) is related


@pytest.mark.parametrize(
    ("programme", "voucher", "offer", "facts", "reason"),
    [
        ({}, {}, {}, {}, None),
        ({}, {"programme_state": "frozen"}, {}, {}, None),
        ({}, {"programme_state": "closed"}, {}, {}, None),
        ({}, {"programme_state": "audited", "state": "expired"}, {}, {}, Reason.PROGRAMME_CLOSED),
        ({}, {"use_by": date(2027, 1, 14), "state": "suspended"}, {}, {}, Reason.VOUCHER_EXPIRED),
        ({}, {"state": "expired"}, {}, {}, Reason.VOUCHER_EXPIRED),
        ({}, {"state": "suspended"}, {}, {}, Reason.VOUCHER_SUSPENDED),
        ({"subject": "derivative"}, {}, {}, {}, Reason.SUBJECT_NOT_COVERED),
        ({"subject": "base"}, {}, {"is_derivative": True}, {}, Reason.SUBJECT_NOT_COVERED),
        ({"subject": "derivative"}, {}, {"is_derivative": True}, {}, None),
        ({}, {}, {"is_derivative": True, "reuses_weights": False, "filing": None}, {}, Reason.RELATION_NOT_COVERED),
        ({}, {}, {"filing": None}, {"related": True}, Reason.FILING_INVALID),
        ({"filing_required": False}, {}, {"filing": None}, {}, None),
        ({"min_spend_fen": 10}, {}, {}, {"related": True, "contract_fen": 9}, Reason.RELATED_PARTY),
        ({"related_party_policy": "allow"}, {}, {}, {"related": True}, None),
        ({"min_spend_fen": 10}, {}, {}, {"contract_fen": 9}, Reason.CONTRACT_TOO_SMALL),
    ],
)
def test_coverage_gives_the_first_reason_of_the_documented_order(programme, voucher, offer, facts, reason):
    def changed(base, changes):
        return type(base)(**{name: getattr(base, name) for name in base.__slots__} | changes)

    given = {"related": False, "contract_fen": 100} | facts
    decision = eligibility.decide_coverage(
        programme_file(**programme), changed(LIVE, voucher), changed(PLAIN, offer), day=DAY, **given
    )
    assert decision.reason == reason
    assert decision.passed is (reason is None)


def test_the_burn_order_is_priority_use_by_scope_age_id():
    order = [
        Burnable(1, date(2028, 1, 1), 9, 9, "z"),
        Burnable(2, date(2027, 1, 1), 9, 9, "z"),
        Burnable(2, date(2027, 2, 1), 1, 9, "z"),
        Burnable(2, date(2027, 2, 1), 2, 1, "z"),
        Burnable(2, date(2027, 2, 1), 2, 2, "a"),
        Burnable(2, date(2027, 2, 1), 2, 2, "b"),
    ]
    assert eligibility.burn_order(reversed(order)) == order
    assert eligibility.breadth(programme_file(subject="base")) < eligibility.breadth(programme_file())
    assert eligibility.breadth(programme_file()) < eligibility.breadth(programme_file(filing_required=False))


def test_the_reason_told_is_that_of_the_voucher_that_came_furthest():
    assert eligibility.decide_reason([]) == Reason.VOUCHER_REQUIRED
    assert eligibility.decide_reason([Reason.VOUCHER_EXPIRED, Reason.FILING_INVALID]) == Reason.FILING_INVALID
    assert eligibility.decide_reason([Reason.VOUCHER_EXHAUSTED, Reason.RELATED_PARTY]) == Reason.VOUCHER_EXHAUSTED
    for reason in Reason:
        assert all(words(str(reason)))


def test_a_reservation_is_at_most_the_ratio_of_the_contract():
    third = Fraction(1, 3)
    share = decide_share(programme_file(), [(100, third)], declared_fen=0).fen
    assert decide_amount(1_000, share, 0) == 33
    assert decide_amount(20, share, 0) == 20
    assert decide_amount(1_000, share, 30) == 3
    assert decide_amount(1_000, share, 40) == 0


def test_thresholds_are_crossed_at_80_and_100_percent():
    assert [crossed(used, 10) for used in (7, 8, 10)] == [[], [80], [80, 100]]
    assert crossed(0, 0) == []


def test_a_firm_s_age_is_counted_in_whole_years_at_issue():
    voucher = Voucher(id="v", issued_at_ms=START, face_fen=1, use_by="")
    assert firm_age_years([{"code": "founded-on", "value": "2024-01-15"}], voucher) == 3
    assert firm_age_years([{"code": "founded-on", "value": "2024-01-16"}], voucher) == 2
    assert firm_age_years([{"code": "founded-on", "value": "long ago"}], voucher) is None
    assert firm_age_years([{"code": "other", "value": ""}], voucher) is None


# --- applications -----------------------------------------------------------------------------------------------------


def apply(town, session, fen=1_000, programme="", **changes):
    programme = programme or get_programme(session, "town").id
    owner = session.get_one(Organisation, "org_factory")
    row = applications.create_application(session, owner, programme, requested_fen=fen, actor="f", **changes)
    return applications.submit(session, row, actor="f")


def test_an_application_goes_its_way_step_by_step(town):
    town.programme(notice_days=5)
    with transaction(town.engine) as session:
        row = apply(town, session, purpose=" 质检 ", evidence=[{"code": "contract", "value": "x"}])
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        assert [c["code"] for c in row.checks] == ["standing", "uscc", "filing", "cap", "pool", "evidence"]
        assert all(c["passed"] for c in row.checks)
        applications.decide(session, row, "supplement", actor=CHEN, at_ms=town.now, note="请补充")
        applications.supplement(session, row, requested_fen=900, purpose="质检二期", evidence=[], actor="f")
        applications.submit(session, row, actor="f")
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
        applications.publish(session, row, actor=CHEN, at_ms=town.now)
        objection = object_to(session, row.id, name="李", contact="1390000", reason="异议", at_ms=town.now)
        decide_objection(session, objection, "dismiss", member=CHEN, reason="不成立", at_ms=town.now)
        for days in (0, 4):
            with pytest.raises(Conflict) as refused:
                applications.confirm(session, row, actor=CHEN, at_ms=town.now + days * 86_400_000)
            assert refused.value.code == "NOTICE_RUNNING"
        applications.confirm(session, row, actor=CHEN, at_ms=town.now + 5 * 86_400_000)
        assert (row.state, row.requested_fen, row.purpose) == ("confirmed", 900, "质检二期")
    with reading(town.engine) as session:
        actions = [e.action for e in session.exec(select(AuditEvent)) if e.action.startswith("application")]
        assert len(actions) == 12
        codes = {n.code for n in session.exec(select(Notice))}
        assert {
            "APPLICATION_SUBMITTED",
            "APPLICATION_SUPPLEMENT",
            "APPLICATION_APPROVED",
            "APPLICATION_CONFIRMED",
        } <= codes
        assert applications.list_applications(session, "org_factory", "confirmed")[1] == 1
        assert applications.list_applications(session, "org_other")[1] == 0


def test_what_fails_a_check_is_not_approved_and_the_reason_is_told(town):
    town.programme(evidence_schema=[{"code": "contract", "title_zh": "合同", "title_en": "contract"}])
    with transaction(town.engine) as session:
        row = apply(town, session)
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        with pytest.raises(Conflict) as refused:
            applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
        assert refused.value.code == "EVIDENCE_MISSING"
        applications.decide(session, row, "reject", actor=CHEN, at_ms=town.now, note="材料不全")
        assert row.state == "rejected"
        with pytest.raises(Conflict) as refused:
            applications.supplement(session, row, requested_fen=1, purpose=None, evidence=None, actor="f")
        assert refused.value.code == "APPLICATION_STATE"


def test_checks_grow_stale(town):
    town.programme(checks=[{"code": "standing", "valid_days": 10}])
    with transaction(town.engine) as session:
        row = apply(town, session)
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        with pytest.raises(Conflict) as refused:
            applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now + 11 * 86_400_000)
        assert refused.value.code == "CHECKS_STALE"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"requested_fen": 0}, "AMOUNT_INVALID"),
        ({"purpose": "长" * 2_001}, "TEXT_TOO_LONG"),
        ({"evidence": [{"value": "no code"}]}, "EVIDENCE_INVALID"),
        ({"evidence": [{"code": "c"}] * 51}, "EVIDENCE_INVALID"),
    ],
)
def test_a_malformed_application_is_refused(town, changes, code):
    programme = town.programme()
    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_factory")
        given = {"requested_fen": 1} | changes
        with pytest.raises(BadInput) as refused:
            applications.create_application(session, owner, programme, actor="f", **given)
    assert refused.value.code == code


def test_a_programme_that_is_not_active_takes_no_application(town):
    programme = town.programme()
    with transaction(town.engine) as session:
        set_programme_state(session, programme, "freeze", actor=CHEN)
        with pytest.raises(Conflict) as refused:
            apply(town, session)
        assert refused.value.code == "PROGRAMME_CLOSED"


def test_others_applications_vouchers_and_contracts_are_not_found(town):
    voucher = town.voucher(100)
    subscription = town.subscribe()
    with reading(town.engine) as session:
        application = session.get_one(Voucher, voucher).application_id
        for look in (
            lambda: applications.get_application(session, application, "org_other"),
            lambda: issuing.get_voucher(session, voucher, "org_other"),
            lambda: subscriptions.get_subscription(session, subscription, "org_other"),
            lambda: issuing.get_voucher(session, "vch_none"),
        ):
            with pytest.raises(NotFound):
                look()
        assert issuing.get_voucher(session, voucher, "org_factory").id == voucher
        assert issuing.list_vouchers(session, "org_factory", "active")[1] == 1


# --- issue ------------------------------------------------------------------------------------------------------------


def confirmed(town, session, fen=1_000):
    row = apply(town, session, fen)
    applications.check(session, row, actor=CHEN, at_ms=town.now)
    applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
    applications.publish(session, row, actor=CHEN, at_ms=town.now)
    return applications.confirm(session, row, actor=CHEN, at_ms=town.now)


def test_one_person_proposes_and_another_approves(town):
    town.programme()
    with transaction(town.engine) as session:
        row = confirmed(town, session)
        with pytest.raises(Forbidden) as refused:
            issuing.propose(session, row, 600, member="", at_ms=town.now)
        assert refused.value.code == "PERSON_REQUIRED"
        voucher = issuing.propose(session, row, 600, member=CHEN, at_ms=town.now)
        for member, code in ((CHEN, "TWO_PERSONS"), ("", "PERSON_REQUIRED")):
            with pytest.raises(Forbidden) as refused:
                issuing.approve(session, voucher, member=member, at_ms=town.now)
            assert refused.value.code == code
        issuing.approve(session, voucher, member=LIN, at_ms=town.now)
        assert (voucher.state, voucher.use_by, voucher.redeem_by) == ("active", "2027-02-14", "2027-05-15")
        with pytest.raises(Conflict) as refused:
            issuing.approve(session, voucher, member=LIN, at_ms=town.now)
        assert refused.value.code == "VOUCHER_STATE"
        with pytest.raises(BadInput) as refused:
            issuing.propose(session, row, 401, member=CHEN, at_ms=town.now)
        assert refused.value.code == "FACE_INVALID"
        issuing.propose(session, row, 400, member=CHEN, at_ms=town.now)
    assert town.balance(f"Q.avail[{voucher.id}]") == 600
    town.check()


@pytest.mark.parametrize("engine", STORES, indirect=True)
def test_a_proposal_that_is_declined_moves_nothing_and_its_application_may_be_proposed_for_again(town):
    programme = town.programme()
    with transaction(town.engine) as session:
        row = confirmed(town, session)
        issuing.approve(session, issuing.propose(session, row, 300, member=CHEN, at_ms=town.now), member=LIN,
                        at_ms=town.now)  # fmt: skip
        voucher = issuing.propose(session, row, 700, member=CHEN, at_ms=town.now)
        for member, code in ((CHEN, "TWO_PERSONS"), ("", "PERSON_REQUIRED")):
            with pytest.raises(Forbidden) as refused:
                dropping.decline(session, voucher, member=member, reason="重复")
            assert refused.value.code == code
        with pytest.raises(BadInput) as unsaid:
            dropping.decline(session, voucher, member=LIN, reason=" ")
        assert (unsaid.value.code, unsaid.value.field) == ("REASON_REQUIRED", "note")
        dropping.decline(session, voucher, member=LIN, reason="金额过高")
        assert dropping.why_dropped(session, voucher) == {"dropped_by": LIN, "reason": "金额过高"}
        for decide in (
            lambda: issuing.approve(session, voucher, member=LIN, at_ms=town.now),
            lambda: dropping.decline(session, voucher, member=LIN, reason="再次"),
            lambda: dropping.withdraw(session, voucher, member=CHEN),
            lambda: issuing.suspend(session, voucher, actor=LIN),
        ):
            with pytest.raises(Conflict) as over:
                decide()
            assert over.value.code == "VOUCHER_STATE"
        assert issuing.left_of(session, row) == 700
        assert issuing.pool_position(session, get_programme(session, programme))["vouchers"] == 1
        with pytest.raises(BadInput):
            issuing.propose(session, row, 701, member=CHEN, at_ms=town.now)
        again = issuing.propose(session, row, 700, member=CHEN, at_ms=town.now)
        issuing.approve(session, again, member=LIN, at_ms=town.now)
        told = session.exec(select(Notice).where(Notice.code == "VOUCHER_DECLINED"))
        assert {each.organisation_id for each in told} == {"org_factory", "org_city"}
    assert town.balance(f"Q.avail[{voucher.id}]") == 0
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 1_000
    town.check()


@pytest.mark.parametrize("engine", STORES, indirect=True)
def test_who_proposed_a_voucher_may_withdraw_it_and_nobody_else(town):
    town.programme()
    with transaction(town.engine) as session:
        row = confirmed(town, session)
        voucher = issuing.propose(session, row, 1_000, member=CHEN, at_ms=town.now)
        with pytest.raises(Forbidden) as refused:
            dropping.withdraw(session, voucher, member=LIN)
        assert refused.value.code == "PROPOSER_ONLY"
        dropping.withdraw(session, voucher, member=CHEN, reason="金额有误")
        assert dropping.why_dropped(session, voucher) == {"dropped_by": CHEN, "reason": "金额有误"}
        assert issuing.left_of(session, row) == 1_000
    town.subscribe()
    with pytest.raises(PaymentRequired) as unpaid:
        town.node().call()
    assert unpaid.value.code == "VOUCHER_REQUIRED"  # as one who was never issued any
    town.check()


def test_no_voucher_before_the_public_notice_is_over_nor_from_a_frozen_programme(town):
    programme = town.programme()
    with transaction(town.engine) as session:
        with pytest.raises(Conflict) as refused:
            issuing.propose(session, apply(town, session), 1, member=CHEN, at_ms=town.now)
        assert refused.value.code == "APPLICATION_NOT_CONFIRMED"
        row = confirmed(town, session)
        voucher = issuing.propose(session, row, 1, member=CHEN, at_ms=town.now)
        set_programme_state(session, programme, "freeze", actor=CHEN)
        for issue in (
            lambda: issuing.propose(session, row, 1, member=CHEN, at_ms=town.now),
            lambda: issuing.approve(session, voucher, member=LIN, at_ms=town.now),
        ):
            with pytest.raises(Conflict) as refused:
                issue()
            assert refused.value.code == "PROGRAMME_CLOSED"


def test_invariant_2_the_cap_holds_over_all_of_an_enterprise_s_vouchers(town):
    programme = town.programme(cap_fen=1_000)
    town.voucher(700, programme)
    with pytest.raises(Conflict) as refused:
        town.voucher(301, programme)
    assert refused.value.code == "CAP_REACHED"
    town.voucher(300, programme)
    counter = town.get(CapCounter, "C.ent[town,org_factory,all]")
    assert (counter.held_fen, counter.limit_fen) == (1_000, 1_000)
    town.check()


def test_a_race_to_the_cap_is_decided_at_the_approval(town):
    programme = town.programme(cap_fen=1_000)
    with transaction(town.engine) as session:
        rows = [confirmed(town, session, 600) for _ in range(2)]
        first, second = [issuing.propose(session, row, 600, member=CHEN, at_ms=town.now) for row in rows]
        issuing.approve(session, first, member=LIN, at_ms=town.now)
        with pytest.raises(Conflict) as refused:
            issuing.approve(session, second, member=LIN, at_ms=town.now)
        assert refused.value.code == "CAP_REACHED"
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 600


def test_the_cap_of_a_calendar_year_is_shanghai_s(town):
    programme = town.programme(cap_fen=1_000, cap_period="calendar_year", validity={"days": 400})
    town.voucher(1_000, programme)
    with pytest.raises(Conflict):
        town.voucher(1, programme)
    town.pass_days(351)  # 1 January 2028
    town.voucher(1_000, programme)
    codes = {row.code for row in town.rows(CapCounter) if row.code.startswith("C.ent")}
    assert codes == {f"C.ent[town,org_factory,{year}]" for year in (2027, 2028)}


def test_a_face_is_taken_from_the_first_tranche_that_has_room(town):
    programme = town.programme(tranches=[{"code": "a", "fen": 100}, {"code": "b", "fen": 500}])
    first, second = town.voucher(60, programme), town.voucher(60, programme)
    assert [town.get(Voucher, each).tranche for each in (first, second)] == ["a", "b"]
    with pytest.raises(Conflict) as refused:
        town.voucher(450, programme)  # 480 are unissued, but in no one tranche
    assert refused.value.code == "POOL_EXHAUSTED"
    town.check()


def test_suspended_and_resumed(town):
    voucher = town.voucher(1_000)
    town.subscribe()
    node = town.node()
    with transaction(town.engine) as session:
        row = issuing.get_voucher(session, voucher)
        issuing.suspend(session, row, actor=CHEN, reason="核查")
        with pytest.raises(Conflict):
            issuing.suspend(session, row, actor=CHEN)
    with pytest.raises(PaymentRequired) as refused:
        node.call()
    assert refused.value.code == "VOUCHER_SUSPENDED"
    with transaction(town.engine) as session:
        row = issuing.get_voucher(session, voucher)
        issuing.resume(session, row, actor=CHEN)
        with pytest.raises(Conflict):
            issuing.resume(session, row, actor=CHEN)
    node.call()


# --- contracts and reservations ---------------------------------------------------------------------------------------


def test_a_contract_reserves_its_share_at_once(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=1_500)
    row = town.rows(Reservation)[0]
    assert (row.amount_fen, row.ratio_num, row.ratio_den) == (500, 1, 3)
    assert town.balance(f"Q.avail[{voucher}]") == 500
    town.check()


def test_vouchers_burn_in_order_and_together_within_the_ratio(town):
    programme = town.programme(contract_once=False)
    late = town.voucher(100, programme)
    town.pass_days(-5)
    early = town.voucher(100, programme)
    town.pass_days(5)
    town.subscribe(contract_fen=450)
    found = [(row.voucher_id, row.amount_fen) for row in sorted(town.rows(Reservation), key=lambda r: r.id)]
    assert found == [(early, 100), (late, 50)]


def test_without_stacking_one_contract_is_paid_by_one_programme(town):
    town.voucher(100, town.programme(code="one", priority=1))
    town.voucher(1_000, town.programme(code="two", priority=2))
    town.subscribe(contract_fen=900)
    assert [row.amount_fen for row in town.rows(Reservation)] == [100]


def test_with_stacking_the_ratio_still_caps_the_sum(town):
    town.voucher(100, town.programme(code="one", priority=1, stacking="cap_total_ratio"))
    town.voucher(1_000, town.programme(code="two", priority=2, stacking="cap_total_ratio"))
    town.subscribe(contract_fen=900)
    assert sorted(row.amount_fen for row in town.rows(Reservation)) == [100, 200]
    town.check()


def test_a_raised_contract_reserves_more_when_it_is_needed(town):
    town.voucher(1_000)
    subscription = town.subscribe(contract_fen=3)
    node = town.node()
    node.call(count=8)  # 2.96 fen; the next would be past a third of 3 fen
    with pytest.raises(PaymentRequired) as refused:
        node.call()
    assert refused.value.code == "CONTRACT_USED_UP"
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, subscription, "org_factory")
        subscriptions.change(session, row, {"contract_fen": 300}, actor="f")
    node.call(count=8)
    node.stop()
    town.check()


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"contract_fen": -1}, "TERMS_INVALID"),
        ({"on_voucher_end": "beg"}, "TERMS_INVALID"),
        ({"monthly_cap_fen": -1}, "TERMS_INVALID"),
    ],
)
def test_malformed_terms_are_refused(town, terms, code):
    with pytest.raises(BadInput) as refused:
        town.subscribe(**terms)
    assert refused.value.code == code


def test_what_cannot_be_subscribed(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/draft", status="draft")
        town.list_model(session, "factory/own")
    for model, code in (("vendor/draft", "NOT_LISTED"), ("factory/own", "OWN_MODEL")):
        with pytest.raises(Conflict) as refused:
            town.subscribe(model=model)
        assert refused.value.code == code
    town.subscribe()
    with pytest.raises(Conflict) as refused:
        town.subscribe()
    assert refused.value.code == "SUBSCRIPTION_EXISTS"


def test_a_contract_tells_why_a_voucher_sets_nothing_aside(town):
    town.voucher(100)
    with transaction(town.engine) as session:
        listing = town.list_model(session, "vendor/unfiled")
        row, reasons = subscriptions.subscribe(
            session, "org_factory", listing, contract_fen=300, on_voucher_end="refuse", monthly_cap_fen=None,
            actor="f", at_ms=town.now,
        )  # fmt: skip
        assert reasons == [Reason.FILING_INVALID]
        view = subscriptions.subscription_view(session, row, town.now, reasons)
        assert view["not_reserved"][0]["code"] == "FILING_INVALID"
        assert view["reservations"] == []
        assert subscriptions.list_subscriptions(session, organisation_id="org_factory")[1] == 1
        assert subscriptions.list_subscriptions(session, provider_id="org_vendor")[1] == 1


def test_an_ended_contract_gives_back_what_nobody_uses_and_the_rest_when_it_is_sealed(town):
    voucher = town.voucher(1_000)
    subscription = town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=30)  # 11.1 fen, 3.7 of them the voucher's
    with transaction(town.engine) as session:
        row = session.get_one(Subscription, subscription)
        closing.end_contract(session, row, actor="f", at_ms=town.now)
        closing.end_contract(session, row, actor="f", at_ms=town.now)
        with pytest.raises(Conflict) as refused:
            subscriptions.change(session, row, {"contract_fen": 1}, actor="f")
        assert refused.value.code == "SUBSCRIPTION_ENDED"
    town.check()
    assert town.balance(f"Q.avail[{voucher}]") == 500  # half of it is in the node's hands
    node.stop()
    town.check()
    assert town.balance(f"Q.avail[{voucher}]") == 997
    assert (town.rows(Reservation)[0].state, town.total("Q.used"), town.total("Q.lease")) == ("completed", 3, 0)
    assert town.get(CapCounter, f"C.contract[{subscription}]").held_fen == 0


def test_a_contract_that_was_never_used_is_released(town):
    voucher = town.voucher(1_000)
    subscription = town.subscribe(contract_fen=3_000)
    with transaction(town.engine) as session:
        closing.end_contract(session, session.get_one(Subscription, subscription), actor="f", at_ms=town.now)
    assert town.rows(Reservation)[0].state == "released"
    assert town.balance(f"Q.avail[{voucher}]") == 1_000
    assert town.subscribe(contract_fen=3_000) != subscription
    town.check()


# --- the end of a voucher ---------------------------------------------------------------------------------------------


def expire(town):
    with transaction(town.engine) as session:
        return [row.id for row in closing.expire_vouchers(session, town.now)]


def test_invariant_6_a_voucher_lapses_after_its_last_day_and_the_grace(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=300)
    programme = town.get(Voucher, voucher).programme_id
    town.now = town.end_of(voucher) + 86_400_000
    assert expire(town) == []
    town.now += 1
    assert expire(town) == [voucher]
    assert expire(town) == []
    row = town.get(Voucher, voucher)
    assert (row.state, row.returned_fen) == ("expired", 1_000)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000
    assert town.get(CapCounter, "C.ent[town,org_factory,all]").held_fen == 0
    assert town.rows(Reservation)[0].state == "expired"
    assert "VOUCHER_EXPIRED" in {n.code for n in town.rows(Notice)}
    town.check()


def test_what_a_node_still_holds_of_a_lapsed_voucher_goes_back_when_it_is_sealed(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=3_000)
    programme = town.get(Voucher, voucher).programme_id
    node = town.node()
    node.call(count=30)
    town.now = town.end_of(voucher) + 2 * 86_400_000
    expire(town)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 500
    town.check()
    node.stop()
    town.check()
    assert (town.total("Q.used"), town.total("Q.lease"), town.total("Q.resv")) == (3, 0, 0)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 3
    assert town.get(Voucher, voucher).returned_fen == 997
    assert town.rows(Reservation)[0].state == "expired"


def test_a_lapsed_voucher_of_two_contracts_in_one_node_s_hands_leaves_nothing_behind(town):
    """Found by the simulator: settling the first reservation closed the second one before its own lease was settled."""
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/copper", filing_id="flg_1")
    voucher = town.voucher(1_000)
    programme = town.get(Voucher, voucher).programme_id
    node = town.node()
    for model in ("vendor/steel", "vendor/copper"):
        town.subscribe(contract_fen=900, model=model)
        node.call(model, count=30)
    assert len(town.rows(Reservation)) == 2
    town.now = town.end_of(voucher) + 2 * 86_400_000
    expire(town)
    node.stop()
    town.check()
    used = town.total("Q.used")
    assert used > 0
    assert (town.total("Q.lease"), town.total("Q.resv"), town.total("Q.avail")) == (0, 0, 0)
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - used
    assert {row.state for row in town.rows(Reservation)} == {"expired"}
    assert {row.held_fen for row in town.rows(CapCounter)} == {0}


def test_a_suspended_voucher_lapses_too(town):
    voucher = town.voucher(1_000)
    with transaction(town.engine) as session:
        issuing.suspend(session, issuing.get_voucher(session, voucher), actor=CHEN)
    town.now = town.end_of(voucher) + 2 * 86_400_000
    assert expire(town) == [voucher]
    town.check()


# --- what is sold -----------------------------------------------------------------------------------------------------


def derive(session, name="factory/ours", parent="vendor/steel", relation="finetune", **facts):
    return add_listing(
        session,
        name,
        "draft",
        **{"visibility": "private", "parent_listing_id": f"lst_{parent}", "relation": relation} | facts,
    )


def test_a_private_derivative_is_sold_at_its_parent_s_derivative_price_by_the_parent_s_vendor(town):
    with transaction(town.engine) as session:
        ours = derive(session)
        found = sale.find_sale(session, ours, "org_factory", town.now)
        assert (found.free, found.provider_id, found.sold_under.name) == ("unpriced", "org_vendor", "vendor/steel")
        town.price(session, session.get_one(Listing, "lst_vendor/steel"), 100_000, kind="derivative")
        grandchild = derive(session, "factory/ours-2", "factory/ours", "quantized")
        for listing in (ours, grandchild):
            found = sale.find_sale(session, listing, "org_factory", town.now)
            assert (found.price.micro_per_unit, found.provider_id) == (100_000, "org_vendor")
            offer = sale.offer_of(session, found)
            assert (offer.is_derivative, offer.reuses_weights, offer.filing.number) == (True, True, "演示-不是备案号-1")


@pytest.mark.parametrize(
    ("facts", "filed"),
    [
        ({"relation": "finetune"}, True),
        ({"relation": "quantized"}, True),
        ({"relation": "retrained"}, False),
        ({"relation": None}, False),
        ({"relation": "finetune", "genai_service": "public"}, False),
        ({"relation": "retrained", "filing_id": "flg_1"}, True),
        ({"relation": "finetune", "parent_listing_id": None, "root_base_listing_id": "lst_vendor/steel"}, True),
        ({"relation": "finetune", "parent_listing_id": "lst_gone"}, False),
    ],
)
def test_a_filing_is_carried_over_relations_that_reuse_the_weights_only(town, facts, filed):
    with transaction(town.engine) as session:
        listing = derive(session, **facts)
        assert (sale.filing_row(session, listing) is not None) is filed


def test_chains_that_go_round_end(town):
    with transaction(town.engine) as session:
        one = derive(session, "factory/one", "factory/two", "finetune")
        derive(session, "factory/two", "factory/one", "finetune")
        assert sale.sold_under(session, one).name in ("factory/one", "factory/two")
        assert sale.filing_row(session, one) is None
        lost = derive(session, "factory/lost", "factory/gone")
        assert sale.sold_under(session, lost).id == lost.id


def test_one_s_own_models_zero_prices_and_an_operator_s_look_are_free(town):
    with transaction(town.engine) as session:
        steel = session.get_one(Listing, "lst_vendor/steel")
        assert sale.find_sale(session, steel, "org_vendor", town.now).free == "own"
        draft = town.list_model(session, "vendor/draft", status="draft")
        assert sale.find_sale(session, draft, "org_city", town.now, operator=True).free == "review"
        assert sale.find_sale(session, steel, "org_city", town.now, operator=True).free == ""
        zero = town.list_model(session, "vendor/zero", 0)
        assert sale.find_sale(session, zero, "org_factory", town.now).free == "zero"


def test_a_filing_s_end_is_the_end_of_its_day_in_shanghai(town):
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2027-01-20"
        session.flush()
        steel = session.get_one(Listing, "lst_vendor/steel")
        offer = sale.offer_of(session, sale.find_sale(session, steel, "org_factory", town.now))
        assert sale.filing_end_text(offer) == "2027-01-20T23:59:59.999000+08:00"
    assert sale.filing_end_text(PLAIN) == ""


def test_related_parties_are_looked_up_in_the_register(town):
    with transaction(town.engine) as session:
        assert not sale.are_related(session, "org_factory", "org_vendor")
        session.get_one(Organisation, "org_factory").controllers = [demo_code(0)]
        session.flush()
        assert sale.are_related(session, "org_factory", "org_vendor")


def test_positions_add_up_to_the_face(town):
    voucher = town.voucher(1_000)
    town.subscribe(contract_fen=1_500)
    node = town.node()
    node.call(count=100)
    node.flush()
    with reading(town.engine) as session:
        found = issuing.position(session, session.get_one(Voucher, voucher))
        assert found == {
            "face_fen": 1_000, "available_fen": 500, "reserved_fen": 250, "leased_fen": 238, "used_fen": 12,
            "batched_fen": 0, "paid_fen": 0, "clawed_fen": 0, "returned_fen": 0,
        }  # fmt: skip
        pool = issuing.pool_position(session, get_programme(session, "town"))
        assert pool["conserved"]
        assert (pool["authorised_fen"], pool["unissued_fen"], pool["issued_fen"]) == (1_000_000, 999_000, 1_000)
    assert town.rows(LeaseRow)[0].granted_fen == 250
    assert town.rows(Application)[0].state == "confirmed"


def test_invariant_3_the_database_itself_keeps_a_voucher_within_its_face(town):
    voucher = town.voucher(10)
    with pytest.raises(Exception, match="balance_never_below_zero"), town.engine.begin() as connection:
        connection.execute(
            text("UPDATE ledger_account SET balance_fen = balance_fen - 11 WHERE code = :code"),
            {"code": f"Q.avail[{voucher}]"},
        )


def test_a_quote_tells_the_price_after_the_voucher_before_one_subscribes(town):
    town.voucher(1_000)
    with transaction(town.engine) as session:
        steel = session.get_one(Listing, "lst_vendor/steel")
        quoted = quote_calls(session, steel, "org_factory", 1_000, town.now)
        assert (quoted["gross_micro"], quoted["voucher_micro"], quoted["ratio"]) == (370_000_000, 123_333_333, "1/3")
        assert quote_calls(session, steel, "org_vendor", 1, town.now)["free"] == "own"
        plain = quote_calls(session, town.list_model(session, "vendor/unfiled"), "org_factory", 1, town.now)
        assert (plain["voucher_micro"], plain["voucher_id"]) == (0, None)


def test_a_missing_parent_ends_the_walk_to_what_is_sold(town):
    with transaction(town.engine) as session:
        chain = [derive(session, f"factory/m{n}", f"factory/m{n + 1}") for n in range(25)]
        assert sale.sold_under(session, chain[0]).name == "factory/m20"  # as far as one looks
        assert sale.filing_row(session, chain[0]) is None
