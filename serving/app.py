"""The ASGI application of a serving node: `/v2/**`, `/v1/**`, `/metrics` here, before any framework; the rest inside.

It authenticates, bounds and decompresses bodies, chooses the skin, renders refusals in that skin's shape, and drops
work whose caller has gone. `serving.http_protocol` answers small infer requests without coming here at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from model_store.errors import Refusal
from serving.access_log import AccessLog
from serving.asgi import ASKED, PASSED_RPC, Asgi, Companion, Scope, Send, Siblings, Skin
from serving.bodies import DECOMPRESS_IN_THREAD_BYTES, BodyRoom, Disconnected, Message, Receive, decompress, read_body
from serving.connected import send_stream, while_connected
from serving.dataplane import DataPlane
from serving.errors.access import key_missing
from serving.errors.node import bodies_full, internal_error, uploads_full
from serving.errors.rendering import native_error_body, oip_error_body, refusal_text
from serving.errors.requests import no_such_path
from serving.heads import request_id_of
from serving.keyless import check_own_machine
from serving.messages import JSON_TYPE, Request, Response, json_response
from serving.metrics_page import metrics_page
from serving.observed import CODE, PRINCIPAL, Observed
from serving.orders import ASKS as ORDERS
from serving.ports import Ports, Principal
from serving.protocols.oip import OpenInference
from serving.protocols.openai import OpenAI, is_openai_path, openai_error_body
from serving.protocols.triton_compat import triton_text

_log = logging.getLogger("algomart.serving")
TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
UPLOAD_PATHS = ("/v1/sample-sets",)
JOIN_IN_THREAD_BYTES = 8 << 20  # what is copied in a millisecond or two


class ServingApp:
    """Raw ASGI. `inner` gets every other path, and the lifespan after the data plane's own start."""

    def __init__(
        self, dataplane: DataPlane, ports: Ports, inner: Asgi | None = None, native: Skin | None = None
    ) -> None:
        self.dataplane, self.ports, self.inner = dataplane, ports, inner
        try:
            version = importlib.metadata.version("algomart")
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            version = "0"
        self.oip = OpenInference(dataplane, ports, version)
        self.refusal_text = triton_text if dataplane.settings.triton_compat else refusal_text
        self.oip_error_body = functools.partial(oip_error_body, text=self.refusal_text)
        self.anonymous: Principal | None = None  # who calls without a key; only a node on loopback has one
        self.openai = OpenAI(dataplane, ports)
        self.native = native if native is not None else _native(dataplane, ports)
        self._uploads = BodyRoom(dataplane.settings.max_samples_in_all_bytes, uploads_full)
        self.bodies = BodyRoom(dataplane.settings.max_bodies_in_all_bytes, bodies_full)
        self.stopping = False  # the server drains: what comes is answered still, but nobody should send more
        # Beside the data plane's own readiness; the market sets it once its catalogue is open.
        self.ready: Callable[[], bool] = lambda: True
        self.companion: Companion | None = None
        self.siblings: Siblings | None = None  # other processes behind the same port
        target = dataplane.settings.access_log
        self.access_log = AccessLog(target) if target else None
        # What the market adds to the answer of `/v2/health/ready`, and to `/metrics`. From memory, or nearly.
        self.standing: Callable[[], dict[str, Any]] = dict
        self.gauges: Callable[[], dict[str, float]] = dict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            if self.siblings is not None and (elsewhere := self.siblings.way_of(scope)) is not None:
                await self._pass_on(elsewhere, scope, receive, send)
                return
            if self.access_log is not None or self.dataplane.tracing is not None:
                await Observed(self._dispatch, self.access_log, self.dataplane.tracing)(scope, receive, send)
            else:
                await self._dispatch(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif self.inner is not None:
            await self.inner(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the surface that the path belongs to."""
        path = scope["path"]
        if self.siblings is not None and path.startswith(ASKED) and self.siblings.is_from_one(scope):
            await self._tell_sibling(path.removeprefix(ASKED), scope, receive, send)
            return
        if path.startswith("/v2") and (len(path) == 3 or path[3] == "/"):
            await self._answer(self.oip, self.oip_error_body, scope, receive, send)
            return
        if is_openai_path(path):
            await self._answer(self.openai, openai_error_body, scope, receive, send)
            return
        if path.startswith("/v1/"):
            await self._answer(self.native, native_error_body, scope, receive, send)
            return
        if path == "/metrics":
            await self._metrics(scope, send)
            return
        if self.inner is not None:
            await self._pass_on(self.inner, scope, receive, send)
            return
        await self._refuse(send, no_such_path(path), native_error_body, request_id_of(dict(scope["headers"])))

    async def _pass_on(self, other: Asgi, scope: Scope, receive: Receive, send: Send) -> None:
        """To another application; a refusal that it raises before it has begun to answer is answered here."""
        try:
            await other(scope, receive, send)
        except Refusal as refusal:
            await self._refuse(send, refusal, native_error_body, request_id_of(dict(scope["headers"])))

    async def _tell_sibling(self, what: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer another process; a refusal is written for it to raise (`serving.remote.link.refusal_of`)."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = request_id_of(headers)
        try:
            with self.bodies.place() as take:
                body = await self._body(headers, receive, take, is_upload=False)
                if what == PASSED_RPC and self.companion is not None:
                    response = await while_connected(self.companion.answer_passed(headers, body), receive)
                elif what in ORDERS:
                    response = Response(200, await self.dataplane.orders.told(what, body), [JSON_TYPE])
                else:
                    told = self.dataplane.joined.told(what, orjson.loads(body))
                    response = Response(404) if told is None else Response(200, told, [JSON_TYPE])
        except Disconnected:
            return
        except Exception as error:
            if not isinstance(error, Refusal):
                _log.exception("unexpected error, request %s", request_id)
            refusal = error if isinstance(error, Refusal) else internal_error()
            response = Response(refusal.status, native_error_body(refusal, request_id), [JSON_TYPE])
        length = (b"content-length", str(len(response.body)).encode())
        await send({"type": "http.response.start", "status": response.status, "headers": [*response.headers, length]})
        await send({"type": "http.response.body", "body": response.body})

    # --- one request --------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        skin: Skin,
        error_body: Callable[[Refusal, str], bytes],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = request_id_of(headers)
        try:
            path = scope["path"]
            if path.startswith("/v2/health/"):
                response = self._health(path, scope["method"])
            else:
                principal = await self.authenticate(headers)
                scope[PRINCIPAL] = principal  # who it was, for the access log
                is_upload = path.startswith(UPLOAD_PATHS)
                with (self._uploads if is_upload else self.bodies).place() as take:
                    body = await self._body(headers, receive, take, is_upload)
                    request = Request(
                        scope["method"], path, scope.get("query_string", b""), headers, body, principal, request_id
                    )
                    response = await while_connected(skin.answer(request), receive)
            await self._send(send, response, request_id, receive)
        except Disconnected:
            return
        except Refusal as refusal:
            scope[CODE] = refusal.code
            await self._refuse(send, refusal, error_body, request_id)
        except Exception:
            _log.exception("unexpected error, request %s", request_id)
            await self._refuse(send, internal_error(), error_body, request_id)

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Principal:
        """The caller, by its key. Raises `Unauthenticated`, `Forbidden`, `Unavailable`."""
        if self.anonymous is not None and b"authorization" not in headers and b"x-api-key" not in headers:
            check_own_machine(headers)
            return self.anonymous
        return await self.dataplane.keys.principal_of(token_of(headers))

    async def _body(
        self, headers: Mapping[bytes, bytes], receive: Receive, take: Callable[[int], None], is_upload: bool
    ) -> bytes:
        """The body, decompressed; `take` is what it takes its room with."""
        settings = self.dataplane.settings
        limit = settings.max_samples_bytes if is_upload else settings.max_body_bytes
        parts = await read_body(receive, headers, limit, take, settings.receive_timeout_s)
        if len(parts) == 1:
            body = parts[0]
        elif sum(map(len, parts)) > JOIN_IN_THREAD_BYTES:
            body = await self.dataplane.in_thread(b"".join, parts)
        else:
            body = b"".join(parts)
        del parts
        encoding = headers.get(b"content-encoding")
        if encoding is None or not body:
            return body
        name = encoding.decode("latin-1")
        if len(body) > DECOMPRESS_IN_THREAD_BYTES:
            content = await self.dataplane.in_thread(decompress, body, name, limit)
        else:
            content = decompress(body, name, limit)
        take(len(content))
        return content

    def _health(self, path: str, method: str) -> Response:
        if method not in ("GET", "HEAD") or path not in ("/v2/health/live", "/v2/health/ready"):
            raise no_such_path(path)
        if path.endswith("/ready"):
            ready = self.is_ready()
            return json_response({"ready": ready, **self.standing()}, 200 if ready else 503)
        return Response(200)

    def is_ready(self) -> bool:
        """Calls can be taken: they can be journalled, and the market says so too."""
        if self.stopping:
            return False
        try:
            self.dataplane.journal.check_ready()
            return self.ready()
        except Refusal:
            return False

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send(self, send: Send, response: Response, request_id: str, receive: Receive) -> None:
        self.dataplane.statistics.answered(response.status)
        headers = [*response.headers, (b"x-request-id", request_id.encode())]
        if response.stream is None:
            headers.append((b"content-length", str(len(response.body)).encode()))
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        with contextlib.suppress(Disconnected):
            await while_connected(send_stream(send, response.stream), receive)

    async def _refuse(
        self, send: Send, refusal: Refusal, error_body: Callable[[Refusal, str], bytes], request_id: str
    ) -> None:
        body, headers = self.refusal_parts(refusal, error_body, request_id)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal_parts(
        self, refusal: Refusal, error_body: Callable[[Refusal, str], bytes], request_id: str
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Body and headers of a refusal, counted in the statistics; its frames are let go."""
        refusal.forget_frames()
        statistics = self.dataplane.statistics
        statistics.refused(refusal.code)
        statistics.answered(refusal.status)
        headers = [JSON_TYPE, (b"x-request-id", request_id.encode())]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
        for name, value in refusal.details.get("ratelimit", {}).items():
            headers.append((b"ratelimit-" + name.encode(), str(value).encode()))
        if refusal.status == 405:
            headers.append((b"allow", refusal.details["allow"].encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="algomart"'))
        return error_body(refusal, request_id), headers

    async def _metrics(self, scope: Scope, send: Send) -> None:
        body = await metrics_page(self, scope)
        if body is None:
            headers: dict[bytes, bytes] = dict(scope["headers"])
            await self._refuse(send, no_such_path("/metrics"), native_error_body, request_id_of(headers))
            return
        headers_out = [TEXT_TYPE, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers_out})
        await send({"type": "http.response.body", "body": body})

    # --- life ---------------------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The data plane starts before `inner` and stops before it too, so that its last usage can be ingested."""

        async def receive_between() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.dataplane.start()
                await self.dataplane.orders.catch_up()
                if self.companion is not None:
                    await self.companion.start()
            elif message["type"] == "lifespan.shutdown":
                if self.companion is not None:
                    await self.companion.stop()
                await self.dataplane.stop()
                if self.access_log is not None:
                    self.access_log.close()
                if self.dataplane.tracing is not None:
                    await asyncio.to_thread(self.dataplane.tracing.close)
            return message

        if self.inner is not None:
            await self.inner(scope, receive_between, send)
            return
        while True:
            message = await receive_between()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def _native(dataplane: DataPlane, ports: Ports) -> Skin:
    from serving.protocols.native import NativeProtocol

    return NativeProtocol(dataplane, ports)


def token_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The key a request carries. Raises `Unauthenticated` KEY_MISSING where it carries none."""
    value = headers.get(b"authorization")
    if value is not None and value[:7].lower() == b"bearer ":
        return value[7:].strip()
    found = headers.get(b"x-api-key", b"").strip()
    if not found:
        raise key_missing()
    return found
