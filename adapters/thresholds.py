"""Boosted trees decide the same in float32 as in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def floor_thresholds(estimator: Any) -> None:
    """Lower every split threshold of histogram boosting to the next float32 at or below it, in place.

    For a float32 x, `x <= t` and `x <= floor32(t)` are the same, so the original answers as before; but ONNX rounds t
    to the *nearest* float32, which may be above t, and a value just there would go down the other branch. Pipelines are
    searched; other estimators are left alone.
    """
    for part in [step for _, step in getattr(estimator, "steps", [("", estimator)])]:
        for stage in getattr(part, "_predictors", None) or []:
            for tree in stage:
                tree.nodes["num_threshold"] = floor32(tree.nodes["num_threshold"])


def floor32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest float32 at or below each value, as float64."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, lower, near).astype(np.float64)
