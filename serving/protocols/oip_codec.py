"""Open Inference Protocol V2: request bytes → numpy, numpy → response bytes, JSON and the binary tensor extension.

Binary tensors are views of the body (no copy) where their alignment allows. JSON numbers become the declared type only
where nothing is lost but precision: text, booleans as numbers, fractions as integers and values out of range are
refused. What is not finite is read as the literal or the text `NaN`, `Infinity`, `-Infinity` (or `null` for NaN) and
written as that text, so that every answer is JSON; in Triton's words as the literal. BF16 travels as binary only.
Every failure is a `BadInput`, but what is asked of an extension that is not offered: that is a `NotHere`.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from typing import Any, cast, get_args

import msgspec
import numpy as np
import orjson

from model_store.manifest import OipType
from model_store.tensors import NUMPY_OF, OIP_OF, Array, object_array
from serving.errors import (
    binary_required,
    extension_not_offered,
    request_field,
    request_json,
    shared_memory_not_offered,
    tensor_binary,
    tensor_data,
)
from serving.fairness import WEIGHTS

MAX_TENSORS = 256
MAX_DIMENSIONS = 16
MAX_NAME_CHARACTERS = 512
MAX_ELEMENTS = 1 << 31
MAX_NESTING = 32
MAX_LENIENT_BYTES = 4 << 20
# A number beyond FP32 becomes an infinity, as everywhere; `np.errstate` would say so at half a microsecond a tensor.
warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
_TYPES = frozenset(get_args(OipType))
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
_SHARED_MEMORY = "shared_memory_region"
_LENGTH = struct.Struct("<I")


class InferRequest(msgspec.Struct, gc=False):
    """A decoded request. `outputs` None: all; `binary` by output name, `binary_default` for those not named; `classes`:
    outputs to be answered as so many classifications."""

    id: str
    inputs: dict[str, Array]
    outputs: list[str] | None
    binary: dict[str, bool]
    binary_default: bool
    timeout_ms: float | None
    classes: dict[str, int] | None = None
    priority: str | None = None


class _PlainTensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class _PlainRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The usual request: flat numbers, nothing asked for. Whatever differs is decoded in full by `decode_request`."""

    inputs: list[_PlainTensor]
    id: str = ""


_decode_plain = msgspec.json.Decoder(_PlainRequest)


def _decode_usual(body: bytes) -> InferRequest | None:
    """One FP32 or FP64 tensor given as flat numbers, in a third of the time; None for everything else."""
    try:
        request = _decode_plain.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(request.inputs) != 1:
        return None
    (tensor,) = request.inputs
    if tensor.datatype == "FP32":
        array = np.array(tensor.data, np.float32)
    elif tensor.datatype == "FP64":
        array = np.array(tensor.data, np.float64)
    else:
        return None
    shape = tensor.shape
    if len(shape) > MAX_DIMENSIONS or not 0 < len(tensor.name) <= MAX_NAME_CHARACTERS:
        return None
    count = 1
    for size in shape:
        if size < 0:
            return None
        count *= size
    if count != array.size:
        return None
    return InferRequest(request.id, {tensor.name: array.reshape(shape)}, None, {}, False, None)


def decode_request(body: bytes, header_length: int | None = None) -> InferRequest:
    """Decode a request body; `header_length` is `Inference-Header-Content-Length` where binary tensors follow.

    Raises `BadInput` REQUEST_JSON, REQUEST_FIELD, TENSOR_DATA, TENSOR_BINARY, BINARY_REQUIRED.
    """
    binary: memoryview | None = None
    if header_length is None:
        usual = _decode_usual(body)
        if usual is not None:
            return usual
        document = loads(body)
    else:
        if not 0 <= header_length <= len(body):
            raise request_field(
                "Inference-Header-Content-Length",
                f"须在 0 至请求体长度 {len(body)} 之间",
                f"must lie between 0 and the body's length, {len(body)}",
            )
        document = loads(body[:header_length])
        binary = memoryview(body)[header_length:]
    if type(document) is not dict:
        raise request_field("body", "须为 JSON 对象", "must be a JSON object")
    inputs = document.get("inputs")
    if type(inputs) is not list or len(inputs) > MAX_TENSORS:  # [] is lawful: a graph may have no inputs
        raise request_field(
            "inputs", f"须为最多 {MAX_TENSORS} 个张量的列表", f"must be a list of at most {MAX_TENSORS} tensors"
        )
    arrays: dict[str, Array] = {}
    at = 0
    name: Any = ""
    for index, tensor in enumerate(inputs):
        if type(tensor) is not dict:
            raise request_field(f"inputs[{index}]", "须为对象", "must be an object")
        name = tensor.get("name")
        if type(name) is not str or not name or len(name) > MAX_NAME_CHARACTERS:
            raise request_field(f"inputs[{index}].name", "须为非空文本", "must be a name")
        if name in arrays:
            raise request_field(f"inputs[{index}].name", f"“{name}”重复", f"repeats {name!r}")
        parameters = tensor.get("parameters")
        size = None if parameters is None else _binary_size(name, parameters)
        if size is None:
            arrays[name] = array_of_json(name, tensor)
        else:
            if binary is None or at + size > len(binary):
                raise tensor_binary(name, "超出请求体", "goes beyond the end of the body")
            arrays[name] = array_of_binary(name, tensor, binary[at : at + size])
            at += size
    if binary is not None and at != len(binary):
        raise tensor_binary(name, f"之后还有 {len(binary) - at} 字节", f"is followed by {len(binary) - at} more bytes")
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise request_field("id", "须为文本", "must be text")
    request = InferRequest(request_id or "", arrays, None, {}, False, None)
    parameters = document.get("parameters")
    if parameters is not None:
        take_parameters(request, parameters)
    outputs = document.get("outputs")
    if outputs is not None:
        take_outputs(request, outputs)
    return request


