"""Learning what is normal from embeddings: a whitened (Mahalanobis) distance, or a bank of remembered vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.samples import is_normal
from model_store.errors import BadInput, Unprocessable

Floats = npt.NDArray[np.floating[Any]]
MIN_NORMAL = 12


def normal_label(wanted: str, labels: Sequence[str]) -> str:
    """The label of good parts: as named, else the one that reads so; `BadInput` NORMAL_LABEL_NEEDED."""
    if wanted and wanted in labels:
        return wanted
    reading = [name for name in labels if is_normal(name)]
    if not wanted and len(reading) == 1:
        return reading[0]
    raise BadInput(
        "NORMAL_LABEL_NEEDED",
        zh=f"不知道哪个标签表示良品: {', '.join(labels[:20])}",
        en=f"which label means a good part is not known: {', '.join(labels[:20])}",
        remedy_zh="请在参数 normal 中给出良品的标签",
        remedy_en="name it in the parameter normal",
        field="params.normal",
    )


def check_normal(count: int) -> None:
    """`Unprocessable` NORMAL_ROWS_TOO_FEW where too few good images are left to learn from."""
    if count >= MIN_NORMAL:
        return
    raise Unprocessable(
        "NORMAL_ROWS_TOO_FEW",
        zh=f"训练部分只有 {count} 张良品图片, 至少需要 {MIN_NORMAL} 张",
        en=f"{count} good images to learn from; {MIN_NORMAL} are needed",
        remedy_zh="请补充良品图片",
        remedy_en="add images of good parts",
        field="sample_set_id",
    )


def whitening(vectors: Floats) -> tuple[Any, Any]:
    """(mean [D], whiten [D, D]) of Ledoit–Wolf's shrunk covariance: (x - mean) @ whiten has unit covariance."""
    from sklearn.covariance import ledoit_wolf

    mean = vectors.mean(axis=0).astype(np.float64)
    covariance, _ = ledoit_wolf(vectors.astype(np.float64))
    values, directions = np.linalg.eigh(covariance)
    scale = 1.0 / np.sqrt(np.maximum(values, max(float(values.max()) * 1e-6, 1e-12)))
    return mean.astype(np.float32), (directions * scale).astype(np.float32)


def whitened_distance(vectors: Floats, mean: Floats, whiten: Floats) -> npt.NDArray[np.float64]:
    """[N] root mean square of the whitened vectors."""
    white = (vectors.astype(np.float64) - mean) @ whiten.astype(np.float64)
    return np.asarray(np.sqrt((white**2).mean(axis=1)))


def memory_bank(vectors: Floats, size: int, seed: int) -> Any:
    """At most `size` vectors that cover the others best (greedy farthest point), from a random first one."""
    if len(vectors) <= size:
        return vectors.astype(np.float32)
    chosen = [int(np.random.default_rng(seed).integers(len(vectors)))]
    nearest = np.linalg.norm(vectors - vectors[chosen[0]], axis=1)
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return vectors[chosen].astype(np.float32)


def bank_distance(vectors: Floats, bank: Floats) -> npt.NDArray[np.float64]:
    """[N] distance to the nearest remembered vector."""
    wide, remembered = vectors.astype(np.float64), bank.astype(np.float64)
    squared = (wide**2).sum(1)[:, None] - 2 * wide @ remembered.T + (remembered**2).sum(1)[None, :]
    return np.asarray(np.sqrt(np.maximum(squared.min(axis=1), 0.0)))
