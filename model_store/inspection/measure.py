"""What a graph costs (load, memory, milliseconds a row) and how steady it is (p99/p50, errors, memory growth)."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_store.errors import Refusal
from model_store.inspection.intervals import bootstrap, fit_line, wilson
from model_store.inspection.parity import take_rows
from model_store.inspection.sandbox import private_bytes
from model_store.runtime import Graph
from model_store.tensors import Array

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_LONG_RUN_MS = 100.0
_MAX_RUNS = 2000


def time_runs(graph: Graph, inputs: Mapping[str, Array], budget_s: float, most: int) -> list[float]:
    """Milliseconds of up to `most` runs within the budget; at least one."""
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while not times or (time.perf_counter() < end and len(times) < most):
        start = time.perf_counter()
        graph.run(inputs)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def measure_cost(
    graph: Graph, inputs: Mapping[str, Array], rows: int | None, max_rows: int, budget_s: float
) -> tuple[float, float, list[dict[str, Any]]]:
    """(a_ms_per_row, b_ms, points): medians at growing batch sizes, fitted as a·n + b.

    `rows` None: the graph does not batch, and one run of `inputs` counts as one row, so a is 0.
    """
    sizes = [size for size in BATCH_SIZES if size <= max(1, max_rows)] if rows else [1]
    points: list[tuple[int, float]] = []
    measured: list[dict[str, Any]] = []
    for size in sizes:
        batch = take_rows(inputs, 0, size) if rows else inputs
        time_runs(graph, batch, 0.0, 1)  # the first run at a shape plans its memory
        times = time_runs(graph, batch, budget_s / len(sizes), 200)
        median = statistics.median(times)
        points.append((size, median))
        measured.append({"rows": size, "median_ms": round(median, 5), "n": len(times)})
        if median > _LONG_RUN_MS and len(points) >= 2:
            break
    a, b = fit_line(points)
    return a, b, measured


def measure_steadiness(graph: Graph, inputs: Mapping[str, Array], budget_s: float) -> list[dict[str, Any]]:
    """The soak: single-row latency p99/p50, error rate and growth of private memory over the same runs."""
    time_runs(graph, inputs, 0.0, 1)
    before = private_bytes()
    times: list[float] = []
    errors = 0
    end = time.perf_counter() + budget_s
    while len(times) + errors < 3 or (time.perf_counter() < end and len(times) + errors < _MAX_RUNS):
        start = time.perf_counter()
        try:
            graph.run(inputs)
            times.append((time.perf_counter() - start) * 1e3)
        except Refusal:
            errors += 1
    n = len(times) + errors
    low, high = wilson(errors, n)
    measures = [
        {"name": "soak_error_rate", "title_zh": "连续运行错误率", "title_en": "soak error rate", "n": n,
         "value": errors / n, "low": low, "high": high},
        {"name": "memory_growth_bytes", "title_zh": "内存增长 (字节)", "title_en": "memory growth (bytes)", "n": n,
         "value": max(0, private_bytes() - before)},
    ]  # fmt: skip
    return [*_latency(times), *measures]


def _latency(times: list[float]) -> list[dict[str, Any]]:
    import numpy as np

    if not times:
        return []
    array = np.array(times)
    p50, p99 = (float(value) for value in np.quantile(array, [0.5, 0.99]))
    interval = bootstrap(lambda rows: _ratio(array[rows]), len(times), rounds=100) if len(times) >= 100 else None
    note = {} if interval else {"note_zh": "次数不足, 无区间", "note_en": "too few runs for an interval"}
    return [
        {"name": "latency_p50_ms", "title_zh": "单行延迟 p50 (毫秒)", "title_en": "single-row latency p50 (ms)",
         "n": len(times), "value": p50},
        {"name": "latency_p99_over_p50", "title_zh": "延迟 p99/p50", "title_en": "latency p99/p50", "n": len(times),
         "value": p99 / p50 if p50 else 1.0, "low": interval[0] if interval else None,
         "high": interval[1] if interval else None, **note},
    ]  # fmt: skip


def _ratio(times: Array) -> float:
    import numpy as np

    p50, p99 = np.quantile(times, [0.5, 0.99])
    return float(p99 / p50) if p50 else 1.0


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name, under which a cost model is kept."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
