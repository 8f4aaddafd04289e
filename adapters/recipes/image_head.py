"""Classify images: a new head on a frozen base. The base's graph stays as it is, one Gemm and a softmax go behind it.

load → embeddings from the parent's own graph → split → train the head (logistic regression) → compose → verify against
scikit-learn → measure beside the parent's nearest class centre → bundle. The base's weights are in the child: finetune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe
from model_store.errors import Unprocessable

if TYPE_CHECKING:
    from model_store.bundle import Bundle


def run(context: Context) -> Outcome:
    import onnx

    from adapters import derive, graphs, linear, measure, samples, split, texts
    from model_store.bundle import seal
    from model_store.manifest import Target, TensorSpec
    from model_store.step_specs import Classify

    parent = context.parent
    assert parent is not None
    context.report(0.05, "loading")
    rows = samples.read_images(context, parent.manifest)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    train, test = rows.take(parts.train), rows.take(parts.test)

    context.report(0.15, "embedding")
    tensor = embedding_tensor(parent)
    x_train, x_test = (measure.outputs_of(parent, part.rows)[tensor] for part in (train, test))
    context.report(0.6, "training")
    model = linear.fit(x_train, train.labels, context.seed, strength=float(context.params["strength"]), one_unit=True)
    loss = texts.log_loss(model, x_train, train.labels)

    context.report(0.7, "exporting", loss=loss)
    weights, bias = linear.head_weights(model)
    derive.copy_bundle_files(parent, context.out, new_graph=True)
    graphs.save(graphs.append_head(onnx.load(parent.model_path), tensor, weights, bias), context.out)
    names = [str(name) for name in model.classes_]
    data = derive.own_data(parent.manifest.features, train, test)
    manifest = derive.derived_manifest(
        context, parent.manifest, RECIPE.relation, task="image-classification", data=data,
        labels=texts.labels_of(parent.manifest, names), post=[Classify(tensor="probabilities", labels=names)],
        target=Target(name="label", kind="category", title_zh="标签", title_en="Label"),
        outputs=[TensorSpec(name="probabilities", dtype="FP32", shape=[-1, len(names)])],
        tier="small", family="", adaptable="calibrate", reference={}, method="frozen convolutional base, linear head",
    )  # fmt: skip
    child = seal(context.out, manifest)
    expected = linear.predict(model, x_test)
    parity = measure.check_answers(measure.outputs_of(child, test.rows)["probabilities"], expected)

    context.report(0.85, "evaluating")
    after = measure.measure(child, test, context.seed)
    before = texts.measure_by_centroids(parent, train, test, context.seed)
    facts = {
        "rows": len(rows.rows),
        "rows_train": len(train.rows),
        "rows_test": len(test.rows),
        "dropped": rows.dropped,
    }
    return derive.finish(
        context, RECIPE, manifest, learnt=train, child=after,
        golden_inputs=measure.golden_inputs(parent, train.rows, context.seed),
        parent=before, notes=[texts.centroid_note(parent.manifest.name)], facts={**facts, "parity": parity},
    )  # fmt: skip


def embedding_tensor(parent: Bundle) -> str:
    """The graph's output [N, D] that an embedding bundle answers from; `Unprocessable` where there is none."""
    last: Any = parent.manifest.post[-1] if parent.manifest.post else None
    if last is not None and last.op == "vector" and last.mean_pool is None:
        return str(last.tensor)
    raise Unprocessable(
        "PARENT_NO_EMBEDDING",
        zh=f"{parent.manifest.name} 不输出每图一个向量",
        en=f"{parent.manifest.name} does not answer one vector for each image",
        remedy_zh="请选择 embedding 任务的图像基础模型",
        remedy_en="choose an image base model of task embedding",
        field="model",
    )


RECIPE = Recipe(
    name="image_head",
    title_zh="图像分类 (新分类头)",
    title_en="Image classification by a new head",
    summary_zh="冻结卷积基础模型, 用企业自有图片训练新的分类头; 样本为按标签分文件夹的图片。",
    summary_en="Freezes a convolutional base and trains a new head on your own images in label folders.",
    tasks=("image-classification",),
    modalities=("image",),
    relation="finetune",
    run=run,
    parent_tasks=("embedding",),
    levels=("head", "lora"),
    data="images",
    needs=Needs(min_rows=20, memory_mb=2048, minutes=0.5),
    parameters=(
        Parameter("strength", "number", 0.1, 0.0001, 100.0, zh="拟合强度 (正则化的倒数)", en="inverse regularisation"),
        Parameter("test_share", "number", 0.25, 0.1, 0.5, zh="留作评测的比例", en="share held out to measure on"),
    ),
)
