"""Matching a factory's column headings to a model's features: names, titles and aliases in Chinese and English, units.

`转速(rpm)`, `Rotational speed [rpm]` and `rotational_speed` are one feature. A heading may carry another unit of
the same quantity than the model wants; the match then says factor and offset: model's value = value · factor + offset.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model_store.errors import BadInput
from model_store.manifest import Feature

How = Literal["by_hand", "exact", "alias", "normalised", "converted"]
_BRACKETED = re.compile(r"(?P<name>.*?\S)[\s_]*[(\[（【]\s*(?P<unit>[^()\[\]（）【】]{1,16}?)\s*[)\]）】]\s*")
_TRAILING = re.compile(r"(?P<name>.*?[^\s_/])[\s_/]+(?P<unit>[^\s_]{1,8})\s*")
_NOT_WORD = re.compile(r"[^\w]+|_+", re.UNICODE)

# unit → (quantity, factor to the quantity's base unit, offset): base = value · factor + offset. SI, exact.
_UNITS: dict[str, tuple[str, float, float]] = {
    "k": ("temperature", 1, 0), "°c": ("temperature", 1, 273.15), "c": ("temperature", 1, 273.15),
    "℃": ("temperature", 1, 273.15), "degc": ("temperature", 1, 273.15), "°f": ("temperature", 5 / 9, 459.67 * 5 / 9),
    "w": ("power", 1, 0), "kw": ("power", 1e3, 0), "mw": ("power", 1e6, 0), "瓦": ("power", 1, 0),
    "千瓦": ("power", 1e3, 0), "兆瓦": ("power", 1e6, 0), "摄氏度": ("temperature", 1, 273.15),
    "毫米": ("length", 1e-3, 0), "米": ("length", 1, 0), "天": ("time", 86400, 0), "毫秒": ("time", 1e-3, 0),
    "m": ("length", 1, 0), "mm": ("length", 1e-3, 0), "cm": ("length", 1e-2, 0), "um": ("length", 1e-6, 0),
    "μm": ("length", 1e-6, 0), "km": ("length", 1e3, 0),
    "s": ("time", 1, 0), "ms": ("time", 1e-3, 0), "min": ("time", 60, 0), "h": ("time", 3600, 0),
    "分钟": ("time", 60, 0), "小时": ("time", 3600, 0), "秒": ("time", 1, 0), "d": ("time", 86400, 0),
    "pa": ("pressure", 1, 0), "kpa": ("pressure", 1e3, 0), "mpa": ("pressure", 1e6, 0), "bar": ("pressure", 1e5, 0),
    "mbar": ("pressure", 100, 0), "hpa": ("pressure", 100, 0), "psi": ("pressure", 6894.757293168, 0),
    "rpm": ("speed", 1, 0), "r/min": ("speed", 1, 0), "转/分": ("speed", 1, 0), "hz": ("frequency", 1, 0),
    "khz": ("frequency", 1e3, 0),
    "g": ("mass", 1e-3, 0), "kg": ("mass", 1, 0), "t": ("mass", 1e3, 0), "nm": ("torque", 1, 0), "n·m": ("torque", 1,
    0), "n.m": ("torque", 1, 0), "a": ("current", 1, 0), "ma": ("current", 1e-3, 0), "v": ("voltage", 1, 0),
    "mv": ("voltage", 1e-3, 0), "kv": ("voltage", 1e3, 0), "%": ("share", 0.01, 0), "kg/m3": ("density", 1, 0),
    "kg/m³": ("density", 1, 0), "g/cm3": ("density", 1e3, 0), "l/min": ("flow", 1, 0), "m3/h": ("flow", 1000 / 60, 0),
    "kwh": ("energy", 3.6e6, 0), "mwh": ("energy", 3.6e9, 0), "j": ("energy", 1, 0), "kj": ("energy", 1e3, 0),
}  # fmt: skip


_CASED_UNITS = {"mW": ("power", 1e-3, 0.0), "MV": ("voltage", 1e6, 0.0), "mPa": ("pressure", 1e-3, 0.0)}


@dataclass(frozen=True, slots=True)
class ColumnMatch:
    """Which heading gives a feature, how it was found, and the conversion of its unit."""

    heading: str
    how: How
    factor: float = 1.0
    offset: float = 0.0


def match_columns(
    features: Sequence[Feature], headings: Sequence[str], *, by_hand: Mapping[str, str] | None = None
) -> dict[str, ColumnMatch]:
    """Feature name → match, for every feature that a heading gives; each heading is used once. Surest matches first."""
    hand = by_hand or {}
    found: dict[str, ColumnMatch] = {}
    for feature in features:
        heading = hand.get(feature.name)
        if heading is not None and heading in headings:
            factor, offset = _conversion(_split_unit(heading)[1], feature.unit) or (1.0, 0.0)
            found[feature.name] = ColumnMatch(heading, "by_hand", factor, offset)
    taken = {match.heading for match in found.values()}
    for strictness in ("exact", "alias", "normalised"):
        for feature in features:
            if feature.name in found:
                continue
            for heading in headings:
                match = None if heading in taken else _match(feature, heading, strictness)
                if match is not None:
                    found[feature.name] = match
                    taken.add(heading)
                    break
    return found


def apply_matches(rows: Sequence[Mapping[str, Any]], matches: Mapping[str, ColumnMatch]) -> list[dict[str, Any]]:
    """The rows under the model's feature names, numbers in the model's units; other columns are dropped."""
    converted = []
    for place, row in enumerate(rows):
        cells: dict[str, Any] = {}
        for name, match in matches.items():
            cell = row.get(match.heading)
            if cell not in (None, "") and (match.factor != 1.0 or match.offset != 0.0):
                cell = _number(cell, match.heading, place) * match.factor + match.offset
            cells[name] = cell
        converted.append(cells)
    return converted


def column_missing(feature: Feature, headings: Sequence[str]) -> BadInput:
    """COLUMN_MISSING: what is wanted, and which headings there were."""
    title = f"{feature.name} ({feature.title_zh})" if feature.title_zh else feature.name
    return BadInput(
        "COLUMN_MISSING",
        zh=f"缺少列“{title}”",
        en=f"the column {feature.name!r} ({feature.title_en or feature.name}) is missing",
        remedy_zh=f"请补充该列或修改列名; 现有列: {', '.join(headings[:30])}",
        remedy_en=f"add it or rename a column; there are: {', '.join(headings[:30])}",
        field=feature.name,
        details={"headings": list(headings[:200]), "aliases": feature.aliases[:20]},
    )


def _match(feature: Feature, heading: str, strictness: str) -> ColumnMatch | None:
    if strictness == "exact":
        return ColumnMatch(heading, "exact") if heading == feature.name else None
    spellings = [text for text in (feature.title_zh, feature.title_en, *feature.aliases) if text]
    if strictness == "alias":
        return ColumnMatch(heading, "alias") if heading in spellings else None
    name, unit = _split_unit(heading)
    wanted = {_folded(text) for text in (feature.name, *spellings)} | {
        _folded(_split_unit(text)[0]) for text in (feature.name, *spellings)
    }
    if _folded(heading) in wanted and unit is None:
        return ColumnMatch(heading, "normalised")
    if _folded(name) not in wanted:
        return ColumnMatch(heading, "normalised") if _folded(heading) in wanted else None
    if unit is None or feature.unit is None or _folded(unit) == _folded(feature.unit):
        return ColumnMatch(heading, "normalised")
    conversion = _conversion(unit, feature.unit)
    if conversion is None:  # an unknown unit is no reason to lose the column, another quantity is
        known = _unit(unit), _unit(feature.unit)
        return None if None not in known else ColumnMatch(heading, "normalised")
    factor, offset = conversion
    return ColumnMatch(heading, "normalised" if (factor, offset) == (1.0, 0.0) else "converted", factor, offset)


def _unit(text: str) -> tuple[str, float, float] | None:
    """Case tells milliwatts from megawatts where both occur; elsewhere it is ignored, as headings do."""
    normal = unicodedata.normalize("NFKC", text).strip()
    return _CASED_UNITS.get(normal) or _UNITS.get(normal.lower()) or _UNITS.get(text.strip().lower())


def _conversion(unit: str | None, wanted: str | None) -> tuple[float, float] | None:
    """(factor, offset) from `unit` to `wanted`; None where either is unknown or they measure different things."""
    if unit is None or wanted is None:
        return None
    one, other = _unit(unit), _unit(wanted)
    if one is None or other is None or one[0] != other[0]:
        return None
    return one[1] / other[1], (one[2] - other[2]) / other[1]


def _split_unit(heading: str) -> tuple[str, str | None]:
    """`转速(rpm)` → (`转速`, `rpm`). Without brackets (after a slash, space or underscore) only a known unit is one."""
    found = _BRACKETED.fullmatch(heading)
    if found is not None:
        return found["name"], found["unit"].strip()
    found = _TRAILING.fullmatch(heading)
    if found is not None and _unit(found["unit"]) is not None:
        return found["name"], found["unit"]
    return heading, None


def _folded(text: str) -> str:
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())


def _number(cell: Any, heading: str, place: int) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise BadInput(
            "CELL_NOT_NUMBER",
            zh=f"第 {place + 1} 行“{heading}”的值“{str(cell)[:40]}”不是数字",
            en=f"row {place + 1}: {str(cell)[:40]!r} in {heading!r} is not a number",
            remedy_zh="请修改该单元格, 缺失值请留空",
            remedy_en="mend the cell; leave a missing value empty",
            field=heading,
        ) from None
