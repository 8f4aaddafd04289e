"""Fine-tune a transformer base on the factory's own texts by low-rank adapters (LoRA), merged into the base.

load → split → check that the weights are those of the parent's graph → train adapters and head → merge → export to
ONNX → verify against torch → measure beside the parent's nearest class centre → bundle.
The adapters are merged, so the child is a finetune: one graph that holds the base's weights, changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe
from model_store.errors import Unprocessable

if TYPE_CHECKING:
    from pathlib import Path

    from adapters.samples import Samples
    from model_store.bundle import Bundle
    from model_store.manifest import Manifest

SAME_VECTOR = 0.999  # least cosine of the source's vectors and the parent's answers


def run(context: Context) -> Outcome:
    from adapters import derive, measure, samples, split, texts
    from adapters.lora import weights
    from model_store.bundle import seal

    parent = context.parent
    assert parent is not None
    context.report(0.02, "loading")
    base = texts.base_manifest(context)
    rows = samples.read_samples(context, base)
    rows, repeated = texts.without_repeats(rows, base)  # a text in training and in test would flatter the result
    samples.check_enough(rows, RECIPE.needs.min_rows)
    source = weights.source_of(parent)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    train, test = rows.take(parts.train), rows.take(parts.test)

    manifest = new_manifest(context, base, train)
    derive.copy_bundle_files(parent, context.out, new_graph=True)  # brings the tokenizer
    draft = derive.draft(context, manifest)
    encoded = [measure.encode(draft, part.rows) for part in (train, test)]
    context.report(0.05, "training")
    parity = train_and_export(context, source, parent, encoded[0], encoded[1], train.labels)

    data = derive.own_data(manifest.features, train, test)
    manifest = manifest.model_copy(update={"data": data})
    child = seal(context.out, manifest)
    context.report(0.9, "evaluating")
    after = measure.measure(child, test, context.seed)
    before, notes = texts.measure_parent(context, train, test)
    facts = {
        "rows": len(rows.rows),
        "rows_train": len(train.rows),
        "rows_test": len(test.rows),
        "dropped": rows.dropped,
    }
    return derive.finish(
        context, RECIPE, manifest, learnt=train, child=after,
        golden_inputs=measure.golden_inputs(child, train.rows, context.seed),
        parent=before, notes=notes, facts={**facts, "repeated": repeated, "parity": parity},
    )  # fmt: skip


def train_and_export(
    context: Context, source: Path, parent: Bundle, train: dict[str, Any], test: dict[str, Any], labels: list[str]
) -> float:
    """Train, merge, write model.onnx and source/adapter.safetensors; returns how far ONNX is from torch."""
    import numpy as np

    from adapters import measure
    from adapters.lora import classifier

    params = context.params
    settings = classifier.Settings(
        rank=int(params["rank"]), epochs=int(params["epochs"]), batch=int(params["batch"]),
        learning_rate=float(params["learning_rate"]), seed=context.seed,
    )  # fmt: skip
    encoder = classifier.load_encoder(source)
    check_same_weights(encoder, parent)
    order = {name: place for place, name in enumerate(sorted(set(labels)))}
    wanted = np.array([order[name] for name in labels], np.int64)
    vectors = classifier.pooled_vectors(encoder, train["input_ids"], train["attention_mask"])
    model = classifier.build(encoder, len(order), settings)
    classifier.start_head(model, vectors, wanted, context.seed)

    def report(share: float, **metrics: float) -> None:
        context.report(0.05 + 0.75 * share, "training", **metrics)

    classifier.train(model, train["input_ids"], train["attention_mask"], wanted, settings, report)
    context.report(0.82, "exporting")
    classifier.save_adapter(model, context.out / "source")
    classifier.merge(model)
    classifier.export(model, context.out / "model.onnx", train["input_ids"], train["attention_mask"])
    context.report(0.86, "verifying")
    expected = classifier.probabilities(model, test["input_ids"], test["attention_mask"])
    feed = {name: test[name] for name in ("input_ids", "attention_mask")}
    return measure.check_parity(context.out / "model.onnx", feed, expected)


def check_same_weights(encoder: Any, parent: Bundle) -> None:
    """`Unprocessable` SOURCE_DIFFERS unless the source answers as the parent's graph does.

    "Reuses the parent's weights" must be true: a voucher may rest on it.
    """
    import numpy as np

    from adapters import measure
    from adapters.lora import classifier

    if parent.manifest.task != "embedding":
        return
    rows = [{feature.name: text} for feature in parent.manifest.features[:1] for text in measure.GENERIC_TEXTS]
    tokens = measure.encode(parent, rows)
    mine = classifier.pooled_vectors(encoder, tokens["input_ids"], tokens["attention_mask"])
    theirs = measure.embeddings(parent, rows)
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    if float(((mine * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)).min()) >= SAME_VECTOR:
        return
    raise Unprocessable(
        "SOURCE_DIFFERS",
        zh=f"{parent.manifest.name} 的 source/ 权重与其模型图的输出不一致",
        en=f"the weights in source/ of {parent.manifest.name} do not answer as its graph does",
        remedy_zh="请供应商重新发布该基础模型",
        remedy_en="its vendor should publish the base again",
        field="model",
    )


def new_manifest(context: Context, base: Manifest, train: Samples) -> Manifest:
    """The child's schema: one text in, tokens by the base's own tokenizer, one of the labels out."""
    from adapters import derive, texts
    from model_store.manifest import Classify, TensorSpec, Tokenise

    names = sorted(set(train.labels))
    file = next((step.file for step in base.pre if isinstance(step, Tokenise)), "tokenizer.json")
    text = texts.text_feature(base)
    step = Tokenise(feature=text.name, file=file, max_length=int(context.params["max_length"]),
                    tensors=["input_ids", "attention_mask"])  # fmt: skip
    return derive.derived_manifest(
        context, base, RECIPE.relation, task="text-classification", modality="text", features=[text],
        labels=texts.labels_of(base, names), pre=[step], post=[Classify(tensor="probabilities", labels=names)],
        inputs=[TensorSpec(name=name, dtype="INT64", shape=[-1, -1]) for name in ("input_ids", "attention_mask")],
        outputs=[TensorSpec(name="probabilities", dtype="FP32", shape=[-1, len(names)])],
        tier="small", variation="fp32", adaptable="calibrate", reference={}, method="transformer, LoRA merged",
    )  # fmt: skip


RECIPE = Recipe(
    name="text_lora",
    title_zh="文本分类 LoRA 微调",
    title_en="Text classification by LoRA",
    summary_zh="在真实的 Transformer 基础模型上用低秩适配器微调, 合并后导出 ONNX; 适合工单与故障报告。",
    summary_en="Fine-tunes a real transformer base by low-rank adapters, merged and exported to ONNX.",
    tasks=("text-classification",),
    modalities=("text",),
    relation="finetune",
    run=run,
    parent_tasks=("embedding",),
    levels=("lora",),
    needs=Needs(min_rows=40, memory_mb=4096, minutes=2.0),
    parameters=(
        Parameter("epochs", "integer", 4, 1, 20, zh="训练轮数", en="epochs"),
        Parameter("rank", "integer", 8, 1, 64, zh="LoRA 秩", en="rank of the adapters"),
        Parameter("learning_rate", "number", 0.0005, 0.00001, 0.01, zh="学习率", en="learning rate"),
        Parameter("batch", "integer", 16, 4, 64, zh="批大小", en="batch size"),
        Parameter("max_length", "integer", 48, 8, 256, zh="最长词元数", en="tokens at most"),
        Parameter("test_share", "number", 0.25, 0.1, 0.5, zh="留作评测的比例", en="share held out to measure on"),
    ),
)
