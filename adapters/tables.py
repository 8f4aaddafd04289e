"""Describing a table: features found in a factory's columns, how their cells become numbers, what they look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapters.recipe import Context
from adapters.samples import Table, find_label_column, label_text, read_table
from model_store.errors import Unprocessable
from model_store.manifest import Feature, FeatureReference, Label, Manifest, Target, TensorSpec
from model_store.step_specs import Categories, Impute, PreStep

MAX_CATEGORIES = 30
MAX_CLASSES_OF_NUMBERS = 12  # a numeric label with more values than this is a quantity
UNKNOWN_CATEGORY = -1.0


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe_table(context: Context) -> Manifest:
    """A manifest for a table that has no parent: every number or category column is a feature, the label the target.

    Columns of free text, and those that are different in every row (serial numbers), are left out.
    """
    table = read_table(context)
    label = find_label_column(context, None, table.headings)
    features = [
        feature for name in table.headings if name != label and (feature := describe_column(table, name)) is not None
    ]
    if not features:
        raise Unprocessable(
            "NO_FEATURES",
            zh="除标签列外没有可用的数值列或类别列",
            en="beside the label there is no column of numbers or categories",
            remedy_zh="请上传含数值列的样本",
            remedy_en="upload samples with columns of numbers",
            field="sample_set_id",
        )
    target, labels = describe_target(context, table, label)
    return Manifest(
        name=context.name, task="tabular-regression" if target.kind == "number" else "tabular-classification",
        modality="tabular", features=features, target=target, labels=labels, licence="proprietary",
        title_zh=f"{context.name} · 自训模型", title_en=f"{context.name} · own model",
        summary_zh=f"由企业自有表格训练, 目标列为 {label}。",
        summary_en=f"Trained on the factory's own table; predicts {label}.",
        inputs=[TensorSpec(name="features", dtype="FP32", shape=[-1, len(features)])],
        outputs=[TensorSpec(name="value", dtype="FP32", shape=[-1, 1])],
    )  # fmt: skip


def describe_column(table: Table, name: str) -> Feature | None:
    """A number or category feature; None for a column that is neither."""
    cells = [row[name] for row in table.rows if row[name] is not None]
    if not cells:
        return None
    given = len(cells) == len(table.rows)  # a cell missing here may be missing later: it is then filled in
    if all(is_number(cell) or isinstance(cell, bool) for cell in cells):
        values = np.array(cells, np.float64)
        whole = all(not isinstance(cell, float) for cell in cells)
        if whole and len(set(cells)) == len(table.rows) and np.all(np.diff(values) == 1):
            return None  # a running number
        return Feature(name=name, kind="number", title_zh=name, title_en=name, required=given,
                       example=round(float(np.median(values)), 6))  # fmt: skip
    found = sorted({label_text(cell) for cell in cells})
    if len(found) > MAX_CATEGORIES or len(found) < 2:
        return None
    return Feature(name=name, kind="category", title_zh=name, title_en=name, required=given, categories=found,
                   example=found[0])  # fmt: skip


def describe_target(context: Context, table: Table, label: str) -> tuple[Target, list[Label]]:
    """The target of a label column: a quantity or a class, as `params.task` says or as the cells look."""
    cells = [row[label] for row in table.rows if row[label] is not None]
    numeric = bool(cells) and all(is_number(cell) for cell in cells)
    wanted = context.params.get("task", "auto")
    quantity = numeric and len(set(cells)) > MAX_CLASSES_OF_NUMBERS
    if wanted == "regression" or (wanted == "auto" and quantity):
        return Target(name=label, kind="number", title_zh=label, title_en=label), []
    names = sorted({label_text(cell) for cell in cells})
    return Target(name=label, kind="category", title_zh=label, title_en=label), [Label(name=name) for name in names]


def encoding_steps(features: Sequence[Feature], rows: Sequence[dict[str, Any]]) -> list[PreStep]:
    """Category text to a number (unknown ones to -1), missing numbers to the median of `rows` (training rows only)."""
    steps: list[PreStep] = []
    fill: dict[str, float] = {}
    for feature in features:
        if feature.kind == "category":
            mapping = {name: float(place) for place, name in enumerate(feature.categories)}
            steps.append(Categories(feature=feature.name, mapping=mapping, unknown=UNKNOWN_CATEGORY))
            fill[feature.name] = UNKNOWN_CATEGORY
        else:
            cells = [float(row[feature.name]) for row in rows if is_number(row.get(feature.name))]
            fill[feature.name] = float(np.median(cells)) if cells else 0.0
    return [*steps, Impute(values=fill)]


def reference(manifest: Manifest, rows: Sequence[dict[str, Any]]) -> dict[str, FeatureReference]:
    """The distribution of each number or category feature in `rows`; quantiles only, nobody's row."""
    found: dict[str, FeatureReference] = {}
    for feature in manifest.features:
        cells = [row[feature.name] for row in rows if row.get(feature.name) is not None]
        missing = len(rows) - len(cells)
        if feature.kind == "category":
            counts = Counter(label_text(cell) for cell in cells)
            shares = {name: count / max(1, len(cells)) for name, count in counts.items()}
            found[feature.name] = FeatureReference(
                kind="category", count=len(cells), missing=missing, frequencies=shares
            )
        elif feature.kind in ("number", "integer") and cells:
            values = np.array([float(cell) for cell in cells])
            found[feature.name] = FeatureReference(
                kind="number", count=len(cells), missing=missing, mean=float(values.mean()), std=float(values.std()),
                minimum=float(values.min()), maximum=float(values.max()),
                quantiles=[float(q) for q in np.quantile(values, np.linspace(0, 1, 11))],
            )  # fmt: skip
    return found
