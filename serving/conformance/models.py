"""The kit's own models: small ONNX graphs whose answers follow from their definition, for every server to serve.

Each is named `PREFIX` + its name, so that the same name works as a Triton, MLServer, KServe and AlgoMart name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.conformance.tensors import Array

PREFIX = "conformance--"
OPSET, IR_VERSION = 18, 9  # old enough for servers with an older ONNX Runtime
_ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip
MLP_WEIGHTS: Array = np.array([[1, -2, 3], [-1, 2, 0], [0.5, 0, -1], [2, 1, 0.25]], np.float32)
MLP_BIAS: Array = np.array([0.5, -0.25, 1], np.float32)


@dataclass(frozen=True)
class TensorInfo:
    """Name, Open Inference datatype, shape with -1 for what varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KitModel:
    """`batched`: the first dimension of every tensor is the batch."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    graph: onnx.ModelProto
    batched: bool = False


def mlp(x: Array) -> Array:
    """What the model `mlp` computes; x: (n, 4) FP32 → (n, 3)."""
    y: Array = np.maximum(x @ MLP_WEIGHTS + MLP_BIAS, 0)
    return y.astype(np.float32)


def identity_name(datatype: str) -> str:
    return f"identity-{datatype.lower()}"


def kit_models() -> tuple[KitModel, ...]:
    """All of them, in a fixed order."""
    return (
        *(_identity(datatype) for datatype in _ONNX_TYPES),
        _model(
            "add-sub",
            [("input0", "INT32", (-1, 4)), ("input1", "INT32", (-1, 4))],
            [("sum", "INT32", (-1, 4)), ("difference", "INT32", (-1, 4))],
            [("Add", ["input0", "input1"], ["sum"], {}), ("Sub", ["input0", "input1"], ["difference"], {})],
        ),
        _model(
            "mlp",
            [("x", "FP32", (-1, 4))],
            [("y", "FP32", (-1, 3))],
            [("Gemm", ["x", "w", "b"], ["h"], {}), ("Relu", ["h"], ["y"], {})],
            {"w": MLP_WEIGHTS, "b": MLP_BIAS},
            batched=True,
        ),
        _model(
            "multi-output",
            [("x", "FP32", (-1, 3))],
            [("total", "FP32", (-1,)), ("positive", "BOOL", (-1, 3)), ("size", "INT64", (2,))],
            [
                ("ReduceSum", ["x", "axes"], ["total"], {"keepdims": 0}),
                ("Greater", ["x", "zero"], ["positive"], {}),
                ("Shape", ["x"], ["size"], {}),
            ],
            {"axes": np.array([1], np.int64), "zero": np.array(0, np.float32)},
        ),
        _model("dynamic", [("x", "FP32", (-1, -1))], [("y", "FP32", (-1, -1))], [("Identity", ["x"], ["y"], {})]),
        _model(
            "rank5",
            [("x", "INT32", (-1, 2, 1, 3, -1))],
            [("y", "INT32", (-1, 2, 1, 3, -1))],
            [("Identity", ["x"], ["y"], {})],
        ),
        _model(
            "scalar",
            [("x", "FP32", ())],
            [("y", "FP32", ())],
            [("Add", ["x", "one"], ["y"], {})],
            {"one": np.array(1, np.float32)},
        ),
        _model(
            "text",
            [("text_input", "BYTES", (-1,))],
            [("text_output", "BYTES", (-1,))],
            [("Identity", ["text_input"], ["text_output"], {})],
        ),
        _model(
            "no-input", [], [("y", "FP32", (2,))], [("Identity", ["c"], ["y"], {})], {"c": np.array([1, 2], np.float32)}
        ),
        _model(
            "divide",
            [("a", "FP32", (-1,)), ("b", "FP32", (-1,))],
            [("y", "FP32", (-1,))],
            [("Div", ["a", "b"], ["y"], {})],
        ),
    )


_Tensors = Sequence[tuple[str, str, tuple[int, ...]]]
_Nodes = Sequence[tuple[str, list[str], list[str], Mapping[str, int]]]


def _identity(datatype: str) -> KitModel:
    return _model(
        identity_name(datatype),
        [("input", datatype, (-1,))],
        [("output", datatype, (-1,))],
        [("Identity", ["input"], ["output"], {})],
    )


def _model(
    name: str,
    inputs: _Tensors,
    outputs: _Tensors,
    nodes: _Nodes,
    weights: Mapping[str, Array] | None = None,
    *,
    batched: bool = False,
) -> KitModel:
    made = [helper.make_node(kind, taken, given, **attributes) for kind, taken, given, attributes in nodes]
    constants = [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()]
    graph = helper.make_graph(made, name.replace("-", "_"), _values(inputs), _values(outputs), constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="v2-conformance")
    return KitModel(
        name, tuple(TensorInfo(*each) for each in inputs), tuple(TensorInfo(*each) for each in outputs), model, batched
    )


def _values(tensors: _Tensors) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            name, _ONNX_TYPES[datatype], [f"{name}_{axis}" if size < 0 else size for axis, size in enumerate(shape)]
        )
        for name, datatype, shape in tensors
    ]
