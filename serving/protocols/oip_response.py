"""Open Inference Protocol V2: numpy → response bytes, JSON and the binary tensor extension.

What is not finite is written as the text `NaN`, `Infinity` or `-Infinity`, so that every answer is JSON; in Triton's
words as the literal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from model_store.schema import OipType
from model_store.tensors import OIP_OF, Array
from serving.errors.requests import binary_required
from serving.protocols.oip_request import InferRequest
from serving.protocols.oip_tensors import FLOATS, LENGTH


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
            if dtype in FLOATS:
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
        {**tensor, "data": words_of(tensor["data"])} if tensor["datatype"] in FLOATS and "data" in tensor else tensor
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
            parts += [LENGTH.pack(len(content)), content]
        return b"".join(parts)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()
