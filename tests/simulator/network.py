"""The network between a node's disk and the market: journals travel in chunks; any may be lost, late or doubled."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulator.machine import SimNode


class Remote:
    """A node's journals on their way to the market: chunks are lost, doubled and reordered; the copy is a prefix."""

    def __init__(self) -> None:
        self.copies: dict[int, bytearray] = {}  # epoch → what has arrived
        self.flying: list[tuple[int, int, bytes, int]] = []  # epoch, offset, content, what the node's clock was off

    def send(self, node: SimNode, dice: random.Random) -> bool:
        """Only what the node's disk has synced is ever sent."""
        size = len(self.copies.setdefault(node.epoch, bytearray()))
        end = dice.randint(size, max(size, node.synced))
        if end <= size or len(self.flying) >= 8:
            return False
        if dice.random() < 0.9:
            self.flying.append((node.epoch, size, bytes(node.disk[size:end]), node.skew_ms))
        return True

    def deliver(self, dice: random.Random, note: Callable[[int, int], None]) -> bool:
        """Any chunk, first or not; now and then it is delivered again later. `note(epoch, skew)` before it is kept."""
        if not self.flying:
            return False
        at = dice.randrange(len(self.flying))
        epoch, offset, content, skew_ms = self.flying[at]
        if dice.random() < 0.8:
            del self.flying[at]
        copy = self.copies.setdefault(epoch, bytearray())
        if offset == len(copy):  # anything else is JOURNAL_OFFSET
            note(epoch, skew_ms)
            copy += content
        return True

    def complete(self, node: SimNode) -> None:
        """The node is back and sends the rest of a dead epoch, to the last byte."""
        self.copies[node.epoch] = bytearray(node.disk)
        self.flying = [chunk for chunk in self.flying if chunk[0] != node.epoch]
