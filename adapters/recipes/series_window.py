"""Predict a value (remaining life, a soft sensor) or a condition from windows of a series.

load → split by whole groups (engines, machines) → window statistics → train (gradient boosting or linear) → statistics
and model as one ONNX graph → verify against scikit-learn → measure beside the parent → bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe

if TYPE_CHECKING:
    import onnx

    from adapters.samples import Samples
    from model_store.manifest import Manifest

STATISTICS = "am_statistics"


def run(context: Context) -> Outcome:
    import numpy as np

    from adapters import derive, graphs, linear, measure, samples, split, trees, windows
    from model_store.bundle import seal

    context.report(0.05, "loading")
    base = windows.base_manifest(context, "number" if context.params["task"] == "regression" else "category")
    category = (base.target is not None and base.target.kind == "category") if context.parent else (
        context.params["task"] == "classification"
    )  # fmt: skip
    rows = windows.read_ordered(context, base, category)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(
        rows, context.seed, float(context.params["test_share"]), ordered=True,
        whole_groups=context.params["hold_out"] == "groups",
    )  # fmt: skip
    train, test = rows.take(parts.train), rows.take(parts.test)
    cap = float(context.params["cap"])
    if cap > 0 and not category:  # remaining life beyond the cap reads as "long": it cannot be seen in the signals yet
        train.values, test.values = np.minimum(train.values, cap), np.minimum(test.values, cap)

    context.report(0.15, "windowing")
    manifest = new_manifest(context, base, train, category)
    draft = derive.draft(context, manifest)
    w_train, w_test = (measure.encode(draft, part.rows)[windows.TENSOR] for part in (train, test))
    statistics = windows.statistics_graph(w_train.shape[1], w_train.shape[2])
    x_train, x_test = (measure.run_model(statistics, {windows.TENSOR: w})[STATISTICS] for w in (w_train, w_test))
    context.report(0.2, "training")
    model, head = fit_head(context, x_train, train.labels if category else train.values)

    context.report(0.7, "verifying")
    graphs.save(windows.behind_statistics(statistics, head), context.out)
    expected, path = linear.predict(model, x_test), context.out / "model.onnx"
    parity = measure.check_parity(
        path,
        {windows.TENSOR: w_test},
        expected,
        odd_rows=0.0 if context.params["method"] == "linear" else trees.ODD_ROWS,
    )
    data = derive.own_data(manifest.features, train, test)
    manifest = manifest.model_copy(update={"data": data})
    child = seal(context.out, manifest)

    context.report(0.8, "evaluating")
    before = measure.measure(context.parent, test, context.seed) if context.parent else []
    after = measure.measure(child, test, context.seed)
    facts = {"rows": len(rows.rows), "rows_train": len(train.rows), "rows_test": len(test.rows), "parity": parity,
             "groups": len(set(rows.groups)), "dropped": rows.dropped}  # fmt: skip
    golden = derive.generated_like({windows.TENSOR: w_train}, context.seed)
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


def fit_head(context: Context, x_train: Any, wanted: Any) -> tuple[Any, onnx.ModelProto]:
    """The model on window statistics, and its graph."""
    from adapters import linear, trees

    if context.params["method"] == "linear":
        model = linear.fit(x_train, wanted, context.seed)
        return model, linear.export(model, STATISTICS)
    model = trees.fit(x_train, wanted, context.params, context.seed, context.report)
    return model, trees.export(model, x_train.shape[1], STATISTICS)


def new_manifest(context: Context, base: Manifest, train: Samples, category: bool) -> Manifest:
    """The child's schema: rows of a series in, one answer for the window that ends at each row."""
    from adapters import derive, texts, windows
    from model_store.manifest import TensorSpec
    from model_store.step_specs import Classify, PostStep, Value

    step = windows.window_step(context, base.features, train)
    names = sorted(set(train.labels))
    post: list[PostStep] = [Classify(tensor="probabilities", labels=names)] if category else [Value(tensor="value")]
    output = TensorSpec(name="probabilities" if category else "value", dtype="FP32",
                        shape=[-1, len(names) if category else 1])  # fmt: skip
    return derive.derived_manifest(
        context, base, RECIPE.relation, task="series-classification" if category else "series-regression",
        modality="series", pre=[step], post=post, labels=texts.labels_of(base, names) if category else [],
        inputs=[TensorSpec(name=windows.TENSOR, dtype="FP32", shape=[-1, len(base.features), step.size])],
        outputs=[output], variation="fp32", adaptable="calibrate", reference={},
        method=f"window statistics, {'gradient boosting' if context.params['method'] == 'boosting' else 'linear'}",
    )  # fmt: skip


RECIPE = Recipe(
    name="series_window",
    title_zh="序列窗口: 剩余寿命与状态",
    title_en="Series windows: remaining life and condition",
    summary_zh="按设备分组的时间序列, 取滑动窗口统计量训练; 整台设备划入训练或测试, 不泄漏。",
    summary_en="Learns from sliding windows of each machine's series; whole machines are held out, so nothing leaks.",
    tasks=("series-regression", "series-classification"),
    modalities=("series",),
    relation="retrained",
    run=run,
    parent="optional",
    levels=("none", "calibrate", "head", "lora"),  # no weights are taken, only the schema
    needs=Needs(min_rows=100, memory_mb=3072, minutes=1.0),
    parameters=(
        Parameter("task", "choice", "regression", choices=("regression", "classification"),
                  zh="任务 (无基础模型时)", en="task (without a parent)"),
        Parameter("group", "text", "", zh="分组列 (如设备号)", en="group column (such as the machine)"),
        Parameter("order", "text", "", zh="排序列 (如时间)", en="order column (such as time)"),
        Parameter("window", "integer", 30, 2, 512, zh="窗口长度 (行)", en="window, in rows"),
        Parameter("cap", "number", 0.0, 0.0, 1e9, zh="目标上限 (0 为不限)", en="cap of the target (0: none)"),
        Parameter("method", "choice", "boosting", choices=("boosting", "linear"), zh="方法", en="method"),
        Parameter("iterations", "integer", 150, 10, 1000, zh="提升轮数", en="boosting rounds"),
        Parameter("learning_rate", "number", 0.1, 0.001, 1.0, zh="学习率", en="learning rate"),
        Parameter("leaves", "integer", 15, 2, 63, zh="每棵树的叶子数", en="leaves of a tree"),
        Parameter("hold_out", "choice", "groups", choices=("groups", "last"),
                  zh="评测: 整组留出 / 每组最后一段", en="measure on whole groups, or on the last part of each"),
        Parameter("test_share", "number", 0.25, 0.1, 0.5, zh="留作评测的比例", en="share held out to measure on"),
    ),
)  # fmt: skip
