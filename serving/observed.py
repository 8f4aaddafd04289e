"""A request on its ordinary way, with a line in the access log and a span around it, where these are on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.access_log import RUNS, AccessLog, Line, Runs, now_ms
from serving.bodies import Message, Receive
from serving.tracing import TRACE_ID, Tracing

PRINCIPAL = "algomart.principal"  # of the scope: who called, once that is known
CODE = "algomart.code"  # of the scope: of a refusal
Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
_MAX_PATH = 200


class Observed:
    """One request through `app`."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        log: AccessLog | None,
        tracing: Tracing | None,
    ) -> None:
        self._app, self._log, self._tracing = app, log, tracing
        self._status, self._bytes_in, self._bytes_out = 0, 0, 0
        self._answered: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def counted() -> Message:
            message = await receive()
            self._bytes_in += len(message.get("body", b""))
            return message

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                self._answered = {name.lower(): value for name, value in message.get("headers", ())}
            else:
                self._bytes_out += len(message.get("body", b""))
            await send(message)

        path, method = scope["path"][:_MAX_PATH], scope["method"]
        tracing = self._tracing
        span: Any = contextlib.nullcontext()
        if tracing is not None:
            span = tracing.request(method, path, dict(scope["headers"]), scope.get(TRACE_ID, 0))
        runs = Runs()
        if self._log is not None:
            RUNS.set(runs)
        try:
            with span as current:
                await self._app(scope, counted, noted)
                if tracing is not None:
                    tracing.answered(current, self._status)
        finally:
            if self._log is not None:
                self._log.add(self._line(scope, runs, method, path, (time.perf_counter() - began) * 1000))

    def _line(self, scope: Scope, runs: Runs, method: str, path: str, total_ms: float) -> Line:
        """`status` 0: the client had gone."""
        principal, answered = scope.get(PRINCIPAL), self._answered
        return Line(
            now_ms(),
            method,
            path,
            self._status,
            total_ms,
            answered.get(b"x-request-id", b"").decode("latin-1"),
            "" if principal is None else principal.key_id,
            "" if principal is None else principal.organisation,
            answered.get(b"x-usage-id", b"").decode("latin-1"),
            runs.model,
            runs.rows,
            runs.queue_ms,
            runs.compute_ms,
            code=scope.get(CODE, ""),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
        )
