"""A test for each row of docs/rules.md, named after it: the rule passes, fails with its reason, and what sets it."""

import ast
import itertools
import re
from dataclasses import replace
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from marketplace.claims import batches, invoices
from marketplace.claims.assembly import assemble, needs_invoices
from marketplace.claims.clawbacks import open_clawback
from marketplace.claims.stacked import decide_claimable
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.clock import policy_date
from marketplace.db import transaction
from marketplace.evidence.files import decide_keep_until
from marketplace.findings import recording
from marketplace.findings.scanning import find_all
from marketplace.organisations.tables import Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.vouchers import closing
from marketplace.vouchers.applications import decide_notice_over
from marketplace.vouchers.checks import cap_code, decide_fresh_and_passed, good_until_ms
from marketplace.vouchers.eligibility import (
    Burnable,
    FilingFact,
    Offer,
    Party,
    Reason,
    VoucherFact,
    burn_order,
    decide_cap,
    decide_coverage,
    decide_evidence,
    decide_filed_model_exists,
    decide_filing,
    decide_pool,
    decide_reason,
    decide_related,
    decide_share,
    decide_standing,
    decide_uscc,
    decide_voucher,
)
from marketplace.vouchers.evidence_given import ask_for, decide_supplemented, given_codes, read_given
from marketplace.vouchers.objections import decide_days_stopped
from marketplace.vouchers.programme import FOLDER, ProgrammeFile, Ratio, decide_ratio, read_programme, unset
from marketplace.vouchers.reservations import decide_amount
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.signals import Signals
from marketplace.vouchers.tables import Programme, Reservation, Subscription, Voucher
from marketplace.vouchers.tranches import decide_held_back, decide_waiting
from marketplace.vouchers.versions import decide_alone, decide_fresh
from marketplace.vouchers.wording import describe
from model_store.errors import BadInput, Conflict, PaymentRequired
from tests.marketplace.town import CHEN, LIN, START, programme_file

DAY = date(2027, 6, 1)
TABLE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
DAY_MS = 86_400_000
FACTORY = Party("org_f", "enterprise", "approved", demo_code(1), "Chen", is_demo=True)
VENDOR = Party("org_v", "vendor", "approved", demo_code(2), "Lin", is_demo=True)
FILING = FilingFact("n", date(2027, 1, 1), date(2027, 6, 30), is_demo=True)
OFFER = Offer(is_derivative=False, reuses_weights=True, filing=FILING, tier="base")
VOUCHER = VoucherFact("active", date(2027, 6, 30), "active")


def covered(programme=None, voucher=VOUCHER, offer=OFFER, related=False, contract_fen=100, day=DAY, declared_fen=0):
    rules = programme or programme_file()
    facts = {"related": related, "contract_fen": contract_fen, "day": day, "declared_fen": declared_fen}
    return decide_coverage(rules, voucher, offer, **facts).reason


# --- an application ---------------------------------------------------------------------------------------------------


def test_rule_approved():
    assert decide_standing(programme_file(), FACTORY).passed
    for status in ("pending", "suspended", "rejected"):
        found = decide_standing(programme_file(), replace(FACTORY, status=status, kind="operator", is_demo=False))
        assert found.reason == Reason.ORGANISATION_NOT_APPROVED


def test_rule_scope():
    assert decide_standing(programme_file(), VENDOR).reason == Reason.NOT_IN_SCOPE
    assert decide_standing(programme_file(who=["enterprise", "vendor"]), VENDOR).passed


def test_rule_demonstration():
    assert decide_standing(programme_file(), replace(FACTORY, is_demo=False)).reason == Reason.DEMO_MISMATCH


def test_rule_code():
    assert decide_uscc(FACTORY).passed
    assert decide_uscc(replace(FACTORY, uscc=FACTORY.uscc[:-1] + "?")).reason == Reason.USCC_INVALID


def test_rule_filed_model():
    assert decide_filed_model_exists(programme_file(), [FILING], DAY).passed
    assert decide_filed_model_exists(programme_file(), [], DAY).reason == Reason.NO_FILED_MODEL
    assert decide_filed_model_exists(programme_file(filing_required=False), [], DAY).passed


