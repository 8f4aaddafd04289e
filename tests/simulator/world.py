"""One simulated market: a seeded scheduler of factories, nodes, clocks, disks, networks and a city that claims.

Everything that happens is drawn from one seeded generator, so a seed names a whole history. A step is one action that
found something to act on (an answer of "no" is one; a dead node's turn, an empty network and a second outage are not).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate, islice

from marketplace.clock import end_of_day_ms, policy_date
from tests.simulator.claiming import Claims
from tests.simulator.ingesting import Ingesting
from tests.simulator.losing import Losing
from tests.simulator.machine import SimNode
from tests.simulator.market import ENDED, Market
from tests.simulator.network import Remote
from tests.simulator.oracle import Oracle

START_MS = 1_798_700_000_000  # 2026-12-31 in Shanghai, in the afternoon: half of the worlds cross the year at once
HOUR_MS = 3_600_000
RATIOS = ((1, 3), (1, 2), (13, 20), (1, 1), (1, 60))
PRICES = (1, 370_000, 499_999, 1_000_000, 3_000_007, 33_333_333)
FACES, FRUGAL_FACES = (1, 7, 60, 1_000, 50_000), (1, 2, 3, 7, 20)
CHECK_EVERY = 997


class World:
    def __init__(self, seed: int) -> None:
        self.seed, self.dice = seed, random.Random(seed)
        dice = self.dice
        self.now = START_MS + dice.randint(-24 * 14, 48) * HOUR_MS
        self.is_frugal = dice.random() < 0.3  # small vouchers, used up call by call: where fractions of a fen decide
        self.faces = FRUGAL_FACES if self.is_frugal else FACES
        self.most = 3 if self.is_frugal else dice.choice((3, 40, 400))  # units of one call
        prices = {f"vendor/m{n}": dice.choice(PRICES) for n in range(dice.randint(1, 3))}
        mode = dice.choice(("reimburse", "deduct"))
        pool, ratio, grace = dice.choice((5_000, 200_000, 10**7)), dice.choice(RATIOS), dice.choice((0, 1, 5))
        self.market = Market(pool, ratio, mode, prices, grace, dice.choice(("all", "calendar_year")))
        self.market.filing_ends = {
            model: end_of_day_ms(policy_date(self.now) + timedelta(days=dice.randint(0, 20)))
            for model in prices if dice.random() < 0.4
        }  # fmt: skip
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
        self.losing = Losing(self)
        self.steps = self.minted = 0
        self.counts: dict[str, int] = {}
        self._actions = list(self.weights())
        self._cumulated = list(accumulate(weight for _, weight in self._actions))

    def weights(self) -> list[tuple[Callable[[], bool], float]]:
        """What may happen next, and how often."""
        return [
            (self.call, 60), (self.retry, 4), (self.begin_stream, 3), (self.count_stream, 5), (self.end_stream, 3),
            (self.sync, 5), (self.ship, 4), (self.deliver, 4), (self.ingest, 8), (self.kill, 0.25),
            (self.power_cut, 0.1), (self.recover, 0.8), (self.stop, 0.1), (self.zombie, 0.2), (self.issue, 0.5),
            (self.subscribe, 0.5), (self.end_contract, 0.15), (self.change_price, 0.1), (self.suspend, 0.1),
            (self.revoke, 0.08), (self.tick, 2), (self.pass_hours, 0.15), (self.expire, 0.3), (self.outage, 0.15),
            (self.restore, 2), (self.cut_off, 0.15), (self.reconnect, 1), (self.freeze, 0.15), (self.decide_claim, 0.3),
            (self.correct, 1), (self.losing.write_off, 0.3), (self.losing.call_written_off, 2),
            (self.losing.turn_up, 0.1), (self.losing.break_clock, 0.3), (self.losing.set_clock, 0.1),
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
            "streams": sum(not use.writes[0].final for use in self.oracle.uses.values()),
            "unresolved": self.ingesting.unresolved,
            "subsidised": sum(known.eligible for known in self.ingesting.known.values()),
        } | self.claims.told()  # fmt: skip
        return self.counts | facts

    def step(self) -> None:
        self.steps += 1
        while True:
            at = bisect(self._cumulated, self.dice.random() * self._cumulated[-1])
            if self._actions[min(at, len(self._actions) - 1)][0]():
                break
        if self.steps % CHECK_EVERY == 0:
            self.oracle.check_positions(self.market, self.claims)

    def finish(self) -> None:
        self.market.down = False
        self.market.cut_off.clear()
        self.losing.finish()
        for name in list(self.alive):
            self._die(name, power_cut=False)
        for name in list(self.dead):
            self._close(name)
        self.oracle.check_usage(self.market, self.ingesting, self.claims)
        self.oracle.check_settled(self.market)
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

    def usage_id(self) -> str:
        self.minted += 1
        return f"use_{self.minted:08d}"

    def call(self) -> bool:
        node = self._node()
        if node is None:
            return False
        usage_id = self.usage_id()
        model = self.dice.choice(self.models)
        count = 1 if self.dice.random() < 0.5 else self.dice.randint(1, self.most)
        answered = node.call(usage_id, usage_id, self.dice.choice(self.organisations), model, count, self.now)
        self.count("calls" if answered else "refused or failed")
        return True

    def retry(self) -> bool:
        """The client did not hear the answer and sends the call again under its key: one usage id, one charge."""
        node = self._node()
        keys = list(islice(reversed(self.oracle.keys[node.name]), 20)) if node else []
        if node is None or not keys:
            return False
        key = self.dice.choice(keys)
        usage_id, _ = self.oracle.keys[node.name][key]
        organisation = self.market.contracts[self.oracle.uses[usage_id].contract].organisation
        node.call(usage_id, key, organisation, self.dice.choice(self.models), self.dice.randint(1, 3), self.now)
        return True

    def begin_stream(self) -> bool:
        node = self._node()
        if node is None:
            return False
        organisation, model = self.dice.choice(self.organisations), self.dice.choice(self.models)
        node.begin(self.usage_id(), organisation, model, self.dice.randint(1, 300), self.now)
        return True

    def count_stream(self) -> bool:
        node = self._node()
        return node is not None and node.proceed(end=False)

    def end_stream(self) -> bool:
        node = self._node()
        return node is not None and node.proceed(end=True)

    def sync(self) -> bool:
        node = self._node()
        return node is not None and node.sync()

    def ship(self) -> bool:
        node = self._node()
        if node is None or node.name not in self.remote or node.name in self.market.cut_off:
            return False
        node.learn()  # from the market's answer
        return self.remote[node.name].send(node, self.dice)

    def deliver(self) -> bool:
        reached = [name for name in self.remote if name not in self.market.cut_off]
        if not reached:
            return False
        name = self.dice.choice(reached)
        return self.remote[name].deliver(self.dice, lambda epoch, skew: self.losing.note_skew(name, epoch, skew))

    def ingest(self) -> bool:
        """A pass over a journal as far as the market can see it: perhaps into the middle of a frame."""
        node = self._node()
        if node is None or self.market.down:
            return False
        journal = self._seen(node)
        seen, done = len(journal), self.ingesting.places[node.name, node.epoch].offset
        if done >= seen:
            return False
        if self.dice.random() < 0.3:
            seen = self.dice.randint(done, seen)
        if self.ingesting.run_pass(node.name, node.epoch, journal, self.dice.choice((1, 7, 2_000)), seen):
            self.count("batches")
        return True

    def _seen(self, node: SimNode) -> bytearray:
        remote = self.remote.get(node.name)
        return node.disk if remote is None else remote.copies.setdefault(node.epoch, bytearray())

    def kill(self) -> bool:
        if self.alive:
            self._die(self.dice.choice(list(self.alive)), power_cut=False)
            self.count("kills")
            return True
        return False

    def power_cut(self) -> bool:
        if self.alive:
            self._die(self.dice.choice(list(self.alive)), power_cut=True)
            self.count("power cuts")
            return True
        return False

    def _die(self, name: str, *, power_cut: bool) -> None:
        node = self.dead[name] = self.alive.pop(name)
        node.kill(power_cut)
        self.zombies = [*self.zombies[-3:], node]

    def recover(self) -> bool:
        """A dead node's journal is read to its end, sealed and settled; only then may it start again."""
        reached = [name for name in self.dead if name not in self.market.cut_off]
        if not reached or self.market.down:
            return False
        self._close(self.dice.choice(reached))
        return True

    def stop(self) -> bool:
        """An orderly end: drained, synced, sealed at once."""
        reached = [name for name in self.alive if name not in self.market.cut_off]
        if not reached or self.market.down:
            return False
        name = self.dice.choice(reached)
        while self.alive[name].streams:
            self.alive[name].proceed(end=True)
        self._die(name, power_cut=False)
        self._close(name)
        return True

    def _close(self, name: str) -> None:
        node = self.dead.pop(name)
        if name in self.remote:
            self.losing.note_skew(name, node.epoch, node.skew_ms)
            self.remote[name].complete(node)
        self.ingesting.close(name, node.epoch, bytes(self._seen(node)), self.now)

    def zombie(self) -> bool:
        """A process that was taken for dead asks for more; a sealed epoch gets nothing."""
        node = self.dice.choice(self.zombies) if self.zombies else None
        if node is None or self.market.epochs.get(node.name) == (node.epoch, True):
            return False
        node.reserve(self.dice.choice(self.organisations), self.dice.choice(self.models), 1_000_000, self.now)
        return True

    # --- the market and the city ------------------------------------------------------------------------------------

    def issue(self) -> bool:
        days = self.dice.randint(0, 40)
        use_by = (policy_date(self.now) + timedelta(days=days)).isoformat()
        face = self.dice.choice(self.faces)
        return self.market.issue(self.dice.choice(self.organisations), face, use_by, self.now) is not None

    def subscribe(self) -> bool:
        organisation = self.dice.choice(self.organisations)
        if organisation in self.market.live:
            return False
        contract = self.dice.choice((0, 10, 1_000, 100_000))
        cap = self.dice.choice((None, None, 20, 500, 20_000))
        self.market.subscribe(organisation, contract, self.dice.random() < 0.7, cap)
        return True

    def end_contract(self) -> bool:
        return self.market.end_contract(self.dice.choice(self.organisations), self.now)

    def change_price(self) -> bool:
        versions = self.market.prices[self.dice.choice(self.models)]
        name = versions[-1][0].partition("#")[0]
        versions.append((f"{name}#{len(versions) + 1}", self.dice.choice(PRICES)))
        return True

    def suspend(self) -> bool:
        voucher = self.dice.choice(self.market.vouchers) if self.market.vouchers else None
        if voucher is None or voucher.state not in ("active", "suspended"):
            return False
        voucher.state = "suspended" if voucher.state == "active" else "active"
        return True

    def revoke(self) -> bool:
        """Any voucher, though rather one that nodes have leases of."""
        drawn = [row.voucher for row in self.market.reservations.values() if row.state == "drawing"]
        found = drawn if drawn and self.dice.random() < 0.8 else self.market.vouchers
        voucher = self.dice.choice(found) if found else None
        if voucher is None or voucher.state in ENDED:
            return False
        self.market.end_voucher(voucher, "revoked", self.now)
        self.count("revoked")
        return True

    def tick(self) -> bool:
        self.now += self.dice.randint(1, 120_000)
        return True

    def pass_hours(self) -> bool:
        before = policy_date(self.now).year
        self.now += self.dice.randint(1, 40) * HOUR_MS
        if self.dice.random() < 0.4:  # to just before midnight, where days, months, vouchers and filings end
            self.now = end_of_day_ms(policy_date(self.now)) - self.dice.randint(0, 240_000)
        if policy_date(self.now).year != before:
            self.count("years crossed")
        return True

    def expire(self) -> bool:
        lapsed = self.market.expire_vouchers(self.now)
        self.count("lapsed", lapsed)
        return bool(lapsed)

    def outage(self) -> bool:
        """The ledger goes away: nodes go on inside the leases they hold, and nothing is ingested or recovered."""
        if self.market.down:
            return False
        self.market.down = True
        self.count("outages")
        return True

    def restore(self) -> bool:
        was, self.market.down = self.market.down, False
        return was

    def cut_off(self) -> bool:
        """One node is parted from the market; the others are not, and it goes on inside its leases."""
        name = self.dice.choice(self.names)
        if name in self.market.cut_off:
            return False
        self.market.cut_off.add(name)
        self.count("partitions")
        return True

    def reconnect(self) -> bool:
        if not self.market.cut_off:
            return False
        self.market.cut_off.remove(self.dice.choice(sorted(self.market.cut_off)))
        return True

    def freeze(self) -> bool:
        frozen = self.claims.freeze(self.now)
        self.count("claim batches", frozen)
        return frozen

    def decide_claim(self) -> bool:
        return self.claims.decide(self.dice, self.now)

    def correct(self) -> bool:
        return self.claims.correct(self.dice, self.now)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by
