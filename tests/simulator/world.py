"""One simulated market: a seeded scheduler of factories, nodes, clocks, disks, networks and a city that claims.

Everything that happens is drawn from one seeded generator, so a seed names a whole history. A step is one action.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate

from marketplace.clock import policy_date
from tests.simulator.claiming import Claims
from tests.simulator.ingesting import Ingesting
from tests.simulator.machine import SimNode
from tests.simulator.market import Market
from tests.simulator.oracle import Oracle

START_MS = 1_798_700_000_000  # 2026-12-31 in Shanghai: the first days cross a year
HOUR_MS = 3_600_000
RATIOS = ((1, 3), (1, 2), (13, 20), (1, 1), (1, 60))
PRICES = (1, 370_000, 499_999, 1_000_000, 3_000_007, 33_333_333)
CHECK_EVERY = 997


class Remote:
    """A node's journals on their way to the market: chunks are lost, doubled and reordered; the copy is a prefix."""

    def __init__(self) -> None:
        self.copies: dict[int, bytearray] = {}  # epoch → what has arrived
        self.flying: list[tuple[int, int, bytes]] = []

    def send(self, node: SimNode, dice: random.Random) -> None:
        """Only what the node's disk has synced is ever sent."""
        size = len(self.copies.setdefault(node.epoch, bytearray()))
        end = dice.randint(size, max(size, node.synced))
        if end > size and dice.random() < 0.9 and len(self.flying) < 8:
            self.flying.append((node.epoch, size, bytes(node.disk[size:end])))

    def deliver(self, dice: random.Random) -> None:
        """Any chunk, first or not; now and then it is delivered again later."""
        if not self.flying:
            return
        at = dice.randrange(len(self.flying))
        epoch, offset, content = self.flying[at]
        if dice.random() < 0.8:
            del self.flying[at]
        copy = self.copies.setdefault(epoch, bytearray())
        if offset == len(copy):  # anything else is JOURNAL_OFFSET
            copy += content

    def complete(self, node: SimNode) -> None:
        """The node is back and sends the rest of a dead epoch, to the last byte."""
        self.copies[node.epoch] = bytearray(node.disk)
        self.flying = [chunk for chunk in self.flying if chunk[0] != node.epoch]


