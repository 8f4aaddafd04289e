"""Counters of one node: per version for `/v2/models/stats`, and all of them as Prometheus text for `/metrics`."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A caller's values can make a sound graph fail too; so rates are compared between versions, not taken by themselves.
BROKEN_CODES = frozenset({
    "MODEL_RUN_FAILED", "MODEL_LOAD_FAILED", "MODEL_OUT_OF_MEMORY", "BUNDLE_UNREADABLE", "INTERNAL_ERROR",
    "WORKER_OUT_OF_MEMORY", "WORKER_KILLED",
})  # fmt: skip
MAX_BATCH_SIZES = 256  # of one version that are counted apart
BUCKETS_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10_000.0)

BUCKETS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
HISTOGRAMS = ("algomart_inference_ms", "algomart_queue_ms", "algomart_compute_ms", "algomart_batch_rows")


SUMMED = (
    "succeeded", "failed", "broken", "executions", "rows", "total_ns", "failed_ns", "queue_ns", "compute_ns",
    "input_ns", "output_ns",
)  # fmt: skip


class VersionStatistics:
    """Counts and nanoseconds of one version; successes and failures apart. Updated on the event loop only."""

    __slots__ = (
        "batches", "broken", "buckets", "compute_buckets", "compute_ns", "executions", "failed", "failed_ns",
        "input_ns", "label", "last_ms", "name", "output_ns", "queue_buckets", "queue_ns", "rows", "succeeded",
        "total_ns", "version",
    )  # fmt: skip

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version
        self.label = f"{name}@{version}"
        self.succeeded = self.failed = self.executions = self.rows = 0
        self.total_ns = self.failed_ns = self.queue_ns = self.compute_ns = 0
        self.input_ns = self.output_ns = 0  # joining the rows of a shared run, and splitting its outputs
        self.batches: dict[int, list[int]] = {}  # rows of a run → runs, ns of the graph, of joining, of splitting
        self.last_ms = 0
        self.broken = 0  # of the failed, those whose graph could not be loaded or run
        self.buckets = [0] * (len(BUCKETS_MS) + 1)
        self.queue_buckets = [0] * (len(BUCKETS_MS) + 1)  # of calls that were queued; the others did not wait
        self.compute_buckets = [0] * (len(BUCKETS_MS) + 1)  # of runs, not of calls

    def success(self, rows: int, total_ms: float, queue_ms: float, compute_ms: float, at_ms: int) -> None:
        """One call that had a run to itself."""
        compute_ns = int(compute_ms * 1e6)
        self.succeeded += 1
        self.executions += 1
        self.rows += rows
        self.total_ns += int(total_ms * 1e6)
        self.queue_ns += int(queue_ms * 1e6)
        self.compute_ns += compute_ns
        self.last_ms = at_ms
        self.buckets[bisect_left(BUCKETS_MS, total_ms)] += 1
        self.compute_buckets[bisect_left(BUCKETS_MS, compute_ms)] += 1
        batch = self.batches.get(rows) or self._new_batch(rows)
        batch[0] += 1
        batch[1] += compute_ns

    def joined(self, calls: int, rows: int, compute_ms: float, input_ms: float, at_ms: int) -> None:
        """One run that several calls shared, all of them answered when it ended."""
        self.succeeded += calls
        self.rows += rows
        self.total_ns += int(compute_ms * 1e6) * calls
        self.last_ms = at_ms
        self.buckets[bisect_left(BUCKETS_MS, compute_ms)] += calls
        self.executed(rows, compute_ms, input_ms, 0.0)

    def answered(self, rows: int, total_ms: float, queue_ms: float, at_ms: int) -> None:
        """One call of a queued run; the run itself is counted by `executed`, once for all its calls."""
        self.succeeded += 1
        self.rows += rows
        self.total_ns += int(total_ms * 1e6)
        self.queue_ns += int(queue_ms * 1e6)
        self.last_ms = at_ms
        self.buckets[bisect_left(BUCKETS_MS, total_ms)] += 1
        self.queue_buckets[bisect_left(BUCKETS_MS, queue_ms)] += 1

    def executed(self, rows: int, compute_ms: float, input_ms: float, output_ms: float) -> None:
        """One run of so many rows: of the graph, and around it."""
        spent = int(compute_ms * 1e6), int(input_ms * 1e6), int(output_ms * 1e6)
        self.executions += 1
        self.compute_ns += spent[0]
        self.input_ns += spent[1]
        self.output_ns += spent[2]
        self.compute_buckets[bisect_left(BUCKETS_MS, compute_ms)] += 1
        batch = self.batches.get(rows) or self._new_batch(rows)
        batch[0] += 1
        for place, ns in enumerate(spent, 1):
            batch[place] += ns

    def _new_batch(self, rows: int) -> list[int]:
        if len(self.batches) >= MAX_BATCH_SIZES:
            return [0, 0, 0, 0]  # beside the table: what callers send must not fill the memory
        made = self.batches[rows] = [0, 0, 0, 0]
        return made

    def failure(self, total_ms: float) -> None:
        self.failed += 1
        self.failed_ns += int(total_ms * 1e6)

    def count_broken(self, code: str) -> None:
        """A failed call was refused with this code; count it where the version is at fault rather than the call."""
        if code in BROKEN_CODES:
            self.broken += 1

    def told(self) -> dict[str, Any]:
        """What `add` takes: for other processes, as JSON."""
        counts = {name: getattr(self, name) for name in SUMMED}
        batches = [[rows, *figures] for rows, figures in list(self.batches.items())]
        return {"name": self.name, "version": self.version, "last_ms": self.last_ms, "batches": batches, **counts}

    def add(self, told: Mapping[str, Any]) -> None:
        """What another process has counted of this version, but for histograms, which are told by `/metrics`."""
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + told[name])
        self.last_ms = max(self.last_ms, told["last_ms"])
        for rows, *figures in told["batches"]:
            known = self.batches.get(rows) or self._new_batch(rows)
            for place, figure in enumerate(figures):
                known[place] += figure

    def histograms(self) -> dict[str, tuple[Sequence[float], list[int], float]]:
        """By family of `HISTOGRAMS`: upper bounds, counts (one more than bounds), sum."""
        queued = [*self.queue_buckets]
        queued[0] += self.succeeded - sum(queued)  # what was answered at once did not wait
        sizes = [0] * (len(BUCKETS_ROWS) + 1)
        for rows, (runs, *_) in list(self.batches.items()):
            sizes[bisect_left(BUCKETS_ROWS, rows)] += runs
        sizes[-1] += self.executions - sum(sizes)  # past `MAX_BATCH_SIZES`
        figures = (
            (BUCKETS_MS, self.buckets, self.total_ns / 1e6),
            (BUCKETS_MS, queued, self.queue_ns / 1e6),
            (BUCKETS_MS, self.compute_buckets, self.compute_ns / 1e6),
            (BUCKETS_ROWS, sizes, float(self.rows)),
        )
        return dict(zip(HISTOGRAMS, figures, strict=True))

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
                "compute_input": {"count": ok, "ns": self.input_ns},
                "compute_infer": {"count": ok, "ns": self.compute_ns},
                "compute_output": {"count": ok, "ns": self.output_ns},
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": {"count": runs, "ns": input_ns},
                    "compute_infer": {"count": runs, "ns": compute_ns},
                    "compute_output": {"count": runs, "ns": output_ns},
                }
                for rows, (runs, compute_ns, input_ns, output_ns) in sorted(self.batches.items())
            ],
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

    def called(self, name: str) -> list[int]:
        """The numbers of the versions of a model that were called since this node started."""
        return sorted(version for known, version in self._versions if known == name)

    def known(self, name: str, version: int) -> VersionStatistics | None:
        return self._versions.get((name, version))

    def told(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every version's `VersionStatistics.told`; with a name, those of that model."""
        return [each.told() for (known, _), each in list(self._versions.items()) if name in (None, known)]

    @classmethod
    def joined(cls, told: Iterable[Mapping[str, Any]]) -> Statistics:
        """What several processes have counted, as one."""
        made = cls()
        for each in told:
            made.of(each["name"], each["version"]).add(each)
        return made

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
            lines += [f"# TYPE {name} {kind}", f"{name} {_number(value)}"]
        calls, rows = [], []  # each family in one piece, as the format asks
        times: dict[str, list[str]] = {name: [] for name in HISTOGRAMS}
        for each in self._versions.values():
            labels = f'model="{each.name}",version="{each.version}"'
            calls.append(f'algomart_inferences_total{{{labels},outcome="ok"}} {each.succeeded}')
            calls.append(f'algomart_inferences_total{{{labels},outcome="failed"}} {each.failed}')
            rows.append(f"algomart_rows_total{{{labels}}} {each.rows}")
            for name, (bounds, counts, total) in each.histograms().items():
                times[name] += _histogram(name, labels, bounds, counts, total)
        lines += ["# TYPE algomart_inferences_total counter", *calls, "# TYPE algomart_rows_total counter", *rows]
        for name, found in times.items():
            lines += [f"# TYPE {name} histogram", *found]
        return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    """Whole numbers in full: six digits would let a counter past a million stand still."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _histogram(name: str, labels: str, bounds: Sequence[float], counts: list[int], total: float) -> list[str]:
    lines, below = [], 0
    for bound, count in zip(bounds, counts, strict=False):
        below += count
        lines.append(f'{name}_bucket{{{labels},le="{bound:g}"}} {below}')
    below += counts[-1]
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {below}')
    return [*lines, f"{name}_sum{{{labels}}} {total:.3f}", f"{name}_count{{{labels}}} {below}"]