@pytest.mark.parametrize("fen", [0, -1, 500_001])
def test_rule_amount(fen):
    assert decide_cap(programme_file(), fen, 10**9).reason == Reason.AMOUNT_INVALID
    assert decide_cap(programme_file(), 500_000, 500_000).passed


def test_rule_cap():
    assert decide_cap(programme_file(), 100, 100).passed
    assert decide_cap(programme_file(), 101, 100).reason == Reason.CAP_REACHED


def test_rule_pool():
    assert decide_pool(100, 100).passed
    assert decide_pool(101, 100).reason == Reason.POOL_EXHAUSTED


def test_rule_tranche_approval():
    """A tranche that asks for its own approval pays once two persons approved that much of it, whatever the version."""
    tranches = [{"code": "a", "fen": 400_000}, {"code": "b", "fen": 600_000, "own_approval": True}]
    rules = programme_file(tranches=tranches)
    for approved, waits in (({}, ["b"]), ({"b": 599_999}, ["b"]), ({"b": 600_000}, []), ({"a": 600_000}, ["b"])):
        assert decide_waiting(rules, approved) == waits
    assert decide_waiting(programme_file(), {}) == []
    for taken, most in (({}, 600_000), ({"b": 1}, 599_999), ({"a": 400_000, "old": 1}, 599_999), ({"old": 10**6}, 0)):
        assert decide_held_back(rules, ["b"], taken) == most
    assert decide_held_back(rules, [], {}) == 0
    assert decide_pool(100, 100, 0).passed
    assert decide_pool(101, 100, 101).reason == Reason.TRANCHE_WAITS
    assert decide_pool(102, 100, 101).reason == Reason.POOL_EXHAUSTED


def test_rule_evidence():
    wanted = [{"code": "contract", "title_zh": "合同", "title_en": "contract"},
              {"code": "photo", "title_zh": "照片", "title_en": "photo", "required": False}]  # fmt: skip
    programme = programme_file(evidence_schema=wanted)
    assert decide_evidence(programme, ["contract"]).passed
    assert decide_evidence(programme, ["photo"]).reason == Reason.EVIDENCE_MISSING


def test_rule_evidence_kinds():
    """A text says something, a day is a day, an amount is whole fen; a file is uploaded, not written."""
    kinds = {"why": "text", "since": "date", "turnover": "amount_fen", "contract": "file"}
    schema = [{"code": code, "title_zh": code, "title_en": code, "kind": kind} for code, kind in kinds.items()]
    rules = programme_file(evidence_schema=schema)
    good = [{"code": "why", "value": "x"}, {"code": "since", "value": "2020-02-29"}, {"code": "turnover", "value": "5"}]
    assert given_codes(rules, read_given(rules, good), ["contract"]) == {"why", "since", "turnover", "contract"}
    assert given_codes(rules, read_given(rules, [{"code": "why", "value": "  "}]), []) == set()
    for code, value in (("since", "2021-02-29"), ("since", "1.1.2021"), ("turnover", "-1"), ("turnover", "1.5"),
                        ("contract", "see letter")):  # fmt: skip
        with pytest.raises(BadInput) as refused:
            read_given(rules, [{"code": code, "value": value}])
        assert (refused.value.code, refused.value.field) == ("EVIDENCE_INVALID", f"evidence.{code}")
    for wrong in ({"kind": "picture"}, {"types": ["pdf"]}, {"kind": "file", "types": ["exe"]}):
        with pytest.raises(BadInput):
            programme_file(evidence_schema=[{"code": "a", "title_zh": "甲", "title_en": "a"} | wrong])


def test_rule_supplement():
    """What was asked for has come: a text that reads otherwise, a file that came since."""
    rules = programme_file(evidence_schema=[{"code": c, "title_zh": c, "title_en": c} for c in ("why", "contract")])
    asked = ask_for(rules, ["why", "contract"], [{"code": "why", "value": "old"}], START)
    decide_supplemented(asked, [{"code": "why", "value": "new"}], [("contract", START)])
    for evidence, files, missing in (
        ("old", [("contract", START)], ["why"]),
        ("new", [("contract", START - 1)], ["contract"]),
        ("", [], ["why", "contract"]),
    ):
        with pytest.raises(Conflict) as refused:
            decide_supplemented(asked, [{"code": "why", "value": evidence}], files)
        assert (refused.value.code, refused.value.details["missing"]) == ("SUPPLEMENT_MISSING", missing)
    with pytest.raises(BadInput):
        ask_for(rules, ["photo"], [], START)


