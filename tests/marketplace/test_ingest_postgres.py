"""The same money on PostgreSQL, with nodes, desk and ingest all at it at once."""

import os
import signal
import threading
import time
from datetime import date

import pytest
from sqlalchemy import text

import serving.leases
from marketplace.db import open_database, transaction
from marketplace.migrations.upgrade import upgrade
from marketplace.organisations.tables import Notice, Organisation
from marketplace.settings import Settings
from marketplace.usage import batch, supervisor
from marketplace.usage.ingest import Ingest
from marketplace.usage.queries import Filters, list_usage
from marketplace.usage.statements import read_month, statement
from marketplace.usage.supervisor import IngestChild
from marketplace.usage.tables import Usage
from marketplace.vouchers import closing
from marketplace.vouchers.lease_rows import month_of
from marketplace.vouchers.tables import Reservation, Subscription, Voucher
from model_store.errors import PaymentRequired
from tests.marketplace.shelf import actor_of
from tests.marketplace.town import Town
from tests.postgres import postgres_server


@pytest.fixture(scope="module")
def postgres_url():
    yield from postgres_server()


@pytest.fixture
def town(postgres_url, tmp_path, monkeypatch):
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    upgrade(engine)  # as a market does: the migrations, guards and all
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    yield town
    town.admission.close()
    engine.dispose()


@pytest.mark.parametrize("mode", ["reimburse", "deduct"])
def test_a_thousand_calls_come_to_the_same_on_postgresql(town, mode):
    town.voucher(5_000, settlement_mode=mode, payee="enterprise" if mode == "reimburse" else "platform")
    town.subscribe()
    node = town.node()
    node.call(count=1_000)
    node.stop()
    town.check()
    assert town.total("Q.used") == 123
    assert town.balance("M.recv.ent[org_factory]") == (370 if mode == "reimburse" else 247)
    with transaction(town.engine) as session:
        found = statement(session, "org_factory", read_month(month_of(town.now)))
        assert (found["totals"]["gross_fen"], found["totals"]["voucher_fen"]) == (370, 123)
        assert found["usage"][0]["rows"] == 1_000
        organisation = session.get_one(Organisation, "org_factory")
        assert list_usage(session, actor_of(organisation), Filters(model="vendor/steel"), limit=5, offset=0)[1] == 1_000


def test_another_writer_of_the_same_usage_rolls_the_whole_batch_back_on_postgresql(town, monkeypatch):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=2)
    node.flush()
    with town.engine.begin() as connection:
        connection.execute(text("UPDATE node_epoch SET last_seq = 0, offset_bytes = 0"))
    monkeypatch.setattr(batch, "_without_known", lambda session, records: list(records))
    with pytest.raises(batch.DuplicateInFlight):
        node.flush()
    assert len(town.rows(Usage)) == 2
    assert town.rows(Reservation)[0].cum_gross_micro == 740_000
    town.check()


def test_nodes_in_parallel_spend_a_voucher_to_its_end_and_never_past_it(town):
    voucher = town.voucher(200)
    town.subscribe(on_voucher_end="refuse")
    nodes = [town.node(f"n{number}") for number in range(4)]
    tail = Ingest(town.engine, town.folder, batch_records=50)
    tail.start()
    failures = []

    def spend(node):
        try:
            while True:
                node.call(count=20)
        except PaymentRequired:
            return
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=spend, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tail.stop()
    assert failures == []
    for node in nodes:
        node.stop()
    town.check()
    acknowledged = {record.usage_id for node in nodes for record in node.acknowledged}
    assert {row.usage_id for row in town.rows(Usage)} == acknowledged
    (row,) = town.rows(Reservation)
    assert row.posted_subsidy_fen == len(acknowledged) * 370_000 // 3_000_000
    assert 200 - 4 - 1 <= row.posted_subsidy_fen <= 200  # at most one call's price stranded per node
    assert town.get(Voucher, voucher).face_fen == 200
    assert sum(notice.code == "VOUCHER_80" for notice in town.rows(Notice)) == 1


def test_kill_recover_end_and_lapse_on_postgresql(town):
    voucher = town.voucher(1_000)
    subscription = town.subscribe(3_000)
    node = town.node()
    node.call(count=100)
    node.die()
    node = town.node()
    node.call(count=100)
    town.check()
    with transaction(town.engine) as session:
        closing.end_contract(session, session.get_one(Subscription, subscription), actor="f", at_ms=town.now)
    town.now = town.end_of(voucher) + 2 * 86_400_000
    with transaction(town.engine) as session:
        assert [row.id for row in closing.expire_vouchers(session, town.now)] == [voucher]
    node.stop()
    town.check()
    assert town.get(Voucher, voucher).returned_fen == 1_000 - 24
    assert (town.total("Q.used"), town.total("Q.lease"), town.total("Q.resv")) == (24, 0, 0)
    assert date.fromisoformat(town.get(Voucher, voucher).use_by)


def test_a_process_of_its_own_killed_and_replaced_posts_every_call_once_on_postgresql(
    town, postgres_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_S", 0.01)
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    child = IngestChild(Settings(home=tmp_path, database_url=postgres_url))
    child.start()
    try:
        for _ in range(3):
            known = child.progress.records
            node.call(count=200)
            while child.progress.records == known:
                time.sleep(0.01)
            node.call(count=50)
            os.kill(child.pid, signal.SIGKILL)
    finally:
        child.stop()
    node.stop()
    assert {row.usage_id for row in town.rows(Usage)} == {record.usage_id for record in node.acknowledged}
    assert len(town.rows(Usage)) == 750
    assert town.balance("M.recv.ent[org_factory]") == 750 * 37 // 100
    town.check()
