"""Area shapes: scalars, varying and empty dimensions, many dimensions, several outputs, no inputs."""

from __future__ import annotations

import numpy as np

from serving.conformance.checks import Area, expect, oip
from serving.conformance.kit import Kit
from serving.conformance.tensors import outputs_of

AREA = Area("shapes", "S", "形状")
_SHAPE = oip("Request Input", '"shape" : The shape of the input tensor.')
_UNSIGNED = oip("Request Input", "Each dimension must be an integer representable as an unsigned 64-bit integer value.")
_VARIABLE = oip("Model Metadata Response JSON Object", "Variable-size dimensions are specified as -1.")
_OUTPUT = oip("Response Output", '"shape" : The shape of the output tensor.')
_DATA = oip("Tensor Data", "Tensor data must be presented in row-major order of the tensor elements.")


@AREA.must("标量: 形状 []", "a scalar has the shape []", _SHAPE, needs=("scalar",))
def scalar(kit: Kit) -> None:
    found = kit.outputs("scalar", ("x", "FP32", np.array(2.5, np.float32)))["y"]
    expect(found.shape == () and found.array.item() == 3.5, f"2.5 + 1 is {found.array.tolist()} {found.shape}")


@AREA.must("可变维度随请求变化", "varying dimensions vary", _VARIABLE, needs=("dynamic",))
def varying(kit: Kit) -> None:
    for shape in ((1, 1), (2, 5), (7, 1), (1, 64)):
        x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        found = kit.outputs("dynamic", ("x", "FP32", x))["y"]
        expect(found.shape == shape, f"sent {shape}, got {found.shape}")
        expect(np.array_equal(found.array, x), f"the data of {shape} changed")


@AREA.must("五个维度, 扁平与嵌套", "five dimensions, flat and nested", _DATA, needs=("rank5",))
def five_dimensions(kit: Kit) -> None:
    x = np.arange(24, dtype=np.int32).reshape(2, 2, 1, 3, 2)
    for nested in (False, True):
        found = kit.outputs("rank5", ("x", "INT32", x), nested=nested)["y"]
        expect(found.shape == x.shape, f"the shape is {found.shape}")
        expect(np.array_equal(found.array, x), "the data changed")


@AREA.must("各输出有各自的形状与类型", "each output has its own shape and type", _OUTPUT, needs=("multi-output",))
def several_outputs(kit: Kit) -> None:
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    found = kit.outputs("multi-output", ("x", "FP32", x))
    wanted = {"total": ("FP32", [2.0, -5.0]), "positive": ("BOOL", (x > 0).tolist()), "size": ("INT64", [2, 3])}
    for name, (datatype, values) in wanted.items():
        expect(name in found, f"{name} is missing")
        expect(found[name].datatype == datatype, f"{name} is {found[name].datatype}")
        expect(found[name].array.tolist() == values, f"{name} is {found[name].array.tolist()}, not {values}")


@AREA.should("维度可为 0", "a dimension of 0: an empty tensor", _UNSIGNED, needs=("dynamic",))
def empty(kit: Kit) -> None:
    found = kit.outputs("dynamic", ("x", "FP32", np.zeros((0, 3), np.float32)))["y"]
    expect(found.shape == (0, 3), f"the shape is {found.shape}")


@AREA.should(
    "没有输入的模型",
    "a model without inputs is called with an empty array",
    oip("Inference Request JSON Object", '"inputs" : [ $request_input, … ]'),
    needs=("no-input",),
)
def no_input(kit: Kit) -> None:
    found = outputs_of(kit.post_json(kit.name_of("no-input"), {"inputs": []}))["y"]
    expect(found.array.tolist() == [1, 2], f"the answer is {found.array.tolist()}")


@AREA.must("输出形状与数据个数一致", "an output's data fill its shape", _OUTPUT)
def data_fill_the_shape(kit: Kit) -> None:
    described = {each.name: each.shape for each in kit.subject_outputs}
    for name, output in outputs_of(kit.infer_subject()).items():
        wanted = described.get(name, ())
        fits = len(wanted) == len(output.shape) and all(
            w in (-1, size) for w, size in zip(wanted, output.shape, strict=True)
        )
        expect(fits, f"{name} has the shape {output.shape}, its metadata says {wanted}")
