"""Pre-processing: rows of named features → the graph's tensors, by exactly the steps that the manifest lists."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from model_store import manifest as m
from model_store.errors import BadInput
from model_store.tensors import NUMPY_OF, Array, object_array

MAX_IMAGE_PIXELS = 50_000_000
_WORD = re.compile(r"\w+", re.UNICODE)


class Encoding:
    """The work table of one call: cells by feature (columns of the rows) and the tensors made so far."""

    def __init__(self, features: Mapping[str, m.Feature], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        self.features = features
        self.rows = rows
        self.folder = folder
        self.cells: dict[str, list[Any]] = {}
        self.tensors: dict[str, Array] = {}
        for name, feature in features.items():
            self.cells[name] = [self._cell(feature, row.get(name), place) for place, row in enumerate(rows)]

    def _cell(self, feature: m.Feature, cell: Any, place: int) -> Any:
        """A present value, the default, None for an optional one; FEATURE_MISSING for a required one."""
        if cell is not None and cell != "":
            return cell
        if feature.default is not None:
            return feature.default
        if feature.kind == "text" and cell == "":
            return ""
        if not feature.required:
            return None
        raise BadInput(
            "FEATURE_MISSING",
            zh=f"第 {place + 1} 行缺少“{feature.name}”({feature.title_zh or feature.name})",
            en=f"row {place + 1}: {feature.name!r} ({feature.title_en or feature.name}) is missing",
            remedy_zh=f"该模型需要: {', '.join(list(self.features)[:30])}",
            remedy_en=f"the model needs: {', '.join(list(self.features)[:30])}",
            field=feature.name,
        )

    def number(self, feature: m.Feature, cell: Any, place: int) -> float:
        """A finite number; None becomes NaN (for `impute`). FEATURE_NOT_NUMBER otherwise."""
        if cell is None:
            return math.nan
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if math.isfinite(value):
            return value
        raise BadInput(
            "FEATURE_NOT_NUMBER",
            zh=f"第 {place + 1} 行“{feature.name}”的值“{str(cell)[:40]}”不是有限的数字",
            en=f"row {place + 1}: {feature.name!r} is {str(cell)[:40]!r}, not a finite number",
            remedy_zh=f"请填写数字{f' (单位 {feature.unit})' if feature.unit else ''}",
            remedy_en=f"give a number{f' in {feature.unit}' if feature.unit else ''}",
            field=feature.name,
        )

    def texts(self, name: str) -> list[str]:
        return ["" if cell is None else str(cell) for cell in self.cells[name]]

    def series(self, name: str) -> list[Array]:
        """Each cell as a float32 vector: a list of numbers, or text of numbers separated by commas or spaces."""
        feature = self.features[name]
        found = []
        for place, cell in enumerate(self.cells[name]):
            parts = re.split(r"[\s,;]+", cell.strip()) if isinstance(cell, str) else cell
            if not isinstance(parts, (list, tuple, np.ndarray)):
                parts = [parts]
            found.append(np.array([self.number(feature, part, place) for part in parts], np.float32))
        return found


def columns(work: Encoding, step: m.Columns) -> None:
    stacked = np.empty((len(work.rows), len(step.features)), np.float64)
    for place, name in enumerate(step.features):
        feature = work.features[name]
        stacked[:, place] = [work.number(feature, cell, row) for row, cell in enumerate(work.cells[name])]
    missing = np.argwhere(np.isnan(stacked))
    if len(missing):
        row, column = missing[0]
        raise _not_imputed(step.features[column], int(row))
    work.tensors[step.tensor] = stacked.astype(NUMPY_OF[step.dtype])


def categories(work: Encoding, step: m.Categories) -> None:
    mapped: list[Any] = []
    for place, cell in enumerate(work.cells[step.feature]):
        key = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
        value = step.mapping.get(key, step.unknown)
        if value is None:
            raise BadInput(
                "CATEGORY_UNKNOWN",
                zh=f"第 {place + 1} 行“{step.feature}”的值“{key[:40]}”不在类别中",
                en=f"row {place + 1}: {key[:40]!r} is no category of {step.feature!r}",
                remedy_zh=f"可用的类别: {', '.join(list(step.mapping)[:30])}",
                remedy_en=f"the categories are: {', '.join(list(step.mapping)[:30])}",
                field=step.feature,
            )
        mapped.append(value)
    work.cells[step.feature] = mapped


def impute(work: Encoding, step: m.Impute) -> None:
    for name, value in step.values.items():
        work.cells[name] = [value if cell is None else cell for cell in work.cells[name]]


def scale(work: Encoding, step: m.ScaleTensor) -> None:
    tensor = work.tensors[step.tensor]
    shape = [1] * tensor.ndim
    shape[step.axis] = -1
    mean, spread = (np.asarray(v, np.float32).reshape(shape) for v in (step.mean, step.scale))
    work.tensors[step.tensor] = ((tensor - mean) / spread).astype(tensor.dtype)


def series(work: Encoding, step: m.Series) -> None:
    stacked = np.empty((len(work.rows), len(step.features), step.size), np.float32)
    for channel, name in enumerate(step.features):
        for place, values in enumerate(work.series(name)):
            stacked[place, channel] = _last(values, step.size, step.pad, name, place)
    work.tensors[step.tensor] = stacked.astype(NUMPY_OF[step.dtype])


def window(work: Encoding, step: m.Window) -> None:
    """One window ending at each row, over the rows of the same group in `order`; the rows' own order is kept."""
    count = len(work.rows)
    groups = [row.get(step.group) if step.group else None for row in work.rows]
    order = [_order_of(row, step, place) for place, row in enumerate(work.rows)]
    values = np.empty((count, len(step.features)), np.float32)
    for channel, name in enumerate(step.features):
        feature = work.features[name]
        values[:, channel] = [work.number(feature, cell, place) for place, cell in enumerate(work.cells[name])]
    stacked = np.empty((count, len(step.features), step.size), np.float32)
    members: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for places in members.values():
        places.sort(key=lambda place: order[place])
        ordered = values[places].T
        for end, place in enumerate(places, 1):
            begin = max(0, end - step.size)
            for channel, name in enumerate(step.features):
                stacked[place, channel] = _last(ordered[channel, begin:end], step.size, step.pad, name, place)
    work.tensors[step.tensor] = stacked.astype(NUMPY_OF[step.dtype])


