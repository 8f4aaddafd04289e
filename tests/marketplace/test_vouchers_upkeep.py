"""What the market does by itself about vouchers and the ledger."""

import threading

import pytest
from sqlalchemy import text

import serving.leases
from marketplace.organisations.tables import AuditEvent, Notice
from marketplace.vouchers import upkeep
from marketplace.vouchers.tables import Voucher
from marketplace.vouchers.upkeep import Upkeep
from tests.marketplace.town import Town


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    return town


def replays(town):
    return [event.details["sound"] for event in town.rows(AuditEvent) if event.action == "ledger.replay"]


def test_vouchers_lapse_and_the_ledger_is_replayed_once_a_day(town):
    voucher = town.voucher(100)
    work = Upkeep(town.engine, lambda: town.now)
    for _ in range(3):
        work.run_once()
    assert town.get(Voucher, voucher).state == "active"
    assert replays(town) == [True]
    town.now = town.end_of(voucher) + 2 * 86_400_000
    work.run_once()
    assert town.get(Voucher, voucher).state == "expired"
    assert replays(town) == [True, True]


def test_operators_are_told_of_a_ledger_that_does_not_replay(town):
    town.voucher(100)
    with town.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_account SET balance_fen = 7 WHERE code LIKE 'Q.avail%'"))
    Upkeep(town.engine, lambda: town.now).run_once()
    assert replays(town) == [False]
    assert "LEDGER_UNSOUND" in {notice.code for notice in town.rows(Notice)}


def test_the_thread_goes_on_after_a_failure(town, monkeypatch):
    monkeypatch.setattr(upkeep, "INTERVAL_S", 0.01)
    runs, enough = [], threading.Event()

    def fail(*_):
        runs.append(1)
        if len(runs) > 2:
            enough.set()
        raise RuntimeError("once more")

    monkeypatch.setattr(upkeep, "expire_vouchers", fail)
    work = Upkeep(town.engine)
    work.start()
    assert enough.wait(30)
    work.stop()
    Upkeep(town.engine).stop()
