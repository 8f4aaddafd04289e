"""One contract, models of two classes, a ratio for each: whichever is called first, each is paid at its own."""

from __future__ import annotations

from collections import defaultdict
from datetime import date
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import serving.leases
from marketplace.catalogue.tables import Listing
from marketplace.claims import batches
from marketplace.clock import policy_date
from marketplace.db import transaction
from marketplace.usage.tables import Usage
from marketplace.vouchers import subscriptions, subsidies
from marketplace.vouchers.eligibility import decide_share
from marketplace.vouchers.quote import quote_calls
from marketplace.vouchers.reservations import decide_already, decide_amount
from marketplace.vouchers.tables import Application, LeaseRow, Reservation, Voucher
from model_store.errors import PaymentRequired
from tests.marketplace.shelf import add_listing
from tests.marketplace.stores import on_both_stores
from tests.marketplace.town import CHEN, Town, programme_file

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


# --- other subsidies on such a contract: together within the bound, each ratio for its own part -----------------------


def declared(town: Town, contract: str, fen: int) -> None:
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, contract, None)
        facts: dict[str, Any] = {"programme": "技改补贴", "authority": "工信局", "amount_fen": fen}
        subsidies.declare(session, row, **facts, actor="f", at_ms=town.now)


def reserved(town: Town) -> dict[tuple[int, int], int]:
    """Fen that are set aside at each ratio."""
    found: dict[tuple[int, int], int] = defaultdict(int)
    for row in town.rows(Reservation):
        found[row.ratio_num, row.ratio_den] += row.amount_fen - row.released_fen
    return found


def called_at_both(town: Town, first: str, second: str, **stacking: Any) -> str:
    """A contract of which 90 fen each were used at a third and at two thirds, in three charges each."""
    if first == BASE:
        town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio", **stacking)
        contract = town.subscribe(100_000)
    else:
        contract = town.subscribe(100_000)
        town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio", **stacking)
    node = town.node()
    for model in (first, second) * 3:
        node.call(model, count=10)
        node.flush()
    node.stop()
    assert town.total("Q.used") == 30 + 60
    return contract


def claimable(town: Town) -> int:
    with transaction(town.engine) as session:
        today = policy_date(town.now).isoformat()
        batch = batches.create(session, "town", "2027-01-01", today, member=CHEN)
        found = batches.candidates(session, batch, town.now)
        return sum(each.subsidy_fen for each in found if not each.reason)


@pytest.mark.parametrize("order", [(BASE, SMALL), (SMALL, BASE)])
def test_all_is_claimed_where_other_subsidies_leave_room_for_all_ratios(town, order):
    contract = called_at_both(town, *order, stacking_max={"num": 3, "den": 4})
    declared(town, contract, 45)  # 135 of 180 together
    assert claimable(town) == 90
    declared(town, contract, 1)
    assert claimable(town) in (70, 80)  # the last whole charge is held back


@pytest.mark.parametrize("order", [(BASE, SMALL), (SMALL, BASE)])
def test_without_a_bound_of_its_own_no_more_is_claimed_than_the_ratios_give_together(town, order):
    contract = called_at_both(town, *order)
    declared(town, contract, 50)  # of 90, a third of 90 and two thirds of 90
    assert 20 < claimable(town) <= 40


def test_what_is_set_aside_at_two_ratios_within_the_bound_stays(town):
    town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio", stacking_max={"num": 3, "den": 4})
    contract = town.subscribe(900)
    town.node().call(SMALL)  # half of what was set aside at a third makes way
    assert reserved(town) == {THIRD: 150, TWO_THIRDS: 300}
    declared(town, contract, 225)  # 675 of 900 together
    assert reserved(town) == {THIRD: 150, TWO_THIRDS: 300}
    declared(town, contract, 60)
    assert sum(reserved(town).values()) == 390
    town.check()


def test_without_a_bound_of_its_own_what_is_declared_is_taken_off_what_the_ratios_give_together(town):
    town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio")
    contract = town.subscribe(900)
    town.node().call(SMALL)
    declared(town, contract, 50)
    assert sum(reserved(town).values()) == 400
    town.check()


@pytest.mark.parametrize("order", [(BASE, SMALL), (SMALL, BASE)])
def test_beside_another_subsidy_each_class_is_still_paid_at_its_own_ratio(town, order):
    contract = town.subscribe(900)
    declared(town, contract, 10)
    town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio", stacking_max={"num": 3, "den": 4})
    node = town.node()
    for model in order:
        node.call(model)
    assert set(reserved(town)) == {THIRD, TWO_THIRDS}
    assert sum(reserved(town).values()) + 10 <= 675
    town.check()


def test_beside_another_subsidy_a_second_ratio_sets_no_more_aside_than_both_give_together(town):
    contract = town.subscribe(900)
    declared(town, contract, 100)
    town.voucher(100_000, ratio_rules=RULES, stacking="cap_total_ratio")
    node = town.node()
    for model in (BASE, SMALL):
        node.call(model)
    found = reserved(town)
    gross = found[THIRD] * 3 + found[TWO_THIRDS] * Fraction(3, 2)
    assert sum(found.values()) + 100 <= found[THIRD] + found[TWO_THIRDS] + (900 - gross) * Fraction(2, 3)
    town.check()


PARTS = st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from([Fraction(1, 3), Fraction(2, 3)])), max_size=4)


@given(PARTS, st.integers(0, 10**9), st.sampled_from([None, Fraction(1, 2), Fraction(3, 4)]))
def test_the_share_of_several_ratios_is_what_they_give_together_less_what_leaves_no_room(parts, other, most):
    bound = {"stacking_max": {"num": most.numerator, "den": most.denominator}} if most else {}
    share = decide_share(programme_file(stacking="cap_total_ratio", **bound), parts, declared_fen=other)
    own = sum((gross * ratio for gross, ratio in parts), Fraction(0))
    assert 0 <= share.fen <= own
    within = own if most is None else most * sum(gross for gross, _ in parts)
    if other:
        assert share.fen == 0 or share.fen + other <= within
        assert share.fen == max(0, min(int(own), int(within) - other))
    else:
        assert share.fen == int(own)
