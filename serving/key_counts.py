"""What each key has in hand and has used up of its rate, in a table that several processes may share.

One row for a key: who it is, the instant up to which its rate is used up, and for each process the calls that it has in
hand. A process writes only its own column, so calls in hand need no lock: it adds first and then looks at the sum. The
instant is everybody's: it is changed under a lock of that row. Who holds it needs a microsecond, but may be kept from
running meanwhile; after a millisecond a call goes by what it reads, and is not counted itself. A lock of a process that
has died is gone with it, and its column is cleared by whoever started it.

The rate is the generic cell rate algorithm (ITU-T I.371): a token bucket of which one instant is all there is to keep.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Iterator

ROWS = 16_384
LOOKED_AT = 32  # rows from a key's own place on where it may stand
LOCK_WAIT_S = 0.001
SECOND_NS = 1_000_000_000
_KEY, _USED_UP, _IN_HAND = 0, 1, 2  # cells of a row; from the last on one for each process


class KeyCounts:
    """The table as process `number` of `processes` uses it. One thread of it at a time."""

    def __init__(self, processes: int = 1, number: int = 0, descriptor: int = -1, rows: int = ROWS) -> None:
        """`descriptor`: of the memory that they share (`shared_memory`); -1: this process's own."""
        self._processes, self._number, self._descriptor, self._rows = processes, number, descriptor, rows
        self._width = _IN_HAND + processes
        self._cells = memoryview(mmap.mmap(descriptor, rows * self._width * 8)).cast("q")

    @staticmethod
    def shared_memory(processes: int) -> int:
        """A descriptor of zeroed memory for so many processes, to be inherited by them."""
        descriptor = os.memfd_create("algomart-keys")
        os.ftruncate(descriptor, ROWS * (_IN_HAND + processes) * 8)
        return descriptor

    def row_of(self, key: int, now_ns: int) -> int:
        """Where a key (`name_of`) stands; a row that is free, or says nothing any more, is taken for it. -1: none."""
        found = self._find(key)
        if found >= 0:
            return found
        with self._lock(self._rows):
            found = self._find(key)
            if found < 0:
                found = next((row for row in self._places(key) if self._says_nothing(row, now_ns)), -1)
                if found >= 0:
                    self._cells[found + _USED_UP] = 0
                    self._cells[found + _KEY] = key
        return found

    def is_of(self, row: int, key: int) -> bool:
        """Whether the row is still that key's."""
        return self._cells[row + _KEY] == key

    def take(self, row: int, rate_per_s: int, burst: int, now_ns: int) -> int:
        """Take one call of the key's rate: 0; or the nanoseconds until there is one to take, and nothing was taken."""
        interval = -(-SECOND_NS // rate_per_s)
        with self._lock(row // self._width) as held:
            used_up = max(self._cells[row + _USED_UP], now_ns)
            wait = used_up - now_ns - (burst - 1) * interval
            if wait > 0:
                return wait
            if held:
                self._cells[row + _USED_UP] = used_up + interval
        return 0

    def in_hand(self, row: int) -> int:
        """Calls of the key in hand, of all processes."""
        return sum(self._cells[row + _IN_HAND : row + self._width])

    def add(self, row: int, calls: int) -> None:
        """So many more (negative: fewer) in hand in this process."""
        self._cells[row + _IN_HAND + self._number] += calls

    def clear(self, number: int) -> None:
        """That process has ended: nothing is in hand there."""
        for cell in range(_IN_HAND + number, self._rows * self._width, self._width):
            if self._cells[cell]:
                self._cells[cell] = 0

    def _find(self, key: int) -> int:
        return next((row for row in self._places(key) if self._cells[row + _KEY] == key), -1)

    def _places(self, key: int) -> Iterator[int]:
        for place in range(min(LOOKED_AT, self._rows)):
            yield (key + place) % self._rows * self._width

    def _says_nothing(self, row: int, now_ns: int) -> bool:
        """A row without a key, or of one that would be told the same by an empty row."""
        if not self._cells[row + _KEY]:
            return True
        return self._cells[row + _USED_UP] <= now_ns and not any(self._cells[row + _IN_HAND : row + self._width])

    @contextlib.contextmanager
    def _lock(self, place: int) -> Iterator[bool]:
        """A byte of the shared memory's own, `place`, held against the other processes; False: it could not be had."""
        alone = self._processes == 1
        held = alone or self._have_lock(place)
        try:
            yield held
        finally:
            if held and not alone:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    def _have_lock(self, place: int) -> bool:
        until = 0.0
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                return True
            except OSError:
                now = time.monotonic()
                until = until or now + LOCK_WAIT_S
                if now > until:
                    return False
                os.sched_yield()  # whoever holds it may wait for this very core


def name_of(key_id: str) -> int:
    """A key as the table knows it: 63 bits of BLAKE2b, never 0."""
    return int.from_bytes(hashlib.blake2b(key_id.encode(), digest_size=8).digest()) >> 1 or 1