def loads(content: bytes) -> Any:
    """JSON, with the literals NaN and Infinity. Raises `BadInput` REQUEST_JSON."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        # NaN and Infinity are not JSON, but Python clients send them; a number like 1e999 comes this way too.
        if len(content) <= MAX_LENIENT_BYTES and (b"NaN" in content or b"Infinity" in content):
            try:
                if b"\\ud" in content.lower():  # a lone surrogate would pass here, and could not be answered
                    raise ValueError("surrogates beside NaN")
                return json.loads(content)
            except (ValueError, RecursionError) as second:
                raise request_json(str(second)) from second
        raise request_json(str(error)) from error


def _binary_size(name: str, parameters: object) -> int | None:
    if type(parameters) is not dict:
        raise request_field(f"{name}.parameters", "须为对象", "must be an object")
    if _SHARED_MEMORY in parameters:
        raise shared_memory_not_offered(f"{name}.parameters.{_SHARED_MEMORY}")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise request_field(f"{name}.parameters.binary_data_size", "须为非负整数", "must be a non-negative integer")
    return size


def priority_of(value: object) -> str | None:
    """`X-Priority`, or the parameter `priority`: high, normal or low, or Triton's number (1: high, 2: normal, more:
    low; 0: the default). None where nothing was said. Raises `BadInput` REQUEST_FIELD."""
    if value is None or (type(value) is int and value == 0):
        return None
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip().lower()
    if isinstance(value, str) and value in WEIGHTS:
        return value
    if type(value) is int and value > 0:
        return {1: "high", 2: "normal"}.get(value, "low")
    raise request_field("priority", "须为 high、normal 或 low", "must be high, normal or low")


def take_parameters(request: InferRequest, parameters: object) -> None:
    """The request's own parameters, as JSON has them.

    Raises `BadInput` REQUEST_FIELD, `NotHere` EXTENSION_NOT_OFFERED.
    """
    if type(parameters) is not dict:
        raise request_field("parameters", "须为对象", "must be an object")
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise request_field("parameters.binary_data_output", "须为 true 或 false", "must be true or false")
    request.binary_default = binary
    timeout = parameters.get("timeout")
    if timeout is not None:
        if type(timeout) is not int or timeout < 0:
            raise request_field("parameters.timeout", "须为非负整数 (微秒)", "must be whole microseconds")
        if timeout:
            request.timeout_ms = min(timeout / 1000, 1e9)
    if "priority" in parameters:
        request.priority = priority_of(parameters["priority"])
    for parameter, (zh, en) in _NOT_OFFERED.items():
        if parameters.get(parameter):
            raise extension_not_offered(
                f"parameters.{parameter}", zh, en, "请去掉该参数", "leave this parameter out of the request"
            )


_SEQUENCE = "有状态序列", "stateful sequences of requests"
_NOT_OFFERED = {
    "sequence_id": _SEQUENCE,
    "sequence_start": _SEQUENCE,
    "sequence_end": _SEQUENCE,
}


def take_outputs(request: InferRequest, outputs: object) -> None:
    """The requested outputs, as JSON has them. Raises `BadInput` REQUEST_FIELD, `NotHere` EXTENSION_NOT_OFFERED."""
    if type(outputs) is not list or len(outputs) > MAX_TENSORS:
        raise request_field("outputs", f"须为至多 {MAX_TENSORS} 项的列表", f"must be a list of at most {MAX_TENSORS}")
    names: list[str] = []
    for index, output in enumerate(outputs):
        name = output.get("name") if type(output) is dict else None
        if type(name) is not str or not name or len(name) > MAX_NAME_CHARACTERS:
            raise request_field(f"outputs[{index}].name", "须为非空文本", "must be a name")
        if name in names:
            raise request_field(f"outputs[{index}].name", f"“{name}”重复", f"repeats {name!r}")
        names.append(name)
        parameters = output.get("parameters")
        if parameters is None:
            continue
        if type(parameters) is not dict:
            raise request_field(f"outputs[{index}].parameters", "须为对象", "must be an object")
        if parameters.get(_SHARED_MEMORY):
            raise shared_memory_not_offered(f"outputs[{index}].parameters.{_SHARED_MEMORY}")
        count = parameters.get("classification")
        if count is not None:
            if type(count) is not int or count < 0:
                raise request_field(
                    f"outputs[{index}].parameters.classification", "须为非负整数", "must be a non-negative integer"
                )
            if count:
                request.classes = {**(request.classes or {}), name: count}
        binary = parameters.get("binary_data")
        if binary is not None:
            if type(binary) is not bool:
                raise request_field(
                    f"outputs[{index}].parameters.binary_data", "须为 true 或 false", "must be true or false"
                )
            request.binary[name] = binary
    request.outputs = names or None


# --- tensors in -------------------------------------------------------------------------------------------------------


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
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise request_field(
                f"{name}.shape", f"须为 0 至 {MAX_ELEMENTS} 的整数", f"must hold integers from 0 to {MAX_ELEMENTS}"
            )
        count *= size
    if count > MAX_ELEMENTS:
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
        if array.dtype.kind in "OU" and dtype in _FLOATS:
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
        (length,) = _LENGTH.unpack_from(content, at)
        at += 4
        if length > end - at:
            raise tensor_binary(name, "元素超出数据末尾", "has an element that goes beyond its end")
        items.append(bytes(content[at : at + length]))
        at += length
    if len(items) != count or at != end:
        raise tensor_binary(name, f"元素个数与 shape {shape} 不符", f"does not hold the {count} elements of {shape}")
    return object_array(items, shape)


# --- tensors out ------------------------------------------------------------------------------------------------------


def check_binary_needs(request: InferRequest, outputs: Mapping[str, OipType]) -> None:
    """Refuse before the run what could not be answered after it: BF16 as JSON. `outputs`: the graph's, by name."""
    for name, dtype in outputs.items():
        asked = request.outputs is None or name in request.outputs
        if dtype == "BF16" and asked and not request.binary.get(name, request.binary_default):
            raise binary_required(name, dtype)


