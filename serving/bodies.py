"""Request bodies: read to a bound, decompressed to the same bound, so that a bomb is refused and not unpacked.

They are held in memory while they are read and answered; `BodyRoom` bounds what all of them hold together.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from model_store.errors import Refusal
from serving.errors.node import body_too_slow
from serving.errors.requests import body_encoding, body_too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
_AUTOMATIC = 32 + zlib.MAX_WBITS  # gzip or zlib, by its header
LEAST_BYTES_PER_S = 16 << 10
MAX_MEMBERS = 4096  # of one gzip body; blocked gzip (bgzip) makes one for every 64 KiB
PIECE_BYTES = 64 << 10
DECOMPRESS_IN_THREAD_BYTES = 2 << 10  # may come out a thousand times as large


class Disconnected(Exception):
    """The client went away before its request was complete."""


class BodyRoom:
    """Bytes that bodies hold at this moment, within a bound. Used on the event loop."""

    def __init__(self, limit: int, refusal: Callable[[], Refusal]) -> None:
        """`refusal`: what is said when there is no room."""
        self.limit = limit
        self._refusal = refusal
        self.held = 0

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """What takes room for one body as it comes in, or raises the refusal; all of it is given back at the end.

        What has arrived counts, not what was announced: a slow client must not keep others out.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if not self.take(size):
                raise self._refusal()
            taken += size

        try:
            yield take
        finally:
            self.give_back(taken)

    def take(self, size: int) -> bool:
        """Room for so many bytes, to be given back; False (nothing was taken) where there is none."""
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size


class Pieces:
    """What has come in of one request of a known length, counted in a `BodyRoom` until it is let go."""

    __slots__ = ("_content", "_missing", "_room")

    def __init__(self, room: BodyRoom, length: int) -> None:
        """`length`: bytes of all of it."""
        self._room, self._content, self._missing = room, bytearray(), length

    @property
    def is_whole(self) -> bool:
        return self._missing <= 0

    def add(self, data: bytes) -> bool:
        """False where there is no room for it: then nothing was added."""
        if not self._room.take(len(data)):
            return False
        self._content += data
        self._missing -= len(data)
        return True

    def let_go(self) -> bytes:
        """All that was added, with what came after the request in its last piece. Its room is given back."""
        content = bytes(self._content)
        self._room.give_back(len(content))
        self._content.clear()
        return content


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    limit: int,
    take: Callable[[int], None],
    timeout_s: float,
) -> list[bytes]:
    """The whole body as sent, in the parts it came in; `take` is told the size of each.

    `timeout_s` and a second more for every 16 KiB is how long it may trickle in; one that stands still is ended by
    `serving.connections`. Raises `TooLarge` BODY_TOO_LARGE (by its declared length: at once), `TooSlow` BODY_TOO_SLOW,
    `Disconnected`, and what `take` raises.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:18]) > limit:
        raise body_too_large(limit)
    parts: list[bytes] = []
    size = 0
    started = time.monotonic()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise body_too_large(limit)
        take(len(part))
        parts.append(bytes(part))
        if not message.get("more_body", False):
            return parts
        if time.monotonic() - started > timeout_s + size / LEAST_BYTES_PER_S:
            raise body_too_slow()


def decompress(content: bytes, encoding: str, limit: int) -> bytes:
    """Undo `Content-Encoding` (gzip, deflate, identity; one of them).

    Raises `BadInput` BODY_ENCODING, `TooLarge` BODY_TOO_LARGE as soon as more than `limit` bytes come out.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise body_encoding(f"Content-Encoding: {encoding}")
    parts: list[bytes] = []
    left, at, members = limit, 0, 0
    wbits = _AUTOMATIC
    if encoding == "deflate" and not _has_zlib_header(content):
        wbits = -zlib.MAX_WBITS  # some clients send deflate without zlib's header
    given = memoryview(content)
    while at < len(given):
        members += 1
        if members > MAX_MEMBERS:
            raise body_encoding(f"more than {MAX_MEMBERS} members")
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            # In pieces, since zlib copies what it leaves over, which is all that follows a member.
            piece = given[at : at + PIECE_BYTES]
            if not piece:
                raise body_encoding("ends too early")
            try:
                part = stream.decompress(piece, left + 1)
            except zlib.error as error:
                raise body_encoding(str(error)) from error
            if len(part) > left:
                raise body_too_large(limit)
            parts.append(part)
            left -= len(part)
            at += len(piece) - len(stream.unused_data)
    return b"".join(parts)


def _has_zlib_header(content: bytes) -> bool:
    return len(content) >= 2 and content[0] & 0x0F == 8 and int.from_bytes(content[:2], "big") % 31 == 0
