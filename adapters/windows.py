"""Windows of series: schema from a table, and two graphs: the statistics of each channel, and how strange a window
is by principal components. Training sees exactly what the graph computes, because it runs these very nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from adapters import graphs, samples
from adapters.export import declare_once
from adapters.recipe import Context, Note
from adapters.samples import Samples, Table
from model_store.errors import BadInput
from model_store.manifest import Feature, Manifest, Target, TensorSpec
from model_store.step_specs import Window

TENSOR = "windows"
STATISTICS = ("mean", "std", "min", "max", "last", "slope")
Floats = npt.NDArray[np.floating[Any]]


def base_manifest(context: Context, kind: Literal["number", "category", "anomaly"]) -> Manifest:
    """The parent's schema, or one made of the table's number columns with a target of `kind`."""
    table = samples.read_table(context)
    if context.parent is not None:
        return context.parent.manifest
    label = samples.find_label_column(context, None, table.headings)
    keys = {label, *window_columns(context, table)}
    if context.columns:
        names = list(context.columns)
    else:
        names = [name for name in table.headings if name not in keys and _is_channel(table, name)]
    if not names:
        raise samples.column_missing("channel", "", table.headings)
    return Manifest(
        name=context.name, task="anomaly-detection" if kind == "anomaly" else "series-regression", modality="series",
        features=[Feature(name=name, kind="number", title_zh=name, title_en=name) for name in names],
        target=Target(name=label, kind=kind, title_zh=label, title_en=label),
        licence="proprietary", title_zh=f"{context.name} · 序列模型", title_en=f"{context.name} · series model",
        summary_zh=f"由企业自有序列训练, 目标列为 {label}。",
        summary_en=f"Trained on the factory's own series; predicts {label}.",
        inputs=[TensorSpec(name=TENSOR, dtype="FP32", shape=[-1, len(names), -1])],
        outputs=[TensorSpec(name="value", dtype="FP32", shape=[-1, 1])],
    )  # fmt: skip


def window_columns(context: Context, table: Table) -> list[str]:
    """The group and order headings named in the parameters; `BadInput` COLUMN_MISSING for one that is not there."""
    found = []
    for name in ("group", "order"):
        heading = str(context.params[name]).strip()
        if heading and heading not in table.headings:
            raise samples.column_missing(name, heading, table.headings)
        if heading:
            found.append(heading)
    return found


def _is_channel(table: Table, name: str) -> bool:
    cells = [row[name] for row in table.rows if row[name] is not None]
    return bool(cells) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)


def window_step(context: Context, features: list[Feature], rows: Samples) -> Window:
    """The windowing that the child declares: the last `window` rows of a group up to each row, edges repeated.

    An order column of numbers sorts the rows of a call; by one of dates the samples are sorted here, and callers send
    their rows in order (`order_notes` says so).
    """
    group, order = (str(context.params[name]).strip() or None for name in ("group", "order"))
    if order is not None and not _numeric_order(order, rows):
        order = None
    names = [feature.name for feature in features]
    size = int(context.params["window"])
    return Window(features=names, tensor=TENSOR, size=size, group=group, order=order, pad="edge")


def _numeric_order(order: str, rows: Samples) -> bool:
    return all(isinstance(row[order], int | float) for row in rows.rows)


def order_notes(context: Context, rows: Samples) -> list[Note]:
    """What a caller must know where the bundle cannot sort for itself."""
    order = str(context.params["order"]).strip()
    if order and _numeric_order(order, rows):
        return []
    zh, en = "调用时请按时间先后发送各行。", "Send the rows of a call in the order of time."
    return [Note("ROWS_IN_ORDER", zh=zh, en=en)]


def read_ordered(context: Context, base: Manifest, category: bool) -> Samples:
    """Labelled rows with their keys, sorted by group and order, `groups` filled where a group column is named.

    A parent that wants its own group and order headings finds them too.
    """
    table = samples.read_table(context)
    label = samples.find_label_column(context, base if context.parent else None, table.headings)
    keys = list(dict.fromkeys([*window_columns(context, table), *samples.window_keys(base)]))
    columns = samples.find_columns(context, base.features, [name for name in table.headings if name != label])
    rows = samples.rows_of(table, columns, extra=[key for key in keys if key in table.headings])
    raw = [row[label] for row in table.rows]
    found = samples.labelled(rows, raw, base.labels) if category else samples.valued(rows, raw)
    fill_gaps(found.rows, [feature.name for feature in base.features])
    group, order = (str(context.params[name]).strip() for name in ("group", "order"))
    found.groups = [samples.label_text(row[group]) for row in found.rows] if group else []
    places = list(range(len(found.rows)))
    if order:
        places.sort(key=lambda place: (found.groups[place] if group else "", _orderly(found.rows[place][order], order)))
    return found.take(places)


def _orderly(cell: Any, heading: str) -> tuple[int, Any]:
    if cell is None:
        raise BadInput(
            "ORDER_MISSING",
            zh=f"排序列 {heading} 有空单元格",
            en=f"the order column {heading} has an empty cell",
            remedy_zh="请补全时间或序号",
            remedy_en="fill in the time or number",
            field="params.order",
        )
    return (0, cell) if isinstance(cell, int | float) else (1, str(cell))


def fill_gaps(rows: list[dict[str, Any]], names: list[str]) -> None:
    """A missing reading repeats the one before it (the first known one at the start), in place."""
    for name in names:
        known = next((row[name] for row in rows if row[name] is not None), 0.0)
        for row in rows:
            if row[name] is None:
                row[name] = known
            known = row[name]


def statistics_graph(channels: int, size: int) -> onnx.ModelProto:
    """[N, C, T] → "am_statistics" [N, 6·C]: mean, deviation, least, greatest, last and slope of each channel."""
    times = np.arange(size, dtype=np.float64) - (size - 1) / 2
    slope = times / max(float((times**2).sum()), 1e-12)
    constants = [
        graphs.constant("am_slope", slope.reshape(size, 1)),
        graphs.constant("am_last_at", np.array([size - 1], np.int64)),
        graphs.constant("am_flat_shape", np.array([-1, channels * len(STATISTICS)], np.int64)),
    ]
    nodes = [
        helper.make_node("ReduceMean", [TENSOR], ["am_mean"], axes=[2], keepdims=1),
        helper.make_node("Sub", [TENSOR, "am_mean"], ["am_centred"]),
        helper.make_node("Mul", ["am_centred", "am_centred"], ["am_square"]),
        helper.make_node("ReduceMean", ["am_square"], ["am_variance"], axes=[2], keepdims=1),
        helper.make_node("Sqrt", ["am_variance"], ["am_std"]),
        helper.make_node("ReduceMin", [TENSOR], ["am_min"], axes=[2], keepdims=1),
        helper.make_node("ReduceMax", [TENSOR], ["am_max"], axes=[2], keepdims=1),
        helper.make_node("Gather", [TENSOR, "am_last_at"], ["am_last"], axis=2),
        helper.make_node("MatMul", ["am_centred", "am_slope"], ["am_trend"]),
        helper.make_node(
            "Concat", ["am_mean", "am_std", "am_min", "am_max", "am_last", "am_trend"], ["am_all"], axis=2
        ),
        helper.make_node("Reshape", ["am_all", "am_flat_shape"], ["am_statistics"]),
    ]
    return graphs.graph_model(
        "window_statistics",
        nodes,
        constants,
        [graphs.floats_in(TENSOR, channels, size)],
        [graphs.floats_in("am_statistics", channels * len(STATISTICS))],
    )


def behind_statistics(statistics: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Statistics and the model that reads them ("am_statistics") as one graph."""
    from onnx import compose

    for part in (statistics, model):
        part.ir_version = graphs.IR_VERSION
    merged = compose.merge_models(statistics, model, io_map=[("am_statistics", "am_statistics")])
    declare_once(merged)
    graphs.name_batch(merged)
    onnx.checker.check_model(merged)
    return merged


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of normal windows, flattened and standardised by channel."""

    mean: Floats  # [C]
    scale: Floats  # [C]
    directions: Floats  # [C·T, k]
    deviations: Floats  # [k], of the codes of normal windows
    residual: float  # mean square of what the directions leave of normal windows

    @property
    def count(self) -> int:
        return int(self.directions.shape[1])


def principal_components(windows: Floats, share: float, limit: int) -> Components:
    """The fewest components of normal windows [N, C, T] that explain `share` of the variance, at most `limit`."""
    mean, scale = windows.mean(axis=(0, 2)), np.maximum(windows.std(axis=(0, 2)), 1e-6)
    flat = ((windows - mean[:, None]) / scale[:, None]).reshape(len(windows), -1).astype(np.float64)
    _, singular, directions = np.linalg.svd(flat, full_matrices=False)
    explained = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-12)
    count = min(limit, int(np.searchsorted(explained, share)) + 1, max(1, len(directions) - 1))
    kept = directions[:count].T
    left = float(((flat - flat @ kept @ kept.T) ** 2).mean())
    deviations = np.maximum(singular[:count] / np.sqrt(len(windows)), 1e-6)
    return Components(
        mean.astype(np.float32), scale.astype(np.float32), kept.astype(np.float32), deviations.astype(np.float32),
        max(left, 1e-9),
    )  # fmt: skip


def strangeness_graph(learnt: Components, size: int) -> onnx.ModelProto:
    """[N, C, T] → "score" [N, 1]: how far out within the components, plus how much they leave unexplained.

    T² over its expectation plus Q over its expectation, so a normal window scores about 2. Q alone is blind to what
    happens inside the components, T² to what happens outside (Jackson & Mudholkar, 1979; Yue & Qin, 2001).
    """
    channels = len(learnt.mean)
    nodes = [
        helper.make_node("Sub", [TENSOR, "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["standard"]),
        helper.make_node("Reshape", ["standard", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "directions"], ["codes"]),
        helper.make_node("Div", ["codes", "deviations"], ["white"]),
        helper.make_node("Mul", ["white", "white"], ["white_square"]),
        helper.make_node("ReduceMean", ["white_square"], ["within"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["codes", "directions_t"], ["rebuilt"]),
        helper.make_node("Sub", ["flat", "rebuilt"], ["left"]),
        helper.make_node("Mul", ["left", "left"], ["left_square"]),
        helper.make_node("ReduceMean", ["left_square"], ["outside"], axes=[1], keepdims=1),
        helper.make_node("Div", ["outside", "residual"], ["outside_scaled"]),
        helper.make_node("Add", ["within", "outside_scaled"], ["score"]),
    ]
    constants = [
        graphs.constant("mean", learnt.mean.reshape(1, channels, 1)),
        graphs.constant("scale", learnt.scale.reshape(1, channels, 1)),
        graphs.constant("flat_shape", np.array([-1, channels * size], np.int64)),
        graphs.constant("directions", learnt.directions),
        graphs.constant("directions_t", learnt.directions.T),
        graphs.constant("deviations", learnt.deviations.reshape(1, -1)),
        graphs.constant("residual", np.float32(learnt.residual)),
    ]
    return graphs.graph_model(
        "strangeness", nodes, constants, [graphs.floats_in(TENSOR, channels, size)], [graphs.floats_in("score", 1)]
    )


def strangeness(windows: Floats, learnt: Components) -> npt.NDArray[np.float64]:
    """The same in numpy, float64: [N, 1], to verify the graph against."""
    flat = ((windows - learnt.mean[:, None]) / learnt.scale[:, None]).reshape(len(windows), -1).astype(np.float64)
    codes = flat @ learnt.directions
    left = ((flat - codes @ learnt.directions.T) ** 2).mean(axis=1, keepdims=True)
    within = ((codes / learnt.deviations) ** 2).mean(axis=1, keepdims=True)
    return np.asarray(within + left / learnt.residual)
