"""Nodes that are lost or only silent, written off by two persons, whose journals may turn up; and clocks that go wrong.

Its actions belong to a `World`; each answers whether it found something to act on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketplace.nodes.clocks import decide_skew
from serving.remote.clock import LIMIT_MS
from tests.simulator.machine import SimNode

if TYPE_CHECKING:
    from tests.simulator.world import World


class Losing:
    def __init__(self, world: World) -> None:
        self.world = world
        self.written_off: list[SimNode] = []

    # --- lost nodes -------------------------------------------------------------------------------------------------

    def write_off(self) -> bool:
        """Two persons, whether it is lost or only silent: what has arrived of its journal is ingested before."""
        world = self.world
        market = world.market
        silent = [name for name in (*world.alive, *world.dead) if name in market.cut_off and name in world.remote]
        if not silent or market.down:
            return False
        name = world.dice.choice(silent)
        node = world.alive.pop(name, None) or world.dead.pop(name)
        self._ingest(name, node.epoch)
        world.oracle.written_off.add((name, node.epoch))
        world.oracle.keys[name].clear()  # who comes after it under its name cannot know its keys
        market.write_off(name, node.epoch, world.now)
        market.cut_off.discard(name)  # it may ask again: the fence is what refuses it
        self.written_off.append(node)
        world.zombies = [*world.zombies[-3:], node]
        world.count("written off")
        return True

    def call_written_off(self) -> bool:
        """It was silent, not dead: it goes on answering inside the leases it holds."""
        world = self.world
        nodes = [node for node in self.written_off if not node.stopped]
        if not nodes:
            return False
        node, usage_id = world.dice.choice(nodes), world.usage_id()
        organisation, model = world.dice.choice(world.organisations), world.dice.choice(world.models)
        if node.call(usage_id, usage_id, organisation, model, world.dice.randint(1, 50), world.now):
            world.oracle.keys[node.name].pop(usage_id)
        node.sync()
        return True

    def turn_up(self) -> bool:
        if not self.written_off or self.world.market.down:
            return False
        self._turn_up(self.world.dice.choice(self.written_off))
        return True

    def finish(self) -> None:
        """At the end half of the lost journals turn up, and half never do."""
        world = self.world
        for node in list(self.written_off):
            if world.dice.random() < 0.5:
                self._turn_up(node)
            else:
                world.oracle.never_came(node, world.ingesting.places[node.name, node.epoch].offset)

    def _turn_up(self, node: SimNode) -> None:
        world = self.world
        self.written_off.remove(node)
        if not node.stopped:
            node.kill(power_cut=False)
        self.note_skew(node.name, node.epoch, node.skew_ms)
        world.remote[node.name].complete(node)
        data = bytes(world.remote[node.name].copies[node.epoch])
        world.ingesting.take_late(node.name, node.epoch, data, world.now)
        world.count("turned up")

    # --- clocks -----------------------------------------------------------------------------------------------------

    def note_skew(self, name: str, epoch: int, skew_ms: int) -> None:
        """Before a portion is kept: what is here already is judged by what was known when it came."""
        market = self.world.market
        skewed = bool(decide_skew(1 + skew_ms, 1, LIMIT_MS))
        if skewed != ((name, epoch) in market.skewed):
            if market.epochs.get(name) == (epoch, True):
                self._ingest(name, epoch)
            (market.skewed.add if skewed else market.skewed.discard)((name, epoch))

    def _ingest(self, name: str, epoch: int) -> None:
        world = self.world
        copy = world.remote[name].copies.setdefault(epoch, bytearray())
        while world.ingesting.run_pass(name, epoch, copy, 1_000, len(copy)):
            pass

    def break_clock(self) -> bool:
        """The clock of a node elsewhere jumps by hours."""
        world = self.world
        nodes = [node for name, node in world.alive.items() if name in world.remote and abs(node.skew_ms) <= LIMIT_MS]
        if not nodes:
            return False
        node = world.dice.choice(nodes)
        node.skew_ms = world.dice.choice((-1, -1, 1)) * world.dice.randint(2, 40) * LIMIT_MS
        world.oracle.wild.add((node.name, node.epoch))
        world.is_skewed = True
        world.count("clocks broken")
        return True

    def set_clock(self) -> bool:
        """It is set right once all that was written meanwhile is shipped (sooner, only the lease's own time tells)."""
        world = self.world
        for name, node in world.alive.items():
            if name not in world.remote or abs(node.skew_ms) <= LIMIT_MS or node.streams:
                continue
            if len(world.remote[name].copies.get(node.epoch, b"")) == len(node.disk):
                node.skew_ms = 0
                return True
        return False
