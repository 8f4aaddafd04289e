"""Pre-processing: rows of named features → the graph's tensors, by exactly the steps that a manifest may list."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from model_store import step_specs as m
from model_store.errors import BadInput
from model_store.processing.encoding import Encoding, cast, not_imputed
from model_store.processing.pictures import fit_picture, open_picture
from model_store.tensors import NUMPY_OF, Array, object_array

_WORD = re.compile(r"\w+", re.UNICODE)


def columns(work: Encoding, step: m.Columns) -> None:
    stacked = np.empty((len(work.rows), len(step.features)), NUMPY_OF[step.dtype])
    for place, name in enumerate(step.features):
        values = work.numbers(name)
        missing = np.isnan(values)
        if missing.any():
            raise not_imputed(name, int(np.argmax(missing)))
        stacked[:, place] = cast(values, step.dtype, work.features[name])
    work.tensors[step.tensor] = stacked


def categories(work: Encoding, step: m.Categories) -> None:
    """Exactly as written first; then without regard to case, width and outer spaces."""
    loose = {_loosely(key): value for key, value in step.mapping.items()}
    mapped: list[Any] = []
    for place, cell in enumerate(work.cells[step.feature]):
        if cell is None:
            mapped.append(None)  # an optional cell: `impute` after this step may fill it
            continue
        key = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
        value = step.mapping.get(key, loose.get(_loosely(key), step.unknown))
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
    shape = (len(work.rows), len(step.features), step.size)
    work.room_for(step.tensor, shape)
    stacked = np.empty(shape, np.float32)
    for channel, name in enumerate(step.features):
        for place, values in enumerate(work.series(name)):
            stacked[place, channel] = _last(values, step.size, step.pad, name, place)
    work.tensors[step.tensor] = stacked.astype(NUMPY_OF[step.dtype])


def window(work: Encoding, step: m.Window) -> None:
    """One window ending at each row, over the rows of the same group in `order`; the rows' own order is kept."""
    shape = (len(work.rows), len(step.features), step.size)
    work.room_for(step.tensor, shape)
    groups = [row.get(step.group) if step.group else None for row in work.rows]
    order = _order(work.rows, step.order)
    values = np.empty(shape[:2], np.float32)
    for channel, name in enumerate(step.features):
        numbers = work.numbers(name)
        missing = np.isnan(numbers)
        if missing.any():
            raise not_imputed(name, int(np.argmax(missing)))
        values[:, channel] = cast(numbers, "FP32", work.features[name])
    stacked = np.empty(shape, np.float32)
    members: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for places in members.values():
        places.sort(key=lambda place: order[place])
        if step.pad == "refuse" and step.size > 1:
            _last(values[places[:1], 0], step.size, step.pad, step.features[0], places[0])
        before = ((0, 0), (step.size - 1, 0))
        ordered = values[places].T
        padded = np.pad(ordered, before, mode="edge") if step.pad == "edge" else np.pad(ordered, before)
        views = np.lib.stride_tricks.sliding_window_view(padded, step.size, axis=1)  # [C, rows, size]
        stacked[places] = views.transpose(1, 0, 2)
    work.tensors[step.tensor] = stacked.astype(NUMPY_OF[step.dtype])


def spectrum(work: Encoding, step: m.Spectrum) -> None:
    tensor = work.tensors[step.tensor].astype(np.float64)
    amplitude = np.abs(np.fft.rfft(tensor, axis=-1))[..., 1:] / tensor.shape[-1]
    edges = np.linspace(0, amplitude.shape[-1], step.bins + 1).astype(int)
    pairs = itertools.pairwise(edges)
    bands = [amplitude[..., low : max(high, low + 1)].mean(axis=-1) for low, high in pairs]
    stacked = np.log1p(np.stack(bands, axis=-1))
    work.tensors[step.tensor] = stacked.reshape(len(tensor), -1).astype(np.float32)


def image(work: Encoding, step: m.DecodeImage) -> None:
    stacked = []
    work.room_for(step.tensor, (len(work.rows), 3, step.height, step.width))
    for place, cell in enumerate(work.cells[step.feature]):
        if cell is None:
            raise not_imputed(step.feature, place)
        picture = open_picture(cell, step.feature, place).convert(step.mode)
        pixels = np.asarray(fit_picture(picture, step), np.float32) / 255.0
        stacked.append(pixels[None] if step.mode == "L" else pixels.transpose(2, 0, 1))
    work.tensors[step.tensor] = np.ascontiguousarray(np.stack(stacked), np.float32)


def normalise(work: Encoding, step: m.Normalise) -> None:
    tensor = work.tensors[step.tensor]
    shape = (1, -1) + (1,) * (tensor.ndim - 2)
    mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (step.mean, step.std))
    work.tensors[step.tensor] = ((tensor - mean) / std).astype(np.float32)


def tokenise(work: Encoding, step: m.Tokenise) -> None:
    from model_store.processing.tokens import encode_texts, tokenizer_of

    tokenizer = tokenizer_of(work.folder / step.file, step.max_length)
    arrays = encode_texts(tokenizer, work.texts(step.feature))
    for name in step.tensors:
        work.tensors[name] = arrays[name]


def hash_ngrams(work: Encoding, step: m.HashNgrams) -> None:
    work.room_for(step.tensor, (len(work.rows), step.buckets))
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


def _order(rows: Sequence[Mapping[str, Any]], column: str | None) -> list[float]:
    """What rows are sorted by: their place, or the column's numbers or times (ISO 8601)."""
    if column is None:
        return [float(place) for place in range(len(rows))]
    found: list[float] = []
    for place, row in enumerate(rows):
        moment = _moment(row.get(column))
        if moment is None:
            raise BadInput(
                "COLUMN_MISSING",
                zh=f"第 {place + 1} 行缺少顺序列“{column}”",
                en=f"row {place + 1}: the ordering column {column!r} is missing or is neither a number nor a time",
                remedy_zh="请提供数字或 ISO 8601 时间形式的顺序列 (例如周期或时间戳)",
                remedy_en="give it as numbers or ISO 8601 times (a cycle, a timestamp)",
                field=column,
            )
        found.append(moment)
    return found


def _moment(cell: Any) -> float | None:
    if cell is None or cell == "":
        return None
    try:
        number = float(cell)
        return number if math.isfinite(number) else None
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        time = cell if isinstance(cell, datetime) else datetime.fromisoformat(str(cell).strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _loosely(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
