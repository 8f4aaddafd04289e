"""Open Inference on the wire: what is well-formed arrives exactly, everything else is a clear 400 and nothing worse."""

from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_store.errors import BadInput
from model_store.tensors import NUMPY_OF, OIP_OF, object_array
from serving.protocols.oip_request import InferRequest, decode_request
from serving.protocols.oip_response import check_binary_needs, encode_response, response_head

PLAIN = InferRequest("", {}, None, {}, False, None)
BINARY = InferRequest("", {}, None, {}, True, None)
NUMERIC = [dtype for oip, dtype in NUMPY_OF.items() if oip not in ("BYTES", "BF16")]


def body(data: Any, datatype: str = "FP32", shape: list[Any] | None = None, **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": [2] if shape is None else shape, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def refused(content: bytes, header_length: int | None = None) -> BadInput:
    with pytest.raises(BadInput) as refusal:
        decode_request(content, header_length)
    assert refusal.value.zh
    assert refusal.value.en
    assert refusal.value.remedy_en
    return refusal.value


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]), ("UINT8", [0, 255]), ("INT8", [-128, 127]), ("UINT16", [0, 65535]),
        ("INT16", [-32768, 32767]), ("UINT32", [0, 2**32 - 1]), ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]), ("INT64", [-(2**63), 2**63 - 1]), ("FP16", [0.5, -2]), ("FP32", [1, 2.5]),
        ("FP64", [1e-300, 1e300]), ("BYTES", ["钢", ""]),
    ],
)  # fmt: skip
def test_every_type_arrives_from_json(datatype: str, data: list[Any]) -> None:
    array = decode_request(body(data, datatype)).inputs["x"]
    assert array.dtype == NUMPY_OF[datatype]  # type: ignore[index]
    expected = [item.encode() for item in data] if datatype == "BYTES" else data
    assert array.tolist() == expected


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_data_may_be_flat_or_nested(data: list[Any]) -> None:
    array = decode_request(body(data, shape=[2, 2])).inputs["x"]
    assert array.tolist() == [[1, 2], [3, 4]]


