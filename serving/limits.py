"""How much one key may call: calls a second (a token bucket) and calls in hand. The processes behind one port count
together (`serving.key_counts`); nodes elsewhere each have their own count.

A short call is answered in the turn of the event loop that it came in: it counts against the rate and is refused while
the key has its fill of calls in hand, but is never in hand itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil

from serving.errors.node import concurrency_limited, rate_limited
from serving.key_counts import SECOND_NS, KeyCounts, name_of
from serving.ports import KeyLimits, Principal

MAX_KEYS = 10_000


class _Key:
    """One key here: what it may, where it is counted, and what of it this process has in hand."""

    __slots__ = ("burst", "concurrency", "counts", "in_hand", "name", "own", "rate", "row")

    def __init__(self, principal: Principal, node: KeyLimits) -> None:
        self.name = name_of(principal.key_id)
        self.in_hand = 0
        self.counts: KeyCounts | None = None
        self.row = -1
        self.set(principal.limits, node)

    def set(self, own: KeyLimits, node: KeyLimits) -> None:
        """`own`: the limits that the others are worked out from."""
        self.own = own
        self.rate = tighter(own.rate_per_s, node.rate_per_s)
        self.burst = tighter(own.burst, node.burst) or self.rate
        self.concurrency = tighter(own.concurrency, node.concurrency)


class CallLimits:
    """The limits of a node's keys: a key's own and the node's, whichever is tighter. Event loop only."""

    def __init__(
        self, node: KeyLimits, clock: Callable[[], float] = time.monotonic, counts: KeyCounts | None = None
    ) -> None:
        """`clock` in seconds, the same for all processes that share `counts`."""
        self._node = node
        self._clock = clock
        self.counts = counts or KeyCounts()
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    def take(self, principal: Principal) -> None:
        """Count a call that is answered at once. Raises `TooMany` RATE_LIMITED, CONCURRENCY_LIMITED."""
        own = principal.limits
        if own.rate_per_s or own.concurrency or self._node.rate_per_s or principal.key_id in self._keys:
            key, counts = self._key_of(principal)
            if key.concurrency and counts.in_hand(key.row) >= key.concurrency:
                raise concurrency_limited(key.concurrency)
            self._take_rate(key, counts)

    def enter(self, principal: Principal) -> Callable[[], None]:
        """Count a call that takes its time until what this answers is called, once. Raises as `take` does."""
        key, counts = self._key_of(principal)
        row = key.row
        counts.add(row, 1)  # before looking: of two processes that see one place left, both may not take it
        if key.concurrency and counts.in_hand(row) > key.concurrency:
            counts.add(row, -1)
            raise concurrency_limited(key.concurrency)
        try:
            self._take_rate(key, counts)
        except BaseException:
            counts.add(row, -1)
            raise
        key.in_hand += 1

        def leave() -> None:
            key.in_hand -= 1
            counts.add(row, -1)
            if not key.in_hand and not key.rate:
                self._keys.pop(principal.key_id, None)

        return leave

    def _key_of(self, principal: Principal) -> tuple[_Key, KeyCounts]:
        """The key, standing in a row of the counts."""
        key = self._keys.get(principal.key_id)
        if key is None:
            key = self._keys[principal.key_id] = _Key(principal, self._node)
            self._forget_idle()
        else:
            self._keys.move_to_end(principal.key_id)
            if key.own is not principal.limits:
                key.set(principal.limits, self._node)
        counts = key.counts
        if counts is None or not counts.is_of(key.row, key.name):  # the row was another's while this key was idle
            now_ns = int(self._clock() * SECOND_NS)
            counts, key.row = self.counts, self.counts.row_of(key.name, now_ns)
            if key.row < 0:  # thousands of keys at once: this one is counted in this process alone
                counts = KeyCounts(rows=1)
                key.row = counts.row_of(key.name, now_ns)
            key.counts = counts
        return key, counts

    def _take_rate(self, key: _Key, counts: KeyCounts) -> None:
        if key.rate:
            wait_ns = counts.take(key.row, key.rate, key.burst, int(self._clock() * SECOND_NS))
            if wait_ns:
                raise rate_limited(key.rate, key.burst, ceil(wait_ns / SECOND_NS))

    def _forget_idle(self) -> None:
        """Bounded: who has not called for longest starts anew with a full bucket. Calls in hand are never forgotten."""
        if len(self._keys) > MAX_KEYS:
            idle = next((name for name, key in self._keys.items() if not key.in_hand), None)
            if idle is not None:
                del self._keys[idle]


def tighter(one: int, other: int) -> int:
    """The smaller of two limits, of which 0 means none."""
    return min(one, other) if one and other else one or other
