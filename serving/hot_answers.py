"""What the hot path writes: whole responses in one piece, and their lines in the access log."""

from __future__ import annotations

import time
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from model_store.errors import Refusal
from serving.access_log import Line, now_ms
from serving.connections import GuardedConnection
from serving.errors.node import internal_error
from serving.heads import request_id_of
from serving.protocols.oip import path_of
from serving.protocols.oip_turn import Answer

_OK_JSON = b"content-type: application/json\r\ncontent-length: %d\r\n"
_OK_BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n"
_IDS = b"x-usage-id: %b\r\nx-amount-micro: %d\r\nx-request-id: %b\r\n\r\n"


class AnsweringConnection(GuardedConnection):
    """A connection that turns the answers of a turn into bytes."""

    preamble: ClassVar[tuple[list[tuple[bytes, bytes]] | None, bytes]]

    def content_of(self, answer: Answer) -> bytes:
        """The whole response."""
        call = answer.call
        if answer.refusal is not None or call is None:
            return self._refusal(answer, answer.refusal or internal_error())
        if self.serving.access_log is not None:
            self._log(answer, 200, len(answer.content), (answer.context.request_id or b"req_" + call.usage_id.encode()))
        requests = self.serving.dataplane.statistics.requests
        requests[200] = requests.get(200, 0) + 1
        usage_id = call.usage_id.encode()
        content, json_length = answer.content, answer.json_length
        size = len(content)
        kind = _OK_JSON % size if json_length is None else _OK_BINARY % (json_length, size)
        ids = _IDS % (usage_id, call.amount, answer.context.request_id or b"req_" + usage_id)
        return b"".join((STATUS_LINE[200], self._preamble(), kind, ids, content))

    def _refusal(self, answer: Answer, refusal: Refusal) -> bytes:
        request_id = answer.request_id or request_id_of(answer.context.fields)
        content, headers = self.serving.refusal_parts(refusal, self.serving.oip_error_body, request_id)
        if self.serving.access_log is not None:
            self._log(answer, refusal.status, len(content), request_id.encode(), refusal.code)
        parts = [STATUS_LINE[refusal.status], self._preamble()]
        for name, value in headers:
            parts += [name, b": ", value, b"\r\n"]
        parts += [b"content-length: %d\r\n\r\n" % len(content), content]
        return b"".join(parts)

    def _log(self, answer: Answer, status: int, size: int, request_id: bytes, code: str = "") -> None:
        """A line of the access log."""
        log, call = self.serving.access_log, answer.call
        assert log is not None, "only called where there is one"
        line = Line(
            now_ms(),
            "POST",
            "/v2/models" if answer.context is None else path_of(answer.context.target),
            status,
            (time.perf_counter() - self._read_at) * 1000,
            request_id.decode(),
            code=code,
            bytes_in=answer.bytes_in,
            bytes_out=size,
        )
        if call is not None:
            line.key_id, line.organisation = call.principal.key_id, call.principal.organisation
            line.usage_id, line.model, line.rows = call.usage_id, call.statistics.label, call.rows
            line.compute_ms = call.compute_ms
        log.add(line)

    def _preamble(self) -> bytes:
        """uvicorn's default headers (the date), joined once a second: its list is a new one then."""
        cls = type(self)
        headers = self.server_state.default_headers
        if cls.preamble[0] is not headers:
            joined = b"".join(b"%b: %b\r\n" % (name, value) for name, value in headers)
            cls.preamble = (headers, joined)
        return cls.preamble[1]
