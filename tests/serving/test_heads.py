"""A head that was answered before is not parsed again, and nothing else is ever taken for one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httptools
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import http_protocol
from serving.bodies import BodyRoom, Pieces
from serving.errors.node import bodies_full
from serving.heads import Head, head_of, known_head
from serving.protocols.oip import Target
from tests.serving.parts import KEY, OTHER_KEY, READ_KEY, rows
from tests.serving.test_http import Served, numbers, raw, read_answers, request_of, serve

TARGET = Target("acme--double", None, "infer")
FIELDS = {b"authorization": b"Bearer k"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = serve(tmp_path_factory.mktemp("heads"))
    served = next(running)
    served.warm()
    yield served
    next(running, None)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Each request that was answered by way of the parser."""
    seen: list[bytes] = []
    real = http_protocol._FastHttpProtocol._take_parsed

    def counted(self: Any, target: Target, body: bytes, deliver: Any) -> Any:
        seen.append(body)
        return real(self, target, body, deliver)

    monkeypatch.setattr(http_protocol._FastHttpProtocol, "_take_parsed", counted)
    return seen


def of(value: float) -> bytes:
    return orjson.dumps(request_of(np.full((1, 3), value, np.float32)))


class Connection:
    def __init__(self, served: Served) -> None:
        self._socket = socket.create_connection(("127.0.0.1", served.port), timeout=20)

    def ask(self, *parts: bytes, answers: int = 1) -> list[tuple[int, bytes]]:
        for part in parts:
            self._socket.sendall(part)
        return read_answers(self._socket, answers)

    def ask_slowly(self, *pieces: bytes, answers: int = 1) -> list[tuple[int, bytes]]:
        """Each piece is read before the next is sent."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            self._socket.sendall(piece)
            time.sleep(0.01)
        return read_answers(self._socket, answers)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_the_same_head_is_parsed_once_whatever_the_length_of_the_body(served: Served, parsed: list[bytes]) -> None:
    with Connection(served) as connection:
        for value in (1.0, 2.5, 1234.5, 3.0) * 20:
            ((status, body),) = connection.ask(raw(of(value)))
            assert status == 200
            assert numbers(body) == [2 * value] * 3
    assert len(parsed) <= 2  # the key may have been due to be asked for again


def test_large_binary_bodies_under_a_known_head_are_answered_with_their_own_numbers(served: Served) -> None:
    with Connection(served) as connection:
        for value in (1.0, 2.0, 3.0, 4.0):
            x = np.full((7000, 3), value, np.float32)  # 84 KB
            tensor = {"name": "x", "shape": [7000, 3], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
            head = orjson.dumps({"inputs": [tensor]})
            extra = b"Inference-Header-Content-Length: %d\r\n" % len(head)
            ((status, body),) = connection.ask(raw(head + x.tobytes(), extra=extra))
            assert status == 200
            assert set(numbers(body)) == {2 * value}


def test_another_key_model_or_field_on_the_same_connection_is_parsed(served: Served, parsed: list[bytes]) -> None:
    with Connection(served) as connection:
        assert connection.ask(raw(of(1)))[0][0] == 200
        assert connection.ask(raw(of(2), key="unknown-key-0123456789abcdef0123456789abcdef"))[0][0] == 401
        assert connection.ask(raw(of(3), key=READ_KEY))[0][0] == 403
        assert connection.ask(raw(of(4), path="/v2/models/acme--nothing/infer"))[0][0] == 404
        ((status, body),) = connection.ask(raw(of(5)))
        assert (status, numbers(body)) == (200, [10.0] * 3)
        assert connection.ask(raw(of(6), extra=b"X-Deadline-Ms: 500\r\n"))[0][0] == 200
        assert connection.ask(raw(of(7), key=OTHER_KEY))[0][0] in (200, 402, 404)


def test_a_revoked_key_is_refused_under_a_known_head_too(served: Served) -> None:
    with Connection(served) as connection:
        assert connection.ask(raw(of(1)))[0][0] == 200
        served.node.dataplane.forget_keys()
        assert connection.ask(raw(of(2)))[0][0] == 200  # asked again, the ordinary way
        assert connection.ask(raw(b"{"))[0][0] == 400
        assert connection.ask(raw(of(3)))[0][0] == 200


def test_a_request_in_pieces_or_with_another_behind_it_is_answered(served: Served) -> None:
    with Connection(served) as connection:
        assert connection.ask(raw(of(1)))[0][0] == 200
        whole = raw(of(2))
        for cut in (1, 20, whole.index(b"\r\n\r\n") + 2, whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
            ((status, body),) = connection.ask(whole[:cut], whole[cut:])
            assert (status, numbers(body)) == (200, [4.0] * 3)
        answers = connection.ask(raw(of(3)) + raw(of(4)), answers=2)
        assert [numbers(body) for _, body in answers] == [[6.0] * 3, [8.0] * 3]
        answers = connection.ask(raw(of(5)) + raw(of(6))[:30], raw(of(6))[30:] + raw(of(7)), answers=3)
        assert [numbers(body) for _, body in answers] == [[10.0] * 3, [12.0] * 3, [14.0] * 3]
        ((status, body),) = connection.ask(raw(of(8)))
        assert (status, numbers(body)) == (200, [16.0] * 3)


def test_a_body_in_pieces_is_not_parsed_under_a_known_head(served: Served, parsed: list[bytes]) -> None:
    with Connection(served) as connection:
        whole = raw(of(1))
        start = whole.index(b"\r\n\r\n") + 4
        assert connection.ask_slowly(whole[: start + 9], whole[start + 9 :])[0][0] == 200
        parsed.clear()  # the first one made the head known, though it came in two pieces
        for value in (2.0, 33.5, 4.25):
            whole = raw(of(value))
            start = whole.index(b"\r\n\r\n") + 4
            for cuts in ([start], [start + 1, start + 2], [len(whole) - 1], list(range(start, len(whole), 7))):
                pieces = [whole[a:b] for a, b in pairwise([0, *cuts, len(whole)])]
                ((status, body),) = connection.ask_slowly(*pieces)
                assert (status, numbers(body)) == (200, [2 * value] * 3)
        assert not parsed


def test_what_comes_with_the_last_piece_of_a_body_is_another_request(served: Served) -> None:
    with Connection(served) as connection:
        assert connection.ask(raw(of(1)))[0][0] == 200
        first, second = raw(of(2)), raw(of(3))
        answers = connection.ask_slowly(first[:-5], first[-5:] + second[:-5], second[-5:] + raw(b"{}"), answers=3)
        assert [status for status, _ in answers] == [200, 200, 400]
        assert [numbers(body) for _, body in answers[:2]] == [[4.0] * 3, [6.0] * 3]
        ((status, body),) = connection.ask(raw(of(4)))
        assert (status, numbers(body)) == (200, [8.0] * 3)


def test_a_head_is_not_known_by_the_body_of_one_before_it(served: Served, parsed: list[bytes]) -> None:
    """Two requests in one read: neither is known by the other's head, whatever stands in their bodies."""
    with Connection(served) as connection:
        other = raw(of(2), extra=b"X-Deadline-Ms: 60000\r\n")
        assert [status for status, _ in connection.ask(raw(of(1)) + other, answers=2)] == [200, 200]
        parsed.clear()
        assert connection.ask(raw(of(3)))[0][0] == 200
        assert len(parsed) == 1


