"""Bundles for the tests of inspection: honest ones and hostile ones, made as real files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import seal
from model_store.golden import Golden, write_golden
from model_store.graph_specs import read_graph_specs
from model_store.inspection.limits import Limits
from model_store.manifest import Manifest

FLOAT = TensorProto.FLOAT
value = helper.make_tensor_value_info
QUICK = Limits(run_ms=700, wall_s=20, measure_s=0.02, memory_bytes=512 << 20)


def manifest_of(model: Path | None, **fields: Any) -> Manifest:
    """A manifest with the graph's own tensors (x → y, both [-1, 3], where it cannot be read)."""
    three = [{"name": "x", "dtype": "FP32", "shape": [-1, 3]}], [{"name": "y", "dtype": "FP32", "shape": [-1, 3]}]
    inputs, outputs = read_graph_specs(model) if model is not None else three
    return Manifest.model_validate(
        {"name": "acme/tried", "inputs": inputs, "outputs": outputs, "batching": {"dynamic": False}} | fields
    )


def bundle_of(folder: Path, manifest: Manifest, golden: Sequence[Golden] = ()) -> Path:
    """Seal `folder`, in which model.onnx lies already."""
    write_golden(folder, golden)
    seal(folder, manifest)
    return folder


def save_model(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def model_of(nodes: Sequence[onnx.NodeProto], **options: Any) -> onnx.ModelProto:
    """x [n, 3] → y [n, 3] with these nodes. Options: initializers, functions, opsets, ir_version, inputs, outputs."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        options.get("inputs", [value("x", FLOAT, ["n", 3])]),
        options.get("outputs", [value("y", FLOAT, ["n", 3])]),
        options.get("initializers", []),
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in options.get("opsets", [("", 18)])]
    model = helper.make_model(graph, opset_imports=opsets, functions=options.get("functions", []))
    model.ir_version = options.get("ir_version", 9)
    return model


def relu() -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"])])


def added(location: str, **fields: str) -> onnx.ModelProto:
    """y = x + w, where w [3] lies in an external file at `location`."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=text)
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor])


def nested(node: onnx.NodeProto, depth: int = 2) -> onnx.ModelProto:
    """`node` (→ y) inside `depth` nested If branches."""
    body = [node]
    for level in range(depth):
        branch = helper.make_graph(body, f"b{level}", [], [value("y", FLOAT, None)])
        same = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])], f"e{level}", [], [value("y", FLOAT, None)]
        )
        body = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=same, name=f"if{level}")]
    return model_of(body, initializers=[numpy_helper.from_array(np.array(True), "yes")])


def sample(rows: int = 2, change: float = 0.0) -> Golden:
    """Inputs and outputs of `relu`, the outputs off by `change`."""
    x = np.linspace(-1, 1, rows * 3, dtype=np.float32).reshape(rows, 3)
    return Golden("0", {"x": x}, {"y": np.maximum(x, 0) + np.float32(change)})
