"""Find odd images from good ones alone: distance of an image's embedding from those of the good training images.

load → embeddings from the parent's own graph → split → a whitened distance or a memory bank from good images →
threshold on good images kept aside, at the overkill allowed → compose → verify → measure → bundle.
Sources: Lee et al. (2018) for the Mahalanobis distance, Roth et al. (2022) for the memory bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Note, Outcome, Parameter, Recipe

if TYPE_CHECKING:
    from model_store.manifest import Manifest

THRESHOLD_SHARE = 0.3  # of the good training images: for the threshold, not for the distance
MIN_ASIDE = 20


def run(context: Context) -> Outcome:
    import numpy as np
    import onnx

    from adapters import anomalies, calibration, derive, graphs, measure, samples, split
    from adapters.recipes.image_head import embedding_tensor
    from model_store.bundle import seal

    parent = context.parent
    assert parent is not None
    context.report(0.05, "loading")
    rows = samples.read_images(context, parent.manifest)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    train, test = rows.take(parts.train), rows.take(parts.test)
    base = target_of(context, parent.manifest, sorted(set(rows.labels)))

    context.report(0.15, "embedding")
    tensor = embedding_tensor(parent)
    x_train = measure.outputs_of(parent, train.rows)[tensor]
    good = x_train[~measure.strange(base, train.labels)]
    anomalies.check_normal(len(good))
    aside = np.random.default_rng(context.seed).permutation(len(good)) < len(good) * THRESHOLD_SHARE

    context.report(0.6, "training")
    backbone, learnt = onnx.load(parent.model_path), good[~aside]
    if context.params["method"] == "mahalanobis":
        mean, whiten = anomalies.whitening(learnt)
        graph = graphs.append_whitened_distance(backbone, tensor, mean, whiten)
        scores = anomalies.whitened_distance(good[aside], mean, whiten)
    else:
        bank = anomalies.memory_bank(learnt, int(context.params["memory"]), context.seed)
        graph = graphs.append_bank_distance(backbone, tensor, bank)
        scores = anomalies.bank_distance(good[aside], bank)
    threshold = calibration.threshold_at_overkill(scores, float(context.params["overkill"]))

    context.report(0.75, "exporting", threshold=threshold)
    derive.copy_bundle_files(parent, context.out, new_graph=True)
    graphs.save(graph, context.out)
    data = derive.own_data(parent.manifest.features, train, test)
    manifest = new_manifest(context, base, threshold, data)
    child = seal(context.out, manifest)
    kept_rows = [row for row, odd in zip(train.rows, measure.strange(base, train.labels), strict=True) if not odd]
    checked = [row for row, chosen in zip(kept_rows, aside, strict=True) if chosen]
    parity = measure.check_answers(measure.outputs_of(child, checked)["score"], scores.reshape(-1, 1))

    context.report(0.85, "evaluating")
    after = measure.measure(child, test, context.seed)
    facts = {"rows": len(rows.rows), "rows_train": len(train.rows), "rows_test": len(test.rows), "parity": parity,
             "good_rows": len(learnt), "aside_rows": int(aside.sum()), "threshold": threshold}  # fmt: skip
    return derive.finish(
        context, RECIPE, manifest, learnt=train, child=after,
        golden_inputs=measure.golden_inputs(parent, train.rows, context.seed),
        parent=[], notes=notes_of(int(aside.sum()), parent.manifest.name), facts=facts,
    )  # fmt: skip


def target_of(context: Context, parent: Manifest, labels: list[str]) -> Manifest:
    """The parent's manifest with an anomaly target; what is good is the folder named, else the one that reads so."""
    from adapters import anomalies
    from model_store.manifest import Label, Target

    normal = anomalies.normal_label(str(context.params["normal"]), labels)
    target = Target(name="label", kind="anomaly", title_zh="标签", title_en="Label")
    odd = [name for name in labels if name != normal]
    if len(odd) == 1:
        target = target.model_copy(update={"positive": odd[0]})
    return parent.model_copy(update={"target": target, "labels": [Label(name=normal)]})


def new_manifest(context: Context, base: Manifest, threshold: float, data: list[Any]) -> Manifest:
    """The child's schema: one image in, a score and a verdict out."""
    from adapters import derive
    from model_store.manifest import TensorSpec
    from model_store.step_specs import Anomaly

    return derive.derived_manifest(
        context, base, RECIPE.relation, task="anomaly-detection", data=data, target=base.target, labels=base.labels,
        post=[Anomaly(tensor="score", threshold=threshold)], tier="small", family="", adaptable="calibrate",
        reference={}, outputs=[TensorSpec(name="score", dtype="FP32", shape=[-1, 1])],
        method=f"frozen convolutional base, {str(context.params['method']).replace('_', ' ')}",
    )  # fmt: skip


def notes_of(aside: int, parent: str) -> list[Note]:
    notes = [
        Note(
            "PARENT_NOT_COMPARABLE",
            zh=f"{parent} 只输出向量, 没有异常分数可比较。",
            en=f"{parent} answers embeddings only, so it has no anomaly score to compare with.",
        )
    ]
    if aside < MIN_ASIDE:
        zh, en = f"阈值仅由 {aside} 张良品图片确定。", f"The threshold rests on {aside} good images only."
        notes.append(Note("THRESHOLD_ON_FEW_ROWS", zh=zh, en=en))
    return notes


RECIPE = Recipe(
    name="image_anomaly",
    title_zh="图像异常检测 (只学良品)",
    title_en="Image anomaly detection from good parts",
    summary_zh="冻结卷积基础模型, 只用良品图片学习正常外观; 阈值按允许的过杀率在留出的良品上选定。",
    summary_en="A frozen convolutional base; learns from good images only, threshold for a given overkill.",
    tasks=("anomaly-detection",),
    modalities=("image",),
    relation="finetune",
    run=run,
    parent_tasks=("embedding",),
    levels=("head", "lora"),
    data="images",
    needs=Needs(min_rows=30, memory_mb=2048, minutes=0.5),
    parameters=(
        Parameter("normal", "text", "", zh="良品文件夹名 (可空)", en="folder of good images (empty: by its name)"),
        Parameter("method", "choice", "mahalanobis", choices=("mahalanobis", "memory_bank"), zh="方法", en="method"),
        Parameter("memory", "integer", 128, 1, 2048, zh="记忆库大小", en="size of the memory bank"),
        Parameter("overkill", "number", 0.05, 0.0, 0.5, zh="允许的过杀率", en="good images flagged, at most"),
        Parameter("test_share", "number", 0.3, 0.1, 0.6, zh="留作评测的比例", en="share held out to measure on"),
    ),
)  # fmt: skip
