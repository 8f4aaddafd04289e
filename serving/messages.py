"""What a skin is given and what it gives back: one HTTP request with its body read, one response.

`ServingApp` has authenticated the caller, bounded and decompressed the body and chosen the skin before a skin sees a
`Request`; a skin raises `Refusal`s, and the application renders them in the skin's own shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import orjson

from model_store.errors import BadInput
from serving.ports import Principal

JSON_TYPE = (b"content-type", b"application/json")


@dataclass(slots=True)
class Request:
    """One complete request. `path` is percent-decoded; header names are lower-case bytes; `body` is decompressed."""

    method: str
    path: str
    query_string: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    principal: Principal
    request_id: str

    def header(self, name: bytes, default: str = "") -> str:
        """A header as text (latin-1, as HTTP has it)."""
        value = self.headers.get(name)
        return default if value is None else value.decode("latin-1")

    @property
    def query(self) -> dict[str, str]:
        """The query string; the last value of a repeated name counts. At most 100 pairs."""
        try:
            return dict(parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=100))
        except ValueError:
            return {}


@dataclass(slots=True)
class Response:
    """A whole body, or `stream` for server-sent events (chunks as they come; `body` is then empty)."""

    status: int = 200
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    stream: AsyncIterator[bytes] | None = None


def json_response(value: object, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
    """`value` as JSON (numpy arrays and numbers included; NaN becomes null)."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(status, body, [JSON_TYPE, *(headers or [])])


def check_method(method: str, expected: str) -> None:
    """HEAD counts as GET. Raises `BadInput` METHOD_NOT_ALLOWED, with the status 405."""
    if method != expected and not (method == "HEAD" and expected == "GET"):
        refusal = BadInput(
            "METHOD_NOT_ALLOWED",
            zh=f"此地址只接受 {expected}",
            en=f"this path takes {expected}",
            remedy_zh=f"请改用 {expected}",
            remedy_en=f"use {expected}",
            field="method",
            details={"allow": "GET, HEAD" if expected == "GET" else expected},
        )
        refusal.status = 405  # type: ignore[misc]  # HTTP's own status for it, on this one refusal
        raise refusal
