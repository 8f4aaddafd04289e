"""Reading a factory's sample set as a recipe needs it: cells by feature name, labels or values, odd ones refused.

A table keeps the factory's own headings; `Context.columns` says by hand which heading is which feature, and
`match_columns` finds the rest (names, titles, aliases in Chinese and English).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.recipe import Context
from model_store.errors import BadInput, Unprocessable
from model_store.manifest import Feature, Label, Manifest

MAX_CLASSES = 200
MIN_ROWS_PER_CLASS = 2
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
UNLABELLED = frozenset({"", "_", "none", "nan", "null"})  # "_" is the folder of images without a label
NORMAL_WORDS = frozenset({"0", "ok", "good", "normal", "pass", "false", "no", "healthy", "正常", "良品", "合格", "否"})
Numbers = npt.NDArray[np.float64]


@dataclass(slots=True)
class Table:
    """A table as uploaded: headings and rows of plain cells (None where a cell is empty)."""

    headings: list[str]
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Samples:
    """Rows that can be learned from. `labels` or `values` run beside `rows`; `groups` names what must not be split."""

    rows: list[dict[str, Any]]
    labels: list[str] = field(default_factory=list)
    values: Numbers = field(default_factory=lambda: np.zeros(0))
    groups: list[str] = field(default_factory=list)
    dropped: int = 0  # rows without a label

    def take(self, index: Sequence[int] | npt.NDArray[np.int64]) -> Samples:
        chosen = [int(i) for i in index]
        return Samples(
            rows=[self.rows[i] for i in chosen],
            labels=[self.labels[i] for i in chosen] if self.labels else [],
            values=self.values[chosen] if len(self.values) else self.values,
            groups=[self.groups[i] for i in chosen] if self.groups else [],
        )

    @property
    def label_ids(self) -> npt.NDArray[np.int64]:
        """Each row's label as its place in the sorted list of labels."""
        order = {name: place for place, name in enumerate(sorted(set(self.labels)))}
        return np.array([order[name] for name in self.labels], np.int64)


