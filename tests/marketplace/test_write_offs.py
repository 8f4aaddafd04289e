"""Writing off a lost node, by two persons; its journal may turn up at any moment: nothing twice, nothing below zero."""

from __future__ import annotations

import contextlib
import itertools

import pytest

import serving.leases
from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.ledger.tables import LedgerTransfer
from marketplace.nodes.tables import ServingNode
from marketplace.organisations.tables import Notice
from marketplace.usage import recovery
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch, take_late
from marketplace.usage.tables import Usage
from marketplace.vouchers import closing, write_offs
from marketplace.vouchers.tables import EpochWriteOff, LeaseRow, NodeEpoch, Reservation, Subscription
from model_store.errors import BadInput, Conflict, Forbidden, PaymentRequired
from serving.journal import segment_path
from tests.marketplace.stores import on_both_stores
from tests.marketplace.test_claims_desk import operators_desk
from tests.marketplace.town import CHEN, LIN, Node, Town

HOUR = 3_600_000


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("order", "market"))


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    monkeypatch.setattr(recovery, "now_ms", lambda: town.now)
    yield town
    town.admission.close()


class Lost:
    """A node that goes away with its journal: the market has the first `arrived` records of it, the rest may come."""

    def __init__(self, town: Town, name: str = "edge", calls: int = 90, arrived: int = 30) -> None:
        self.town = town
        self.node = town.node(name)
        self.node.call(count=arrived)
        self.node.flush()
        self.node.call(count=calls - arrived)
        self.node.die()
        self.path = segment_path(town.folder, name, self.node.epoch)
        self.whole = self.path.read_bytes()
        offset = town.get(NodeEpoch, (name, self.node.epoch)).offset_bytes
        self.path.write_bytes(self.whole[:offset])
        town.now += 2 * HOUR

    def propose(self, member: str = CHEN, reason: str = "the box burnt down") -> str:
        with transaction(self.town.engine) as session:
            row = write_offs.propose(
                session, self.node.name, self.node.epoch, reason, member=member, at_ms=self.town.now, seen_at_ms=None
            )
            return row.id

    def decide(self, row_id: str, decision: str = "approve", member: str = LIN, seen: int | None = None) -> None:
        """As the route does it: what is here of the journal is ingested before."""
        Ingest(self.town.engine, self.town.folder, self.node.name).drain(self.node.name, self.node.epoch)
        with transaction(self.town.engine) as session:
            row = write_offs.get_write_off(session, row_id)
            write_offs.decide(session, row, decision, member=member, at_ms=self.town.now, seen_at_ms=seen)

    def arrive(self, share: float = 1.0) -> None:
        """More of the journal comes, from where the copy ends."""
        size = self.path.stat().st_size
        with self.path.open("ab") as file:
            file.write(self.whole[size : size + int((len(self.whole) - size) * share)])

    def come_back(self) -> None:
        """The rest of the journal, and its close: the route's choice between the two ways."""
        self.arrive()
        state = self.town.get(NodeEpoch, (self.node.name, self.node.epoch)).state
        if state in ("written_off", "late"):
            take_late(self.town.engine, self.town.folder, self.node.name, self.node.epoch)
        elif state == "open":
            close_epoch(self.town.engine, self.town.folder, self.node.name, self.node.epoch)

    @property
    def row(self) -> EpochWriteOff:
        return self.town.rows(EpochWriteOff)[0]


@pytest.fixture
def lost(town) -> Lost:
    """90 calls of 0.37 fen at one third (33 fen, 11 of them the voucher's) in a lease of 500 fen; 30 calls arrived."""
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    return Lost(town)


def spend_all(node: Node, units: int = 1) -> None:
    with contextlib.suppress(PaymentRequired):
        while True:
            node.call(units=units)


def end_contract(town: Town) -> None:
    with transaction(town.engine) as session:
        row = session.get_one(Subscription, town.rows(Subscription)[0].id)
        closing.end_contract(session, row, actor="f", at_ms=town.now)


def spent(town: Town) -> int:
    return town.total("Q.used")


def quarantined(town: Town) -> list[Usage]:
    return [row for row in town.rows(Usage) if row.status == "quarantined"]


# --- the two persons --------------------------------------------------------------------------------------------------


def test_two_persons_give_back_what_a_lost_node_held(town, lost):
    held = town.total("Q.lease")
    assert held > 400
    row_id = lost.propose()
    assert town.total("Q.lease") == held  # a proposal moves nothing
    lost.decide(row_id)
    assert town.total("Q.lease") <= 1  # at most the rest of a fen that is used and not posted yet
    assert (lost.row.state, lost.row.released_fen) == ("approved", held - town.total("Q.lease"))
    town.check()
    marked = [row for row in town.rows(LedgerTransfer) if row.memo == f"write-off {row_id}"]
    assert [row.kind for row in marked] == ["P6"]
    assert marked[0].event_key.endswith(":written-off")


