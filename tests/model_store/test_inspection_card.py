"""The card, and the small statistics behind cost model and scorecard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.inspection.card import check_card
from model_store.inspection.intervals import bootstrap, fit_line, wilson
from model_store.inspection.parity import compare_output
from model_store.inspection.precision import _auc, _miss_rate
from model_store.inspection.report import Findings
from model_store.manifest import Manifest

COMPLETE = {
    "name": "acme/steel",
    "title_zh": "钢板缺陷",
    "title_en": "Steel faults",
    "summary_zh": "识别七类表面缺陷",
    "summary_en": "Seven kinds of surface faults",
    "licence": "Apache-2.0",
    "task": "tabular-classification",
    "modality": "tabular",
    "scenarios": ["缺陷检测"],
    "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 2]}],
    "features": [
        {"name": "a", "kind": "number", "title_zh": "面积", "title_en": "area", "unit": "mm2", "example": 1.0}
    ],
    "labels": [{"name": "ok", "title_zh": "合格", "title_en": "good"}],
    "data": [{"title": "UCI 198", "licence": "CC BY 4.0", "use": "trained"}],
}


def found(private: bool = False, **fields) -> dict[str, str]:
    findings = Findings()
    check_card(Manifest.model_validate(COMPLETE | fields), None, private, findings)
    return {item.code: item.severity for item in findings}


def test_a_complete_card_has_nothing_to_mend():
    assert found() == {}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"title_zh": " "}, "CARD_FIELD_MISSING"),
        ({"summary_en": ""}, "CARD_FIELD_MISSING"),
        ({"licence": ""}, "CARD_LICENCE_MISSING"),
        ({"scenarios": []}, "CARD_SCENARIO_MISSING"),
        ({"task": "tensor"}, "CARD_TASK_MISSING"),
        ({"features": []}, "CARD_FEATURES_MISSING"),
        ({"features": [{"name": "a", "kind": "number", "unit": "mm", "example": 1}]}, "CARD_FEATURE_UNTITLED"),
        ({"labels": []}, "CARD_LABELS_MISSING"),
        ({"data": []}, "CARD_DATA_MISSING"),
        ({"data": [{"title": "", "licence": "x", "use": "trained"}]}, "CARD_DATA_INCOMPLETE"),
        ({"parent": {"name": "nameless", "version": 1, "relation": "finetune"}}, "CARD_PARENT_INVALID"),
        ({"parent": {"name": "a/b", "version": 1, "relation": "quantized"}}, "CARD_RELATION_INCONSISTENT"),
        ({"filing": {"genai_service": "public"}}, "CARD_FILING_MISSING"),
        (
            {"filing": {"genai_service": "public", "filing_type": "登记", "filing_no": "GD-1"}},
            "CARD_FILING_BASE_MISSING",
        ),
        ({"filing": {"filing_no": "GD-1"}}, "CARD_FILING_TYPE_MISSING"),
    ],
)
def test_what_is_missing_is_an_error_for_a_public_version_and_advice_for_a_private_one(fields, code):
    assert found(**fields) == {code: "error"}
    assert found(private=True, **fields) == {code: "advice"}


def test_a_link_of_the_chain_stands_in_for_a_scenario():
    assert found(scenarios=[], links=["生产制造"]) == {}


def test_a_feature_without_unit_or_example_is_only_warned_of():
    bare = {"name": "a", "kind": "number", "title_zh": "面积", "title_en": "area"}
    assert found(features=[bare]) == {"CARD_FEATURE_UNITLESS": "warning", "CARD_FEATURE_NO_EXAMPLE": "warning"}


@given(hits=st.integers(0, 200), more=st.integers(0, 200))
def test_wilson_s_interval_holds_the_share_and_narrows_with_rows(hits, more):
    n = hits + more
    low, high = wilson(hits, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= hits / n <= high or hits / n == pytest.approx(low) or hits / n == pytest.approx(high)
        wide = wilson(hits * 10, n * 10)
        assert wide[1] - wide[0] <= high - low


def test_a_line_through_exact_points_is_found_in_spite_of_one_slow_run():
    points = [(n, 0.5 * n + 2) for n in (1, 2, 4, 8, 16, 32, 64)]
    assert fit_line(points) == pytest.approx((0.5, 2))
    points[3] = (8, 400.0)
    assert fit_line(points) == pytest.approx((0.5, 2))
    assert fit_line([(1, 3.0)]) == (0.0, 3.0)
    assert fit_line([]) == (0.0, 0.0)


def test_a_bootstrap_interval_surrounds_the_mean():
    values = np.arange(100.0)
    interval = bootstrap(lambda rows: float(values[rows].mean()), 100)
    assert interval is not None
    assert interval[0] < 49.5 < interval[1]
    assert bootstrap(lambda rows: float("nan"), 10) is None


def test_auc_counts_ties_half_and_miss_rate_is_read_at_fixed_overkill():
    truth = np.array([True, True, False, False])
    assert _auc(truth, np.array([4, 3, 2, 1.0])) == 1
    assert _auc(truth, np.array([1, 1, 1, 1.0])) == 0.5
    scores = np.concatenate([np.linspace(0, 1, 100), [0.5, 2.0]])
    faults = np.array([False] * 100 + [True, True])
    assert _miss_rate(faults, scores) == 0.5


@given(st.floats(allow_nan=True, width=32), st.floats(allow_nan=True, width=32))
def test_tolerance_is_that_of_numpy(a, b):
    want, got = np.array([a], np.float32), np.array([b], np.float32)
    with np.errstate(all="ignore"):
        expected = np.isclose(got.astype(float), want.astype(float), rtol=1e-3, atol=1e-5, equal_nan=True).all()
    assert compare_output("y", want, got, 1e-3, 1e-5).within == expected


def test_64_bit_integers_are_compared_without_rounding():
    want, got = np.array([2**63 + 1], np.uint64), np.array([2**63], np.uint64)
    assert not compare_output("y", want, got, 0, 0).within
    assert compare_output("y", want, want.copy(), 0, 0).within
