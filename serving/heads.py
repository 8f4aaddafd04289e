"""What the hot path needs of a request's head, and how it knows a head that it has seen before.

A client that keeps its connection sends the same head again and again, but for the length of the body. Once such a head
has been parsed and its request answered, the next one on this connection that is the same byte for byte, digits of its
length aside, need not be parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from serving.digests import mint_usage_id
from serving.keycache import digest_of_token
from serving.protocols.oip import Target, deadline_of, header_length_of
from serving.protocols.oip_request import priority_of

MAX_HEAD_BYTES = 4096
MAX_LENGTH_DIGITS = 6
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,6})(?=\r\n)", re.IGNORECASE)


class Head(msgspec.Struct, frozen=True, gc=False):
    """One parsed head: which model, whose key, and its fields by lower-case name."""

    target: Target
    fields: dict[bytes, bytes]
    token: bytes
    token_digest: bytes
    header_length: int | None  # `Inference-Header-Content-Length`
    request_id: bytes  # the caller's own; b"" where it sent none
    deadline_ms: float | None = None
    priority: str | None = None


def head_of(target: Target, fields: dict[bytes, bytes]) -> Head | None:
    """None where it carries no key. Raises `BadInput` REQUEST_FIELD for a header that is wrong."""
    token = _token(fields)
    if not token:
        return None
    header_length = header_length_of(fields.get(b"inference-header-content-length"))
    request_id = given_request_id(fields).encode()
    deadline_ms = deadline_of(fields.get(b"x-deadline-ms"))
    priority = priority_of(fields.get(b"x-priority"))
    return Head(target, fields, token, digest_of_token(token), header_length, request_id, deadline_ms, priority)


def given_request_id(fields: Mapping[bytes, bytes]) -> str:
    """The caller's `X-Request-Id` where it is lawful, else ""."""
    given = fields.get(b"x-request-id")
    return given.decode() if given is not None and _REQUEST_ID.fullmatch(given) else ""


def request_id_of(fields: Mapping[bytes, bytes]) -> str:
    """The caller's `X-Request-Id` where it is lawful, else a new one."""
    return given_request_id(fields) or f"req_{mint_usage_id()}"


def _token(fields: Mapping[bytes, bytes]) -> bytes:
    value = fields.get(b"authorization")
    if value is not None and value[:7].lower() == b"bearer ":
        return value[7:].strip()
    return fields.get(b"x-api-key", b"").strip()


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """A head that has led to an answer: what stands before and after the digits of its length."""

    before: bytes
    after: bytes  # up to and with the empty line
    head: Head

    def span_of(self, data: bytes) -> tuple[int, int] | None:
        """Where the body of a request under this very head begins in `data`, which it begins, and how long it is to be,
        whether it is all there or not; None where the head is another or not all there."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return None
        at = len(before)
        end = data.find(b"\r", at, at + MAX_LENGTH_DIGITS + 1)
        if end < 0 or not data.startswith(after, end):
            return None
        digits = data[at:end]
        return (end + len(after), int(digits)) if digits.isdigit() else None


def known_head(data: bytes, body: bytes, head: Head) -> KnownHead | None:
    """What to know a next request by, where `data` is this one request, or its first piece, and nothing more; else
    None."""
    end = data.find(b"\r\n\r\n") + 4
    if not 4 <= end <= MAX_HEAD_BYTES or not body.startswith(data[end:]):
        return None
    lengths = list(_LENGTH.finditer(data, 0, end))
    if len(lengths) != 1:
        return None
    (length,) = lengths
    return KnownHead(data[: length.start(1)], data[length.end(1) : end], head)
