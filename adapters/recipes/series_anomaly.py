"""Detect anomalies in a series: far out within the principal components of normal windows, or not rebuilt by them.

load → split by whole groups or by time → components from normal training windows → threshold on normal windows kept
aside, at the overkill allowed → ONNX → verify against numpy → measure beside the parent → bundle.
Sources of the score: Hotelling's T² and the Q statistic of Jackson & Mudholkar (1979), added as Yue & Qin (2001) do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe
from model_store.errors import Unprocessable

if TYPE_CHECKING:
    from adapters.samples import Samples
    from model_store.manifest import Manifest

MIN_NORMAL_ROWS = 40
THRESHOLD_SHARE = 0.3  # of the normal training rows, the last ones: not used for the components


def run(context: Context) -> Outcome:
    from adapters import calibration, derive, graphs, measure, samples, split, windows
    from model_store.bundle import seal

    context.report(0.05, "loading")
    base = windows.base_manifest(context, "anomaly")
    rows = windows.read_ordered(context, base, category=True)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(
        rows, context.seed, float(context.params["test_share"]), ordered=True,
        whole_groups=context.params["hold_out"] == "groups",
    )  # fmt: skip
    train, test = rows.take(parts.train), rows.take(parts.test)

    context.report(0.15, "windowing")
    manifest = new_manifest(context, base, train, threshold=0.0)
    draft = derive.draft(context, manifest)
    w_train, w_test = (measure.encode(draft, part.rows)[windows.TENSOR] for part in (train, test))
    normal = w_train[~measure.strange(base, train.labels)]
    check_normal(len(normal))
    kept = int(len(normal) * (1 - THRESHOLD_SHARE))

    context.report(0.3, "training")
    share, limit = float(context.params["explained"]), int(context.params["components"])
    learnt = windows.principal_components(normal[:kept], share, limit)
    aside = windows.strangeness(normal[kept:], learnt).reshape(-1)
    threshold = calibration.threshold_at_overkill(aside, float(context.params["overkill"]))

    context.report(0.6, "verifying", components=learnt.count, threshold=threshold)
    graphs.save(windows.strangeness_graph(learnt, w_train.shape[2]), context.out)
    expected = windows.strangeness(w_test, learnt)
    parity = measure.check_parity(context.out / "model.onnx", {windows.TENSOR: w_test}, expected)
    data = derive.own_data(manifest.features, train, test)
    manifest = new_manifest(context, base, train, threshold).model_copy(update={"data": data})
    child = seal(context.out, manifest)

    context.report(0.8, "evaluating")
    before = measure.measure(context.parent, test, context.seed) if context.parent else []
    after = measure.measure(child, test, context.seed)
    facts = {"rows": len(rows.rows), "rows_train": len(train.rows), "rows_test": len(test.rows), "parity": parity,
             "components": learnt.count, "threshold": threshold}  # fmt: skip
    golden = derive.generated_like({windows.TENSOR: normal}, context.seed)
    return derive.finish(
        context,
        RECIPE,
        manifest,
        learnt=train,
        golden_inputs=golden,
        child=after,
        parent=before,
        notes=[*split.notes(parts), *windows.order_notes(context, rows)],
        facts=facts,
    )


def check_normal(count: int) -> None:
    """`Unprocessable` NORMAL_ROWS_TOO_FEW: what is normal is learnt from normal rows."""
    if count >= MIN_NORMAL_ROWS:
        return
    raise Unprocessable(
        "NORMAL_ROWS_TOO_FEW",
        zh=f"训练部分只有 {count} 行正常样本, 至少需要 {MIN_NORMAL_ROWS} 行",
        en=f"{count} normal rows to train on; {MIN_NORMAL_ROWS} are needed",
        remedy_zh="请补充正常样本; 标签列中正常写作 0、正常、ok 或 normal",
        remedy_en="add normal rows; the label column calls them 0, 正常, ok or normal",
        field="label_column",
    )


def new_manifest(context: Context, base: Manifest, train: Samples, threshold: float) -> Manifest:
    """The child's schema: rows of a series in, a score and a verdict for the window that ends at each row."""
    from adapters import derive, windows
    from model_store.manifest import TensorSpec
    from model_store.step_specs import Anomaly

    step = windows.window_step(context, base.features, train)
    return derive.derived_manifest(
        context, base, RECIPE.relation, task="anomaly-detection", modality="series", pre=[step],
        post=[Anomaly(tensor="score", threshold=threshold)], labels=[],
        inputs=[TensorSpec(name=windows.TENSOR, dtype="FP32", shape=[-1, len(base.features), step.size])],
        outputs=[TensorSpec(name="score", dtype="FP32", shape=[-1, 1])],
        variation="fp32", adaptable="calibrate", reference={}, method="principal components, T² and Q",
    )  # fmt: skip


RECIPE = Recipe(
    name="series_anomaly",
    title_zh="序列异常检测",
    title_en="Series anomaly detection",
    summary_zh="只学正常窗口 (主成分 T²+Q); 阈值按允许的过杀率在留出的正常数据上选定。",
    summary_en="Learns normal windows only (principal components, T² and Q); threshold for a given overkill.",
    tasks=("anomaly-detection",),
    modalities=("series",),
    relation="retrained",
    run=run,
    parent="optional",
    levels=("none", "calibrate", "head", "lora"),  # no weights are taken, only the schema
    needs=Needs(min_rows=100, memory_mb=2048, minutes=0.5),
    parameters=(
        Parameter("group", "text", "", zh="分组列 (如设备号)", en="group column (such as the machine)"),
        Parameter("order", "text", "", zh="排序列 (如时间)", en="order column (such as time)"),
        Parameter("window", "integer", 16, 2, 512, zh="窗口长度 (行)", en="window, in rows"),
        Parameter("explained", "number", 0.9, 0.5, 0.999, zh="解释方差比例", en="share of variance explained"),
        Parameter("components", "integer", 32, 1, 128, zh="主成分上限", en="components at most"),
        Parameter("overkill", "number", 0.05, 0.0, 0.5, zh="允许的过杀率", en="normal rows flagged, at most"),
        Parameter("hold_out", "choice", "groups", choices=("groups", "last"),
                  zh="评测: 整组留出 / 每组最后一段", en="measure on whole groups, or on the last part of each"),
        Parameter("test_share", "number", 0.4, 0.1, 0.6, zh="留作评测的比例", en="share held out to measure on"),
    ),
)  # fmt: skip
