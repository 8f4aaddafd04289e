"""A version in the shadow of another: it gets the same inputs, nobody gets its answers, and nobody pays for them.

Runs behind the answers, with what the queues have left: where they are full, or enough shadow runs wait already, a call
is passed over. Outputs are compared row by row; a *decision* is the largest score of a row (or the value itself, where
the output is integers or text).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.ports import ServedVersion
from serving.runs import Job

if TYPE_CHECKING:
    from serving.dataplane import DataPlane

WAITING = 32  # shadow runs at once; what comes on top is passed over
DEADLINE_MS = 5_000.0
RELATIVE, ABSOLUTE = 1e-3, 1e-6
STOP_AFTER_RUNS, STOP_AT_FAILURES = 20, 0.2
KEPT = 1_000
PASSED_OVER = frozenset({"QUEUE_FULL", "WAIT_TOO_LONG", "DEADLINE_EXCEEDED", "MEMORY_FULL", "SHUTTING_DOWN"})


@dataclass(slots=True)
class Comparison:
    """What has come of shadowing one version by another, since this process began."""

    runs: int = 0
    failed: int = 0
    passed_over: int = 0
    rows: int = 0
    rows_moved: int = 0  # beyond rounding
    decisions_changed: int = 0
    difference_sum: float = 0.0  # of the rows' mean relative differences
    own_ms: float = 0.0
    shadow_ms: float = 0.0
    last_failure: str = ""

    def __add__(self, other: Comparison) -> Comparison:
        """What two processes have found."""
        summed = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name != "last_failure"
        }
        return Comparison(**summed, last_failure=self.last_failure or other.last_failure)

    @property
    def stopped(self) -> bool:
        """It fails too often to go on."""
        tried = self.runs + self.failed
        return tried >= STOP_AFTER_RUNS and self.failed >= STOP_AT_FAILURES * tried

    def as_dict(self) -> dict[str, Any]:
        runs, rows = max(self.runs, 1), max(self.rows, 1)
        return {
            "runs": self.runs,
            "failed": self.failed,
            "passed_over": self.passed_over,
            "rows": self.rows,
            "rows_moved_share": round(self.rows_moved / rows, 4),
            "decisions_changed_share": round(self.decisions_changed / rows, 4),
            "mean_relative_difference": round(self.difference_sum / rows, 6),
            "mean_ms": {"own": round(self.own_ms / runs, 3), "shadow": round(self.shadow_ms / runs, 3)},
            "stopped": self.stopped,
            "last_failure": self.last_failure,
        }


class ShadowBook:
    """The shadows of one node, by the pair of versions. Used on the event loop."""

    def __init__(self, dataplane: DataPlane) -> None:
        self._dataplane = dataplane
        self._found: OrderedDict[tuple[str, str], Comparison] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(
        self,
        served: ServedVersion,
        inputs: dict[str, Array],
        outputs: list[str] | None,
        results: dict[str, Array],
        rows: int,
        own_ms: float,
    ) -> None:
        """A call of `served`, which has a shadow, came to `results`. Returns at once."""
        shadow = served.shadow
        assert shadow is not None, "only a version with a shadow is offered"
        found = self._of(served, shadow)
        if found.stopped:
            return
        if len(self._tasks) >= WAITING:
            found.passed_over += 1
            return
        task = asyncio.get_running_loop().create_task(
            self._run(shadow, found, inputs, outputs, dict(results), rows, own_ms)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def found(self, version_id: str, shadow_id: str) -> Comparison | None:
        """What has been found so far of one version in the shadow of another; None: nothing has run."""
        return self._found.get((version_id, shadow_id))

    def report(self, served: ServedVersion) -> dict[str, Any] | None:
        """What has been found here so far; None where nothing has run in its shadow."""
        if served.shadow is None:
            return None
        found = self.found(served.version_id, served.shadow.version_id)
        return None if found is None else found.as_dict()

    async def close(self) -> None:
        """Drop what waits and what runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _of(self, served: ServedVersion, shadow: ServedVersion) -> Comparison:
        key = (served.version_id, shadow.version_id)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = Comparison()
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
        return found

    async def _run(
        self,
        shadow: ServedVersion,
        found: Comparison,
        inputs: dict[str, Array],
        outputs: list[str] | None,
        results: dict[str, Array],
        rows: int,
        own_ms: float,
    ) -> None:
        plane = self._dataplane
        started = time.perf_counter()
        job: Job | None = None
        try:
            resident = await plane.residency.acquire(shadow)
            try:
                queue = plane.queue if resident.graph is not None else plane.worker_queue
                job = queue.submit(resident, inputs, outputs, rows, DEADLINE_MS, shadow.owner, "low")
                ran = await job.done
            finally:
                plane.residency.release(resident)
        except Refusal as refusal:
            endless = refusal.code == "DEADLINE_EXCEEDED" and job is not None and job.started  # it ran all that time
            if refusal.code in PASSED_OVER and not endless:
                found.passed_over += 1
            else:
                found.failed += 1
                found.last_failure = refusal.code
            return
        took_ms = ran.compute_ms or (time.perf_counter() - started) * 1000
        compared = await plane.in_thread(compare, results, ran.outputs, rows)
        found.runs += 1
        found.rows += rows
        found.rows_moved += compared[0]
        found.decisions_changed += compared[1]
        found.difference_sum += compared[2]
        found.own_ms += own_ms
        found.shadow_ms += took_ms


def compare(one: Mapping[str, Array], other: Mapping[str, Array], rows: int) -> tuple[int, int, float]:
    """Rows whose values moved beyond rounding, rows whose decision changed, sum of the rows' mean relative differences.

    Outputs of other names, shapes or kinds: every row has changed.
    """
    if one.keys() != other.keys() or any(one[n].shape != other[n].shape for n in one):
        return rows, rows, float(rows)
    moved, changed, difference = np.zeros(rows, bool), np.zeros(rows, bool), np.zeros(rows)
    floats = sum(array.dtype.kind == "f" for array in one.values())
    for name, left in one.items():
        right = other[name]
        by_row = left.ndim > 0 and left.shape[0] == rows
        a, b = (each.reshape(rows, -1) if by_row else each.reshape(1, -1) for each in (left, right))
        if a.dtype.kind == "f" and b.dtype.kind == "f":
            near = np.isclose(a, b, RELATIVE, ABSOLUTE, equal_nan=True)
            with np.errstate(all="ignore"):
                relative = np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), ABSOLUTE)
            difference += _mean(relative) / floats
            moved |= ~near.all(axis=1)
            if a.shape[1] > 1:
                changed |= a.argmax(axis=1) != b.argmax(axis=1)
        else:
            same = (a == b).all(axis=1)
            moved |= ~same
            changed |= ~same
    return int(moved.sum()), int(changed.sum()), float(difference.sum())


def _mean(relative: Array) -> Array:
    """Of each row; what cannot be compared (NaN beside NaN) counts as equal."""
    clean = np.nan_to_num(relative, nan=0.0, posinf=1.0)
    return clean.mean(axis=1) if clean.shape[1] else np.zeros(len(clean))
