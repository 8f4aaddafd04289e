"""Several processes behind one port: who answers what, so that a caller cannot tell them from one.

Each takes the calls that the kernel deals it. Two things belong to one process alone: a key of idempotency (its hash
says whose it is, so that two calls with one key always meet) and, with the first process, what is no call of a model.
"""

from __future__ import annotations

import hmac
import logging
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import httpx

from serving.app import Asgi
from serving.expositions import join_expositions
from serving.forwarding import CLIENT, HOP, Forward
from serving.protocols.openai import is_openai_path

_log = logging.getLogger("algomart.siblings")
METRICS_S = 5.0
FIRST = 0


class ProcessGroup:
    """Implements `serving.app.Siblings` for process `number` of those that answer privately at `urls`."""

    def __init__(
        self,
        number: int,
        urls: Sequence[str],
        nodes: Sequence[str],
        secret: str,
        before_stop: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`nodes`: their names, for the metrics. `secret`: what they know each other by, new at each start."""
        self.number, self.nodes = number, nodes
        self._secret = secret.encode()
        self._forward = [Forward(url, secret) for url in urls]
        self._before_stop = before_stop

    def way_of(self, scope: MutableMapping[str, Any]) -> Asgi | None:
        """See the port. A request that a sibling has passed on is answered here, with the address the sibling saw."""
        if self.is_from_one(scope):
            if not scope.get("algomart.client"):
                address = next((value for name, value in scope["headers"] if name == CLIENT), b"").decode("latin-1")
                scope["client"], scope["algomart.client"] = (address, 0), True
            return None
        path = scope["path"]
        if not _is_call(path):
            return self._forward[FIRST] if self.number != FIRST and path != "/metrics" else None
        key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
        if key is None or scope["method"] != "POST":
            return None
        owner = zlib.crc32(key) % len(self._forward)
        return None if owner == self.number else self._forward[owner]

    def is_from_one(self, scope: MutableMapping[str, Any]) -> bool:
        """See the port."""
        given = next((value for name, value in scope["headers"] if name == HOP), None)
        return given is not None and hmac.compare_digest(given, self._secret)

    async def metrics(self, own: bytes) -> bytes:
        """See the port. One that does not answer just now is left out: its absence shows in `algomart_up_seconds`."""
        texts = {self.nodes[self.number]: own.decode()}
        for number, (node, forward) in enumerate(zip(self.nodes, self._forward, strict=True)):
            if number != self.number:
                try:
                    headers = {HOP.decode(): self._secret.decode()}
                    answer = await forward.http.get("/metrics", headers=headers, timeout=METRICS_S)
                    answer.raise_for_status()
                    texts[node] = answer.text
                except httpx.HTTPError as error:
                    _log.warning("no metrics of %s just now: %s", node, error)
        return join_expositions(texts).encode()

    async def before_stop(self) -> None:
        """See the port."""
        if self._before_stop is not None:
            await self._before_stop()


def _is_call(path: str) -> bool:
    """What every process answers by itself: calls of models and what is told about them."""
    if path.startswith("/v2"):
        return path != "/v2/health/ready"  # tells of the ledger, too
    return path.startswith("/v1/use/") or is_openai_path(path)
