"""Any order of issuing, calling, crashing, sealing, ending and lapsing, against a model that fits on a screen.

The model knows what was acknowledged and which share is the voucher's; it knows nothing of leases or accounts.
"""

import contextlib
import tempfile
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import serving.leases
from marketplace.db import create_tables, open_database, transaction
from marketplace.vouchers import closing, issuing
from marketplace.vouchers.tables import LeaseRow, Reservation, Subscription, Voucher
from model_store.errors import Conflict, PaymentRequired
from serving.journal import segment_path
from tests.marketplace.town import CHEN, Town

PRICE = 370_000
MICRO = 1_000_000


class Money(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        home = Path(self.folder.name)
        engine = open_database(f"sqlite:///{home}/market.db")
        create_tables(engine)
        self.town = Town(engine, home / "journal")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(serving.leases, "now_ms", lambda: self.town.now)
        self.programme = self.town.programme(validity={"days": 3})
        self.nodes = {}
        self.acknowledged = []  # (usage id, lease id)
        self.subscription = ""

    def teardown(self):
        for node in self.nodes.values():
            node.stop()
        self.town.check()
        self.everything_acknowledged_is_posted_once()
        self.patch.undo()
        self.town.engine.dispose()
        self.folder.cleanup()

    # --- what people do -----------------------------------------------------------------------------------------------

    @rule(face=st.integers(1, 60))
    def issue(self, face):
        self.town.voucher(face, self.programme)

    @precondition(lambda self: not self.subscription)
    @rule(contract=st.sampled_from([0, 10, 100, 1_000]), end=st.sampled_from(["refuse", "self_pay"]),
          cap=st.sampled_from([None, 20, 500]))  # fmt: skip
    def subscribe(self, contract, end, cap):
        self.subscription = self.town.subscribe(contract, on_voucher_end=end, monthly_cap_fen=cap)

    @precondition(lambda self: self.subscription)
    @rule()
    def end_the_contract(self):
        with transaction(self.town.engine) as session:
            row = session.get_one(Subscription, self.subscription)
            closing.end_contract(session, row, actor="f", at_ms=self.town.now)
        self.subscription = ""
        for node in self.nodes.values():
            node.book.expire("org_factory")

    @rule(name=st.sampled_from(["n1", "n2"]), count=st.integers(1, 120))
    def call(self, name, count):
        node = self.nodes.get(name) or self.town.node(name)
        self.nodes[name] = node
        before = len(node.acknowledged)
        with contextlib.suppress(PaymentRequired):
            node.call(count=count)
        self.acknowledged += [(r.usage_id, r.lease_id) for r in node.acknowledged[before:]]

    @rule(name=st.sampled_from(["n1", "n2"]))
    def ingest(self, name):
        if name in self.nodes:
            self.nodes[name].flush()

    @rule(name=st.sampled_from(["n1", "n2"]), tail=st.binary(max_size=12), read=st.booleans())
    def crash(self, name, tail, read):
        node = self.nodes.pop(name, None)
        if node is None:
            return
        if read:
            node.flush()
        node.die()
        with segment_path(self.town.folder, name, node.epoch).open("ab") as file:
            file.write(tail)
        self.nodes[name] = self.town.node(name)

    @rule(name=st.sampled_from(["n1", "n2"]))
    def stop(self, name):
        node = self.nodes.pop(name, None)
        if node is not None:
            node.stop()

    @rule(hours=st.integers(1, 40))
    def time_passes(self, hours):
        self.town.now += int(timedelta(hours=hours).total_seconds() * 1000)

    @rule()
    def lapse(self):
        with transaction(self.town.engine) as session:
            closing.expire_vouchers(session, self.town.now)

    @rule(resume=st.booleans())
    def suspend_or_resume(self, resume):
        with transaction(self.town.engine) as session:
            for voucher in issuing.list_vouchers(session, None)[0]:
                try:
                    change = issuing.resume if resume else issuing.suspend
                    change(session, voucher, actor=CHEN)
                except Conflict:
                    continue

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def the_books_are_sound(self):
        self.town.check()

    def everything_acknowledged_is_posted_once(self):
        """Once all is sealed: gross to the fen, the share exact, per reservation and self-paid contract."""
        leases = {row.id: row for row in self.town.rows(LeaseRow)}
        micro = defaultdict(int)
        for _, lease in self.acknowledged:
            row = leases[lease]
            micro[row.reservation_id or row.subscription_id] += PRICE
        gross = sum(total // MICRO for total in micro.values())
        assert len({usage for usage, _ in self.acknowledged}) == len(self.acknowledged)
        assert self.town.balance("M.recv.ent[org_factory]") == gross
        for row in self.town.rows(Reservation):
            assert row.cum_gross_micro == micro[row.id]
            share = min(row.cum_eligible_micro // 3_000_000, row.posted_gross_fen // 3)
            assert share - 1 <= row.posted_subsidy_fen <= share
            if row.cum_eligible_micro == row.cum_gross_micro:
                assert row.posted_subsidy_fen == micro[row.id] // 3_000_000
        for voucher in self.town.rows(Voucher):
            used = sum(r.posted_subsidy_fen for r in self.town.rows(Reservation) if r.voucher_id == voucher.id)
            assert used <= voucher.face_fen


TestMoney = Money.TestCase
TestMoney.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