def read_table(context: Context) -> Table:
    """`table.parquet` of the sample set; `Unprocessable` SAMPLES_UNREADABLE where it is not there or not a table."""
    import pandas as pd

    path = context.data / "table.parquet"
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as exception:
        raise Unprocessable(
            "SAMPLES_UNREADABLE",
            zh="样本集不是可读的表格",
            en="the sample set is not a readable table",
            remedy_zh="请重新上传 CSV 或 Parquet 样本",
            remedy_en="upload the samples again as CSV or Parquet",
            field="sample_set_id",
        ) from exception
    frame.columns = [str(name) for name in frame.columns]
    rows = [{name: _cell(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return Table(list(frame.columns), [{str(name): value for name, value in row.items()} for row in rows])


def _cell(value: Any) -> Any:
    """A plain Python cell: numpy scalars unwrapped, every kind of missing as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return None if type(value).__name__ in ("NaTType", "NAType") else value


def find_columns(context: Context, features: Sequence[Feature], headings: Sequence[str]) -> dict[str, Any]:
    """Feature name → the processing's match (heading, unit conversion), by hand where `context.columns` says so.

    `BadInput` COLUMN_MISSING for a heading that is not there, or a required feature that no heading gives.
    """
    from model_store.processing.columns import match_columns

    for name, heading in context.columns.items():
        if heading not in headings:
            raise column_missing(name, heading, headings)
    names = {feature.name for feature in features}
    by_hand = {name: heading for name, heading in context.columns.items() if name in names}
    free = [heading for heading in headings if heading != context.label_column]
    found = dict(match_columns(features, free, by_hand=by_hand))
    for feature in features:
        if feature.name not in found and feature.required and feature.default is None:
            raise column_missing(feature.name, feature.title_zh or feature.name, headings)
    return found


def column_missing(name: str, heading: str, headings: Sequence[str]) -> BadInput:
    shown = ", ".join(headings[:30])
    return BadInput(
        "COLUMN_MISSING",
        zh=f"样本表没有特征 {name} 的列 “{heading}”",
        en=f"the samples have no column for {name} ({heading!r})",
        remedy_zh=f"请在 columns 中指定对应的列名; 现有列: {shown}",
        remedy_en=f"say in columns which heading it is; there are: {shown}",
        field=f"columns.{name}",
        details={"headings": list(headings[:200])},
    )


def find_label_column(context: Context, manifest: Manifest | None, headings: Sequence[str]) -> str:
    """The heading of the label column: as given, else by the parent's target; `BadInput` LABEL_COLUMN_NEEDED."""
    if context.label_column:
        if context.label_column in headings:
            return context.label_column
        raise column_missing("label_column", context.label_column, headings)
    target = manifest.target if manifest else None
    if target is not None:
        names = {name.strip().casefold() for name in (target.name, target.title_zh, target.title_en, *target.aliases)}
        for heading in headings:
            if heading.strip().casefold() in names - {""}:
                return heading
    raise BadInput(
        "LABEL_COLUMN_NEEDED",
        zh="不知道哪一列是标签",
        en="which column holds the label is not known",
        remedy_zh=f"请给出 label_column; 现有列: {', '.join(headings[:30])}",
        remedy_en=f"give label_column; there are: {', '.join(headings[:30])}",
        field="label_column",
        details={"headings": list(headings[:200])},
    )


def rows_of(table: Table, columns: Mapping[str, Any], extra: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Cells by feature name, in the feature's unit; `extra` headings (group, order) keep their own name."""
    from model_store.processing.columns import apply_matches

    converted = apply_matches(table.rows, columns)
    return [
        {**{name: row.get(name) for name in columns}, **{name: original.get(name) for name in extra}}
        for row, original in zip(converted, table.rows, strict=True)
    ]


def label_text(value: Any) -> str:
    """How a label reads: 1.0 and 1 are the same label, spaces at the ends do not count."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return "" if value is None else str(value).strip()


def known_labels(labels: Sequence[Label]) -> dict[str, str]:
    """Every spelling of a label (name, titles, aliases; case does not count) → its name."""
    spellings: dict[str, str] = {}
    for label in labels:
        for spelling in (label.title_zh, label.title_en, *label.aliases, label.name):
            if spelling:
                spellings[spelling.strip().casefold()] = label.name
    return spellings


def is_normal(label: str) -> bool:
    """Whether a label reads as a good part."""
    plain = label.strip().casefold()
    return plain in NORMAL_WORDS or plain.startswith(("ok_", "good_", "normal_"))


def labelled(rows: list[dict[str, Any]], raw: Sequence[Any], labels: Sequence[Label] = ()) -> Samples:
    """Rows with a category each, in the parent's own spelling where it knows the label. Unlabelled rows are dropped."""
    spellings = known_labels(labels)
    names = [spellings.get(label_text(value).casefold(), label_text(value)) for value in raw]
    kept = [place for place, name in enumerate(names) if name.casefold() not in UNLABELLED]
    samples = Samples([rows[i] for i in kept], [names[i] for i in kept], dropped=len(names) - len(kept))
    counts = Counter(samples.labels)
    rare = sorted(name for name, count in counts.items() if count < MIN_ROWS_PER_CLASS)
    if rare:  # one row can be in training or in test, not in both: such a class can be neither learned nor measured
        kept = [i for i, name in enumerate(samples.labels) if name not in rare]
        dropped = samples.dropped + len(samples.rows) - len(kept)
        samples = Samples([samples.rows[i] for i in kept], [samples.labels[i] for i in kept], dropped=dropped)
    classes = len(set(samples.labels))
    if not 2 <= classes <= MAX_CLASSES:
        raise Unprocessable(
            "LABELS_UNFIT",
            zh=f"标签列有 {classes} 个可用类别, 应为 2 到 {MAX_CLASSES} 个 (每类至少 {MIN_ROWS_PER_CLASS} 行)",
            en=f"the label column holds {classes} usable classes; 2 to {MAX_CLASSES} are needed,"
            f" each with at least {MIN_ROWS_PER_CLASS} rows",
            remedy_zh="请检查 label_column, 或补充样本",
            remedy_en="check label_column, or add samples",
            field="label_column",
        )
    return samples


def valued(rows: list[dict[str, Any]], raw: Sequence[Any]) -> Samples:
    """Rows with a number each; rows without one are dropped, text that is no number is refused."""
    values: list[float] = []
    kept: list[int] = []
    for place, cell in enumerate(raw):
        if label_text(cell).casefold() in UNLABELLED:
            continue
        try:
            number = float(cell)
        except (TypeError, ValueError):
            raise BadInput(
                "LABEL_NOT_A_NUMBER",
                zh=f"第 {place + 1} 行的目标值 {str(cell)[:40]!r} 不是数字",
                en=f"the target in row {place + 1} is no number: {str(cell)[:40]!r}",
                remedy_zh="请更正该单元格, 或检查 label_column",
                remedy_en="correct the cell, or check label_column",
                field="label_column",
            ) from None
        values.append(number)
        kept.append(place)
    return Samples([rows[i] for i in kept], values=np.array(values), dropped=len(raw) - len(kept))


def check_enough(samples: Samples, minimum: int) -> None:
    """`Unprocessable` SAMPLES_TOO_FEW when too few usable rows remain."""
    if len(samples.rows) >= minimum:
        return
    raise Unprocessable(
        "SAMPLES_TOO_FEW",
        zh=f"可用样本只有 {len(samples.rows)} 行 (缺标签或过少而去掉 {samples.dropped} 行), 至少需要 {minimum} 行",
        en=f"{len(samples.rows)} usable rows ({samples.dropped} dropped for want of a label); {minimum} are needed",
        remedy_zh="请补充带标签的样本",
        remedy_en="add labelled samples",
        field="sample_set_id",
    )


def read_samples(context: Context, manifest: Manifest) -> Samples:
    """The sample set by a manifest's features and target: a table with its label column, or images in label folders."""
    if (context.data / "images").is_dir():
        return read_images(context, manifest)
    table = read_table(context)
    label = find_label_column(context, manifest, table.headings)
    columns = find_columns(context, manifest.features, [name for name in table.headings if name != label])
    rows = rows_of(table, columns, extra=[name for name in window_keys(manifest) if name in table.headings])
    whole = [place for place, row in enumerate(rows) if is_complete(row, manifest.features)]
    kept, raw = [rows[place] for place in whole], [table.rows[place].get(label) for place in whole]
    numeric = manifest.target is not None and manifest.target.kind == "number"
    found = valued(kept, raw) if numeric else labelled(kept, raw, manifest.labels)
    found.dropped += len(rows) - len(whole)
    return found


def is_complete(row: Mapping[str, Any], features: Sequence[Feature]) -> bool:
    """Whether every feature that a model insists on has a cell."""
    return all(
        row.get(feature.name) not in (None, "") or not feature.required or feature.default is not None
        for feature in features
    )


def read_rows(context: Context, manifest: Manifest) -> list[dict[str, Any]]:
    """The sample set's cells by feature, labels aside."""
    if (context.data / "images").is_dir():
        feature = next((entry.name for entry in manifest.features if entry.kind == "image"), "image")
        return [{feature: path.read_bytes()} for path, _ in image_paths(context.data)]
    table = read_table(context)
    columns = find_columns(context, manifest.features, table.headings)
    return rows_of(table, columns, extra=[name for name in window_keys(manifest) if name in table.headings])


def window_keys(manifest: Manifest) -> list[str]:
    """The group and order headings that a windowed bundle wants beside its features."""
    names: list[str] = []
    for step in manifest.pre:
        if step.op == "window":
            names += [name for name in (step.group, step.order) if name]
    taken = {feature.name for feature in manifest.features}
    return [name for name in names if name not in taken]


def image_paths(folder: Path) -> list[tuple[Path, str]]:
    """(file, label) of `images/<label>/<file>`, ordered by path."""
    found = sorted(path for path in (folder / "images").glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [(path, path.parent.name) for path in found]


def read_images(context: Context, manifest: Manifest) -> Samples:
    """Encoded pictures by label folder, under the name of the parent's image feature."""
    feature = next((entry.name for entry in manifest.features if entry.kind == "image"), "image")
    found = image_paths(context.data)
    return labelled([{feature: path.read_bytes()} for path, _ in found], [name for _, name in found], manifest.labels)
