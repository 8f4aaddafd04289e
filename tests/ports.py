"""A port to listen on. Below those that the system gives to outgoing connections (32768 and up on Linux): one of those
may be taken by anybody's connection between the look and the use."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 20_000, 32_000
_chance = random.SystemRandom()  # not a test's seed: two test processes would look at the same ones


def free_port() -> int:
    """One of loopback that nobody listens on."""
    for _ in range(200):
        port = _chance.randint(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {FIRST} to {LAST}")