def test_nobody_does_it_alone_without_a_reason_or_twice(town, lost):
    with pytest.raises(BadInput, match="REASON_REQUIRED"):
        lost.propose(reason=" ")
    with pytest.raises(Forbidden, match="PERSON_REQUIRED"):
        lost.propose(member="")
    row_id = lost.propose()
    with pytest.raises(Conflict, match="WRITE_OFF_STATE"):
        lost.propose(member=LIN)
    with pytest.raises(Forbidden, match="TWO_PERSONS"):
        lost.decide(row_id, member=CHEN)
    lost.decide(row_id)
    for again in ("approve", "decline"):
        with pytest.raises(Conflict, match="WRITE_OFF_STATE"):
            lost.decide(row_id, again)


def test_a_declined_proposal_leaves_all_as_it_is_and_another_may_follow(town, lost):
    held = town.total("Q.lease")
    lost.decide(lost.propose(), "decline")
    assert town.total("Q.lease") == held
    assert lost.propose()


def test_a_node_that_is_heard_of_or_whose_leases_run_is_not_lost(town, lost):
    row_id = lost.propose()
    with pytest.raises(Conflict, match="NODE_REACHABLE"):
        lost.decide(row_id, seen=town.now - 1_000)
    town.now -= 2 * HOUR
    with pytest.raises(Conflict, match="LEASES_RUNNING"):
        lost.decide(row_id)


def test_the_market_s_own_node_is_recovered_not_written_off(town):
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    with pytest.raises(Conflict, match="WRITE_OFF_OWN_NODE"):
        Lost(town, "local-2").propose()


def test_a_written_off_epoch_gets_no_lease_and_the_node_a_new_epoch(town, lost):
    lost.decide(lost.propose())
    with pytest.raises(Conflict, match="EPOCH_FENCED"):  # it lives after all, and its lease has run out
        lost.node.call()
    fresh = town.node("edge")
    assert fresh.epoch == lost.node.epoch + 1
    fresh.call(count=5)
    fresh.stop()
    town.check()


# --- the journal turns up ---------------------------------------------------------------------------------------------


def test_a_journal_that_comes_before_the_second_person_leaves_nothing_to_write_off(town, lost):
    row_id = lost.propose()
    lost.come_back()
    assert lost.row.state == "recovered"
    with pytest.raises(Conflict, match="WRITE_OFF_STATE"):
        lost.decide(row_id)
    assert spent(town) == 11
    town.check()


def test_what_has_arrived_by_the_approval_is_charged_before_it(town, lost):
    row_id = lost.propose()
    lost.arrive(0.5)
    lost.decide(row_id)
    arrived = len(town.rows(Usage))
    assert 30 < arrived < 90
    assert spent(town) == arrived * 37 // 300
    town.check()


def test_a_late_journal_is_charged_in_full_while_the_reservation_still_has_it(town, lost):
    lost.decide(lost.propose())
    assert spent(town) == 3
    lost.come_back()
    assert spent(town) == 11
    assert len(town.rows(Usage)) == 90
    assert quarantined(town) == []
    assert (lost.row.state, lost.row.late_records, lost.row.late_quarantined) == ("turned_up", 60, 0)
    assert town.total("Q.lease") <= 1
    assert [notice.code for notice in town.rows(Notice)].count("LATE_JOURNAL") == 1
    town.check()


def test_what_others_have_used_meanwhile_is_not_charged_a_second_time(town, lost):
    """The voucher is spent to its end on another node: what the late journal has beyond it is charged to nobody."""
    lost.decide(lost.propose())
    other = town.node("other")
    spend_all(other, units=5)
    other.stop()
    before = town.balance("M.recv.ent[org_factory]")
    left = town.total("Q.resv")
    lost.come_back()
    town.check()
    assert spent(town) <= 1_000
    late = [row for row in town.rows(Usage) if row.node == "edge" and row.seq > 30]
    assert len(late) == 60
    refused = [row for row in late if row.reason == "LEASE_WRITTEN_OFF"]
    assert len(refused) > 60 - (left + 1) * 9
    charged = [row for row in late if not row.reason]
    gross = sum(row.amount_micro for row in charged) // 1_000_000
    assert town.balance("M.recv.ent[org_factory]") - before in (gross, gross + 1)
    assert lost.row.late_quarantined == len(refused)


