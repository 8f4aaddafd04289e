"""Post-processing: the graph's outputs → one result per row, by exactly the steps that the manifest lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model_store import step_specs as m
from model_store.errors import Unprocessable
from model_store.manifest import Target
from model_store.tensors import BFLOAT16, Array


class Decoding:
    """Tensors as they are transformed, and the results made of them."""

    def __init__(self, target: Target | None, outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
        self.target = target
        self.tensors: dict[str, Array] = dict(outputs)
        self.inputs = inputs
        self.results: list[dict[str, Any]] = []
        sizes = {len(array) for array in inputs.values() if array.ndim}
        self.count = sizes.pop() if len(sizes) == 1 else None  # rows that went in, where that is known

    def tensor(self, name: str) -> Array:
        found = self.tensors.get(name)
        if found is None:
            raise Unprocessable(
                "OUTPUT_MISSING",
                zh=f"模型没有输出“{name}”",
                en=f"the graph has no output {name!r}",
                remedy_zh="请让 manifest 的后处理与图的输出一致",
                remedy_en="make the manifest's post-processing name the graph's outputs",
                field=name,
            )
        if found.dtype.kind not in "fiub" and found.dtype != BFLOAT16:
            raise _misfit(name, "不是数值张量", "it holds no numbers")
        if found.ndim == 0 or (self.count is not None and len(found) != self.count):
            raise _misfit(
                name,
                f"形状 {list(found.shape)} 不是每行一个结果",
                f"its shape {list(found.shape)} is not one result a row",
            )
        return found

    def flat(self, name: str) -> Array:
        """[N] or [N, 1] → [N] float64."""
        tensor = self.tensor(name)
        if tensor.size != len(tensor):
            raise _misfit(
                name,
                f"形状 {list(tensor.shape)} 应为 [N] 或 [N, 1]",
                f"its shape {list(tensor.shape)} is not [N] or [N, 1]",
            )
        return tensor.reshape(len(tensor)).astype(np.float64)

    def merge(self, rows: list[dict[str, Any]]) -> None:
        if not self.results:
            self.results = [{} for _ in rows]
        for result, row in zip(self.results, rows, strict=True):
            result.update(row)


def take(work: Decoding, step: m.Take) -> None:
    tensor = work.tensor(step.tensor)
    if tensor.ndim != 2 or tensor.shape[1] < step.columns:
        raise _misfit(
            step.tensor,
            f"形状 {list(tensor.shape)} 不足 {step.columns} 列",
            f"its shape {list(tensor.shape)} has no {step.columns} columns",
        )
    work.tensors[step.tensor] = tensor[:, : step.columns]


def softmax(work: Decoding, step: m.Softmax) -> None:
    logits = work.tensor(step.tensor).astype(np.float64) / step.temperature
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    work.tensors[step.tensor] = grown / grown.sum(axis=-1, keepdims=True)


def sigmoid(work: Decoding, step: m.Sigmoid) -> None:
    scores = np.clip(step.a * work.tensor(step.tensor).astype(np.float64) + step.b, -500, 500)
    work.tensors[step.tensor] = 1 / (1 + np.exp(-scores))


def affine(work: Decoding, step: m.Affine) -> None:
    work.tensors[step.tensor] = work.tensor(step.tensor).astype(np.float64) * step.scale + step.offset


def clip(work: Decoding, step: m.Clip) -> None:
    work.tensors[step.tensor] = np.clip(work.tensor(step.tensor), step.low, step.high)


def isotonic(work: Decoding, step: m.Isotonic) -> None:
    work.tensors[step.tensor] = np.interp(work.tensor(step.tensor).astype(np.float64), step.x, step.y)


def classify(work: Decoding, step: m.Classify) -> None:
    tensor = work.tensor(step.tensor).astype(np.float64)
    tensor = tensor.reshape(len(tensor), -1)
    if tensor.shape[1] == 1 and len(step.labels) == 2:  # the positive one's probability alone
        place = step.labels.index(step.positive) if step.positive in step.labels else 1
        both = np.empty((len(tensor), 2))
        both[:, place], both[:, 1 - place] = tensor[:, 0], 1 - tensor[:, 0]
        tensor = both
    if tensor.shape[1] != len(step.labels):
        raise Unprocessable(
            "LABELS_COUNT",
            zh=f"输出“{step.tensor}”有 {tensor.shape[1]} 列, 标签有 {len(step.labels)} 个",
            en=f"output {step.tensor!r} has {tensor.shape[1]} columns for {len(step.labels)} labels",
            remedy_zh="请让 manifest 的标签与输出一致",
            remedy_en="make the manifest's labels fit the output",
            field=step.tensor,
        )
    chosen = tensor.argmax(axis=1)
    if step.threshold is not None and step.positive in step.labels and len(step.labels) == 2:
        place = step.labels.index(step.positive)
        chosen = np.where(tensor[:, place] >= step.threshold, place, 1 - place)
    work.merge(
        [
            {
                "label": step.labels[at],
                "score": float(row[at]),
                "probabilities": {name: float(value) for name, value in zip(step.labels, row, strict=True)},
            }
            for at, row in zip(chosen, tensor, strict=True)
        ]
    )


def value(work: Decoding, step: m.Value) -> None:
    unit = work.target.unit if work.target else None
    numbers = work.flat(step.tensor)
    if step.decimals is not None:
        numbers = np.round(numbers, step.decimals)
    work.merge([{"value": float(number)} | ({"unit": unit} if unit else {}) for number in numbers])


def anomaly(work: Decoding, step: m.Anomaly) -> None:
    work.merge(
        [
            {"anomaly_score": float(score), "is_anomaly": bool(score >= step.threshold), "threshold": step.threshold}
            for score in work.flat(step.tensor)
        ]
    )


def vector(work: Decoding, step: m.Vector) -> None:
    tensor = work.tensor(step.tensor).astype(np.float64)
    if step.mean_pool is not None and tensor.ndim == 3:
        mask = work.inputs.get(step.mean_pool)
        weights = np.ones(tensor.shape[:2]) if mask is None else mask.astype(np.float64)
        tensor = (tensor * weights[..., None]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)[:, None]
    tensor = tensor.reshape(len(tensor), -1)
    if step.normalise:
        tensor = tensor / np.maximum(np.linalg.norm(tensor, axis=1, keepdims=True), 1e-12)
    work.merge([{"embedding": [float(number) for number in row]} for row in tensor])


def _misfit(name: str, zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "OUTPUT_MISFIT",
        zh=f"模型输出“{name}”与后处理不符: {zh}",
        en=f"the graph's output {name!r} does not fit its post-processing: {en}",
        remedy_zh="请让 manifest 的后处理与图的输出一致",
        remedy_en="make the manifest's post-processing fit the graph's outputs",
        field=name,
    )


STEPS: dict[type[Any], Callable[[Decoding, Any], None]] = {
    m.Take: take, m.Softmax: softmax, m.Sigmoid: sigmoid, m.Affine: affine, m.Clip: clip, m.Isotonic: isotonic,
    m.Classify: classify, m.Value: value, m.Anomaly: anomaly, m.Vector: vector,
}  # fmt: skip
