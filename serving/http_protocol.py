"""The hot path: uvicorn's own HTTP protocol, answering small infer requests before ASGI begins.

A complete, small `POST /v2/models/…/infer` with a key in the cache, on a loaded and short graph under an open lease, is
decoded, run, journalled and written in one go: no scope, no task, no queue. Everything else (and every request that is
pipelined behind one still being answered) takes uvicorn's ordinary way, untouched. Keep-alive, pipelining, flow
control, time-outs and shutdown stay uvicorn's.
"""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from model_store.errors import Refusal
from serving.app import ServingApp, request_id_of
from serving.errors import internal_error, oip_error_body
from serving.protocols.oip import Target, header_length_of, parse_model_path

_log = logging.getLogger("algomart.serving")
MAX_FAST_BODY_BYTES = 64 << 10
MAX_PATHS = 4096
HOLD_S = 0.004  # of one read; what more a pipelining client has sent goes the ordinary way
_PREFIX, _SUFFIX = b"/v2/models/", b"/infer"
# Headers that ask for more than the hot path does.
_ORDINARY = frozenset(
    (b"content-encoding", b"transfer-encoding", b"idempotency-key", b"x-deadline-ms", b"expect", b"upgrade")
)
_OK_JSON = b"content-type: application/json\r\ncontent-length: %d\r\n"
_OK_BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n"
_IDS = b"x-usage-id: %b\r\nx-amount-micro: %d\r\nx-request-id: %b\r\n"


