"""Tensors on the wire, by the specification's text alone: the kit shares no codec with the server that it examines."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.conformance.checks import expect
from serving.conformance.wire import Exchange, strict_json

Array = NDArray[Any]
BINARY_LENGTH = "inference-header-content-length"
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_,
}  # fmt: skip
# In the text of "Tensor Data", though not in the table of "Tensor Data Types".
KNOWN_DATATYPES = frozenset(DTYPES) | {"BF16"}


@dataclass(frozen=True)
class Output:
    """One decoded output. `array` has `shape`; BYTES are objects: `str` from JSON, `bytes` from binary."""

    datatype: str
    shape: tuple[int, ...]
    array: Array
    binary: bool


def array_of(datatype: str, shape: Sequence[int], items: Sequence[Any]) -> Array:
    """Items in row-major order as an array of that type; never through floats."""
    array = np.empty(len(items), DTYPES[datatype])
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def json_tensor(name: str, datatype: str, array: Array, *, nested: bool = False) -> dict[str, Any]:
    """`$request_input` with explicit data, flat or in its natural representation."""
    data = (array if nested else array.reshape(-1)).tolist()
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def binary_tensor(name: str, datatype: str, array: Array) -> tuple[dict[str, Any], bytes]:
    """`$request_input` without data, and its binary data."""
    content = binary_of(datatype, array)
    parameters = {"binary_data_size": len(content)}
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": parameters}, content


def binary_of(datatype: str, array: Array) -> bytes:
    """Little-endian, row-major, without padding; BYTES as a 4-byte unsigned length and the bytes, each."""
    if datatype == "BYTES":
        items = (item if isinstance(item, bytes) else str(item).encode() for item in array.flat)
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    return array.astype(np.dtype(DTYPES[datatype]).newbyteorder("<")).tobytes()


def outputs_of(exchange: Exchange) -> dict[str, Output]:
    """The outputs of a successful inference response, JSON or binary, checked against its schema. Raises `Unmet`."""
    expect(
        exchange.status == 200, f"a successful inference is 200, not {exchange.failure or exchange.status}", exchange
    )
    document, tail = split_body(exchange)
    outputs = document.get("outputs")
    expect(isinstance(outputs, list), '"outputs" is not an array', exchange)
    assert isinstance(outputs, list)
    found: dict[str, Output] = {}
    for tensor in outputs:
        expect(isinstance(tensor, dict) and isinstance(tensor.get("name"), str), "an output has no name", exchange)
        expect(tensor["name"] not in found, f"output {tensor['name']!r} comes twice", exchange)
        found[tensor["name"]], tail = _output_of(tensor, tail, exchange)
    expect(not tail, f"{len(tail)} bytes follow the last binary tensor", exchange)
    return found


def split_body(exchange: Exchange) -> tuple[dict[str, Any], bytes]:
    """The JSON object of a response, and the binary data after it. Raises `Unmet`."""
    body, length = exchange.body, exchange.headers.get(BINARY_LENGTH)
    if length is not None:
        expect(length.isdigit() and int(length) <= len(body), f"{BINARY_LENGTH} is {length!r}", exchange)
        body = body[: int(length)]
    document = strict_json(body, exchange)
    expect(isinstance(document, dict), "the response is not a JSON object", exchange)
    return document, exchange.body[len(body) :]


def _output_of(tensor: Mapping[str, Any], tail: bytes, exchange: Exchange) -> tuple[Output, bytes]:
    name, datatype, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    expect(datatype in KNOWN_DATATYPES, f"output {name!r} has datatype {datatype!r}", exchange)
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    expect(whole, f"output {name!r} has shape {shape!r}, not an array of unsigned integers", exchange)
    assert isinstance(datatype, str)
    assert isinstance(shape, list)
    count = math.prod(shape)
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    if size is not None:
        expect(type(size) is int and 0 <= size <= len(tail), f"output {name!r}: binary_data_size {size!r}", exchange)
        array = _array_of_binary(name, datatype, tail[:size], count, exchange)
        return Output(datatype, tuple(shape), array.reshape(shape), True), tail[size:]
    data = tensor.get("data")
    expect(isinstance(data, list), f"output {name!r} has no data array", exchange)
    items = flat(data)
    expect(len(items) == count, f"output {name!r} has {len(items)} elements, its shape {shape} needs {count}", exchange)
    _check_kinds(name, datatype, items, exchange)
    if datatype == "BF16":
        return Output(datatype, tuple(shape), np.array(items, np.float32).reshape(shape), False), tail
    return Output(datatype, tuple(shape), array_of(datatype, shape, items), False), tail


def _check_kinds(name: str, datatype: str, items: list[Any], exchange: Exchange) -> None:
    """JSON's kind of value, and its range, must be the datatype's."""
    if datatype == "BYTES":
        expect(all(isinstance(item, str) for item in items), f"output {name!r}: BYTES that are no strings", exchange)
    elif datatype == "BOOL":
        right = all(item in (True, False) and isinstance(item, (bool, int)) for item in items)
        expect(right, f"output {name!r}: BOOL that are no booleans", exchange)
    elif datatype.startswith(("INT", "UINT")):
        bounds = np.iinfo(DTYPES[datatype])
        right = all(type(item) is int and bounds.min <= item <= bounds.max for item in items)
        expect(right, f"output {name!r} holds what is no {datatype}", exchange)
    else:
        right = all(type(item) in (int, float) for item in items)
        expect(right, f"output {name!r} holds what is no number", exchange)


def _array_of_binary(name: str, datatype: str, content: bytes, count: int, exchange: Exchange) -> Array:
    if datatype != "BYTES":
        width = 2 if datatype == "BF16" else np.dtype(DTYPES[datatype]).itemsize
        expect(len(content) == count * width, f"output {name!r}: {len(content)} bytes of {datatype}", exchange)
        dtype = np.dtype(np.uint16 if datatype == "BF16" else DTYPES[datatype]).newbyteorder("<")
        return np.frombuffer(content, dtype)
    items: list[bytes] = []
    at = 0
    while at + 4 <= len(content) and len(items) < count:
        (length,) = struct.unpack_from("<I", content, at)
        items.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    expect(at == len(content) and len(items) == count, f"output {name!r}: BYTES that do not fit its shape", exchange)
    return array_of("BYTES", [count], items)


def flat(data: Any) -> list[Any]:
    """The elements of tensor data in row-major order."""
    if not isinstance(data, list):
        return [data]
    return [item for part in data for item in flat(part)]
