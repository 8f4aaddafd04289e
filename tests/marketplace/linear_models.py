"""Bundles for tests of publishing: a complete little regression that passes the public inspection."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store.bundle import Bundle, seal
from model_store.manifest import Manifest

FEATURES = [f"x{index}" for index in range(16)]


def weights_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(16, 1)).astype(np.float32)


def graph_of(weights: np.ndarray, bias: float = 0.5, out: int = 1) -> onnx.ModelProto:
    """y[n, out] = x[n, 16] · weights[16, out] + bias."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([bias], np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def linear_bundle(folder: Path, name: str, *, seed: int = 0, bias: float = 0.5, **facts: Any) -> Bundle:
    """A sealed bundle in `folder`; `seed` and `bias` choose its weights, `facts` go over its manifest."""
    folder.mkdir(parents=True)
    onnx.save(graph_of(weights_of(seed), bias), folder / "model.onnx")
    (folder / "card.md").write_text("---\nlicense: apache-2.0\n---\n\n# 线性 linear\n", encoding="utf-8")
    features = [
        {"name": each, "kind": "number", "title_zh": each, "title_en": each, "unit": "1", "example": 0.5}
        for each in FEATURES
    ]
    given: dict[str, Any] = {
        "name": name,
        "title_zh": "线性",
        "title_en": "Linear",
        "summary_zh": "十六个数的加权和",
        "summary_en": "A weighted sum of sixteen numbers",
        "task": "tabular-regression",
        "modality": "tabular",
        "scenarios": ["参数优化"],
        "licence": "Apache-2.0",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 16]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 1]}],
        "features": features,
        "target": {"name": "y", "kind": "number", "title_zh": "和", "title_en": "sum", "unit": "1"},
        "pre": [{"op": "columns", "features": FEATURES, "tensor": "x"}],
        "post": [{"op": "value", "tensor": "y"}],
        "data": [{"title": "made up", "licence": "CC0-1.0", "use": "trained"}],
    }
    return seal(folder, Manifest.model_validate(given | facts))
