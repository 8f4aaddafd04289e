"""What the pre-processing steps of one call share: the rows' cells by feature, and the tensors made of them so far."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.errors import BadInput, TooLarge
from model_store.manifest import Feature
from model_store.schema import OipType
from model_store.tensors import NUMPY_OF, Array

MAX_TENSOR_BYTES = 512 * 1024 * 1024
MAX_TEXT_CHARACTERS = 100_000


class Encoding:
    """The work table of one call: cells by feature (columns of the rows) and the tensors made so far."""

    def __init__(self, features: Mapping[str, Feature], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        self.features = features
        self.rows = rows
        self.folder = folder
        self.cells: dict[str, list[Any]] = {}
        self.tensors: dict[str, Array] = {}
        for name, feature in features.items():
            cells = [row.get(name) for row in rows]
            if any(cell is None or cell == "" for cell in cells if not isinstance(cell, np.ndarray)):
                cells = [self._cell(feature, cell, place) for place, cell in enumerate(cells)]
            self.cells[name] = cells

    def _cell(self, feature: Feature, cell: Any, place: int) -> Any:
        """A present value, the default, None for an optional one; FEATURE_MISSING for a required one."""
        if isinstance(cell, np.ndarray) or (cell is not None and cell != ""):
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

    def number(self, feature: Feature, cell: Any, place: int) -> float:
        """A finite number; None becomes NaN (for `impute`). FEATURE_NOT_NUMBER otherwise."""
        if cell is None:
            return math.nan
        try:
            value = float(cell)
        except (TypeError, ValueError, OverflowError):
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

    def numbers(self, name: str) -> Array:
        """A feature's cells as float64 [N]; NaN where one is missing. FEATURE_NOT_NUMBER otherwise."""
        cells = self.cells[name]
        try:
            fast = np.array(cells, np.float64)  # numbers, and text that reads as numbers
        except (TypeError, ValueError, OverflowError):
            fast = np.array(math.nan)
        if fast.shape == (len(cells),) and bool(np.isfinite(fast).all()):
            return fast
        feature = self.features[name]
        return np.array([self.number(feature, cell, place) for place, cell in enumerate(cells)], np.float64)

    def room_for(self, tensor: str, shape: Sequence[int]) -> None:
        """Refuse a tensor that would take more memory than any call may (float32 counted)."""
        if 4 * math.prod(shape) > MAX_TENSOR_BYTES:
            raise TooLarge(
                "INPUT_TOO_LARGE",
                zh=f"张量“{tensor}” {list(shape)} 超过 {MAX_TENSOR_BYTES >> 20} MiB",
                en=f"tensor {tensor!r} {list(shape)} would take more than {MAX_TENSOR_BYTES >> 20} MiB",
                remedy_zh="请减少一次请求的行数",
                remedy_en="send fewer rows in one request",
                field=tensor,
            )

    def texts(self, name: str) -> list[str]:
        """Raises `TooLarge` FEATURE_TEXT_TOO_LONG: a tokenizer takes 150 bytes of memory a character before it cuts."""
        found = ["" if cell is None else str(cell) for cell in self.cells[name]]
        for place, text in enumerate(found):
            if len(text) > MAX_TEXT_CHARACTERS:
                raise TooLarge(
                    "FEATURE_TEXT_TOO_LONG",
                    zh=f"第 {place + 1} 行: “{name[:60]}”有 {len(text)} 个字符, 上限 {MAX_TEXT_CHARACTERS}",
                    en=f"row {place + 1}: {name[:60]!r} has {len(text)} characters, over {MAX_TEXT_CHARACTERS}",
                    remedy_zh="请分段发送, 或只发送要点",
                    remedy_en="send it in parts, or what matters of it",
                    field=name[:60],
                )
        return found

    def series(self, name: str) -> list[Array]:
        """Each cell as a float32 vector: a list of numbers, or text of numbers separated by commas or spaces."""
        feature = self.features[name]
        found = []
        for place, cell in enumerate(self.cells[name]):
            parts = re.split(r"[\s,;]+", cell.strip()) if isinstance(cell, str) else cell
            if not isinstance(parts, (list, tuple, np.ndarray)):
                parts = [parts]
            try:
                values = np.array(parts, np.float64)
            except (TypeError, ValueError, OverflowError):
                values = np.array(math.nan)
            if values.ndim != 1 or not np.isfinite(values).all():
                values = np.array([self.number(feature, part, place) for part in parts], np.float64)
                if np.isnan(values).any():  # None within a series: nothing imputes that
                    raise not_imputed(name, place)
            found.append(cast(values, "FP32", feature, place))
        return found


def cast(values: Array, dtype: OipType, feature: Feature, place: int | None = None) -> Array:
    """float64 → the tensor's type; FEATURE_OUT_OF_RANGE where it cannot hold a value (or a fraction, for integers).

    `place`: the row that all values belong to; None: one value a row.
    """
    wanted = NUMPY_OF[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        made = values.astype(wanted)
    wrong = (
        ~np.isfinite(made) if wanted.kind == "f" else made.astype(np.float64) != values if wanted.kind in "iu" else None
    )
    if wrong is not None and bool(wrong.any()):
        at = int(np.argmax(wrong))
        row = (at if place is None else place) + 1
        raise BadInput(
            "FEATURE_OUT_OF_RANGE",
            zh=f"第 {row} 行“{feature.name}”的值 {values[at]!s} 无法用 {dtype} 表示",
            en=f"row {row}: {feature.name!r} is {values[at]!s}, which {dtype} cannot hold",
            remedy_zh="请检查数值与单位",
            remedy_en="check the value and its unit",
            field=feature.name,
        )
    return made


def not_imputed(name: str, place: int) -> BadInput:
    return BadInput(
        "FEATURE_MISSING",
        zh=f"第 {place + 1} 行缺少“{name}”",
        en=f"row {place + 1}: {name!r} is missing",
        remedy_zh="请填写该值, 该模型不补全缺失值",
        remedy_en="fill it in: this model does not impute it",
        field=name,
    )
