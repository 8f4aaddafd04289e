"""Clocks of nodes elsewhere: use-by, filings and months are judged by them, so how far they may be off is bounded."""

from __future__ import annotations

import google_crc32c
import msgspec
import pytest

from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.nodes.clocks import decide_skew
from marketplace.nodes.registry import add_node
from marketplace.organisations.tables import Notice
from marketplace.usage.rating import CLOCK_MS, RUN_MS
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import LeaseRow, NodeEpoch
from serving.journal import JournalWriter
from serving.leases import HeldLease
from serving.metering import Lease, UsageRecord
from serving.remote.clock import NOW_HEADER, SLOW_MS, ClockOffset
from serving.remote.wire import PREFIX, LeaseAsk
from tests.marketplace.shelf import add_version
from tests.marketplace.town import Town

HOUR = 3_600_000


# --- at ingest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_lease", "reason"),
    [
        (-CLOCK_MS, ""),
        (-CLOCK_MS - 1, "CLOCK_SKEWED"),
        (600_000 + RUN_MS + CLOCK_MS, ""),
        (600_000 + RUN_MS + CLOCK_MS + 1, "CLOCK_SKEWED"),
    ],
)
def test_an_instant_that_its_lease_cannot_have_seen_is_quarantined(town, from_lease, reason):
    """A lease of ten minutes: who says that it was used long before it was there, or after it was over, has a wrong
    clock, and with it could choose on which side of a use-by day a call falls."""
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    (record,) = node.call()
    (lease,) = town.rows(LeaseRow)
    assert lease.expires_at_ms - lease.opened_at_ms == 600_000
    told = msgspec.structs.replace(record, usage_id="other", occurred_at_ms=lease.opened_at_ms + from_lease)
    node.journal.usage(told)
    node.stop()
    assert town.get(Usage, "other").reason == reason
    assert town.get(Usage, record.usage_id).reason == ""
    assert town.rows(Usage)[0].subscription_id
    town.check()


def test_a_free_call_shifts_nothing_and_is_taken_as_it_comes(town):
    node = town.node()
    (record,) = node.call(purpose="trial")
    node.journal.usage(
        msgspec.structs.replace(record, usage_id="other", occurred_at_ms=record.occurred_at_ms + 9 * HOUR)
    )
    node.stop()
    assert {row.reason for row in town.rows(Usage)} == {""}


@pytest.mark.parametrize(("clock", "off"), [(0, 0), (1_000, 0), (1_300, 0), (1_301, 301), (699, -301), (700, 0)])
def test_a_clock_is_off_past_the_limit_only_and_an_old_node_tells_none(clock, off):
    assert decide_skew(clock, 1_000, 300) == off


# --- over the wire ----------------------------------------------------------------------------------------------------


class Edge:
    """A node elsewhere with a clock of its own: the market's routes, with its token."""

    def __init__(self, town: Town, client, market) -> None:
        self.town, self.client = town, client
        self.headers = {"Authorization": f"Bearer {add_node(market.engine, 'edge')}"}
        self.node = town.node("edge")
        self.node.journal.close(seal=False)  # its journal is on its own disk; the market's copy is yet to come
        self.node.journal.path.unlink()
        self.node.journal = JournalWriter(town.folder / "elsewhere", "edge", self.node.epoch)
        self.sent = 0

    def ask(self, off_ms: int = 0, purpose: str = "use"):
        ask = LeaseAsk("key_1", "org_factory", "lst_vendor/steel", self.node.epoch, 0, purpose, {}, now_ms() + off_ms)
        return self.client.post(f"{PREFIX}/leases", content=msgspec.json.encode(ask), headers=self.headers)

    def use(self, lease: Lease, usage_id: str) -> None:
        line = HeldLease(lease).line_for("vendor/steel", now_ms())
        assert line is not None
        self.node.journal.usage(
            UsageRecord(usage_id, "key_1", "org_factory", "vendor/steel@1", "", line.price_version, lease.lease_id,
                        {"calls": 3}, 3 * line.micro_per_unit, now_ms(), "ok", "", "")
        )  # fmt: skip

    def ship(self, off_ms: int = 0):
        content = self.node.journal.path.read_bytes()[self.sent :]
        query = {"offset": self.sent, "crc32c": google_crc32c.value(content), "clock_ms": now_ms() + off_ms}
        url = f"{PREFIX}/epochs/{self.node.epoch}/journal"
        answer = self.client.put(url, params=query, content=content, headers=self.headers)
        self.sent += len(content)
        return answer

    def reasons(self) -> dict[str, str]:
        self.node.flush()
        return {row.usage_id: row.reason for row in self.town.rows(Usage)}


