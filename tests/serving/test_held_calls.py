"""On one core: short calls that came at once have their turns on the event loop, one after the other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest

from serving.cost import CostEstimate
from tests.serving.test_http import Served, numbers, raw, read_answers, request_of, serve

EACH_MS = 3.0  # one of them fills a turn


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    for made in serve(tmp_path, threads=1):
        made.node.admission.purses["org_factory"].step_micro = 10**8  # one lease for the whole test
        yield made


@pytest.fixture
def queued(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Every run is expected to take `EACH_MS`; answers how many went to the queue since."""
    served.warm()
    monkeypatch.setattr(CostEstimate, "predict_ms", lambda *_: EACH_MS)
    queue = served.node.dataplane.queue
    before = queue.runs
    return lambda: queue.runs - before


@contextmanager
def connections(served: Served, count: int, *, new: bool = False) -> Iterator[list[socket.socket]]:
    """Each has sent its head once, unless they are to be new."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 20)) for _ in range(count)]
        for each in [] if new else made:
            each.sendall(call(0))
            assert read_answers(each, 1)[0][0] == 200
        yield made


def call(number: float) -> bytes:
    return raw(orjson.dumps(request_of(np.full((1, 3), number, np.float32))))


@contextmanager
def standing_still(served: Served) -> Iterator[None]:
    """What is sent meanwhile, the event loop finds in one turn."""
    stands, goes_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        goes_on.wait(20)

    served.loop.call_soon_threadsafe(stand)
    assert stands.wait(20)
    try:
        yield
        time.sleep(0.05)  # loopback
    finally:
        goes_on.set()


def test_calls_that_come_at_once_have_their_turns_on_the_loop(served: Served, queued: Callable[[], int]) -> None:
    with connections(served, 4) as each:
        before = len(served.node.usage())
        for turn in range(5):
            with standing_still(served):
                for number, connection in enumerate(each):
                    connection.sendall(call(10 * turn + number))
            for number, connection in enumerate(each):
                ((status, body),) = read_answers(connection, 1)
                assert (status, numbers(body)) == (200, [2.0 * (10 * turn + number)] * 3)
    assert queued() == 0
    assert len(served.node.usage()) - before == 20


def test_more_than_a_few_turns_full_go_to_the_queue(served: Served, queued: Callable[[], int]) -> None:
    with connections(served, 12) as each:
        with standing_still(served):
            for number, connection in enumerate(each):
                connection.sendall(call(number))
        for number, connection in enumerate(each):
            ((status, body),) = read_answers(connection, 1)
            assert (status, numbers(body)) == (200, [2.0 * number] * 3)
    assert 0 < queued() < 12


def test_what_follows_a_held_request_on_its_connection_is_answered_after_it(
    served: Served, queued: Callable[[], int]
) -> None:
    with connections(served, 2) as (first, second):
        with standing_still(served):
            first.sendall(call(1))
            second.sendall(call(2))
        second.sendall(call(3) + call(4))
        second.sendall(raw(b"{}"))
        assert [status for status, _ in read_answers(first, 1)] == [200]
        answers = read_answers(second, 4)
    assert [numbers(body)[0] for _, body in answers[:3]] == [4.0, 6.0, 8.0]
    assert answers[3][0] == 400


@pytest.mark.usefixtures("queued")
def test_a_held_call_is_answered_before_its_server_ends(served: Served) -> None:
    with connections(served, 4) as each:
        with standing_still(served):
            for number, connection in enumerate(each):
                connection.sendall(call(number))
            served.server.should_exit = True
        for number, connection in enumerate(each):
            ((status, body),) = read_answers(connection, 1)
            assert (status, numbers(body)) == (200, [2.0 * number] * 3)


def test_a_body_that_comes_in_two_pieces_has_its_turn_on_the_loop_too(
    served: Served, queued: Callable[[], int]
) -> None:
    with connections(served, 4) as each:
        for number, connection in enumerate(each):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(call(number)[:-10])
        time.sleep(0.05)  # these are read by themselves
        with standing_still(served):
            for number, connection in enumerate(each):
                connection.sendall(call(number)[-10:])
        for number, connection in enumerate(each):
            ((status, body),) = read_answers(connection, 1)
            assert (status, numbers(body)) == (200, [2.0 * number] * 3)
    assert queued() == 0


def test_a_connection_whose_first_call_found_the_turn_full_has_its_next_ones_held(
    served: Served, queued: Callable[[], int]
) -> None:
    with connections(served, 4, new=True) as each:
        time.sleep(0.05)  # accepted
        went_to_the_queue = []
        for turn in range(3):
            with standing_still(served):
                for number, connection in enumerate(each):
                    connection.sendall(call(10 * turn + number))
            for number, connection in enumerate(each):
                ((status, body),) = read_answers(connection, 1)
                assert (status, numbers(body)) == (200, [2.0 * (10 * turn + number)] * 3)
            went_to_the_queue.append(queued())
    assert went_to_the_queue == went_to_the_queue[:1] * 3
