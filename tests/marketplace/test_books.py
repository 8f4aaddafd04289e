"""The nightly check: every balance and cap counter again from the entries, recorded, and told where it differs."""

from __future__ import annotations

import pytest
from sqlalchemy import text

import serving.leases
from marketplace import doctor
from marketplace.catalogue.tables import Listing
from marketplace.db import reading, snapshot, transaction
from marketplace.housekeeping import Housekeeping
from marketplace.integrity.books import check_books, compare, is_check_due, list_checks
from marketplace.integrity.tables import LedgerCheck
from marketplace.ledger import posting
from marketplace.ledger.replay import replay
from marketplace.ledger.tables import CapCounter
from marketplace.organisations.tables import Notice
from marketplace.vouchers import closing
from marketplace.vouchers.tables import Reservation, Subscription
from model_store.blobs import FolderBlobs
from tests.marketplace.stores import on_both_stores, unguarded
from tests.marketplace.test_claims import advance, correct, freeze, new_batch, trade
from tests.marketplace.town import CHEN, DAY, Town


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("market",))


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    monkeypatch.setattr(posting, "now_ms", lambda: town.now)
    yield town
    town.admission.close()


def live_through(town: Town, tmp_path) -> None:
    """Everything that moves a cap: use, claim, rejection, a contract's end, a lapse."""
    trade(town)
    blobs = FolderBlobs(tmp_path / "blobs")
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "return")
    with transaction(town.engine) as session:
        for subscription in town.rows(Subscription):
            row = session.get_one(Subscription, subscription.id)
            closing.end_contract(session, row, actor=CHEN, at_ms=town.now)
    town.now += 40 * DAY
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now)


def test_a_sound_ledger_agrees_and_the_result_is_kept(town, tmp_path):
    live_through(town, tmp_path)
    row = check_books(town.engine, lambda: town.now)
    assert row.sound
    assert row.sha256 == row.kept_sha256
    assert min(row.transfers, row.entries, row.accounts, row.caps) > 0
    assert town.rows(LedgerCheck)[0].sha256 == row.sha256
    assert not [notice for notice in town.rows(Notice) if notice.code == "LEDGER_UNSOUND"]


@pytest.mark.parametrize(
    ("forgery", "named"),
    [
        ("UPDATE ledger_account SET balance_fen = balance_fen + 1 WHERE code LIKE 'M.recv.ent%'", "M.recv.ent["),
        ("UPDATE cap_counter SET held_fen = held_fen - 1 WHERE code LIKE 'C.pool%'", "C.pool["),
        ("UPDATE cap_counter SET used_fen = used_fen + 1 WHERE code LIKE 'C.ent%'", "C.ent["),
        ("DELETE FROM cap_counter WHERE code LIKE 'C.contract%'", "C.contract["),
        ("UPDATE ledger_entry SET amount_fen = amount_fen + 1 WHERE transfer_id = 2 AND line = 1", "2"),
    ],
)
def test_any_difference_is_recorded_and_told_to_the_operators(town, forgery, named):
    trade(town)
    unguarded(town.engine, forgery)
    row = check_books(town.engine, lambda: town.now)
    assert not row.sound
    assert row.sha256 != row.kept_sha256 or named == "2"
    assert any(each["of"].startswith(named) for each in row.wrong)
    (notice,) = [notice for notice in town.rows(Notice) if notice.code == "LEDGER_UNSOUND"]
    assert named in notice.text_en


@pytest.mark.parametrize(
    ("forgery", "named"),
    [
        ("UPDATE usage SET amount_micro = amount_micro + 1 WHERE seq = 7", ["meter rsv_", "meter lea_"]),
        ("DELETE FROM usage WHERE seq IN (1, 2, 3)", ["meter rsv_", "charge rsv_", "meter lea_"]),
        ("UPDATE usage SET lease_kind = 'self_pay' WHERE seq < 20", ["meter rsv_", "charge rsv_", "meter lea_"]),
        ("UPDATE usage SET status = 'quarantined', reason = 'X' WHERE seq < 9",
         ["meter rsv_", "charge rsv_", "meter lea_"]),
        ("UPDATE reservation SET cum_gross_micro = cum_gross_micro + 1", ["meter rsv_"]),
        ("UPDATE reservation SET posted_subsidy_fen = posted_subsidy_fen - 1", ["charge rsv_"]),
        ("UPDATE reservation SET posted_gross_fen = posted_gross_fen + 1", ["charge rsv_"]),
        ("UPDATE lease SET eligible_micro = eligible_micro - 1", ["meter lea_"]),
    ],
)  # fmt: skip
def test_usage_that_does_not_round_to_what_was_charged_is_found(town, forgery, named):
    """Balances and caps agree in each: only the usage or a meter says otherwise."""
    trade(town)
    unguarded(town.engine, forgery)
    with snapshot(town.engine) as session:
        assert compare(session).sound
    row = check_books(town.engine, lambda: town.now)
    assert not row.sound
    assert [f"{each['what']} {each['of'][:4]}" for each in row.wrong] == named
    assert len([notice for notice in town.rows(Notice) if notice.code == "LEDGER_UNSOUND"]) == 1


