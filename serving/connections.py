"""Clients that would hold a connection for ever, and more of them than there is room for.

Once a second every connection is looked at, so that a request pays nothing for it: one whose head (or small body) is
not complete after `receive_timeout_s`, one whose larger body has not moved for so long, one that never asked anything,
and one that has not read what it was sent for `send_timeout_s` are closed. Time in which this process itself stood
still (was stopped, had no processor, was held by a callback) counts against nobody, and a connection that is closed for
being idle is first asked whether a request lies there unread.

A head over `MAX_HEAD_BYTES` ends its connection: uvicorn would keep all of it, from anybody, before any key is asked.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.errors.node import connections_full
from serving.errors.rendering import native_error_body
from serving.errors.requests import head_too_large
from serving.heads import request_id_of

if TYPE_CHECKING:
    from model_store.errors import Refusal
    from serving.app import ServingApp
    from serving.bodies import Pieces

STEP_S = 2.0  # between two looks, which come once a second, at most; what is more, this process stood still
UNREAD_S = 1.0  # what has arrived is read in this turn of the loop; then it is asked again
MAX_HEAD_BYTES = 64 << 10  # of a request; also of trailers, and of what comes between two bytes of a body
LINGER_S = 2.0  # for the refused to read why; a connection that is closed with something unread takes the answer along
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedConnection(HttpToolsProtocol):
    """A connection that is refused with 503 CONNECTIONS_FULL beyond `max_connections`, and tells what it waits for."""

    serving: ClassVar[ServingApp]
    _between: bool
    _waiting: int
    _read_at: float
    _active_at: float
    _pieces: Pieces | None
    _in_head = False  # what the parser reads now are headers, not trailers
    _head_bytes = 0  # of the headers and trailers of the message under way
    _still_bytes = 0  # read since it began, or since its body last moved

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio calls it."""
        if len(self.connections) < self.serving.dataplane.settings.max_connections:
            super().connection_made(transport)
            return
        self._refuse_connection(transport, connections_full())

    def _refuse_connection(self, transport: asyncio.Transport, refusal: Refusal) -> None:
        body, headers = self.serving.refusal_parts(refusal, native_error_body, request_id_of({}))
        headers += [(b"connection", b"close"), (b"content-length", str(len(body)).encode())]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        transport.set_protocol(_Refused(transport, self.loop))
        transport.write(STATUS_LINE[refusal.status] + lines + b"\r\n" + body)

    def data_received(self, data: bytes) -> None:
        self._still_bytes += len(data)
        super().data_received(data)
        if self._still_bytes > MAX_HEAD_BYTES and not self._between and self.parser is not None:
            self.send_400_response("")

    def begin_head(self) -> None:
        """The parser has come to a new message."""
        self._in_head, self._head_bytes, self._still_bytes = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise OverflowError("head")  # ends the parsing, and comes out as uvicorn's 400
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._still_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes <= MAX_HEAD_BYTES and self._still_bytes <= MAX_HEAD_BYTES:
            super().send_400_response(msg)
            return
        transport, is_due = self.transport, self._in_head and not self._is_answering()
        self.connection_lost(ConnectionAbortedError())  # as uvicorn sees it
        if not is_due:  # what follows would be read as part of another answer
            transport.close()
        else:
            self._refuse_connection(transport, head_too_large(MAX_HEAD_BYTES))

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's timer of a connection that was idle for long enough. Timers may come before what there is to read:
        after this process stood still, a request sent meanwhile would be answered with the end of the connection."""
        if self.has_unread():
            self.timeout_keep_alive_task = self.loop.call_later(UNREAD_S, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def has_unread(self) -> bool:
        """Something lies in the socket that the loop has not read yet."""
        if self.transport.is_closing():
            return False
        asked = select.poll()
        asked.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(asked.poll(0))

    @property
    def is_between(self) -> bool:
        """No request is half received."""
        return self._between and self._pieces is None

    @property
    def answers_due(self) -> bool:
        """Requests were received whole and are being answered."""
        return bool(self._waiting or self.pipeline or (self.is_between and self._is_answering()))

    @property
    def has_asked(self) -> bool:
        return self.cycle is not None or self._active_at > 0

    @property
    def is_handed_over(self) -> bool:
        """The application is reading the body of a request."""
        return self._is_answering()

    @property
    def read_at(self) -> float:
        """When something was received last, by `time.perf_counter`."""
        return self._read_at

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


class _Refused(asyncio.Protocol):
    """Lets a refused client read its answer, whatever it goes on sending, and then closes."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LINGER_S, transport.close)

    def eof_received(self) -> bool:
        return False


class _Seen:
    """What was last seen of a connection. Instants by the clock of `SlowClients`, but for `read_at`."""

    __slots__ = ("begun_at", "blocked_at", "buffered", "headers", "moved_at", "read_at", "since")

    def __init__(self, now: float) -> None:
        self.since = self.begun_at = self.blocked_at = self.moved_at = now
        self.read_at = 0.0  # the connection's own
        self.headers: Any = None  # of the message under way: a list of its own for each
        self.buffered = -1


class SlowClients:
    """What `NodeServer` looks at its connections with."""

    def __init__(
        self, receive_timeout_s: float, send_timeout_s: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._receive_s, self._send_s = receive_timeout_s, send_timeout_s
        self.clock = clock
        self._looked_at, self._now = clock(), 0.0
        self._seen: dict[Any, _Seen] = {}
        self.closed = 0

    def look(self, connections: Collection[Any]) -> None:
        """Close what is overdue. `connections`: uvicorn's protocols of this node."""
        at = self.clock()
        self._now += min(at - self._looked_at, STEP_S)
        self._looked_at, now = at, self._now
        known = self._seen
        self._seen = {each: known.get(each) or _Seen(now) for each in connections}
        for connection, seen in self._seen.items():
            if connection.transport is None or connection.transport.is_closing():
                continue
            if self._reads_nothing(connection, seen, now):
                connection.transport.abort()
                self.closed += 1
            elif self._sends_nothing(connection, seen, now):
                connection.transport.write(TOO_SLOW)
                connection.transport.close()
                self.closed += 1

    def _reads_nothing(self, connection: Any, seen: _Seen, now: float) -> bool:
        if not connection.flow.write_paused:
            seen.buffered = -1
            return False
        buffered = connection.transport.get_write_buffer_size()
        if buffered != seen.buffered:
            seen.buffered, seen.blocked_at = buffered, now
            return False
        return now - seen.blocked_at > self._send_s

    def _sends_nothing(self, connection: Any, seen: _Seen, now: float) -> bool:
        if connection.answers_due or connection.flow.read_paused:
            return False
        if connection.is_between:
            return not connection.has_asked and now - seen.since > self._receive_s
        if connection.headers is not seen.headers:
            seen.headers, seen.begun_at = connection.headers, now
        if connection.is_handed_over:  # its body is read by the application, which bounds the time in all
            if connection.read_at != seen.read_at:
                seen.read_at, seen.moved_at = connection.read_at, now
            return now - seen.moved_at > self._receive_s
        return now - seen.begun_at > self._receive_s
