"""Give a plain ONNX base its adapter sites: low-rank branches behind linear nodes, and heads that may be replaced.

Works on the graph alone (no torch), after export by any exporter. Without an adapter the graph answers as before: a
branch of rank 0 adds zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_store.adapter_sites import A_SUFFIX, B_SUFFIX, INDEX, MAX_RANK, SITES_KEY, sites_invalid
from model_store.errors import Unprocessable

LINEAR = ("MatMul", "Gemm")
HEAD, LOGITS = "classifier", "logits"
LEAST_IR = 4  # from here on an initializer need not be an input, and one that is may be overridden
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


def linear_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that may carry a low-rank site: MatMul and Gemm with a weight of their own, in graph order.

    A node without a name goes by its output's.
    """
    weights = _weights(model)
    return [_name_of(node) for node in model.graph.node if _weight_of(node, weights) is not None]


def inject_sites(
    model: onnx.ModelProto,
    targets: Sequence[str],
    heads: Sequence[str] = (),
    indexed: bool = False,
    *,
    batched: Mapping[str, int] | None = None,
    max_rank: int = MAX_RANK,
    head: str = "",
) -> onnx.ModelProto:
    """A copy of `model` with a low-rank site behind each node in `targets`, and each node in `heads` replaceable.

    `heads` (not with `indexed`) get their weight and bias as whole sites, with a free number of outputs; a bias that an
    exporter dropped because it was zero is put back. `indexed` needs targets whose rows are the batch's rows;
    `batched`: tensor → rank of those known to have the batch first, where shape inference does not find it. `head`: the
    target that `add_head` made; `max_rank` bounds the others.
    Raises `Unprocessable` ADAPTER_TARGET_UNKNOWN, ADAPTER_TARGET_NOT_BATCHED, ADAPTER_SITES_INVALID.
    """
    if (not targets and not heads) or (indexed and heads):
        raise sites_invalid("no targets, or heads in the indexed form")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if any(entry.key == SITES_KEY for entry in changed.metadata_props):
        raise sites_invalid("the graph has sites already")
    changed.ir_version = max(changed.ir_version, LEAST_IR)
    del changed.graph.value_info[:]  # shapes written down for the graph as it was
    ranks = (_batched_ranks(changed) | dict(batched or {})) if indexed else {}
    weights = _weights(changed)
    by_name = {_name_of(node): node for node in changed.graph.node if _weight_of(node, weights) is not None}
    for name in [*targets, *heads]:
        if name not in by_name:
            raise target_unknown(name, list(by_name))
    whole: list[str] = []
    for name in heads:
        whole += _open_head(changed.graph, by_name[name], weights)
    if indexed:
        _declare(changed.graph, numpy_helper.from_array(np.zeros(1, np.int64), INDEX), ["adapters_of_rows"])
    for name in dict.fromkeys(targets):
        node = by_name[name]
        if indexed and ranks.get(node.input[0]) not in (2, 3):
            raise _target_not_batched(name)
        _branch(changed.graph, node, weights, ranks.get(node.input[0], 0) if indexed else None)
    said: dict[str, object] = {"low_rank": list(dict.fromkeys(targets)), "whole": whole, "indexed": indexed}
    if max_rank != MAX_RANK:
        said["max_rank"] = max_rank
    if head:
        said["head"] = head
    changed.metadata_props.add(key=SITES_KEY, value=json.dumps(said))
    if not any(tensor.external_data for tensor in changed.graph.initializer):  # those lie beside a file, not in memory
        onnx.checker.check_model(changed)
    return changed


