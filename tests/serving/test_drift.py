"""Inputs beside the training data: what lies outside is said at once, what moves is seen over many rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.manifest import FeatureReference, Manifest
from serving.drift import DriftBook, bins_of, stability_index
from tests.serving.parts import KEY, OTHER_KEY
from tests.serving.test_native import CLASSIFIER, market, passes

TRAINED = np.random.default_rng(5).normal(10, 2, 5000)
REFERENCE = {
    "power": {
        "kind": "number",
        "count": 5000,
        "mean": float(TRAINED.mean()),
        "std": float(TRAINED.std()),
        "minimum": float(TRAINED.min()),
        "maximum": float(TRAINED.max()),
        "quantiles": np.quantile(TRAINED, np.linspace(0, 1, 11)).tolist(),
    },
    "grade": {"kind": "category", "count": 5000, "frequencies": {"L": 0.8, "H": 0.2}},
}
DRIFT, USE = "/v1/drift/acme/watched", "/v1/use/acme/watched"


def watched(node: Any) -> None:
    node.add("acme/watched", passes(), manifest=CLASSIFIER | {"reference": REFERENCE})


def rows_of(values: np.ndarray, grades: str = "LLLLH") -> list[dict[str, Any]]:
    return [{"power": float(value), "grade": grades[place % 5]} for place, value in enumerate(values)]


async def test_a_value_that_was_never_trained_on_is_answered_and_said(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        watched(node)
        inside = (await client.post(USE, json={"inputs": {"power": 10.5, "grade": "L"}})).json()
        assert "outside_training" not in inside
        rows = rows_of(np.array([9.0, 40.0, 11.0, -3.0]))
        answer = (await client.post(USE, json={"inputs": rows})).json()
        assert len(answer["results"]) == 4
        reference = REFERENCE["power"]
        assert answer["outside_training"] == {
            "power": {
                "rows": 2,
                "first_row": 1,
                "value": 40.0,
                "low": reference["minimum"],
                "high": reference["maximum"],
            }
        }
        table = "power,grade\n9,L\n99,H\n"
        told = await client.post(USE, content=table, headers={"Content-Type": "text/csv"})
        assert json.loads(told.headers["x-outside-training"])["power"]["first_row"] == 1


async def test_drift_is_told_once_there_are_rows_enough_and_to_oneself_only(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    async with market(tmp_path) as (node, client):
        watched(node)
        await client.post(USE, json={"inputs": rows_of(random.normal(10, 2, 100))})
        found = (await client.get(DRIFT)).json()
        assert (found["model"], found["version"]) == ("acme/watched", 1)
        assert found["features"]["power"]["level"] == "too_few_rows"
        await client.post(USE, json={"inputs": rows_of(random.normal(10, 2, 400))})
        assert {each["level"] for each in (await client.get(DRIFT)).json()["features"].values()} == {"stable"}
        await client.post(USE, json={"inputs": rows_of(random.normal(14, 2, 1000), "HHHHL")})
        assert {each["level"] for each in (await client.get(DRIFT)).json()["features"].values()} == {"moved"}
        other = await client.get(DRIFT, headers={"Authorization": f"Bearer {OTHER_KEY}"})
        assert other.json()["features"] == {}
        assert (await client.get("/v1/drift/acme/nothing")).status_code == 404


async def test_what_is_long_past_no_longer_counts(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    async with market(tmp_path) as (node, client):
        watched(node)
        await client.post(USE, json={"inputs": rows_of(random.normal(30, 1, 300))})
        assert (await client.get(DRIFT)).json()["features"]["power"]["level"] == "moved"
        for _ in range(5):
            await client.post(USE, json={"inputs": rows_of(random.normal(10, 2, 1000))})
        assert (await client.get(DRIFT)).json()["features"]["power"]["level"] == "stable"


async def test_a_model_without_reference_statistics_tells_nothing(tmp_path: Path) -> None:
    async with market(tmp_path, KEY) as (_, client):
        answer = (await client.post("/v1/use/acme/grader", json={"inputs": {"power": 1e9, "grade": "L"}})).json()
        assert "outside_training" not in answer
        assert (await client.get("/v1/drift/acme/grader")).json()["features"] == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=11, max_size=400))
def test_the_bins_hold_as_much_of_the_training_data_as_they_say(values: list[float]) -> None:
    quantiles = np.quantile(values, np.linspace(0, 1, 11), method="inverted_cdf")
    edges, expected = bins_of(quantiles.tolist())
    assert expected.sum() == pytest.approx(1)
    assert (expected >= 0).all()
    seen = np.bincount(np.searchsorted(edges, values), minlength=len(expected)) / len(values)
    if len(set(values)) == len(values):
        assert np.abs(seen - expected).max() <= 2 / len(values) + 1e-9


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.lists(st.floats(0.01, 1), min_size=2, max_size=12))
def test_the_index_is_nought_for_equals_and_grows_either_way(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    p, q = np.array(one[:size]) / sum(one[:size]), np.array(other[:size]) / sum(other[:size])
    assert stability_index(p, p) == 0
    assert stability_index(p, q) >= 0
    assert stability_index(p, q) == pytest.approx(stability_index(q, p))


def test_cells_that_are_no_numbers_are_passed_over() -> None:
    reference = FeatureReference.model_validate(REFERENCE["power"])
    manifest = Manifest.model_construct(reference={"power": reference})
    book = DriftBook()
    cells = [None, "", "x", True, float("nan"), float("inf"), "10.5", 10]
    assert book.see("a/b", 1, "org", manifest, [{"power": cell} for cell in cells]) == []
    assert book.report("a/b", 1, "org")["features"]["power"]["rows"] == 2
