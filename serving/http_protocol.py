"""The hot path: uvicorn's own HTTP protocol, answering small infer requests before ASGI begins.

A complete, small `POST /v2/models/…/infer` with a key in the cache, on a loaded and short graph under an open lease, is
decoded, run, journalled and written in one go: no scope, no task, no queue. Everything else (and every request that is
pipelined behind one still being answered) takes uvicorn's ordinary way, untouched. Keep-alive, pipelining, flow
control, time-outs and shutdown stay uvicorn's.
A head that was answered here before is not parsed again (`serving.heads`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_store.errors import Refusal
from serving.app import ServingApp
from serving.bodies import Pieces
from serving.connections import UNREAD_S
from serving.errors.node import internal_error
from serving.heads import Head, KnownHead, head_of, known_head, request_id_of
from serving.hot_answers import AnsweringConnection
from serving.protocols.oip import Target, parse_model_path, path_of
from serving.protocols.oip_turn import Answer
from serving.small_calls import LATER, Later
from serving.tracing import TRACE_ID

_log = logging.getLogger("algomart.serving")
MAX_FAST_BODY_BYTES = 64 << 10  # of JSON, which takes time to read
MAX_FAST_BINARY_BYTES = 512 << 10  # with binary tensors, which are not copied
MAX_PATHS = 4096
MAX_HELD_BYTES = 1 << 20  # of one connection, over which it is not read on
HOLD_S = 0.004  # of one read; what more a pipelining client has sent goes the ordinary way
_PREFIX, _SUFFIX = b"/v2/models/", b"/infer"
# Headers that ask for more than the hot path does.
_ORDINARY = frozenset((b"content-encoding", b"transfer-encoding", b"idempotency-key", b"expect", b"upgrade"))


def fast_protocol(app: ServingApp) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`, bound to this application."""
    return type("FastHttpProtocol", (_FastHttpProtocol,), {"serving": app, "paths": {}, "preamble": (None, b"")})


