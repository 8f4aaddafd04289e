"""A version in the shadow of another: compared, never answered, never paid for, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from serving import shadow
from serving.ports import ServedVersion
from serving.shadow import STOP_AFTER_RUNS, compare
from tests.serving.parts import FACTORY, FLOAT, Node, double, endless, model, rows, running_node, until


def scaled(factor: float) -> Any:
    """y = factor · x."""
    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 3])],
        {"f": np.array(factor, np.float32)},
    )


def broken() -> Any:
    """Fails on every run: an index that lies beyond its table."""
    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("Gather", ["table", "i"], ["g"]), helper.make_node("Add", ["x", "g"], ["y"])],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 3])],
        {"table": np.zeros(2, np.float32), "i": np.array(7, np.int64)},
    )


def shadowed(node: Node, graph: Any) -> ServedVersion:
    """`acme/double@1` with version 2 in its shadow."""
    first = node.add("acme/double", double(), micro=37)
    return replace(first, shadow=node.add("acme/double", graph))


async def call(node: Node, served: ServedVersion, times: int = 1) -> None:
    for seed in range(times):
        x = rows(4, seed=seed)
        done = await node.dataplane.infer(FACTORY, served, {"x": x})
        np.testing.assert_allclose(done.outputs["y"], 2 * x, rtol=1e-6)


def found(node: Node, served: ServedVersion) -> dict[str, Any]:
    return node.dataplane.shadows.report(served) or {"runs": 0, "failed": 0}


async def test_a_shadow_that_answers_alike_is_found_alike_and_is_not_paid_for(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = shadowed(node, scaled(2))
        await call(node, served, 10)
        await until(lambda: found(node, served)["runs"] == 10)
        report = found(node, served)
        assert report["rows"] == 40
        assert (report["rows_moved_share"], report["decisions_changed_share"], report["failed"]) == (0, 0, 0)
        assert report["mean_ms"]["shadow"] > 0
        assert [record.model for record in node.usage()] == ["acme/double@1"] * 10


async def test_a_shadow_that_answers_otherwise_is_found_out(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = shadowed(node, scaled(-2))  # the largest of a row becomes the least
        await call(node, served, 5)
        await until(lambda: found(node, served)["runs"] == 5)
        report = found(node, served)
        assert (report["rows_moved_share"], report["decisions_changed_share"]) == (1, 1)
        assert report["mean_relative_difference"] == pytest.approx(2)


async def test_a_shadow_that_always_fails_is_stopped_and_nobody_else_notices(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = shadowed(node, broken())
        for wanted in range(1, STOP_AFTER_RUNS + 1):
            await call(node, served)
            await until(lambda wanted=wanted: found(node, served)["failed"] >= wanted)
        assert found(node, served)["stopped"]
        await call(node, served, 3)
        assert found(node, served)["failed"] == STOP_AFTER_RUNS
        assert found(node, served)["last_failure"] == "MODEL_RUN_FAILED"
        assert node.dataplane.statistics.of("acme/double", 1).broken == 0
        assert len(node.usage()) == STOP_AFTER_RUNS + 3


async def test_a_shadow_that_never_ends_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "DEADLINE_MS", 60.0)
    async with running_node(tmp_path) as node:
        served = shadowed(node, endless())
        for wanted in range(1, STOP_AFTER_RUNS + 1):
            await call(node, served)
            await until(lambda wanted=wanted: found(node, served)["failed"] >= wanted, give_up_s=5)
        assert found(node, served)["stopped"]
        assert found(node, served)["last_failure"] == "DEADLINE_EXCEEDED"


def test_the_difference_of_a_row_is_the_mean_over_its_outputs() -> None:
    one = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 1), np.float32)}
    other = {"a": np.full((2, 3), 2, np.float32), "b": np.full((2, 1), 2, np.float32)}
    assert compare(one, other, 2)[2] == pytest.approx(2 * 0.5)  # half of the larger, in every output of both rows


async def test_a_version_that_cannot_run_is_counted_as_broken_and_a_wrong_call_is_not(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        sound, rotten = node.add("acme/double", double()), node.add("acme/rotten", broken())
        for served, x in ((sound, rows(1, columns=5)), (rotten, rows(1)), (rotten, rows(2))):
            with pytest.raises(Exception, match=r"."):
                await node.dataplane.infer(FACTORY, served, {"x": x})
        assert node.dataplane.statistics.of("acme/double", 1).broken == 0
        assert node.dataplane.statistics.of("acme/rotten", 1).broken == 2


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_the_comparison_counts_rows(count: int, width: int, data: st.DataObject) -> None:
    number = st.floats(-1e3, 1e3, width=32)
    one = np.array(data.draw(st.lists(number, min_size=count * width, max_size=count * width)), np.float32)
    one = one.reshape(count, width)
    assert compare({"y": one}, {"y": one.copy()}, count) == (0, 0, 0.0)
    spoilt = data.draw(st.integers(0, count - 1))
    other = one.copy()
    other[spoilt] += 5e3
    moved, changed, difference = compare({"y": one}, {"y": other}, count)
    assert moved == 1
    assert changed <= 1
    assert 0 < difference <= 2
    assert compare({"y": one}, {"z": one}, count)[:2] == (count, count)
    assert compare({"y": one}, {"y": one[:, :-1]}, count)[:2] == (count, count)


def test_text_whole_numbers_and_nan_are_compared_too() -> None:
    text = np.array([b"a", b"b"], dtype=object)
    assert compare({"t": text}, {"t": np.array([b"a", b"c"], dtype=object)}, 2)[:2] == (1, 1)
    labels = np.array([3, 4])
    assert compare({"l": labels}, {"l": np.array([3, 5])}, 2)[:2] == (1, 1)
    gaps = np.array([[np.nan, 1.0]], np.float32)
    assert compare({"y": gaps}, {"y": gaps.copy()}, 1) == (0, 0, 0.0)
