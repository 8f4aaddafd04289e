"""A small base with adapter sites, adapters for it, and what each must answer, worked out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.adapter_file import seal_adapter
from model_store.adapter_injection import inject_sites
from model_store.bundle import Bundle, seal
from model_store.graph_specs import specs_of
from model_store.manifest import Manifest

Array = np.ndarray[Any, Any]
COLUMNS, HIDDEN, LABELS = 6, 16, 3
FIRST, SECOND = "fc1/MatMul", "fc2/Gemm"
value = helper.make_tensor_value_info


def weights(seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        "w1": draw.normal(size=(COLUMNS, HIDDEN)).astype(np.float32) / 2,
        "b1": draw.normal(size=HIDDEN).astype(np.float32) / 4,
        "w2": draw.normal(size=(LABELS, HIDDEN)).astype(np.float32) / 4,
        "b2": draw.normal(size=LABELS).astype(np.float32) / 4,
    }


def plain(seed: int = 0, opset: int = 18) -> onnx.ModelProto:
    """y = tanh(x @ w1 + b1) @ w2.T + b2, the first as MatMul and Add, the second as Gemm."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name=FIRST),
        helper.make_node("Add", ["m", "b1"], ["s"]),
        helper.make_node("Tanh", ["s"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name=SECOND, transB=1),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights(seed).items()]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", COLUMNS])], [value("y", TensorProto.FLOAT, ["n", LABELS])],
        initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def answer(x: Array, tensors: dict[str, Array] | None = None, seed: int = 0) -> Array:
    """What the base, or the base with an adapter merged into its weights, answers."""
    w, t = weights(seed), tensors or {}
    first, second = w["w1"], w["w2"].T
    if f"{FIRST}.lora_A" in t:
        first = first + t[f"{FIRST}.lora_A"] @ t[f"{FIRST}.lora_B"]
    if f"{SECOND}.lora_A" in t:
        second = second + t[f"{SECOND}.lora_A"] @ t[f"{SECOND}.lora_B"]
    return np.tanh(x @ first + w["b1"]) @ second + w["b2"]


def adapter(seed: int, rank: int = 4, sites: tuple[str, ...] = (FIRST, SECOND)) -> dict[str, Array]:
    draw = np.random.default_rng(1000 + seed)
    sides = {FIRST: (COLUMNS, HIDDEN), SECOND: (HIDDEN, LABELS)}
    found = {}
    for site in sites:
        into, out = sides[site]
        found[f"{site}.lora_A"] = draw.normal(size=(into, rank)).astype(np.float32)
        found[f"{site}.lora_B"] = draw.normal(size=(rank, out)).astype(np.float32)
    return found


def rows(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(count, COLUMNS)).astype(np.float32)


def bundle_of(folder: Path, graph: onnx.ModelProto, name: str, **manifest: Any) -> Bundle:
    folder.mkdir(parents=True)
    onnx.save(graph, str(folder / "model.onnx"))
    inputs, outputs = specs_of(graph)
    return seal(folder, Manifest.model_validate({"name": name, "inputs": inputs, "outputs": outputs, **manifest}))


def base_bundle(folder: Path, *, indexed: bool, name: str = "vendor/base", seed: int = 0) -> Bundle:
    return bundle_of(folder, inject_sites(plain(seed), [FIRST, SECOND], indexed=indexed), name)


def adapter_bundle(folder: Path, base: Bundle, tensors: dict[str, Array], name: str) -> Bundle:
    manifest = Manifest(name=name, inputs=base.manifest.inputs, outputs=base.manifest.outputs)
    return seal_adapter(folder, manifest, base, tensors)
