"""Counters of one node: per version for `/v2/models/stats`, and all of them as Prometheus text for `/metrics`."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

# A caller's values can make a sound graph fail too; so rates are compared between versions, not taken by themselves.
BROKEN_CODES = frozenset({
    "MODEL_RUN_FAILED", "MODEL_LOAD_FAILED", "MODEL_OUT_OF_MEMORY", "BUNDLE_UNREADABLE", "INTERNAL_ERROR",
    "WORKER_OUT_OF_MEMORY", "WORKER_KILLED",
})  # fmt: skip
BUCKETS_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10_000.0)


class VersionStatistics:
    """Counts and nanoseconds of one version; successes and failures apart. Updated on the event loop only."""

    __slots__ = (
        "broken", "buckets", "compute_ns", "executions", "failed", "failed_ns", "label", "last_ms", "name", "queue_ns",
        "rows", "succeeded", "total_ns", "version",
    )  # fmt: skip

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version
        self.label = f"{name}@{version}"
        self.succeeded = self.failed = self.executions = self.rows = 0
        self.total_ns = self.failed_ns = self.queue_ns = self.compute_ns = 0
        self.last_ms = 0
        self.broken = 0  # of the failed, those whose graph could not be loaded or run
        self.buckets = [0] * (len(BUCKETS_MS) + 1)

    def success(self, rows: int, total_ms: float, queue_ms: float, compute_ms: float, at_ms: int) -> None:
        self.succeeded += 1
        self.executions += 1
        self.rows += rows
        self.total_ns += int(total_ms * 1e6)
        self.queue_ns += int(queue_ms * 1e6)
        self.compute_ns += int(compute_ms * 1e6)
        self.last_ms = at_ms
        self.buckets[bisect_left(BUCKETS_MS, total_ms)] += 1

    def joined(self, calls: int, rows: int, compute_ms: float, at_ms: int) -> None:
        """One run that several calls shared, all of them answered when it ended."""
        self.succeeded += calls
        self.executions += 1
        self.rows += rows
        self.total_ns += int(compute_ms * 1e6) * calls
        self.compute_ns += int(compute_ms * 1e6)
        self.last_ms = at_ms
        self.buckets[bisect_left(BUCKETS_MS, compute_ms)] += calls

    def failure(self, total_ms: float) -> None:
        self.failed += 1
        self.failed_ns += int(total_ms * 1e6)

    def count_broken(self, code: str) -> None:
        """A failed call was refused with this code; count it where the version is at fault rather than the call."""
        if code in BROKEN_CODES:
            self.broken += 1

    def as_triton(self) -> dict[str, Any]:
        """One entry of `model_stats`, in the statistics extension's own names."""
        ok = self.succeeded
        return {
            "name": self.name.replace("/", "--", 1),
            "version": str(self.version),
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": {"count": ok, "ns": self.total_ns},
                "fail": {"count": self.failed, "ns": self.failed_ns},
                "queue": {"count": ok, "ns": self.queue_ns},
                "compute_input": {"count": ok, "ns": 0},
                "compute_infer": {"count": ok, "ns": self.compute_ns},
                "compute_output": {"count": ok, "ns": 0},
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [],
        }


class Statistics:
    """Every version's statistics, and counters that belong to none."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self._versions: dict[tuple[str, int], VersionStatistics] = {}
        self.refusals: dict[str, int] = {}
        self.requests: dict[int, int] = {}

    def of(self, name: str, version: int) -> VersionStatistics:
        key = (name, version)
        found = self._versions.get(key)
        if found is None:
            found = self._versions[key] = VersionStatistics(name, version)
        return found

    def known(self, name: str, version: int) -> VersionStatistics | None:
        return self._versions.get((name, version))

    def failures(self) -> dict[str, int]:
        """Runs that failed since this node started, by model over all its versions."""
        failed: dict[str, int] = {}
        for (name, _), numbers in list(self._versions.items()):
            failed[name] = failed.get(name, 0) + numbers.failed
        return failed

    def refused(self, code: str) -> None:
        """Count a refusal by its code (a closed set, so the label is bounded)."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def answered(self, status: int) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1

    def prometheus(self, gauges: dict[str, float]) -> bytes:
        """Text exposition format 0.0.4. `gauges` are the node's present values, by metric name."""
        lines = [
            "# TYPE algomart_requests_total counter",
            *(f'algomart_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())),
            "# TYPE algomart_refusals_total counter",
            *(f'algomart_refusals_total{{code="{code}"}} {n}' for code, n in sorted(self.refusals.items())),
        ]
        for name, value in sorted(gauges.items()):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE {name} {kind}", f"{name} {value:g}"]
        lines += ["# TYPE algomart_inferences_total counter", "# TYPE algomart_inference_ms histogram"]
        for each in self._versions.values():
            labels = f'model="{each.name}",version="{each.version}"'
            lines.append(f'algomart_inferences_total{{{labels},outcome="ok"}} {each.succeeded}')
            lines.append(f'algomart_inferences_total{{{labels},outcome="failed"}} {each.failed}')
            lines.append(f"algomart_rows_total{{{labels}}} {each.rows}")
            below = 0
            for bound, count in zip(BUCKETS_MS, each.buckets, strict=False):
                below += count
                lines.append(f'algomart_inference_ms_bucket{{{labels},le="{bound:g}"}} {below}')
            lines.append(f'algomart_inference_ms_bucket{{{labels},le="+Inf"}} {each.succeeded}')
            lines.append(f"algomart_inference_ms_sum{{{labels}}} {each.total_ns / 1e6:.3f}")
            lines.append(f"algomart_inference_ms_count{{{labels}}} {each.succeeded}")
        return ("\n".join(lines) + "\n").encode()
