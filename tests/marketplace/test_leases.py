"""The lease desk: what is granted, extended, refused and why; nodes, epochs, and the order of seal and settle."""

import asyncio
import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from marketplace.catalogue.tables import Filing, Listing
from marketplace.clock import end_of_day_ms, start_of_day_ms
from marketplace.db import open_database, transaction
from marketplace.ledger.tables import LedgerAccount
from marketplace.organisations.tables import Notice, Organisation
from marketplace.settings import Settings
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.usage.tables import TrialCount, Usage
from marketplace.vouchers import grants, lease_rows, subscriptions
from marketplace.vouchers.desk import LeaseDesk
from marketplace.vouchers.lease_rows import next_month_ms
from marketplace.vouchers.nodes import new_epoch, newest_epoch
from marketplace.vouchers.tables import LeaseRow, NodeEpoch, Reservation, Subscription, Voucher
from model_store.errors import Conflict, Forbidden, NotFound, PaymentRequired, TooMany, Unavailable
from serving.metering import MICRO_PER_FEN
from serving.ports import Principal, ServedVersion
from tests.marketplace.shelf import add_listing
from tests.marketplace.town import PRINCIPAL, START

STEEL = "vendor/steel"


def ask(town, node="n1", epoch=1, need=0, model=STEEL, held=None, purpose="use", principal=PRINCIPAL):
    served = ServedVersion("v", f"lst_{model}", model, 1, town.folder, "d", True, "o")
    return town.desk.open(principal, served, node=node, epoch=epoch, need_micro=need, purpose=purpose, held=held or {})


def refused(town, code, kind=PaymentRequired, **options):
    with pytest.raises(kind) as caught:
        ask(town, **options)
    assert caught.value.code == code
    assert caught.value.zh
    assert caught.value.en
    return caught.value


# --- decisions --------------------------------------------------------------------------------------------------------


@given(
    available=st.integers(0, 10**7), nodes=st.integers(1, 20), short=st.integers(0, 10**6), held=st.integers(0, 10**5)
)
def test_a_grant_covers_the_call_or_is_none_and_never_more_than_there_is(available, nodes, short, held):
    fen = grants.decide_grant(available, nodes, short, held)
    if short > available:
        assert fen is None
    else:
        assert short <= fen <= available
        assert fen <= max(short, grants.MAX_LEASE_FEN, 0)


def test_a_lease_takes_at_most_half_of_what_is_left_and_near_the_end_one_call():
    assert grants.decide_grant(1_000, 1, 1, 0) == 500
    assert grants.decide_grant(1_000, 2, 1, 0) == 250
    assert grants.decide_grant(10**9, 1, 1, 0) == grants.MAX_LEASE_FEN
    assert grants.decide_grant(1, 1, 1, 0) == 1
    assert grants.decide_grant(1_000, 1, 0, 600) == 0


@given(
    need=st.integers(0, 10**9), wanted=st.integers(0, 10**9), held=st.integers(0, 10**9),
    room=st.none() | st.integers(-(10**6), 10**9),
)  # fmt: skip
def test_credit_covers_the_call_within_the_cap_or_is_refused(need, wanted, held, room):
    add = grants.decide_credit(need, wanted, held, room)
    if add is None:
        assert room is not None
        assert max(0, need - held) > room  # a cap that was lowered since refuses even what is held
    else:
        assert add >= 0
        assert held + add >= need
        assert room is None or add <= max(0, room)


@given(st.integers(0, 10**9), st.integers(1, 100), st.integers(0, 99))
def test_the_two_shares_cover_the_amount(amount, den, less):
    num = max(1, den - less)
    voucher, own = grants.voucher_share_micro(amount, num, den), grants.own_share_micro(amount, num, den)
    assert amount <= voucher + own <= amount + 1
    assert grants.own_credit_for(voucher, num, den) >= own - math.ceil(den / num)


def test_a_lease_ends_with_the_first_thing_that_ends():
    assert grants.decide_expiry(1_000, 10, [None, 5_000, 8_000]) == 5_000
    assert grants.decide_expiry(1_000, 10, [500]) == 11_000


def test_months_and_years_turn_in_shanghai():
    assert next_month_ms(START) == start_of_day_ms(date(2027, 2, 1))
    assert next_month_ms(end_of_day_ms(date(2026, 12, 31))) == start_of_day_ms(date(2027, 1, 1))
    assert lease_rows.month_of(start_of_day_ms(date(2027, 1, 1)) - 1) == "2026-12"


