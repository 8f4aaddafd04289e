"""What the static part of inspection refuses: files that are not what they say, graphs that reach out or blow up."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.inspection.files import check_files
from model_store.inspection.graph_safety import check_graph
from model_store.inspection.limits import Limits
from model_store.inspection.report import Findings
from model_store.manifest import TensorSpec
from tests.model_store.inspected import FLOAT, added, manifest_of, model_of, nested, relu, save_model, value

LIMITS = Limits()


def judged_files(folder: Path, limits: Limits = LIMITS) -> set[str]:
    findings = Findings()
    check_files(folder, limits, findings)
    return {item.code for item in findings}


def judged(folder: Path, model: onnx.ModelProto, limits: Limits = LIMITS) -> set[str]:
    """Error codes of the graph's static check."""
    save_model(folder, model)
    findings = Findings()
    check_graph(folder, None, limits, findings)
    return {item.code for item in findings if item.severity == "error"}


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_named_model_onnx_is_recognised_and_never_opened(tmp_path, protocol):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "model.onnx").write_bytes(pickle.dumps([Bomb()], protocol))
    assert judged_files(tmp_path) == {"FILE_IS_PICKLE"}
    assert not (tmp_path / "ran").exists()


def test_a_torch_checkpoint_is_refused_under_any_name(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    for name in ("pytorch_model.bin", "weights.npz", "model.onnx", "x.pt"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(stream.getvalue())
        assert judged_files(folder) == {"FILE_IS_PICKLE"}, name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("setup.py", b"import os"),
        ("lib.so", b"\x7fELF\x02"),
        ("weights.data", b"\x7fELF\x02\x01\x01"),
        ("model.onnx.data", b"\x1f\x8b\x08\x00 and more"),
        ("run.sh", b"#!/bin/sh"),
        ("note.txt", b"#!/bin/sh"),
        ("tool.exe", b"MZ"),
        ("keras.weights", b"\x89HDF\r\n\x1a\n"),
        ("unknown.xyz", b"?"),
        ("archive.zip", b"PK\x03\x04"),
    ],
)
def test_programs_archives_and_unknown_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert judged_files(tmp_path) == {"FILE_NOT_ALLOWED"}


def test_what_a_bundle_may_hold_passes(tmp_path):
    save_model(tmp_path, relu())
    for name in ("manifest.json", "card.md", "tokenizer.json", "source/config.json", "LICENSE", "source/vocab.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("(a text may begin as a pickle of protocol 0 does)\n.", encoding="utf-8")
    (tmp_path / "model.onnx.data").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "golden/0").mkdir(parents=True)
    np.savez(tmp_path / "golden/0/inputs.npz", x=np.zeros(3))
    assert judged_files(tmp_path) == set()


def test_links_and_special_files_are_refused(tmp_path):
    (tmp_path / "model.onnx.data").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe.json")
    findings = Findings()
    check_files(tmp_path, LIMITS, findings)
    assert sorted((item.code, item.where) for item in findings) == [
        ("FILE_NOT_REGULAR", "folder"),
        ("FILE_NOT_REGULAR", "model.onnx.data"),
        ("FILE_NOT_REGULAR", "pipe.json"),
    ]


def test_sizes_and_numbers_of_files_are_bounded(tmp_path):
    save_model(tmp_path, relu())
    assert judged_files(tmp_path, Limits(model_bytes=10)) == {"FILE_TOO_LARGE"}
    assert judged_files(tmp_path, Limits(bundle_bytes=10)) == {"BUNDLE_TOO_LARGE"}
    (tmp_path / "card.md").write_text("x")
    assert judged_files(tmp_path, Limits(files=1)) == {"BUNDLE_TOO_MANY_FILES"}


# --- operators, domains, nesting ------------------------------------------------------------------------------------


