"""Inputs to try a graph with where it brings no golden samples: the features' examples, else numbers that fit the
signature.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from model_store.manifest import Feature, Manifest, TensorSpec
from model_store.tensors import NUMPY_OF, Array, object_array

_FREE_DIMENSION = 8  # what a dynamic dimension other than the first becomes
_SERIES_SAMPLES = 64
MAX_ELEMENTS = 1 << 24


def synthetic_inputs(specs: list[TensorSpec], rows: int, seed: int = 0) -> dict[str, Array] | None:
    """Arrays that fit the signature, `rows` in the first dimension where it is free; None where one would be too
    large.
    """
    random = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for spec in specs:
        shape = [rows if index == 0 else _FREE_DIMENSION for index in range(len(spec.shape))]
        shape = [free if size < 0 else size for free, size in zip(shape, spec.shape, strict=True)]
        if math.prod(shape) > MAX_ELEMENTS:
            return None
        inputs[spec.name] = _array_of(spec, shape, random)
    return inputs


def _array_of(spec: TensorSpec, shape: list[int], random: np.random.Generator) -> Array:
    dtype = NUMPY_OF[spec.dtype]
    if spec.dtype == "BYTES":
        return object_array([b"text"] * math.prod(shape), shape)
    if spec.dtype == "BOOL":
        return np.asarray(random.integers(0, 2, shape), dtype=dtype)
    if dtype.kind in "iu":
        return np.ones(shape, dtype=dtype)  # token ids, lengths, axes: 1 is the least likely to be out of range
    return np.asarray(random.standard_normal(shape), dtype=np.float32).astype(dtype)


def example_row(manifest: Manifest) -> tuple[dict[str, Any], list[str]]:
    """One row of named features, and the names of those whose value had to be made up (no example in the manifest)."""
    row: dict[str, Any] = {}
    made_up: list[str] = []
    for feature in manifest.features:
        if feature.example is not None:
            row[feature.name] = feature.example
            continue
        row[feature.name] = _made_up(feature)
        made_up.append(feature.name)
    return row, made_up


def _made_up(feature: Feature) -> Any:
    if feature.default is not None:
        return feature.default
    if feature.kind == "category":
        return feature.categories[0] if feature.categories else ""
    if feature.kind == "text":
        return "设备异常, 主轴振动偏大 spindle vibration high"
    if feature.kind == "image":
        return grey_picture()
    if feature.kind == "series":
        return [math.sin(index / 3) for index in range(feature.length or _SERIES_SAMPLES)]
    low = 0.0 if feature.minimum is None else feature.minimum
    high = low + 2 if feature.maximum is None else feature.maximum
    middle = (low + high) / 2
    return round(middle) if feature.kind == "integer" else middle


def grey_picture(size: int = 64) -> bytes:
    """A PNG with a gradient and a bright spot, so that blur and brightness have something to change."""
    from PIL import Image

    ramp = np.linspace(40, 200, size, dtype=np.float64)
    pixels = np.add.outer(ramp, ramp) / 2
    pixels[size // 3 : size // 2, size // 3 : size // 2] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(stream, format="PNG")
    return stream.getvalue()