def fast_protocol(app: ServingApp) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`, bound to this application."""
    return type("FastHttpProtocol", (_FastHttpProtocol,), {"serving": app, "paths": {}, "preamble": (None, b"")})


class _FastHttpProtocol(HttpToolsProtocol):
    serving: ClassVar[ServingApp]
    paths: ClassVar[dict[bytes, Target | None]]
    preamble: ClassVar[tuple[list[tuple[bytes, bytes]] | None, bytes]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._candidate: Target | None = None
        self._small_body: list[bytes] = []
        self._waiting = 0  # answers of this connection that wait for the journal
        self._fields: dict[bytes, bytes] = {}
        self._read_at = 0.0
        self._active_at = 0.0
        self._idle_timer: Any = None

    # --- parsing ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._read_at = time.perf_counter()
        super().data_received(data)

    def on_message_begin(self) -> None:
        # The scope is made only when the request takes the ordinary way (`_begin_ordinary`).
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._candidate = None

    def on_headers_complete(self) -> None:
        target = self._target()
        if target is None:
            self._begin_ordinary()
            return
        self._candidate = target
        self._small_body = []

    def on_body(self, body: bytes) -> None:
        if self._candidate is not None:
            self._small_body.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        target = self._candidate
        if target is None:
            super().on_message_complete()
            return
        self._candidate = None
        parts = self._small_body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        answer = self._answer(target, body)
        if answer is None:
            self._begin_ordinary()
            super().on_body(body)
            super().on_message_complete()
            return
        self.server_state.total_requests += 1
        self._waiting += 1
        self.serving.deliver_later(self._deliver if self.parser.should_keep_alive() else self._deliver_last, answer)

    def _deliver(self, answer: bytes, refusal: Refusal | None) -> None:
        """The journal holds the record (or, with a refusal, could not be written): answer now."""
        self._waiting -= 1
        self.transport.write(answer if refusal is None else self._refusal(refusal))
        self._watch_idle()

    def _deliver_last(self, answer: bytes, refusal: Refusal | None) -> None:
        self._waiting -= 1
        answer = answer if refusal is None else self._refusal(refusal)
        self.transport.write(answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        self.transport.close()

    def _target(self) -> Target | None:
        """The model this request may be answered for at once, judging by its head alone; else None."""
        url = self.url
        if not url.startswith(_PREFIX) or not url.endswith(_SUFFIX) or self.root_path:
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        cycle = self.cycle
        if (cycle is not None and not cycle.response_complete) or self.pipeline or self.flow.write_paused:
            return None
        if self.limit_concurrency is not None or self.transport.is_closing():
            return None
        fields = self._fields = dict(self.headers)
        length = fields.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 6 or int(length) > MAX_FAST_BODY_BYTES:
            return None
        if not _ORDINARY.isdisjoint(fields):
            return None
        if time.perf_counter() - self._read_at > HOLD_S:
            return None
        paths = self.paths
        if url not in paths:
            if len(paths) >= MAX_PATHS:
                paths.clear()
            paths[url] = None if b"%" in url or b"?" in url else parse_model_path(url.decode("latin-1"))
        return paths[url]

    def _begin_ordinary(self) -> None:
        """Make what uvicorn makes when a message begins, and let it take the request from its head."""
        self._keep_order()
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)  # the scope holds this very list
        super().on_headers_complete()

    def _keep_order(self) -> None:
        """Before anything else may write to this connection: the answers that are due on it."""
        if self._waiting:
            self.serving.deliver()

    def send_400_response(self, msg: str) -> None:
        self._keep_order()
        super().send_400_response(msg)

    def shutdown(self) -> None:
        self._keep_order()
        super().shutdown()

    # --- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, target: Target, body: bytes) -> bytes | None:
        """The whole response, or None where the request must take the ordinary way (nothing has been done then)."""
        fields = self._fields
        serving = self.serving
        value = fields.get(b"authorization")
        if value is not None and value[:7].lower() == b"bearer ":
            token = value[7:].strip()
        else:
            token = fields.get(b"x-api-key", b"").strip()
        if not token:
            return None
        principal = serving.dataplane.keys.peek(token)
        if principal is None:
            return None
        try:
            header_length = fields.get(b"inference-header-content-length")
            found = serving.oip.infer_at_once(
                principal, target, body, None if header_length is None else header_length_of(header_length)
            )
        except Refusal as refusal:
            return self._refusal(refusal)
        except Exception:
            _log.exception("unexpected error on the hot path")
            return self._refusal(internal_error())
        if found is None:
            return None
        content, json_length, inference = found
        requests = serving.dataplane.statistics.requests
        requests[200] = requests.get(200, 0) + 1
        usage_id = inference.usage_id.encode()
        given = fields.get(b"x-request-id")
        request_id = b"req_" + usage_id if given is None else request_id_of(fields).encode()
        size = len(content)
        kind = _OK_JSON % size if json_length is None else _OK_BINARY % (json_length, size)
        ids = _IDS % (usage_id, inference.amount_micro, request_id)
        return b"".join((STATUS_LINE[200], self._preamble(), kind, ids, b"\r\n", content))

    def _refusal(self, refusal: Refusal) -> bytes:
        content, headers = self.serving.refusal_parts(refusal, oip_error_body, request_id_of(self._fields))
        parts = [STATUS_LINE[refusal.status], self._preamble()]
        for name, value in headers:
            parts += [name, b": ", value, b"\r\n"]
        parts += [b"content-length: %d\r\n\r\n" % len(content), content]
        return b"".join(parts)

    def _preamble(self) -> bytes:
        """uvicorn's default headers (the date), joined once a second: its list is a new one then."""
        cls = type(self)
        headers = self.server_state.default_headers
        if cls.preamble[0] is not headers:
            joined = b"".join(b"%b: %b\r\n" % (name, value) for name, value in headers)
            cls.preamble = (headers, joined)
        return cls.preamble[1]

    # --- keep-alive ---------------------------------------------------------------------------------------------------

    def _watch_idle(self) -> None:
        """One timer a connection, re-armed when it finds activity, where uvicorn's is made anew for each response."""
        self._active_at = self._read_at
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_timer = None
        if self.transport.is_closing():
            return
        busy = (
            self._candidate is not None
            or self.pipeline
            or (self.cycle is not None and not self.cycle.response_complete)
        )
        left = self._active_at + self.timeout_keep_alive - time.perf_counter()
        if busy or self._read_at > self._active_at:
            return  # a request is under way: the ordinary way has its own timer, and the hot path arms this one again
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._check_idle)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)
