"""`/v2/models/stats`: what was run, in runs of how many rows, and where the time went."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.statistics import MAX_BATCH_SIZES, Statistics, VersionStatistics
from tests.serving.parts import FACTORY, OPERATOR, Node, double, rows, running_node


async def told(node: Node, selector: str | None = None, principal: Any = FACTORY) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await node.app.oip.about.statistics(principal, "acme--double", selector))[
        "model_stats"
    ]
    return found


def check_sums(entry: dict[str, Any]) -> None:
    """The table of batch sizes and the totals are the same runs."""
    batches, times = entry["batch_stats"], entry["inference_stats"]
    assert sum(each["compute_infer"]["count"] for each in batches) == entry["execution_count"]
    assert sum(each["compute_infer"]["count"] * each["batch_size"] for each in batches) == entry["inference_count"]
    for part in ("compute_input", "compute_infer", "compute_output"):
        assert sum(each[part]["ns"] for each in batches) == times[part]["ns"]
        assert times[part]["count"] == times["success"]["count"]
    assert times["compute_infer"]["ns"] > 0


async def test_runs_are_counted_by_their_rows(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double())
        for count in (1, 3, 3, 7):
            await node.dataplane.infer(FACTORY, served, {"x": rows(count)})
        (entry,) = await told(node)
    check_sums(entry)
    counts = {each["batch_size"]: each["compute_infer"]["count"] for each in entry["batch_stats"]}
    assert counts == {1: 1, 3: 2, 7: 1}
    assert (entry["inference_count"], entry["inference_stats"]["success"]["count"]) == (14, 4)


async def test_a_run_that_calls_share_is_one_execution(tmp_path: Path) -> None:
    """Under idempotency keys all calls queue; those that wait for the first one's model to load run together."""
    async with running_node(tmp_path, threads=1) as node:
        served = node.add("acme/double", double(64))
        inputs = [rows(2, 64, seed) for seed in range(40)]
        calls = [
            node.dataplane.infer(FACTORY, served, {"x": each}, idempotency_key=str(place), digest=str(place))
            for place, each in enumerate(inputs)
        ]
        for each, answer in zip(inputs, await asyncio.gather(*calls), strict=True):
            np.testing.assert_array_equal(answer.outputs["y"], 2 * each)
        (entry,) = await told(node)
    check_sums(entry)
    assert entry["inference_count"] == 80
    assert entry["execution_count"] < 40
    assert max(each["batch_size"] for each in entry["batch_stats"]) > 2
    assert entry["inference_stats"]["compute_input"]["ns"] > 0  # the rows were joined
    assert entry["inference_stats"]["compute_output"]["ns"] > 0  # and split again
    assert entry["inference_stats"]["queue"]["ns"] > 0


async def test_without_a_version_every_version_that_was_called_is_told(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        versions = [node.add("acme/double", double()) for _ in range(3)]
        for served in versions[:2]:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert [entry["version"] for entry in await told(node)] == ["1", "2", "3"]  # the latest, called or not
        assert [entry["version"] for entry in await told(node, "2")] == ["2"]
        assert [entry["inference_count"] for entry in await told(node, principal=OPERATOR)] == [1, 1, 0]


async def test_a_failed_call_is_no_execution(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double())
        with pytest.raises(Exception, match="TENSOR_SHAPE"):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1, 4)})
        (entry,) = await told(node)
    assert (entry["execution_count"], entry["batch_stats"]) == (0, [])
    assert entry["inference_stats"]["fail"]["count"] == 1


def test_what_callers_send_does_not_fill_the_table() -> None:
    statistics = VersionStatistics("acme/double", 1)
    for count in range(1, 3 * MAX_BATCH_SIZES):
        statistics.success(count, 1.0, 0.0, 1.0, 0)
    assert len(statistics.as_triton()["batch_stats"]) == MAX_BATCH_SIZES
    assert statistics.executions == 3 * MAX_BATCH_SIZES - 1


def test_metrics_are_whole_numbers_in_full_and_families_in_one_piece() -> None:
    statistics = Statistics()
    for name in ("acme/one", "acme/two"):
        statistics.of(name, 1).success(3, 1.5, 0.0, 1.5, 0)
    text = statistics.prometheus({"algomart_journal_records_total": 1_234_567, "algomart_up_seconds": 0.25}).decode()
    assert "algomart_journal_records_total 1234567\n" in text
    assert "algomart_up_seconds 0.25\n" in text
    families, current = [], ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            current = line.split()[2]
            families.append(current)
        else:
            assert line.startswith(current), line
    assert len(set(families)) == len(families)


def histogram(text: str, name: str) -> tuple[dict[str, int], float, int]:
    """Buckets by upper bound, sum and count of one version's histogram."""
    buckets, total, count = {}, 0.0, 0
    for line in text.splitlines():
        label, _, value = line.rpartition(" ")
        if label.startswith(f"{name}_bucket"):
            buckets[label.split('le="')[1].split('"')[0]] = int(value)
        elif label.startswith(f"{name}_sum"):
            total = float(value)
        elif label.startswith(f"{name}_count"):
            count = int(value)
    return buckets, total, count


async def test_waiting_running_and_rows_a_run_are_histograms_of_their_own(tmp_path: Path) -> None:
    """Forty queued calls of two rows, and three answered at once: calls wait, runs compute, and runs have rows."""
    async with running_node(tmp_path, threads=1) as node:
        served = node.add("acme/double", double(64))
        inputs = [rows(2, 64, seed) for seed in range(40)]
        calls = [
            node.dataplane.infer(FACTORY, served, {"x": each}, idempotency_key=str(place), digest=str(place))
            for place, each in enumerate(inputs)
        ]
        await asyncio.gather(*calls)
        for seed in range(3):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1, 64, seed)})
        (entry,) = await told(node)
        text = node.dataplane.statistics.prometheus({}).decode()
    for name, count in (("queue", 43), ("inference", 43), ("compute", entry["execution_count"])):
        buckets, total, told_count = histogram(text, f"algomart_{name}_ms")
        assert told_count == buckets["+Inf"] == count
        assert list(buckets.values()) == sorted(buckets.values())
        assert total > 0
    buckets, total, count = histogram(text, "algomart_batch_rows")
    assert (total, count) == (83.0, entry["execution_count"])
    assert buckets["1"] == sum(e["compute_infer"]["count"] for e in entry["batch_stats"] if e["batch_size"] == 1)
    assert text.count("# TYPE algomart_batch_rows histogram") == 1
