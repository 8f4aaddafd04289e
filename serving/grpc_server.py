"""gRPC beside HTTP: `grpc.aio` on the data plane's own event loop, with the same keys, limits and refusals.

Switched on by a port of its own; nothing of gRPC is imported otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from model_store.errors import Refusal
from serving.access_log import RUNS, AccessLog, Line, Runs, now_ms
from serving.errors.node import internal_error, port_in_use, rpcs_full, shutting_down
from serving.messages import Response
from serving.protocols.grpc_call import GrpcCall
from serving.protocols.grpc_messages import HEALTH, INFERENCE, Method, methods_of
from serving.protocols.grpc_service import OPEN_METHODS, GrpcInference
from serving.protocols.oip_extensions import METHODS_NOT_OFFERED, not_offered_by
from serving.slow_readers import SlowReaders
from serving.tracing import Tracing

if TYPE_CHECKING:
    from serving.app import ServingApp

GRACE_S = 10.0
# gRPC says CANCELLED to what it has read but not begun when it stops, which no client repeats; so new calls are refused
# as UNAVAILABLE for a moment before.
DRAIN_S = 0.5
KEEP_ALIVE_MS = 60_000  # a connection whose other end does not answer a ping is closed, and its calls end
STRANGERS = 64  # calls without a key (health) that may be in hand at once
_log = logging.getLogger("algomart.grpc")


class Places:
    """A bound on calls in hand, of all together and of each organisation."""

    def __init__(self, limit: int, per_owner: int) -> None:
        self._limit, self._per_owner = limit, per_owner
        self._held: Counter[str] = Counter()

    @contextmanager
    def take(self, owner: str) -> Iterator[None]:
        """A place until the end of the block. Raises `TooMany` RPCS_FULL."""
        if self._held.total() >= self._limit or self._held[owner] >= self._per_owner:
            raise rpcs_full()
        self._held[owner] += 1
        try:
            yield
        finally:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]


class GrpcServer:
    """The gRPC side of one node. `start` and `stop` belong to the data plane's event loop; `port` is the bound one."""

    def __init__(
        self, app: ServingApp, host: str, port: int, drain_s: float = DRAIN_S, *, shared: bool = False
    ) -> None:
        """`shared`: other processes of this market answer on the port too."""
        self._shared = shared
        self._app, self.host, self.port, self._drain_s = app, host, port, drain_s
        self._service = GrpcInference(app)
        settings = app.dataplane.settings
        self._calls = Places(settings.grpc_calls, max(1, settings.grpc_calls // 2))
        self._streams = Places(settings.grpc_streams, max(1, settings.grpc_streams // 4))
        self._strangers = Places(STRANGERS, STRANGERS)
        self._server: Any = None
        self.readers = SlowReaders(settings.send_timeout_s, lambda: self.port)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises `Conflict` PORT_IN_USE."""
        settings = self._app.dataplane.settings
        # Beyond what is refused with a code below, a flood is refused before anything is looked at.
        flood = 2 * (settings.grpc_calls + settings.grpc_streams + STRANGERS)
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),  # also of what it unpacks to
                ("grpc.max_send_message_length", -1),  # outputs have their own bound
                ("grpc.max_concurrent_streams", flood),
                ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
                # A second market on this port must fail, not take half of the calls; where processes of one market
                # share it, `serving.server.check_port` has seen to that before.
                ("grpc.so_reuseport", int(self._shared)),
            ],
            maximum_concurrent_rpcs=flood,
        )
        for service in (INFERENCE, HEALTH):
            methods = [(method.name, self._answer_of(service, method)) for method in methods_of(service)]
            if service == INFERENCE:
                methods += [(name, self._not_offered(name)) for name in METHODS_NOT_OFFERED]
            handlers = {name: self._handler(f"/{service}/{name}", answer) for name, answer in methods}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            server, self._server = self._server, None
            await server.stop(None)
            raise port_in_use(self.host, self.port, "ALGOMART_GRPC_PORT", str(error)) from error
        await self._server.start()
        self._watching = asyncio.create_task(self.readers.watch())

    async def stop(self) -> None:
        """Refuse new calls; waiting streams end; what runs is finished, within `GRACE_S`."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set_result(None)
        try:
            await asyncio.sleep(self._drain_s)
        finally:
            await server.stop(GRACE_S)
            if self._watching is not None:
                self._watching.cancel()

    async def answer_passed(self, headers: Mapping[bytes, bytes], content: bytes) -> Response:
        """See `serving.asgi.Companion`. Raises `Refusal`."""
        return await self._service.answer_passed(headers, await self._app.authenticate(headers), content)

    def _answer_of(self, service: str, method: Method) -> Callable[[GrpcCall], Awaitable[None]]:
        return self._health(method) if service == HEALTH else self._inference(method)

    def _handler(self, path: str, answer: Callable[[GrpcCall], Awaitable[None]]) -> Any:
        async def handle(_: Any, context: Any) -> None:
            call = GrpcCall(context, self._stopping, self.readers)
            log, tracing = self._app.access_log, self._app.dataplane.tracing
            with (
                nullcontext() if tracing is None else _traced(tracing, path, call),
                nullcontext() if log is None else _logged(log, path, call),
            ):
                await work(call)

        async def work(call: GrpcCall) -> None:
            try:
                await answer(call)
            except asyncio.CancelledError:
                call.has_gone = True
                raise
            except Refusal as refusal:
                self._refuse(call, refusal)
            except Exception:
                if call.is_over:
                    return
                _log.exception("unexpected error, request %s", call.request_id)
                self._refuse(call, internal_error())

        return grpc.stream_stream_rpc_method_handler(handle)

    def _inference(self, method: Method) -> Callable[[GrpcCall], Awaitable[None]]:
        service = self._service
        places = self._streams if method.streams else self._calls

        async def answer(call: GrpcCall) -> None:
            if method.name in OPEN_METHODS:
                with self._strangers.take(""):
                    await service.tell(method, call, None)
                return
            if call.is_stopping:
                raise shutting_down()
            principal = call.principal = await self._app.authenticate(call.headers)
            with places.take(principal.organisation):
                if method.name == "ModelInfer":
                    await service.infer(call, principal)
                elif method.streams:
                    await service.stream(call, principal)
                else:
                    await service.tell(method, call, principal)

        return answer

    def _not_offered(self, name: str) -> Callable[[GrpcCall], Awaitable[None]]:
        async def answer(call: GrpcCall) -> None:
            call.principal = await self._app.authenticate(call.headers)
            raise not_offered_by(name)

        return answer

    def _health(self, method: Method) -> Callable[[GrpcCall], Awaitable[None]]:
        work = self._service.watch if method.streams else self._service.check

        async def answer(call: GrpcCall) -> None:
            with self._strangers.take(""):
                await work(method, call)

        return answer

    def _refuse(self, call: GrpcCall, refusal: Refusal) -> None:
        statistics = self._app.dataplane.statistics
        statistics.refused(refusal.code)
        statistics.answered(refusal.status)
        refusal.forget_frames()
        call.refuse(refusal, self._app.refusal_text(refusal))


@contextmanager
def _traced(tracing: Tracing, path: str, call: GrpcCall) -> Iterator[None]:
    """A span for a call, or for a whole stream."""
    with tracing.rpc(path, call.headers) as span:
        try:
            yield
        finally:
            tracing.ended(span, call.status, call.code.value[0])


@contextmanager
def _logged(log: AccessLog, path: str, call: GrpcCall) -> Iterator[None]:
    """A line for a call, or for a whole stream, with the status that HTTP would have had; 0: the client had gone."""
    runs, began = Runs(), time.perf_counter()
    RUNS.set(runs)
    try:
        yield
    finally:
        line = Line(now_ms(), "gRPC", path, call.status, (time.perf_counter() - began) * 1000, call.request_id)
        if call.refused is not None:
            line.code = call.refused.code
        if call.principal is not None:
            line.key_id, line.organisation = call.principal.key_id, call.principal.organisation
        line.model, line.rows = runs.model, runs.rows
        line.queue_ms, line.compute_ms = runs.queue_ms, runs.compute_ms
        line.bytes_in, line.bytes_out = call.bytes_in, call.bytes_out
        log.add(line)
