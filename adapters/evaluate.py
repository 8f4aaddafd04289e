"""Metrics with bootstrap 95% intervals, computed one way everywhere: recipes, the shelf, cards.

The first metric of each list is the task's main one. Intervals: percentile bootstrap over rows (Efron, 1979), seeded,
so that parent and child, measured on the same rows with the same seed, are resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.manifest import Metric

RESAMPLES = 1000
MIN_ROWS_FOR_INTERVAL = 8
OVERKILL = 0.05  # share of good parts that an inspection station may refuse, at which the miss rate is read
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def with_interval(
    name: str, measure: Callable[[npt.NDArray[np.int64]], float], rows: int, seed: int, higher_is_better: bool = True
) -> Metric:
    """`measure(places)` on all rows, and the 2.5% and 97.5% quantiles of it on resampled rows."""
    value = measure(np.arange(rows))
    low = high = None
    if rows >= MIN_ROWS_FOR_INTERVAL:
        random = np.random.default_rng(seed)
        found = np.array([measure(random.integers(0, rows, rows)) for _ in range(RESAMPLES)])
        found = found[np.isfinite(found)]
        if len(found):
            low, high = (float(bound) for bound in np.quantile(found, (0.025, 0.975)))
    return Metric(name=name, value=value, low=low, high=high, rows=rows, higher_is_better=higher_is_better)


def auc(hits: Flags, scores: Floats) -> float:
    """Area under the ROC curve by ranks, ties at half; NaN where one side is empty."""
    positives, negatives = int(hits.sum()), int((~hits).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[hits].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def f1(actual: Flags, predicted: Flags) -> float:
    """2·TP / (2·TP + FP + FN); 0 where nothing is hit or said to be."""
    hit = int((actual & predicted).sum())
    total = int(actual.sum()) + int(predicted.sum())
    return 2 * hit / total if total else 0.0


def miss_rate_at_overkill(hits: Flags, scores: Floats, overkill: float = OVERKILL) -> float:
    """Share of the hits that pass when the threshold refuses at most `overkill` of the good rows; NaN without both.

    The threshold is the lowest score that keeps the overkill within bounds on these very rows.
    """
    good = np.sort(scores[~hits])[::-1]
    if not len(good) or not hits.any():
        return float("nan")
    threshold = good[min(int(overkill * len(good)), len(good) - 1)]
    return float((scores[hits] <= threshold).mean())


def _share(part: Flags, whole: Flags) -> float:
    """Of the rows in `whole`, the share in `part`; NaN where there are none."""
    count = int(whole.sum())
    return float((part & whole).sum() / count) if count else float("nan")


def classification_metrics(
    actual: Sequence[str],
    predicted: Sequence[str],
    probabilities: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    positive: str | None,
    seed: int,
) -> list[Metric]:
    """`probabilities` [N, K] in the order of `labels`. Two classes with a positive one: f1 first, with misses and
    overkill; otherwise macro_f1 first. accuracy and log_loss always."""
    index = {name: place for place, name in enumerate(sorted({*actual, *predicted, *labels}))}
    true, said = (np.array([index[name] for name in names]) for names in (actual, predicted))
    column = {name: place for place, name in enumerate(labels)}
    given = np.array(
        [probabilities[row, column[name]] if name in column else 0.0 for row, name in enumerate(actual)], np.float64
    )
    surprise = -np.log(np.clip(given, 1e-9, 1.0))
    rows = len(true)
    common = [
        with_interval("accuracy", lambda at: float((true[at] == said[at]).mean()), rows, seed),
        with_interval("log_loss", lambda at: float(surprise[at].mean()), rows, seed, higher_is_better=False),
    ]
    if positive is None or positive not in column:
        classes = np.unique(true)
        macro = with_interval("macro_f1", lambda at: _macro_f1(true[at], said[at], classes), rows, seed)
        return [macro, *common]
    hits, flagged = true == index[positive], said == index[positive]
    scores = np.asarray(probabilities[:, column[positive]], np.float64)
    return [*_hit_metrics(hits, flagged, scores, seed), *common]


def _macro_f1(true: npt.NDArray[Any], said: npt.NDArray[Any], classes: npt.NDArray[Any]) -> float:
    """Mean F1 over the classes that occur in these rows."""
    present = [name for name in classes if (true == name).any()]
    return float(np.mean([f1(true == name, said == name) for name in present]))


def _hit_metrics(hits: Flags, flagged: Flags, scores: Floats, seed: int) -> list[Metric]:
    """f1, auc, miss rate (faults passed) and overkill (good rows refused)."""
    rows = len(hits)
    found = [
        with_interval("f1", lambda at: f1(hits[at], flagged[at]), rows, seed),
        with_interval("auc", lambda at: auc(hits[at], scores[at]), rows, seed),
        with_interval("miss_rate", lambda at: _share(~flagged[at], hits[at]), rows, seed, higher_is_better=False),
        with_interval("overkill", lambda at: _share(flagged[at], ~hits[at]), rows, seed, higher_is_better=False),
        with_interval(
            f"miss_rate_at_{OVERKILL:.0%}_overkill",
            lambda at: miss_rate_at_overkill(hits[at], scores[at]),
            rows,
            seed,
            higher_is_better=False,
        ),
    ]
    return [metric for metric in found if np.isfinite(metric.value)]


def regression_metrics(actual: Floats, predicted: Floats, *, seed: int) -> list[Metric]:
    """rmse first, then mae and r2."""
    error = np.asarray(predicted, np.float64) - np.asarray(actual, np.float64)
    rows = len(error)

    def r2(at: npt.NDArray[np.int64]) -> float:
        spread = float(((actual[at] - actual[at].mean()) ** 2).sum())
        return 1 - float((error[at] ** 2).sum()) / spread if spread > 0 else float("nan")

    found = [
        with_interval("rmse", lambda at: float(np.sqrt((error[at] ** 2).mean())), rows, seed, higher_is_better=False),
        with_interval("mae", lambda at: float(np.abs(error[at]).mean()), rows, seed, higher_is_better=False),
        with_interval("r2", r2, rows, seed),
    ]
    return [metric for metric in found if np.isfinite(metric.value)]


def anomaly_metrics(odd: Flags, scores: Floats, flagged: Flags, *, seed: int) -> list[Metric]:
    """anomaly_auc first (where both sides occur), then f1, miss rate and overkill at the bundle's threshold."""
    found = _hit_metrics(odd, flagged, scores, seed)
    named = [metric.model_copy(update={"name": "anomaly_auc"}) if metric.name == "auc" else metric for metric in found]
    return sorted(named, key=lambda metric: metric.name != "anomaly_auc")