class World:
    def __init__(self, seed: int) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        dice = self.dice
        self.now = START_MS + dice.randrange(48) * HOUR_MS
        prices = {f"vendor/m{n}": dice.choice(PRICES) for n in range(dice.randint(1, 3))}
        mode = dice.choice(("reimburse", "deduct"))
        self.market = Market(
            dice.choice((5_000, 200_000, 10**7)), dice.choice(RATIOS), mode, prices, dice.choice((0, 1, 5))
        )
        self.ingesting, self.oracle = Ingesting(self.market, lambda: self.now), Oracle()
        self.claims = Claims(self.market, self.ingesting)
        self.organisations = [f"org_{n}" for n in range(dice.randint(1, 4))]
        self.models = list(prices)
        self.is_skewed = dice.random() < 0.5
        self.alive: dict[str, SimNode] = {}
        self.dead: dict[str, SimNode] = {}  # killed, and not recovered yet
        self.zombies: list[SimNode] = []
        self.names = [f"n{n}" for n in range(dice.randint(1, 4))]
        self.remote = {name: Remote() for name in self.names if dice.random() < 0.4}
        self.steps = self.minted = 0
        self.counts: dict[str, int] = {}
        self._actions = list(self.weights())
        self._cumulated = list(accumulate(weight for _, weight in self._actions))

    def weights(self) -> list[tuple[Callable[[], None], float]]:
        """What may happen next, and how often."""
        return [
            (self.call, 60), (self.retry, 4), (self.begin_stream, 3), (self.count_stream, 5), (self.end_stream, 3),
            (self.sync, 5), (self.ship, 4), (self.deliver, 4), (self.ingest, 8), (self.kill, 0.25),
            (self.power_cut, 0.1), (self.recover, 0.8), (self.stop, 0.1), (self.zombie, 0.2), (self.issue, 0.5),
            (self.subscribe, 0.5), (self.end_contract, 0.15), (self.change_price, 0.1), (self.suspend, 0.1),
            (self.tick, 2), (self.pass_hours, 0.15), (self.expire, 0.3), (self.outage, 0.15), (self.restore, 2),
            (self.freeze, 0.15), (self.decide_claim, 0.3), (self.correct, 0.3),
        ]  # fmt: skip

    def run(self, steps: int) -> None:
        """`steps` actions, then every node recovered and every account checked. Raises `Violation`."""
        for _ in range(steps):
            self.step()
        self.finish()

    def told(self) -> dict[str, int]:
        """What happened, in numbers."""
        facts = {
            "records": sum(len(each) for each in self.oracle.of_epoch.values()),
            "charged": len(self.ingesting.known), "transfers": len(self.market.books.transfers),
            "leases": len(self.market.leases), "epochs": sum(epoch for epoch, _ in self.market.epochs.values()),
        }  # fmt: skip
        return self.counts | facts

    def step(self) -> None:
        self.steps += 1
        at = bisect(self._cumulated, self.dice.random() * self._cumulated[-1])
        self._actions[min(at, len(self._actions) - 1)][0]()
        if self.steps % CHECK_EVERY == 0:
            self.oracle.check_positions(self.market, self.claims)

    def finish(self) -> None:
        self.market.down = False
        for name in list(self.alive):
            self._die(name, power_cut=False)
        for name in list(self.dead):
            self._close(name)
        self.oracle.check_usage(self.market, self.ingesting)
        self.oracle.check_settled(self.market, self.ingesting)
        self.oracle.check_positions(self.market, self.claims)
        if not self.is_skewed:
            self.oracle.check_own_cost(self.market, self.ingesting)
        self.market.books.check_rebuild()

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _node(self) -> SimNode | None:
        name = self.dice.choice(self.names)
        if name in self.dead:
            return None
        node = self.alive.get(name)
        if node is None:
            skew = self.dice.randint(-300_000, 300_000) if self.is_skewed else 0
            epoch = self.market.open_epoch(name)
            node = self.alive[name] = SimNode(name, epoch, self.market, self.oracle, self.dice, skew_ms=skew)
        return node

    def _usage_id(self) -> str:
        self.minted += 1
        return f"use_{self.minted:08d}"

    def call(self) -> None:
        node = self._node()
        if node is not None:
            usage_id = self._usage_id()
            model = self.dice.choice(self.models)
            count = 1 if self.dice.random() < 0.5 else self.dice.randint(1, 400)
            if node.call(usage_id, usage_id, self.dice.choice(self.organisations), model, count, self.now):
                self.counts["calls"] = self.counts.get("calls", 0) + 1

    def retry(self) -> None:
        """The client did not hear the answer and sends the call again under its key: one usage id, one charge."""
        node = self._node()
        keys = list(self.oracle.keys[node.name])[-20:] if node else []
        if node is not None and keys:
            key = self.dice.choice(keys)
            usage_id, _ = self.oracle.keys[node.name][key]
            organisation = self.market.contracts[self.oracle.uses[usage_id].contract].organisation
            node.call(usage_id, key, organisation, self.dice.choice(self.models), self.dice.randint(1, 3), self.now)

    def begin_stream(self) -> None:
        node = self._node()
        if node is not None:
            organisation, model = self.dice.choice(self.organisations), self.dice.choice(self.models)
            node.begin(self._usage_id(), organisation, model, self.dice.randint(1, 300), self.now)

    def count_stream(self) -> None:
        node = self._node()
        if node is not None:
            node.proceed(end=False)

    def end_stream(self) -> None:
        node = self._node()
        if node is not None:
            node.proceed(end=True)

    def sync(self) -> None:
        node = self._node()
        if node is not None:
            node.sync()

    def ship(self) -> None:
        node = self._node()
        if node is not None and node.name in self.remote:
            self.remote[node.name].send(node, self.dice)

    def deliver(self) -> None:
        if self.remote:
            self.remote[self.dice.choice(list(self.remote))].deliver(self.dice)

    def ingest(self) -> None:
        """A pass over a journal as far as the market can see it: perhaps into the middle of a frame."""
        node = self._node()
        if node is None or self.market.down:
            return
        seen = len(self._seen(node))
        if self.dice.random() < 0.3:
            seen = self.dice.randint(self.ingesting.places[node.name, node.epoch].offset, seen)
        data = bytes(self._seen(node)[:seen])
        if self.ingesting.run_pass(node.name, node.epoch, data, self.dice.choice((1, 7, 2_000))):
            self.counts["batches"] = self.counts.get("batches", 0) + 1

    def _seen(self, node: SimNode) -> bytearray:
        remote = self.remote.get(node.name)
        return node.disk if remote is None else remote.copies.setdefault(node.epoch, bytearray())

    def kill(self) -> None:
        if self.alive:
            self._die(self.dice.choice(list(self.alive)), power_cut=False)
            self.counts["kills"] = self.counts.get("kills", 0) + 1

    def power_cut(self) -> None:
        if self.alive:
            self._die(self.dice.choice(list(self.alive)), power_cut=True)
            self.counts["power cuts"] = self.counts.get("power cuts", 0) + 1

    def _die(self, name: str, *, power_cut: bool) -> None:
        node = self.dead[name] = self.alive.pop(name)
        node.kill(power_cut)
        self.zombies = [*self.zombies[-3:], node]

    def recover(self) -> None:
        """A dead node's journal is read to its end, sealed and settled; only then may it start again."""
        if self.dead and not self.market.down:
            self._close(self.dice.choice(list(self.dead)))

    def stop(self) -> None:
        """An orderly end: drained, synced, sealed at once."""
        if self.alive and not self.market.down:
            name = self.dice.choice(list(self.alive))
            while self.alive[name].streams:
                self.alive[name].proceed(end=True)
            self._die(name, power_cut=False)
            self._close(name)

    def _close(self, name: str) -> None:
        node = self.dead.pop(name)
        if name in self.remote:
            self.remote[name].complete(node)
        self.ingesting.close(name, node.epoch, bytes(self._seen(node)), self.now)

    def zombie(self) -> None:
        """A process that was taken for dead asks for more; a sealed epoch gets nothing."""
        if self.zombies:
            node = self.dice.choice(self.zombies)
            if self.market.epochs.get(node.name) != (node.epoch, True):
                node.reserve(self.dice.choice(self.organisations), self.dice.choice(self.models), 1_000_000, self.now)

    # --- the market and the city ------------------------------------------------------------------------------------

    def issue(self) -> None:
        days = self.dice.randint(0, 40)
        use_by = (policy_date(self.now) + timedelta(days=days)).isoformat()
        face = self.dice.choice((1, 7, 60, 1_000, 50_000))
        self.market.issue(self.dice.choice(self.organisations), face, use_by, self.now)

    def subscribe(self) -> None:
        organisation = self.dice.choice(self.organisations)
        if organisation not in self.market.live:
            contract = self.dice.choice((0, 10, 1_000, 100_000))
            cap = self.dice.choice((None, None, 20, 500, 20_000))
            self.market.subscribe(organisation, contract, self.dice.random() < 0.7, cap)

    def end_contract(self) -> None:
        self.market.end_contract(self.dice.choice(self.organisations), self.now)

    def change_price(self) -> None:
        versions = self.market.prices[self.dice.choice(self.models)]
        name = versions[-1][0].partition("#")[0]
        versions.append((f"{name}#{len(versions) + 1}", self.dice.choice(PRICES)))

    def suspend(self) -> None:
        if self.market.vouchers:
            voucher = self.dice.choice(self.market.vouchers)
            voucher.state = {"active": "suspended", "suspended": "active"}.get(voucher.state, voucher.state)

    def tick(self) -> None:
        self.now += self.dice.randint(1, 120_000)

    def pass_hours(self) -> None:
        self.now += self.dice.randint(1, 40) * HOUR_MS

    def expire(self) -> None:
        self.market.expire_vouchers(self.now)

    def outage(self) -> None:
        """The ledger goes away: nodes go on inside the leases they hold, and nothing is ingested or recovered."""
        self.market.down = True

    def restore(self) -> None:
        self.market.down = False

    def freeze(self) -> None:
        self.claims.freeze(self.now)

    def decide_claim(self) -> None:
        self.claims.decide(self.dice, self.now)

    def correct(self) -> None:
        self.claims.correct(self.dice, self.now)
