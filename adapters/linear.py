"""Linear models: trained with scikit-learn on standardised columns, written as a scaling and a Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from adapters import graphs

Floats = npt.NDArray[np.floating[Any]]
SAME = 1e-5  # a deviation below this share of the mean is rounding
DEAD = 1e-20  # … and below this it is nothing in any unit
FAINT = 1e-3  # … and beside its like, below this share of their deviation


def fit(x: Floats, wanted: Sequence[str] | Floats, seed: int, strength: float = 1.0, one_unit: bool = False) -> Any:
    """Logistic regression where `wanted` are labels, ridge where they are numbers; columns standardised first.

    `strength` is the inverse of the regularisation (scikit-learn's C; 1/alpha for ridge). `one_unit`: the columns are
    of one kind (an embedding), so that one which hardly varies beside the others is a dead one.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    # A column that varies only in float32's last digits would be blown up to full size, and differently by each
    # runtime; a dead neuron of MiniLM, at 1e-31, once got a weight of 4e30. Such a column has weight zero.
    least = np.maximum(SAME * np.abs(scaler.mean_), DEAD)
    if one_unit:
        least = np.maximum(least, FAINT * np.sqrt(np.mean(scaler.scale_[scaler.var_ > 0] ** 2)))
    scaler.scale_ = np.where((scaler.scale_ > least) & (scaler.var_ > 0), scaler.scale_, np.inf)
    standard = scaler.transform(x.astype(np.float64))
    if is_labels(wanted):
        head = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced", random_state=seed)
        return make_pipeline(scaler, head.fit(standard, list(wanted)))
    return make_pipeline(scaler, Ridge(alpha=1.0 / strength).fit(standard, wanted))


def is_labels(wanted: Sequence[str] | Floats) -> bool:
    return not isinstance(wanted, np.ndarray) or wanted.dtype.kind in "OU"


def predict(model: Any, x: Floats) -> Floats:
    """What the model itself answers: probabilities [N, K] or values [N, 1]."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(x.astype(np.float64)), np.float64)
    return np.asarray(model.predict(x.astype(np.float64)), np.float64).reshape(-1, 1)


def export(model: Any, tensor: str) -> onnx.ModelProto:
    """The fitted pipeline as ONNX: `tensor` [N, D] → "probabilities" [N, K] or "value" [N, 1]."""
    scaler, head = model[0], model[-1]
    weights, bias = np.atleast_2d(head.coef_).T, np.atleast_1d(head.intercept_)
    scaling = scaler.mean_, 1.0 / scaler.scale_
    if not hasattr(head, "classes_"):
        return graphs.linear_regressor(weights, float(bias[0]), tensor, scaling)
    if weights.shape[1] == 1:  # two classes: softmax over (0, z) is sigmoid(z)
        weights, bias = two_columns(weights, bias)
    return graphs.linear_classifier(weights, bias, tensor, scaling)


def head_weights(model: Any) -> tuple[Any, Any]:
    """(weights [D, K], bias [K]) with the scaling folded in, K at least 2 for classes and 1 for a value."""
    scaler, head = model[0], model[-1]
    weights, bias = folded(np.atleast_2d(head.coef_).T, np.atleast_1d(head.intercept_), scaler.mean_, scaler.scale_)
    if hasattr(head, "classes_") and weights.shape[1] == 1:  # two classes: softmax over (0, z) is sigmoid(z)
        return two_columns(weights, bias)
    return weights, bias


def two_columns(weights: Floats, bias: Floats) -> tuple[Any, Any]:
    """A single logit as two, the first of them zero."""
    zeros = np.zeros_like(weights)
    return np.concatenate([zeros, weights], axis=1), np.concatenate([np.zeros_like(bias), bias])


def folded(weights: Floats, bias: Floats, mean: Floats, scale: Floats) -> tuple[Any, Any]:
    """((x - mean) / scale) @ weights + bias as x @ weights' + bias', computed in float64."""
    scaled = np.asarray(weights, np.float64) / np.asarray(scale, np.float64)[:, None]
    shifted = np.asarray(bias, np.float64) - np.asarray(mean, np.float64) @ scaled
    return scaled.astype(np.float32), shifted.astype(np.float32)