def test_a_plain_graph_passes_and_its_facts_are_told(tmp_path):
    save_model(tmp_path, relu())
    findings = Findings()
    facts = check_graph(tmp_path, None, LIMITS, findings)
    assert not findings.failed
    assert (facts["ops"], facts["opset"], facts["params"]) == ({"Relu": 1}, {"ai.onnx": 18}, 0)
    assert facts["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [-1, 3]}]


def test_a_custom_domain_is_refused_however_deep_it_hides(tmp_path):
    node = helper.make_node("Evil", ["x"], ["y"], domain="evil.corp")
    opsets = [("", 18), ("evil.corp", 1)]
    assert judged(tmp_path, model_of([node], opsets=opsets)) == {"DOMAIN_NOT_ALLOWED"}
    deep = nested(node, depth=3)
    deep.opset_import.append(helper.make_opsetid("evil.corp", 1))
    assert judged(tmp_path, deep) == {"DOMAIN_NOT_ALLOWED"}
    hidden = helper.make_node("Evil", ["a"], ["b"], domain="evil.corp")
    inside = helper.make_function("mine", "F", ["a"], ["b"], [hidden], [helper.make_opsetid("evil.corp", 1)])
    call = helper.make_node("F", ["x"], ["y"], domain="mine")
    assert judged(tmp_path, model_of([call], functions=[inside], opsets=[*opsets, ("mine", 1)])) == {
        "DOMAIN_NOT_ALLOWED"
    }


def test_contributed_operators_are_allowed_by_name(tmp_path):
    opsets = [("", 18), ("com.microsoft", 1)]
    gelu = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    assert judged(tmp_path, model_of([gelu], opsets=opsets)) == set()
    context = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    assert judged(tmp_path, model_of([context], opsets=opsets)) == {"OPERATOR_NOT_ALLOWED"}


def test_a_local_function_may_have_a_domain_of_its_own_but_not_call_itself(tmp_path):
    def function(name: str, body: str, domain: str = "mine") -> onnx.FunctionProto:
        node = helper.make_node(body, ["a"], ["b"], domain=domain)
        return helper.make_function("mine", name, ["a"], ["b"], [node], [helper.make_opsetid("", 18)])

    call = helper.make_node("F", ["x"], ["y"], domain="mine")
    opsets = [("", 18), ("mine", 1)]
    assert judged(tmp_path, model_of([call], functions=[function("F", "Relu", "")], opsets=opsets)) == set()
    loop = [function("F", "G"), function("G", "F")]
    assert "FUNCTION_RECURSIVE" in judged(tmp_path, model_of([call], functions=loop, opsets=opsets))


def test_functions_that_multiply_past_the_bound_are_refused(tmp_path):
    def tenfold(level: int) -> onnx.FunctionProto:
        inner = ("Relu", "") if level == 0 else (f"F{level - 1}", "mine")
        steps = [("a", "t0"), *((f"t{i}", f"t{i + 1}") for i in range(9))]
        nodes = [helper.make_node(inner[0], [a], [b], domain=inner[1]) for a, b in steps]
        return helper.make_function("mine", f"F{level}", ["a"], ["t9"], nodes, [helper.make_opsetid("", 18)])

    call = helper.make_node("F9", ["x"], ["y"], domain="mine")
    functions = [tenfold(level) for level in range(10)]
    model = model_of([call], functions=functions, opsets=[("", 18), ("mine", 1)])
    assert judged(tmp_path, model) == {"GRAPH_TOO_LARGE"}


def test_nesting_and_size_are_bounded(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    assert judged(tmp_path, nested(node, depth=5), Limits(graph_depth=4)) == {"GRAPH_TOO_DEEP"}
    assert judged(tmp_path, nested(node, depth=5)) == set()
    assert judged(tmp_path, nested(node, depth=5), Limits(nodes=4)) == {"GRAPH_TOO_LARGE"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"opsets": [("", 29)]}, "OPSET_UNSUPPORTED"),
        ({"opsets": [("", 18), ("ai.onnx.ml", 6)]}, "OPSET_UNSUPPORTED"),
        ({"opsets": [("", 18), ("ai.onnx", 18)]}, "OPSET_REPEATED"),
        ({"opsets": [("", 18), ("", 17)]}, "OPSET_REPEATED"),
        ({"ir_version": 15}, "IR_VERSION_UNSUPPORTED"),
        ({"ir_version": 2}, "IR_VERSION_UNSUPPORTED"),
        ({"outputs": [helper.make_tensor_sequence_value_info("y", FLOAT, None)]}, "TENSOR_TYPE_UNSUPPORTED"),
    ],
)
def test_versions_and_types_that_cannot_be_served_are_named(tmp_path, options, code):
    assert judged(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], **options)) == {code}