@pytest.mark.parametrize("over", ["contract", "voucher"])
def test_a_late_journal_of_a_contract_or_voucher_that_is_over_is_quarantined(town, lost, over):
    lost.decide(lost.propose())
    if over == "contract":
        end_contract(town)
    else:
        town.pass_days(40)
        with transaction(town.engine) as session:
            assert closing.expire_vouchers(session, town.now)
    lost.come_back()
    assert spent(town) == 3
    assert {row.reason for row in quarantined(town)} == {"LEASE_WRITTEN_OFF"}
    assert len(quarantined(town)) == 60
    assert town.total("Q.lease") + town.total("Q.resv") == 0
    town.check()


def test_an_interrupted_taking_in_goes_on_where_it_stood(town, lost, monkeypatch):
    lost.decide(lost.propose())
    lost.arrive()
    monkeypatch.setattr(recovery, "close_epoch", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take_late(town.engine, town.folder, "edge", lost.node.epoch)
    town.check()
    monkeypatch.setattr(recovery, "close_epoch", close_epoch)
    lost.come_back()
    lost.come_back()
    assert (spent(town), lost.row.state) == (11, "turned_up")
    town.check()


def test_a_monthly_cap_holds_for_a_late_journal_too(town):
    """20 fen a month of one's own: 10 calls arrived, the rest of the 20 is used elsewhere, then the journal comes."""
    town.subscribe(contract_fen=0, on_voucher_end="self_pay", monthly_cap_fen=20)
    lost = Lost(town, calls=40, arrived=10)
    lost.decide(lost.propose())
    other = town.node("other")
    spend_all(other)
    other.stop()
    lost.come_back()
    assert town.balance("M.recv.ent[org_factory]") <= 20
    assert len(quarantined(town)) == 30
    town.check()


def orders(*steps: str) -> list[tuple[str, ...]]:
    """All orders in which a proposal comes before its approval, and a part of the journal before the whole."""
    pairs = (("propose", "approve"), ("part", "whole"))
    return [
        order
        for order in itertools.permutations(steps)
        if all(order.index(a) < order.index(b) for a, b in pairs if {a, b} <= set(steps))
    ]


ORDERS = orders("propose", "approve", "part", "whole", "use") + orders("propose", "approve", "whole", "end")


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_in_whatever_order_nothing_is_charged_twice_and_nothing_goes_below_zero(town, order):
    town.voucher(60)
    town.subscribe(contract_fen=100_000)
    lost = Lost(town, calls=45, arrived=15)
    row_id, other = "", town.node("other")
    for step in order:
        if step == "propose":
            with contextlib.suppress(Conflict):  # WRITE_OFF_STATE: the whole journal came first
                row_id = lost.propose()
        elif step == "approve" and row_id:
            with contextlib.suppress(Conflict):
                lost.decide(row_id)
        elif step == "part":
            lost.arrive(0.4)
        elif step == "whole":
            lost.come_back()
        elif step == "use":
            with contextlib.suppress(PaymentRequired):
                other.call(count=100, units=3)
            other.flush()
        elif step == "end":
            end_contract(town)
        town.check()
    other.stop()
    end_contract(town)
    town.check()
    assert all(row.state in ("sealed", "settled") for row in town.rows(LeaseRow))
    assert {row.usage_id for row in town.rows(Usage)} == {
        record.usage_id for node in (lost.node, other) for record in node.acknowledged
    }
    (reservation,) = town.rows(Reservation)
    charged = [row for row in town.rows(Usage) if row.status != "quarantined"]
    assert reservation.cum_gross_micro == sum(row.amount_micro for row in charged)
    assert reservation.posted_subsidy_fen <= 60
    assert town.total("Q.lease") + town.total("Q.resv") == 0  # the contract is over


# --- city hall --------------------------------------------------------------------------------------------------------


def test_two_operators_write_a_node_off_in_city_hall(market, client, monkeypatch):
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    town = Town(market.engine, market.journals, now=now_ms() - 3 * HOUR, settings=market.settings)
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    with transaction(market.engine) as session:
        session.add(ServingNode(name="edge", sha256="x"))
    lost = Lost(town)
    desk = operators_desk(town, client)
    page = desk.see("chen", "/city/nodes", "en")
    assert "edge" in page
    assert "Propose a write-off" in page
    desk.press("chen", "propose-write-off", name="edge", epoch=lost.node.epoch, reason="burnt down")
    assert "another person has to approve it" in desk.see("chen", "/city/nodes", "en")
    desk.press("chen", "approve-write-off", status=403, write_off_id=lost.row.id)
    assert "批准核销" in desk.see("lin", "/city/nodes")
    desk.press("lin", "approve-write-off", write_off_id=lost.row.id)
    assert lost.row.state == "approved"
    assert "written off" in desk.see("lin", "/city/nodes", "en")
    town.check()
    town.admission.close()
