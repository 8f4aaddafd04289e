"""`python -m tests.bench.bar`: how near the data plane comes to in-process ONNX Runtime, on one core.

The server (key, lease, journal on) is pinned to the first core, the load to the second; the in-process loop, one
session with one thread, runs on the first core between the server's rounds. 32 rows of a tiny model; one image of a
compute-bound convolutional model, small as JSON and as binary tensors, 224 × 224 as binary ones; 32 rows of dense
models of growing cost, as binary tensors. Every row is a ratio of rows a second; `beside_us` is what a request takes
beside its run, and `nine_tenths_from_us` the run from which on that leaves nine tenths of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.bench import conv, dense, tiny
from tests.bench.load import Target, measure
from tests.bench.node import KEY
from tests.bench.servers import ROOT, Server
from tests.ports import free_port

LOOP = """
import sys, time
import numpy as np
from model_store.runtime import load_graph
from pathlib import Path
graph = load_graph(Path(sys.argv[1]))
rows, seconds = int(sys.argv[2]), float(sys.argv[3])
shape = [rows, *graph.inputs[0].shape[1:]]
x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
run, options = graph._run_session, graph._free_options
for _ in range(20):
    run(["y"], {"x": x}, options)
count, started = 0, time.perf_counter()
while time.perf_counter() - started < seconds:
    for _ in range(8):
        run(["y"], {"x": x}, options)
    count += 8
print(count * rows / (time.perf_counter() - started))
"""


def bodies(shape: list[int], binary: bool, count: int) -> tuple[list[bytes], dict[str, str]]:
    """`count` requests of different values, and the headers they need (all heads have one length)."""
    random = np.random.default_rng(3)
    made, headers = [], {}
    for _ in range(count):
        x = random.normal(size=shape).astype(np.float32)
        tensor: dict[str, Any] = {"name": "x", "shape": shape, "datatype": "FP32"}
        if binary:
            tensor["parameters"] = {"binary_data_size": x.nbytes}
            head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
            headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
            made.append(head + x.tobytes())
        else:
            tensor["data"] = [round(float(value), 3) for value in x.ravel()]
            made.append(orjson.dumps({"inputs": [tensor]}))
    return made, headers


CASES = (
    ("tiny, 32 rows, binary, c=8", tiny.NAME, [32, tiny.FEATURES], True, 8),
    ("tiny, 32 rows, JSON, c=8", tiny.NAME, [32, tiny.FEATURES], False, 8),
    ("conv, 1 image, binary, c=4", conv.NAME, [1, 3, 80, 80], True, 4),
    ("conv, 1 image, JSON, c=4", conv.NAME, [1, 3, 80, 80], False, 4),
    ("conv 224, 1 image, binary, c=4", conv.name_of(224), [1, 3, 224, 224], True, 4),
    *(
        (f"dense {width}, 32 rows, binary, c=4", dense.name_of(width), [dense.ROWS, dense.INPUTS], True, 4)
        for width in dense.WIDTHS
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="of the cases, those whose names begin so")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    on_first, on_second = ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[-1])]
    with tempfile.TemporaryDirectory(prefix="algomart-bar-") as scratch:
        folder = Path(scratch)
        port = free_port()
        command = [*on_first, sys.executable, "-m", "tests.bench.node", str(folder / "node"), str(port)]
        targets = {}
        for name, model, shape, binary, _ in CASES:
            made, headers = bodies(shape, binary, 16 if shape[0] == 32 else 4)
            url = f"http://127.0.0.1:{port}/v2/models/{model.replace('/', '--')}/infer"
            targets[name] = Target(url, made[0], {"Authorization": f"Bearer {KEY}", **headers}, tuple(made))
        probe, _ = bodies([1, tiny.FEATURES], False, 1)
        url = f"http://127.0.0.1:{port}/v2/models/{tiny.NAME.replace('/', '--')}/infer"
        server = Server("bar", command, Target(url, probe[0], {"Authorization": f"Bearer {KEY}"}), folder,
                        PYTHONPATH=str(ROOT))  # fmt: skip
        server.launch()
        try:
            wait(server, url)
            chosen = {name: target for name, target in targets.items() if name.startswith(options.only)}
            for target in chosen.values():
                measure(target, server.root_pid, 1, 4, folder, on_second)
            print(json.dumps(rounds(options, folder, server, chosen, on_first, on_second), indent=1))
        finally:
            server.stop()


def wait(server: Server, url: str) -> None:
    """Until it answers at all."""
    import time

    import httpx

    for _ in range(200):
        try:
            httpx.get(url.split("/v2/")[0] + "/v2/health/ready").raise_for_status()
            return
        except httpx.HTTPError:
            server.check_alive(time.monotonic() + 60)
            time.sleep(0.1)


def rounds(
    options: argparse.Namespace,
    folder: Path,
    server: Server,
    targets: dict[str, Target],
    on_first: list[str],
    on_second: list[str],
) -> dict[str, Any]:
    """Interleaved: in process, then over HTTP, for each case; medians of the ratios of neighbours."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    for _ in range(options.rounds):
        for name, model, shape, _, connections in CASES:
            if name not in targets:
                continue
            place = "bundle" if model == tiny.NAME else model.rpartition("/")[2]
            path = folder / "node" / place / "model.onnx"
            loop = [*on_first, sys.executable, "-c", LOOP, str(path), str(shape[0]), str(options.seconds)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            limit = float(subprocess.run(loop, check=True, capture_output=True, text=True, env=environment).stdout)
            got = measure(targets[name], server.root_pid, options.seconds, connections, folder, on_second)
            run_us = shape[0] / limit * 1e6
            beside_us = 1e6 / got.requests_per_s - run_us
            found[name].append(
                {
                    "run_us": run_us,
                    "beside_us": beside_us,
                    "nine_tenths_from_us": 9 * beside_us,
                    "in_process_rows_per_s": limit,
                    "rows_per_s": got.requests_per_s * shape[0],
                    "ratio": got.requests_per_s * shape[0] / limit,
                    "cpu_us": got.cpu_us,
                    "p99_ms": got.p99_ms,
                    "failures": got.failures,
                }
            )
    return {
        name: {key: round(statistics.median(each[key] for each in values), 3) for key in values[0]}
        | {
            "worst": round(min(each["ratio"] for each in values), 3),
            "best": round(max(each["ratio"] for each in values), 3),
        }
        for name, values in found.items()
    }


if __name__ == "__main__":
    main()
