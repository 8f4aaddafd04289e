"""`python -m tests.bench.density`: many models on one small box, through HTTP on a lone node.

    --listed N   bundles in the folder (default 10000)
    --hot N      of them, called (default 200), 100 KB each; and ten of 10 MB, loaded ten times each

Measured: start → ready with all listed, the first (cold) call of each hot model, calls round robin over all of them,
threads of the process, and its memory over 20 cycles of loading and unloading every hot model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import MANIFEST, MODEL, Bundle, seal
from model_store.manifest import Manifest
from serving.node import KEY_FILE
from tests.bench.load import Target
from tests.bench.servers import ROOT, Server
from tests.ports import free_port

FEATURES, CLASSES = 16, 3
SMALL, LARGE = (144, 144), (1536, 1536)  # hidden layers: about 100 KB and 10 MB
LARGE_MODELS, LARGE_ROUNDS, CYCLES = 10, 10, 20


def mlp(hidden: tuple[int, int], seed: int) -> onnx.ModelProto:
    """[n,16] → [n,3]."""
    random = np.random.default_rng(seed)
    sizes = (FEATURES, *hidden, CLASSES)
    weights, nodes, at = [], [], "x"
    for index, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        value = (random.normal(size=(wide, narrow)) / np.sqrt(wide)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{index}"))
        last = index == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [at, f"w{index}"], ["y" if last else f"m{index}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{index}"], [f"h{index}"]))
            at = f"h{index}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "mlp", [info("x", TensorProto.FLOAT, ["n", FEATURES])], [info("y", TensorProto.FLOAT, ["n", CLASSES])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_bundle(folder: Path, name: str, graph: onnx.ModelProto) -> Bundle:
    folder.mkdir(parents=True)
    onnx.save(graph, str(folder / MODEL))
    tensors = {
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, FEATURES]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, CLASSES]}],
    }
    return seal(folder, Manifest.model_validate({"name": name, "batching": {"dynamic": True}, **tensors}))


def shelf(folder: Path, listed: int, hot: int) -> tuple[list[str], list[str]]:
    """Bundles on disk: hot and large ones of their own, the rest copies of the first under other names."""
    small = [f"bench/hot-{index:04d}" for index in range(hot)]
    large = [f"bench/large-{index:02d}" for index in range(LARGE_MODELS)]
    for index, name in enumerate(small):
        write_bundle(folder / name.partition("/")[2], name, mlp(SMALL, index))
    for index, name in enumerate(large):
        write_bundle(folder / name.partition("/")[2], name, mlp(LARGE, 1000 + index))
    first = folder / "hot-0000"
    manifest = (first / MANIFEST).read_text(encoding="utf-8")
    for index in range(listed - hot - LARGE_MODELS):
        other = folder / f"cold-{index:05d}"
        other.mkdir()
        os.link(first / MODEL, other / MODEL)
        (other / MANIFEST).write_text(manifest.replace("bench/hot-0000", f"bench/cold-{index:05d}"), encoding="utf-8")
    return small, large


class Caller:
    """One keep-alive connection."""

    def __init__(self, port: int, key: str) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )
        self.body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
        )

    def call(self, name: str) -> float:
        """Milliseconds until the answer."""
        started = time.perf_counter()
        answer = self.client.post(f"/v2/models/{name.replace('/', '--')}/infer", content=self.body)
        assert answer.status_code == 200, answer.text
        return (time.perf_counter() - started) * 1000

    def unload(self, name: str) -> None:
        self.client.post(f"/v2/repository/models/{name.replace('/', '--')}/unload").raise_for_status()


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "max_ms": round(max(values), 2)}


def measure(port: int, pid: int, key: str, small: list[str], large: list[str]) -> dict[str, Any]:
    caller, process = Caller(port, key), psutil.Process(pid)

    def rss_mib() -> float:
        return round(process.memory_info().rss / (1 << 20), 1)

    found: dict[str, Any] = {"rss_mib_before": rss_mib()}
    caller.call(small[0])
    found["cold_100_kb"] = percentiles([caller.call(name) for name in small[1:]])
    found["rss_mib_with_all_hot"] = rss_mib()
    cold = []
    for _ in range(LARGE_ROUNDS):
        for name in large:
            caller.unload(name)
        cold += [caller.call(name) for name in large]
    found["cold_10_mb"] = percentiles(cold)
    found["rss_mib_with_large_too"] = rss_mib()
    for _ in range(2):
        for name in small:
            caller.call(name)
    robin = [caller.call(name) for _ in range(10) for name in small]
    one = [caller.call(small[0]) for _ in range(len(robin))]
    found["round_robin"] = percentiles(robin)
    found["one_model"] = percentiles(one)
    found["threads"] = process.num_threads()
    for name in large:
        caller.unload(name)
    rounds = []
    for _ in range(CYCLES):
        for name in small:
            caller.unload(name)
        time.sleep(0.3)
        for name in small:
            caller.call(name)
        rounds.append(rss_mib())
    found["rss_mib_after_cycles"] = {"first": rounds[0], "last": rounds[-1], "highest": max(rounds)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--hot", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="algomart-density-") as scratch:
        folder = Path(scratch)
        (folder / "shelf").mkdir()
        small, large = shelf(folder / "shelf", options.listed, options.hot)
        port = free_port()
        serve = [sys.executable, "-m", "marketplace.cli", "serve", str(folder / "shelf"), "--trusted"]
        command = [*serve, "--port", str(port), "--home", str(folder / "home")]
        url = f"http://127.0.0.1:{port}"
        server = Server("density", command, Target(url, b"", {}), folder, PYTHONPATH=str(ROOT))
        started = time.perf_counter()
        server.launch()
        try:
            while True:
                try:
                    if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    server.check_alive(time.monotonic() + 60)
                time.sleep(0.02)
            ready_s = time.perf_counter() - started
            key = json.loads((folder / "home" / KEY_FILE).read_text(encoding="utf-8"))["key"]
            found = measure(port, server.root_pid, key, small, large)
        finally:
            server.stop()
    print(json.dumps({"listed": options.listed, "hot": options.hot, "ready_s": round(ready_s, 2), **found}, indent=1))


if __name__ == "__main__":
    main()
