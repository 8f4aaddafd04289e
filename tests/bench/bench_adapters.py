"""Many adapters on one base: `python -m tests.bench.bench_adapters [--adapters 32] [--hidden 768] [--all-sites]`.

One row for each of 32 adapters, as decoding makes them: `x[32, 1, hidden]` through blocks of attention-like
projections and a feed-forward, rank 8 on query and value (or on all six projections). In turns within one process, on
one thread, medians:

* base: the 32 rows in one run of the plain base (no sites in the graph)
* indexed: the 32 rows in one run, each with its own adapter (`SlotTable`)
* sessions: 32 runs of one row, each in a session of its own with the adapter merged into the weights
* one by one: 32 runs of one row on the one base, adapters active in turn (`AdaptedGraph`)
* indexed base: the graph with sites and no adapter (what the sites alone cost)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.adapter_file import write_adapter
from model_store.adapter_injection import inject_sites
from model_store.runtime import ORT_VERSION, load_graph
from serving.adapters_on_base import AdaptedGraph, SlotTable, StackedAdapter

Array = np.ndarray[Any, Any]
RANK, ROUNDS = 8, 15


def decoder(hidden: int, blocks: int) -> onnx.ModelProto:
    """Blocks of four projections and a feed-forward of four times the width: the matrix work of one decoded token."""
    draw = np.random.default_rng(0)
    nodes, weights = [], []

    def linear(x: str, into: int, out: int, name: str) -> str:
        weights.append(
            numpy_helper.from_array((draw.normal(size=(into, out)) / into**0.5).astype(np.float32), f"{name}.w")
        )
        nodes.append(helper.make_node("MatMul", [x, f"{name}.w"], [f"{name}.y"], name=name))
        return f"{name}.y"

    def node(op: str, inputs: list[str], name: str) -> str:
        nodes.append(helper.make_node(op, inputs, [name]))
        return name

    x = "x"
    for block in range(blocks):
        q, k, v = (linear(x, hidden, hidden, f"{block}.{part}") for part in ("query", "key", "value"))
        mixed = node("Mul", [node("Tanh", [node("Mul", [q, k], f"{block}.s")], f"{block}.t"), v], f"{block}.m")
        x = node("Add", [x, linear(mixed, hidden, hidden, f"{block}.out")], f"{block}.r")
        wide = node("Relu", [linear(x, hidden, 4 * hidden, f"{block}.up")], f"{block}.relu")
        x = node("Add", [x, linear(wide, 4 * hidden, hidden, f"{block}.down")], f"{block}.x")
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", 1, hidden])], [info("y", TensorProto.FLOAT, ["n", 1, hidden])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def merged(base: onnx.ModelProto, tensors: dict[str, Array]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(base)
    for weight in model.graph.initializer:
        site = weight.name.removesuffix(".w")
        if f"{site}.lora_A" in tensors:
            change = tensors[f"{site}.lora_A"] @ tensors[f"{site}.lora_B"]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + change, weight.name))
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--all-sites", action="store_true", help="all six projections of a block, not query and value")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each way in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = ("query", "key", "value", "out", "up", "down") if options.all_sites else ("query", "value")
        targets = [f"{block}.{part}" for block in range(options.blocks) for part in parts]
        measure(Path(folder), decoder(options.hidden, options.blocks), targets, options)


def measure(folder: Path, plain: onnx.ModelProto, targets: list[str], options: argparse.Namespace) -> None:
    count, hidden = options.adapters, options.hidden
    sides = {tensor.name.removesuffix(".w"): tuple(tensor.dims) for tensor in plain.graph.initializer}
    draw = np.random.default_rng(1)
    files, sessions = [], []
    for number in range(count):
        tensors: dict[str, Array] = {}
        for site in targets:
            into, out = sides[site]
            tensors[f"{site}.lora_A"] = (draw.normal(size=(into, RANK)) / into**0.5).astype(np.float32)
            tensors[f"{site}.lora_B"] = (draw.normal(size=(RANK, out)) / 8).astype(np.float32)
        files.append(write_adapter(folder / f"{number}.onnx_adapter", tensors))
        onnx.save(merged(plain, tensors), folder / "merged.onnx")
        started = time.perf_counter()
        sessions.append(load_graph(folder / "merged.onnx"))
        session_ms = (time.perf_counter() - started) * 1000
    for name, model in (
        ("plain", plain),
        ("indexed", inject_sites(plain, targets, indexed=True)),
        ("single", inject_sites(plain, targets)),
    ):
        onnx.save(model, folder / f"{name}.onnx")
    base, indexed, single = (load_graph(folder / f"{name}.onnx") for name in ("plain", "indexed", "single"))
    table = SlotTable(indexed, slots=count + 1)
    stacked = [(StackedAdapter(table, path, path.name), 1) for path in files]
    started = time.perf_counter()
    active = [AdaptedGraph(single, path) for path in files]
    adapter_ms = (time.perf_counter() - started) * 1000 / count
    print(
        f"an adapter: {files[0].stat().st_size / 1024:.0f} KiB, loaded in {adapter_ms:.3f} ms; "
        f"a merged session: {(folder / 'merged.onnx').stat().st_size / 1048576:.0f} MiB, {session_ms:.0f} ms"
    )
    x = draw.normal(size=(count, 1, hidden)).astype(np.float32)
    each = [{"x": x[row : row + 1]} for row in range(count)]
    ways: dict[str, Callable[[], Array]] = {
        "base": lambda: base.run({"x": x})["y"],
        "indexed": lambda: table.run(stacked, {"x": x})["y"],
        "sessions": lambda: np.concatenate([graph.run(row)["y"] for graph, row in zip(sessions, each, strict=True)]),
        "one by one": lambda: np.concatenate([graph.run(row)["y"] for graph, row in zip(active, each, strict=True)]),
        "indexed base": lambda: indexed.run({"x": x})["y"],
    }
    expected = ways["sessions"]()
    for name in ("indexed", "one by one"):
        difference = float(np.abs(ways[name]() - expected).max())
        assert difference < 1e-3, (name, difference)
        print(f"{name} against merged sessions: at most {difference:.1e} apart")
    rates = interleaved(ways, count, options.seconds)
    print(
        f"{count} adapters, hidden {hidden}, {len(targets)} sites in {options.blocks} blocks, rank {RANK}; "
        f"ONNX Runtime {ORT_VERSION}"
    )
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"{name:14}{middle:10.0f} rows/s   {middle / statistics.median(rates['base']):6.2f} of base")
    ratios = [one / other for one, other in zip(rates["indexed"], rates["sessions"], strict=True)]
    print(f"indexed / sessions: {statistics.median(ratios):.1f} times (median of {len(ratios)} rounds)")


def interleaved(ways: dict[str, Callable[[], Array]], rows: int, seconds: float) -> dict[str, list[float]]:
    """Rows a second of each way in each round; every round has every way once."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            run()
            done, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                run()
                done += rows
            rates[name].append(done / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    main()
