"""Requests and responses as bytes, kept so that a failed check can show them; raw sockets for what no client sends."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from serving.conformance.checks import Unmet

TIMEOUT_S = 30.0
SHOWN_CHARACTERS = 600
MAX_ANSWER_BYTES = 64 << 20
SECRET_HEADERS = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})


@dataclass(frozen=True)
class Exchange:
    """One request and its response. `status` 0: no response came, `failure` says why. Header names in lower case."""

    method: str
    path: str
    sent_headers: Mapping[str, str]
    sent: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes
    failure: str = ""

    def json(self) -> Any:
        """The response's body as JSON by RFC 8259: no NaN, no infinities. Raises `Unmet`."""
        return strict_json(self.body, self)

    def error(self) -> str:
        """The message of an error object. Raises `Unmet` where the body is none."""
        found = self.json()
        message = found.get("error") if isinstance(found, dict) else None
        if not isinstance(message, str) or not message:
            raise Unmet('the body is not {"error": $string}', self)
        return message

    def shown(self) -> dict[str, str]:
        """Request and response as short text; a caller's secrets are left out."""
        head = "".join(f"{name}: {value}\n" for name, value in self.sent_headers.items() if name not in SECRET_HEADERS)
        answer = self.failure or f"{self.status}"
        kept = ("content-type", "content-length", "inference-header-content-length")
        back = "".join(f"{name}: {self.headers[name]}\n" for name in kept if name in self.headers)
        return {
            "request": f"{self.method} {self.path[:200]}\n{head}{shorten(self.sent)}",
            "response": f"{answer}\n{back}{shorten(self.body)}",
        }


def shorten(content: bytes) -> str:
    """At most `SHOWN_CHARACTERS` of it, in printable characters."""
    text = content[: 2 * SHOWN_CHARACTERS].decode("utf-8", "backslashreplace")
    text = "".join(letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}" for letter in text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(content)} bytes)"


def strict_json(content: bytes, exchange: Exchange | None = None) -> Any:
    """RFC 8259 to the letter. Raises `Unmet`."""

    def refuse(literal: str) -> None:
        raise Unmet(f"{literal} is no JSON (RFC 8259, section 6)", exchange)

    try:
        return json.loads(content.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Unmet(f"the body is no JSON: {error}", exchange) from error


class Wire:
    """One server. `headers` go with every request, raw ones too."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.timeout_s = timeout_s
        self._client = httpx.Client(headers={"accept-encoding": "identity"}, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def send(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """One request; a connection that fails is an exchange with status 0."""
        sent_headers = self.headers | {name.lower(): value for name, value in (headers or {}).items()}
        try:
            answer = self._request(method, f"{self.url}/{path}", content, sent_headers)
        except httpx.HTTPError as error:
            return Exchange(method, path, sent_headers, content or b"", 0, {}, b"", f"{type(error).__name__}: {error}")
        known = {name.lower(): value for name, value in answer.headers.items()}
        return Exchange(method, path, sent_headers, content or b"", answer.status_code, known, answer.content)

    def _request(self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> httpx.Response:
        """A server may close a connection that is kept alive; such a request is sent once more (RFC 9112, 9.3.1)."""
        try:
            return self._client.request(method, url, content=content, headers=headers)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return self._client.request(method, url, content=content, headers={**headers, "connection": "close"})

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """The head of a raw request, with the caller's own headers."""
        where = urlsplit(self.url)
        lines = [f"{method} {where.path}/{path} HTTP/1.1", f"Host: {where.netloc}"]
        lines += [f"{name}: {value}" for name, value in (self.headers | dict(headers)).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def raw(self, content: bytes, answers: int = 1, end: bool = False) -> list[Exchange]:
        """Send these bytes on a connection of their own and read so many answers; `end`: close the sending half after.

        Interim (1xx) answers are answers too. What does not come is an exchange with status 0.
        """
        head, _, body = content.partition(b"\r\n\r\n")
        method, path, *_ = *head.split(b" "), b""
        about = (method.decode("latin-1"), path.decode("latin-1"), self._headers_of(head), body)
        found: list[Exchange] = []
        try:
            with self._connect() as connection:
                connection.sendall(content)
                if end and not isinstance(connection, ssl.SSLSocket):
                    connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as stream:
                    for _ in range(answers):
                        found.append(Exchange(*about, *_read_answer(stream)))
        except (OSError, ValueError) as error:
            found.append(Exchange(*about, 0, {}, b"", f"{type(error).__name__}: {error}"))
        return found

    def abandon(self, content: bytes) -> None:
        """Send these bytes and hang up without reading."""
        try:
            with self._connect() as connection:
                connection.sendall(content)
        except OSError:
            return

    def _connect(self) -> socket.socket:
        where = urlsplit(self.url)
        port = where.port or (443 if where.scheme == "https" else 80)
        connection = socket.create_connection((where.hostname or "", port), self.timeout_s)
        if where.scheme == "https":
            return ssl.create_default_context().wrap_socket(connection, server_hostname=where.hostname)
        return connection

    @staticmethod
    def _headers_of(head: bytes) -> dict[str, str]:
        pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        return {name.decode("latin-1").lower(): value.strip().decode("latin-1") for name, _, value in pairs}


def _read_answer(stream: Any) -> tuple[int, dict[str, str], bytes, str]:
    """Status, headers, body, failure of the next answer in the stream. Raises `OSError`, `ValueError`."""
    line = stream.readline(8192)
    if not line:
        return 0, {}, b"", "the connection was closed without an answer"
    status = int(line.split(b" ")[1])
    headers: dict[str, str] = {}
    while (line := stream.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.partition(b":")
        headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
    if status < 200 or status in (204, 304):
        return status, headers, b"", ""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return status, headers, _read_chunks(stream), ""
    if "content-length" in headers:
        return status, headers, stream.read(min(int(headers["content-length"]), MAX_ANSWER_BYTES)), ""
    return status, headers, stream.read(MAX_ANSWER_BYTES), ""


def _read_chunks(stream: Any) -> bytes:
    parts: list[bytes] = []
    while size := int(stream.readline(1024).split(b";")[0], 16):
        parts.append(stream.read(min(size, MAX_ANSWER_BYTES)))
        stream.readline(16)
    stream.readline(1024)
    return b"".join(parts)
