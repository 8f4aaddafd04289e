"""gRPC on real processes: `algomart serve` on the base install, and the market with its vouchers and ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.journal import UsageEntry, read_segment
from tests.e2e.test_serve import RUN
from tests.live import LiveMarket
from tests.neighbours import STARTERS, starter
from tests.ports import free_port

MODEL = "dongzhi/plant-load-boosting"
ROWS = np.array([[14.96, 41.76, 1024.07, 73.17], [25.18, 62.96, 1020.04, 59.08]], np.float32)


def computed(folder: Path) -> Any:
    session = onnxruntime.InferenceSession(starter(MODEL, folder).model_path, providers=["CPUExecutionProvider"])
    return session.run(["value"], {"features": ROWS})[0]


def features() -> list[Any]:
    tensor = triton.InferInput("features", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)
    return [tensor]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A lone node over one bundle that nobody has reviewed: it runs in a limited worker."""
    home, grpc_port = tmp_path / "home", free_port()
    bundle = STARTERS / f"{MODEL.replace('/', '--')}.zip"
    command = [sys.executable, "-c", RUN, "serve", str(bundle), "--home", str(home)]
    command += ["--port", str(free_port()), "--grpc-port", str(grpc_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"127.0.0.1:{grpc_port}"
    with triton.InferenceServerClient(url) as client:
        deadline = time.monotonic() + 60
        while not is_ready(client):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield process, home, url
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def is_ready(client: Any) -> bool:
    try:
        return bool(client.is_server_ready())
    except triton.InferenceServerException:
        return False


def test_a_lone_node_answers_over_grpc_and_ends_when_told(node: Any, tmp_path: Path) -> None:
    process, home, url = node
    key = json.loads((home / "node-key.json").read_text(encoding="utf-8"))["key"]
    wanted = computed(tmp_path / "starter")
    answered, stopping = [], threading.Event()

    def call_on() -> None:
        """Until the node goes: what it answers is right, and what it does not answer is UNAVAILABLE."""
        with triton.InferenceServerClient(url) as client:
            while True:
                try:
                    result = client.infer("dongzhi--plant-load-boosting", features(), headers={"x-api-key": key})
                except triton.InferenceServerException as error:
                    if stopping.is_set() and error.status() == "StatusCode.UNAVAILABLE":
                        return
                    raise
                np.testing.assert_allclose(result.as_numpy("value"), wanted, rtol=1e-5)
                answered.append(result.get_response().parameters["usage_id"].string_param)

    failed: list[BaseException] = []

    def caller() -> None:
        try:
            call_on()
        except BaseException as error:  # told by the test
            failed.append(error)

    threads = [threading.Thread(target=caller) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answered) < 10 and not failed:
        time.sleep(0.01)
    stopping.set()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)  # uvicorn hands the signal on when everything has ended
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed, [str(each) for each in failed]
    (segment,) = (home / "journal").iterdir()
    written = [entry.usage.usage_id for entry in read_segment(segment).entries if isinstance(entry, UsageEntry)]
    assert sorted(answered) == sorted(written)  # nothing answered that is not billed, nor billed that is not answered


def test_a_grpc_port_that_is_taken_is_refused_at_once(node: Any, tmp_path: Path) -> None:
    _, _, url = node
    bundle = STARTERS / f"{MODEL.replace('/', '--')}.zip"
    command = [sys.executable, "-m", "marketplace.cli", "serve", str(bundle), "--home", str(tmp_path / "second")]
    command += ["--port", str(free_port()), "--grpc-port", url.partition(":")[2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "PORT_IN_USE" in done.stderr
    assert "ALGOMART_GRPC_PORT" in done.stderr


def test_without_its_packages_the_port_is_refused_with_the_remedy(tmp_path: Path) -> None:
    bundle = STARTERS / f"{MODEL.replace('/', '--')}.zip"
    without = RUN.replace("('fastapi',", "('grpc', 'fastapi',").replace("Error(name)", "Error(name, name=name)")
    assert "'grpc'" in without
    command = [sys.executable, "-c", without, "serve", str(bundle), "--home", str(tmp_path / "home")]
    command += ["--port", str(free_port()), "--grpc-port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "GRPC_NOT_INSTALLED" in done.stderr
    assert "algomart[grpc]" in done.stderr


def test_the_market_bills_a_call_over_grpc_as_one_over_http(live_market: LiveMarket, tmp_path: Path) -> None:
    client = live_market.client("factory")
    tensor = {"name": "features", "shape": list(ROWS.shape), "datatype": "FP32", "data": ROWS.ravel().tolist()}
    over_http = client.post("/v2/models/dongzhi--plant-load-boosting/infer", json={"inputs": [tensor]})
    assert over_http.status_code == 200, over_http.text
    with triton.InferenceServerClient(f"127.0.0.1:{live_market.grpc_port}") as caller:
        headers = {"authorization": f"Bearer {live_market.keys['factory']}"}
        result = caller.infer(MODEL, features(), headers=headers)
    np.testing.assert_allclose(result.as_numpy("value"), computed(tmp_path / "starter"), rtol=1e-5)
    parameters = result.get_response().parameters
    assert str(parameters["amount_micro"].int64_param) == over_http.headers["x-amount-micro"]
    mine, other = traced(client, parameters["usage_id"].string_param), traced(client, over_http.headers["x-usage-id"])
    for part in ("model", "amount_micro", "price_version"):
        assert mine[part] == other[part]


def traced(client: httpx.Client, usage_id: str) -> Any:
    """The usage record in the ledger, once it has been ingested."""
    deadline = time.monotonic() + 30
    while (answer := client.get(f"/api/v1/usage/{usage_id}")).status_code == 404:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


def test_the_market_s_health_is_told_over_grpc(live_market: LiveMarket) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{live_market.grpc_port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
