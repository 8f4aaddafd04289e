"""`inspect_bundle` on real bundles: what passes, what fails, what the limited subprocess survives, what is measured."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_store.golden import Golden
from model_store.inspection.inspector import STAGES, inspect_bundle
from model_store.inspection.limits import Limits
from model_store.inspection.pool import POOL, Child
from model_store.inspection.render import render_text
from model_store.inspection.report import Report, report_of
from model_store.inspection.sealed import SealedSet
from tests.model_store import graphs
from tests.model_store.inspected import (
    FLOAT,
    QUICK,
    bundle_of,
    manifest_of,
    model_of,
    relu,
    sample,
    save_model,
    value,
)


def inspected(folder, model=None, golden=(), limits=QUICK, private=True, sealed=None, **fields) -> Report:
    """The report of a bundle sealed from `model` (or the model.onnx in `folder`) with these manifest fields."""
    path = save_model(folder, model) if model is not None else folder / "model.onnx"
    return inspect_bundle(
        bundle_of(folder, manifest_of(path, **fields), golden), private=private, limits=limits, sealed_sets=sealed
    )


def errors(report: Report) -> set[str]:
    return {item.code for item in report.of_severity("error")}


# --- golden samples and batches -------------------------------------------------------------------------------------


def test_an_honest_bundle_passes_with_its_samples_reproduced_and_its_cost_measured(tmp_path):
    report = inspected(tmp_path, relu(), [sample()], batching={"dynamic": True})
    assert (report.passed, report.golden["cases"], report.golden["passed"]) == (True, 1, 1)
    assert report.cost is not None
    assert {"a_ms_per_row", "b_ms", "load_ms", "private_bytes", "cpu", "ort_version"} <= report.cost.keys()
    assert [point["rows"] for point in report.cost["points"]] == [1, 2, 4, 8, 16, 32, 64]
    measures = {each["name"]: each for each in report.scorecard["stability"]["measures"]}
    assert measures["soak_error_rate"]["value"] == 0
    assert measures["deterministic"]["value"] == 1
    assert measures["batch_parity_worst_abs"]["passed"] is True
    assert all(each["n"] > 0 for each in measures.values())


def test_a_wrong_expected_output_is_named(tmp_path):
    report = inspected(tmp_path, relu(), [sample(change=0.1)])
    assert errors(report) == {"GOLDEN_MISMATCH"}
    assert report.golden["passed"] == 0
    assert "'y'" in report.of_severity("error")[0].en


@pytest.mark.parametrize(
    "expected",
    [
        np.zeros((2, 3), np.float64),  # another type
        np.zeros((3, 2), np.float32),  # another shape
        np.full((2, 3), np.nan, np.float32),  # NaN where there is a number
    ],
)
def test_type_shape_and_nan_must_agree_exactly(tmp_path, expected):
    inputs = {"x": np.zeros((2, 3), np.float32)}
    assert errors(inspected(tmp_path, relu(), [Golden("0", inputs, {"y": expected})])) == {"GOLDEN_MISMATCH"}


def test_nan_and_infinity_equal_themselves(tmp_path):
    x = np.array([[np.nan, np.inf, 1]], np.float32)
    same = model_of([helper.make_node("Identity", ["x"], ["y"])])
    assert inspected(tmp_path, same, [Golden("0", {"x": x}, {"y": x})]).passed


def test_a_sample_that_the_graph_does_not_take_is_an_error(tmp_path):
    wrong = Golden("0", {"z": np.zeros((1, 3), np.float32)}, {"y": np.zeros((1, 3), np.float32)})
    assert errors(inspected(tmp_path, relu(), [wrong])) == {"GOLDEN_NOT_RUN"}


def test_a_sample_that_is_a_pickle_inside_is_refused(tmp_path):
    save_model(tmp_path, relu())
    (tmp_path / "golden/0").mkdir(parents=True)
    for stem in ("inputs", "outputs"):
        np.savez(tmp_path / f"golden/0/{stem}.npz", x=np.array([{"a": 1}], dtype=object))
    assert errors(inspected(tmp_path)) == {"GOLDEN_UNREADABLE"}


def test_without_samples_a_private_version_is_advised_and_a_public_one_warned(tmp_path):
    severity = {}
    for private in (True, False):
        report = inspected(tmp_path / str(private), relu(), private=private)
        severity[private] = [item.severity for item in report.findings if item.code == "GOLDEN_MISSING"]
    assert severity == {True: ["advice"], False: ["warning"]}


def test_rows_that_see_each_other_in_a_batch_are_found(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    model = model_of(nodes, initializers=[numpy_helper.from_array(np.array([0]), "axes")])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    golden = [Golden("0", {"x": x}, {"y": x - x.mean(0)})]
    assert errors(inspected(tmp_path / "a", model, golden, batching={"dynamic": True})) == {"BATCH_MISMATCH"}
    assert inspected(tmp_path / "b", model, golden).passed  # it does not claim that its rows are independent
    report = inspected(tmp_path / "c", model, golden, batching={"dynamic": True}, variation="int8")
    assert report.passed
    assert "BATCH_MISMATCH" in {item.code for item in report.of_severity("warning")}


def test_a_fixed_batch_dimension_may_not_be_declared_dynamic(tmp_path):
    fixed = [value("x", FLOAT, [1, 3])], [value("y", FLOAT, [1, 3])]
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], inputs=fixed[0], outputs=fixed[1])
    assert errors(inspected(tmp_path, model, batching={"dynamic": True})) == {"BATCH_DIMENSION_FIXED"}


def test_random_operators_are_warned_of(tmp_path):
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    report = inspected(tmp_path, model_of(nodes))
    assert report.passed
    assert "NOT_DETERMINISTIC" in report.codes()


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_an_endless_loop_is_ended_and_said(tmp_path):
    graphs.endless_loop(tmp_path / "model.onnx")
    report = inspected(tmp_path)
    assert errors(report) == {"GRAPH_TIMED_OUT"}
    assert report.facts["ops"]["Loop"] == 1


def test_a_graph_that_allocates_without_end_is_said(tmp_path):
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "shape")
    one = helper.make_tensor("v", FLOAT, [1], [1])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"], value=one),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    assert errors(inspected(tmp_path, model_of(nodes, initializers=[shape]))) == {"GRAPH_OUT_OF_MEMORY"}


def test_an_output_over_its_bound_is_said(tmp_path):
    shape = value("shape", TensorProto.INT64, ["k"])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"])]
    model = model_of(nodes, inputs=[shape], outputs=[value("y", FLOAT, ["n"])])
    golden = [Golden("0", {"shape": np.array([1 << 20])}, {"y": np.zeros(1 << 20, np.float32)})]
    report = inspected(tmp_path, model, golden, limits=Limits(output_bytes=1 << 20, wall_s=20))
    assert errors(report) == {"OUTPUT_TOO_LARGE"}


def test_what_does_not_end_within_the_wall_time_is_killed(tmp_path):
    graphs.endless_loop(tmp_path / "model.onnx")
    report = inspected(tmp_path, limits=Limits(run_ms=60_000, wall_s=1.5))
    assert errors(report) == {"GRAPH_TIMED_OUT"}
    assert report.facts["ops"]["Loop"] == 1  # what was known before is kept


def test_cpu_time_is_bounded_too(tmp_path):
    graphs.endless_loop(tmp_path / "model.onnx")
    assert errors(inspected(tmp_path, limits=Limits(run_ms=60_000, cpu_s=1))) == {"GRAPH_TIMED_OUT"}


def test_after_each_bomb_the_next_bundle_is_inspected_as_ever(tmp_path):
    graphs.endless_loop(save_model(tmp_path / "bomb", relu()))
    inspected(tmp_path / "bomb", limits=Limits(run_ms=60_000, wall_s=1))
    assert inspected(tmp_path / "honest", relu(), [sample()]).passed


def test_a_child_that_dies_is_replaced(tmp_path):
    folder = bundle_of(save_model(tmp_path, relu()).parent, manifest_of(tmp_path / "model.onnx"), [sample()])
    assert inspect_bundle(folder, private=True, limits=QUICK).passed
    with POOL.borrow() as child:
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
    assert inspect_bundle(folder, private=True, limits=QUICK).passed


# --- malformed files ------------------------------------------------------------------------------------------------


def broken(folder, content: bytes) -> Report:
    """A bundle whose model.onnx holds these bytes under an honest manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    return inspect_bundle(bundle_of(folder, manifest_of(None)), private=True, limits=QUICK)


