"""Tensors of Open Inference requests as numpy arrays: from JSON, and from the binary extension's bytes.

Binary tensors are views of the body (no copy) where their alignment allows. JSON numbers become the declared type only
where nothing is lost but precision: text, booleans as numbers, fractions as integers and values out of range are
refused. What is not finite is read as the literal or the text `NaN`, `Infinity`, `-Infinity` (or `null` for NaN). BF16
travels as binary only. Every failure is a `BadInput`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np

from model_store.schema import OipType
from model_store.tensors import NUMPY_OF, Array, object_array
from serving.errors.requests import binary_required, request_field, tensor_binary, tensor_data

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 31
MAX_NESTING = 32
# A number beyond FP32 becomes an infinity, as everywhere; `np.errstate` would say so at half a microsecond a tensor.
warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
FLOATS = frozenset({"FP16", "FP32", "FP64"})
LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor
_TYPES = frozenset(get_args(OipType))
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})


def dtype_and_shape(name: str, tensor: Mapping[str, Any]) -> tuple[OipType, list[int], int]:
    """`datatype`, `shape` and the number of elements. Raises `BadInput` REQUEST_FIELD."""
    dtype = tensor.get("datatype")
    if type(dtype) is not str or dtype not in _TYPES:
        raise request_field(
            f"{name}.datatype",
            f"须为 {', '.join(get_args(OipType))} 之一",
            f"must be one of {', '.join(get_args(OipType))}",
        )
    shape = tensor.get("shape")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise request_field(
            f"{name}.shape", f"须为至多 {MAX_DIMENSIONS} 个整数的列表", f"must be a list of at most {MAX_DIMENSIONS}"
        )
    count = extent = 1  # `extent`: what numpy's strides must hold, also of a tensor without elements
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise request_field(
                f"{name}.shape", f"须为 0 至 {MAX_ELEMENTS} 的整数", f"must hold integers from 0 to {MAX_ELEMENTS}"
            )
        count *= size
        extent *= size or 1
    if extent > MAX_ELEMENTS:
        raise request_field(f"{name}.shape", "元素过多", "has too many elements")
    return cast(OipType, dtype), shape, count


def array_of_json(name: str, tensor: Mapping[str, Any]) -> Array:
    """`data`, flat or nested as `shape` says, as `datatype`. Raises `BadInput`: see `decode_request`."""
    dtype, shape, count = dtype_and_shape(name, tensor)
    data = tensor.get("data")
    if dtype == "BF16":
        raise binary_required(name, dtype)
    if type(data) is not list:
        if data is None or type(data) is dict:
            raise tensor_data(name, "须为列表", "must be a list")
        data = [data]
    if dtype == "BYTES":
        return _bytes_of_json(name, data, shape, count)
    try:
        array = np.array(data)
        if array.dtype.kind in "OU" and dtype in FLOATS:
            array = _with_words(name, data)
        elif array.dtype.kind in "fO" and NUMPY_OF[dtype].kind in "iu" and array.size:
            array = _exact_integers(name, data, dtype)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise tensor_data(name, "各行长度不一", "is ragged, or holds what is not a number") from error
    if array.size != count:
        raise tensor_data(
            name,
            f"共 {array.size} 个值, shape {shape} 需要 {count} 个",
            f"has {array.size} values, {shape} needs {count}",
        )
    if array.ndim != 1 and shape and list(array.shape) != shape:
        raise tensor_data(
            name, f"嵌套为 {list(array.shape)}, shape 为 {shape}", f"is nested as {list(array.shape)}, not {shape}"
        )
    wanted = NUMPY_OF[dtype]
    if array.dtype.kind == "f" and wanted.kind == "f":
        return array.astype(wanted, copy=False).reshape(shape)
    return converted(name, array, dtype).reshape(shape)


def _with_words(name: str, data: list[Any]) -> Array:
    """Floats among which stand `null` or the words for what is not finite."""
    array = np.array(data, dtype=object)
    for index, item in np.ndenumerate(array):
        if type(item) is str and item in _NOT_FINITE:
            array[index] = float(item)
        elif item is not None and type(item) not in (int, float):
            raise tensor_data(name, f"含有 {type(item).__name__}", f"holds a {type(item).__name__}")
    return array.astype(np.float64)


def _exact_integers(name: str, data: list[Any], dtype: OipType) -> Array:
    """Integers that numpy would have made floats of, because they need 64 bits and some of them the sign."""
    array = np.array(data, dtype=object)
    bounds = np.iinfo(NUMPY_OF[dtype])
    for item in array.flat:
        if type(item) is not int:
            found = "fractions" if type(item) is float else type(item).__name__
            raise tensor_data(name, f"含有 {found}, 不是 {dtype}", f"holds {found}, not {dtype}")
        if not bounds.min <= item <= bounds.max:
            raise tensor_data(name, f"有值超出 {dtype} 的范围", f"holds a value outside the range of {dtype}")
    return array.astype(NUMPY_OF[dtype])


def converted(name: str, array: Array, dtype: OipType) -> Array:
    """`array` as the declared type where nothing is lost but precision. Raises `BadInput` TENSOR_DATA."""
    wanted, kind = NUMPY_OF[dtype], array.dtype.kind
    if not array.size:
        return np.empty(0, wanted)
    if wanted.kind == "f":
        if kind in "fiu":
            return array.astype(wanted, copy=False)
    elif wanted.kind in "iu":
        if kind in "iu":
            if array.dtype == wanted:
                return array
            bounds = np.iinfo(wanted)
            if int(array.min()) >= bounds.min and int(array.max()) <= bounds.max:
                return array.astype(wanted)
            raise tensor_data(name, f"有值超出 {dtype} 的范围", f"holds a value outside the range of {dtype}")
    elif kind == "b":
        return array
    found = {"b": "true/false", "f": "fractions", "U": "text", "O": "null, text or very large integers"}
    shown = found.get(kind, "numbers")
    raise tensor_data(name, f"是 {shown}, 不是 {dtype}", f"holds {shown}, not {dtype}")


def _bytes_of_json(name: str, data: list[Any], shape: list[int], count: int) -> Array:
    items: list[bytes | str] = []
    _flatten_text(name, data, items, count, 0)
    if len(items) != count:
        raise tensor_data(
            name,
            f"共 {len(items)} 个值, shape {shape} 需要 {count} 个",
            f"has {len(items)} values, {shape} needs {count}",
        )
    return object_array(items, shape)


def _flatten_text(name: str, data: list[Any], items: list[bytes | str], count: int, depth: int) -> None:
    if depth > MAX_NESTING:
        raise tensor_data(name, "嵌套过深", "is nested too deeply")
    for item in data:
        if type(item) is str:
            try:
                items.append(item.encode())
            except UnicodeEncodeError as error:
                raise tensor_data(name, "含有无效的 Unicode", "holds text that is not valid Unicode") from error
        elif type(item) is list:
            _flatten_text(name, item, items, count, depth + 1)
        else:
            raise tensor_data(name, "BYTES 的值须为文本", "must hold text for BYTES")


def array_of_binary(name: str, tensor: Mapping[str, Any], content: memoryview) -> Array:
    """A view of `content` where its alignment allows. Raises `BadInput` REQUEST_FIELD, TENSOR_BINARY."""
    dtype, shape, count = dtype_and_shape(name, tensor)
    if tensor.get("data") is not None:
        raise tensor_binary(name, "不可同时有 data", "stands beside `data`; send one of them")
    if dtype == "BYTES":
        return _bytes_of_binary(name, content, shape, count)
    wanted = NUMPY_OF[dtype]
    if len(content) != count * wanted.itemsize:
        raise tensor_binary(
            name,
            f"有 {len(content)} 字节, {dtype} {shape} 需要 {count * wanted.itemsize} 字节",
            f"has {len(content)} bytes, {dtype} {shape} needs {count * wanted.itemsize}",
        )
    if not count:
        return np.empty(shape, wanted)
    if dtype == "BOOL":
        bits: Array = np.frombuffer(content, np.uint8) != 0
        return bits.reshape(shape)
    array: Array = np.frombuffer(content, wanted).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
    return array


def _bytes_of_binary(name: str, content: memoryview, shape: list[int], count: int) -> Array:
    items: list[bytes | str] = []
    at, end = 0, len(content)
    while at < end and len(items) < count:
        if end - at < 4:
            raise tensor_binary(name, "长度前缀不完整", "ends inside a length")
        (length,) = LENGTH.unpack_from(content, at)
        at += 4
        if length > end - at:
            raise tensor_binary(name, "元素超出数据末尾", "has an element that goes beyond its end")
        items.append(bytes(content[at : at + length]))
        at += length
    if len(items) != count or at != end:
        raise tensor_binary(name, f"元素个数与 shape {shape} 不符", f"does not hold the {count} elements of {shape}")
    return object_array(items, shape)