def test_rule_checks_hold():
    """To the end of the last day in Shanghai, whatever the hour the check was made at."""
    noon = START - START % DAY_MS + 4 * 3_600_000  # 12:00 in Shanghai
    last = noon + DAY_MS + 12 * 3_600_000 - 1  # 23:59:59.999 of the next day
    for at_ms in (noon - 12 * 3_600_000, noon, noon + 12 * 3_600_000 - 1):
        assert good_until_ms(at_ms, 1) == last
    check = {"code": "cap", "passed": True, "reason": "", "good_until_ms": last}
    decide_fresh_and_passed([check], {}, last)
    with pytest.raises(Conflict) as stale:
        decide_fresh_and_passed([check], {}, last + 1)
    assert (stale.value.code, stale.value.details["checks"]) == ("CHECKS_STALE", ["cap"])


def test_rule_override():
    """A failure that two persons let pass counts as passed, for the reason it failed with, and as long as it holds."""
    check = {"code": "filing", "passed": False, "reason": "NO_FILED_MODEL", "good_until_ms": START}
    decide_fresh_and_passed([check], {"filing": "NO_FILED_MODEL"}, START)
    for let_pass, at_ms, code in (
        ({}, START, "NO_FILED_MODEL"),
        ({"filing": "FILING_INVALID"}, START, "NO_FILED_MODEL"),
        ({"filing": "NO_FILED_MODEL"}, START + 1, "CHECKS_STALE"),
    ):
        with pytest.raises(Conflict) as refused:
            decide_fresh_and_passed([check], let_pass, at_ms)
        assert refused.value.code == code
    rules = programme_file(checks=[{"code": "cap"}, {"code": "uscc", "override": "never"}, {"code": "filing"}])
    assert [check.may_be_overridden for check in rules.checks] == [False, False, True]


@pytest.mark.parametrize(("effect", "days"), [("continue", 0), ("extend", 3), ("restart", 0)])
def test_rule_objection(effect, days):
    rules = programme_file(notice_on_objection=effect)
    assert decide_days_stopped(rules, DAY.toordinal(), DAY.toordinal() + 3) == days


def test_rule_notice():
    """Whole calendar days in Shanghai, whatever the hour it began."""
    late = START + 23 * 3_600_000 - START % 86_400_000
    assert not decide_notice_over(None, 0, late)
    assert decide_notice_over(late, 0, late)
    assert not decide_notice_over(late, 2, late + 86_400_000)
    assert decide_notice_over(late, 2, late + 2 * 86_400_000)


# --- a contract or a call ---------------------------------------------------------------------------------------------


def test_rule_programme_runs():
    for state, passes in [("active", True), ("frozen", True), ("closed", True), ("draft", False), ("audited", False)]:
        assert decide_voucher(replace(VOUCHER, programme_state=state), DAY).passed is passes
    assert covered(voucher=VoucherFact("suspended", date(2020, 1, 1), "audited")) == Reason.PROGRAMME_CLOSED


def test_rule_use_by():
    assert covered(day=VOUCHER.use_by) is None
    assert covered(day=VOUCHER.use_by + timedelta(days=1)) == Reason.VOUCHER_EXPIRED
    assert covered(voucher=replace(VOUCHER, state="expired")) == Reason.VOUCHER_EXPIRED


def test_rule_revoked():
    revoked = replace(VOUCHER, state="revoked")
    assert covered(voucher=revoked) == Reason.VOUCHER_REVOKED
    assert covered(voucher=revoked, day=VOUCHER.use_by + timedelta(days=1)) == Reason.VOUCHER_EXPIRED
    told = [Reason.VOUCHER_EXPIRED, Reason.VOUCHER_REVOKED]
    assert decide_reason(told) == decide_reason(told[::-1]) == Reason.VOUCHER_REVOKED
    assert decide_reason([Reason.VOUCHER_REVOKED, Reason.VOUCHER_SUSPENDED]) == Reason.VOUCHER_SUSPENDED


def test_rule_suspended():
    assert covered(voucher=replace(VOUCHER, state="suspended")) == Reason.VOUCHER_SUSPENDED
    assert covered(voucher=replace(VOUCHER, state="exhausted")) is None  # what is left is asked later