def test_a_body_that_looks_like_a_known_request_is_a_body(served: Served) -> None:
    """What a client smuggles into the body of an unfinished request is never answered as one."""
    with Connection(served) as connection:
        assert connection.ask(raw(of(1)))[0][0] == 200
        inner = raw(of(2))
        head = f"POST /v2/models/acme--double/infer HTTP/1.1\r\nHost: y\r\nAuthorization: Bearer {KEY}\r\n".encode()
        connection.ask(head + b"Content-Length: %d\r\n\r\n" % len(inner), answers=0)
        ((status, _),) = connection.ask(inner)
        assert status == 400


def test_a_binary_header_length_is_kept_with_the_head(served: Served) -> None:
    x = rows(2)
    head = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": 24}}]}
    )
    extra = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    with Connection(served) as connection:
        for factor in (1, 2, 3):
            ((status, body),) = connection.ask(raw(head + (x * factor).tobytes(), extra=extra))
            assert status == 200
            np.testing.assert_allclose(numbers(body), (2 * factor * x).ravel(), rtol=1e-6)
        assert connection.ask(raw(head + x.tobytes(), extra=b"Inference-Header-Content-Length: x\r\n"))[0][0] == 400


# --- what is known of a head ------------------------------------------------------------------------------------------


def head() -> Head:
    found = head_of(TARGET, FIELDS)
    assert found is not None
    return found


