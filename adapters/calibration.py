"""Fitting what calibration appends: Platt, isotonic and temperature for classes, affine and isotonic for values, and a
threshold that keeps overkill (good parts refused) below a bound, whatever that costs in misses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MAX_KNOTS = 64


def fit_platt(logits: Floats, hits: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(a, b) of sigmoid(a·logit + b) with Platt's smoothed targets. Platt, "Probabilistic outputs for SVMs" (1999)."""
    from sklearn.linear_model import LogisticRegression

    positives, negatives = int(hits.sum()), int((~hits).sum())
    target = np.where(hits, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    doubled = np.concatenate([logits, logits]).reshape(-1, 1)
    classes = np.concatenate([np.ones(len(logits)), np.zeros(len(logits))])
    weights = np.concatenate([target, 1 - target])
    model = LogisticRegression(C=1e4, max_iter=1000).fit(doubled, classes, sample_weight=weights)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def fit_isotonic(x: Floats, y: Floats, low: float | None = None, high: float | None = None) -> tuple[Floats, Floats]:
    """Knots of the best non-decreasing map from `x` to `y`, at most `MAX_KNOTS` of them, x strictly increasing."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip").fit(x, y)
    knots_x, first = np.unique(np.asarray(model.X_thresholds_, np.float64), return_index=True)
    knots_y = np.maximum.accumulate(np.asarray(model.y_thresholds_, np.float64)[first])
    if len(knots_x) > MAX_KNOTS:
        kept = np.unique(np.linspace(0, len(knots_x) - 1, MAX_KNOTS).round().astype(int))
        knots_x, knots_y = knots_x[kept], knots_y[kept]
    return knots_x, knots_y


def fit_temperature(logits: Floats, label_ids: npt.NDArray[np.int64]) -> float:
    """The temperature T ∈ [0.05, 20] of softmax(logits / T) with the least log loss. Guo et al. (2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scaled).sum(axis=1))
        return float((log_sum - scaled[np.arange(len(scaled)), label_ids]).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(best.x))


def fit_affine(predicted: Floats, actual: Floats) -> tuple[float, float]:
    """(scale, offset) with the least squared error; only an offset where the predictions hardly vary."""
    if float(np.std(predicted)) < 1e-9:
        return 1.0, float(np.mean(actual - predicted))
    scale, offset = np.polyfit(predicted, actual, 1)
    return float(scale), float(offset)


def threshold_at_overkill(normal_scores: Floats, overkill: float) -> float:
    """The least threshold at which at most `overkill` of the normal rows score at or above it."""
    ordered = np.sort(normal_scores)[::-1]
    allowed = int(np.floor(overkill * len(ordered)))
    if allowed >= len(ordered):
        return float(ordered[-1])
    # Half-way to the next score above where there is one: the bound must not hang on the last bit of a float.
    above = ordered[allowed - 1] if allowed > 0 else ordered[0] + max(1e-6, 1e-3 * float(np.std(ordered)))
    if above == ordered[allowed]:
        return float(np.nextafter(ordered[allowed], np.inf))
    return float((above + ordered[allowed]) / 2)
