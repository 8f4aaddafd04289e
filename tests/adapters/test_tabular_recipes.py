"""Calibrate, retrain and quantise on scikit-learn's bundled real data sets."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from adapters import measure
from model_store import fingerprint
from model_store.bundle import Bundle
from model_store.errors import Refusal
from model_store.golden import read_golden
from model_store.manifest import Filing
from model_store.runtime import load_graph
from tests.adapters.workbench import adapt, value_of, write_table


@pytest.fixture(scope="module")
def cancer() -> pd.DataFrame:
    data = load_breast_cancer(as_frame=True)
    frame = data.frame.copy()
    frame["diagnosis"] = np.array(["malignant", "benign"])[frame.pop("target")]
    return frame.sample(frac=1, random_state=1).reset_index(drop=True)


@pytest.fixture(scope="module")
def classifier(cancer: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that a vendor made of the first half of the rows."""
    folder = tmp_path_factory.mktemp("vendor")
    data = write_table(folder / "data", cancer.iloc[:280])
    return adapt("tabular_retrain", data, folder / "bundle", label_column="diagnosis", params={"iterations": 40})[1]


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("regressor")
    data = write_table(folder / "data", load_diabetes(as_frame=True).frame.iloc[:220])
    return adapt("tabular_retrain", data, folder / "bundle", label_column="target", params={"method": "linear"})[1]


@pytest.mark.parametrize("method", ["boosting", "linear"])
def test_retraining_without_a_parent_learns_the_tables_own_columns(
    cancer: pd.DataFrame, tmp_path: Path, method: str
) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[:280])
    params = {"method": method, "iterations": 40}
    outcome, bundle, said = adapt("tabular_retrain", data, tmp_path / "bundle", label_column="diagnosis", params=params)
    assert value_of(outcome.child, "accuracy") > 0.9
    assert outcome.child[0].low < outcome.child[0].value <= outcome.child[0].high
    assert outcome.facts["parity"] < 1e-3
    assert bundle.manifest.parent is None
    assert bundle.manifest.task == "tabular-classification"
    assert len(bundle.manifest.features) == 30
    assert said[-1][0] == 1.0


def test_boosting_reports_a_loss_that_falls(cancer: pd.DataFrame, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[:280])
    params = {"method": "boosting", "iterations": 40}
    _, _, said = adapt("tabular_retrain", data, tmp_path / "bundle", label_column="diagnosis", params=params)
    curve = [metrics["loss"] for _, stage, metrics in said if stage == "training" and "loss" in metrics]
    assert len(curve) == 40
    assert curve[-1] < curve[0] / 4


def test_golden_samples_reproduce_and_are_nobodys_row(classifier: Bundle, cancer: pd.DataFrame) -> None:
    (golden,) = read_golden(classifier.path)
    again = load_graph(classifier.model_path).run(golden.inputs)
    for name, expected in golden.outputs.items():
        np.testing.assert_allclose(again[name], expected, rtol=1e-5)
    rows = cancer.drop(columns="diagnosis").to_numpy(np.float32)
    assert not (golden.inputs["features"][:, None, :] == rows[None]).all(axis=2).any()


def test_the_rows_learnt_from_are_remembered_by_hash_only(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path
) -> None:
    _, child, _ = adapt("tabular_calibrate", write_table(tmp_path / "d", cancer.iloc[280:]), tmp_path / "b",
                        parent=classifier)  # fmt: skip
    before, after = fingerprint.read_rows(classifier.path), fingerprint.read_rows(child.path)
    assert before is not None
    assert after is not None
    assert len(before) == 210  # three quarters of the vendor's 280 rows
    assert set(before) < set(after)
    rows = cancer.drop(columns="diagnosis").to_dict("records")
    assert 210 < fingerprint.trained_on(rows, child.manifest.features, after).sum() < len(rows)


def test_retraining_keeps_the_parents_schema_and_is_measured_beside_it(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path
) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    outcome, bundle, _ = adapt("tabular_retrain", data, tmp_path / "bundle", parent=classifier)
    assert [metric.name for metric in outcome.child] == [metric.name for metric in outcome.parent]
    assert bundle.manifest.parent is not None
    assert (bundle.manifest.parent.relation, bundle.manifest.parent.digest) == ("retrained", classifier.digest)
    assert bundle.manifest.features == classifier.manifest.features
    assert bundle.manifest.target == classifier.manifest.target


def test_other_headings_are_found_by_hand(classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path) -> None:
    renamed = cancer.iloc[280:].rename(columns={"mean radius": "半径", "diagnosis": "诊断"})
    data = write_table(tmp_path / "data", renamed)
    with pytest.raises(Refusal) as refused:
        adapt("tabular_calibrate", data, tmp_path / "one", parent=classifier, label_column="诊断")
    assert (refused.value.code, refused.value.field) == ("COLUMN_MISSING", "columns.mean radius")
    columns = {"mean radius": "半径"}
    adapt("tabular_calibrate", data, tmp_path / "two", parent=classifier, label_column="诊断", columns=columns)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_keeps_overkill_within_bounds_and_the_weights_as_they_are(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path, method: str
) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    params = {"method": method, "overkill": 0.02}
    outcome, bundle, _ = adapt("tabular_calibrate", data, tmp_path / "bundle", parent=classifier, params=params)
    assert bundle.manifest.parent is not None
    assert bundle.manifest.parent.relation == "calibrated"
    assert bundle.manifest.post[-1].threshold == outcome.facts["threshold"]
    assert value_of(outcome.child, "auc") > 0.95
    assert value_of(outcome.child, "overkill") <= 0.12
    assert value_of(outcome.child, "log_loss") < 0.5


