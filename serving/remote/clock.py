"""What this node's clock is off the market's, learnt from every answer of the market."""

from __future__ import annotations

import logging
from collections.abc import Callable

NOW_HEADER = "x-algomart-now-ms"  # the market's clock, in its answers to nodes
LIMIT_MS = 300_000
SLOW_MS = 10_000  # an answer that took longer says little about clocks (a long poll)
_log = logging.getLogger("algomart.remote")


class ClockOffset:
    """`offset_ms`: ahead of the market is positive. `on_skew` is called when it passes the limit, and not again before
    it has come back: leases that are held were granted by another clock."""

    def __init__(self, limit_ms: int = LIMIT_MS) -> None:
        self.offset_ms = 0
        self.on_skew: Callable[[], None] = lambda: None
        self._limit_ms = limit_ms
        self._skewed = False

    def learn(self, sent_ms: int, received_ms: int, told: str) -> None:
        """From one exchange, by this node's clock; `told` is the market's, "" where the answer has none.

        The market spoke at some moment between the two, so half of what lies between is what this may be wrong by.
        """
        if not told.isdigit() or not 0 <= received_ms - sent_ms <= SLOW_MS:
            return
        self.offset_ms = (sent_ms + received_ms) // 2 - int(told)
        skewed = abs(self.offset_ms) > self._limit_ms
        if skewed and not self._skewed:
            _log.error("this clock is %d ms off the market's: no lease that costs until it is set", self.offset_ms)
            self.on_skew()
        self._skewed = skewed
