"""A small bundle that passes the public inspection: four numbers to one, by a matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from model_store.bundle import Bundle, pack, seal
from model_store.manifest import DataSource, Feature, Manifest, Metric, Target, TensorSpec
from model_store.step_specs import Columns, Value

WEIGHTS = np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32)


def linear_onnx(weights: np.ndarray = WEIGHTS) -> bytes:
    """y = x · weights, x [n, 4] float32."""
    matrix = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel().tolist())
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def linear_manifest(name: str, **changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": name,
        "title_zh": "四数加权",
        "title_en": "Weighted sum of four",
        "summary_zh": "由四个测量值计算一个数, 用于测试",
        "summary_en": "One value from four measurements, for tests",
        "task": "tabular-regression",
        "modality": "tabular",
        "chains": ["新材料"],
        "links": ["生产制造"],
        "scenarios": ["参数优化"],
        "licence": "Apache-2.0",
        "family": "weighted-sum",
        "method": "linear",
        "inputs": [TensorSpec(name="x", dtype="FP32", shape=[-1, 4])],
        "outputs": [TensorSpec(name="y", dtype="FP32", shape=[-1, 1])],
        "features": [
            Feature(name=n, kind="number", title_zh=f"测量{n}", title_en=f"measurement {n}", unit="1", example=1.0)
            for n in "abcd"
        ],
        "target": Target(name="y", kind="number", title_zh="值", title_en="value", unit="1"),
        "pre": [Columns(features=list("abcd"), tensor="x")],
        "post": [Value(tensor="y")],
        "data": [DataSource(title="made up", licence="CC0-1.0", rows=100, use="trained", split_fingerprint="0" * 64)],
        "metrics": [Metric(name="rmse", value=0.1, low=0.05, high=0.2, rows=100, higher_is_better=False)],
    }
    return Manifest(**(facts | changes))


def linear_bundle(folder: Path, name: str, weights: np.ndarray = WEIGHTS, **changes: Any) -> Bundle:
    """The sealed bundle in `folder`, with a golden sample and a card."""
    (folder / "golden" / "0").mkdir(parents=True)
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(folder / "golden" / "0" / "inputs.npz", x=x)
    np.savez(folder / "golden" / "0" / "outputs.npz", y=x @ weights)
    (folder / "model.onnx").write_bytes(linear_onnx(weights))
    (folder / "card.md").write_text("---\nlicense: apache-2.0\n---\n# 四数加权 Weighted sum\n用于测试。For tests.\n")
    return seal(folder, linear_manifest(name, **changes))


def linear_zip(folder: Path, name: str, weights: np.ndarray = WEIGHTS, **changes: Any) -> bytes:
    """The same, packed."""
    bundle = linear_bundle(folder / "bundle", name, weights, **changes)
    return pack(bundle, folder / "bundle.zip").read_bytes()
