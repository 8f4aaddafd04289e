"""gRPC callers that do not read what they are sent: they hold a place, and the answer in memory.

gRPC keeps what flow control holds back for as long as the connection lives, and offers a handler no way to reset its
stream: ending the call would only queue a status behind the answer. So the whole connection is closed, as HTTP's is;
whatever else its caller had in hand there ends with it. Time in which this process itself stood still counts against
nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

LEAST_BYTES_PER_S = 128 << 10  # how fast a long answer must be read, beside the time that any has
LOOK_S = 1.0
STEP_S = 2.0  # between two looks, at most; what is more, this process stood still
MAPPED = "::ffff:"  # how an IPv6 socket, which gRPC's is, names an IPv4 address
DESCRIPTORS = "/proc/self/fd"
_log = logging.getLogger("algomart.grpc")


class SlowReaders:
    """The messages that are being sent, and for how long. Event loop only."""

    def __init__(
        self, send_timeout_s: float, port: Callable[[], int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`port`: the one that gRPC listens on. `clock` in seconds."""
        self._send_s, self._port, self._clock = send_timeout_s, port, clock
        self._looked_at, self._now = clock(), 0.0
        self._sending: dict[object, tuple[str, float]] = {}
        self.closed = 0

    @contextmanager
    def sending(self, peer: str, size: int) -> Iterator[None]:
        """Around the sending of `size` bytes to `peer`, as gRPC names it (`ipv4:127.0.0.1:50000`)."""
        mark = object()
        self._sending[mark] = (peer, self._now + self._send_s + size / LEAST_BYTES_PER_S)
        try:
            yield
        finally:
            del self._sending[mark]

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Close the connections of callers that are overdue."""
        at = self._clock()
        self._now += min(at - self._looked_at, STEP_S)
        self._looked_at = at
        overdue = {peer for peer, until in self._sending.values() if self._now > until}
        if overdue:
            closed = close_connections(overdue, self._port())
            self.closed += closed
            _log.warning("%d gRPC connections closed: their callers did not read", closed)


def close_connections(peers: set[str], port: int) -> int:
    """Close this process's connections on `port` to these peers; says how many."""
    addresses = {_address_of(peer) for peer in peers}
    closed = 0
    for name in os.listdir(DESCRIPTORS):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                host, peer_port = connection.getpeername()[:2]
                if connection.getsockname()[1] == port and (host.removeprefix(MAPPED), peer_port) in addresses:
                    connection.shutdown(socket.SHUT_RDWR)
                    closed += 1
        except OSError:  # closed meanwhile, or one that listens
            continue
    return closed


def _address_of(peer: str) -> tuple[str, int]:
    """`ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000` → host and port."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]").removeprefix(MAPPED), int(port) if port.isdigit() else 0