def test_an_opset_named_twice_in_the_same_words_is_accepted(tmp_path):
    """As skl2onnx writes it for a pipeline."""
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opsets=[("", 18), ("", 18)])
    assert judged(tmp_path, model) == set()


def test_the_checker_has_the_last_word(tmp_path):
    wrong = helper.make_node("Relu", ["x", "x", "x"], ["y"])
    assert judged(tmp_path, model_of([wrong])) == {"MODEL_INVALID"}


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\x", "C:\\x", "~/x", "", "a/./b", "..", "w\n", "x" * 600],
)
def test_external_data_outside_the_bundle_is_refused(tmp_path, location):
    assert judged(tmp_path, added(location)) == {"EXTERNAL_DATA_OUTSIDE"}


def test_external_data_through_a_link_is_refused(tmp_path):
    (tmp_path / "model.onnx.data").symlink_to("/etc/passwd")
    assert judged(tmp_path, added("model.onnx.data")) == {"EXTERNAL_DATA_MISSING"}
    (tmp_path / "folder").symlink_to("/etc")
    assert judged(tmp_path, added("folder/passwd")) == {"EXTERNAL_DATA_MISSING"}


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({}, set()),
        ({"offset": "4", "length": "12"}, set()),
        ({"offset": "8"}, {"EXTERNAL_DATA_INVALID"}),
        ({"length": "8"}, {"EXTERNAL_DATA_INVALID"}),
        ({"offset": "-4"}, {"EXTERNAL_DATA_INVALID"}),
        ({"offset": "99999999999999999999"}, {"EXTERNAL_DATA_INVALID"}),
        ({"surprise": "1"}, {"EXTERNAL_DATA_INVALID"}),
    ],
)
def test_external_data_must_lie_within_its_file(tmp_path, fields, codes):
    (tmp_path / "model.onnx.data").write_bytes(bytes(16))
    assert judged(tmp_path, added("model.onnx.data", **fields)) == codes


def test_a_constant_that_claims_to_be_huge_or_negative_is_refused(tmp_path):
    for dims, code in (([1 << 20, 1 << 20], "TENSOR_TOO_LARGE"), ([-3], "TENSOR_SHAPE_INVALID")):
        tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=bytes(12))
        model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor])
        assert judged(tmp_path, model) == {code}


def test_external_data_in_an_attribute_of_a_subgraph_is_found(tmp_path):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/shadow")
    assert judged(tmp_path, nested(helper.make_node("Constant", [], ["y"], value=tensor))) == {"EXTERNAL_DATA_OUTSIDE"}


# --- declared tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "agrees"),
    [
        (TensorSpec(name="x", dtype="FP32", shape=[-1, 3]), True),
        (TensorSpec(name="x", dtype="FP32", shape=[4, 3]), True),  # narrower than the graph
        (TensorSpec(name="x", dtype="FP32", shape=[-1, -1]), False),  # wider than the graph
        (TensorSpec(name="x", dtype="FP32", shape=[-1, 4]), False),
        (TensorSpec(name="x", dtype="FP32", shape=[3]), False),
        (TensorSpec(name="x", dtype="FP64", shape=[-1, 3]), False),
        (TensorSpec(name="z", dtype="FP32", shape=[-1, 3]), False),
    ],
)
def test_declared_tensors_must_be_those_of_the_graph(tmp_path, spec, agrees):
    path = save_model(tmp_path, relu())
    findings = Findings()
    check_graph(tmp_path, manifest_of(path, inputs=[spec]), LIMITS, findings)
    assert ({item.code for item in findings} == {"TENSOR_MISMATCH"}) is not agrees


def test_weights_listed_as_inputs_are_no_inputs(tmp_path):
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    inputs = [value("x", FLOAT, ["n", 3]), value("w", FLOAT, [3])]
    save_model(tmp_path, model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weights], inputs=inputs))
    findings = Findings()
    facts = check_graph(tmp_path, None, LIMITS, findings)
    assert [spec["name"] for spec in facts["inputs"]] == ["x"]
    assert {item.code for item in findings} == {"INITIALIZER_AS_INPUT"}