def test_without_a_key_there_is_no_head() -> None:
    assert head_of(TARGET, {b"authorization": b"Basic abc"}) is None
    found = head_of(TARGET, {b"x-api-key": b" k "})
    assert found is not None
    assert found.token == b"k"


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\nab",  # no length
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",  # two
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabc",  # more than the body behind it
        b"POST / HTTP/1.1\r\nX: " + b"y" * 5000 + b"\r\nContent-Length: 2\r\n\r\nab",  # too long to keep
        b"POST / HTTP/1.1\r\nContent-Length: 2",
        b"",
    ],
)
def test_what_is_not_one_whole_plain_request_is_not_kept(data: bytes) -> None:
    assert known_head(data, b"ab", head()) is None


@given(
    st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH: \t"]),
    st.binary(max_size=40),
    st.binary(max_size=120),
    st.integers(0, 200),
)
def test_a_known_head_takes_a_request_only_as_the_parser_would(
    name: bytes, first: bytes, second: bytes, cut: int
) -> None:
    def request(body: bytes) -> bytes:
        return b"POST /v2 HTTP/1.1\r\nHost: x\r\n" + name + b"%d\r\nX-A: b\r\n\r\n" % len(body) + body

    known = known_head(request(first), first, head())
    assert known is not None
    assert known_head(request(first)[: len(request(first)) - min(cut, len(first))], first, head()) == known
    whole = request(second)
    assert known.span_of(whole) == known.span_of(whole + b"x") == (len(whole) - len(second), len(second))
    assert known.span_of(whole.replace(b"X-A: b", b"X-A: c", 1)) is None
    span = known.span_of(whole[:cut])
    assert span == (known.span_of(whole) if cut >= len(whole) - len(second) else None)
    assert parse(whole) == second


@given(st.binary(min_size=2, max_size=200), st.lists(st.integers(1, 199), max_size=12), st.binary(max_size=20))
def test_pieces_are_whole_with_the_last_byte_and_no_sooner(whole: bytes, cuts: list[int], behind: bytes) -> None:
    edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    *pieces, last = [whole[a:b] for a, b in pairwise(edges)]
    room = BodyRoom(250, bodies_full)
    waiting = Pieces(room, len(whole))
    for piece in pieces:
        assert waiting.add(piece)
        assert not waiting.is_whole
    assert waiting.add(last + behind)
    assert waiting.is_whole
    assert room.held == len(whole + behind)
    assert waiting.let_go() == whole + behind
    assert room.held == 0


def test_a_piece_without_room_is_not_added() -> None:
    room = BodyRoom(10, bodies_full)
    one, other = Pieces(room, 100), Pieces(room, 100)
    assert one.add(b"1234567")
    assert not other.add(b"1234")
    assert other.add(b"123")
    assert other.let_go() == b"123"
    assert one.add(b"890")
    assert one.let_go() == b"1234567890"
    assert room.held == 0


def parse(data: bytes) -> bytes:
    """The body of one whole request by the parser; fails where it is none, or more."""
    seen: list[bytes] = []
    done: list[bool] = []

    class Callbacks:
        def on_body(self, body: bytes) -> None:
            seen.append(body)

        def on_message_complete(self) -> None:
            done.append(True)

    httptools.HttpRequestParser(Callbacks()).feed_data(data)
    assert done == [True]
    return b"".join(seen)
