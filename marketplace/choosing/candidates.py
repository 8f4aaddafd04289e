"""Which models could answer a factory's samples, with the columns matched; and why the others were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marketplace.choosing.samples import UNLABELLED, Parsed
from model_store.manifest import Feature, Label, Manifest
from model_store.processing.columns import apply_matches, match_columns
from serving.ports import ServedVersion

MODALITIES_OF_KIND = {"table": frozenset({"tabular", "series", "text"}), "images": frozenset({"image"})}
REASONS = {
    "TENSOR_ONLY": ("只有张量接口, 没有命名特征", "takes bare tensors: it names no features"),
    "OTHER_TASK": ("任务不同", "is for another task"),
    "OTHER_MODALITY": ("输入类型与样本不符", "takes another kind of input"),
    "OTHER_FAMILY": ("属于其他场景的模型", "belongs to another family"),
    "COLUMNS_MISSING": ("样本缺少必需的列", "needs columns that the samples do not have"),
    "LABELS_DIFFER": ("标签与模型的类别没有交集", "knows none of the samples' labels"),
    "TARGET_KIND": ("标签类型与模型的目标不符", "predicts another kind of target than the label column holds"),
    "NOT_ASKED": ("不在所选模型之列", "is not among the models asked for"),
    "RUN_FAILED": ("在样本上运行失败", "failed on the samples"),
    "EMBEDDING": ("只输出向量, 需先适配", "answers a vector only: adapt it first"),
}


@dataclass(slots=True)
class Candidate:
    """A model that can run on the samples. `rows`: the samples under its own feature names."""

    served: ServedVersion
    manifest: Manifest
    rows: list[dict[str, Any]]
    matches: list[dict[str, Any]] = field(default_factory=list)
    coverage: float = 1.0  # share of its features that a column (or picture) gives


@dataclass(frozen=True, slots=True)
class LeftOut:
    name: str
    version: int
    reason: str
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        zh, en = REASONS[self.reason]
        return {
            "model": self.name,
            "version": self.version,
            "reason": self.reason,
            "zh": zh + (f": {self.detail}" if self.detail else ""),
            "en": en + (f": {self.detail}" if self.detail else ""),
        }


@dataclass(frozen=True, slots=True)
class Wish:
    """What the factory asked for; every part optional."""

    task: str | None = None
    family: str | None = None
    models: frozenset[str] = frozenset()
    columns: Mapping[str, str] = field(default_factory=dict)  # feature → heading, by hand


def consider(
    served: ServedVersion, manifest: Manifest, parsed: Parsed, label_column: str | None, wish: Wish
) -> Candidate | LeftOut:
    """The model as a candidate, or the first reason why not."""

    def out(reason: str, detail: str = "") -> LeftOut:
        return LeftOut(served.name, served.version, reason, detail)

    if wish.models and served.name not in wish.models:
        return out("NOT_ASKED")
    if manifest.task == "tensor" or not manifest.features:
        return out("TENSOR_ONLY")
    if wish.task and manifest.task != wish.task:
        return out("OTHER_TASK", manifest.task)
    if wish.family and manifest.family != wish.family:
        return out("OTHER_FAMILY", manifest.family)
    if manifest.modality not in MODALITIES_OF_KIND[parsed.kind]:
        return out("OTHER_MODALITY", manifest.modality)
    if manifest.task == "embedding":
        return out("EMBEDDING")
    candidate = _with_images(served, manifest, parsed) if parsed.kind == "images" else None
    if candidate is None:
        candidate, missing = _with_columns(served, manifest, parsed, label_column, wish.columns)
        if candidate is None:
            return out("COLUMNS_MISSING", ", ".join(missing[:8]))
    problem = _target_problem(manifest, truths(parsed, label_column))
    return candidate if problem is None else out(*problem)


def truths(parsed: Parsed, label_column: str | None) -> list[Any] | None:
    """The truth of each sample; None where nothing is labelled. A cell without a label is None."""
    if label_column is None:
        return None
    if parsed.kind == "images":
        found = [None if label == UNLABELLED else label for label, _, _ in parsed.images]
    else:
        found = [None if row.get(label_column) in ("", None) else row.get(label_column) for row in parsed.rows]
    return found if any(cell is not None for cell in found) else None


def label_names(labels: Sequence[Label]) -> dict[str, str]:
    """Every spelling of a label (folded) → the name that the API answers."""
    names: dict[str, str] = {}
    for label in labels:
        for spelling in (label.title_zh, label.title_en, *label.aliases, label.name):
            if spelling:
                names[_folded(spelling)] = label.name
    return names


def as_label(cell: Any, names: Mapping[str, str]) -> str | None:
    """A sample's label under the model's own name (1, 1.0 and "1" are one); None where the model does not know it."""
    return names.get(_folded(cell))


def _folded(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell).strip().lower()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if np.isfinite(number) and number.is_integer() else text


def _with_images(served: ServedVersion, manifest: Manifest, parsed: Parsed) -> Candidate | None:
    feature = next((item for item in manifest.features if item.kind == "image"), None)
    if feature is None:
        return None
    rows = [{feature.name: body} for _, _, body in parsed.images]
    return Candidate(served, manifest, rows, [{"feature": feature.name, "column": "(image)", "how": "image"}])


def _with_columns(
    served: ServedVersion,
    manifest: Manifest,
    parsed: Parsed,
    label_column: str | None,
    by_hand: Mapping[str, str],
) -> tuple[Candidate | None, list[str]]:
    """The samples under the model's feature names, units converted; else the names of the features without a column."""
    headings = [heading for heading in parsed.headings if heading != label_column]
    wanted = {feature.name for feature in manifest.features}
    hand = {name: heading for name, heading in by_hand.items() if name in wanted and heading in headings}
    matches = match_columns(manifest.features, headings, by_hand=hand)
    missing = [feature.name for feature in manifest.features if feature.name not in matches and _needed(feature)]
    if missing:
        return None, missing
    described = [
        {"feature": name, "column": match.heading, "how": match.how, "factor": match.factor, "offset": match.offset}
        for name, match in matches.items()
    ]
    coverage = len(matches) / len(manifest.features)
    return Candidate(served, manifest, apply_matches(parsed.rows, matches), described, coverage), []


def _needed(feature: Feature) -> bool:
    return feature.required and feature.default is None


def _target_problem(manifest: Manifest, truth: list[Any] | None) -> tuple[str, str] | None:
    if truth is None or manifest.target is None:
        return None
    present = [cell for cell in truth if cell is not None]
    if manifest.target.kind == "number":
        return None if all(_is_number(cell) for cell in present) else ("TARGET_KIND", manifest.target.name)
    names = label_names(manifest.labels)
    if names and not any(as_label(cell, names) for cell in present):
        return "LABELS_DIFFER", ", ".join(sorted({str(cell) for cell in present})[:6])
    return None


def _is_number(cell: Any) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except (TypeError, ValueError):
        return False
