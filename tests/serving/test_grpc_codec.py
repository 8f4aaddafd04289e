"""Stubs and codec of the gRPC surface: held against the real client's own messages, and fed with nonsense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from model_store.errors import BadInput, NotHere, Refusal
from model_store.schema import OipType
from model_store.tensors import NUMPY_OF
from serving.calls import Inference
from serving.protocols.grpc_codec import decode_infer, encode_inference
from serving.protocols.grpc_messages import STUBS, message_class

PROTO = STUBS.parent
TYPES = list(get_args(OipType))
SHARED = {"shared_memory_region": {"string_param": "a"}}


def stubs() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(STUBS.read_bytes()).file}


def test_the_stubs_are_of_the_protos(tmp_path: Path) -> None:
    """`make protos` was run after the last change of a .proto file."""
    made = tmp_path / "stubs.binpb"
    names = ["inference.proto", "health.proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={made}", *names]
    subprocess.run(command, cwd=PROTO, check=True)
    assert descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file[:] == list(stubs().values())


def parts(message: Any, prefix: str) -> dict[str, tuple[Any, ...]]:
    """Every field of a message and of those inside it, by path: number, type and label."""
    found = {
        f"{prefix}.{field.name}": (field.number, field.type, field.label, field.type_name) for field in message.field
    }
    for inner in message.nested_type:
        found |= parts(inner, f"{prefix}.{inner.name}")
    return found


def test_every_message_and_method_is_one_of_triton_s_own() -> None:
    ours = stubs()["inference.proto"]
    theirs: dict[str, tuple[Any, ...]] = {}
    values: dict[str, int] = {}
    methods = {}
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            theirs |= parts(message, message.name)
        for enum in file.enum_type:
            values |= {f"{enum.name}.{value.name}": value.number for value in enum.value}
        for service in file.service:
            methods |= {each.name: each for each in service.method}
    for message in ours.message_type:
        for path, kind in parts(message, message.name).items():
            assert theirs[path] == kind, path
    for enum in ours.enum_type:
        for value in enum.value:
            assert values[f"{enum.name}.{value.name}"] == value.number
    for method in ours.service[0].method:
        known = methods[method.name]
        assert (method.input_type, method.output_type) == (known.input_type, known.output_type)
        assert (method.client_streaming, method.server_streaming) == (known.client_streaming, known.server_streaming)


# --- decoding ---------------------------------------------------------------------------------------------------------


def sent(document: dict[str, Any], raw: list[bytes] | None = None) -> bytes:
    """A request as the real client's messages write it."""
    message = json_format.ParseDict(document, service_pb2.ModelInferRequest())
    message.raw_input_contents.extend(raw or [])
    content: bytes = message.SerializeToString()
    return content


def tensor(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    return made | ({"contents": contents} if contents else {})


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.25]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
    ],
)
def test_typed_contents_are_read_at_both_ends_of_their_range(datatype: str, field: str, values: list[Any]) -> None:
    _, request = decode_infer(sent({"inputs": [tensor(datatype, [2, 1], **{field: values})]}))
    assert request.inputs["x"].dtype == NUMPY_OF[datatype]  # type: ignore[index]
    assert request.inputs["x"].tolist() == [[values[0]], [values[1]]]


def test_bytes_are_read_as_they_are() -> None:
    message = service_pb2.ModelInferRequest()
    given_ = message.inputs.add(name="x", datatype="BYTES", shape=[2])
    given_.contents.bytes_contents.extend([b"\xff\x00", "轴承".encode()])
    _, request = decode_infer(message.SerializeToString())
    assert request.inputs["x"].tolist() == [b"\xff\x00", "轴承".encode()]


