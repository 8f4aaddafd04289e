"""A convolutional model that is compute-bound: depthwise-separable blocks, at 80 × 80 about 4 ms on one core, at
224 × 224, as image models have it, eight times as long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import Bundle, seal
from model_store.manifest import Manifest

NAME = "benchlab/conv"
SIDES, CLASSES = (80, 224), 10
BLOCKS = ((64, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1), (512, 2), (512, 1))  # channels, stride


def name_of(side: int) -> str:
    return NAME if side == SIDES[0] else f"{NAME}-{side}"


def conv_graph(side: int) -> onnx.ModelProto:
    """[n,3,side,side] → [n,10]; weights fixed by a seed."""
    random = np.random.default_rng(11)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def conv(source: str, name: str, shape: tuple[int, int, int, int], stride: int, group: int = 1) -> str:
        fan = shape[1] * shape[2] * shape[3]
        value = (random.normal(size=shape) / np.sqrt(fan)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"{name}_w"))
        pad = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}_w"], [f"{name}_c"], group=group, strides=[stride, stride], pads=[pad] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"{name}_c"], [name]))
        return name

    at, channels = conv("x", "stem", (32, 3, 3, 3), 1), 32
    for index, (wide, stride) in enumerate(BLOCKS):
        at = conv(at, f"d{index}", (channels, 1, 3, 3), stride, channels)
        at = conv(at, f"p{index}", (wide, channels, 1, 1), 1)
        channels = wide
    head = (random.normal(size=(channels, CLASSES)) / np.sqrt(channels)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "conv",
        [info("x", TensorProto.FLOAT, ["n", 3, side, side])],
        [info("y", TensorProto.FLOAT, ["n", CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def conv_bundle(folder: Path, side: int) -> Bundle:
    """A sealed bundle of it."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(conv_graph(side), str(folder / "model.onnx"))
    tensors = {
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 3, side, side]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, CLASSES]}],
    }
    return seal(folder, Manifest.model_validate({"name": name_of(side), "batching": {"dynamic": True}, **tensors}))
