"""A test for each row of docs/rules.md, named after it: the rule passes, fails with its reason, and what sets it."""

import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml

import serving.leases
from marketplace.organisations.uscc import demo_code
from marketplace.vouchers.applications import decide_notice_over
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
    decide_standing,
    decide_uscc,
    decide_voucher,
)
from marketplace.vouchers.programme import FOLDER, ProgrammeFile, Ratio, decide_ratio, read_programme, unset
from marketplace.vouchers.reservations import decide_amount
from marketplace.vouchers.tables import Reservation
from marketplace.vouchers.wording import describe
from model_store.errors import BadInput, PaymentRequired
from tests.marketplace.town import START, Town, programme_file

DAY = date(2027, 6, 1)
FACTORY = Party("org_f", "enterprise", "approved", demo_code(1), "Chen", is_demo=True)
VENDOR = Party("org_v", "vendor", "approved", demo_code(2), "Lin", is_demo=True)
FILING = FilingFact("n", date(2027, 1, 1), date(2027, 6, 30), is_demo=True)
OFFER = Offer(is_derivative=False, reuses_weights=True, filing=FILING, tier="base")
VOUCHER = VoucherFact("active", date(2027, 6, 30), "active")


def covered(programme=None, voucher=VOUCHER, offer=OFFER, related=False, contract_fen=100, day=DAY):
    rules = programme or programme_file()
    return decide_coverage(rules, voucher, offer, related=related, contract_fen=contract_fen, day=day).reason


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


def test_rule_evidence():
    wanted = [{"code": "contract", "title_zh": "合同", "title_en": "contract"},
              {"code": "photo", "title_zh": "照片", "title_en": "photo", "required": False}]  # fmt: skip
    programme = programme_file(evidence_schema=wanted)
    assert decide_evidence(programme, ["contract"]).passed
    assert decide_evidence(programme, ["photo"]).reason == Reason.EVIDENCE_MISSING


def test_rule_notice():
    """Whole calendar days in Shanghai, whatever the hour it began."""
    late = START + 23 * 3_600_000 - START % 86_400_000
    assert not decide_notice_over(None, 0, late)
    assert decide_notice_over(late, 0, late)
    assert not decide_notice_over(late, 2, late + 86_400_000)
    assert decide_notice_over(late, 2, late + 2 * 86_400_000)


# --- a contract or a call ---------------------------------------------------------------------------------------------


def test_rule_programme_runs():
    for state, passes in [("active", True), ("frozen", True), ("draft", False), ("closed", False)]:
        assert decide_voucher(replace(VOUCHER, programme_state=state), DAY).passed is passes
    assert covered(voucher=VoucherFact("suspended", date(2020, 1, 1), "closed")) == Reason.PROGRAMME_CLOSED


def test_rule_use_by():
    assert covered(day=VOUCHER.use_by) is None
    assert covered(day=VOUCHER.use_by + timedelta(days=1)) == Reason.VOUCHER_EXPIRED
    assert covered(voucher=replace(VOUCHER, state="expired")) == Reason.VOUCHER_EXPIRED


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
    third = Ratio(num=1, den=3)
    assert decide_amount(1_000, 100, third, 0) == 33
    assert decide_amount(1_000, 100, third, 30) == 3
    assert decide_amount(2, 100, third, 0) == 2
    assert decide_amount(1_000, 100, third, 40) == 0
    town.voucher(1_000)
    town.subscribe(contract_fen=2)  # a third of it is no whole fen
    node = town.node()
    with pytest.raises(PaymentRequired) as refused:
        node.call()
    assert refused.value.code == Reason.CONTRACT_USED_UP
    node.stop()


def test_rule_no_voucher():
    assert decide_reason([]) == Reason.VOUCHER_REQUIRED
    assert decide_reason([Reason.VOUCHER_EXPIRED, Reason.VOUCHER_EXHAUSTED]) == Reason.VOUCHER_EXHAUSTED


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


# --- the table and the examples ---------------------------------------------------------------------------------------


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    return town


def example(name):
    return read_programme(yaml.safe_load((FOLDER / "examples" / f"{name}.yaml").read_text(encoding="utf-8")))


def test_every_row_of_the_table_has_a_test_and_every_test_a_row():
    table = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    tests = [name.removeprefix("test_rule_") for name in globals() if name.startswith("test_rule_")]
    assert sorted(rows) == sorted(tests)
    told = set(re.findall(r"`([A-Z_]{4,})`", table))
    assert set(Reason) <= told


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
