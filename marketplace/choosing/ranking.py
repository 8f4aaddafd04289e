"""Ranking candidates on one factory's samples: a metric each, and paired bootstrap intervals of the differences.

Every candidate is scored on the very same rows, so what matters is the interval of the *difference* to the best one,
resampled in pairs (Efron & Tibshirani, 1993, ch. 8): where it contains 0, the samples do not tell the two apart, and
the answer says "no clear winner" instead of inventing one. Pure functions; seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_ROWS = 20
SEED = 20250205  # the day the policy was issued: any fixed number would do
Array = npt.NDArray[Any]
Kind = Literal["classification", "regression", "anomaly"]
Score = Callable[[npt.NDArray[np.int64]], float]


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate's place. `tied`: the best one's lead over it is not certain at 95%."""

    key: str
    value: float
    low: float
    high: float
    behind_low: float
    behind_high: float
    tied: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    metric: str
    higher_is_better: bool
    rows: int
    standings: tuple[Standing, ...]
    clear_winner: bool


def metric_of(kind: Kind, labels: Sequence[str], positive: str | None) -> tuple[str, bool]:
    """The task's metric and whether more is better: rmse, f1 of the positive class, macro-F1, or anomaly AUC."""
    if kind == "regression":
        return "rmse", False
    if kind == "anomaly":
        return "auc", True
    return ("f1", True) if positive is not None and len(labels) == 2 else ("macro_f1", True)


def scorer(metric: str, actual: Array, predicted: Array, positive: str | None = None) -> Score:
    """`score(places) → float` for one candidate: the metric on the rows at `places` (with repeats)."""
    if metric == "rmse":
        squared = (predicted.astype(np.float64) - actual.astype(np.float64)) ** 2
        return lambda at: float(np.sqrt(squared[at].mean()))
    if metric == "auc":
        hits = actual.astype(bool)
        scores = predicted.astype(np.float64)
        return lambda at: auc(hits[at], scores[at])
    if metric == "f1":
        hit, said = actual == positive, predicted == positive
        return lambda at: _f1(hit[at], said[at])
    names = {name: place for place, name in enumerate(sorted({*actual.tolist(), *predicted.tolist()}))}
    true = np.array([names[name] for name in actual.tolist()])
    guess = np.array([names[name] for name in predicted.tolist()])
    return lambda at: _macro_f1(true[at], guess[at], len(names))


def rank(metric: str, higher_is_better: bool, scores: dict[str, Score], rows: int, seed: int = SEED) -> Ranking:
    """Order the candidates and say which of them the samples cannot tell from the best."""
    everything = np.arange(rows)
    random = np.random.default_rng(seed)
    draws = [random.integers(0, rows, rows) for _ in range(RESAMPLES)] if rows else []
    sign = 1.0 if higher_is_better else -1.0
    values = {key: score(everything) for key, score in scores.items()}
    resampled = {key: np.array([score(at) for at in draws]) for key, score in scores.items()}
    order = sorted(values, key=lambda key: (-sign * _or_worst(values[key], sign), key))
    if not order:
        return Ranking(metric, higher_is_better, rows, (), clear_winner=False)
    best = order[0]
    standings = []
    for key in order:
        low, high = _interval(resampled[key])
        behind_low, behind_high = _interval(sign * (resampled[best] - resampled[key]))
        standings.append(Standing(key, values[key], low, high, behind_low, behind_high, tied=behind_low <= 0))
    clear = rows >= MIN_ROWS and len(order) > 1 and not any(row.tied for row in standings[1:])
    return Ranking(metric, higher_is_better, rows, tuple(standings), clear_winner=clear)


def agreement(predictions: dict[str, Array], numeric: bool) -> dict[str, float]:
    """How far each candidate agrees with the others on unlabelled rows: share of equal answers, or correlation.

    Agreement is no accuracy: models that share a fault agree as well. It is shown as what it is.
    """
    found = {}
    for key, mine in predictions.items():
        others = [other for name, other in predictions.items() if name != key]
        if not others:
            continue
        found[key] = float(
            np.mean([_correlation(mine, other) if numeric else (mine == other).mean() for other in others])
        )
    return found


def auc(hits: Array, scores: Array) -> float:
    """Area under the ROC curve by ranks, ties at half; 0.5 where one side is empty (nothing was told apart)."""
    positives = int(hits.sum())
    negatives = len(hits) - positives
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[hits].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _f1(hit: Array, said: Array) -> float:
    total = int(hit.sum()) + int(said.sum())
    return 2 * int((hit & said).sum()) / total if total else 1.0


def _macro_f1(true: Array, guess: Array, classes: int) -> float:
    """Mean F1 over the classes that occur in these rows."""
    both = np.bincount(true[true == guess], minlength=classes)
    actual, said = np.bincount(true, minlength=classes), np.bincount(guess, minlength=classes)
    present = actual > 0
    return float((2 * both[present] / np.maximum(actual[present] + said[present], 1)).mean())


def _interval(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, (tail, 1 - tail))
    return float(low), float(high)


def _or_worst(value: float, sign: float) -> float:
    return value if np.isfinite(value) else -sign * float("inf")


def _correlation(one: Array, other: Array) -> float:
    if one.std() == 0 or other.std() == 0:
        return float(np.allclose(one, other))
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1])
