"""The models that Triton's client examples call, built here by their published names, types and shapes.

`simple_sequence` and `simple_dyna_sequence` keep state between calls in Triton, which is not offered here: they are
listed so that an example is refused for that, not for a missing model. The two picture models are stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from model_store.bundle import seal
from model_store.graph_specs import read_graph_specs
from model_store.manifest import Manifest
from tests.serving.parts import model

info, node = helper.make_tensor_value_info, helper.make_node
CLASSES = 10
MAX_ROWS = 8


def sum_and_difference(kind: int) -> onnx.ModelProto:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, for rows of 16; texts are texts of whole numbers."""
    nodes = [node("Cast", [f"INPUT{i}"], [f"in{i}"], to=TensorProto.INT32) for i in (0, 1)]
    nodes += [node("Add", ["in0", "in1"], ["sum"]), node("Sub", ["in0", "in1"], ["difference"])]
    nodes += [node("Cast", [name], [f"OUTPUT{i}"], to=kind) for i, name in enumerate(("sum", "difference"))]
    tensors = [[info(f"{name}{i}", kind, ["n", 16]) for i in (0, 1)] for name in ("INPUT", "OUTPUT")]
    return model(nodes, *tensors)


def identity(kind: int, name_in: str, name_out: str, columns: str | int = "k") -> onnx.ModelProto:
    """`name_out` = `name_in`, for rows of `columns`."""
    shape = ["n", columns]
    tensors = [[info(name_in, kind, shape)], [info(name_out, kind, shape)]]
    return model([node("Identity", [name_in], [name_out])], *tensors)


def picture_model(shape: list[Any], output: str, channels_at: int) -> onnx.ModelProto:
    """Softmax over `CLASSES` of a picture's mean colour."""
    axes = [axis for axis in (1, 2, 3) if axis != channels_at]
    nodes = [
        node("ReduceMean", ["input", "axes"], ["colour"], keepdims=0),
        node("MatMul", ["colour", "weights"], ["scores"]),
        node("Softmax", ["scores"], [output]),
    ]
    weights = {
        "axes": np.array(axes, np.int64),
        "weights": np.linspace(-1, 1, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES),
    }
    kind = TensorProto.FLOAT
    return model(nodes, [info("input", kind, shape)], [info(output, kind, ["n", CLASSES])], weights)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "simple": lambda: sum_and_difference(TensorProto.INT32),
    "simple_int8": lambda: sum_and_difference(TensorProto.INT8),
    "simple_string": lambda: sum_and_difference(TensorProto.STRING),
    "simple_identity": lambda: identity(TensorProto.STRING, "INPUT0", "OUTPUT0"),
    "inception_onnx": lambda: picture_model(["n", 3, 299, 299], "probabilities", 1),
    "densenet_onnx": lambda: picture_model(["n", 299, 299, 3], "InceptionV3/Predictions/Softmax", 3),
    "simple_sequence": lambda: identity(TensorProto.INT32, "INPUT", "OUTPUT", 1),
    "simple_dyna_sequence": lambda: identity(TensorProto.INT32, "INPUT", "OUTPUT", 1),
}
PICTURE_MODEL = "inception_onnx"  # its bundle says that it takes pictures, and what its classes are called
LABELS = [f"shade_{place}" for place in range(CLASSES)]
TOLD: dict[str, dict[str, Any]] = {
    PICTURE_MODEL: {
        "features": [{"name": "picture", "kind": "image"}],
        "pre": [{"op": "image", "feature": "picture", "tensor": "input", "width": 299, "height": 299}],
        "post": [{"op": "classify", "tensor": "probabilities", "labels": LABELS}],
    }
}


def write_models(folder: Path, count: int = len(MODELS)) -> None:
    """The first `count` of them as bundles `triton/NAME`, one folder each, with batches of up to `MAX_ROWS`."""
    for name in list(MODELS)[:count]:
        own = folder / name
        own.mkdir(parents=True)
        onnx.save(MODELS[name](), str(own / "model.onnx"))
        inputs, outputs = read_graph_specs(own / "model.onnx")
        told = {"name": f"triton/{name}", "inputs": inputs, "outputs": outputs, "batching": {"max_rows": MAX_ROWS}}
        seal(own, Manifest.model_validate(told | TOLD.get(name, {})))
