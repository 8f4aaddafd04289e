"""Small real graphs that the tests share: honest ones, and the bombs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

value = helper.make_tensor_value_info


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
) -> Path:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def identity(path: Path, elem: int = TensorProto.FLOAT, shape: Sequence[int | str] = ("n",)) -> Path:
    return save(
        path, [helper.make_node("Identity", ["x"], ["y"])], [value("x", elem, shape)], [value("y", elem, shape)]
    )


def linear(path: Path, features: int = 3, bias: float = 0.5) -> Path:
    """y[n, 1] = sum(x[n, features]) + bias."""
    weights = [
        numpy_helper.from_array(np.ones((features, 1), np.float32), "w"),
        numpy_helper.from_array(np.full(1, bias, np.float32), "b"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, ["n", features])]
    return save(path, nodes, inputs, [value("y", TensorProto.FLOAT, ["n", 1])], weights)


def endless_loop(path: Path) -> Path:
    """A `Loop` whose condition never turns false."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "one"], ["v_next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, [1])],
        [value("go_on", TensorProto.BOOL, []), value("v_next", TensorProto.FLOAT, [1])],
    )
    constants = [
        numpy_helper.from_array(np.array(True), "always"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
    ]
    nodes = [helper.make_node("Loop", ["", "always", "x"], ["y"], body=body)]
    return save(path, nodes, [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], constants)


def memory_bomb(path: Path) -> Path:
    """`ConstantOfShape` of whatever shape the caller (or the vendor) likes, summed."""
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["shape"], ["big"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1])
        ),
        helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
    ]
    return save(path, nodes, [value("shape", TensorProto.INT64, ["k"])], [value("y", TensorProto.FLOAT, [])])


def wide_output(path: Path) -> Path:
    """y = zeros of the shape asked: small in, large out."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"])]
    return save(path, nodes, [value("shape", TensorProto.INT64, ["k"])], [value("y", TensorProto.FLOAT, None)])
