"""How a node stops: it says that it is not ready, finishes what is in hand, refuses who comes, seals its journal."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.journal import UsageEntry, read_segment, verify
from tests.load.node import SLOW
from tests.load.servers import load_node
from tests.serving.parts import rows
from tests.serving.test_http import PATH, raw, read_answers, request_of, serve


def test_calls_in_flight_at_sigterm_are_answered_and_written_down(tmp_path: Path) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[%d,2,3]}]}'
    path = f"/v2/models/{SLOW.replace('/', '--')}/infer"
    with load_node(tmp_path) as node:
        calls = [socket.create_connection(("127.0.0.1", node.port), timeout=30) for _ in range(40)]
        for index, connection in enumerate(calls):
            connection.sendall(raw(body % index, path, key="load-key-factory"))
        metrics = httpx.Client(trust_env=False)
        while b"algomart_queue_waiting 0" in metrics.get(f"http://127.0.0.1:{node.port}/metrics").content:
            pass  # until they are in hand
        metrics.close()
        os.kill(node.pid, signal.SIGTERM)
        with ThreadPoolExecutor(40) as readers:
            answers = list(readers.map(lambda connection: read_answers(connection, 1), calls))
        for index, answer in enumerate(answers):
            ((status, content),) = answer
            assert status == 200
            assert httpx.Response(200, content=content).json()["outputs"][0]["data"] == [2.0 * index, 4.0, 6.0]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", node.port), timeout=5)
    (journal,) = (tmp_path / "journal").glob("*.alj")
    assert verify(journal) == []
    assert len([entry for entry in read_segment(journal).entries if isinstance(entry, UsageEntry)]) == 40


@pytest.mark.parametrize("before", [0, 1, 3], ids=["a new head", "a head parsed once", "a known head"])
@pytest.mark.parametrize("more", [b"", b"Idempotency-Key: drain\r\n"], ids=["hot path", "ordinary way"])
def test_a_call_half_received_at_the_end_is_answered(tmp_path: Path, before: int, more: bytes) -> None:
    running = serve(tmp_path)
    node = next(running)
    node.warm()
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(before):
            connection.sendall(raw(body, extra=more))
            assert read_answers(connection, 1)[0][0] == 200
        connection.sendall(raw(body, extra=more)[:-10])
        time.sleep(0.1)  # it is read by itself
        node.server.should_exit = True
        time.sleep(0.3)  # nobody is accepted any more
        connection.sendall(body[-10:])
        assert read_answers(connection, 1)[0][0] == 200
    next(running, None)


def test_readiness_goes_first_and_calls_are_taken_until_connections_are_refused(tmp_path: Path) -> None:
    running = serve(tmp_path, drain_s=1.0)
    node = next(running)
    x = rows(1)
    with node.client() as client:
        assert client.get("/v2/health/ready").status_code == 200
        stopping = threading.Thread(target=lambda: next(running, None))
        stopping.start()
        while client.get("/v2/health/ready").status_code == 200:
            pass
        answer = client.post(PATH, json=request_of(x))
        assert answer.status_code == 200
        np.testing.assert_array_equal(np.float32(answer.json()["outputs"][0]["data"]), (2 * x).ravel())
        assert client.get("/v2/health/live").status_code == 200
    stopping.join(30)
    assert not stopping.is_alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", node.port), timeout=5)
