"""The Open Inference Protocol as its specification has it, written apart from the server: JSON and binary tensors."""

from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.cases import Arrays

HEADER = "Inference-Header-Content-Length"
_TYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}


def datatype_of(array: NDArray[Any]) -> str:
    return "BYTES" if array.dtype.kind in "OSU" else _NAMES[array.dtype]


def json_request(inputs: Arrays, outputs: tuple[str, ...]) -> bytes:
    """A request with every tensor in the JSON; text as JSON strings."""
    tensors = [_described(name, array) | {"data": _plain(array)} for name, array in inputs.items()]
    return json.dumps({"inputs": tensors, "outputs": [{"name": name} for name in outputs]}).encode()


def binary_request(inputs: Arrays, outputs: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    """A request with every tensor behind the JSON, and its headers; all outputs asked for as binary."""
    blobs = [_encode(array) for array in inputs.values()]
    tensors = [
        _described(name, array) | {"parameters": {"binary_data_size": len(blob)}}
        for (name, array), blob in zip(inputs.items(), blobs, strict=True)
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = json.dumps({"inputs": tensors, "outputs": wanted}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
    return head + b"".join(blobs), headers


def read_response(body: bytes, header_length: str | None) -> Arrays:
    """Outputs by name, from a JSON answer or from one with binary tensors behind it."""
    size = int(header_length) if header_length else len(body)
    answer = json.loads(body[:size])
    rest = memoryview(body)[size:]
    arrays: Arrays = {}
    for output in answer["outputs"]:
        length = output.get("parameters", {}).get("binary_data_size")
        if length is None:
            arrays[output["name"]] = _from_plain(output["data"], output["datatype"], output["shape"])
        else:
            arrays[output["name"]] = _decode(bytes(rest[:length]), output["datatype"], output["shape"])
            rest = rest[length:]
    if len(rest):
        raise ValueError(f"{len(rest)} bytes follow the last tensor")
    return arrays


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}


def _plain(array: NDArray[Any]) -> list[Any]:
    flat = array.reshape(-1).tolist()
    return [item.decode() if isinstance(item, bytes) else item for item in flat]


def _from_plain(data: list[Any], datatype: str, shape: list[int]) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.array(_flatten(data), dtype=_TYPES[datatype]).reshape(shape)
    return _objects([item.encode() if isinstance(item, str) else item for item in _flatten(data)], shape)


def _flatten(data: list[Any]) -> list[Any]:
    """Outputs may be nested or flat; both are lawful."""
    while data and isinstance(data[0], list):
        data = [item for row in data for item in row]
    return data


def _encode(array: NDArray[Any]) -> bytes:
    if datatype_of(array) != "BYTES":
        return np.ascontiguousarray(array).tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in array.reshape(-1).tolist())


def _decode(blob: bytes, datatype: str, shape: list[int]) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(blob, dtype=_TYPES[datatype]).reshape(shape)
    items, at = [], 0
    while at < len(blob):
        (length,) = struct.unpack_from("<I", blob, at)
        items.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return _objects(items, shape)


def _objects(items: list[bytes], shape: list[int]) -> NDArray[Any]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(tuple(shape))
