"""Clients that hold a connection for ever are closed, and others are served meanwhile. Raw sockets on loopback."""

from __future__ import annotations

import gc
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.serving.parts import rows, until
from tests.serving.test_http import PATH, Served, raw, read_answers, request_of, serve

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-factory\r\n".encode()
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("node")
    yield from serve(
        folder, receive_timeout_s=1.0, send_timeout_s=1.0, max_connections=20, max_bodies_in_all_bytes=1 << 20
    )


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=20)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    content = b""
    try:
        while part := connection.recv(1 << 16):
            content += part
    except ConnectionResetError:
        pass
    return content


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b"HTTP/1.1 408 "),
        (b"POST", b"HTTP/1.1 408 "),
        (HEAD + b"X-Slow: ", b"HTTP/1.1 408 "),
        (HEAD + b"Content-Length: 400\r\n\r\n{", b"HTTP/1.1 408 "),
        (HEAD + b"X-Deadline-Ms: 900\r\nContent-Length: 400\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "a word", "half a head", "half a small body", "half a body"],
)
def test_a_request_that_does_not_come_to_its_end_is_closed(served: Served, sent: bytes, said: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(sent)
        assert rest_of(connection).startswith(said)


def check_it_is_closed_while_it_sends(connection: socket.socket, byte: bytes) -> None:
    connection.settimeout(0.1)
    for _ in range(200):
        connection.sendall(byte)
        try:
            answer = connection.recv(100)
        except TimeoutError:
            continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        return
    pytest.fail("it was never closed")


@pytest.mark.parametrize("times", [1, 3])
def test_so_is_one_under_a_head_that_was_answered_before(served: Served, times: int) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
    with connect(served) as connection:
        for _ in range(times):  # once: it may be another way that it is answered
            connection.sendall(raw(body))
            assert read_answers(connection, 1)[0][0] == 200
        connection.sendall(raw(body)[:-10])
        assert rest_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_in_under_a_known_head_is_closed_though_it_never_stops(served: Served) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3' + b" " * 400 + b"]}]}"
    with connect(served) as connection:
        for _ in range(3):
            connection.sendall(raw(body))
            assert read_answers(connection, 1)[0][0] == 200
        connection.sendall(raw(body)[:-399])
        check_it_is_closed_while_it_sends(connection, b" ")


def test_a_head_that_trickles_in_is_closed_though_it_never_stops(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD)
        check_it_is_closed_while_it_sends(connection, b"X")


def test_a_client_that_asks_now_and_then_is_left_alone(served: Served) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
    with connect(served) as connection:
        for _ in range(2):
            connection.sendall(raw(body))
            assert read_answers(connection, 1)[0][0] == 200
            slow = connect(served)  # the server looks at both while this one is being closed
            rest_of(slow)


def test_a_client_that_does_not_read_is_closed_and_holds_up_nobody(served: Served) -> None:
    x = rows(16_000)
    content = request_of(x)
    with connect(served) as connection, served.client() as client:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = httpx.Request("POST", f"http://x{PATH}", json=content)
        for _ in range(12):  # answers of several hundred KiB each, none of them read
            connection.sendall(raw(request.read()))
            answer = client.post(PATH, json=request_of(rows(1)))
            assert answer.status_code == 200
        closed = select.poll()
        closed.register(connection, 0)  # the end alone, not what could be read
        assert closed.poll(20_000)


def test_connections_beyond_the_cap_are_told_so_and_room_comes_back(served: Served) -> None:
    held = [connect(served) for _ in range(20)]
    refused = connect(served)
    refused.sendall(HEAD)
    head = rest_of(refused)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"CONNECTIONS_FULL" in head
    assert b"retry-after: 1\r\n" in head
    for connection in (*held, refused):
        connection.close()
    with connect(served) as connection:
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
        connection.sendall(raw(body))
        assert read_answers(connection, 1)[0][0] in (200, 503)


async def test_bodies_that_together_are_too_large_are_refused_before_they_are_held(served: Served) -> None:
    room = served.node.app.bodies
    await until(lambda: not room.held)
    part = b" " * (700 << 10)
    with connect(served) as one, connect(served) as other:
        one.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + part)
        await until(lambda: room.held >= len(part))
        other.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + part)
        ((status, answer),) = read_answers(other, 1)
        assert status == 429
        assert b"BODIES_FULL" in answer
        assert room.held <= room.limit
    await until(lambda: not room.held)


