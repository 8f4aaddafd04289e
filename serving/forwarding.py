"""One request passed on to another process of the same market, bodies streamed both ways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx

from serving.asgi import Send
from serving.bodies import Disconnected, Message, Receive
from serving.connected import while_connected
from serving.errors.node import process_away

_log = logging.getLogger("algomart.forwarding")
HOP = b"x-algomart-hop"  # the secret of this start: a sibling passed this request of a caller on
ASK = b"x-algomart-ask"  # the same, where the sibling asks for itself
CLIENT = b"x-algomart-client"  # the address that the sibling saw
_OWN_TO_A_CONNECTION = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        HOP,
        ASK,
        CLIENT,
    )
)


class Forward:
    """An ASGI application: everything goes to `url`, with the caller's own Host and address.

    Raises `Unavailable` where that process does not answer and nothing was answered yet.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._secret = secret.encode()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx.AsyncClient(
            base_url=url, timeout=httpx.Timeout(None, connect=5), limits=limits, trust_env=False
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] not in _OWN_TO_A_CONNECTION]
        headers += [(HOP, self._secret), (CLIENT, (scope.get("client") or ("",))[0].encode())]
        sent = dict(scope["headers"])
        has_body = b"transfer-encoding" in sent or sent.get(b"content-length", b"0") != b"0"
        target = scope.get("raw_path") or scope["path"].encode()
        if scope.get("query_string"):
            target += b"?" + scope["query_string"]
        begun = [False]
        body = _Body(receive, has_body)
        request = self.http.build_request(
            scope["method"],
            httpx.URL(self.http.base_url.join("/"), raw_path=target),
            headers=headers,
            content=body.chunks() if has_body else None,
        )
        try:
            await while_connected(self._pass(request, send, begun), body.after)
        except (Disconnected, httpx.StreamError):
            return
        except httpx.HTTPError as error:
            _log.warning("%s could not be passed on: %s", scope["path"], error)
            if not begun[0]:
                raise process_away() from error

    async def _pass(self, request: httpx.Request, send: Send, begun: list[bool]) -> None:
        answer = await self.http.send(request, stream=True)
        try:
            headers = [pair for pair in answer.headers.raw if pair[0].lower() not in _OWN_TO_A_CONNECTION]
            begun[0] = True
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


class _Body:
    """A request's body as it comes; then what else there is to hear of the client: that it has gone."""

    def __init__(self, receive: Receive, has_body: bool) -> None:
        self._receive = receive
        self._ended = asyncio.Event()
        if not has_body:
            self._ended.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            if message.get("body"):
                yield message["body"]
            more = message.get("more_body", False)
        self._ended.set()

    async def after(self) -> Message:
        """What comes after the body."""
        await self._ended.wait()
        return await self._receive()
