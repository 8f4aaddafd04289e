"""Train a new tabular model on the factory's own rows: the parent's features and target, none of its weights.

load → split → train (gradient boosting or linear) → export to ONNX → verify against scikit-learn → measure beside the
parent → bundle. Without a parent the features are the table's own columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe

if TYPE_CHECKING:
    from adapters.samples import Samples
    from model_store.manifest import Manifest

TENSOR = "features"
MIN_ROWS_FOR_BOOSTING = 60
MIN_ROWS_FOR_EARLY_STOPPING = 300


def run(context: Context) -> Outcome:
    from adapters import derive, graphs, linear, measure, samples, split, tables, trees
    from model_store.bundle import seal

    context.report(0.05, "loading")
    base = context.parent.manifest if context.parent else tables.describe_table(context)
    rows = samples.read_samples(context, base)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    train, test = rows.take(parts.train), rows.take(parts.test)
    method = str(context.params["method"])
    if method == "auto":
        method = "boosting" if len(train.rows) >= MIN_ROWS_FOR_BOOSTING else "linear"

    manifest = new_manifest(context, base, train, method)
    x_train = measure.encode(derive.draft(context, manifest), train.rows)[TENSOR]
    x_test = measure.encode(derive.draft(context, manifest), test.rows)[TENSOR]
    wanted = train.values if manifest.target and manifest.target.kind == "number" else train.labels
    context.report(0.2, "training")
    if method == "linear":
        model: Any = linear.fit(x_train, wanted, context.seed)
        graph = linear.export(model, TENSOR)
    else:
        model = trees.fit(x_train, wanted, context.params, context.seed, context.report)
        graph = trees.export(model, x_train.shape[1], TENSOR)

    context.report(0.7, "verifying")
    graphs.save(graph, context.out)
    expected, path = linear.predict(model, x_test), context.out / "model.onnx"
    parity = measure.check_parity(
        path, {TENSOR: x_test}, expected, odd_rows=0.0 if method == "linear" else trees.ODD_ROWS
    )
    data = derive.own_data(manifest.features, train, test)
    manifest = manifest.model_copy(update={"data": data, "reference": tables.reference(manifest, train.rows)})
    child = seal(context.out, manifest)

    context.report(0.8, "evaluating")
    before = measure.measure(context.parent, test, context.seed) if context.parent else []
    after = measure.measure(child, test, context.seed)
    facts = {
        "rows": len(rows.rows),
        "rows_train": len(train.rows),
        "rows_test": len(test.rows),
        "dropped": rows.dropped,
    }
    return derive.finish(
        context, RECIPE, manifest, learnt=train, child=after,
        golden_inputs=derive.generated_like({TENSOR: x_train}, context.seed),
        parent=before, notes=[], facts={**facts, "method": method, "parity": parity},
    )  # fmt: skip


def new_manifest(context: Context, base: Manifest, train: Samples, method: str) -> Manifest:
    """The child's schema: features and target as the base has them, processing and tensors of its own."""
    from adapters import derive, tables
    from model_store.manifest import Label, TensorSpec
    from model_store.step_specs import Classify, Columns, PostStep, Value

    features = [feature for feature in base.features if feature.kind in ("number", "integer", "category")]
    pre = [*tables.encoding_steps(features, train.rows), Columns(features=[f.name for f in features], tensor=TENSOR)]
    post: list[PostStep]
    if base.target is not None and base.target.kind == "number":
        task, labels, post = "tabular-regression", [], [Value(tensor="value")]
        outputs = [TensorSpec(name="value", dtype="FP32", shape=[-1, 1])]
    else:
        known = {label.name: label for label in base.labels}
        names = sorted(set(train.labels))
        ordered = [name for name in known if name in names] + [name for name in names if name not in known]
        task, labels = "tabular-classification", [known.get(name, Label(name=name)) for name in ordered]
        # scikit-learn sorts its classes: the tensor's order is the sorted one, the manifest's the parent's.
        positive = base.target.positive if base.target else None
        post = [Classify(tensor="probabilities", labels=names, positive=positive if positive in names else None)]
        outputs = [TensorSpec(name="probabilities", dtype="FP32", shape=[-1, len(names)])]
    return derive.derived_manifest(
        context, base, RECIPE.relation, task=task, modality="tabular", features=features, labels=labels, pre=pre,
        post=post, outputs=outputs, inputs=[TensorSpec(name=TENSOR, dtype="FP32", shape=[-1, len(features)])],
        variation="fp32", adaptable="calibrate", reference={},
        method={"boosting": "gradient boosting", "linear": "linear"}[method],
    )  # fmt: skip


RECIPE = Recipe(
    name="tabular_retrain",
    title_zh="表格模型再训练",
    title_en="Retrain on your own table",
    summary_zh="沿用基础模型的特征与目标, 用企业自有表格重新训练 (梯度提升或线性), 不使用基础模型的权重。",
    summary_en="Keeps the parent's features and target and trains anew (gradient boosting or linear) on your own rows.",
    tasks=("tabular-classification", "tabular-regression"),
    modalities=("tabular",),
    relation="retrained",
    run=run,
    parent="optional",
    levels=("none", "calibrate", "head", "lora"),  # no weights are taken, only the names of the columns
    needs=Needs(min_rows=30, memory_mb=2048, minutes=0.5),
    parameters=(
        Parameter("method", "choice", "auto", choices=("auto", "boosting", "linear"), zh="方法", en="method"),
        Parameter("iterations", "integer", 150, 10, 1000, zh="提升轮数", en="boosting rounds"),
        Parameter("learning_rate", "number", 0.1, 0.001, 1.0, zh="学习率", en="learning rate"),
        Parameter("leaves", "integer", 15, 2, 63, zh="每棵树的叶子数", en="leaves of a tree"),
        Parameter("test_share", "number", 0.25, 0.1, 0.5, zh="留作评测的比例", en="share held out to measure on"),
        Parameter("task", "choice", "auto", choices=("auto", "classification", "regression"),
                  zh="任务 (无基础模型时)", en="task (without a parent)"),
    ),
)  # fmt: skip
