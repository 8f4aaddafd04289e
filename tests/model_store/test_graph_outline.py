"""A graph read without its weights: all else is there, and nothing but an ONNX file is taken for one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_store.graph_outline import read_outline
from tests.model_store.graphs import endless_loop, linear

VALUES = ("float_data", "int32_data", "string_data", "int64_data", "raw_data", "double_data", "uint64_data")


def of_every_kind() -> onnx.ModelProto:
    """Weights as raw bytes and in each typed field, a body with one of its own, metadata, an attribute of a number."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["b"])], "body", [], [info("b", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.float32([1, 2]), "k")],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["t"], then_branch=body, else_branch=body),
        helper.make_node("LeakyRelu", ["t"], ["y"], alpha=0.25),
    ]
    weights = [
        numpy_helper.from_array(np.arange(5000, dtype=np.float32), "raw"),
        helper.make_tensor("floats", TensorProto.FLOAT, [300], [0.5] * 300),
        helper.make_tensor("ints", TensorProto.INT32, [3], [1, -2, 3]),
        helper.make_tensor("longs", TensorProto.INT64, [2], [1, 2**62]),
        helper.make_tensor("doubles", TensorProto.DOUBLE, [1], [0.1]),
        helper.make_tensor("unsigned", TensorProto.UINT64, [1], [2**63]),
        helper.make_tensor("texts", TensorProto.STRING, [2], [b"a", b"raw"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("c", TensorProto.BOOL, [])], [info("y", TensorProto.FLOAT, [2])], weights
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"made": "here"})
    return made


def without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        for name in VALUES:
            tensor.ClearField(name)
    return model


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_an_outline_is_the_model_without_the_values_of_its_weights(tmp_path: Path) -> None:
    path = saved(tmp_path, of_every_kind())
    assert read_outline(path) == without_values(onnx.load(str(path)))
    assert [tensor.name for tensor in read_outline(path).graph.initializer][:2] == ["raw", "floats"]
    for made in (linear(tmp_path / "linear.onnx"), endless_loop(tmp_path / "loop.onnx")):
        assert read_outline(made) == without_values(onnx.load(str(made)))


def test_weights_elsewhere_stay_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(of_every_kind(), str(path), save_as_external_data=True, size_threshold=0, location="weights.bin")
    raw = next(tensor for tensor in read_outline(path).graph.initializer if tensor.name == "raw")
    assert raw.data_location == TensorProto.EXTERNAL
    assert ("location", "weights.bin") in [(entry.key, entry.value) for entry in raw.external_data]


def test_a_graph_in_two_pieces_is_one(tmp_path: Path) -> None:
    """Protocol Buffers let a writer say a field of one message twice; readers join what it said."""
    whole = of_every_kind()
    first, second = onnx.ModelProto(), onnx.ModelProto()
    first.CopyFrom(whole)
    first.graph.ClearField("initializer")
    second.graph.initializer.extend(whole.graph.initializer)
    path = tmp_path / "model.onnx"
    path.write_bytes(first.SerializeToString() + second.SerializeToString())
    assert read_outline(path) == without_values(whole)


def test_an_empty_file_is_an_empty_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert read_outline(path) == onnx.ModelProto()


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x7f", b"\x3b", b"\x3a", b"\x02\x01a", b"\x09a"]
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_outline(path)


@given(cut=st.integers(0, 2000), flipped=st.integers(0, 1 << 16))
def test_a_damaged_model_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int) -> None:
    content = bytearray(of_every_kind().SerializeToString()[cut:])
    content[flipped % len(content)] ^= 0xFF
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert isinstance(read_outline(path), onnx.ModelProto)
