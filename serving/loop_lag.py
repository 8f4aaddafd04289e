"""How late the event loop is: a timer that comes due twenty times a second, and by how much each time it was missed.

Whatever holds the loop (a long callback, another thread with the interpreter, a machine without a core to spare) shows
here, and every call waits for it as long. A histogram in `/metrics`.

A loop that is late by a second or more stood still (the process was stopped, the machine paused): whoever bounds what
others may take by the clock is told, because in that time nobody was served.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable

PERIOD_S = 0.05
STOOD_STILL_S = 1.0
BUCKETS_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0)
NAME = "algomart_event_loop_lag_ms"


class LoopLag:
    """Between `start` and `stop`, on the loop that it watches. Milliseconds."""

    def __init__(self, stood_still: Callable[[float], None] = lambda seconds: None) -> None:
        """`stood_still` is called with the seconds of a standstill, before the timers that came due in it."""
        self._stood_still = stood_still
        self.buckets = [0] * (len(BUCKETS_MS) + 1)
        self.count = 0
        self.sum_ms = self.max_ms = 0.0
        self._due = self._told_ms = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Tell of a standstill that has just ended. What there is to read may come before the timer: whoever judges
        calls by the clock looks first."""
        late_s = time.perf_counter() - self._due
        if late_s >= STOOD_STILL_S and self._timer is not None:
            self._due += late_s
            self._told_ms += late_s * 1000
            self._stood_still(late_s)

    def record(self, lag_ms: float) -> None:
        """Count one lateness."""
        self.buckets[bisect_left(BUCKETS_MS, lag_ms)] += 1
        self.count += 1
        self.sum_ms += lag_ms
        self.max_ms = max(self.max_ms, lag_ms)

    def prometheus(self) -> bytes:
        """The histogram and the largest value since the start, as Prometheus text."""
        lines = [f"# TYPE {NAME} histogram"]
        below = 0
        for bound, count in zip(BUCKETS_MS, self.buckets, strict=False):
            below += count
            lines.append(f'{NAME}_bucket{{le="{bound:g}"}} {below}')
        lines += [
            f'{NAME}_bucket{{le="+Inf"}} {self.count}',
            f"{NAME}_sum {self.sum_ms:.3f}",
            f"{NAME}_count {self.count}",
            f"# TYPE {NAME}_max gauge",
            f"{NAME}_max {self.max_ms:.3f}",
        ]
        return ("\n".join(lines) + "\n").encode()

    def _arm(self) -> None:
        assert self._loop is not None
        self._due = time.perf_counter() + PERIOD_S  # not the loop's clock: uvloop's stands still between two turns
        self._timer = self._loop.call_later(PERIOD_S, self._came)

    def _came(self) -> None:
        self.look()
        self.record(max(0.0, time.perf_counter() - self._due) * 1000 + self._told_ms)
        self._told_ms = 0.0
        self._arm()
