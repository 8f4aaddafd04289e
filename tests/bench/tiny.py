"""The tiny model of the bench: an MLP [N,16] → [N,3], made here with fixed weights, as a bare graph and as a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import Bundle, seal
from model_store.manifest import Manifest

FEATURES, HIDDEN, CLASSES = 16, 32, 3
NAME = "benchlab/tiny-mlp"


def tiny_graph() -> onnx.ModelProto:
    """Two layers, ReLU and softmax; IR 10, opset 20."""
    random = np.random.default_rng(7)
    weights = {
        "w1": random.normal(size=(FEATURES, HIDDEN)).astype(np.float32) / 4,
        "b1": random.normal(size=HIDDEN).astype(np.float32),
        "w2": random.normal(size=(HIDDEN, CLASSES)).astype(np.float32) / 6,
        "b2": random.normal(size=CLASSES).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_tiny(path: Path) -> Path:
    """The bare graph as a file."""
    onnx.save(tiny_graph(), str(path))
    return path


def tiny_bundle(folder: Path, name: str = NAME, dynamic: bool = True) -> Bundle:
    """A sealed bundle of it, with the minimum a manifest needs to be served."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny(folder / "model.onnx")
    manifest = Manifest.model_validate(
        {
            "name": name,
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, FEATURES]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, CLASSES]}],
            "batching": {"dynamic": dynamic},
        }
    )
    return seal(folder, manifest)