def add_head(model: onnx.ModelProto, tensor: str, classes: int) -> onnx.ModelProto:
    """A copy of `model` with one more output, LOGITS [batch, classes]: a linear map of its output `tensor` [batch, D]
    and a one, all zeros. As a target of `inject_sites` it takes the head of a classifier: A is `[weights; bias]`
    [D + 1, K] and B the first K rows of the identity, so that the first K logits are exactly the head's.

    Raises `Unprocessable` ADAPTER_SITES_INVALID.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    opset = next((each.version for each in changed.opset_import if each.domain in ("", "ai.onnx")), 0)
    found = next((value.type.tensor_type for value in graph.output if value.name == tensor), None)
    dims = found.shape.dim if found is not None else []
    if found is None or len(dims) != 2 or dims[1].dim_value < 1 or found.elem_type not in _FLOATS or opset < 11:
        raise sites_invalid(f"{tensor} [batch, D], opset 11")
    taken = {name for node in graph.node for name in (node.name, *node.output)}
    if taken & {HEAD, LOGITS}:
        raise sites_invalid(f"{HEAD}, {LOGITS}")
    kind = helper.tensor_dtype_to_np_dtype(found.elem_type)
    for name, value in (
        (f"{HEAD}.weight", np.zeros((dims[1].dim_value + 1, classes), kind)),
        (f"{HEAD}.pads", np.array([0, 0, 0, 1], np.int64)),
        (f"{HEAD}.one", np.array(1, kind)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.append(helper.make_node("Pad", [tensor, f"{HEAD}.pads", f"{HEAD}.one"], [f"{HEAD}.x"], name=f"{HEAD}.x"))
    graph.node.append(helper.make_node("MatMul", [f"{HEAD}.x", f"{HEAD}.weight"], [LOGITS], name=HEAD))
    batch = dims[0].dim_param or dims[0].dim_value
    graph.output.append(helper.make_tensor_value_info(LOGITS, found.elem_type, [batch, classes]))
    return changed


def branch_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that the sites added: leave them out of quantisation (`nodes_to_exclude`)."""
    marks = (A_SUFFIX, B_SUFFIX)
    return [node.name for node in model.graph.node if any(mark in node.name for mark in marks)]


# --- low-rank branches ------------------------------------------------------------------------------------------------


def _branch(
    graph: onnx.GraphProto, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], rank_of_x: int | None
) -> None:
    """`y += (x @ A) @ B` behind `node`; `rank_of_x`: of its input in the indexed form, None in the other."""
    site = _name_of(node)
    weight = _weight_of(node, weights)
    assert weight is not None, "only linear nodes are targets"
    features_in, features_out = weight.dims
    if node.op_type == "Gemm" and _attribute(node, "transB"):
        features_out, features_in = weight.dims
    kind = helper.tensor_dtype_to_np_dtype(weight.data_type)
    stack = [] if rank_of_x is None else ["adapter_slots"]
    first = [] if rank_of_x is None else [1]
    a, b = site + A_SUFFIX, site + B_SUFFIX
    empty_a, empty_b = np.zeros((*first, features_in, 0), kind), np.zeros((*first, 0, features_out), kind)
    _declare(graph, numpy_helper.from_array(empty_a, a), [*stack, features_in, f"{site}.rank"])
    _declare(graph, numpy_helper.from_array(empty_b, b), [*stack, f"{site}.rank", features_out])
    x, output = node.input[0], node.output[0]
    node.output[0] = f"{site}.lora_A.base"
    added = []

    def add(op: str, inputs: list[str], result: str) -> str:
        added.append(helper.make_node(op, inputs, [result], name=result))
        return result

    if rank_of_x is not None:
        a, b = add("Gather", [a, INDEX], f"{a}.rows"), add("Gather", [b, INDEX], f"{b}.rows")
    if rank_of_x == 2:
        axis = f"{site}.lora_A.axis"
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
        x = add("Unsqueeze", [x, axis], f"{site}.lora_A.x")
    down = add("MatMul", [x, a], f"{site}.lora_A.down")
    up = add("MatMul", [down, b], f"{site}.lora_B.up")
    if rank_of_x == 2:
        up = add("Squeeze", [up, f"{site}.lora_A.axis"], f"{site}.lora_B.rows_up")
    added.append(helper.make_node("Add", [node.output[0], up], [output], name=f"{site}.lora_B.add"))
    at = list(graph.node).index(node) + 1
    for offset, each in enumerate(added):
        graph.node.insert(at + offset, each)


def _declare(graph: onnx.GraphProto, default: onnx.TensorProto, shape: Sequence[int | str]) -> None:
    """An initializer that is also an input: a run may override it."""
    graph.initializer.append(default)
    graph.input.append(helper.make_tensor_value_info(default.name, default.data_type, list(shape)))


