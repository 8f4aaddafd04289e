"""Each signal against rows where it speaks, where it keeps silent, and at its very bound; and identities that last."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.findings.contract_signals import (
    decide_just_over,
    find_contracts_just_over,
    find_related,
    find_reused_invoices,
    find_shared_contacts,
    find_shared_persons,
    find_spend_just_over,
)
from marketplace.findings.found import SHOWN, Bill, Contract, Declared, Drawn, Repeat, Spacing
from marketplace.findings.usage_signals import (
    cv_bp,
    decide_burst,
    decide_constant,
    decide_repeated,
    find_bursts,
    find_constant_intervals,
    find_identical_requests,
)
from marketplace.vouchers.relations import Holding, Party
from marketplace.vouchers.signals import Code, Signals
from tests.marketplace.town import programme_file

SIGNALS = Signals(interval_calls=10, interval_cv_bp=500, identical_calls=100, identical_share_bp=100, burst_fen=1_000)
ONE = Contract("sub_1", "org_f", "org_v")


def spacing(gaps: list[int], day: str = "2027-01-15", contract: Contract = ONE, key: str = "key_1") -> Spacing:
    squares = sum(gap * gap for gap in gaps)
    return Spacing(contract, key, day, len(gaps) + 1, sum(gaps), squares, 370_000 * (len(gaps) + 1))


# --- constant intervals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gaps", "found"),
    [
        ([1_000] * 9, True),
        ([1_000] * 8, False),  # one call too few
        ([950, 1_050] * 10, True),  # a coefficient of variation of exactly 5%
        ([949, 1_051] * 10, False),
        ([100, 2_000, 300, 9_000, 50, 700, 1_500, 20, 4_000], False),  # as people work
        ([0] * 20, False),  # all in one millisecond: no interval at all
    ],
)
def test_calls_at_constant_intervals(gaps, found):
    assert decide_constant(spacing(gaps), SIGNALS) is found


def test_the_coefficient_of_variation_is_told_in_basis_points():
    assert cv_bp(spacing([1_000] * 9)) == 0
    assert cv_bp(spacing([950, 1_050] * 10)) == 500


def test_the_days_of_one_key_are_one_finding_and_each_key_is_one():
    days = [spacing([1_000] * 50, f"2027-01-{day:02d}") for day in range(1, 31)]
    (found, other) = find_constant_intervals([*days, spacing([500] * 20, key="key_2")], SIGNALS, "prg_1")
    assert (found.evidence["day_count"], len(found.evidence["days"])) == (30, SHOWN)
    assert found.evidence["days"][0] == {"day": "2027-01-30", "calls": 51, "mean_gap_ms": 1_000, "cv_bp": 0}
    assert found.evidence["usage_count"] == 30 * 51
    assert found.amount_fen == 30 * 51 * 370_000 // 1_000_000
    assert "30 天" in found.zh
    assert "every 1,000 ms" in found.en
    assert other.sample.key == "key_2"
    assert found.id != other.id


# --- the same request -------------------------------------------------------------------------------------------------


def repeat(calls: int, of_calls: int, digest: str = "d1", contract: Contract = ONE) -> Repeat:
    return Repeat(contract, "v/m@1", digest, calls, of_calls, calls * 370_000, "2027-01-01", "2027-01-15")


@pytest.mark.parametrize(
    ("calls", "of_calls", "found"),
    [(100, 100, True), (99, 99, False), (100, 10_000, True), (100, 10_001, False), (101, 10_100, True)],
)
def test_calls_with_the_same_request(calls, of_calls, found):
    assert decide_repeated(repeat(calls, of_calls), SIGNALS) is found
    assert len(find_identical_requests([repeat(calls, of_calls)], SIGNALS, "prg_1")) == found


def test_a_call_without_a_digest_is_like_no_other():
    assert find_identical_requests([repeat(1_000, 1_000, digest="")], SIGNALS, "prg_1") == []


# --- a burst before the use-by day ------------------------------------------------------------------------------------

DRAWN = Drawn("vch_1", "org_f", ("sub_1",), "2027-01-01", "2027-01-31", "2027-01-25", 31, 2_000, 1_000, (1, 2), 2)


@pytest.mark.parametrize(
    ("changes", "today", "found"),
    [
        ({}, "2027-01-25", True),
        ({}, "2027-01-24", False),  # its last days have not begun
        ({"paid_fen": 2_001}, "2027-02-01", False),  # less than half
        ({"late_fen": 999, "paid_fen": 999}, "2027-02-01", False),  # too little to look at
        ({"valid_days": 28}, "2027-02-01", True),
        ({"valid_days": 27}, "2027-02-01", False),  # a voucher so short is always near its end
    ],
)
def test_spending_bunched_before_the_use_by_day(changes, today, found):
    row = replace(DRAWN, **changes)
    assert decide_burst(row, SIGNALS, today) is found
    assert len(find_bursts([row], SIGNALS, "prg_1", today)) == found


# --- just over a threshold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "least", "found"),
    [(10_000, 10_000, True), (9_999, 10_000, False), (10_500, 10_000, True), (10_501, 10_000, False), (0, 0, False)],
)
def test_just_over_is_from_the_least_amount_to_so_much_above_it(amount, least, found):
    assert decide_just_over(amount, least, 500) is found


@pytest.mark.parametrize(
    ("last", "found"), [("2027-01-01", True), ("2027-01-02", False), ("", False)]
)  # fmt: skip
def test_spending_is_just_over_only_where_it_stopped_there(last, found):
    row = replace(ONE, spent_fen=10_100, last_use_day=last)
    rules = programme_file(min_spend_fen=10_000)
    assert len(find_spend_just_over([row], rules, "prg_1", date(2027, 1, 15))) == found
    assert find_spend_just_over([row], programme_file(), "prg_1", date(2027, 1, 15)) == []


def test_several_contracts_just_over_are_one_finding_of_the_enterprise():
    rules = programme_file(min_spend_fen=10_000)
    rows = [replace(ONE, id=f"sub_{n}", contract_fen=10_000 + n, provider=f"org_{n}") for n in range(3)]
    (found,) = find_contracts_just_over([*rows, replace(ONE, id="sub_9", contract_fen=90_000)], rules, "prg_1")
    assert (found.contracts, found.amount_fen, found.provider) == (("sub_0", "sub_1", "sub_2"), 30_003, "")
    assert find_contracts_just_over(rows[:1], rules, "prg_1") == []
    assert find_contracts_just_over(rows, programme_file(), "prg_1") == []


# --- parties ----------------------------------------------------------------------------------------------------------


def declared(organisation: str, kind: str, **facts) -> Declared:
    own = {name: facts.pop(name) for name in ("address", "phone", "domains") if name in facts}
    return Declared(
        Party(organisation, kind, "approved", organisation.upper(), **facts), organisation, organisation, **own
    )


def pair(caller: dict, provider: dict) -> dict[str, Declared]:
    both = declared("org_f", "enterprise", **caller), declared("org_v", "vendor", **provider)
    return {each.party.organisation: each for each in both}


@pytest.mark.parametrize(("share_bp", "found"), [(2_500, True), (2_499, False)])
def test_related_parties_from_the_programme_s_share_on(share_bp, found):
    parties = pair({"shareholders": (Holding("P", "P", 9_000),)}, {"shareholders": (Holding("P", "P", share_bp),)})
    result = find_related([ONE], parties, {}, programme_file(), "prg_1")
    assert len(result) == found
    assert find_related([ONE], parties, {}, programme_file(related_party_policy="allow"), "prg_1") == []
    if found:
        assert [step["holder"] for step in result[0].evidence["links"]] == ["P", "P"]
        assert result[0].severity == "high"


def test_a_firm_in_between_is_walked_through():
    parties = pair({"shareholders": (Holding("H", "H", 6_000),)}, {})
    above = {"H": Party("org_h", "enterprise", "approved", "H", shareholders=(Holding("V", "ORG_V", 3_000),))}
    (found,) = find_related([ONE], parties, above, programme_file(), "prg_1")
    assert [step["share_bp"] for step in found.evidence["links"]] == [6_000, 3_000]


@pytest.mark.parametrize(
    ("caller", "provider", "found"),
    [
        ({"legal_person": "陈大文"}, {"shareholders": (Holding("陈 大文", "", 1_000),)}, True),
        ({"shareholders": (Holding("李四", "", 1),)}, {"shareholders": (Holding("李四", "x", 1),)}, True),
        ({"legal_person": "陈大文"}, {"legal_person": "陈大文"}, False),  # related: told as such
        ({"legal_person": "陈大文"}, {"legal_person": "陈大武"}, False),
        ({"legal_person": ""}, {"shareholders": (Holding("x", "", 1),)}, False),
        ({"legal_person": "陈", "is_demo": True}, {"shareholders": (Holding("陈", "", 1),)}, False),
    ],
)
def test_the_same_name_on_both_sides(caller, provider, found):
    assert len(find_shared_persons([ONE], pair(caller, provider), "prg_1")) == found


@pytest.mark.parametrize(
    ("caller", "provider", "kinds"),
    [
        ({"address": "莞城 1 号"}, {"address": "莞城1号"}, ["address"]),
        ({"address": ""}, {"address": ""}, []),
        ({"phone": "0769-2211"}, {"phone": "(0769) 2211"}, ["phone"]),
        ({"domains": frozenset({"a.cn"})}, {"domains": frozenset({"a.cn", "b.cn"})}, ["domain"]),
        ({"domains": frozenset({"qq.com"})}, {"domains": frozenset({"qq.com"})}, []),  # anybody's
        ({"phone": "1", "is_demo": True}, {"phone": "1"}, []),
    ],
)
def test_shared_contacts(caller, provider, kinds):
    result = find_shared_contacts([ONE], pair(caller, provider), "prg_1")
    assert [each["kind"] for found in result for each in found.evidence["shared"]] == kinds


# --- invoices ---------------------------------------------------------------------------------------------------------

BILL = Bill("inv_1", "144", "sub_1", "org_f", "org_v", 500)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"contract": "sub_2"}, 1),
        ({"contract": "sub_2", "number": "145"}, 0),
        ({"contract": "sub_2", "number": "145", "files": ("f",)}, 1),
        ({"contract": "sub_2", "files": ("f",)}, 1),  # one invoice with its original: told once
        ({"contract": "sub_2", "provider": "org_w"}, 0),  # two issuers may count alike
        ({"contract": "sub_2", "provider": "org_w", "number": "2" * 20}, 0),
    ],
)
def test_one_invoice_used_twice(other, found):
    assert len(find_reused_invoices([replace(BILL, files=("f",)), replace(BILL, id="inv_2", **other)])) == found


def test_an_invoice_divided_between_contracts_is_less_grave_than_one_for_two_enterprises_or_numbers():
    for other, severity in ({}, "medium"), ({"organisation": "org_g"}, "high"), ({"number": "145"}, "high"):
        bills = [replace(BILL, files=("f",)), replace(BILL, id="inv_2", contract="sub_2", files=("f",), **other)]
        assert [found.severity for found in find_reused_invoices(bills)] == [severity]


def test_a_number_of_twenty_digits_is_unique_whoever_issued_it():
    bills = [replace(BILL, id=f"inv_{n}", number="2" * 20, provider=f"org_{n}", contract=f"sub_{n}") for n in range(2)]
    (found,) = find_reused_invoices(bills)
    assert (found.evidence["invoice_count"], found.amount_fen, found.programme) == (2, 1_000, "")


# --- identity ---------------------------------------------------------------------------------------------------------

CONTRACTS = [Contract(f"sub_{n}", f"org_f{n % 3}", f"org_v{n % 2}", 10_000 + n, 10_000, "2026-12-01") for n in range(6)]
PARTIES = {
    key: declared(
        key, "enterprise", legal_person=f"p{key}", controllers=frozenset({"P"}), phone="1", domains=frozenset()
    )
    for key in ("org_f0", "org_f1", "org_f2", "org_v0", "org_v1")
}
SPACINGS = [spacing([1_000] * 9, f"2027-01-{d:02d}", c, k) for d in (1, 2) for c in CONTRACTS[:2] for k in "ab"]
REPEATS = [repeat(100 + n, 500, f"d{n}", CONTRACTS[n]) for n in range(4)]
BILLS = [
    replace(
        BILL, id=f"inv_{n}", contract=f"sub_{n}", number=f"14{n}" if n > 1 else "144", files=("f",) if n > 1 else ()
    )
    for n in range(4)
]
DRAWINGS = [replace(DRAWN, voucher=f"vch_{n}") for n in range(3)]


@settings(deadline=None)  # on a busy machine it takes longer, and is as right
@given(st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_are_the_same_findings(random):
    def everything(shuffled):
        order = lambda rows: random.sample(rows, len(rows)) if shuffled else rows  # noqa: E731
        rules = programme_file(min_spend_fen=10_000)
        return [
            *find_constant_intervals(order(SPACINGS), SIGNALS, "prg_1"),
            *find_identical_requests(order(REPEATS), SIGNALS, "prg_1"),
            *find_bursts(order(DRAWINGS), SIGNALS, "prg_1", "2027-02-01"),
            *find_related(order(CONTRACTS), PARTIES, {}, rules, "prg_1"),
            *find_shared_contacts(order(CONTRACTS), PARTIES, "prg_1"),
            *find_spend_just_over(order(CONTRACTS), rules, "prg_1", date(2027, 1, 15)),
            *find_contracts_just_over(order(CONTRACTS), rules, "prg_1"),
            *find_reused_invoices(order(BILLS)),
        ]

    found = everything(shuffled=True)
    assert found == everything(shuffled=False)
    assert len({each.id for each in found}) == len(found) > 20
    assert {each.code for each in found} == set(Code) - {Code.SHARED_PERSON}


def test_tomorrow_s_finding_is_the_same_although_its_evidence_has_grown():
    (today,) = find_identical_requests([repeat(100, 500)], SIGNALS, "prg_1")
    (tomorrow,) = find_identical_requests([repeat(140, 700)], SIGNALS, "prg_1")
    assert today.id == tomorrow.id
    assert today.evidence != tomorrow.evidence
    (elsewhere,) = find_identical_requests([repeat(100, 500)], SIGNALS, "prg_2")
    assert elsewhere.id != today.id