# --- grants -----------------------------------------------------------------------------------------------------------


def test_a_subsidised_lease_carries_entitlement_and_the_enterprise_s_own_part(town):
    town.voucher(1_000)
    subscription = town.subscribe(3_000)
    register_node(town.engine, town.folder, "n1")
    lease = ask(town)
    assert (lease.kind, lease.subscription, lease.organisation) == ("subsidised", subscription, "org_factory")
    assert lease.remaining_micro == 500 * MICRO_PER_FEN
    assert lease.credit_micro >= 2 * lease.remaining_micro
    (line,) = lease.prices
    assert (line.model, line.micro_per_unit, line.ratio_num, line.ratio_den) == (STEEL, 370_000, 1, 3)
    assert lease.expires_at_ms == town.now + 600_000
    assert town.balance(f"Q.lease[{lease.lease_id}]") == 500
    assert town.rows(Reservation)[0].state == "drawing"
    town.check()


def test_the_same_lease_is_extended_rather_than_another_opened(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    register_node(town.engine, town.folder, "n1")
    first = ask(town)
    again = ask(town, need=6 * MICRO_PER_FEN, held={"remaining_micro": 1, "credit_micro": 5})
    assert again.lease_id == first.lease_id
    assert again.remaining_micro == 250 * MICRO_PER_FEN + 1
    assert town.rows(LeaseRow)[0].granted_fen == 750
    assert len(town.rows(LeaseRow)) == 1
    town.check()


def test_a_lease_that_has_enough_is_renewed_without_a_grant(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    register_node(town.engine, town.folder, "n1")
    first = ask(town)
    town.now += 600_000
    held = {"remaining_micro": first.remaining_micro, "credit_micro": first.credit_micro}
    again = ask(town, held=held)
    assert (again.remaining_micro, again.credit_micro) == (first.remaining_micro, first.credit_micro)
    assert again.expires_at_ms == town.now + 600_000


def test_an_answer_never_exceeds_what_the_lease_was_granted(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    register_node(town.engine, town.folder, "n1")
    ask(town)
    lost = ask(town, held={"remaining_micro": 10**15, "credit_micro": 10**15})  # a node that tells of something else
    row = town.rows(LeaseRow)[0]
    assert lost.remaining_micro == row.granted_fen * MICRO_PER_FEN
    assert lost.credit_micro == row.credit_micro


def test_never_less_is_granted_than_the_call_in_hand_needs(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    register_node(town.engine, town.folder, "n1")
    lease = ask(town, need=2_700 * MICRO_PER_FEN)
    assert lease.remaining_micro == 900 * MICRO_PER_FEN
    assert lease.credit_micro >= 1_800 * MICRO_PER_FEN


def test_nodes_share_what_there_is(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    for name in ("n1", "n2"):
        register_node(town.engine, town.folder, name)
    assert ask(town, "n1").remaining_micro == 250 * MICRO_PER_FEN
    assert ask(town, "n2").remaining_micro == 187 * MICRO_PER_FEN
    town.check()


def test_near_exhaustion_at_most_one_call_s_price_is_stranded(town):
    town.voucher(100)
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    calls = 0
    while True:
        calls += 1
        node.call()
        if node.book.leases()[-1].kind == "self_pay":
            break
    node.flush()
    town.check()
    assert calls == 811  # 810 · 0.37 / 3 = 99.9 fen; the next would be 100.02
    assert town.total("Q.used") == 99
    assert node.book.opened < 40


def test_when_the_voucher_is_used_up_one_goes_on_at_own_cost_only_if_one_chose_to(town):
    town.voucher(10)
    subscription = town.subscribe()
    node = town.node()
    with pytest.raises(PaymentRequired) as caught:
        node.call(count=1_000)
    assert caught.value.code == "VOUCHER_EXHAUSTED"
    done = len(node.acknowledged)
    assert done == 81
    assert "VOUCHER_100" in {n.code for n in town.rows(Notice)}
    with transaction(town.engine) as session:
        row = subscriptions.get_subscription(session, subscription, "org_factory")
        subscriptions.change(session, row, {"on_voucher_end": "self_pay"}, actor="f")
    node.call(count=19)
    node.flush()
    kinds = [u.lease_kind for u in sorted(town.rows(Usage), key=lambda u: u.seq)]
    assert kinds == ["subsidised"] * 81 + ["self_pay"] * 19
    assert {row.state for row in town.rows(LeaseRow)} == {"draining", "open"}
    node.stop()
    town.check()
    assert town.balance("M.recv.ent[org_factory]") == 29 + 7  # each meter cuts off its own part of a fen


def test_a_second_voucher_takes_over_from_the_first(town):
    programme = town.programme()
    first, second = town.voucher(5, programme), town.voucher(100, programme)
    town.subscribe()
    node = town.node()
    node.call(count=100)
    node.flush()
    used = {row.voucher_id: row.posted_subsidy_fen for row in town.rows(Reservation)}
    assert used[first] in (4, 5)
    assert used[first] + used[second] in (11, 12)
    node.stop()
    town.check()


def test_a_voucher_issued_after_the_contract_pays_from_the_next_question_on(town):
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    node.call(count=10)
    town.voucher(1_000)
    node.book.expire("org_factory")
    node.call(count=10)
    node.flush()
    kinds = [u.lease_kind for u in sorted(town.rows(Usage), key=lambda u: u.seq)]
    assert kinds == ["self_pay"] * 10 + ["subsidised"] * 10
    town.check()


# --- free -------------------------------------------------------------------------------------------------------------


def test_one_s_own_models_trials_and_unpriced_ones_are_free(town):
    with transaction(town.engine) as session:
        town.list_model(session, "factory/own")
        town.list_model(session, "vendor/gift", None)
    register_node(town.engine, town.folder, "n1")
    leases = [ask(town, model="factory/own"), ask(town, model="vendor/gift"), ask(town, purpose="trial")]
    assert [lease.kind for lease in leases] == ["free"] * 3
    assert all((lease.remaining_micro, lease.credit_micro, lease.reservation) == (0, 0, "") for lease in leases)
    assert ask(town, model="vendor/gift").lease_id == leases[1].lease_id
    assert len(town.rows(LeaseRow)) == 3


def test_a_free_lease_ends_when_an_announced_price_takes_effect(town):
    with transaction(town.engine) as session:
        gift = town.list_model(session, "vendor/gift", None)
        town.price(session, gift, 5, effective_from_ms=town.now + 1_000)
    register_node(town.engine, town.folder, "n1")
    assert ask(town, model="vendor/gift").expires_at_ms == town.now + 1_000
    town.now += 1_000
    refused(town, "SUBSCRIPTION_REQUIRED", model="vendor/gift")


def test_trials_end_when_the_day_s_are_used_up(town):
    register_node(town.engine, town.folder, "n1")
    with transaction(town.engine) as session:
        session.add(TrialCount(organisation_id="org_factory", day="2027-01-15", runs=20_000))
    refused(town, "TRIALS_USED_UP", TooMany, purpose="trial")
    town.pass_days(1)
    ask(town, purpose="trial")


def test_an_operator_looks_at_a_draft_free_of_charge(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/draft", status="draft")
    register_node(town.engine, town.folder, "n1")
    operator = Principal("k", "org_city", "operator", frozenset({"use"}))
    assert ask(town, model="vendor/draft", principal=operator).kind == "free"
    refused(town, "SUBSCRIPTION_REQUIRED", principal=operator)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_priced_model_needs_a_subscription(town):
    register_node(town.engine, town.folder, "n1")
    refused(town, "SUBSCRIPTION_REQUIRED")


def test_without_a_voucher_and_without_opting_to_pay_there_is_no_lease(town):
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    refused(town, "VOUCHER_REQUIRED")


def test_a_voucher_past_its_last_day_is_refused_at_once_whatever_the_grace(town):
    voucher = town.voucher(1_000)
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    town.now = town.end_of(voucher) - 1_000
    assert ask(town).expires_at_ms == town.end_of(voucher) + 1
    town.now = town.end_of(voucher) + 1
    refused(town, "VOUCHER_EXPIRED")


def test_a_filing_that_has_ended_is_refused_and_a_lease_ends_with_it(town):
    town.voucher(1_000)
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2027-01-15"
    town.now = end_of_day_ms(date(2027, 1, 15)) - 10
    lease = ask(town)
    assert lease.expires_at_ms == town.now + 11
    assert lease.prices[0].filing_valid_until == "2027-01-15T23:59:59.999000+08:00"
    town.now += 11
    refused(town, "FILING_INVALID")


def test_invariant_10_no_voucher_pays_between_related_parties(town):
    town.voucher(1_000)
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").controllers = ["p1"]
        session.get_one(Organisation, "org_vendor").controllers = ["p1"]
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    refused(town, "RELATED_PARTY")
    assert town.rows(Reservation) == []


def test_parties_that_become_related_later_are_refused_on_what_is_reserved_too(town):
    town.voucher(1_000)
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").controllers = ["p1"]
        session.get_one(Organisation, "org_vendor").controllers = ["p1"]
    refused(town, "RELATED_PARTY")


def test_a_retrained_derivative_is_sold_but_no_voucher_pays_for_it(town):
    town.voucher(1_000)
    town.subscribe(on_voucher_end="self_pay")
    with transaction(town.engine) as session:
        steel = session.get_one(Listing, f"lst_{STEEL}")
        town.price(session, steel, 100_000, kind="derivative")
        for name, relation in (("factory/tuned", "finetune"), ("factory/again", "retrained")):
            facts = {"visibility": "private", "parent_listing_id": steel.id, "relation": relation}
            add_listing(session, name, "draft", **facts)
    register_node(town.engine, town.folder, "n1")
    tuned, again = ask(town, model="factory/tuned"), ask(town, model="factory/again")
    assert (tuned.kind, tuned.prices[0].micro_per_unit) == ("subsidised", 100_000)
    assert (again.kind, again.prices[0].micro_per_unit) == ("self_pay", 100_000)
    town.check()


@pytest.mark.parametrize(("subject", "code"), [("base", "factory/tuned"), ("derivative", STEEL)])
def test_which_models_a_programme_pays_for_is_its_own_data(town, subject, code):
    town.voucher(1_000, subject=subject)
    town.subscribe()
    with transaction(town.engine) as session:
        steel = session.get_one(Listing, f"lst_{STEEL}")
        town.price(session, steel, 100_000, kind="derivative")
        facts = {"visibility": "private", "parent_listing_id": steel.id, "relation": "finetune"}
        add_listing(session, "factory/tuned", "draft", **facts)
    register_node(town.engine, town.folder, "n1")
    refused(town, "SUBJECT_NOT_COVERED", model=code)
    assert ask(town, model="factory/tuned" if code == STEEL else STEEL).kind == "subsidised"


def test_a_contract_below_the_least_amount_is_refused(town):
    town.voucher(1_000, min_spend_fen=5_000)
    town.subscribe(4_999)
    register_node(town.engine, town.folder, "n1")
    refused(town, "CONTRACT_TOO_SMALL")


def test_the_monthly_cap_holds_and_begins_anew_with_the_month(town):
    town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=20)
    node = town.node()
    with pytest.raises(PaymentRequired) as caught:
        node.call(count=1_000)
    assert caught.value.code == "MONTHLY_CAP_REACHED"
    assert len(node.acknowledged) == 54  # 19.98 fen
    node.flush()
    assert {n.code for n in town.rows(Notice)} == {"MONTHLY_CAP_80", "MONTHLY_CAP_100"}
    town.now = next_month_ms(town.now)
    node.call(count=10)
    node.stop()
    town.check()


def test_a_lease_under_a_monthly_cap_ends_with_the_month(town):
    town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=20)
    register_node(town.engine, town.folder, "n1")
    town.now = next_month_ms(town.now) - 5
    assert ask(town).expires_at_ms == town.now + 5


def test_credit_in_nodes_hands_counts_against_the_cap(town):
    town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=100)
    for name in ("n1", "n2"):
        register_node(town.engine, town.folder, name)
    first, second = ask(town, "n1"), ask(town, "n2")
    assert first.credit_micro == 25 * MICRO_PER_FEN
    assert second.credit_micro == 75 * MICRO_PER_FEN // 4
    refused(town, "MONTHLY_CAP_REACHED", node="n1", need=90 * MICRO_PER_FEN)


def test_the_own_part_of_a_subsidised_call_counts_against_the_cap(town):
    town.voucher(1_000)
    town.subscribe(monthly_cap_fen=10)
    node = town.node()
    with pytest.raises(PaymentRequired) as caught:
        node.call(count=1_000)
    assert caught.value.code == "MONTHLY_CAP_REACHED"
    assert len(node.acknowledged) == 40  # 14.8 fen, 9.87 of them the enterprise's
    node.stop()
    town.check()


def test_a_suspended_organisation_gets_no_lease(town):
    town.subscribe(on_voucher_end="self_pay")
    register_node(town.engine, town.folder, "n1")
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").status = "suspended"
    refused(town, "ORGANISATION_NOT_APPROVED", Forbidden)


def test_an_unknown_model_gets_no_lease(town):
    register_node(town.engine, town.folder, "n1")
    refused(town, "MODEL_NOT_FOUND", NotFound, model="vendor/none")


def test_a_price_change_ends_leases_and_usage_before_it_is_rated_by_the_old_one(town):
    town.voucher(1_000)
    town.subscribe()
    node = town.node()
    with transaction(town.engine) as session:
        steel = session.get_one(Listing, f"lst_{STEEL}")
        town.price(session, steel, 740_000, effective_from_ms=town.now + 60_000)
    node.call(count=10)
    town.now += 60_000
    node.call(count=10)
    node.flush()
    assert {u.amount_micro for u in town.rows(Usage)} == {370_000, 740_000}
    assert {u.status for u in town.rows(Usage)} == {"ok"}
    assert len(town.rows(LeaseRow)[0].prices) == 2
    node.stop()
    town.check()


# --- the ledger away --------------------------------------------------------------------------------------------------


def test_invariant_11_with_the_ledger_down_calls_go_on_inside_open_leases_and_nothing_new_is_granted(town, monkeypatch):
    town.voucher(100)
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    node.call()

    def down(*_):
        raise OperationalError("BEGIN", {}, Exception("the database is gone"))

    with monkeypatch.context() as away:
        away.setattr("marketplace.vouchers.desk.transaction", down)
        node.call(count=300)  # the lease holds 16 fen, 405 calls
        with pytest.raises(Unavailable) as caught:
            node.call(count=200)
        assert caught.value.code == "LEDGER_UNAVAILABLE"
    node.call(count=10)
    node.stop()
    town.check()
    assert len(town.rows(Usage)) == len(node.acknowledged)


def test_a_database_that_cannot_be_opened_is_an_unavailable_ledger(tmp_path):
    desk = LeaseDesk(open_database(f"sqlite:///{tmp_path}/none/market.db"), Settings())
    served = ServedVersion("v", "l", STEEL, 1, tmp_path, "d", True, "o")
    with pytest.raises(Unavailable):
        desk.open(PRINCIPAL, served, node="n", epoch=1, need_micro=0, purpose="use", held={})


# --- nodes and epochs -------------------------------------------------------------------------------------------------


def test_invariant_7_a_lease_is_released_only_after_its_journal_is_sealed_and_ingested(town):
    voucher = town.voucher(1_000)
    town.subscribe(3_000)
    node = town.node()
    node.call(count=100)
    node.die()
    held = town.total("Q.lease")
    assert held == 500
    town.now += 365 * 86_400_000  # however long it takes, nobody touches it
    assert town.total("Q.lease") == held
    second = register_node(town.engine, town.folder, "n1")
    assert second == 2
    assert town.get(NodeEpoch, ("n1", 1)).state == "sealed"
    assert (town.total("Q.used"), town.total("Q.lease")) == (12, 1)  # a third of a fen is not posted yet
    assert town.balance(f"Q.resv[{town.rows(Reservation)[0].id}]") == 1_000 - 13
    assert town.get(Voucher, voucher).state == "active"
    town.check()


def test_a_new_epoch_waits_until_the_old_one_is_sealed(town):
    register_node(town.engine, town.folder, "n1")
    with pytest.raises(Conflict) as caught, transaction(town.engine) as session:
        new_epoch(session, "n1", town.now)
    assert caught.value.code == "EPOCH_OPEN"
    with transaction(town.engine) as session:
        assert newest_epoch(session, "n1") == 1
        assert newest_epoch(session, "n9") == 0


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_fenced_epoch_gets_no_lease(town, epoch):
    town.subscribe(on_voucher_end="self_pay")
    for _ in range(2):
        register_node(town.engine, town.folder, "n1")
    refused(town, "EPOCH_FENCED", Conflict, epoch=epoch)
    assert ask(town, epoch=2).kind == "self_pay"


def test_closing_an_epoch_twice_changes_nothing(town):
    town.voucher(1_000)
    town.subscribe()
    node = town.node()
    node.call(count=10)
    node.stop()
    before = [(row.code, row.balance_fen) for row in town.rows(LedgerAccount)]
    close_epoch(town.engine, town.folder, "n1", 1)
    after = [(row.code, row.balance_fen) for row in town.rows(LedgerAccount)]
    assert before == after


def test_parts_of_a_fen_left_in_a_sealed_lease_are_posted_with_a_later_one(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/half", 500_000, filing_id="flg_1")
    town.voucher(10, ratio={"num": 1, "den": 1})
    town.subscribe(10, model="vendor/half")
    for _ in range(4):
        node = town.node()
        node.call("vendor/half")
        node.stop()
        town.check()
    assert town.total("Q.used") == 2
    assert town.rows(Reservation)[0].posted_gross_fen == 2
    assert town.total("Q.lease") == 0


def test_invariant_8_a_time_out_stops_new_admissions_only(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    node = town.node()
    node.call(count=10)
    town.now += 10_000_000
    assert town.total("Q.lease") == 500
    node.flush()
    assert town.total("Q.used") == 1
    node.call()
    assert len(town.rows(LeaseRow)) == 1


def test_many_questions_at_once_are_answered_one_after_the_other(town):
    town.voucher(1_000)
    town.subscribe(3_000)
    for name in ("n1", "n2", "n3", "n4"):
        register_node(town.engine, town.folder, name)
    served = ServedVersion("v", f"lst_{STEEL}", STEEL, 1, town.folder, "d", True, "o")

    async def all_at_once():
        return await asyncio.gather(
            *(
                town.admission.open_lease(
                    PRINCIPAL, served, node=f"n{n % 4 + 1}", epoch=1, need_micro=0, purpose="use", held={}
                )
                for n in range(24)
            )
        )

    leases = asyncio.run(all_at_once())
    assert len({lease.lease_id for lease in leases}) == 4
    town.check()
    assert town.total("Q.lease") == sum(row.granted_fen for row in town.rows(LeaseRow))
    assert asyncio.run(town.admission.authenticate("am_x")) == PRINCIPAL
    town.admission.close()


def test_subscriptions_of_others_are_not_drawn_on(town):
    town.voucher(1_000)
    town.subscribe()
    register_node(town.engine, town.folder, "n1")
    other = Principal("k", "org_other", "enterprise", frozenset({"use"}))
    refused(town, "SUBSCRIPTION_REQUIRED", principal=other)
    assert len(town.rows(Subscription)) == 1


def test_a_caller_who_goes_on_asking_is_told_once(town, monkeypatch):
    monkeypatch.setattr("marketplace.vouchers.desk.MAX_TOLD", 1)
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/dear", 10**9, filing_id="flg_1")
    town.voucher(10)
    town.subscribe(model="vendor/dear")
    town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=0)
    register_node(town.engine, town.folder, "n1")
    for _ in range(3):
        refused(town, "VOUCHER_EXHAUSTED", model="vendor/dear")
        refused(town, "MONTHLY_CAP_REACHED")
    codes = [n.code for n in town.rows(Notice)]
    assert (codes.count("VOUCHER_100"), codes.count("MONTHLY_CAP_100")) == (1, 0)  # a cap of nothing warns of nothing


def test_a_call_dearer_than_what_is_reserved_waits_for_a_voucher_that_covers_it(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/dear", 3_000_000, filing_id="flg_1")
    programme = town.programme()
    town.voucher(1, programme)
    town.subscribe(1_000, model="vendor/dear")
    node = town.node()
    node.call("vendor/dear")
    big = town.voucher(100, programme)
    node.book.expire()
    node.call("vendor/dear", units=100)
    assert {row.voucher_id for row in town.rows(Reservation) if row.amount_fen == 100} == {big}
    node.stop()
    town.check()


def test_what_was_just_reserved_may_still_be_too_little_for_the_call(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/dear", 3_000_000, filing_id="flg_1")
    town.subscribe(1_000, model="vendor/dear")
    node = town.node()
    town.voucher(5)
    with pytest.raises(PaymentRequired) as caught:
        node.call("vendor/dear", units=6)
    assert caught.value.code == "VOUCHER_EXHAUSTED"
    node.call("vendor/dear", units=5)
    node.stop()
    assert town.total("Q.used") == 5
    town.check()
