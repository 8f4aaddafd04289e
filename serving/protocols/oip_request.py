"""Open Inference Protocol V2: request bytes → tensors and what is asked for, JSON and the binary tensor extension.

How a tensor is read stands in `oip_tensors`. Every failure is a `BadInput`, but what is asked of an extension that is
not offered: that is a `NotHere`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import orjson

from model_store.tensors import Array
from serving.errors.requests import (
    extension_not_offered,
    request_field,
    request_json,
    shared_memory_not_offered,
    tensor_binary,
)
from serving.fairness import WEIGHTS
from serving.protocols.oip_tensors import MAX_DIMENSIONS, array_of_binary, array_of_json

MAX_TENSORS = 256
MAX_NAME_CHARACTERS = 512
MAX_LENIENT_BYTES = 4 << 20
_SHARED_MEMORY = "shared_memory_region"


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
    if count != array.size or not count:  # where one size is 0 the others may be anything
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
