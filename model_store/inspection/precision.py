"""The precision half of the 两高 scorecard: on a sealed set where one fits, else the vendor's own figures, said to
be so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model_store.inspection.intervals import MIN_ROWS, bootstrap
from model_store.manifest import Manifest
from model_store.tensors import Array

OVERKILL = 0.05  # share of good parts that an inspection station may reject, at which the miss rate is read


def declared_precision(manifest: Manifest) -> dict[str, Any]:
    """供应商自测: the manifest's metrics as they stand; no mark is earned by them."""
    metrics = []
    for metric in manifest.metrics:
        bounded = metric.low is not None and metric.high is not None
        enough = metric.rows >= MIN_ROWS and bounded
        metrics.append(
            {
                "name": metric.name,
                "value": metric.value if math.isfinite(metric.value) else None,
                "low": metric.low,
                "high": metric.high,
                "n": metric.rows,
                "split": metric.split,
                "higher_is_better": metric.higher_is_better,
                "verdict": "vendor_tested" if enough else "insufficient",
                "note_zh": "" if enough else "样本不足或无区间",
                "note_en": "" if enough else "insufficient: too few rows or no interval",
            }
        )
    return {
        "basis": "vendor_tested" if metrics else "none",
        "basis_zh": "供应商自测" if metrics else "未测",
        "basis_en": "vendor-tested" if metrics else "not tested",
        "mark": False,
        "metrics": metrics,
    }


def sealed_precision(
    manifest: Manifest, name: str, answers: Sequence[dict[str, Any]], targets: Sequence[Any]
) -> dict[str, Any]:
    """Metrics of `answers` (what `Pipeline.decode` gave, in order) against the sealed targets, each with its
    interval.
    """
    n = len(targets)
    metrics = []
    for metric, higher, statistic in _statistics(manifest, answers, targets):
        value = statistic(np.arange(n))
        interval = bootstrap(statistic, n) if n >= MIN_ROWS else None
        enough = interval is not None
        metrics.append(
            {
                "name": metric,
                "value": value if math.isfinite(value) else None,
                "low": interval[0] if interval else None,
                "high": interval[1] if interval else None,
                "n": n,
                "split": "sealed",
                "higher_is_better": higher,
                "verdict": "measured" if enough else "insufficient",
                "note_zh": "" if enough else "样本不足",
                "note_en": "" if enough else "insufficient rows",
            }
        )
    enough = bool(metrics) and all(each["verdict"] == "measured" for each in metrics)
    return {
        "basis": "sealed" if enough else "insufficient",
        "basis_zh": f"封存测试集 {name}" if enough else "样本不足",
        "basis_en": f"sealed test set {name}" if enough else "insufficient",
        "sealed_set": name,
        "mark": enough,
        "metrics": metrics,
    }


Statistic = Callable[[Array], float]


def _statistics(
    manifest: Manifest, answers: Sequence[dict[str, Any]], targets: Sequence[Any]
) -> list[tuple[str, bool, Statistic]]:
    if answers and "label" in answers[0]:
        return _classification(manifest, answers, targets)
    if answers and "is_anomaly" in answers[0]:
        positive = manifest.target.positive if manifest.target else None
        truth = np.array([_is_positive(each, positive) for each in targets])
        scores = np.array([float(each["anomaly_score"]) for each in answers])
        return _detection(truth, scores)
    if answers and "value" in answers[0]:
        truth = np.array([float(each) for each in targets])
        gap = np.array([float(each["value"]) for each in answers]) - truth
        return [
            ("rmse", False, lambda rows: float(np.sqrt(np.mean(gap[rows] ** 2)))),
            ("mae", False, lambda rows: float(np.mean(np.abs(gap[rows])))),
            ("r2", True, lambda rows: _r2(truth[rows], gap[rows])),
        ]
    return []


def _classification(
    manifest: Manifest, answers: Sequence[dict[str, Any]], targets: Sequence[Any]
) -> list[tuple[str, bool, Statistic]]:
    alias = {other: label.name for label in manifest.labels for other in (label.name, *label.aliases)}
    truth = np.array([alias.get(str(each), str(each)) for each in targets])
    given = np.array([str(each["label"]) for each in answers])
    found: list[tuple[str, bool, Statistic]] = [
        ("accuracy", True, lambda rows: float(np.mean(truth[rows] == given[rows]))),
        ("macro_f1", True, lambda rows: _macro_f1(truth[rows], given[rows])),
    ]
    positive = manifest.target.positive if manifest.target else None
    if positive is not None and all(positive in (each.get("probabilities") or {}) for each in answers):
        scores = np.array([float(each["probabilities"][positive]) for each in answers])
        found += _detection(truth == positive, scores)
    return found


def _detection(truth: Array, scores: Array) -> list[tuple[str, bool, Statistic]]:
    return [
        ("auc", True, lambda rows: _auc(truth[rows], scores[rows])),
        (f"miss_rate_at_{OVERKILL:.0%}_overkill", False, lambda rows: _miss_rate(truth[rows], scores[rows])),
    ]


def _is_positive(target: Any, positive: str | None) -> bool:
    if positive is not None:
        return str(target) == positive
    return str(target).strip().lower() in ("1", "1.0", "true", "yes", "anomaly", "defect", "异常", "缺陷")


def _macro_f1(truth: Array, given: Array) -> float:
    scores = []
    for label in np.unique(truth):
        hit = np.sum((truth == label) & (given == label))
        scores.append(2 * hit / (np.sum(truth == label) + np.sum(given == label)))
    return float(np.mean(scores))


def _auc(truth: Array, scores: Array) -> float:
    """Area under the ROC curve by ranks, ties counted half (Mann and Whitney); NaN with one class only."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _miss_rate(truth: Array, scores: Array) -> float:
    """Share of faults missed at the threshold that rejects `OVERKILL` of the good parts."""
    good, bad = scores[~truth], scores[truth]
    if not good.size or not bad.size:
        return math.nan
    return float(np.mean(bad <= np.quantile(good, 1 - OVERKILL)))


def _r2(truth: Array, gap: Array) -> float:
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1 - float(np.sum(gap**2)) / spread if spread else math.nan