async def test_bodies_that_wait_for_their_rest_under_a_known_head_are_counted_too(served: Served) -> None:
    room = served.node.app.bodies
    served.warm()
    await until(lambda: not room.held)
    known = raw(BODY, extra=b"Inference-Header-Content-Length: %d\r\n" % len(BODY))
    head = known[: known.index(b"\r\n\r\n") + 4].replace(
        b"Content-Length: %d\r\n" % len(BODY), b"Content-Length: 500000\r\n", 1
    )
    part = b" " * (400 << 10)
    with connect(served) as one, connect(served) as two, connect(served) as three:
        for each in (one, two, three):
            each.sendall(known)
            assert read_answers(each, 1)[0][0] == 200
        for number, each in enumerate((one, two), 1):
            each.sendall(head + part)
            await until(lambda number=number: room.held >= number * len(part))  # type: ignore[misc]
        three.sendall(head + part)
        ((status, answer),) = read_answers(three, 1)
        assert status == 429
        assert b"BODIES_FULL" in answer
        assert room.held <= room.limit
    await until(lambda: not room.held)


async def test_nothing_is_kept_of_the_body_of_whoever_has_no_key(served: Served) -> None:
    head = raw(BODY, key="unknown-key-0123456789abcdef0123456789abcdef")
    with connect(served) as connection:
        for content in (head, head[: -len(BODY)], head[:-9]):
            connection.sendall(content)
            assert read_answers(connection, 1)[0][0] == 401
            if content != head:
                break
            ((waits),) = served.server.server_state.connections
            assert waits._pieces is None


EMPTY_LINE = b"\r\n"


@pytest.mark.parametrize(
    "asked",
    [b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", raw(BODY), raw(BODY, extra=b"X-Deadline-Ms: 1900\r\n")],
    ids=["no key", "hot path", "ordinary way"],
)
def test_an_empty_line_is_no_request_and_keeps_no_connection(served: Served, asked: bytes) -> None:
    usual, served.server.config.timeout_keep_alive = served.server.config.timeout_keep_alive, 0.4
    try:
        with connect(served) as connection:
            for _ in range(2):
                connection.sendall(asked)
                assert read_answers(connection, 1)[0][0] == 200
            connection.sendall(EMPTY_LINE)
            assert rest_of(connection) == b""  # closed, as if nothing had been sent
    finally:
        served.server.config.timeout_keep_alive = usual


async def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(served: Served) -> None:
    """Its long passes are seldom here, so that what only they free would pile up."""
    served.warm()
    connections = served.server.server_state.connections
    await until(lambda: not connections)
    gc.collect()
    gc.disable()
    try:
        with connect(served) as connection:
            for header in (b"", b"X-Deadline-Ms: 1900\r\nIdempotency-Key: a\r\n"):
                connection.sendall(raw(BODY, extra=header))
                assert read_answers(connection, 1)[0][0] == 200
            (seen,) = (weakref.ref(each) for each in connections)
        await until(lambda: seen() is None)
    finally:
        gc.enable()


def hold_the_loop(served: Served, seconds: float) -> None:
    """As a stopped process, or a machine without a processor to spare, holds it: in the middle of what it reads, with
    timers next."""
    held = threading.Event()
    one, other = socket.socketpair()

    def hold() -> None:
        served.loop.remove_reader(one)
        held.set()
        time.sleep(seconds)

    served.loop.call_soon_threadsafe(served.loop.add_reader, one, hold)
    other.send(b"x")
    assert held.wait(10)
    other.close()


@pytest.mark.parametrize("header", [b"", b"X-Deadline-Ms: 1900\r\n"], ids=["hot path", "ordinary way"])
def test_a_request_sent_while_the_server_stood_still_is_answered(served: Served, header: bytes) -> None:
    served.warm()
    usual, served.server.config.timeout_keep_alive = served.server.config.timeout_keep_alive, 0.4
    try:
        with connect(served) as connection:
            connection.sendall(raw(BODY, extra=header))
            assert read_answers(connection, 1)[0][0] == 200
            hold_the_loop(served, 0.8)  # longer than an idle connection is kept
            connection.sendall(raw(BODY, extra=header))
            assert read_answers(connection, 1)[0][0] == 200
            assert rest_of(connection) == b""  # idle now, and closed
    finally:
        served.server.config.timeout_keep_alive = usual


@pytest.mark.parametrize("header", [b"", b"X-Deadline-Ms: 1900\r\n"], ids=["small body", "application reads it"])
async def test_time_in_which_the_server_stood_still_is_not_the_clients(served: Served, header: bytes) -> None:
    slow, content = served.server.slow_clients, raw(BODY, extra=header)
    assert slow is not None
    with connect(served) as connection:
        connection.sendall(content[:-5])
        await until(lambda: any(not each.is_between for each in served.server.server_state.connections))
        usual = slow.clock
        slow._receive_s += 2.5  # of the hour that follows, in which nobody was there, one step counts
        slow.clock = lambda: usual() + 3600
        try:
            looked = slow._now
            await until(lambda: slow._now > looked + 1.9)
            connection.sendall(content[-5:])
            assert read_answers(connection, 1)[0][0] == 200
        finally:
            slow._receive_s -= 2.5


def test_all_is_well_afterwards(served: Served) -> None:
    x = rows(2)
    with served.client() as client:
        answer = client.post(PATH, json=request_of(x))
        np.testing.assert_array_equal(np.float32(answer.json()["outputs"][0]["data"]), (2 * x).ravel())
