"""How far a model's answers move when its inputs move a little: noise, dropout; brightness and blur for pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model_store.errors import Refusal
from model_store.inspection.intervals import MIN_ROWS, wilson
from model_store.inspection.parity import take_rows
from model_store.manifest import Manifest
from model_store.processing.pipeline import Pipeline
from model_store.runtime import Graph
from model_store.step_specs import Normalise
from model_store.tensors import Array

NOISE_SHARE = 0.01  # of each column's standard deviation
DROPOUT_SHARE = 0.05
BRIGHTNESS = 0.1
MAX_ROWS = 64

Perturb = Callable[[Array], Array]


def measure_drift(
    graph: Graph, pipeline: Pipeline | None, manifest: Manifest, inputs: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """One measure a perturbation: the share of answers that flip (labels, anomalies), or the median relative change.

    `inputs`: float tensors with one row a sample. Inputs that are not floating point have no small change: [] then.
    """
    floats = [name for name, array in inputs.items() if array.dtype.kind == "f" and array.size]
    rows = min((array.shape[0] if array.ndim else 1) for array in inputs.values()) if inputs else 0
    if not floats or not rows:
        return []
    if all(array.ndim and array.shape[0] == rows for array in inputs.values()):
        inputs = take_rows(inputs, 0, min(rows, MAX_ROWS))
    base = graph.run(inputs)
    measures = []
    for name, title_zh, title_en, perturb in _perturbations(manifest, inputs[floats[0]].ndim):
        changed = {key: perturb(array) if key in floats else array for key, array in inputs.items()}
        try:
            moved = graph.run(changed)
            measures.append(_measure(name, title_zh, title_en, (base, inputs), (moved, changed), pipeline))
        except Refusal as refusal:
            measures.append({"name": name, "title_zh": title_zh, "title_en": title_en, "n": 0, "value": None,
                             "note_zh": refusal.zh, "note_en": refusal.en})  # fmt: skip
    return measures


def _perturbations(manifest: Manifest, rank: int) -> list[tuple[str, str, str, Perturb]]:
    picture = manifest.modality == "image" and rank == 4
    noise = ("drift_noise", "输入加 1% 噪声后的变化", "change under 1% input noise", add_noise)
    if not picture:
        dropout = ("drift_dropout", "5% 输入缺失后的变化", "change under 5% input dropout", drop_values)
        return [noise, dropout]
    mean, std = _normalisation(manifest)
    brighter: Perturb = lambda array: brighten(array, 1 + BRIGHTNESS, mean, std)  # noqa: E731
    darker: Perturb = lambda array: brighten(array, 1 - BRIGHTNESS, mean, std)  # noqa: E731
    return [
        noise,
        ("drift_brighter", "亮度 +10% 后的变化", "change when 10% brighter", brighter),
        ("drift_darker", "亮度 -10% 后的变化", "change when 10% darker", darker),
        ("drift_blur", "3×3 模糊后的变化", "change under 3×3 blur", blur),
    ]


def add_noise(array: Array) -> Array:
    """Gaussian noise of `NOISE_SHARE` of each column's spread over the rows (of its size, where there are few rows)."""
    random = np.random.default_rng(7)
    wide = array.astype(np.float64)
    scale = np.nanstd(wide, axis=0, keepdims=True) if array.ndim and array.shape[0] >= 8 else np.abs(wide)
    return np.asarray(wide + NOISE_SHARE * scale * random.standard_normal(array.shape)).astype(array.dtype)


def drop_values(array: Array) -> Array:
    """`DROPOUT_SHARE` of the values become their column's mean, as an imputing sensor gateway would send."""
    random = np.random.default_rng(11)
    mean = np.nanmean(array.astype(np.float64), axis=0, keepdims=True) if array.ndim else array
    return np.where(random.random(array.shape) < DROPOUT_SHARE, mean, array).astype(array.dtype)


def brighten(array: Array, factor: float, mean: Array, std: Array) -> Array:
    """[N, C, H, W] as if the picture had been brighter before it was normalised."""
    pixels = array.astype(np.float64) * std + mean
    return np.asarray((np.clip(pixels * factor, 0, 1) - mean) / std).astype(array.dtype)


def blur(array: Array) -> Array:
    """[N, C, H, W] averaged over 3×3 neighbourhoods, edges repeated."""
    padded = np.pad(array.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = array.shape[2:]
    total = sum(padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
    return np.asarray(total / 9).astype(array.dtype)


def _normalisation(manifest: Manifest) -> tuple[Array, Array]:
    for step in manifest.pre:
        if isinstance(step, Normalise):
            return np.array(step.mean).reshape(1, -1, 1, 1), np.array(step.std).reshape(1, -1, 1, 1)
    return np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1))


Ran = tuple[Mapping[str, Array], Mapping[str, Array]]  # outputs, and the inputs that gave them


def _measure(
    name: str, title_zh: str, title_en: str, base: Ran, moved: Ran, pipeline: Pipeline | None
) -> dict[str, Any]:
    measure: dict[str, Any] = {"name": name, "title_zh": title_zh, "title_en": title_en}
    if pipeline is not None:
        before, after = pipeline.decode(*base), pipeline.decode(*moved)
        key = next((key for key in ("label", "is_anomaly") if before and key in before[0]), None)
        if key is not None:
            flips = sum(a[key] != b[key] for a, b in zip(before, after, strict=True))
            low, high = wilson(flips, len(before))
            return measure | _few(len(before)) | {
                "n": len(before), "value": flips / len(before), "low": low, "high": high, "of": "flips",
            }  # fmt: skip
    changes = _relative_changes(base[0], moved[0])
    value = float(np.median(changes)) if changes.size else None
    p95 = float(np.quantile(changes, 0.95)) if changes.size else None
    return measure | _few(len(changes)) | {"n": len(changes), "value": value, "p95": p95, "of": "relative change"}


def _relative_changes(base: Mapping[str, Array], moved: Mapping[str, Array]) -> Array:
    """One number a row: ‖after - before‖ / ‖before‖ over the floating-point outputs."""
    changes = []
    for name, before in base.items():
        after = moved.get(name)
        if (
            after is None
            or before.dtype.kind != "f"
            or before.shape != after.shape
            or not before.size
            or not before.ndim
        ):
            continue
        flat = before.reshape(before.shape[0], -1).astype(np.float64)
        gap = after.reshape(after.shape[0], -1).astype(np.float64) - flat
        norm = np.linalg.norm(flat, axis=1)
        changes.append(np.linalg.norm(gap, axis=1) / np.maximum(norm, 1e-12))
    if not changes:
        return np.zeros(0)
    joined = np.concatenate(changes)
    return np.asarray(joined[np.isfinite(joined)])


def _few(n: int) -> dict[str, str]:
    if n >= MIN_ROWS:
        return {}
    return {"note_zh": "样本不足, 仅供参考", "note_en": "insufficient rows, indicative only"}