@pytest.mark.parametrize(
    ("subject", "is_derivative", "passes"),
    [("base", False, True), ("base", True, False), ("derivative", False, False), ("derivative", True, True),
     ("both", False, True), ("both", True, True)],
)  # fmt: skip
def test_rule_subject(subject, is_derivative, passes):
    reason = covered(programme_file(subject=subject), offer=replace(OFFER, is_derivative=is_derivative))
    assert reason == (None if passes else Reason.SUBJECT_NOT_COVERED)


def test_rule_relation():
    assert covered(offer=replace(OFFER, reuses_weights=False, filing=None)) == Reason.RELATION_NOT_COVERED


def test_rule_filing():
    assert decide_filing(programme_file(), FILING, FILING.first).passed
    assert decide_filing(programme_file(), FILING, FILING.last).passed
    for day in (FILING.first - timedelta(days=1), FILING.last + timedelta(days=1)):
        assert decide_filing(programme_file(), FILING, day).reason == Reason.FILING_INVALID
    assert covered(offer=replace(OFFER, filing=None), related=True) == Reason.FILING_INVALID
    assert covered(programme_file(filing_required=False), offer=replace(OFFER, filing=None)) is None
    assert covered(offer=replace(OFFER, filing=replace(FILING, is_demo=False))) == Reason.FILING_INVALID


def test_rule_related_party():
    real = replace(FACTORY, is_demo=False), replace(VENDOR, is_demo=False)
    assert not decide_related(*real)
    assert decide_related(real[0], replace(real[1], legal_person="Chen"))
    assert decide_related(real[0], replace(real[1], controllers=frozenset({real[0].uscc})))
    assert decide_related(*(replace(each, controllers=frozenset({"p1"})) for each in real))
    assert decide_related(real[0], real[0])
    assert covered(related=True, contract_fen=0) == Reason.RELATED_PARTY
    assert covered(programme_file(related_party_policy="allow"), related=True) is None


def test_rule_least_contract():
    assert covered(programme_file(min_spend_fen=100), contract_fen=100) is None
    assert covered(programme_file(min_spend_fen=101), contract_fen=100) == Reason.CONTRACT_TOO_SMALL


def test_rule_exhausted(town):
    town.voucher(1)
    town.subscribe()
    node = town.node()
    node.call(count=8)  # 8 · 0.37 / 3 fen: less than one
    with pytest.raises(PaymentRequired) as refused:
        node.call(count=2)
    assert refused.value.code == Reason.VOUCHER_EXHAUSTED
    node.stop()


def test_rule_contract_share(town):
    third = Fraction(1, 3)
    share = decide_share(programme_file(), [(100, third)], declared_fen=0).fen
    assert decide_amount(1_000, share, 0) == 33
    assert decide_amount(1_000, share, 30) == 3
    assert decide_amount(2, share, 0) == 2
    assert decide_amount(1_000, share, 40) == 0
    town.voucher(1_000)
    town.subscribe(contract_fen=2)  # a third of it is no whole fen
    node = town.node()
    with pytest.raises(PaymentRequired) as refused:
        node.call()
    assert refused.value.code == Reason.CONTRACT_USED_UP
    node.stop()


def test_rule_contract_once(town):
    """A second voucher of the programme pays for a contract only where its file says so; another contract, always."""
    for contract_once, paid in ((True, 20), (False, 30)):
        code = f"once-{contract_once}".lower()
        programme = town.programme(code=code, title_zh=f"演示 {code}", contract_once=contract_once)
        for _ in range(2):
            town.voucher(20, programme)
        contract = town.subscribe(contract_fen=90)
        taken = sum(row.amount_fen for row in town.rows(Reservation) if row.subscription_id == contract)
        assert taken == paid
        node = town.node(f"n-{code}")
        node.call(count=160)  # 19.7 fen of subsidy
        if contract_once:
            with pytest.raises(PaymentRequired) as once:
                node.call(count=10)
            assert once.value.code == Reason.CONTRACT_ONCE
        node.stop()
        end(town, contract)
        town.subscribe(contract_fen=30)
        assert sum(row.amount_fen for row in town.rows(Reservation)) > taken
        for row in town.rows(Subscription):
            end(town, row.id)
        for row in town.rows(Voucher):
            with transaction(town.engine) as session:
                session.get_one(Voucher, row.id).state = "suspended"
    town.check()