def test_a_model_cut_short_is_refused(tmp_path):
    content = relu().SerializeToString()
    assert errors(broken(tmp_path, content[: len(content) // 2])) <= {"MODEL_NOT_ONNX", "MODEL_INVALID"}


def test_a_pickle_named_model_onnx_is_refused_before_anything_reads_it(tmp_path):
    import pickle

    report = broken(tmp_path, pickle.dumps({"weights": [1.0]}))
    assert errors(report) == {"FILE_IS_PICKLE"}
    assert report.facts == {}


def test_files_that_changed_after_sealing_are_refused(tmp_path):
    folder = bundle_of(save_model(tmp_path, relu()).parent, manifest_of(tmp_path / "model.onnx"))
    save_model(tmp_path, model_of([helper.make_node("Neg", ["x"], ["y"])]))
    assert errors(inspect_bundle(folder, private=True, limits=QUICK)) == {"BUNDLE_FILE_CHANGED"}


def test_a_folder_without_manifest_or_model_is_refused_not_raised(tmp_path):
    assert errors(inspect_bundle(tmp_path, limits=QUICK)) == {"MANIFEST_MISSING"}
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert errors(inspect_bundle(tmp_path, limits=QUICK)) == {"MANIFEST_INVALID"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_models_never_end_the_parent_and_always_give_a_report(tmp_path, data):
    content = bytearray(relu().SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    report = broken(tmp_path / "mutated", bytes(content))
    assert report.passed == (not errors(report))
    json.dumps(report.as_dict(), allow_nan=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused_with_a_report(tmp_path, content):
    report = broken(tmp_path / "random", content)
    assert not report.passed
    assert report.findings[0].zh


# --- the subprocess -------------------------------------------------------------------------------------------------


def test_the_subprocess_has_no_network_and_none_of_the_market_s_environment(monkeypatch):
    monkeypatch.setenv("ALGOMART_SECRET", "hidden")
    child = Child()
    try:
        process = Path(f"/proc/{child._process.pid}")
        assert "hidden" not in (process / "environ").read_text()
        if child.isolated:
            assert (process / "net/route").read_text().splitlines()[1:] == []
            assert (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    finally:
        child.close()


def test_the_subprocess_ends_with_its_market():
    child = Child()
    assert child._process.stdin is not None
    child._process.stdin.close()
    assert child._process.wait(10) == 0


def test_progress_names_every_stage_in_order(tmp_path):
    seen: list[str] = []
    folder = bundle_of(save_model(tmp_path, relu()).parent, manifest_of(tmp_path / "model.onnx"), [sample()])
    inspect_bundle(folder, private=True, limits=QUICK, on_progress=lambda stage, fraction: seen.append(stage))
    assert list(dict.fromkeys(seen)) == [stage for stage in STAGES if stage != "card"] + ["card"]


def test_several_threads_may_inspect_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    folders = [
        bundle_of(save_model(tmp_path / str(n), relu()).parent, manifest_of(tmp_path / f"{n}/model.onnx"), [sample()])
        for n in range(6)
    ]
    with ThreadPoolExecutor(3) as threads:
        reports = list(threads.map(lambda each: inspect_bundle(each, private=True, limits=QUICK), folders))
    assert all(report.passed for report in reports)


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_report_survives_json_and_renders_in_both_languages(tmp_path):
    report = inspected(tmp_path, relu(), [sample(change=1)])
    again = report_of(json.loads(json.dumps(report.as_dict(), allow_nan=False)))
    assert again == report
    zh, en = render_text(again, "zh"), render_text(again, "en")
    assert zh.startswith("检验未通过")
    assert en.startswith("Inspection failed")
    for item in report.findings:
        assert item.code in zh
        assert item.remedy_zh in zh
        assert item.remedy_en in en


def test_findings_of_a_hostile_graph_are_bounded(tmp_path):
    nodes = [helper.make_node("Evil", ["x"], [f"t{n}"], domain="\x00evil\x1b[2J" * 40) for n in range(2000)]
    report = inspected(tmp_path, model_of([*nodes, helper.make_node("Relu", ["x"], ["y"])]))
    found = report.of_severity("error")
    assert 0 < len(found) <= 12
    assert all(item.en.isprintable() and len(item.en) <= 600 for item in found)


# --- processing, scorecard ------------------------------------------------------------------------------------------

CLASSIFIER = {
    "task": "tabular-classification",
    "modality": "tabular",
    "features": [{"name": n, "kind": "number", "example": 0.5} for n in ("a", "b", "c")],
    "labels": [{"name": "ok"}, {"name": "bad"}, {"name": "odd"}],
    "target": {"name": "state", "kind": "category", "positive": "bad"},
    "pre": [{"op": "columns", "features": ["a", "b", "c"], "tensor": "x"}],
    "post": [{"op": "softmax", "tensor": "y"}, {"op": "classify", "tensor": "y", "labels": ["ok", "bad", "odd"]}],
    "batching": {"dynamic": True},
}


def test_processing_runs_on_the_examples_and_its_faults_are_found(tmp_path):
    assert inspected(tmp_path / "a", relu(), **CLASSIFIER).passed
    short = CLASSIFIER | {"pre": [{"op": "columns", "features": ["a", "b"], "tensor": "x"}]}
    assert errors(inspected(tmp_path / "b", relu(), **short)) == {"PROCESSING_FAILED"}
    unknown = CLASSIFIER | {"post": [{"op": "value", "tensor": "nothing"}]}
    assert errors(inspected(tmp_path / "c", relu(), **unknown)) == {"PROCESSING_FAILED"}


def test_declared_metrics_read_vendor_tested_and_few_rows_insufficient(tmp_path):
    metrics = [
        {"name": "accuracy", "value": 0.9, "low": 0.88, "high": 0.92, "rows": 500},
        {"name": "f1", "value": 0.9, "low": 0.5, "high": 1.0, "rows": 8},
    ]
    precision = inspected(tmp_path, relu(), metrics=metrics, **CLASSIFIER).scorecard["precision"]
    assert (precision["basis"], precision["basis_zh"], precision["mark"]) == ("vendor_tested", "供应商自测", False)
    assert [each["verdict"] for each in precision["metrics"]] == ["vendor_tested", "insufficient"]


@pytest.mark.parametrize(("rows", "basis", "mark"), [(200, "sealed", True), (10, "insufficient", False)])
def test_a_sealed_set_measures_precision_with_an_interval(tmp_path, rows, basis, mark):
    random = np.random.default_rng(3)
    cells = random.uniform(0, 1, (rows, 3))
    truth = [["ok", "bad", "odd"][int(np.argmax(row))] for row in cells]
    truth[: rows // 10] = ["ok"] * (rows // 10)
    path = tmp_path / "sealed.json"
    named = [dict(zip("abc", map(float, row), strict=True)) for row in cells]
    path.write_text(json.dumps({"rows": named, "targets": truth}))
    sealed = [SealedSet("other", "tabular-regression", path), SealedSet("quality", "tabular-classification", path)]
    precision = inspected(tmp_path / "b", relu(), sealed=sealed, **CLASSIFIER).scorecard["precision"]
    assert (precision["basis"], precision["mark"], precision["sealed_set"]) == (basis, mark, "quality")
    accuracy = precision["metrics"][0]
    exact = sum(["ok", "bad", "odd"][int(np.argmax(row))] == each for row, each in zip(cells, truth, strict=True))
    assert accuracy["value"] == pytest.approx(exact / rows)
    if mark:
        assert accuracy["low"] < accuracy["value"] < accuracy["high"] or accuracy["value"] == 1
        assert any(each["name"].startswith("miss_rate") for each in precision["metrics"])


def test_drift_under_noise_counts_flips_with_an_interval(tmp_path):
    x = np.random.default_rng(5).uniform(0, 1, (40, 3)).astype(np.float32)
    report = inspected(tmp_path, relu(), [Golden("0", {"x": x}, {"y": x})], **CLASSIFIER)
    noise = next(each for each in report.scorecard["stability"]["measures"] if each["name"] == "drift_noise")
    assert (noise["n"], noise["of"]) == (40, "flips")
    assert 0 <= noise["low"] <= noise["value"] <= noise["high"] <= 1


def test_pictures_drift_under_brightness_and_blur(tmp_path):
    four = [value("x", FLOAT, ["n", 3, 16, 16])], [value("y", FLOAT, ["n", 3])]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"], axis=1),
    ]
    fields = {
        "task": "image-classification",
        "modality": "image",
        "features": [{"name": "photo", "kind": "image"}],
        "labels": CLASSIFIER["labels"],
        "pre": [
            {"op": "image", "feature": "photo", "tensor": "x", "width": 16, "height": 16},
            {"op": "normalise", "tensor": "x", "mean": [0.5] * 3, "std": [0.25] * 3},
        ],
        "post": CLASSIFIER["post"],
        "batching": {"dynamic": True},
    }
    report = inspected(tmp_path, model_of(nodes, inputs=four[0], outputs=four[1]), **fields)
    assert report.passed, report.findings
    names = {each["name"] for each in report.scorecard["stability"]["measures"]}
    assert {"drift_noise", "drift_brighter", "drift_darker", "drift_blur"} <= names


def test_text_and_boolean_outputs_are_compared_exactly(tmp_path):
    text = TensorProto.STRING
    model = model_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs=[value("x", text, ["n"])],
        outputs=[value("y", text, ["n"])],
    )
    words = np.array(["轴承".encode(), b"ok"], dtype=object)
    assert inspected(tmp_path / "a", model, [Golden("0", {"x": words}, {"y": words})]).passed
    assert errors(inspected(tmp_path / "b", model, [Golden("0", {"x": words}, {"y": words[::-1]})])) == {
        "GOLDEN_MISMATCH"
    }