def spectrum(work: Encoding, step: m.Spectrum) -> None:
    tensor = work.tensors[step.tensor].astype(np.float64)
    amplitude = np.abs(np.fft.rfft(tensor, axis=-1))[..., 1:] / tensor.shape[-1]
    edges = np.linspace(0, amplitude.shape[-1], step.bins + 1).astype(int)
    pairs = zip(edges[:-1], edges[1:], strict=True)
    bands = [amplitude[..., low : max(high, low + 1)].mean(axis=-1) for low, high in pairs]
    stacked = np.log1p(np.stack(bands, axis=-1))
    work.tensors[step.tensor] = stacked.reshape(len(tensor), -1).astype(np.float32)


def image(work: Encoding, step: m.DecodeImage) -> None:
    stacked = []
    for place, cell in enumerate(work.cells[step.feature]):
        picture = _open_image(cell, step.feature, place).convert(step.mode)
        pixels = np.asarray(_fit(picture, step), np.float32) / 255.0
        stacked.append(pixels[None] if step.mode == "L" else pixels.transpose(2, 0, 1))
    work.tensors[step.tensor] = np.ascontiguousarray(np.stack(stacked), np.float32)


def normalise(work: Encoding, step: m.Normalise) -> None:
    tensor = work.tensors[step.tensor]
    shape = (1, -1) + (1,) * (tensor.ndim - 2)
    mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (step.mean, step.std))
    work.tensors[step.tensor] = ((tensor - mean) / std).astype(np.float32)


def tokenise(work: Encoding, step: m.Tokenise) -> None:
    from model_store.processing.tokens import tokenizer_of

    tokenizer = tokenizer_of(work.folder / step.file, step.max_length)
    encoded = tokenizer.encode_batch(work.texts(step.feature))
    arrays = {
        "input_ids": [e.ids for e in encoded],
        "attention_mask": [e.attention_mask for e in encoded],
        "token_type_ids": [e.type_ids for e in encoded],
    }
    for name in step.tensors:
        work.tensors[name] = np.asarray(arrays[name], np.int64)


