"""Heads without end are refused before anybody is asked for a key, and hold up nobody. Raw sockets on loopback."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import orjson
import pytest

from serving.connections import MAX_HEAD_BYTES
from tests.serving.test_http import PATH, Served, exchange, raw, read_answers, serve

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
FLOOD = 8 << 20
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
CHUNKED = GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("node"))


def flooded(served: Served, start: bytes, piece: bytes) -> tuple[int, bytes]:
    """Send `piece` again and again after `start`, until the other end closes or has read `FLOOD` bytes; how many bytes
    went out, and what was answered."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(start)
        sent, said = 0, b""
        connection.settimeout(0)
        while sent < FLOOD:
            select.select([connection], [connection], [])
            with contextlib.suppress(BlockingIOError):
                try:
                    sent += connection.send(piece)
                    said += (part := connection.recv(1 << 16))
                    if not part or b"HEAD_TOO_LARGE" in said:
                        break
                except (BrokenPipeError, ConnectionResetError):
                    break
        return sent, said


@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (GET, b"".join(b"X-%04d: %b\r\n" % (number, b"y" * 50) for number in range(900)), b"431"),
        (GET + b"X-Long: ", b"y" * 60_000, b"431"),
        (b"GET /v2/", b"y" * 60_000, b"431"),
        (CHUNKED, b"".join(b"X-%04d: %b\r\n" % (number, b"y" * 50) for number in range(900)), b"404"),
        (CHUNKED + b"X-Long: ", b"y" * 60_000, b"404"),
        (CHUNKED.replace(b"\r\n0\r\n", b"\r\n1;"), b"y" * 60_000, b"404"),
    ],
    ids=["headers", "a header", "an address", "trailers", "a trailer", "a chunk's extension"],
)
def test_a_head_without_end_is_refused(served: Served, start: bytes, piece: bytes, status: bytes) -> None:
    sent, said = flooded(served, start, piece)
    assert sent < FLOOD
    answers = [line for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert len(answers) <= 1  # none where it was lost to what was still being sent
    assert all(answer.startswith(b"HTTP/1.1 " + status) for answer in answers)
    with served.client() as client:
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_too_large_is_said_in_both_languages_and_ends_the_connection(served: Served, count: int) -> None:
    header = b"".join(b"X-%d: %b\r\n" % (number, b"y" * (MAX_HEAD_BYTES // count)) for number in range(count))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(raw(BODY))
        assert read_answers(connection, 1)[0][0] == 200
        connection.sendall(raw(BODY, extra=header))
        ((status, body),) = read_answers(connection, 1)
        assert status == 431
        assert connection.recv(1) == b""
    told = orjson.loads(body)["error"]
    assert told["code"] == "HEAD_TOO_LARGE"
    assert told["message_zh"]
    assert served.node.app.dataplane.statistics.refusals["HEAD_TOO_LARGE"]


def test_a_head_within_the_bound_is_answered_and_each_has_it_to_itself(served: Served) -> None:
    header = b"X-Long: " + b"y" * (MAX_HEAD_BYTES - 1000) + b"\r\n"
    answers = exchange(served, raw(BODY, extra=header) * 6, answers=6)
    assert [status for status, _ in answers] == [200] * 6


def test_a_long_body_in_very_small_chunks_is_no_head(served: Served) -> None:
    chunks = [b"1\r\n \r\n"] * 30_000 + [b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)]
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-factory\r\n".encode()
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    assert exchange(served, head + b"".join(chunks))[0][0] == 200


def test_a_trailer_is_no_header(served: Served) -> None:
    """Else who may send a body could add to the head that something in front of this server had looked at."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"%x\r\n%b\r\n0\r\nAuthorization: Bearer key-factory\r\n\r\n" % (len(BODY), BODY)
    (status, answer), *_ = exchange(served, head + body)
    assert status == 401
    assert b"KEY_MISSING" in answer