def end(town, contract):
    with transaction(town.engine) as session:
        closing.end_contract(session, session.get_one(Subscription, contract), actor="f", at_ms=town.now)


def test_rule_late_grace(town):
    voucher = town.voucher(100, late_usage_grace_days=2)
    for later_ms, lapsed in ((2 * DAY_MS, []), (2 * DAY_MS + 1, [voucher])):
        with transaction(town.engine) as session:
            assert [row.id for row in closing.expire_vouchers(session, town.end_of(voucher) + later_ms)] == lapsed


def test_rule_no_voucher():
    assert decide_reason([]) == Reason.VOUCHER_REQUIRED
    assert decide_reason([Reason.VOUCHER_EXPIRED, Reason.VOUCHER_EXHAUSTED]) == Reason.VOUCHER_EXHAUSTED


# --- a claim ----------------------------------------------------------------------------------------------------------


def test_rule_signals():
    assert programme_file().signals == Signals()
    changed = programme_file(signals={"interval_calls": 50}, min_spend_fen=100)
    assert changed.signals.interval_calls == 50
    assert any("不少于 50 次" in sentence for sentence in describe(changed)["zh"])
    assert any("at least 50 calls" in sentence for sentence in describe(changed)["en"])
    for wrong in ({"interval_calls": 1}, {"burst_share_bp": 10_001}, {"hold_claims_on": ["HUNCH"]}, {"hunch": 1}):
        assert refused(signals=wrong) == "PROGRAMME_INVALID"


def test_rule_hold(town):
    town.voucher(1_000, signals={"identical_calls": 2, "hold_claims_on": ["IDENTICAL_REQUESTS"]})
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=10, digest="same")
    node.stop()
    with transaction(town.engine) as session:
        recording.record(session, find_all(session, town.now), town.now, actor="system")
        programme = session.exec(select(Programme)).one()
        day = policy_date(town.now)
        (line,) = assemble(session, programme.id, rules_of(programme), day, day, town.now)
    assert (line.reason, [finding.code for finding in line.findings]) == ("FINDING_OPEN", ["IDENTICAL_REQUESTS"])
    assert any("线索" in sentence and "不列入申报" in sentence for sentence in describe(rules_of(programme))["zh"])


def claimed(town, **changes):
    """Usage of 37 fen gross, sealed; answers the one line that a batch would have, or the reason against it."""
    town.voucher(1_000, **changes)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=100)
    node.stop()


def reason_of_line(town):
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one()
        day = policy_date(START)
        (line,) = assemble(session, programme.id, rules_of(programme), day, day, town.now)
        return line.reason


def test_rule_redeem_by(town):
    claimed(town, validity={"days": 30, "redeem_days": 10})
    town.pass_days(40)
    assert reason_of_line(town) == ""
    town.pass_days(1)
    assert reason_of_line(town) == "REDEEM_BY_OVER"


@pytest.mark.parametrize(("least", "reason"), [(37, ""), (38, "SPEND_TOO_SMALL")])
def test_rule_least_spend(town, least, reason):
    claimed(town, min_spend_fen=least)
    assert reason_of_line(town) == reason


def test_rule_invoices(town):
    schema = [{"code": "invoice", "title_zh": "发票", "title_en": "invoice", "required": True}]
    assert needs_invoices(programme_file(evidence_schema=schema))
    assert not needs_invoices(programme_file(evidence_schema=[schema[0] | {"required": False}]))
    claimed(town)
    with transaction(town.engine) as session:
        row = session.exec(select(Programme)).one()
        row.document = row.document | {"evidence_schema": schema}
        session.add(row)
    for number, fen, reason in (("1", 36, "INVOICE_MISSING"), ("2", 1, "")):
        with transaction(town.engine) as session:
            contract = session.exec(select(Subscription)).one()
            invoices.enter(session, contract, number=number, amount_fen=fen, issued_on="2027-01-15", actor="f")
        assert reason_of_line(town) == reason


