"""Which linear nodes of a base get an adapter site: by the modules they came from, as in peft's `target_modules`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from model_store.adapter_injection import linear_nodes, target_unknown
from model_store.runtime import load_graph
from model_store.tensors import Array

SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's dynamo exporter writes beside each node
ALL = "all"
ATTENTION = {  # what the projections of attention are called in the encoders of `transformers`
    "q": {"query", "q_proj", "q_lin", "q"},
    "k": {"key", "k_proj", "k_lin", "k"},
    "v": {"value", "v_proj", "v_lin", "v"},
}


def sites_of_modules(model: onnx.ModelProto) -> dict[str, str]:
    """Module path (`encoder.layer.0.query`) → name of the linear node that it became, for either torch exporter."""
    linear = set(linear_nodes(model))
    found: dict[str, str] = {}
    for node in model.graph.node:
        name = node.name or node.output[0]
        if name in linear:
            module = _module_of(node)
            if module:
                found.setdefault(module, name)
    return found


def choose_targets(model: onnx.ModelProto, words: Sequence[str], batched: Mapping[str, int]) -> list[str]:
    """The nodes that `words` name, in graph order: `all`, q, k, v, or the last part of a module's path, or a node.

    `batched`: as `batched_ranks` finds it; `all` leaves out the nodes that are not among them. Raises `Unprocessable`
    ADAPTER_TARGET_UNKNOWN for a word that names none.
    """
    modules = {node: path.rpartition(".")[2] for path, node in sites_of_modules(model).items()}
    linear = linear_nodes(model)
    inputs = {name: node.input[0] for node in model.graph.node if (name := node.name or node.output[0]) in linear}
    chosen: set[str] = set()
    for word in words:
        if word == ALL:
            found = {node for node in linear if inputs[node] in batched}
        else:
            names = ATTENTION.get(word, {word})
            found = {node for node in linear if node == word or modules.get(node) in names}
        if not found:
            raise target_unknown(word, sorted({name for name in modules.values() if name}) or linear)
        chosen |= found
    return [node for node in linear if node in chosen]


def batched_ranks(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Tensor → rank (2 or 3) of the inputs of linear nodes whose first dimension follows the number of rows.

    Found by running the graph on two and on three of the rows in `inputs`: exporters leave shapes that inference does
    not get through. Raises what `load_graph` and `Graph.run` raise.
    """
    linear = set(linear_nodes(model))
    tensors = {node.input[0] for node in model.graph.node if (node.name or node.output[0]) in linear}
    tensors -= set(inputs)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(tensors - outputs))
    shapes: list[dict[str, tuple[int, ...]]] = []
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(probe, Path(folder) / "model.onnx")
        graph = load_graph(Path(folder) / "model.onnx")
        for count in (2, 3):
            feed = {name: np.resize(array, (count, *array.shape[1:])) for name, array in inputs.items()}
            answers = graph.run(feed, sorted(tensors)) if tensors else {}
            shapes.append({name: array.shape for name, array in {**feed, **answers}.items()})
    two, three = shapes
    return {
        name: len(shape)
        for name, shape in two.items()
        if len(shape) in (2, 3) and (shape[0], three[name][0]) == (2, 3) and shape[1:] == three[name][1:]
    }


def _module_of(node: onnx.NodeProto) -> str:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is not None:  # "['', 'encoder', 'encoder.layer.0.query', 'linear_3']": the last is the operation
        names = re.findall(r"'([^']*)'", scopes)
        return names[-2] if len(names) > 1 else ""
    return ".".join(node.name.strip("/").split("/")[:-1])  # "/encoder/layer.0/query/MatMul"
