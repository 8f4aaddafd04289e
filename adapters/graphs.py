"""Small ONNX graphs written node by node, and nodes added to a parent's graph. No framework, no exporter.

Every builder keeps the batch dimension dynamic (named "N") and answers float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import Unprocessable

OPSET = 17
IR_VERSION = 8
PREFIX = "am_"
MIN_PROBABILITY = 1e-6  # what a logit is clipped to, so that a sure answer stays finite
Floats = npt.NDArray[np.float32]
Scaling = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # mean [D], inverse of the deviation [D]


def constant(name: str, values: Any) -> onnx.TensorProto:
    """A named initializer; floats become float32."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def graph_model(
    name: str,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A checked model of these nodes. `domains` {domain: version} beside the default one."""
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(d, v) for d, v in (domains or {}).items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="algomart")
    onnx.checker.check_model(model)
    return model


def floats_in(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A float32 tensor [N, *shape]; a string is a dynamic dimension."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def linear_classifier(
    weights: npt.NDArray[Any], bias: npt.NDArray[Any], tensor: str = "features", scaling: Scaling | None = None
) -> onnx.ModelProto:
    """softmax(x @ weights + bias): [N, D] → "probabilities" [N, K]; x first scaled to (x - mean) * inverse."""
    width, classes = weights.shape
    nodes, constants, source = _scaled(tensor, scaling)
    nodes += [
        helper.make_node("Gemm", [source, "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants += [constant("weights", weights), constant("bias", bias)]
    outputs = [floats_in("probabilities", classes)]
    return graph_model("linear_classifier", nodes, constants, [floats_in(tensor, width)], outputs)


def linear_regressor(
    weights: npt.NDArray[Any], bias: float, tensor: str = "features", scaling: Scaling | None = None
) -> onnx.ModelProto:
    """x @ weights + bias: [N, D] → "value" [N, 1]; x first scaled to (x - mean) * inverse."""
    nodes, constants, source = _scaled(tensor, scaling)
    nodes.append(helper.make_node("Gemm", [source, "weights", "bias"], ["value"]))
    constants += [constant("weights", weights.reshape(-1, 1)), constant("bias", np.array([bias], np.float32))]
    inputs, outputs = [floats_in(tensor, weights.size)], [floats_in("value", 1)]
    return graph_model("linear_regressor", nodes, constants, inputs, outputs)


def _scaled(tensor: str, scaling: Scaling | None) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    if scaling is None:
        return [], [], tensor
    nodes = [
        helper.make_node("Sub", [tensor, "scaling_mean"], ["scaling_centred"]),
        helper.make_node("Mul", ["scaling_centred", "scaling_inverse"], ["scaling_standard"]),
    ]
    constants = [constant("scaling_mean", scaling[0]), constant("scaling_inverse", scaling[1])]
    return nodes, constants, "scaling_standard"


# --- behind a parent's graph ----------------------------------------------------------------------------------------


def output_named(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    """An output of a graph; `Unprocessable` OUTPUT_MISSING where there is none."""
    for output in model.graph.output:
        if output.name == name:
            return output
    raise Unprocessable(
        "OUTPUT_MISSING",
        zh=f"模型图没有输出 {name}",
        en=f"the graph has no output {name!r}",
        remedy_zh="请换一个基础模型",
        remedy_en="start from another model",
        field="model",
    )


def append(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    outputs: list[onnx.ValueInfoProto],
    keep_outputs: bool = False,
) -> onnx.ModelProto:
    """A copy of `model` with `nodes` behind it and `outputs` as its outputs (beside the old ones, if kept).

    Names that the nodes make start with `am_`; where the graph has such names already (it was adapted before) they
    become `am2_`, `am3_` …, outputs too.
    """
    longer = onnx.ModelProto()
    longer.CopyFrom(model)
    prefix = fresh_prefix(model)
    new = {tensor.name: _again(tensor.name, prefix) for tensor in constants}
    for node in nodes:  # in order: a name not yet made by a node before it is the parent's own
        node.input[:] = [new.get(name, name) for name in node.input]
        new |= {name: _again(name, prefix) for name in node.output}
        node.output[:] = [new[name] for name in node.output]
    for value in (*constants, *outputs):
        value.name = new.get(value.name, value.name)
    longer.graph.node.extend(nodes)
    longer.graph.initializer.extend(constants)
    if not keep_outputs:
        del longer.graph.output[:]
    longer.graph.output.extend(outputs)
    onnx.checker.check_model(longer)
    return longer


def _again(name: str, prefix: str) -> str:
    return prefix + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name


def fresh_prefix(model: onnx.ModelProto) -> str:
    """`am_`, or `am2_`, `am3_` … where names of the graph begin so already."""
    taken = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    prefix, round_ = PREFIX, 1
    while any(name.startswith(prefix) for name in taken):
        round_ += 1
        prefix = f"am{round_}_"
    return prefix


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OPSET)


def append_positive_logit(
    model: onnx.ModelProto, tensor: str, positive: int | None, kind: str
) -> tuple[onnx.ModelProto, str]:
    """Behind `tensor` of a binary classifier: "am_logit" [N, 1], the log-odds of the positive class.

    `positive`: its column where the tensor is [N, 2], None where the tensor is [N] or [N, 1] of the positive class.
    `kind`: "probability" or "logit". Returns the model and the new output's name.
    """
    output_named(model, tensor)
    nodes, constants = [], [constant("am_column", np.array([-1, 1], np.int64))]
    single = tensor
    if positive is not None and kind == "logit":
        sign = np.array([[-1.0], [1.0]] if positive == 1 else [[1.0], [-1.0]], np.float32)
        constants.append(constant("am_difference", sign))
        nodes.append(helper.make_node("MatMul", [tensor, "am_difference"], ["am_single"]))
        single = "am_single"
    elif positive is not None:
        constants.append(constant("am_positive", np.array([positive], np.int64)))
        nodes.append(helper.make_node("Gather", [tensor, "am_positive"], ["am_single"], axis=1))
        single = "am_single"
    if kind == "probability":
        bounds = (MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        constants += [constant("am_low", np.float32(bounds[0])), constant("am_high", np.float32(bounds[1]))]
        constants.append(constant("am_one", np.float32(1.0)))
        nodes += [
            helper.make_node("Clip", [single, "am_low", "am_high"], ["am_p"]),
            helper.make_node("Sub", ["am_one", "am_p"], ["am_q"]),
            helper.make_node("Div", ["am_p", "am_q"], ["am_odds"]),
            helper.make_node("Log", ["am_odds"], ["am_flat"]),
        ]
        single = "am_flat"
    nodes.append(helper.make_node("Reshape", [single, "am_column"], ["am_logit"]))
    longer = append(model, nodes, constants, [floats_in("am_logit", 1)])
    return longer, longer.graph.output[0].name


def append_log(model: onnx.ModelProto, tensor: str, classes: int) -> tuple[onnx.ModelProto, str]:
    """Behind probabilities [N, K]: "am_log" [N, K], their logarithms, for a temperature."""
    output_named(model, tensor)
    nodes = [
        helper.make_node("Clip", [tensor, "am_low"], ["am_p"]),
        helper.make_node("Log", ["am_p"], ["am_log"]),
    ]
    constants = [constant("am_low", np.float32(MIN_PROBABILITY))]
    longer = append(model, nodes, constants, [floats_in("am_log", classes)])
    return longer, longer.graph.output[0].name


def append_head(backbone: onnx.ModelProto, tensor: str, weights: Floats, bias: Floats) -> onnx.ModelProto:
    """A frozen backbone and a new linear head: embedding `tensor` [N, D] → "probabilities" [N, K]."""
    output_named(backbone, tensor)
    nodes = [
        helper.make_node("Gemm", [tensor, "am_weights", "am_bias"], ["am_logits"]),
        helper.make_node("Softmax", ["am_logits"], ["probabilities"], axis=1),
    ]
    constants = [constant("am_weights", weights), constant("am_bias", bias)]
    return append(backbone, nodes, constants, [floats_in("probabilities", weights.shape[1])])


def append_whitened_distance(backbone: onnx.ModelProto, tensor: str, mean: Floats, whiten: Floats) -> onnx.ModelProto:
    """Root mean square of the whitened embedding: `tensor` [N, D] → "score" [N, 1] (a Mahalanobis distance / √D)."""
    output_named(backbone, tensor)
    nodes = [
        helper.make_node("Sub", [tensor, "am_mean"], ["am_centred"]),
        helper.make_node("MatMul", ["am_centred", "am_whiten"], ["am_white"]),
        helper.make_node("Mul", ["am_white", "am_white"], ["am_square"]),
        _reduce("ReduceMean", "am_square", "am_power", opset_of(backbone)),
        helper.make_node("Sqrt", ["am_power"], ["score"]),
    ]
    constants = [constant("am_mean", mean), constant("am_whiten", whiten), constant("am_axis", np.array([1], np.int64))]
    return append(backbone, nodes, constants, [floats_in("score", 1)])


def append_bank_distance(backbone: onnx.ModelProto, tensor: str, bank: Floats) -> onnx.ModelProto:
    """Distance to the nearest remembered embedding: `tensor` [N, D], bank [M, D] → "score" [N, 1]."""
    output_named(backbone, tensor)
    opset = opset_of(backbone)
    nodes = [
        helper.make_node("Mul", [tensor, tensor], ["am_square"]),
        _reduce("ReduceSum", "am_square", "am_norm", opset),
        helper.make_node("MatMul", [tensor, "am_bank_t"], ["am_dot"]),
        helper.make_node("Mul", ["am_dot", "am_two"], ["am_cross"]),
        helper.make_node("Sub", ["am_norm", "am_cross"], ["am_partial"]),
        helper.make_node("Add", ["am_partial", "am_bank_norm"], ["am_squared"]),
        _reduce("ReduceMin", "am_squared", "am_least", opset),
        helper.make_node("Max", ["am_least", "am_zero"], ["am_floor"]),  # rounding may leave it just below zero
        helper.make_node("Sqrt", ["am_floor"], ["score"]),
    ]
    constants = [
        constant("am_bank_t", bank.T),
        constant("am_bank_norm", (bank.astype(np.float64) ** 2).sum(1)[None, :]),
        constant("am_two", np.float32(2.0)),
        constant("am_zero", np.float32(0.0)),
        constant("am_axis", np.array([1], np.int64)),
    ]
    return append(backbone, nodes, constants, [floats_in("score", 1)])


def _reduce(op: str, source: str, result: str, opset: int) -> onnx.NodeProto:
    """A reduction over axis 1, the axis as input or attribute as the operator set of the parent's graph wants it."""
    axis_as_input = opset >= 18 or (op == "ReduceSum" and opset >= 13)
    if axis_as_input:
        return helper.make_node(op, [source, "am_axis"], [result], keepdims=1)
    return helper.make_node(op, [source], [result], axes=[1], keepdims=1)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write `model.onnx` into a bundle's folder."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def name_batch(model: onnx.ModelProto) -> None:
    """Make the first dimension of every input and output the dynamic "N", in place."""
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions:
            dimensions[0].ClearField("dim_value")
            dimensions[0].dim_param = "N"