def test_nan_and_infinity_are_read_from_literals_words_and_null() -> None:
    content = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[4],"data":[NaN,Infinity,-Infinity,1]}]}'
    np.testing.assert_array_equal(decode_request(content).inputs["x"], np.float32([np.nan, np.inf, -np.inf, 1]))
    np.testing.assert_array_equal(decode_request(body([None, 1])).inputs["x"], np.float32([np.nan, 1]))
    words = decode_request(body(["NaN", 1, "-Infinity", None], shape=[2, 2])).inputs["x"]
    np.testing.assert_array_equal(words, np.float32([[np.nan, 1], [-np.inf, np.nan]]))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "REQUEST_JSON"),
        (b"{", "REQUEST_JSON"),
        (b'{"inputs": NaN, "x": }', "REQUEST_JSON"),
        (b"\xff\xfe", "REQUEST_JSON"),
        (b"[]", "REQUEST_FIELD"),
        (b"{}", "REQUEST_FIELD"),
        (b'{"inputs": null}', "REQUEST_FIELD"),
        (b'{"inputs": [1]}', "REQUEST_FIELD"),
        (b'{"inputs": [{"name": ""}]}', "REQUEST_FIELD"),
        (body([1, 2], "FP31"), "REQUEST_FIELD"),
        (body([1, 2], shape=[-1]), "REQUEST_FIELD"),
        (body([1, 2], shape=[True, 2]), "REQUEST_FIELD"),
        (body([1, 2], shape=[2.0]), "REQUEST_FIELD"),
        (body([1, 2], shape=[2**40]), "REQUEST_FIELD"),
        (body([1, 2], shape=[2**20, 2**20, 2**20]), "REQUEST_FIELD"),
        (body([1, 2], shape=[1] * 17), "REQUEST_FIELD"),
        *((body([], kind, shape=[0, 2**31, 2**31, 2**31]), "REQUEST_FIELD") for kind in ("FP32", "UINT64", "BYTES")),
        (body([], shape=[0, 2**62, 2**62]), "REQUEST_FIELD"),
        (body([], shape=[10**30, 0]), "REQUEST_FIELD"),
        (body([1, 2], shape=[2**30]), "TENSOR_DATA"),
        (body([1, 2, 3]), "TENSOR_DATA"),
        (body([[1, 2], [3]], shape=[3]), "TENSOR_DATA"),
        (body([[1, 2], [3, 4], [5, 6]], shape=[2, 3]), "TENSOR_DATA"),
        (body(["1", "2"]), "TENSOR_DATA"),
        (body([True, False]), "TENSOR_DATA"),
        (body([1.5, 2], "INT32"), "TENSOR_DATA"),
        (body([300, 2], "UINT8"), "TENSOR_DATA"),
        (body([-1, 2], "UINT64"), "TENSOR_DATA"),
        (body([2**70, 2], "INT64"), "TENSOR_DATA"),
        (body([None, 2], "INT64"), "TENSOR_DATA"),
        (body([0, 1], "BOOL"), "TENSOR_DATA"),
        (body([1, 2], "BYTES"), "TENSOR_DATA"),
        (body({"a": 1}), "TENSOR_DATA"),
        (body(None), "TENSOR_DATA"),
        (body([{}, {}]), "TENSOR_DATA"),
        (body([1, 2], "BF16"), "BINARY_REQUIRED"),
        (body([1, 2], id=7), "REQUEST_FIELD"),
        (body([1, 2], parameters=[]), "REQUEST_FIELD"),
        (body([1, 2], parameters={"binary_data_output": 1}), "REQUEST_FIELD"),
        (body([1, 2], parameters={"timeout": "soon"}), "REQUEST_FIELD"),
        (body([1, 2], outputs={}), "REQUEST_FIELD"),
        (body([1, 2], outputs=[{"name": "y"}, {"name": "y"}]), "REQUEST_FIELD"),
        (body([1, 2], outputs=[{"name": "y", "parameters": {"classification": -3}}]), "REQUEST_FIELD"),
        (body([1, 2], outputs=[{"name": "y", "parameters": {"classification": True}}]), "REQUEST_FIELD"),
    ],
)
def test_what_is_not_well_formed_is_a_clear_400(content: bytes, code: str) -> None:
    assert refused(content).code == code


def test_a_name_given_twice_is_refused() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    assert "repeats" in refused(orjson.dumps({"inputs": [tensor, tensor]})).en


def binary(arrays: dict[str, Any], **more: Any) -> tuple[bytes, int]:
    tensors, blobs = [], []
    for name, (datatype, shape, blob) in arrays.items():
        tensors.append(
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
        )
        blobs.append(blob)
    header = orjson.dumps({"inputs": tensors, **more})
    return header + b"".join(blobs), len(header)


@settings(deadline=None)
@given(st.data())
def test_binary_tensors_arrive_bit_for_bit(data: st.DataObject) -> None:
    arrays: dict[str, Any] = {}
    sent: dict[str, Any] = {}
    for index in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from(NUMERIC))
        array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
        arrays[f"t{index}"] = (OIP_OF[array.dtype], list(array.shape), array.tobytes())
        sent[f"t{index}"] = array
    request = decode_request(*binary(arrays))
    for name, array in sent.items():
        assert request.inputs[name].dtype == array.dtype
        assert request.inputs[name].tobytes() == array.tobytes()
        assert request.inputs[name].shape == array.shape


def test_bf16_and_bytes_arrive_as_binary() -> None:
    values = np.array([1.5, -3], ml_dtypes.bfloat16)
    text = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    request = decode_request(*binary({"b": ("BF16", [2], values.tobytes()), "t": ("BYTES", [2, 1], text)}))
    assert request.inputs["b"].tolist() == [1.5, -3]
    assert request.inputs["t"].tolist() == [[b"abc"], [b""]]


