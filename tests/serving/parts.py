"""What serving's tests are made of: small graphs, bundles of them, and a node over the market in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import Bundle, seal
from model_store.manifest import Manifest
from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.journal import JournalWriter, UsageEntry, read_segment
from serving.memory_admission import FolderBundles, MemoryAdmission, Purse
from serving.metering import PriceLine, UsageRecord
from serving.ports import Ports, Principal, ServedVersion
from serving.settings import ServingSettings

KEY, OTHER_KEY, OPERATOR_KEY, READ_KEY = "key-factory", "key-other", "key-operator", "key-reader"
FACTORY = Principal("key_1", "org_factory", "enterprise", frozenset({"use", "choose", "adapt"}))
OTHER = Principal("key_2", "org_other", "enterprise", frozenset({"use"}))
OPERATOR = Principal("key_3", "org_city", "operator", frozenset({"use", "admin"}))
READER = Principal("key_4", "org_factory", "enterprise", frozenset())
FLOAT = TensorProto.FLOAT


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def double(columns: int = 3) -> onnx.ModelProto:
    """y = 2x for rows of `columns` numbers."""
    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [info("x", FLOAT, ["n", columns])],
        [info("y", FLOAT, ["n", columns])],
        {"two": np.array(2, np.float32)},
    )


def gather(size: int = 8) -> onnx.ModelProto:
    """y = table[x]: an index beyond the table makes the run fail."""
    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [info("x", TensorProto.INT64, ["n"])],
        [info("y", FLOAT, ["n"])],
        {"table": np.arange(size, dtype=np.float32)},
    )


def endless() -> onnx.ModelProto:
    """Loops 2^62 times: ends only when it is told to."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "one"], ["s2"]), helper.make_node("Identity", ["c"], ["c2"])],
        "body",
        [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("s", FLOAT, ["n", 3])],
        [info("c2", TensorProto.BOOL, []), info("s2", FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    return model(
        [helper.make_node("Loop", ["m", "t", "x"], ["y"], body=body)],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 3])],
        {"m": np.array(1 << 62, np.int64), "t": np.array(True)},
    )


def every_type() -> onnx.ModelProto:
    """Passes one tensor of each type through, `in_X` → `out_X`."""
    types = {
        "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
        "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
        "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
        "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
        "BYTES": TensorProto.STRING,
    }  # fmt: skip
    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in types],
        [info(f"in_{name}", kind, ["n"]) for name, kind in types.items()],
        [info(f"out_{name}", kind, ["n"]) for name, kind in types.items()],
    )


def bundle(folder: Path, name: str, graph: onnx.ModelProto, **manifest: Any) -> Bundle:
    """A sealed bundle whose tensors are read from the graph."""
    from model_store.graph_specs import read_graph_specs

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, str(folder / "model.onnx"))
    inputs, outputs = read_graph_specs(folder / "model.onnx")
    return seal(folder, Manifest.model_validate({"name": name, "inputs": inputs, "outputs": outputs, **manifest}))


@dataclass
class Node:
    """A serving node and the market in memory behind it."""

    app: ServingApp
    dataplane: DataPlane
    admission: MemoryAdmission
    bundles: FolderBundles
    journal: JournalWriter
    folder: Path

    def add(self, name: str, graph: onnx.ModelProto, micro: int | None = None, **options: Any) -> ServedVersion:
        """Serve a graph; `micro`: its price per call in micro-fen (half of it the voucher's); None: free."""
        manifest = options.pop("manifest", {})
        count = sum(1 for _ in self.folder.glob("bundle-*"))
        made = bundle(self.folder / f"bundle-{count}", name, graph, **manifest)
        if micro is not None:
            unit = options.pop("unit", "calls")
            self.admission.prices[name] = PriceLine(f"prc_{name}", name, unit, micro, 1, 2)
        return self.bundles.add(made.path, **options)

    def usage(self) -> list[UsageRecord]:
        """Every usage record in the journal, in order."""
        return [entry.usage for entry in read_segment(self.journal.path).entries if isinstance(entry, UsageEntry)]


@asynccontextmanager
async def running_node(folder: Path, epoch: int = 1, **settings: Any) -> AsyncIterator[Node]:
    """A started node; stopped (its journal sealed) at the end."""
    admission = MemoryAdmission(
        keys={KEY: FACTORY, OTHER_KEY: OTHER, OPERATOR_KEY: OPERATOR, READ_KEY: READER},
        purses={"org_factory": Purse(10**9, 10**9, 10**6), "org_other": Purse(10**9, 10**9, 10**6)},
    )
    bundles = FolderBundles()
    ports = Ports(admission=admission, bundles=bundles, market_url="http://market.test")
    journal = JournalWriter(folder / "journal", "node", epoch)
    dataplane = DataPlane(ports, ServingSettings(**settings), journal)
    app = ServingApp(dataplane, ports)
    await dataplane.start()
    try:
        yield Node(app, dataplane, admission, bundles, journal, folder)
    finally:
        await dataplane.stop()


async def until(condition: Callable[[], object], give_up_s: float = 20) -> None:
    """Wait until something has come about."""
    async with asyncio.timeout(give_up_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.002)


def rows(count: int, columns: int = 3, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


class FullDisk:
    """`os` on a disk with room for ten more bytes of each write."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    @staticmethod
    def write(file: int, data: bytes) -> int:
        return os.write(file, data[:10])
