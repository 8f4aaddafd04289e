"""The Python client where the network is bad: what it sends again, what it never does; nothing is paid twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from marketplace.client import Market, MarketError
from tests.e2e.test_first_sale import eventually
from tests.live import LiveMarket
from tests.marketplace.bundles import linear_zip

ROW = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]


@contextmanager
def between(port: int, answer: Callable[[int, bytes], bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy for one request a connection: `answer(number, what the market said)` is what the caller gets of it."""
    listening = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def pump(caller: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += caller.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        fields = [line.split(b":") for line in head.lower().split(b"\r\n")]
        lengths = [int(field[1]) for field in fields if field[0] == b"content-length"]
        while len(body) < sum(lengths):
            body += caller.recv(65536)
        seen.append(head)
        with socket.create_connection(("127.0.0.1", port)) as market:
            market.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            said = b""
            while part := market.recv(65536):
                said += part
        caller.sendall(answer(len(seen), said))
        caller.close()

    def accept() -> None:
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=pump, args=(caller,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", seen
    finally:
        listening.close()


def lost_at_first(number: int, said: bytes) -> bytes:
    return b"" if number == 1 else said


def busy(status: str, *, until: int = 99) -> Callable[[int, bytes], bytes]:
    body = b'{"error":{"code":"QUEUE_FULL","message":"full","retry_after_s":0}}'
    refusal = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    return lambda number, said: said if number > until else refusal


@pytest.fixture(scope="module")
def model(live_market: LiveMarket, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A private model of the factory's own."""
    path = tmp_path_factory.mktemp("own") / "b.zip"
    path.write_bytes(linear_zip(tmp_path_factory.mktemp("bundle"), "demo-factory/again"))
    with Market(live_market.url, live_market.keys["factory"]) as market:
        market.publish(path, "demo-factory/again", private=True)
    return "demo-factory/again"


def test_a_call_whose_answer_was_lost_is_sent_again_and_recorded_once(live_market: LiveMarket, model: str) -> None:
    def recorded() -> int:
        with Market(live_market.url, live_market.keys["factory"]) as market:
            return sum(1 for each in market.all_usage() if each["model"].startswith(model))

    with Market(live_market.url, live_market.keys["factory"]) as market:
        market.infer(model, ROW)
    eventually(lambda: recorded() >= 1)
    before = recorded()
    with between(live_market.port, lost_at_first) as (url, seen), Market(url, live_market.keys["factory"]) as market:
        answer = market.infer(model, ROW)
    assert answer["outputs"][0]["shape"][0] == 1
    assert len(seen) == 2
    keys = {line for head in seen for line in head.split(b"\r\n") if line.lower().startswith(b"idempotency-key")}
    assert len(keys) == 1
    with Market(live_market.url, live_market.keys["factory"]) as market:
        market.infer(model, ROW)  # recorded after the two: then both have been looked at
    eventually(lambda: recorded() >= before + 2)
    assert recorded() == before + 2


def test_what_could_do_harm_twice_is_not_sent_again(live_market: LiveMarket) -> None:
    key = live_market.keys["factory"]
    with between(live_market.port, lost_at_first) as (url, seen), Market(url, key) as market:
        with pytest.raises(httpx.TransportError):
            market.create_key("lost")
        assert len(seen) == 1
        market.me()
    with between(live_market.port, busy("503 Service Unavailable")) as (url, seen), Market(url, key) as market:
        with pytest.raises(MarketError):
            market.create_key("lost too")
        assert len(seen) == 1


@pytest.mark.parametrize(("status", "sent"), [("429 Too Many Requests", 2), ("503 Service Unavailable", 2)])
def test_what_the_market_asks_to_be_sent_again_is(live_market: LiveMarket, status: str, sent: int) -> None:
    key = live_market.keys["factory"]
    with between(live_market.port, busy(status, until=1)) as (url, seen), Market(url, key) as market:
        assert market.me()["organisation"]["slug"] == "demo-factory"
    assert len(seen) == sent


def test_it_gives_up_after_two_more_tries_and_at_once_where_told_to(live_market: LiveMarket) -> None:
    for retries, sent in ((2, 3), (0, 1)):
        proxy = between(live_market.port, busy("429 Too Many Requests"))
        refused = pytest.raises(MarketError)
        with (
            proxy as (url, seen),
            Market(url, live_market.keys["factory"], retries=retries) as market,
            refused as caught,
        ):
            market.me()
        assert (caught.value.code, len(seen)) == ("QUEUE_FULL", sent)


def test_a_key_is_rotated_with_the_overlap_that_was_asked_for(live_market: LiveMarket) -> None:
    with Market(live_market.url, live_market.keys["factory"]) as market:
        made = market.create_key("line 4")
        rotated = market.rotate_key(made["id"], overlap_hours=2)
        assert 0 < rotated["old"]["expires_at_ms"] - rotated["created_at_ms"] <= 2 * 3_600_000
