"""How much one key may call: calls a second (a token bucket) and calls in hand. One node's count; several nodes each
have their own.

A short call is answered in the turn of the event loop that it came in: it counts against the rate and is refused while
the key has its fill of calls in hand, but is never in hand itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil

from serving.errors import concurrency_limited, rate_limited
from serving.ports import KeyLimits, Principal

MAX_KEYS = 10_000


class _Key:
    """What one key has done. `tokens` as of `at`; `own` are the limits that these were worked out from."""

    __slots__ = ("at", "burst", "concurrency", "in_hand", "own", "rate", "tokens")

    def __init__(self, own: KeyLimits, node: KeyLimits, now: float) -> None:
        self.in_hand = 0
        self.set(own, node)
        self.tokens, self.at = float(self.burst), now

    def set(self, own: KeyLimits, node: KeyLimits) -> None:
        self.own = own
        self.rate = tighter(own.rate_per_s, node.rate_per_s)
        self.burst = tighter(own.burst, node.burst) or self.rate
        self.concurrency = tighter(own.concurrency, node.concurrency)


class CallLimits:
    """The limits of a node's keys: a key's own and the node's, whichever is tighter. Event loop only."""

    def __init__(self, node: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` in seconds."""
        self._node = node
        self._clock = clock
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    def take(self, principal: Principal) -> None:
        """Count a call that is answered at once. Raises `TooMany` RATE_LIMITED, CONCURRENCY_LIMITED."""
        key = self._keys.get(principal.key_id)
        if key is not None or principal.limits.rate_per_s or self._node.rate_per_s:
            self._take(principal)

    def enter(self, principal: Principal) -> Callable[[], None]:
        """Count a call that takes its time until what this answers is called, once. Raises as `take` does."""
        key = self._take(principal)
        key.in_hand += 1

        def leave() -> None:
            key.in_hand -= 1
            if not key.in_hand and not key.rate:
                self._keys.pop(principal.key_id, None)

        return leave

    def _take(self, principal: Principal) -> _Key:
        now = self._clock()
        key = self._keys.get(principal.key_id)
        if key is None:
            key = self._keys[principal.key_id] = _Key(principal.limits, self._node, now)
            self._forget_idle()
        else:
            self._keys.move_to_end(principal.key_id)
            if key.own is not principal.limits:
                key.set(principal.limits, self._node)
        if key.concurrency and key.in_hand >= key.concurrency:
            raise concurrency_limited(key.concurrency)
        if key.rate:
            key.tokens = min(key.burst, key.tokens + (now - key.at) * key.rate)
            key.at = now
            if key.tokens < 1:
                raise rate_limited(key.rate, key.burst, ceil((1 - key.tokens) / key.rate))
            key.tokens -= 1
        return key

    def _forget_idle(self) -> None:
        """Bounded: who has not called for longest starts anew with a full bucket. Calls in hand are never forgotten."""
        if len(self._keys) > MAX_KEYS:
            idle = next((name for name, key in self._keys.items() if not key.in_hand), None)
            if idle is not None:
                del self._keys[idle]


def tighter(one: int, other: int) -> int:
    """The smaller of two limits, of which 0 means none."""
    return min(one, other) if one and other else one or other