def test_two_fen_of_subsidy_may_wait_once_a_record_was_taken_back_that_no_voucher_paid_for(town):
    """In fen. Used in time: 0.99, 0.98 and 0.97. Used after the use-by day under the same lease: 4.05 and 0.97. Each
    time that the gross stays below the next fen, the voucher's part grows and no gross fen carries it."""
    with transaction(town.engine) as session:
        town.price(session, session.get_one(Listing, "lst_vendor/steel"), 10_000)
    town.now += 1_000  # the new price holds
    voucher = town.voucher(100_000, ratio={"num": 1, "den": 1})
    town.subscribe(contract_fen=100_000)
    first, second, third = (town.node(name) for name in ("n1", "n2", "n3"))
    town.now = town.end_of(voucher) - 20_000
    for node, units in ((first, 99), (second, 98), (third, 97)):
        node.call(units=units)
    first.call(units=405, runs_ms=40_000)
    (taken,) = first.call(units=97, runs_ms=40_000)
    town.now += 40_000
    first.flush()  # 0.99 + 5.02: 6 fen of gross, none of subsidy
    second.flush()  # 1.97 + 5.02
    correct(town, taken.usage_id)  # 1.97 + 4.05
    third.flush()  # 2.94 + 4.05
    (row,) = town.rows(Reservation)
    assert (row.cum_eligible_micro, row.posted_gross_fen, row.posted_subsidy_fen) == (2_940_000, 6, 0)
    town.check()
    for node in (first, second, third):
        node.stop()
    town.check()


def test_a_charge_that_is_raised_with_all_its_balances_and_caps_is_found_by_its_usage(town):
    """Whoever owns the database posts one fen more, evenly, to every place that is rebuilt from entries."""
    trade(town)
    add = "amount_fen = amount_fen {} 1 WHERE transfer_id = (SELECT MAX(id) FROM ledger_transfer WHERE kind = 'P5')"
    where = {"Q.lease%": "-", "Q.used%": "+", "M.recv.ent%": "+", "M.pay.provider%": "-"}
    forged = [f"UPDATE ledger_entry SET {add.format(sign)} AND account LIKE '{of}'" for of, sign in where.items()]
    unguarded(town.engine, *forged)
    with snapshot(town.engine) as session:
        replayed = replay(session)
    balances = [
        f"UPDATE ledger_account SET balance_fen = {fen} WHERE code = '{code}'"
        for code, fen in replayed.balances.items()
    ]
    unguarded(town.engine, *balances, "UPDATE cap_counter SET used_fen = used_fen + 1, held_fen = held_fen - 1")
    with snapshot(town.engine) as session:
        assert compare(session).sound
    (wrong,) = check_books(town.engine, lambda: town.now).wrong
    assert (wrong["what"], wrong["kept"], wrong["rebuilt"]) == ("charge", [38, 13], [37, 12])


def test_self_paid_usage_is_held_against_its_contract_s_meter(town):
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    node.call(count=10)
    node.stop()
    assert check_books(town.engine, lambda: town.now).sound
    unguarded(town.engine, "DELETE FROM usage WHERE seq = 1")
    row = check_books(town.engine, lambda: town.now)
    assert [(each["what"], each["of"]) for each in row.wrong] == [("meter", town.rows(Subscription)[0].id)]
    unguarded(town.engine, "DELETE FROM self_pay_meter")
    (wrong,) = check_books(town.engine, lambda: town.now).wrong
    assert (wrong["what"], wrong["kept"], wrong["rebuilt"]) == ("meter", [], [9 * 370_000, 0])


def test_replaying_in_small_portions_gives_the_same(town, tmp_path):
    live_through(town, tmp_path)
    with snapshot(town.engine) as session:
        whole, parts = replay(session), replay(session, portion=3)
    assert dict(whole.balances) == dict(parts.balances)
    assert (whole.entries, dict(whole.charged)) == (parts.entries, dict(parts.charged))


def test_what_is_posted_while_the_check_reads_is_in_none_of_its_figures(town):
    trade(town)
    with snapshot(town.engine) as session:
        before = replay(session)
        town.voucher(700)  # another writer, in between
        found = compare(session)
    assert found.sound
    assert found.replayed.entries == before.entries


def test_once_a_policy_day_and_again_the_next(town):
    assert not is_check_due(town.engine, town.now)  # nothing is posted
    trade(town)
    assert is_check_due(town.engine, town.now)
    check_books(town.engine, lambda: town.now)
    assert not is_check_due(town.engine, town.now + 3_600_000)
    assert is_check_due(town.engine, town.now + DAY)


def test_housekeeping_keeps_a_check_a_day_and_doctor_tells_of_it(market):
    Town(market.engine, market.settings.home / "journal", settings=market.settings).voucher(500)
    assert finding(market, "nightly").severity == "warning"
    keeper = Housekeeping(market)
    keeper.go_round()
    keeper.go_round()
    with reading(market.engine) as session:
        (row,) = list_checks(session)
    assert row.sound
    assert finding(market, "nightly").severity == "ok"
    with transaction(market.engine) as session:
        session.get_one(CapCounter, next(iter(caps_of(market)))).held_fen -= 1
    assert finding(market, "ledger").severity == "error"
    check_books(market.engine)
    assert finding(market, "nightly").severity == "error"


def caps_of(market) -> list[str]:
    with market.engine.connect() as connection:
        return list(connection.execute(text("SELECT code FROM cap_counter ORDER BY code")).scalars())


def finding(market, check: str) -> doctor.Finding:
    look = {"nightly": doctor._nightly, "ledger": doctor._ledger}[check]
    return look(market.engine, market.settings.home)
