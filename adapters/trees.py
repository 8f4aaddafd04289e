"""Gradient boosting on columns: scikit-learn's histogram boosting, exported with skl2onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from adapters import linear

Floats = npt.NDArray[np.floating[Any]]
MIN_ROWS_FOR_EARLY_STOPPING = 300
ML_OPSET = 3
ODD_ROWS = 0.01  # rows that may fall on the other side of a split by float32's rounding


def fit(
    x: Floats,
    wanted: Sequence[str] | Floats,
    params: Mapping[str, Any],
    seed: int,
    report: Callable[..., None] = lambda *_, **__: None,
) -> Any:
    """Boosted trees; `params` iterations, learning_rate, leaves. Reports the training (and validation) loss curve.

    Each tree is grown in float32, as it will be run: thresholds between float32 neighbours are then never crossed.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    labels = linear.is_labels(wanted)
    stopping = len(x) >= MIN_ROWS_FOR_EARLY_STOPPING and (not labels or _least_class(wanted) >= 10)
    settings: dict[str, Any] = {
        "max_iter": int(params.get("iterations", 150)),
        "learning_rate": float(params.get("learning_rate", 0.1)),
        "max_leaf_nodes": int(params.get("leaves", 15)),
        "min_samples_leaf": max(2, min(20, len(x) // 20)),
        "early_stopping": stopping,
        "validation_fraction": 0.15,
        "random_state": seed,
        "scoring": "loss",
    }
    kind = HistGradientBoostingClassifier if labels else HistGradientBoostingRegressor
    model = kind(**settings).fit(x.astype(np.float32), wanted if not labels else np.array(list(wanted), object))
    _report_curve(model, x, wanted, labels, report)
    return model


def _least_class(wanted: Sequence[str] | Floats) -> int:
    return int(min(np.unique(np.array(list(wanted), object).astype(str), return_counts=True)[1]))


def _report_curve(model: Any, x: Floats, wanted: Any, labels: bool, report: Callable[..., None]) -> None:
    """The loss after each of at most 40 rounds, from the stages of the finished model."""
    rounds = model.n_iter_
    shown = set(np.unique(np.linspace(1, rounds, min(rounds, 40)).round().astype(int)).tolist())
    stages = model.staged_predict_proba(x) if labels else model.staged_predict(x)
    places = {name: place for place, name in enumerate(model.classes_)} if labels else {}
    index = np.array([places[name] for name in wanted]) if labels else None
    for stage, predicted in enumerate(stages, start=1):
        if stage not in shown:
            continue
        if index is not None:
            loss = float(-np.log(np.clip(predicted[np.arange(len(index)), index], 1e-9, 1.0)).mean())
        else:
            loss = float(np.mean((predicted - wanted) ** 2))
        curve = {"loss": loss, "round": float(stage)}
        if model.do_early_stopping_:
            curve["validation_loss"] = -float(model.validation_score_[stage])
        report(0.2 + 0.4 * stage / rounds, "training", **curve)


def export(model: Any, width: int, tensor: str) -> onnx.ModelProto:
    """The fitted model as ONNX: `tensor` [N, width] → "probabilities" [N, K] or "value" [N, 1]."""
    from adapters.export import sklearn_graph  # here, because it builds on this module

    return sklearn_graph(model, width, tensor)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give an output another name, in place."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for output in model.graph.output:
        if output.name == old:
            output.name = new
