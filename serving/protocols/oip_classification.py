"""Triton's classification extension: an output as its highest values, `"value:index[:label]"`, instead of its numbers.

Values are written as C++'s `std::to_string` writes them: integers as they are, others with six decimals. Of equal
values the lower index comes first; NaN comes last. Labels are those of the manifest's `classify` step on that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from model_store.errors import BadInput
from model_store.manifest import Manifest, TensorSpec
from model_store.tensors import Array, object_array
from serving.errors.requests import request_field

MAX_CLASSIFICATIONS = 1 << 17  # strings of one answer; each costs a microsecond
_NO_VALUES = frozenset({"BYTES", "BOOL", "BF16"})


def is_batched(manifest: Manifest) -> bool:
    """The first dimension of every tensor is the batch: what Triton says as `max_batch_size` > 0."""
    tensors = [*manifest.inputs, *manifest.outputs]
    return manifest.batching.dynamic and all(spec.shape and spec.shape[0] == -1 for spec in tensors)


def check_classes(classes: Mapping[str, int], manifest: Manifest, inputs: Mapping[str, Array]) -> None:
    """Refuse before the run what could not be answered after it. Raises `BadInput` REQUEST_FIELD."""
    batched = is_batched(manifest)
    rows = max((len(array) for array in inputs.values() if array.ndim), default=1) if batched else 1
    for spec in manifest.outputs:
        wanted = classes.get(spec.name)
        if wanted is None:
            continue
        if spec.dtype in _NO_VALUES:
            raise _field(spec, f"{spec.dtype} 没有可排序的数值", f"cannot rank {spec.dtype}")
        if rows * _at_most(spec, wanted, batched) > MAX_CLASSIFICATIONS:
            limit = MAX_CLASSIFICATIONS
            raise _field(spec, f"一次最多 {limit} 个 (行数 × N)", f"asks for more than {limit} in all (rows times N)")


def classified(outputs: Mapping[str, Array], classes: Mapping[str, int], manifest: Manifest) -> dict[str, Array]:
    """The outputs, those named in `classes` as BYTES: [rows, N], or [N] of a model without a batch dimension.

    N is the smaller of what was asked for and what a row holds.
    """
    batched = is_batched(manifest)
    labels = {step.tensor: step.labels for step in manifest.post if step.op == "classify"}
    return {
        name: _strings(array, classes[name], labels.get(name, []), batched) if name in classes else array
        for name, array in outputs.items()
    }


def _strings(array: Array, count: int, labels: list[str], batched: bool) -> Array:
    rows = array.reshape(len(array), -1) if batched and array.ndim else array.reshape(1, -1)
    width = rows.shape[1]
    if len(labels) != width:
        labels = []
    best = _highest_first(rows)[:, :count]
    whole = rows.dtype.kind in "iu"
    items: list[bytes | str] = []
    for row, places in zip(rows.tolist(), best.tolist(), strict=True):
        for place in places:
            value = str(row[place]) if whole else f"{row[place]:f}"
            items.append((f"{value}:{place}:{labels[place]}" if labels else f"{value}:{place}").encode())
    shape = list(best.shape) if batched and array.ndim else [best.shape[1]]
    return object_array(items, shape)


def _highest_first(rows: Array) -> Array:
    keys = rows
    if rows.dtype.kind == "f":
        keys = np.where(np.isnan(rows), rows.dtype.type(-np.inf), rows)
    # A stable ascending order of the reversed row, read backwards: equal values keep their lower index first.
    backwards = np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1]
    places: Array = rows.shape[1] - 1 - backwards
    return places


def _at_most(spec: TensorSpec, wanted: int, batched: bool) -> int:
    dimensions = spec.shape[1:] if batched else spec.shape
    return min(wanted, prod(dimensions)) if all(size >= 0 for size in dimensions) else wanted


def _field(spec: TensorSpec, zh: str, en: str) -> BadInput:
    return request_field(f"outputs.{spec.name}.parameters.classification", zh, en)
