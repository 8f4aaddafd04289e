"""Open Inference Protocol V2 over gRPC: messages → numpy, numpy → messages. Every failure is a `BadInput`, or a
`NotHere` for an extension that is not offered.

Tensors come raw (`raw_input_contents`, read as views of the message's own bytes) or as typed `contents`; answers are
always raw, as Triton's are. The rules of types, shapes, parameters and outputs are those of REST
(`oip_request`, `oip_tensors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from model_store.errors import Refusal
from model_store.tensors import NUMPY_OF, OIP_OF, Array, object_array
from serving.calls import Inference
from serving.errors.requests import (
    binary_required,
    request_field,
    request_message,
    shared_memory_not_offered,
    tensor_binary,
    tensor_data,
)
from serving.protocols.grpc_messages import ModelInferRequest, ModelInferResponse
from serving.protocols.oip_request import MAX_NAME_CHARACTERS, MAX_TENSORS, InferRequest, take_outputs, take_parameters
from serving.protocols.oip_response import binary_of_array
from serving.protocols.oip_tensors import array_of_binary, converted, dtype_and_shape

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_NUMPY_OF_CONTENTS = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
    "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}
SHARED_MEMORY = "shared_memory_region"


def parse(message: Any, content: bytes) -> Any:
    """The message of a class. Raises `BadInput` REQUEST_MESSAGE."""
    try:
        return message.FromString(content)
    except DecodeError as error:
        raise request_message(str(error)) from error


def decode_infer(content: bytes) -> tuple[Any, InferRequest]:
    """A ModelInferRequest, as the message and decoded.

    Raises `BadInput` REQUEST_MESSAGE, REQUEST_FIELD, TENSOR_DATA, TENSOR_BINARY, BINARY_REQUIRED.
    """
    message = parse(ModelInferRequest, content)
    request = InferRequest(message.id, _arrays(message), None, {}, True, None)
    if message.parameters:
        take_parameters(request, _plain(message.parameters))
        request.binary_default = True  # all answers are raw here
    if message.outputs:
        outputs = [{"name": each.name, "parameters": _plain(each.parameters)} for each in message.outputs]
        take_outputs(request, outputs)
    return message, request


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON would have them."""
    plain = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        plain[name] = None if kind is None else getattr(value, kind)
    return plain


def _arrays(message: Any) -> dict[str, Array]:
    inputs, raw = message.inputs, message.raw_input_contents
    if len(inputs) > MAX_TENSORS:
        raise request_field("inputs", f"最多 {MAX_TENSORS} 个张量", f"must hold at most {MAX_TENSORS} tensors")
    if raw and (doubled := next((tensor.name for tensor in inputs if tensor.HasField("contents")), None)) is not None:
        raise _beside_contents(doubled, message.model_name)
    if raw and len(raw) != len(inputs):
        raise request_field(
            "raw_input_contents",
            f"有 {len(raw)} 项, inputs 有 {len(inputs)} 项",
            f"has {len(raw)} items for {len(inputs)} inputs",
        )
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(inputs):
        name = tensor.name
        if not name or len(name) > MAX_NAME_CHARACTERS:
            raise request_field(f"inputs[{index}].name", "须为非空文本", "must be a name")
        if name in arrays:
            raise request_field(f"inputs[{index}].name", f"“{name}”重复", f"repeats {name!r}")
        if SHARED_MEMORY in tensor.parameters:
            raise shared_memory_not_offered(f"{name}.parameters.{SHARED_MEMORY}")
        declared = {"datatype": tensor.datatype, "shape": list(tensor.shape)}
        if not raw:
            arrays[name] = _array_of_contents(name, declared, tensor.contents)
        else:
            arrays[name] = array_of_binary(name, declared, memoryview(raw[index]))
    return arrays


def _beside_contents(name: str, model: str) -> Refusal:
    refusal = tensor_binary(name, "不可同时有 contents", "stands beside `contents`; send one of them")
    refusal.details |= {"beside": "contents", "model": model[:MAX_NAME_CHARACTERS]}
    return refusal


def _array_of_contents(name: str, declared: Mapping[str, Any], contents: Any) -> Array:
    """The typed form: values in the one field that belongs to the type."""
    dtype, shape, count = dtype_and_shape(name, declared)
    field = _CONTENTS.get(dtype)
    if field is None:
        raise binary_required(name, dtype)
    for given, _ in contents.ListFields():
        if given.name != field:
            raise tensor_data(name, f"在 {given.name} 中, {dtype} 应在 {field}", f"lies in {given.name}, not {field}")
    values = getattr(contents, field)
    if len(values) != count:
        raise tensor_data(
            name,
            f"共 {len(values)} 个值, shape {shape} 需要 {count} 个",
            f"has {len(values)} values, {shape} needs {count}",
        )
    if dtype == "BYTES":
        return object_array(list(values), shape)
    array: Array = np.fromiter(values, _NUMPY_OF_CONTENTS[field], count)
    return array.reshape(shape) if array.dtype == NUMPY_OF[dtype] else converted(name, array, dtype).reshape(shape)


def encode_inference(model: str, version: int, request: InferRequest, inference: Inference) -> Any:
    """The ModelInferResponse: tensors raw, usage id and amount (micro-fen) among its parameters."""
    response = ModelInferResponse(model_name=model, model_version=str(version), id=request.id)
    response.parameters["usage_id"].string_param = inference.usage_id
    response.parameters["amount_micro"].int64_param = inference.amount_micro
    for name, array in inference.outputs.items():
        dtype = "BYTES" if array.dtype.kind in "OSU" else OIP_OF[array.dtype]
        response.outputs.add(name=name, datatype=dtype, shape=array.shape)
        response.raw_output_contents.append(bytes(binary_of_array(array, dtype)))
    return response