@pytest.mark.parametrize(
    ("arrays", "cut"),
    [
        ({"x": ("FP32", [2], bytes(7))}, 0),
        ({"x": ("FP32", [3], bytes(8))}, 0),
        ({"x": ("FP32", [2], bytes(8))}, 1),
        ({"x": ("FP32", [2], bytes(8))}, -1),
        ({"x": ("BYTES", [1], b"\x05\x00\x00\x00ab")}, 0),
        ({"x": ("BYTES", [1], b"\x05\x00")}, 0),
        ({"x": ("BYTES", [2], b"\x01\x00\x00\x00a")}, 0),
        ({"x": ("BYTES", [1], b"\x01\x00\x00\x00a\x00\x00\x00\x00")}, 0),
        ({"x": ("BYTES", [1], b"\xff\xff\xff\xff")}, 0),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(arrays: dict[str, Any], cut: int) -> None:
    content, length = binary(arrays)
    content = content[:-cut] if cut > 0 else content + bytes(-cut)
    assert refused(content, length).code == "TENSOR_BINARY"


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BF16", "BYTES"])
def test_a_tensor_of_nothing_may_not_be_of_any_size_beside(datatype: str) -> None:
    """A product that is 0 says nothing of its factors, and numpy does not take all of them."""

    def asked(shape: list[int]) -> bytes:
        tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": 0}}
        return json.dumps({"inputs": [tensor]}).encode()

    empty = asked([0, 2**31])
    assert decode_request(empty, len(empty)).inputs["x"].shape == (0, 2**31)
    with pytest.raises(BadInput, match="REQUEST_FIELD"):
        decode_request(asked([0, 2**31, 2**31]), len(asked([0, 2**31, 2**31])))


def test_a_header_length_beyond_the_body_is_refused() -> None:
    assert refused(b"{}", 3).code == "REQUEST_FIELD"


def test_parameters_say_how_to_answer_and_how_long_to_wait() -> None:
    request = decode_request(
        body(
            [1, 2],
            id="a7",
            parameters={"binary_data_output": True, "timeout": 2500},
            outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}],
        )
    )
    assert (request.id, request.outputs, request.timeout_ms) == ("a7", ["y", "z"], 2.5)
    assert (request.binary_default, request.binary) == (True, {"z": False})


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
_tensor = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", "", 3]) | _json,
        "datatype": st.sampled_from([*NUMPY_OF, "FP8"]) | _json,
        "shape": st.lists(st.integers(-2, 5) | st.sampled_from([0, 2**31, 2**62]), max_size=4) | _json,
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.booleans(), max_size=6) | _json,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40)}) | _json,
    },
)
_document = st.fixed_dictionaries(
    {},
    optional={
        "id": _json,
        "inputs": st.lists(_tensor, max_size=3) | _json,
        "outputs": st.lists(_tensor, max_size=3) | _json,
        "parameters": _json,
    },
)


@settings(max_examples=400, deadline=None)
@given(_document, st.binary(max_size=40), st.none() | st.integers(0, 3))
def test_no_document_does_anything_but_arrive_or_be_refused(document: Any, tail: bytes, shift: int | None) -> None:
    header = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    length = None if shift is None else len(header) + shift - 1
    try:
        request = decode_request(header + tail, length)
    except BadInput:
        return
    for array in request.inputs.values():
        assert array.dtype in NUMPY_OF.values()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(0, 220))
def test_no_bytes_do_anything_but_arrive_or_be_refused(content: bytes, length: int | None) -> None:
    with pytest.raises(BadInput):
        decode_request(content, length)


def test_deep_nesting_is_refused_not_followed() -> None:
    depth = 100_000
    nested = b"[" * depth + b"]" * depth
    refused(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + nested + b"}]}")
    nested = b"[" * 500 + b"]" * 500
    for datatype in (b"FP32", b"BYTES"):
        refused(b'{"inputs":[{"name":"x","datatype":"' + datatype + b'","shape":[0],"data":' + nested + b"}]}")