def encode_response(
    head: bytes, request: InferRequest, outputs: Mapping[str, Array], literals: bool = False
) -> tuple[bytes, int | None]:
    """The response body and, where binary tensors follow the JSON, the JSON's length.

    `head`: the opening of the JSON object with model name and version (`response_head`). `literals`: NaN and infinities
    as Triton's literals, not as text.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    check_null = False
    for name, array in outputs.items():
        dtype = "BYTES" if array.dtype.kind in "OSU" else OIP_OF[array.dtype]
        tensor: dict[str, Any] = {"name": name, "datatype": dtype, "shape": array.shape}
        if request.binary.get(name, request.binary_default):
            blob = binary_of_array(array, dtype)
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif dtype == "BYTES":
            tensor["data"] = [text_of(item) for item in array.flat]
        elif dtype == "BF16":
            tensor["data"] = array.astype(np.float32).ravel()
        else:
            if dtype in _FLOATS:
                check_null = True
            flat = array.ravel()
            tensor["data"] = flat if flat.flags.c_contiguous else np.ascontiguousarray(flat)
        tensors.append(tensor)
    text = orjson.dumps(tensors, option=orjson.OPT_SERIALIZE_NUMPY)
    if check_null and b"null" in text:
        text = _with_literals(tensors) if literals else _in_words(tensors)
    parts = [head]
    if request.id:
        parts += [b'"id":', orjson.dumps(request.id), b","]
    parts += [b'"outputs":', text, b"}"]
    if not blobs:
        return b"".join(parts), None
    header = b"".join(parts)
    return b"".join([header, *blobs]), len(header)


def response_head(model: str, version: int) -> bytes:
    """`{"model_name":…,"model_version":…,` for `encode_response`."""
    return orjson.dumps({"model_name": model, "model_version": str(version)})[:-1] + b","


def text_of(item: object) -> str:
    """An element of a BYTES tensor as JSON can hold it."""
    return item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else str(item)


def words_of(array: Array) -> list[Any]:
    """The elements of an array of floats in row-major order, `"NaN"`, `"Infinity"` or `"-Infinity"` where JSON has no
    number: the words of ProtoJSON (https://protobuf.dev/programming-guides/json/)."""
    flat = array.ravel()
    return [
        item if finite else "NaN" if item != item else "Infinity" if item > 0 else "-Infinity"
        for item, finite in zip(flat, np.isfinite(flat).tolist(), strict=True)
    ]


def _in_words(tensors: list[dict[str, Any]]) -> bytes:
    """The rare answer with NaN or infinities, as strict JSON."""
    told = [
        {**tensor, "data": words_of(tensor["data"])} if tensor["datatype"] in _FLOATS and "data" in tensor else tensor
        for tensor in tensors
    ]
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def _with_literals(tensors: list[dict[str, Any]]) -> bytes:
    """The same with Triton's literals, which are no JSON."""
    plain = [
        {**tensor, "data": tensor["data"].tolist()} if isinstance(tensor.get("data"), np.ndarray) else tensor
        for tensor in tensors
    ]
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()


def binary_of_array(array: Array, dtype: str) -> bytes | memoryview:
    """Little-endian, row-major; BYTES as 4-byte lengths and content."""
    if dtype == "BYTES":
        parts: list[bytes] = []
        for item in array.flat:
            content = item if isinstance(item, bytes) else str(item).encode()
            parts += [_LENGTH.pack(len(content)), content]
        return b"".join(parts)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()