def hash_ngrams(work: Encoding, step: m.HashNgrams) -> None:
    stacked = np.zeros((len(work.rows), step.buckets), np.float32)
    for place, text in enumerate(work.texts(step.feature)):
        normal = unicodedata.normalize("NFKC", text).lower()
        pieces: Sequence[str] = normal if step.unit == "char" else _WORD.findall(normal)
        joint = "" if step.unit == "char" else " "
        for size in range(step.low, step.high + 1):
            for start in range(len(pieces) - size + 1):
                gram = joint.join(pieces[start : start + size])
                stacked[place, zlib.crc32(gram.encode("utf-8", "replace")) % step.buckets] += 1
    stacked = np.log1p(stacked)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    work.tensors[step.tensor] = stacked / np.where(norms == 0, 1, norms)


def strings(work: Encoding, step: m.Strings) -> None:
    texts = [text.encode("utf-8", "replace") for text in work.texts(step.feature)]
    work.tensors[step.tensor] = object_array(texts, (len(texts), 1))


STEPS: dict[type[Any], Callable[[Encoding, Any], None]] = {
    m.Columns: columns, m.Categories: categories, m.Impute: impute, m.ScaleTensor: scale, m.Series: series,
    m.Window: window, m.Spectrum: spectrum, m.DecodeImage: image, m.Normalise: normalise, m.Tokenise: tokenise,
    m.HashNgrams: hash_ngrams, m.Strings: strings,
}  # fmt: skip


# --- parts ------------------------------------------------------------------------------------------------------------


def _last(values: Array, size: int, pad: str, name: str, place: int) -> Array:
    """The last `size` values; a shorter series is padded on the left, or refused."""
    if len(values) >= size:
        return values[-size:]
    if pad == "refuse" or not len(values):
        raise BadInput(
            "SERIES_TOO_SHORT",
            zh=f"第 {place + 1} 行“{name}”有 {len(values)} 个采样点, 至少需要 {size} 个",
            en=f"row {place + 1}: {name!r} has {len(values)} samples; {size} are needed",
            remedy_zh="请提供更长的序列",
            remedy_en="give a longer series",
            field=name,
        )
    fill = values[0] if pad == "edge" else 0.0
    return np.concatenate([np.full(size - len(values), fill, values.dtype), values])


def _order_of(row: Mapping[str, Any], step: m.Window, place: int) -> Any:
    if step.order is None:
        return place
    try:
        return float(row[step.order])
    except (KeyError, TypeError, ValueError):
        raise BadInput(
            "COLUMN_MISSING",
            zh=f"第 {place + 1} 行缺少顺序列“{step.order}”",
            en=f"row {place + 1}: the ordering column {step.order!r} is missing or no number",
            remedy_zh="请提供数字形式的顺序列 (例如周期或时间)",
            remedy_en="give it as numbers (a cycle or a time)",
            field=step.order,
        ) from None


def _open_image(cell: Any, name: str, place: int) -> Image.Image:
    """Encoded bytes, or base64 text of them (a data: URL too)."""
    try:
        content = bytes(cell) if isinstance(cell, (bytes, bytearray, memoryview)) else _from_base64(str(cell))
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP"))
        if picture.width * picture.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{picture.width}×{picture.height} pixels, at most {MAX_IMAGE_PIXELS}")
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(
            "IMAGE_UNREADABLE",
            zh=f"第 {place + 1} 行“{name}”不是可读的图片",
            en=f"row {place + 1}: {name!r} is no picture that can be read ({str(error)[:80]})",
            remedy_zh="请提供 PNG、JPEG 或 BMP, JSON 中用 base64 编码",
            remedy_en="give PNG, JPEG or BMP; base64 of it in JSON",
            field=name,
        ) from error
    return picture


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _fit(picture: Image.Image, step: m.DecodeImage) -> Image.Image:
    size = (step.width, step.height)
    if step.fit == "stretch":
        return picture.resize(size, Image.Resampling.BILINEAR)
    wide, high = step.width / picture.width, step.height / picture.height
    ratio = max(wide, high) if step.fit == "center_crop" else min(wide, high)
    inner = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    resized = picture.resize(inner, Image.Resampling.BILINEAR)
    left, top = (inner[0] - step.width) // 2, (inner[1] - step.height) // 2
    return resized.crop((left, top, left + step.width, top + step.height))


def _not_imputed(name: str, place: int) -> BadInput:
    return BadInput(
        "FEATURE_MISSING",
        zh=f"第 {place + 1} 行缺少“{name}”",
        en=f"row {place + 1}: {name!r} is missing",
        remedy_zh="请填写该值, 该模型不补全缺失值",
        remedy_en="fill it in: this model does not impute it",
        field=name,
    )