@pytest.mark.parametrize(("policy", "reason"), [("refuse", "RELATED_PARTY"), ("allow", "")])
def test_rule_related_at_freeze(town, policy, reason):
    claimed(town, related_party_policy=policy)
    with transaction(town.engine) as session:
        for organisation in ("org_factory", "org_vendor"):
            session.get_one(Organisation, organisation).controllers = ["person_1"]
    assert reason_of_line(town) == reason


def test_rule_batch_notice(town):
    programme = town.programme(notice_days=3)
    with transaction(town.engine) as session:
        batch = ClaimBatch(id="clm_1", programme_id=programme, from_day="2027-01-01", to_day="2027-01-31",
                           state="public_notice", total_fen=1, frozen_by=CHEN, notice_at_ms=town.now)  # fmt: skip
        session.add(batch)
        session.flush()
        with pytest.raises(Conflict) as running:
            batches.advance(session, batch, "approve", member=LIN, at_ms=town.now + 2 * DAY_MS)
        assert running.value.code == "NOTICE_RUNNING"
        assert batches.advance(session, batch, "approve", member=LIN, at_ms=town.now + 3 * DAY_MS).state == "approved"


@pytest.mark.parametrize(("policy", "part"), [("full", False), ("proportional", True)])
def test_rule_clawback(town, policy, part):
    claimed(town, clawback_policy=policy)
    (reservation,) = town.rows(Reservation)
    with transaction(town.engine) as session:
        voucher = session.get_one(Voucher, reservation.voucher_id)
        facts = {"programme_id": voucher.programme_id, "from_day": "2027-01-01", "to_day": "2027-01-31"}
        session.add(ClaimBatch(id="clm_1", state="paid", total_fen=12, **facts))
        session.flush()
        line = ClaimLine(id="cll_1", batch_id="clm_1", reservation_id=reservation.id, voucher_id=voucher.id,
                         subscription_id=reservation.subscription_id, organisation_id="org_factory",
                         provider_id="org_vendor", gross_fen=37, subsidy_fen=12, state="accepted")  # fmt: skip
        session.add(line)
        session.flush()
        if part:
            assert open_clawback(session, line.id, 5, "part of it", member=CHEN).amount_fen == 5
        else:
            with pytest.raises(BadInput) as refusal:
                open_clawback(session, line.id, 5, "part of it", member=CHEN)
            assert refusal.value.code == "CLAWBACK_AMOUNT"
            assert open_clawback(session, line.id, 12, "all of it", member=CHEN).amount_fen == 12


def test_rule_retention():
    assert decide_keep_until(date(2027, 6, 1), programme_file(retention_years=15).retention_years) == date(2042, 6, 1)
    assert decide_keep_until(date(2028, 2, 29), 1) == date(2029, 2, 28)
    assert refused(retention_years=0) == "PROGRAMME_INVALID"


# --- amounts ----------------------------------------------------------------------------------------------------------


def test_rule_ratio():
    programme = example("city-reimburse")
    facts = {"tier": "base", "filed": True, "firm_age_years": 9}
    assert decide_ratio(programme, **facts) == Ratio(num=2, den=5)
    assert decide_ratio(programme, **facts | {"firm_age_years": 3}) == Ratio(num=1, den=2)
    assert decide_ratio(programme, **facts | {"filed": False}) == Ratio(num=1, den=5)
    assert decide_ratio(programme, **facts | {"tier": "small"}) == Ratio(num=3, den=10)


def refused(**changes):
    with pytest.raises(BadInput) as error:
        programme_file(**changes)
    return error.value.code


def test_rule_ratio_bound():
    assert refused(ratio={"num": 2, "den": 3}, ratio_max={"num": 1, "den": 2}) == "PROGRAMME_INVALID"


def test_rule_tranches():
    assert refused(tranches=[{"code": "a", "fen": 999_999}, {"code": "b", "fen": 2}]) == "PROGRAMME_INVALID"


def test_rule_funders():
    share = {"name_zh": "市", "name_en": "city", "share_bp": 9_999}
    assert refused(funders=[share]) == "PROGRAMME_INVALID"


@pytest.mark.parametrize(
    ("mode", "payee"), [("reimburse", "provider"), ("reimburse", "platform"), ("deduct", "enterprise")]
)
def test_rule_payee(mode, payee):
    assert refused(settlement_mode=mode, payee=payee) == "PROGRAMME_INVALID"