def test_calibrating_a_shifted_classifier_mends_its_probabilities(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path
) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    outcome, _, _ = adapt("tabular_calibrate", data, tmp_path / "bundle", parent=classifier)
    assert value_of(outcome.child, "log_loss") <= value_of(outcome.parent, "log_loss") + 0.05


def test_a_calibrated_model_can_be_calibrated_again(classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    _, once, _ = adapt("tabular_calibrate", data, tmp_path / "once", parent=classifier)
    outcome, twice, _ = adapt("tabular_calibrate", data, tmp_path / "twice", parent=once)
    assert value_of(outcome.child, "auc") > 0.95
    assert twice.manifest.parent is not None


def test_several_classes_get_a_temperature(tmp_path: Path) -> None:
    iris = load_iris(as_frame=True)
    frame = iris.frame.copy()
    frame["species"] = np.array(iris.target_names)[frame.pop("target")]
    frame = frame.sample(frac=1, random_state=3)
    made = write_table(tmp_path / "a", frame.iloc[:75])
    _, parent, _ = adapt("tabular_retrain", made, tmp_path / "parent", label_column="species")
    outcome, bundle, _ = adapt("tabular_calibrate", write_table(tmp_path / "b", frame.iloc[75:]), tmp_path / "child",
                               parent=parent)  # fmt: skip
    assert outcome.facts["method"] == "temperature"
    assert bundle.manifest.post[0].op == "softmax"
    assert value_of(outcome.child, "accuracy") == value_of(outcome.parent, "accuracy")


def test_a_biased_value_is_corrected(regressor: Bundle, tmp_path: Path) -> None:
    frame = load_diabetes(as_frame=True).frame.iloc[220:].copy()
    frame["target"] = frame["target"] * 1.5 + 200  # this factory's instrument reads otherwise
    data = write_table(tmp_path / "data", frame)
    outcome, _, _ = adapt("tabular_calibrate", data, tmp_path / "bundle", parent=regressor)
    assert value_of(outcome.child, "rmse") < 0.5 * value_of(outcome.parent, "rmse")


def test_unknown_labels_are_refused_with_what_to_do(classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path) -> None:
    frame = cancer.iloc[280:].copy()
    frame.loc[frame.index[:20], "diagnosis"] = "unclear"
    data = write_table(tmp_path / "data", frame)
    with pytest.raises(Refusal) as refused:
        adapt("tabular_calibrate", data, tmp_path / "bundle", parent=classifier)
    assert refused.value.code == "LABELS_UNKNOWN"
    assert "unclear" in refused.value.en


def test_int8_of_a_linear_model_stays_within_its_bounds(regressor: Bundle, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", load_diabetes(as_frame=True).frame.iloc[220:])
    level = logging.getLogger().level
    outcome, bundle, _ = adapt("quantise", data, tmp_path / "bundle", parent=regressor)
    assert logging.getLogger().level == level  # what the process logs afterwards is nobody's to silence
    assert bundle.manifest.variation == "int8"
    assert outcome.facts["output_difference"] < 0.15
    assert [metric.name for metric in outcome.child] == [metric.name for metric in outcome.parent]


def test_int8_beyond_the_bound_is_refused(regressor: Bundle, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", load_diabetes(as_frame=True).frame.iloc[220:])
    with pytest.raises(Refusal) as refused:
        adapt("quantise", data, tmp_path / "bundle", parent=regressor, params={"max_difference": 1e-6})
    assert refused.value.code == "QUANTISATION_TOO_LOSSY"


def test_trees_have_nothing_to_quantise(classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    with pytest.raises(Refusal) as refused:
        adapt("quantise", data, tmp_path / "bundle", parent=classifier)
    assert refused.value.code == "NOTHING_TO_QUANTISE"


def test_a_filed_parent_warns_and_hands_its_number_down_over_reused_weights_only(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path
) -> None:
    filed = classifier.manifest.model_copy(update={"filing": Filing(filing_type="备案", filing_no="演示-不是备案号")})
    parent = Bundle(path=classifier.path, manifest=filed, digest=classifier.digest)
    data = write_table(tmp_path / "data", cancer.iloc[280:])
    _, calibrated, _ = adapt("tabular_calibrate", data, tmp_path / "one", parent=parent)
    outcome, retrained, _ = adapt("tabular_retrain", data, tmp_path / "two", parent=parent)
    assert calibrated.manifest.filing.base_model_filing_no == "演示-不是备案号"
    assert retrained.manifest.filing.base_model_filing_no is None
    assert [note.code for note in outcome.notes] == ["NO_WEIGHTS_REUSED"]


def test_a_cell_that_was_missing_in_training_may_be_missing_later(cancer: pd.DataFrame, tmp_path: Path) -> None:
    frame = cancer.iloc[:200].copy()
    frame.loc[frame.index[::5], "mean radius"] = np.nan
    frame["line"] = np.where(frame["mean area"] > 600, "甲线", "乙线")
    data = write_table(tmp_path / "data", frame)
    _, bundle, _ = adapt("tabular_retrain", data, tmp_path / "bundle", label_column="diagnosis")
    row = {**frame.iloc[0].drop(["diagnosis", "mean radius"]).to_dict(), "line": "丙线"}  # and a line never seen
    (answer,) = measure.answers(bundle, [row])
    assert answer["label"] in ("malignant", "benign")


def test_rows_without_what_the_parent_insists_on_are_left_out(
    classifier: Bundle, cancer: pd.DataFrame, tmp_path: Path
) -> None:
    frame = cancer.iloc[280:].copy()
    frame.loc[frame.index[:40], "mean radius"] = np.nan
    data = write_table(tmp_path / "data", frame)
    outcome, _, _ = adapt("tabular_calibrate", data, tmp_path / "bundle", parent=classifier)
    assert (outcome.facts["rows"], outcome.facts["dropped"]) == (len(frame) - 40, 40)