def _batched_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Rank of every tensor whose first dimension is known to be the batch: the first of every input of the graph."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    firsts = {
        value.type.tensor_type.shape.dim[0].dim_param if value.type.tensor_type.shape.dim else ""
        for value in model.graph.input
        if value.name not in initializers
    }
    if len(firsts) != 1 or "" in firsts:
        return {}
    (batch,) = firsts
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param == batch
    }


# --- heads ------------------------------------------------------------------------------------------------------------


def _open_head(graph: onnx.GraphProto, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> list[str]:
    """Make weight and bias of a linear node overridable, with a free number of outputs; their names."""
    weight = _weight_of(node, weights)
    assert weight is not None, "only linear nodes are heads"
    transposed = node.op_type == "Gemm" and bool(_attribute(node, "transB"))
    labels = f"{_name_of(node)}.labels"
    side = 0 if transposed else 1
    shape: list[int | str] = list(weight.dims)
    width, shape[side] = weight.dims[side], labels
    bias = _bias_of(graph, node, weights)
    if bias is None:
        bias = _zero_bias(graph, node, weight, width)
    for tensor, sides in ((weight, shape), (bias, [labels])):
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, sides))
    for output in graph.output:  # the number of labels is the adapter's now
        dims = output.type.tensor_type.shape.dim
        if dims and dims[-1].dim_value == width:
            dims[-1].dim_param = labels
    return [weight.name, bias.name]


def _bias_of(
    graph: onnx.GraphProto, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    if node.op_type == "Gemm":
        return weights.get(node.input[2]) if len(node.input) > 2 else None
    users = [each for each in graph.node if node.output[0] in each.input]
    if len(users) == 1 and users[0].op_type == "Add":
        (other,) = [name for name in users[0].input if name != node.output[0]] or [""]
        found = weights.get(other)
        return found if found is not None and len(found.dims) == 1 else None
    return None


def _zero_bias(graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto, width: int) -> onnx.TensorProto:
    """The bias that an exporter dropped because it was zero."""
    name = f"{_name_of(node)}.bias"
    zeros = numpy_helper.from_array(np.zeros(width, helper.tensor_dtype_to_np_dtype(weight.data_type)), name)
    graph.initializer.append(zeros)
    if node.op_type == "Gemm":
        node.input.append(name)
    else:
        output, node.output[0] = node.output[0], f"{name}.without"
        at = list(graph.node).index(node) + 1
        graph.node.insert(at, helper.make_node("Add", [node.output[0], name], [output], name=f"{name}.add"))
    return zeros


# --- reading the graph ------------------------------------------------------------------------------------------------


def _weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    inputs = {value.name for value in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}


def _weight_of(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """The matrix of a linear node; None for every other node."""
    if node.op_type not in LINEAR or (node.op_type == "Gemm" and _attribute(node, "transA")):
        return None
    weight = weights.get(node.input[1])
    return weight if weight is not None and len(weight.dims) == 2 and weight.data_type in _FLOATS else None


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _name_of(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def target_unknown(name: str, known: Sequence[str]) -> Unprocessable:
    listed = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
    return Unprocessable(
        "ADAPTER_TARGET_UNKNOWN",
        zh=f"计算图中没有名为“{name[:120]}”的线性节点 (MatMul 或 Gemm, 权重为二维浮点)",
        en=f"the graph has no linear node {name[:120]!r} (MatMul or Gemm with a two-dimensional float weight)",
        remedy_zh=f"可用节点: {listed}",
        remedy_en=f"its linear nodes are {listed}",
        field=name[:120],
    )


def _target_not_batched(name: str) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_TARGET_NOT_BATCHED",
        zh=f"节点“{name[:120]}”的输入不是按批次逐行排列的 [批, 输入] 或 [批, 长度, 输入], 不能按行选择适配器",
        en=f"the input of node {name[:120]!r} is not known to be [batch, in] or [batch, length, in], so rows cannot"
        " choose their adapters",
        remedy_zh="请导出批次维度为动态的图, 或用每次一个适配器的形式 (indexed=False)",
        remedy_en="export with a dynamic batch dimension, or use the form of one adapter a run (indexed=False)",
        field=name[:120],
    )