@pytest.mark.parametrize(
    ("document", "raw", "code"),
    [
        ({"inputs": [tensor("INT8", [1], int_contents=[128])]}, [], "TENSOR_DATA"),
        ({"inputs": [tensor("UINT16", [1], uint_contents=[65536])]}, [], "TENSOR_DATA"),
        ({"inputs": [tensor("FP32", [2], fp32_contents=[1])]}, [], "TENSOR_DATA"),
        ({"inputs": [tensor("FP32", [1], fp64_contents=[1])]}, [], "TENSOR_DATA"),
        ({"inputs": [tensor("FP32", [1])]}, [], "TENSOR_DATA"),
        ({"inputs": [tensor("FP16", [1], fp32_contents=[1])]}, [], "BINARY_REQUIRED"),
        ({"inputs": [tensor("BF16", [1])]}, [], "BINARY_REQUIRED"),
        ({"inputs": [tensor("FP31", [1], fp32_contents=[1])]}, [], "REQUEST_FIELD"),
        ({"inputs": [tensor("FP32", [-1], fp32_contents=[1])]}, [], "REQUEST_FIELD"),
        ({"inputs": [tensor("FP32", [2**40, 2**40], fp32_contents=[1])]}, [], "REQUEST_FIELD"),
        ({"inputs": [tensor("FP32", [0, 2**31, 2**31, 2**31])]}, [b""], "REQUEST_FIELD"),
        ({"inputs": [tensor("INT64", [2**62, 0, 2**62])]}, [], "REQUEST_FIELD"),
        ({"inputs": [tensor("FP32", [1])]}, [b"abc"], "TENSOR_BINARY"),
        ({"inputs": [tensor("BYTES", [1])]}, [b"\xff\xff\xff\xffa"], "TENSOR_BINARY"),
        ({"inputs": [tensor("FP32", [1], fp32_contents=[1])]}, [b"abcd"], "TENSOR_BINARY"),
        ({"inputs": [tensor("FP32", [1])]}, [b"abcd", b"abcd"], "REQUEST_FIELD"),
        ({"inputs": [tensor("FP32", [1], fp32_contents=[1])] * 2}, [], "REQUEST_FIELD"),
        ({"inputs": [{"datatype": "FP32", "shape": [1]}]}, [b"abcd"], "REQUEST_FIELD"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, [], "REQUEST_FIELD"),
        ({"parameters": {"timeout": {"string_param": "soon"}}}, [], "REQUEST_FIELD"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_refused_by_name(document: dict[str, Any], raw: list[bytes], code: str) -> None:
    with pytest.raises(BadInput) as refused:
        decode_infer(sent(document, raw))
    assert refused.value.code == code
    assert refused.value.field


@pytest.mark.parametrize(
    "document",
    [{"inputs": [tensor("FP32", [1]) | {"parameters": SHARED}]}, {"outputs": [{"name": "y", "parameters": SHARED}]}],
)
def test_a_tensor_in_shared_memory_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refused:
        decode_infer(sent(document))
    assert "shared_memory_region" in str(refused.value.field)


# --- nonsense ---------------------------------------------------------------------------------------------------------


def decoded_or_refused(content: bytes) -> None:
    try:
        message, request = decode_infer(content)
    except (BadInput, NotHere):
        return
    for given_, array in zip(message.inputs, request.inputs.values(), strict=True):
        assert list(array.shape) == list(given_.shape)
        assert array.dtype == NUMPY_OF[given_.datatype]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(content: bytes) -> None:
    decoded_or_refused(content)


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=4),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=4),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=4),
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "fp64_contents": st.lists(st.floats(), max_size=4),
        "bytes_contents": st.lists(st.binary(max_size=6), max_size=4),
    },
)
PARAMETER = st.one_of(
    st.fixed_dictionaries({"bool_param": st.booleans()}),
    st.fixed_dictionaries({"int64_param": st.integers(-(2**63), 2**63 - 1)}),
    st.fixed_dictionaries({"string_param": st.text(max_size=5)}),
    st.fixed_dictionaries({"double_param": st.floats()}),
    st.just({}),
)
NAMED = st.sampled_from(["timeout", "priority", "binary_data_output", "classification", "shared_memory_region", "x"])
PARAMETERS = st.dictionaries(NAMED, PARAMETER, max_size=3)
TENSOR = st.tuples(
    st.text(max_size=3),
    st.sampled_from([*TYPES, "", "FP31"]),
    st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=4),
    CONTENTS,
    PARAMETERS,
)


def _put(target: Any, parameters: dict[str, dict[str, Any]]) -> None:
    for name, value in parameters.items():
        target.parameters[name].SetInParent()
        for kind, content in value.items():
            setattr(target.parameters[name], kind, content)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(TENSOR, max_size=3),
    st.lists(st.binary(max_size=24), max_size=3),
    st.lists(st.tuples(st.text(max_size=3), PARAMETERS), max_size=3),
    PARAMETERS,
)
def test_any_message_is_decoded_or_refused(
    tensors: list[tuple[str, str, list[int], dict[str, Any], dict[str, Any]]],
    raw: list[bytes],
    outputs: list[tuple[str, dict[str, Any]]],
    parameters: dict[str, Any],
) -> None:
    message = message_class("inference.ModelInferRequest")(raw_input_contents=raw)
    for name, datatype, shape, contents, own in tensors:
        made = message.inputs.add(name=name, datatype=datatype, shape=shape)
        for field, values in contents.items():
            getattr(made.contents, field).extend(values)
        _put(made, own)
    for name, own in outputs:
        _put(message.outputs.add(name=name), own)
    _put(message, parameters)
    decoded_or_refused(message.SerializeToString())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(TYPES), st.binary(max_size=64))
def test_what_is_encoded_is_read_back_by_the_real_client_s_messages(datatype: str, noise: bytes) -> None:
    if datatype == "BYTES":
        array = np.array([noise, b"", noise[:3]], dtype=object)
    elif datatype == "BOOL":
        array = np.frombuffer(noise, np.uint8) % 2 == 1
    else:
        kind = NUMPY_OF[datatype]  # type: ignore[index]
        array = np.frombuffer(noise[: len(noise) // kind.itemsize * kind.itemsize], kind)
    _, request = decode_infer(b"")
    answer = encode_inference("a--b", 3, request, Inference({"y": array}, "01X", 7, "free", 0.0, 0.0, 1))
    read = service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    assert (read.model_name, read.model_version) == ("a--b", "3")
    (described,) = read.outputs
    assert (described.name, described.datatype, list(described.shape)) == ("y", datatype, list(array.shape))
    back = {"inputs": [{"name": "y", "datatype": datatype, "shape": list(array.shape)}]}
    _, again = decode_infer(sent(back, list(read.raw_output_contents)))
    np.testing.assert_array_equal(again.inputs["y"], array)
