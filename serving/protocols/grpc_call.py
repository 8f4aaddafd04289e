"""One gRPC call as the skins see it: metadata as headers, messages as bytes, its end as a status.

Every method is taken as a stream, which it is on the wire: so a caller is known, and has a place, before the server
reads what may be a message of many megabytes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import orjson

from model_store.errors import Refusal
from serving.errors.node import deadline_exceeded
from serving.errors.requests import request_message
from serving.heads import request_id_of
from serving.ports import Principal
from serving.slow_readers import SlowReaders

READ_S = 30.0  # how long a caller may take to send the one message of a unary call
MAX_STATUS_CHARACTERS = 1500  # clients accept 8 KiB of trailing metadata in all, and Chinese is sent percent-encoded
STATUS_OF = {
    0: grpc.StatusCode.CANCELLED,
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    402: grpc.StatusCode.FAILED_PRECONDITION,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # what gRPC itself says of a message over its limit
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class GrpcCall:
    """Reads, writes and ends one call. `stopping` ends the wait for a next message when the server stops; `readers`
    closes the connection of a caller that does not read."""

    def __init__(self, context: Any, stopping: asyncio.Future[None], readers: SlowReaders) -> None:
        self._context, self._stopping, self._readers = context, stopping, readers
        self.headers: dict[bytes, bytes] = {
            name.encode(): value.encode() if isinstance(value, str) else value
            for name, value in context.invocation_metadata() or ()
        }
        self.request_id = request_id_of(self.headers)
        self.principal: Principal | None = None  # once that is known
        self.refused: Refusal | None = None
        self.has_gone = False  # the caller, while its call was in hand
        self.bytes_in = self.bytes_out = 0

    @property
    def is_over(self) -> bool:
        """The caller has gone, or its deadline has passed."""
        return bool(self._context.done() or self._context.cancelled())

    @property
    def status(self) -> int:
        """How the call ends, once its handler does: the status that HTTP would have had; 0: the caller has gone."""
        if self.refused is not None:
            return self.refused.status
        return 0 if self.has_gone or self.is_over else 200

    @property
    def code(self) -> grpc.StatusCode:
        """The same as gRPC says it."""
        return STATUS_OF.get(self.status, grpc.StatusCode.UNKNOWN)

    @property
    def is_stopping(self) -> bool:
        return self._stopping.done()

    def time_left_ms(self) -> float | None:
        """Until the caller's own gRPC deadline; None where it set none."""
        left = self._context.time_remaining()
        return None if left is None else left * 1000

    async def read(self) -> bytes:
        """The one message of a unary call. Raises `DeadlineExceeded`, or `BadInput` REQUEST_MESSAGE for none."""
        try:
            async with asyncio.timeout(READ_S):
                content = await self._context.read()
        except TimeoutError:
            raise deadline_exceeded(READ_S * 1000) from None
        if content is grpc.aio.EOF:  # also where gRPC has ended the call: a message over the limit
            raise request_message("the call has none")
        message: bytes = content
        self.bytes_in += len(message)
        return message

    async def next(self) -> bytes | None:
        """The next message of a stream; None at its end, or when the server stops."""
        read = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait((read, self._stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not read.done():
                read.cancel()
        if not read.done() or read.result() is grpc.aio.EOF:
            return None
        content: bytes = read.result()
        self.bytes_in += len(content)
        return content

    async def stopped_within(self, seconds: float) -> bool:
        """Wait; True as soon as the server stops."""
        await asyncio.wait((self._stopping,), timeout=seconds)
        return self._stopping.done()

    async def write(self, content: bytes) -> None:
        """Until it has gone out, as far as flow control lets it. Raises CancelledError where the caller has gone."""
        with self._readers.sending(self._context.peer(), len(content)):
            try:
                await self._context.write(content)
            except grpc.aio.InternalError:  # gRPC says this some moments before it cancels the call
                raise asyncio.CancelledError from None
        self.bytes_out += len(content)

    def tell(self, **trailing: str) -> None:
        """What stands in the trailing metadata beside a success; `_` in a name is written `-`."""
        pairs = [(name.replace("_", "-"), value) for name, value in trailing.items()]
        self._context.set_trailing_metadata((("x-request-id", self.request_id), *pairs))

    def refuse(self, refusal: Refusal, text: str) -> None:
        """How the call ends when its handler returns: status, `text` in both languages, code and remedy in the trailing
        metadata."""
        self.refused = refusal
        body = refusal.as_dict(self.request_id)
        body.pop("details", None)  # may be long
        trailing = [
            ("x-request-id", self.request_id),
            ("algomart-code", refusal.code),
            ("algomart-remedy", refusal.remedy_en.encode("ascii", "backslashreplace").decode()[:MAX_STATUS_CHARACTERS]),
            ("algomart-refusal-bin", orjson.dumps(body, default=str)),
        ]
        if refusal.retry_after_s is not None:
            trailing.append(("retry-after", str(refusal.retry_after_s)))
        limits = refusal.details.get("ratelimit", {})
        trailing += [(f"ratelimit-{name}", str(value)) for name, value in limits.items()]
        # Not `abort`: the error that it raises and gRPC's own state of the call hold each other (see `forget_frames`).
        self._context.set_code(self.code)
        self._context.set_details(text[:MAX_STATUS_CHARACTERS])
        self._context.set_trailing_metadata(tuple(trailing))