class _FastHttpProtocol(AnsweringConnection):
    paths: ClassVar[dict[bytes, Target | None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._candidate: Target | None = None
        self._small_body: list[bytes] = []
        self._waiting = 0  # answers of this connection that wait for the journal
        self._fields: dict[bytes, bytes] = {}
        self._known: KnownHead | None = None
        self._between = True  # the parser stands between two messages
        self._declined = False  # what is being read takes the ordinary way: it has been tried already
        self._whole = b""  # the read that began this message, while nothing else was seen to begin in it
        self._pieces: Pieces | None = None  # of a request under a known head that is not all here yet
        self._read_at = 0.0
        self._active_at = 0.0
        self._idle_timer: Any = None
        self._trace_id = 0  # that the sampler was asked about for what is being read
        self._held = b""  # read, but not looked at yet: the request it begins with has its turn later
        self._tenant = ""  # whose key was on what is being looked at
        self._held_ms: float | None = 0.0  # for how long what is being looked at has been held; None: it must not be

    # --- parsing ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._held:
            self._held += data
            if len(self._held) > MAX_HELD_BYTES:
                self.flow.pause_reading()
            return
        self._read_at = time.perf_counter()
        pieces = self._pieces
        if pieces is not None:
            added = pieces.add(data)
            if added and not pieces.is_whole:
                return
            data = self._let_go(pieces) if added else self._let_go(pieces) + data
        self._look_at(data)

    def _look_at(self, data: bytes) -> None:
        known = self._known
        if known is None or not self._between or not self._answer_known(known, data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._whole = data if self._between else b""
        super().data_received(data)
        if self._candidate is not None:
            self._begin_unfinished(self._candidate)
        self._whole, self._declined = b"", False
        if self._between and self.has_asked and not self.answers_due and self.timeout_keep_alive_task is None:
            self._watch_idle()  # an empty line, say: no request that would be answered, and the end of idling set anew

    def _answer_known(self, known: KnownHead, data: bytes) -> bool:
        """Answer a request whose head is known already; False where it is another, or takes the ordinary way."""
        span = known.span_of(data)
        if span is None or not self._is_free():
            return False
        start, length = span
        missing = start + length - len(data)
        if length > (MAX_FAST_BODY_BYTES if known.head.header_length is None else MAX_FAST_BINARY_BYTES) or missing < 0:
            return False
        if missing:
            return self._await_rest(known, data, missing)
        body = data[start:]
        self._fields = known.head.fields
        taken = self._take(known.head, body, self._deliver, self._held_ms)
        if not taken:
            self._declined = True
            return False
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if taken is LATER:
            self._held = data
            self.serving.dataplane.turn_shares.hold(self._tenant, self._look_again)
        return True

    def _await_rest(self, known: KnownHead, data: bytes, missing: int) -> bool:
        """The request is looked at when it is whole: until then nothing of it is given to the parser. False where
        nobody is known by its key, or there is no room for it: the ordinary way says so."""
        if self.serving.dataplane.keys.peek(known.head.token, known.head.token_digest) is None:
            return False
        pieces = Pieces(self.serving.bodies, len(data) + missing)
        if not pieces.add(data):
            return False
        self._pieces = pieces
        self.headers = []  # tells those who watch for slow clients that a message has begun
        self._unset_keepalive_if_required()
        return True

    def _let_go(self, pieces: Pieces) -> bytes:
        self._pieces = None
        return pieces.let_go()

    def _look_again(self, may_be_held: bool = True) -> None:
        """At what was held, in a later turn of the event loop."""
        data, self._held = self._held, b""
        if not data or self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._held_ms = (time.perf_counter() - self._read_at) * 1000 if may_be_held else None
        self._look_at(data)
        self._held_ms = 0.0

    def _is_free(self) -> bool:
        """Nothing else is being answered on this connection, and its answers flow."""
        cycle = self.cycle
        return (
            (cycle is None or cycle.response_complete)
            and not self.pipeline
            and not self.flow.write_paused
            and self.limit_concurrency is None
            and not self.transport.is_closing()
        )

    def on_message_begin(self) -> None:
        # The scope is made only when the request takes the ordinary way (`_begin_ordinary`).
        self._between = False
        self.begin_head()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._candidate = None

    def on_headers_complete(self) -> None:
        self._in_head = False
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
        self._between = True
        whole, self._whole = self._whole, b""  # what follows in this read is another's
        target = self._candidate
        if target is None:
            super().on_message_complete()
            return
        self._candidate = None
        parts = self._small_body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        keep = self.parser.should_keep_alive()
        taken, head = self._take_parsed(target, body, self._deliver if keep else self._deliver_last)
        if keep:
            self._remember(head, whole, body)
        if not taken:
            self._begin_ordinary()
            super().on_body(body)
            super().on_message_complete()

    def _begin_unfinished(self, target: Target) -> None:
        """The rest of its body is to come: it takes the ordinary way, where bodies are counted. The next one under this
        head waits here."""
        self._candidate = None
        body = b"".join(self._small_body)
        with suppress(Refusal):
            if self.parser.should_keep_alive():
                self._remember(head_of(target, self._fields), self._whole, body)
        self._begin_ordinary()
        if body:
            super().on_body(body)

    def _remember(self, head: Head | None, whole: bytes, body: bytes) -> None:
        """The head, to know the next one on this connection by. `whole`: the read that the message began."""
        if head is not None:
            self._known = known_head(whole, body, head) or self._known

    def _deliver(self, answer: Answer) -> None:
        """The journal holds the record (or the call is refused): answer now."""
        self._waiting -= 1
        self.transport.write(self.content_of(answer))
        self._watch_idle()

    def _deliver_last(self, answer: Answer) -> None:
        self._waiting -= 1
        self.transport.write(self.content_of(answer).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        self.transport.close()

    def _target(self) -> Target | None:
        """The model this request may be answered for at once, judging by its head alone; else None."""
        url = self.url
        if self._declined or not url.startswith(_PREFIX) or not url.endswith(_SUFFIX) or self.root_path:
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if not self._is_free():
            return None
        fields = self._fields = dict(self.headers)
        length = fields.get(b"content-length", b"")
        most = MAX_FAST_BINARY_BYTES if b"inference-header-content-length" in fields else MAX_FAST_BODY_BYTES
        if not length.isdigit() or len(length) > 6 or int(length) > most:
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
        if self._trace_id:
            self.scope[TRACE_ID], self._trace_id = self._trace_id, 0  # type: ignore[literal-required]
        self.headers.extend(headers)  # the scope holds this very list
        super().on_headers_complete()

    def _keep_order(self) -> None:
        """Before anything else may write to this connection: the answers that are due on it."""
        if self._waiting:
            self.serving.oip.turn.finish()

    def send_400_response(self, msg: str) -> None:
        self._keep_order()
        super().send_400_response(msg)

    def shutdown(self) -> None:
        self._look_again(may_be_held=False)
        if self._pieces is not None:
            self._parse(self._let_go(self._pieces))  # uvicorn waits for what has begun
        self._keep_order()
        super().shutdown()

    # --- answering ----------------------------------------------------------------------------------------------------

    def _take(
        self, head: Head, body: bytes, deliver: Callable[[Answer], None], held_ms: float | None = None
    ) -> bool | Later:
        """Have it answered at the end of this turn of the loop. Else nothing is done: False: it takes the ordinary way;
        `LATER`: its turn is not this one, and it can be held, as it has been for `held_ms`."""
        oip = self.serving.oip
        if self.serving.dataplane.tracing is not None and not self._trace_id and self._is_traced(head):
            return False
        principal = self.serving.dataplane.keys.peek(head.token, head.token_digest)
        if principal is None:
            return False
        self._tenant = principal.organisation
        if not self.serving.dataplane.turn_shares.takes(principal.organisation, bool(held_ms)) and held_ms is not None:
            return LATER
        try:
            limits = head.deadline_ms, head.priority, held_ms
            answer = Answer(deliver, head, bytes_in=len(body))
            taken = oip.take(answer, principal, head.target, body, head.header_length, *limits)
            if taken is not True:
                return taken
        except Refusal as refusal:
            self._refuse(refusal, deliver, head, len(body))
            return True
        except Exception:
            _log.exception("unexpected error on the hot path")
            self._refuse(internal_error(), deliver, head, len(body))
            return True
        self.server_state.total_requests += 1
        self._waiting += 1
        self._trace_id = 0
        return True

    def _is_traced(self, head: Head) -> bool:
        """The sampler takes this request: it goes the ordinary way, where its span is recorded."""
        tracing = self.serving.dataplane.tracing
        assert tracing is not None, "only called where there is one"
        dropped, self._trace_id = tracing.is_dropped("POST", path_of(head.target), head.fields)
        return not dropped

    def _take_parsed(
        self, target: Target, body: bytes, deliver: Callable[[Answer], None]
    ) -> tuple[bool | Later, Head | None]:
        """As `_take`, for a request that the parser has read; and its head."""
        try:
            head = head_of(target, self._fields)
        except Refusal as refusal:
            self._refuse(refusal, deliver, None, len(body))
            return True, None
        return head is not None and self._take(head, body, deliver), head

    def _refuse(self, refusal: Refusal, deliver: Callable[[Answer], None], head: Head | None, bytes_in: int) -> None:
        """Refuse in its place among the answers of this turn."""
        self.server_state.total_requests += 1
        self._waiting += 1
        self._trace_id = 0
        request_id = request_id_of(self._fields)  # now: by the end of the turn they may be another request's
        answer = Answer(deliver, head, refusal=refusal, request_id=request_id, bytes_in=bytes_in)
        self.serving.oip.turn.take(answer)

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
            self._pieces is not None or self.pipeline or (self.cycle is not None and not self.cycle.response_complete)
        )
        left = self._active_at + self.timeout_keep_alive - time.perf_counter()
        if busy or self._read_at > self._active_at:
            return  # a request is under way: the ordinary way has its own timer, and the hot path arms this one again
        if left > 0 or self.has_unread():
            self._idle_timer = self.loop.call_later(max(left, UNREAD_S), self._check_idle)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._pieces is not None:
            self._let_go(self._pieces)
        super().connection_lost(exc)