# --- answers ----------------------------------------------------------------------------------------------------------


def decoded(content: bytes, length: int | None) -> dict[str, Any]:
    """An answer as a client reads it: tensors by name."""
    document = json.loads(content if length is None else content[:length])
    at = len(content) if length is None else length
    found: dict[str, Any] = {}
    for output in document["outputs"]:
        dtype = NUMPY_OF[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[output["name"]] = np.array(output["data"], dtype=dtype).reshape(output["shape"])
        else:
            found[output["name"]] = np.frombuffer(content[at : at + size], dtype).reshape(output["shape"])
            at += size
    assert at == len(content)
    return found


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_what_is_answered_is_what_was_computed(data: st.DataObject, as_binary: bool) -> None:
    dtype = data.draw(st.sampled_from(NUMERIC))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    content, length = encode_response(response_head("a--b", 3), BINARY if as_binary else PLAIN, {"y": array})
    assert (length is not None) == as_binary
    np.testing.assert_array_equal(decoded(content, length)["y"], array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_a_word_and_in_triton_s_words_a_literal(dtype: type) -> None:
    arrays = {"y": np.array([[np.nan, 0.1], [-np.inf, np.inf]], dtype), "t": object_array([b"null"], [1])}
    content, _ = encode_response(response_head("a--b", 1), PLAIN, arrays)
    data = orjson.loads(content)["outputs"][0]["data"]
    assert data == ["NaN", pytest.approx(0.1, abs=1e-3), "-Infinity", "Infinity"]
    assert np.array(data, dtype).tolist()[1:] == arrays["y"].ravel().tolist()[1:]
    content, _ = encode_response(response_head("a--b", 1), PLAIN, arrays, literals=True)
    assert b"[NaN,0." in content
    assert b",-Infinity,Infinity]" in content


def test_the_answer_names_model_version_and_request() -> None:
    request = InferRequest("7f", {}, None, {}, False, None)
    content, _ = encode_response(response_head("a--b", 3), request, {"y": np.zeros(1, np.float32)})
    assert orjson.loads(content) == {
        "model_name": "a--b",
        "model_version": "3",
        "id": "7f",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.0]}],
    }


def test_text_and_strided_and_fortran_arrays_are_answered() -> None:
    arrays = {
        "t": object_array([b"ab", "钢".encode()], [2]),
        "s": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        "f": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    }
    content, _ = encode_response(response_head("a--b", 1), PLAIN, arrays)
    outputs = {output["name"]: output["data"] for output in orjson.loads(content)["outputs"]}
    assert outputs == {"t": ["ab", "钢"], "s": [0, 2, 4, 6, 8, 10], "f": [0, 1, 2, 3, 4, 5]}
    content, length = encode_response(response_head("a--b", 1), BINARY, arrays)
    assert length is not None
    assert content[length : length + 13] == b"\x02\x00\x00\x00ab\x03\x00\x00\x00\xe9\x92\xa2"


def test_bf16_is_answered_as_binary_and_refused_as_json_before_the_run() -> None:
    array = np.array([1.5], ml_dtypes.bfloat16)
    content, length = encode_response(response_head("a--b", 1), BINARY, {"y": array})
    assert decoded(content, length)["y"].tolist() == [1.5]
    with pytest.raises(BadInput) as refusal:
        check_binary_needs(PLAIN, {"y": "BF16"})
    assert refusal.value.code == "BINARY_REQUIRED"
    check_binary_needs(BINARY, {"y": "BF16"})
    check_binary_needs(InferRequest("", {}, ["z"], {}, False, None), {"y": "BF16", "z": "FP32"})


def test_a_graph_without_inputs_can_be_called() -> None:
    assert decode_request(b'{"inputs": []}').inputs == {}
