"""What tests of recipes work with: sample folders of real data, and contexts to run a recipe in."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from adapters.recipe import Context, Outcome, recipe_named
from model_store.bundle import Bundle, open_bundle

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_table(folder: Path, frame: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "table.parquet")
    return folder


def write_images(folder: Path, images: Sequence[np.ndarray[Any, Any]], labels: Sequence[str]) -> Path:
    for place, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
        (folder / "images" / label / f"{place:04d}.png").write_bytes(content.getvalue())
    return folder


def adapt(
    recipe: str,
    data: Path,
    out: Path,
    *,
    parent: Bundle | None = None,
    params: Mapping[str, Any] | None = None,
    label_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> tuple[Outcome, Bundle, list[tuple[float, str, dict[str, float]]]]:
    """Run a recipe in this process; the outcome, its bundle verified file by file, and what was reported."""
    out.mkdir(parents=True)
    said: list[tuple[float, str, dict[str, float]]] = []
    chosen = recipe_named(recipe)
    chosen.check_parent(parent.manifest if parent else None)
    context = Context(
        data=data,
        parent=parent,
        params=chosen.check(params or {}),
        out=out,
        name="factory/derived",
        seed=seed,
        columns=columns or {},
        label_column=label_column,
        parent_version=1 if parent else 0,
        report=lambda progress, stage, **metrics: said.append((progress, stage, metrics)),
    )
    outcome = chosen.run(context)
    return outcome, open_bundle(outcome.bundle, verify=True), said


def value_of(metrics: Sequence[Any], name: str) -> float:
    return next(float(metric.value) for metric in metrics if metric.name == name)
