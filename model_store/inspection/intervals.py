"""Small-sample statistics of the scorecard: a proportion, a mean, a quantile ratio, a line; each with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from model_store.tensors import Array

Z95 = 1.959964
MIN_ROWS = 30  # fewer rows: the interval says nothing, the scorecard reads "insufficient"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% interval of a proportion (E. B. Wilson, 1927); (0, 1) for no trials."""
    if n <= 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    statistic: Callable[[Array], float], n: int, *, seed: int = 0, rounds: int = 400
) -> tuple[float, float] | None:
    """95% percentile interval of `statistic(row numbers)` over resampled rows; None where no resample has a value."""
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, n, n)) for _ in range(rounds)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = np.quantile(np.array(finite), [0.025, 0.975])
    return float(low), float(high)


def fit_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(a, b) of y = a·n + b: Theil and Sen's median of slopes, which one slow run does not bend; neither is
    negative.
    """
    if len(points) < 2:
        return 0.0, max(points[0][1], 0.0) if points else 0.0
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x2 != x1]
    a = max(statistics.median(slopes), 0.0) if slopes else 0.0
    return a, max(statistics.median(y - a * x for x, y in points), 0.0)