def test_rule_last_day():
    programme = example("city-reimburse")
    assert programme.use_by(date(2027, 1, 1)) == date(2027, 6, 30)
    assert programme.use_by(date(2027, 11, 1)) == date(2027, 12, 31)


def test_rule_cap_period():
    """Of a calendar year in Shanghai, or once for all; whatever the version."""
    new_year = START - START % DAY_MS + 351 * DAY_MS - 8 * 3_600_000  # 2028-01-01 00:00 in Shanghai
    for at_ms, year in ((new_year - 1, "2027"), (new_year, "2028")):
        for period, told in (("calendar_year", year), ("programme", "all")):
            for version in (1, 2):
                file = programme_file(cap_period=period, version=version)
                row = Programme(id=f"prg_{version}", code="town", version=version, title_zh="", title_en="")
                assert cap_code(row, file, "org_f", at_ms) == f"C.ent[town,org_f,{told}]"


def test_rule_tax_basis(town):
    claimed(town, tax_basis={"fee_bp": 1_000, "vat_bp": 600})  # of 37 fen: 3 and 2, cut to whole fen over the total
    assert (-town.balance("M.fee"), -town.balance("M.vat"), -town.balance("M.pay.provider[org_vendor]")) == (3, 2, 32)


def test_rule_versions():
    """One version of a programme runs at a time, and takes what earlier ones committed off its tranches."""
    decide_alone("town", [(1, "closed"), (2, "draft"), (3, "audited")])
    for state in ("active", "frozen"):
        with pytest.raises(Conflict) as runs:
            decide_alone("town", [(1, state)])
        assert runs.value.code == "PROGRAMME_VERSION_RUNS"
    assert decide_fresh(programme_file(), {"one": 400_000}) == {"one": 600_000}
    with pytest.raises(Conflict) as committed:
        decide_fresh(programme_file(), {"old": 1})
    assert committed.value.code == "PROGRAMME_POOL_COMMITTED"


def test_rule_burn_order():
    first = Burnable(50, date(2027, 9, 1), 3, 9, "e")
    rest = [Burnable(100, date(2027, 1, 1), 3, 9, "d"), Burnable(100, date(2027, 2, 1), 1, 9, "c"),
            Burnable(100, date(2027, 2, 1), 2, 1, "b"), Burnable(100, date(2027, 2, 1), 2, 2, "a")]  # fmt: skip
    assert burn_order([*reversed(rest), first]) == [first, *rest]


@pytest.mark.parametrize("stacking", ["none", "cap_total_ratio"])
def test_rule_stacking(town, stacking):
    """Two programmes over one contract: only the first, or both within one bound of ratio × contract."""
    for code in ("one", "two"):
        town.voucher(20, code=code, title_zh=f"演示 {code}", stacking=stacking)
    town.subscribe(contract_fen=90)
    node = town.node()
    node.call(count=150)  # 18.5 fen of subsidy: within the first voucher
    assert sum(row.amount_fen for row in town.rows(Reservation)) == (20 if stacking == "none" else 30)
    node.stop()


@pytest.mark.parametrize(
    ("stacking", "bound", "declared", "share"),
    [
        ("none", None, 0, 30),  # a third of 90, nothing else declared
        ("none", None, 1, None),  # one fen rules it out
        ("cap_total_ratio", None, 0, 30),
        ("cap_total_ratio", None, 10, 20),  # voucher and the other together: a third of 90
        ("cap_total_ratio", None, 30, None),
        ("cap_total_ratio", (1, 2), 10, 30),  # 45 together leaves 35, and a third is 30
        ("cap_total_ratio", (1, 2), 20, 25),
        ("cap_total_ratio", (1, 2), 44, 1),
        ("cap_total_ratio", (1, 2), 45, None),
    ],
)
def test_rule_other_subsidy(stacking, bound, declared, share):
    most = {"stacking_max": {"num": bound[0], "den": bound[1]}} if bound else {}
    programme = programme_file(stacking=stacking, **most)
    found = decide_share(programme, [(90, Fraction(1, 3))], declared_fen=declared)
    assert (found.fen, found.reason) == ((share, None) if share is not None else (0, Reason.OTHER_SUBSIDY))
    call = covered(programme, declared_fen=declared)
    assert call == (Reason.OTHER_SUBSIDY if stacking == "none" and declared else None)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 50), st.integers(1, 50))
