"""Several processes behind one port: who answers what, so that a caller cannot tell them from one.

Each takes the calls that the kernel deals it. Two things belong to one process alone: a key of idempotency (its hash
says whose it is, so that two calls with one key always meet) and, with the first process, what is no call of a model.
What they ask each other for themselves (metrics, figures, a gRPC call with such a key) goes under `/siblings`, with a
header that no caller's request is passed on with.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import httpx
import msgspec

from serving.app import ServingApp
from serving.asgi import ASKED, Asgi
from serving.errors.node import process_away
from serving.expositions import join_expositions
from serving.forwarding import ASK, CLIENT, HOP, Forward
from serving.orders import FIRST
from serving.protocols.openai import is_openai_path
from serving.remote.link import refusal_of

_log = logging.getLogger("algomart.siblings")
METRICS_S = 2.0
FIGURES_S = 2.0


class ProcessGroup:
    """Implements `serving.asgi.Siblings`, `serving.joined.Elsewhere` and `serving.orders.Others` for process `number`
    of those that answer privately at `urls`."""

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
        self._others = [place for place in range(len(urls)) if place != number]
        self._asking = {ASK.decode(): secret}
        self._now = httpx.Client(trust_env=False, timeout=FIGURES_S)
        self._urls = list(urls)
        self._before_stop = before_stop

    def join(self, app: ServingApp) -> None:
        """Make the process that `app` answers in one of them."""
        app.siblings = app.dataplane.joined.elsewhere = app.dataplane.orders.others = self

    def way_of(self, scope: MutableMapping[str, Any]) -> Asgi | None:
        """See the port. A request that a sibling has passed on is answered here, with the address the sibling saw."""
        if self._carries(HOP, scope):
            if not scope.get("algomart.client"):
                address = next((value for name, value in scope["headers"] if name == CLIENT), b"").decode("latin-1")
                scope["client"], scope["algomart.client"] = (address, 0), True
            return None
        path = scope["path"]
        if path.startswith(ASKED):
            return None  # for a sibling alone: a caller's must not be passed on as if it came from one
        if not _is_call(path):
            return self._forward[FIRST] if self.number != FIRST and path != "/metrics" else None
        key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
        if key is None or scope["method"] != "POST":
            return None
        owner = self._owner_of(key)
        return None if owner == self.number else self._forward[owner]

    def is_from_one(self, scope: MutableMapping[str, Any]) -> bool:
        """See the port."""
        return self._carries(ASK, scope)

    def is_elsewhere(self, key: bytes) -> bool:
        """See the port."""
        return self._owner_of(key) != self.number

    async def ask_owner(
        self, key: bytes, what: str, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """See the port."""
        http = self._forward[self._owner_of(key)].http
        try:
            answer = await http.post(f"{ASKED}{what}", headers={**headers, **self._asking}, content=content)
        except httpx.HTTPError as error:
            _log.warning("%s could not be asked of another process: %s", what, error)
            raise process_away() from error
        return answer.status_code, answer.headers, answer.content

    async def ask_one(self, number: int, what: str, content: bytes, timeout_s: float) -> bytes:
        """See `serving.orders.Others`."""
        http = self._forward[number].http
        try:
            answer = await http.post(f"{ASKED}{what}", headers=self._asking, content=content, timeout=timeout_s)
        except httpx.HTTPError as error:
            _log.warning("%s could not be asked of %s: %r", what, self.nodes[number], error)
            raise process_away() from error
        if answer.status_code != 200:
            raise refusal_of(answer.status_code, answer.content)
        return answer.content

    async def ask(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        """See `serving.joined.Elsewhere`."""
        content = msgspec.json.encode(query)
        told = await asyncio.gather(*(self._ask(number, what, content) for number in self._others))
        return [each for each in told if each is not None]

    def ask_now(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        """See `serving.joined.Elsewhere`."""
        content, told = msgspec.json.encode(query), []
        for number in self._others:
            try:
                answer = self._now.post(f"{self._urls[number]}{ASKED}{what}", headers=self._asking, content=content)
                answer.raise_for_status()
                told.append(answer.content)
            except httpx.HTTPError as error:
                _log.warning("no %s of %s just now: %s", what, self.nodes[number], error)
        return told

    async def metrics(self, own: bytes) -> bytes:
        """See the port. One that does not answer just now is left out: its absence shows in `algomart_up_seconds`."""
        texts = {self.nodes[self.number]: own.decode()}
        for number, (node, forward) in enumerate(zip(self.nodes, self._forward, strict=True)):
            if number != self.number:
                try:
                    answer = await forward.http.get("/metrics", headers=self._asking, timeout=METRICS_S)
                    answer.raise_for_status()
                    texts[node] = answer.text
                except httpx.HTTPError as error:
                    _log.warning("no metrics of %s just now: %s", node, error)
        return join_expositions(texts).encode()

    def _owner_of(self, key: bytes) -> int:
        return zlib.crc32(key) % len(self._forward)

    def _carries(self, header: bytes, scope: MutableMapping[str, Any]) -> bool:
        given = next((value for name, value in scope["headers"] if name == header), None)
        return given is not None and hmac.compare_digest(given, self._secret)

    async def _ask(self, number: int, what: str, content: bytes) -> bytes | None:
        try:
            answer = await self._forward[number].http.post(
                f"{ASKED}{what}", headers=self._asking, content=content, timeout=FIGURES_S
            )
            answer.raise_for_status()
            return answer.content
        except httpx.HTTPError as error:
            _log.warning("no %s of %s just now: %s", what, self.nodes[number], error)
            return None

    async def before_stop(self) -> None:
        """See the port."""
        if self._before_stop is not None:
            await self._before_stop()


def _is_call(path: str) -> bool:
    """What every process answers by itself: calls of models and what is told about them."""
    if path.startswith("/v2"):
        return path != "/v2/health/ready"  # tells of the ledger, too
    return path.startswith(("/v1/use/", "/v1/drift/")) or is_openai_path(path)
