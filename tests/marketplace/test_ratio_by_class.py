"""One contract, models of two classes, a ratio for each: whichever is called first, each is paid at its own."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import serving.leases
from marketplace.catalogue.tables import Listing
from marketplace.db import transaction
from marketplace.usage.tables import Usage
from marketplace.vouchers.quote import quote_calls
from marketplace.vouchers.reservations import decide_already, decide_amount
from marketplace.vouchers.tables import Application, LeaseRow, Reservation, Voucher
from model_store.errors import PaymentRequired
from tests.marketplace.shelf import add_listing
from tests.marketplace.stores import on_both_stores
from tests.marketplace.town import Town

BASE, SMALL = "vendor/steel", "factory/tuned"
THIRD, TWO_THIRDS = (1, 3), (2, 3)
RULES = [{"ratio": {"num": 2, "den": 3}, "tiers": ["small"]}]


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc)


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    with transaction(engine) as session:
        steel = session.get_one(Listing, f"lst_{BASE}")
        steel.tier = "base"
        town.price(session, steel, 3_000_000, kind="derivative")
        town.price(session, steel, 3_000_000)
        facts = {"visibility": "private", "parent_listing_id": steel.id, "relation": "finetune", "tier": "small"}
        add_listing(session, SMALL, "draft", **facts)
    town.now += 1_000  # the new price holds
    return town


def paid(town: Town, model: str) -> tuple[int, set[tuple[int, int]]]:
    """Gross fen of a model's calls, and the ratios of the reservations that they were charged to."""
    ratios = {row.id: (row.ratio_num, row.ratio_den) for row in town.rows(Reservation)}
    calls = [row for row in town.rows(Usage) if row.model == f"{model}@1"]
    assert all(row.lease_kind == "subsidised" and row.status == "ok" for row in calls)
    return sum(row.amount_micro for row in calls) // 1_000_000, {ratios[row.reservation_id] for row in calls}


@pytest.mark.parametrize("order", [(BASE, SMALL), (SMALL, BASE), (BASE, SMALL, BASE, SMALL)])
def test_each_class_is_paid_at_its_own_ratio_whichever_opens_the_contract(town, order):
    if order[0] == BASE:
        town.voucher(100_000, ratio_rules=RULES)
        town.subscribe(100_000)  # sets aside at the base's ratio
    else:
        town.subscribe(100_000)  # before there is a voucher: the derivative's first call sets aside
        town.voucher(100_000, ratio_rules=RULES)
    node = town.node()
    for model in order:
        node.call(model, count=30)
    node.stop()
    town.check()
    each = 90 * order.count(BASE)
    assert paid(town, BASE) == (each, {THIRD})
    assert paid(town, SMALL) == (each, {TWO_THIRDS})
    assert town.total("Q.used") == each // 3 + each * 2 // 3


def test_what_idles_at_another_ratio_makes_way_by_half(town):
    town.voucher(1_000, ratio_rules=RULES)
    town.subscribe(100_000)  # all of the voucher is set aside at a third
    node = town.node()
    node.call(SMALL)
    (third, two_thirds) = town.rows(Reservation)
    assert (third.ratio_num, third.released_fen) == (1, 500)
    assert (two_thirds.ratio_num, two_thirds.amount_fen) == (2, 500)
    town.check()


def test_classes_called_by_turns_spend_the_voucher_to_its_end_with_few_reservations(town):
    town.voucher(1_000, ratio_rules=RULES)
    town.subscribe(100_000)
    node = town.node()
    refused: set[str] = set()
    while len(refused) < 2:
        for model in (BASE, SMALL):
            try:
                node.call(model)
            except PaymentRequired:
                refused.add(model)
    node.stop()
    town.check()
    assert paid(town, BASE)[1] == {THIRD}
    assert paid(town, SMALL)[1] == {TWO_THIRDS}
    used = town.total("Q.used")
    assert used == paid(town, BASE)[0] // 3 + paid(town, SMALL)[0] * 2 // 3
    assert used >= 1_000 - 4
    assert len(town.rows(Reservation)) <= 12


def test_reservations_of_two_ratios_stand_for_the_contract_once(town):
    town.voucher(100_000, ratio_rules=RULES)
    contract = town.subscribe(3_000)
    node = town.node()
    node.call(SMALL, count=100)
    node.call(BASE, count=100)
    for row in (rows := town.rows(Reservation)):
        assert row.subscription_id == contract
    live = [(row.amount_fen - row.released_fen, Fraction(row.ratio_num, row.ratio_den)) for row in rows]
    assert sum((fen / ratio for fen, ratio in live), Fraction(0)) <= 3_000
    town.check()


def test_a_standing_lease_of_one_class_is_not_extended_for_the_other(town):
    town.voucher(100_000, ratio_rules=RULES)
    town.subscribe(100_000)
    node = town.node()
    node.call(BASE)
    node.call(SMALL)
    ratios = {(row.prices[-1]["model"], row.prices[-1]["ratio_num"]) for row in town.rows(LeaseRow)}
    assert ratios == {(BASE, 1), (SMALL, 2)}


def test_a_quote_says_the_ratio_that_the_call_is_paid_at(town):
    young: list[dict[str, Any]] = [{"ratio": {"num": 1, "den": 2}, "firm_age_max_years": 3}]
    voucher = town.voucher(1_000, ratio_rules=young)
    with transaction(town.engine) as session:
        row = session.get_one(Application, session.get_one(Voucher, voucher).application_id)
        row.evidence = [{"code": "founded-on", "value": date(2025, 6, 1).isoformat()}]
    with transaction(town.engine) as session:
        quote = quote_calls(session, session.get_one(Listing, f"lst_{BASE}"), "org_factory", 10, town.now)
    assert quote["ratio"] == "1/2"
    town.subscribe()
    assert [(row.ratio_num, row.ratio_den) for row in town.rows(Reservation)] == [(1, 2)]


ratios = st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda two: Fraction(min(two), max(two)))


@given(gross=st.integers(0, 10**9), asks=st.lists(st.tuples(st.integers(0, 10**9), ratios), max_size=8))
def test_whatever_is_set_aside_at_whatever_ratios_stands_for_the_contract_at_most_once(gross, asks):
    taken: list[tuple[int, Fraction]] = []
    for has, ratio in asks:
        fen = decide_amount(has, gross * ratio.numerator // ratio.denominator, decide_already(taken, ratio))
        taken.append((fen, ratio))
    assert sum((fen / ratio for fen, ratio in taken), Fraction(0)) <= gross


@given(taken=st.lists(st.integers(0, 10**9), max_size=5), ratio=ratios)
def test_at_one_ratio_what_was_set_aside_counts_as_it_is(taken, ratio):
    assert decide_already([(fen, ratio) for fen in taken], ratio) == sum(taken)