def test_voucher_and_other_subsidies_never_pass_the_bound_together(gross, declared, num, den):
    bound = Ratio(num=min(num, den), den=den)
    programme = programme_file(stacking="cap_total_ratio", stacking_max=bound.model_dump())
    share = decide_share(programme, [(gross, Fraction(1, 3))], declared_fen=declared)
    assert 0 <= share.fen <= gross // 3
    assert share.fen == 0 or (share.fen + declared) * bound.den <= gross * bound.num or not declared


@given(st.lists(st.integers(-50, 100), max_size=12), st.integers(-50, 300))
def test_what_is_claimed_beside_others_stays_within_the_room_and_no_longer_beginning_would(charges, room):
    count = decide_claimable(charges, room)
    assert count == 0 or sum(charges[:count]) <= room
    assert all(sum(charges[:longer]) > room for longer in range(count + 1, len(charges) + 1))


# --- the table and the examples ---------------------------------------------------------------------------------------


def example(name):
    return read_programme(yaml.safe_load((FOLDER / "examples" / f"{name}.yaml").read_text(encoding="utf-8")))


# fields of a programme's file that are no rule, and why
NO_RULE = {
    "code": "its name",
    "title_zh": "its title",
    "title_en": "its title",
    "document_zh": "what it rests on",
    "document_en": "what it rests on",
    "sources": "sentences of the document, for the reader of a file",
    "kind": "its name in words; what it pays for is `subject` and `who`",
    "base": "one value only: the share is of what was settled",
}


def rows_of_the_table():
    """Row → the fields that its parameter column names: `a: x, y` is field a."""
    found = {}
    for line in TABLE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (row := re.fullmatch(r"`(\w+)`", cells[0])):
            found[row.group(1)] = {name.partition(":")[0] for name in re.findall(r"`([^`]+)`", cells[2])}
    return found


def test_every_field_of_a_programme_s_file_sets_a_row_of_the_table():
    """Held against the file's own fields: a rule that is added is missed here, and so is one that is gone."""
    named = set().union(*rows_of_the_table().values())
    fields = set(ProgrammeFile.model_fields)
    assert named - fields == set()
    assert fields - named == set(NO_RULE)


def test_every_row_of_the_table_has_a_test_and_every_test_a_row():
    table = TABLE
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    tests = [name.removeprefix("test_rule_") for name in globals() if name.startswith("test_rule_")]
    assert sorted(rows) == sorted(tests)
    told = set(re.findall(r"`([A-Z_]{4,})`", table))
    assert set(Reason) <= told


def defined(folder):
    """`module.name` of every function and class of the files below `folder`, and `module.Class.name` of the methods."""
    found = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names = [node.name, *(f"{node.name}.{each.name}" for each in inner if isinstance(each, ast.FunctionDef))]
            found |= {f"{path.stem}.{name}" for name in names}
    return found


def test_what_decides_a_row_is_there_and_so_is_every_test_that_the_page_names():
    """A function that was renamed or moved is missed here; so is a row that a blank line cut off its table."""
    root = Path(__file__).parents[2]
    code = defined(root / "marketplace")
    for before, line in itertools.pairwise(TABLE.splitlines()):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.fullmatch(r"`\w+`", cells[0]):
            continue
        assert before.startswith("|"), f"{cells[0]} stands in no table"
        places = [name for name in re.findall(r"`([\w.]+)`", cells[4]) if not name.startswith("test_")]
        assert places, f"nothing decides {cells[0]}"
        assert set(places) <= code, f"{cells[0]} is decided in {set(places) - code}"
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert named
    assert named <= {part for name in defined(root / "tests") for part in name.split(".")}


def test_the_two_examples_name_every_parameter_and_leave_none_open():
    given = set()
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        programme = read_programme(document)
        assert unset(programme) == []
        words = describe(programme)
        assert len(words["zh"]) == len(words["en"]) > 8
        given |= set(document)
    assert set(ProgrammeFile.model_fields) - given <= {"is_demo"}
    modes = {(example(name).settlement_mode, example(name).payee) for name in ("city-reimburse", "city-deduct")}
    assert modes == {("reimburse", "enterprise"), ("deduct", "provider")}
