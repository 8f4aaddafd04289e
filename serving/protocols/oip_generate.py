"""Triton's generate extension: one JSON object whose members are the inputs by name; another with the outputs by name.

A value may be a scalar, a flat list or a nested one. A flat one is laid out as Triton does: fixed dimensions take what
they need, and of the free ones the last takes all the rest. An output of one element is answered as a scalar, any other
as a flat list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
import orjson

from model_store.errors import BadInput
from model_store.manifest import Manifest, TensorSpec
from model_store.tensors import Array
from serving.errors.requests import binary_required, request_field, tensor_data
from serving.protocols.oip_request import loads
from serving.protocols.oip_response import text_of, words_of
from serving.protocols.oip_tensors import array_of_json

_SCALARS = (str, int, float, bool)


class GenerateRequest(msgspec.Struct, gc=False):
    """A decoded request: tensors by name, and the caller's own id ("" where it gave none)."""

    id: str
    inputs: dict[str, Array]


def decode_generate(body: bytes, manifest: Manifest) -> GenerateRequest:
    """Members that name an input become tensors, beside `parameters` or in it; other parameters change nothing here.

    Raises `BadInput` REQUEST_JSON, REQUEST_FIELD, TENSOR_DATA, BINARY_REQUIRED.
    """
    document = loads(body)
    if type(document) is not dict:
        raise request_field("body", "须为 JSON 对象", "must be a JSON object")
    specs = {spec.name: spec for spec in manifest.inputs}
    for spec in manifest.outputs:
        if spec.dtype == "BF16":
            raise binary_required(spec.name, spec.dtype)
    request = GenerateRequest("", {})
    for name, value in document.items():
        if name in specs:
            request.inputs[name] = _tensor(specs[name], value)
        elif name == "parameters":
            _take_parameters(request, value, specs)
        elif name == "id" and type(value) is str:
            request.id = value
        else:
            known = ", ".join(specs)[:400]
            raise request_field(name, f"不是该模型的输入 ({known})", f"is no input of this model ({known})")
    return request


def encode_generate(
    model: str, version: int, request: GenerateRequest, outputs: Mapping[str, Array], literals: bool = False
) -> bytes:
    """The answer as one JSON object. What is not finite is text, or one of Triton's `literals`, as in `infer`."""
    document: dict[str, Any] = {"model_name": model, "model_version": str(version)}
    if request.id:
        document["id"] = request.id
    document |= {name: _value(array, literals) for name, array in outputs.items()}
    return json.dumps(document, ensure_ascii=False).encode() if literals else orjson.dumps(document)


def _take_parameters(request: GenerateRequest, parameters: object, specs: Mapping[str, TensorSpec]) -> None:
    if type(parameters) is not dict:
        raise request_field("parameters", "须为对象", "must be an object")
    for name, value in parameters.items():
        if name in specs:
            request.inputs[name] = _tensor(specs[name], value)
        elif not isinstance(value, _SCALARS):
            raise request_field(f"parameters.{name}", "须为文本、数字或布尔值", "must be a text, a number or a boolean")


def _tensor(spec: TensorSpec, value: object) -> Array:
    data = value if type(value) is list else [value]
    shape = _nesting(data) if data and type(data[0]) is list else _laid_out(spec, len(data))
    return array_of_json(spec.name, {"datatype": spec.dtype, "shape": shape, "data": data})


def _nesting(data: Sequence[Any]) -> list[int]:
    """By the first element of each level; ragged rows are refused when they are converted."""
    shape: list[int] = []
    level: Any = data
    while type(level) is list and len(shape) <= 16:
        shape.append(len(level))
        level = level[0] if level else None
    return shape


def _laid_out(spec: TensorSpec, count: int) -> list[int]:
    fixed = prod(size for size in spec.shape if size > 0)
    rest, remainder = divmod(count, fixed)
    shape = list(spec.shape)
    for place in reversed(range(len(shape))):
        if shape[place] < 0:
            shape[place], rest = rest, 1
    if remainder or prod(shape) != count:
        raise _misfit(spec, count)
    return shape


def _misfit(spec: TensorSpec, count: int) -> BadInput:
    return tensor_data(
        spec.name, f"{count} 个值不能排成 {spec.shape}", f"has {count} values, which do not fill {spec.shape}"
    )


def _value(array: Array, literals: bool) -> Any:
    flat: list[Any]
    if array.dtype.kind in "OSU":
        flat = [text_of(item) for item in array.flat]
    elif array.dtype.kind == "f" and not literals and not np.isfinite(array).all():
        flat = [item if isinstance(item, str) else float(item) for item in words_of(array)]
    else:
        flat = array.ravel().tolist()
    return flat[0] if len(flat) == 1 else flat
