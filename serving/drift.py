"""Whether what a model is asked still looks like what it was trained on, from the statistics that its bundle carries.

Two signals. *Outside*: this row has a number beyond the least or the greatest of the training data (or a category that
was never seen); the answer says so at once. *Drift*: over the last rows, how far a feature's distribution has moved,
as the population stability index Σ (p − q) · ln(p / q) over the deciles of the training data; below 0.1 is usually
called stable, from 0.25 on moved. Kept for each organisation apart: nobody learns of another's production.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from model_store.manifest import FeatureReference, Manifest
from model_store.tensors import Array

WINDOW_ROWS = 2_000  # each of two halves; what is older than both is forgotten
FEWEST_ROWS = 200  # below this an index says nothing
SHIFTED, MOVED = 0.1, 0.25
FLOOR = 1e-3  # of a share, so that an empty bin has a logarithm
WATCHES_KEPT = 2_000
FINDINGS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Outside:
    """One feature of a request with values that the training data did not have. `first_row` counts from 0."""

    feature: str
    rows: int
    first_row: int
    value: float | str
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        trained = {"low": self.low, "high": self.high} if self.low is not None else {}
        return {"rows": self.rows, "first_row": self.first_row, "value": self.value, **trained}


def numbers_of(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    """A column as float64 [rows]; NaN where a cell is no finite number."""
    values = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        cell = row.get(name)
        if cell is None or isinstance(cell, bool):
            continue
        try:
            values[index] = float(cell)
        except (TypeError, ValueError):
            continue
    values[~np.isfinite(values)] = np.nan
    return values


class FeatureWatch:
    """One feature's values over the last rows, counted by the bins of its training data."""

    def __init__(self, reference: FeatureReference) -> None:
        self.reference = reference
        if reference.kind == "number":
            self.edges, self.expected = bins_of(reference.quantiles)
            self.places: dict[str, int] = {}
        else:
            self.edges = np.empty(0)
            self.places = {name: place for place, name in enumerate(reference.frequencies)}
            self.expected = np.array([*reference.frequencies.values(), 0.0])
        self.older = np.zeros(len(self.expected), np.int64)
        self.newer = np.zeros(len(self.expected), np.int64)
        self.outside = self.rows = 0

    def see(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Outside | None:
        """Count these rows; what of them lies outside."""
        counts, found = self._numbers(name, rows) if self.reference.kind == "number" else self._words(name, rows)
        self.newer += counts
        self.rows += int(counts.sum())
        self.outside += found.rows if found else 0
        if self.newer.sum() >= WINDOW_ROWS:
            self.older, self.newer = self.newer, np.zeros_like(self.newer)
        return found

    def _numbers(self, name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Outside | None]:
        values = numbers_of(rows, name)
        known = values[~np.isnan(values)]
        counts = np.bincount(np.searchsorted(self.edges, known), minlength=len(self.expected))
        low, high = self.reference.minimum, self.reference.maximum
        if low is None or high is None:
            return counts, None
        beyond = np.flatnonzero((values < low) | (values > high))
        if not len(beyond):
            return counts, None
        first = int(beyond[0])
        return counts, Outside(name, len(beyond), first, float(values[first]), low, high)

    def _words(self, name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Outside | None]:
        counts = np.zeros(len(self.expected), np.int64)
        unseen: list[tuple[int, str]] = []
        for index, row in enumerate(rows):
            cell = row.get(name)
            if cell is None:
                continue
            place = self.places.get(str(cell))
            if place is None:
                unseen.append((index, str(cell)[:120]))
            counts[-1 if place is None else place] += 1
        return counts, Outside(name, len(unseen), *unseen[0]) if unseen else None

    def counts(self) -> FeatureCounts:
        """Of the last rows, and of all since the watch began."""
        seen = [int(count) for count in self.older + self.newer]
        return FeatureCounts(self.rows, self.outside, [float(share) for share in self.expected], seen)


class FeatureCounts(msgspec.Struct):
    """One feature's rows as counted; of several processes they are added up. Bins as in `FeatureWatch`."""

    rows: int
    outside: int
    expected: list[float]
    seen: list[int]

    def __add__(self, other: FeatureCounts) -> FeatureCounts:
        if len(other.seen) != len(self.seen):
            return self  # of another bundle: cannot be, a version has one
        seen = [one + two for one, two in zip(self.seen, other.seen, strict=True)]
        return FeatureCounts(self.rows + other.rows, self.outside + other.outside, self.expected, seen)

    def index(self) -> float | None:
        """The population stability index of the last rows; None below 200 of them."""
        total = sum(self.seen)
        if total < FEWEST_ROWS:
            return None
        return stability_index(np.asarray(self.seen) / total, np.asarray(self.expected))

    def as_dict(self) -> dict[str, Any]:
        index = self.index()
        if index is None:
            level = "too_few_rows"
        else:
            level = "stable" if index < SHIFTED else "shifted" if index < MOVED else "moved"
        return {
            "rows": self.rows,
            "outside": self.outside,
            "index": None if index is None else round(index, 4),
            "level": level,
            "expected": [round(share, 4) for share in self.expected],
            "seen": self.seen,
        }


def bins_of(quantiles: Sequence[float]) -> tuple[Array, Array]:
    """Inner edges and expected shares of the bins between deciles; deciles that coincide make one bin of their sum."""
    inner = np.asarray(quantiles[1:-1], np.float64)
    if not len(inner):
        return np.empty(0), np.ones(1)
    edges, last = np.unique(inner[::-1], return_index=True)
    below = (len(inner) - last) / (len(inner) + 1)  # share of the training data up to each edge
    return edges, np.diff(below, prepend=0.0, append=1.0)


def stability_index(seen: Array, expected: Array) -> float:
    """Σ (p − q) · ln(p / q) over bins, shares below 0.001 taken as that."""
    p, q = np.maximum(seen, FLOOR), np.maximum(expected, FLOOR)
    return float(((p - q) * np.log(p / q)).sum())


@dataclass(slots=True)
class Watch:
    """One version as one organisation calls it."""

    features: dict[str, FeatureWatch]
    since_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class WatchCounts(msgspec.Struct):
    """What one process has counted of one organisation's calls of a version. `since_ms` 0: nothing."""

    since_ms: int = 0
    features: dict[str, FeatureCounts] = {}


def drift_report(counted: Iterable[WatchCounts]) -> dict[str, Any]:
    """What several processes have counted, as `DriftBook.report` answers it."""
    found = [each for each in counted if each.since_ms]
    features: dict[str, FeatureCounts] = {}
    for each in found:
        for name, counts in each.features.items():
            features[name] = features[name] + counts if name in features else counts
    since = min((each.since_ms for each in found), default=None)
    return {"since_ms": since, "features": {name: counts.as_dict() for name, counts in features.items()}}


class DriftBook:
    """The watches of one node, by version and organisation; the longest unused is forgotten. From any thread."""

    def __init__(self) -> None:
        self._watches: OrderedDict[tuple[str, int, str], Watch] = OrderedDict()
        self._lock = threading.Lock()
        self.rows_outside = 0

    def see(
        self, name: str, version: int, organisation: str, manifest: Manifest, rows: Sequence[Mapping[str, Any]]
    ) -> list[Outside]:
        """Count the rows of one answered request; the features with values outside the training data."""
        if not manifest.reference:
            return []
        with self._lock:
            watch = self._watch((name, version, organisation), manifest)
            found = [outside for name, each in watch.features.items() if (outside := each.see(name, rows)) is not None]
            self.rows_outside += max((each.rows for each in found), default=0)
        return found

    def counts(self, name: str, version: int, organisation: str) -> WatchCounts:
        """What was counted of one organisation's own calls; nothing where it made none."""
        with self._lock:
            watch = self._watches.get((name, version, organisation))
            if watch is None:
                return WatchCounts()
            return WatchCounts(watch.since_ms, {n: each.counts() for n, each in watch.features.items()})

    def report(self, name: str, version: int, organisation: str) -> dict[str, Any]:
        """`{"since_ms", "features": {name: {rows, outside, index, level, expected, seen}}}` of one's own calls here."""
        return drift_report([self.counts(name, version, organisation)])

    def _watch(self, key: tuple[str, int, str], manifest: Manifest) -> Watch:
        watch = self._watches.get(key)
        if watch is None:
            features = {
                name: FeatureWatch(reference)
                for name, reference in manifest.reference.items()
                if (reference.kind == "number" and len(reference.quantiles) > 2) or reference.frequencies
            }
            watch = self._watches[key] = Watch(features)
            while len(self._watches) > WATCHES_KEPT:
                self._watches.popitem(last=False)
        self._watches.move_to_end(key)
        return watch


def shown(found: Sequence[Outside]) -> dict[str, dict[str, Any]]:
    """As an answer carries it, the most rows first."""
    ordered = sorted(found, key=lambda each: (-each.rows, each.feature))
    return {each.feature: each.as_dict() for each in ordered[:FINDINGS_SHOWN]}
