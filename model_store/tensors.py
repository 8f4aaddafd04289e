"""One table between three type systems: Open Inference Protocol names, numpy dtypes, ONNX (Runtime) types.

BYTES is a numpy object array of `bytes`. ONNX's own `tensor(string)` holds Unicode text, so bytes cross that border as
UTF-8 (`to_ort_strings`, `from_ort_strings`). BF16 is `ml_dtypes.bfloat16` (comes with `onnx`), 2 bytes an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_store.errors import BadInput, Unprocessable
from model_store.schema import OipType

Array = npt.NDArray[Any]
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

NUMPY_OF: dict[OipType, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
OIP_OF: dict[np.dtype[Any], OipType] = {dtype: oip for oip, dtype in NUMPY_OF.items()}

OIP_OF_ORT: dict[str, OipType] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# onnx.TensorProto.DataType → the protocol's type (https://onnx.ai/onnx/intro/concepts.html#element-type)
OIP_OF_ONNX: dict[int, OipType] = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
ONNX_BFLOAT16 = 16

# How many bytes one element takes on the wire and in memory; BYTES elements have a length of their own.
BYTES_PER_ELEMENT: dict[OipType, int] = {oip: dtype.itemsize for oip, dtype in NUMPY_OF.items() if oip != "BYTES"}


def oip_of_array(array: Array) -> OipType | None:
    """The protocol's type of an array; None where it has none (complex numbers, datetimes, structured types).

    Fixed-width numpy strings (`S`, `U`) count as BYTES, and byte order does not matter.
    """
    if array.dtype.kind in "SU":
        return "BYTES"
    dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    return OIP_OF.get(dtype)


def tensor_bytes(array: Array) -> int:
    """Bytes of content: `nbytes`, and for BYTES the sum of the elements' lengths."""
    if array.dtype.kind != "O":
        return int(array.nbytes)
    return sum(len(item) if isinstance(item, (bytes, str)) else 8 for item in array.flat)


def object_array(items: Sequence[bytes | str], shape: Sequence[int]) -> Array:
    """An object array of the given shape; unlike `np.array` it never guesses a fixed-width string type."""
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(tuple(shape))


def as_bytes_array(array: Array) -> Array:
    """An object array of `bytes`, whatever mixture of `str` and `bytes` (or numpy `S`/`U`) came in."""
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
    return object_array(items, array.shape)


def to_ort_strings(array: Array, name: str) -> Array:
    """BYTES (object array of bytes, str, or numpy `S`/`U`) → object array of `str`, which is what ONNX Runtime takes.

    ONNX Runtime would otherwise take the *representation* of bytes ("b'…'"). Raises `BadInput` TENSOR_NOT_UTF8.
    """
    items: list[bytes | str] = []
    for index, item in enumerate(array.flat):
        try:
            if isinstance(item, bytes):
                items.append(item.decode())
            else:
                text = str(item)
                text.encode()  # a lone surrogate cannot cross either
                items.append(text)
        except UnicodeError as error:
            raise BadInput(
                "TENSOR_NOT_UTF8",
                zh=f"张量“{name}”的第 {index} 个元素不是有效的 UTF-8 文本",
                en=f"element {index} of tensor {name!r} is not valid UTF-8",
                remedy_zh="该模型的文本输入必须是 UTF-8 编码",
                remedy_en="this model takes text: encode it as UTF-8",
                field=name,
            ) from error
    return object_array(items, array.shape)


def from_ort_strings(array: Array) -> Array:
    """What ONNX Runtime answers for `tensor(string)` (object array of `str`) → object array of UTF-8 `bytes`."""
    return as_bytes_array(array)


def oip_of_ort_type(ort_type: str, name: str) -> OipType:
    """`tensor(float)` → `FP32`. Raises `Unprocessable` TENSOR_TYPE_UNSUPPORTED for sequences, maps, int4, complex."""
    oip = OIP_OF_ORT.get(ort_type)
    if oip is None:
        raise type_unsupported(name, ort_type)
    return oip


def type_unsupported(name: str, found: str) -> Unprocessable:
    """The refusal for a graph input or output that the Open Inference Protocol cannot carry."""
    return Unprocessable(
        "TENSOR_TYPE_UNSUPPORTED",
        zh=f"模型的输入或输出“{name}”的类型 {found} 无法通过推理协议传输",
        en=f"the model's input or output {name!r} has type {found}, which the inference protocol cannot carry",
        remedy_zh="请导出只含普通张量的模型 (skl2onnx 请设 options={'zipmap': False})",
        remedy_en="export a model with plain tensors only (with skl2onnx: options={'zipmap': False})",
        field=name,
    )
