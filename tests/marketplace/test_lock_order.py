"""Writers queue on PostgreSQL: caps before accounts on every path, and no two paths that wait for each other."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from marketplace import housekeeping
from marketplace.catalogue.tables import Listing
from marketplace.claims import batches
from marketplace.claims.tables import ClaimBatch
from marketplace.db import is_contended, retried, transaction
from marketplace.errors import add_error_handlers
from marketplace.ledger import accounts
from marketplace.ledger.posting import lock_accounts
from marketplace.organisations.tables import Organisation
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch
from marketplace.vouchers import applications, closing, ending, issuing, subscriptions, subsidies
from marketplace.vouchers.tables import Subscription, Voucher
from model_store.blobs import FolderBlobs
from model_store.errors import Conflict
from serving.ports import Principal
from tests.marketplace.test_claims import advance, correct, freeze, new_batch, reject
from tests.marketplace.test_revoking import revoke
from tests.marketplace.town import CHEN, DAY, LIN, Town

OTHER = Principal("key_2", "org_other", "enterprise", frozenset({"use"}), "mem_li")
_LOCKS = re.compile(r"\b(?:INSERT INTO|UPDATE|FROM) (cap_counter|ledger_account)\b")
_CODES = re.compile(r"'([CQM]\.[^']*)'")


def pytest_generate_tests(metafunc):
    metafunc.parametrize("engine", ["postgresql"], indirect=True)


def locked(statement: str, parameters: Any) -> tuple[str, list[str]]:
    """Which of the two tables a statement locks rows of, and which rows; "" where it only reads."""
    found = _LOCKS.search(statement)
    if found is None or (statement.startswith("SELECT") and " FOR " not in statement):
        return "", []
    return found.group(1), [code for code in _CODES.findall(repr(parameters)) if "[" in code or code.startswith("M.")]


@dataclass
class Order:
    """Rows of caps and accounts in the order that one connection locks them, a transaction at a time."""

    wrong: list[str] = field(default_factory=list)
    caps: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)

    def take(self, table: str, codes: list[str]) -> None:
        if table == "ledger_account":
            self.accounts += codes
            return
        for code in codes:
            # all that begin with "C.pool[…," are locked together, in their order
            if any(code == cap or (cap[-1] != "]" and code.startswith(cap)) for cap in self.caps):
                continue
            if self.accounts:
                self.wrong.append(f"{code} after {self.accounts[0]}")
            if self.caps and code < self.caps[-1]:
                self.wrong.append(f"{code} after {self.caps[-1]}")
            self.caps.append(code)

    def end(self, _connection: Connection) -> None:
        self.caps, self.accounts = [], []


@pytest.fixture
def order(engine) -> Iterator[Order]:
    order = Order()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        order.take(*locked(statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", order.end)
    event.listen(engine, "rollback", order.end)
    return order


@pytest.fixture
def slowly(engine) -> None:
    """Every statement that locks caps or accounts is followed by a pause, in which another writer gets as far."""

    def pause(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if locked(statement, parameters)[0]:
            time.sleep(0.004)

    event.listen(engine, "after_cursor_execute", pause)


def at_once(*works: Callable[[], None]) -> list[Exception]:
    """Run them at the same time; answers what they raised."""
    failures: list[Exception] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def subscribe_other(town: Town, model: str) -> str:
    with transaction(town.engine) as session:
        listing = session.exec(select(Listing).where(Listing.name == model)).one()
        terms: dict[str, Any] = {"contract_fen": 10_000, "on_voucher_end": "refuse", "monthly_cap_fen": None}
        row, _ = subscriptions.subscribe(session, "org_other", listing, actor="o", at_ms=town.now, **terms)
        return row.id


def claimed(town: Town, blobs: FolderBlobs) -> str:
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit")
    return batch


def proposals(town: Town, programme: str, count: int, face_fen: int) -> list[str]:
    """Vouchers of one application that one person has proposed."""
    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_other")
        row = applications.create_application(session, owner, programme, requested_fen=count * face_fen, actor="o")
        applications.submit(session, row, actor="o")
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
        applications.publish(session, row, actor=CHEN, at_ms=town.now)
        applications.confirm(session, row, actor=CHEN, at_ms=town.now)
        return [issuing.propose(session, row, face_fen, member=CHEN, at_ms=town.now).id for _ in range(count)]


# --- one path at a time -----------------------------------------------------------------------------------------------


def test_every_path_locks_caps_in_their_order_and_before_accounts(town, blobs, order):
    two = [{"code": "two", "fen": 5_000}, {"code": "one", "fen": 995_000}]  # not in the order of their codes
    programme = town.programme(settlement_mode="deduct", payee="platform", tranches=two)
    order.wrong.clear()  # counters of a programme that is only now put in force: nobody else can have them yet
    town.voucher(2_000, programme)
    town.voucher(2_000, programme)
    town.voucher(3_000, programme, "org_other")  # does not fit into the first tranche any more
    steel = town.subscribe(9_000)
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/paint", filing_id="flg_1")
    subscribe_other(town, "vendor/steel")
    paint = town.subscribe(3_000, "vendor/paint")
    node, box = town.node(), town.node("n2")
    for each in (node, box):
        each.call(count=100)
        each.call("vendor/paint", count=100)
        each.call(count=100, principal=OTHER)
        each.flush()
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "return")
    freeze(town, blobs, batch := new_batch(town))
    advance(town, batch, "submit")
    with transaction(town.engine) as session:
        row = batches.get_batch(session, batch)
        for line, decision in zip(batches.lines_of(session, row), ("reject", "return"), strict=False):
            batches.decide_line(session, row, line, decision, member=LIN, at_ms=town.now, reason="材料不实")
    later = node.call("vendor/paint", count=100)
    node.flush()
    correct(town, later[3].usage_id)
    with transaction(town.engine) as session:
        contract = session.get_one(Subscription, steel)
        given = {"programme": "other", "authority": "region", "amount_fen": 100}
        subsidies.declare(session, contract, **given, actor="f", at_ms=town.now)
    with transaction(town.engine) as session:
        closing.end_contract(session, session.get_one(Subscription, paint), actor="f", at_ms=town.now)
    box.stop()
    node.stop()
    correct(town, later[7].usage_id)  # of a reservation that is over
    taken = next(row.id for row in town.rows(Voucher) if row.organisation_id == "org_other")
    revoke(town, taken)
    town.pass_days(60)
    with transaction(town.engine) as session:
        assert len(closing.expire_vouchers(session, town.now)) == 2
    correct(town, later[9].usage_id)  # of a voucher that has lapsed
    town.pass_days(365)
    with transaction(town.engine) as session:
        ending.close_vouchers(session, town.now)
    town.check()
    assert order.wrong == []


# --- two at once ------------------------------------------------------------------------------------------------------


def test_lines_are_rejected_while_usage_is_ingested(town, blobs, slowly):
    town.voucher(20_000, settlement_mode="deduct", payee="platform")
    town.subscribe()
    node = town.node()
    ready = []
    for _ in range(8):
        node.call(count=20)
        node.flush()
        ready.append(claimed(town, blobs))
    node.call(count=600)
    tail = Ingest(town.engine, town.folder, "n1", batch_records=20)
    assert at_once(tail.flush, lambda: [reject(town, batch) for batch in ready] and None) == []
    town.check()


def test_vouchers_lapse_while_others_are_issued(town, slowly):
    programme = town.programme()
    old = [town.voucher(1_000, programme) for _ in range(8)]
    new = proposals(town, programme, 8, 1_000)

    def lapse() -> None:
        for voucher_id in old:
            with transaction(town.engine) as session:
                voucher = session.get_one(Voucher, voucher_id)
                voucher.state = "expired"
                closing.lapse(session, voucher, town.now)

    def approve() -> None:
        for voucher_id in new:
            with transaction(town.engine) as session:
                issuing.approve(session, issuing.get_voucher(session, voucher_id), member=LIN, at_ms=town.now)

    assert at_once(lapse, approve) == []
    town.check()


def test_vouchers_are_revoked_while_others_are_issued_and_usage_of_theirs_is_ingested_and_sealed(town, slowly):
    programme = town.programme()
    taken = [town.voucher(500, programme) for _ in range(6)]
    town.subscribe(contract_fen=6_000)  # 2,000 fen are set aside, of four of them
    boxes = [town.node(f"box{number}") for number in range(3)]
    for box in boxes:
        box.call(count=60)
        box.die()
    live = town.node("live")
    live.call(count=200)
    new = proposals(town, programme, 6, 1_000)

    def take() -> None:
        for voucher in taken:
            revoke(town, voucher)

    def approve() -> None:
        for voucher_id in new:
            with transaction(town.engine) as session:
                issuing.approve(session, issuing.get_voucher(session, voucher_id), member=LIN, at_ms=town.now)

    tail = Ingest(town.engine, town.folder, "live", batch_records=20)
    seals = [partial(close_epoch, town.engine, town.folder, box.name, box.epoch) for box in boxes]
    assert at_once(take, approve, tail.flush, *seals) == []
    town.check()
    live.stop()
    town.check()
    assert {town.get(Voucher, voucher).state for voucher in taken} == {"revoked"}
    used = town.total("Q.used")
    assert used > 0
    assert town.balance(f"Q.unissued[{programme}]") == 1_000_000 - 6_000 - used


def test_two_nodes_whose_batches_have_enterprises_in_common_are_ingested_at_once(town, slowly):
    programme = town.programme()
    town.voucher(5_000, programme)
    town.voucher(9_000, programme, "org_other")
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/paint", filing_id="flg_1")
    town.subscribe()
    subscribe_other(town, "vendor/paint")
    subscribe_other(town, "vendor/steel")
    both, one = town.node("both"), town.node("one")
    for _ in range(10):
        both.call(count=10)
        both.call("vendor/paint", count=10, principal=OTHER)
        one.call("vendor/steel", count=10, principal=OTHER)
    tails = [Ingest(town.engine, town.folder, name, batch_records=20) for name in ("both", "one")]
    assert at_once(*(tail.flush for tail in tails)) == []
    town.check()


def test_reservations_of_lapsed_vouchers_settle_while_usage_is_ingested_and_vouchers_are_issued(town, slowly):
    programme = town.programme()
    town.voucher(3_000, programme)
    town.subscribe()
    boxes = [town.node(f"box{number}") for number in range(4)]
    for box in boxes:
        box.call(count=50)
        box.die()
    town.pass_days(25)
    town.voucher(9_000, programme, "org_other")
    new = proposals(town, programme, 6, 1_000)
    subscribe_other(town, "vendor/steel")
    node = town.node("live")
    node.call(count=300, principal=OTHER)
    town.now += 8 * DAY
    with transaction(town.engine) as session:
        assert len(closing.expire_vouchers(session, town.now)) == 1

    def approve() -> None:
        for voucher_id in new:
            with transaction(town.engine) as session:
                issuing.approve(session, issuing.get_voucher(session, voucher_id), member=LIN, at_ms=town.now)

    def seal(name: str, epoch: int) -> None:
        close_epoch(town.engine, town.folder, name, epoch)

    tail = Ingest(town.engine, town.folder, "live", batch_records=20)
    seals = [partial(seal, box.name, box.epoch) for box in boxes]
    assert at_once(tail.flush, approve, *seals) == []
    town.check()


def test_two_entries_of_one_payment_at_once_pay_one_batch(town, blobs):
    town.voucher(20_000)
    town.subscribe()
    node = town.node()
    both = []
    for _ in range(2):
        node.call(count=20)
        node.flush()
        both.append(claimed(town, blobs))
        advance(town, both[-1], "review", "publish", "approve")
    looked, writing = threading.Barrier(2), set[threading.Thread]()

    def wait(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE claim_batch") and threading.current_thread() not in writing:
            writing.add(threading.current_thread())
            looked.wait(60)  # neither has seen the other's entry

    event.listen(town.engine, "before_cursor_execute", wait)
    at = {"paid_on": "2027-02-01", "member": CHEN, "at_ms": town.now}

    def enter(batch: str, reference: str) -> None:
        with transaction(town.engine) as session:
            row = batches.get_batch(session, batch)
            batches.enter_payment(session, row, reference=reference, amount_fen=row.total_fen, **at)

    (refused,) = at_once(*map(partial, [enter, enter], both, ["国库 1", "国库１"]))
    event.remove(town.engine, "before_cursor_execute", wait)
    assert isinstance(refused, Conflict)
    (entered,) = [batch for batch in both if town.get(ClaimBatch, batch).state == "paying"]
    assert (refused.code, refused.field, refused.details) == ("PAYMENT_TWICE", "reference", {"claim_id": entered})
    (other,) = set(both) - {entered}
    assert town.get(ClaimBatch, other).state == "approved"
    assert town.get(ClaimBatch, other).payment == {}
    enter(other, "国库 2")
    town.check()


# --- where they meet all the same -------------------------------------------------------------------------------------


def deadlock(town: Town) -> None:
    """Two transactions that each hold what the other wants: PostgreSQL ends one of them, whose error this raises."""
    programme = town.programme()
    codes = [town.voucher(10, programme, organisation) for organisation in ("org_factory", "org_other")]
    met = threading.Barrier(2)

    def lock(first: str, second: str) -> None:
        with transaction(town.engine) as session:
            issuing.get_voucher(session, first)
            met.wait()
            issuing.get_voucher(session, second)

    (error,) = at_once(partial(lock, *codes), partial(lock, *reversed(codes)))
    raise error


def test_a_transaction_that_the_database_ended_for_another_s_sake_is_run_again(town):
    tries = []

    def work() -> str:
        tries.append(1)
        if len(tries) == 1:
            deadlock(town)
        return "done"

    assert retried(work) == "done"
    assert len(tries) == 2


def test_the_nightly_lapse_that_the_database_ended_is_run_again(town, market, monkeypatch, caplog):
    """Another writer has the voucher's account and asks for the voucher, which the lapse has by then: it is ended."""
    code = town.voucher(1_000)
    town.now = town.end_of(code) + 40 * DAY
    monkeypatch.setattr(housekeeping, "now_ms", lambda: town.now)
    has_voucher = threading.Event()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread() is night and "FROM voucher" in statement and " FOR " in statement:
            has_voucher.set()

    event.listen(town.engine, "after_cursor_execute", note)
    night = threading.Thread(target=housekeeping.Housekeeping(market).go_round)
    with transaction(town.engine) as session:
        session.connection().exec_driver_sql("SET LOCAL deadlock_timeout = '1min'")  # the lapse is the one to be ended
        lock_accounts(session, [accounts.available(code)])
        night.start()
        assert has_voucher.wait(60)
        issuing.get_voucher(session, code)
    night.join()
    row = town.get(Voucher, code)
    assert (row.state, row.state_before) == ("closed", "expired")  # nothing of it was used: nothing is in motion
    assert "_vouchers failed" not in caplog.text
    town.check()


def test_it_is_not_run_for_ever_and_nothing_else_is_run_again(town):
    with pytest.raises(OperationalError) as caught:
        deadlock(town)
    assert is_contended(caught.value)
    tries = []

    def fail(error: Exception) -> None:
        tries.append(1)
        raise error

    with pytest.raises(OperationalError):
        retried(lambda: fail(caught.value))
    assert len(tries) == 3
    gone = OperationalError("SELECT 1", {}, Exception("the server has gone away"))
    with pytest.raises(OperationalError):
        retried(lambda: fail(gone))
    assert len(tries) == 4


def test_a_request_that_meets_another_writer_is_told_to_come_again(town):
    with pytest.raises(OperationalError) as caught:
        deadlock(town)
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/meets")
    def meets() -> None:
        raise caught.value

    @app.get("/gone")
    def gone() -> None:
        raise OperationalError("SELECT 1", {}, Exception("the server has gone away"))

    client = TestClient(app, raise_server_exceptions=False)
    answer = client.get("/meets")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"]["code"] == "DATABASE_BUSY"
    assert client.get("/gone").json()["error"]["code"] == "INTERNAL_ERROR"