@pytest.fixture
def edge(market, client, monkeypatch):
    town = Town(market.engine, market.journals, now=now_ms(), settings=market.settings)
    market.admission = town.admission
    town.voucher(5_000)
    town.subscribe()
    with transaction(market.engine) as session:
        add_version(session, session.get_one(Listing, "lst_vendor/steel"))
    with client:
        market.catalogue_changed()
        edge = Edge(town, client, market)
        yield edge
        edge.node.journal.close()
    town.admission.close()


def test_a_node_whose_clock_is_off_gets_no_lease_that_costs(edge):
    refused = edge.ask(off_ms=HOUR)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CLOCK_SKEWED")
    assert refused.json()["error"]["details"]["skew_ms"] > HOUR - 10_000
    assert edge.ask(off_ms=-HOUR).status_code == 409
    assert edge.ask(off_ms=HOUR, purpose="trial").status_code == 200
    assert edge.ask(off_ms=240_000).status_code == 200


def test_paid_usage_that_is_shipped_by_a_wrong_clock_is_quarantined_and_only_that(edge):
    lease = msgspec.json.decode(edge.ask().content, type=Lease)
    edge.use(lease, "before")
    assert edge.ship().status_code == 200
    edge.use(lease, "meanwhile")
    assert edge.ship(off_ms=-HOUR).status_code == 200
    edge.use(lease, "meanwhile too")
    edge.ship(off_ms=-HOUR)
    edge.use(lease, "after")
    edge.ship(off_ms=20_000)
    assert edge.reasons() == {
        "before": "", "meanwhile": "CLOCK_SKEWED", "meanwhile too": "CLOCK_SKEWED", "after": "",
    }  # fmt: skip
    assert edge.town.balance("M.recv.ent[org_factory]") == 2  # twice three calls of 0.37 fen
    assert [notice.code for notice in edge.town.rows(Notice)].count("NODE_CLOCK_SKEWED") == 1
    assert edge.town.rows(NodeEpoch)[0].skew_ms == 0
    edge.town.check()


# --- at the node ------------------------------------------------------------------------------------------------------


def test_every_answer_to_a_node_tells_the_market_s_clock(edge):
    for answer in (edge.ask(), edge.ask(off_ms=HOUR), edge.ship()):
        assert abs(int(answer.headers[NOW_HEADER]) - now_ms()) < 60_000


def test_a_node_learns_its_offset_and_gives_its_leases_up_once_it_is_too_great():
    clock, given_up = ClockOffset(), []
    clock.on_skew = lambda: given_up.append(clock.offset_ms)
    clock.learn(1_000, 1_200, "900")
    assert (clock.offset_ms, given_up) == (200, [])
    for _ in range(3):
        clock.learn(10_000_000, 10_000_100, "9000000")
    assert given_up == [1_000_050]
    clock.learn(10_000_000, 10_000_100, "10000000")
    clock.learn(10_000_000, 10_000_100, "11000000")
    assert given_up == [1_000_050, -999_950]


@pytest.mark.parametrize("told", ["", "soon", "-5"])
def test_an_answer_that_tells_no_time_teaches_nothing(told):
    clock = ClockOffset()
    clock.learn(1_000_000, 1_000_100, told)
    clock.learn(1_000_000, 1_000_000 + SLOW_MS + 1, "5")  # a long poll: it may have been said at any moment of it
    assert clock.offset_ms == 0
