"""A serving process connects to nobody: every socket it has, under load and after, is one that it listens on or that a
caller opened to it, and Python never was asked for another. A market's processes connect to each other only. ONNX
Runtime's telemetry is off before it is imported."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import tritonclient.grpc as triton

from marketplace.starter import FOLDER
from tests.live import AUDITED, LiveMarket
from tests.ports import free_port

ROW = {"inputs": {"AT": 14.96, "V": 41.76, "AP": 1024.07, "RH": 73.17}}
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1")  # gRPC's sockets are IPv6
CSV = {"Content-Type": "text/csv"}
MODELS = ("dongzhi/plant-load-boosting", "lingnan/plant-load-linear")


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the node ended"
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def sockets_of(process: psutil.Process) -> list[tuple[psutil.Process, object]]:
    """Internet sockets of the process and its children (TCP and UDP, so that a look-up of a name is seen too)."""
    found = []
    for each in (process, *process.children(recursive=True)):
        try:
            found += [(each, connection) for connection in each.net_connections(kind="inet")]
        except psutil.NoSuchProcess:
            continue
    return found


def call_over_grpc(port: int, key: str, name: str) -> None:
    """What a model is, calls of it, and its statistics."""
    headers, model = {"authorization": f"Bearer {key}"}, name.replace("/", "--")
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        inputs = []
        for each in client.get_model_metadata(model, headers=headers).inputs:
            shape = [1 if side < 0 else side for side in each.shape]
            inputs.append(triton.InferInput(each.name, shape, each.datatype))
            inputs[-1].set_data_from_numpy(np.full(shape, 0.5, np.float32))
        for _ in range(60):  # for long enough to be seen
            assert client.infer(model, inputs, headers=headers).get_response().outputs
        assert client.get_inference_statistics(model, headers=headers).model_stats


def test_a_node_opens_no_connection_under_load(tmp_path: Path) -> None:
    shelf, home, port, grpc_port = tmp_path / "shelf", tmp_path / "home", free_port(), free_port()
    shelf.mkdir()
    for name in MODELS:
        zipped = name.replace("/", "--") + ".zip"
        (shelf / zipped).symlink_to(FOLDER / zipped)
    process = subprocess.Popen(
        [sys.executable, "-m", "marketplace.cli", "serve", str(shelf), "--home", str(home), "--port", str(port),
         "--grpc-port", str(grpc_port), "--trusted"],
        env={
            **os.environ,
            "ORT_DISABLE_TELEMETRY": "0",  # not for a caller's environment to say
            "PYTHONPATH": os.pathsep.join(filter(None, (str(AUDITED), os.environ.get("PYTHONPATH", "")))),
            "AUDITED_FILE": str(tmp_path / "audit"),
        },
    )  # fmt: skip
    seen: list[tuple[psutil.Process, object]] = []
    over = threading.Event()
    watched = psutil.Process(process.pid)

    def watch() -> None:
        while not over.wait(0.02):
            seen.extend(sockets_of(watched))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        key = json.loads((home / "node-key.json").read_text(encoding="utf-8"))["key"]
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
            for _ in range(150):
                for name in MODELS:
                    assert client.post(f"/v1/use/{name}", json=ROW).status_code == 200
            table = "\n".join((",".join(ROW["inputs"]), ",".join(map(str, ROW["inputs"].values()))))
            for name in MODELS:
                call_over_grpc(grpc_port, key, name)
                files = {"file": ("rows.csv", table, "text/csv")}
                assert client.post(f"/v1/use/{name}", files=files).status_code == 200
                assert client.post(f"/v1/use/{name}", content=table, headers=CSV).status_code == 200
                assert client.post("/v1/embeddings", json={"model": name, "input": "x"}).status_code >= 400
            assert client.get("/metrics").status_code == client.get("/v2/models/stats").status_code == 200
    finally:
        over.set()
        watcher.join()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert any(connection.status == psutil.CONN_ESTABLISHED for _, connection in seen)  # the callers were seen
    for owner, connection in seen:
        assert connection.type == socket.SOCK_STREAM, (owner, connection)
        assert connection.laddr.port in (port, grpc_port), (owner, connection)
        assert connection.laddr.ip in LOOPBACK, (owner, connection)
        assert not connection.raddr or connection.raddr.ip in LOOPBACK, (owner, connection)
    called = {connection.laddr.port for _, connection in seen if connection.status == psutil.CONN_ESTABLISHED}
    assert called == {port, grpc_port}
    events = [json.loads(line)[1] for line in (tmp_path / "audit").read_text(encoding="utf-8").splitlines()]
    assert set(events) == {"began"}  # the hook was there, and nothing was connected to, sent to or looked up


def test_a_market_s_processes_connect_to_each_other_only(live_market: LiveMarket) -> None:
    """Looked at once more when all tests are over, by the fixture."""
    factory = live_market.client("factory")
    for name in MODELS:
        assert factory.post(f"/v1/use/{name}", json=ROW).status_code == 200
    addresses = live_market.addresses()
    assert len(addresses) > 1  # the market, and what it started
    assert any(addresses.values())  # the registry beside it is asked over HTTP
    assert live_market.foreign_addresses() == []


def test_telemetry_of_onnx_runtime_is_off_before_it_is_imported() -> None:
    code = (
        "import os, sys\n"
        "class Seen:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Seen())\n"
        "import serving.server, serving.node\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1"]
