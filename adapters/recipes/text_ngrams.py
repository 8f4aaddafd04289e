"""Classify texts in any language, Chinese above all, by hashed character n-grams and a linear model.

load → split → train (logistic regression) → one Gemm in ONNX → verify against scikit-learn → measure → bundle.
No tokenizer and no words: characters are what a two-character fault name is made of. Small (buckets × classes floats),
fast, and trained from the factory's rows alone, so nothing of a parent's weights is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe

if TYPE_CHECKING:
    from adapters.samples import Samples
    from model_store.manifest import Manifest

TENSOR = "ngrams"


def run(context: Context) -> Outcome:
    from adapters import derive, graphs, linear, measure, samples, split, texts
    from model_store.bundle import seal

    context.report(0.05, "loading")
    base = texts.base_manifest(context)
    rows = samples.read_samples(context, base)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    rows, repeated = texts.without_repeats(rows, base)  # a text in training and in test would flatter the result
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    train, test = rows.take(parts.train), rows.take(parts.test)

    context.report(0.2, "hashing")
    manifest = new_manifest(context, base, train)
    draft = derive.draft(context, manifest)
    x_train, x_test = (measure.encode(draft, part.rows)[TENSOR] for part in (train, test))
    context.report(0.4, "training")
    model = texts.fit_linear(x_train, train.labels, float(context.params["strength"]), context.seed)
    weights, bias = texts.weights_of(model)
    loss = texts.log_loss(model, x_train, train.labels)
    context.report(0.7, "exporting", loss=loss)
    graphs.save(graphs.linear_classifier(weights, bias, TENSOR), context.out)
    parity = measure.check_parity(context.out / "model.onnx", {TENSOR: x_test}, linear.predict(model, x_test))
    data = derive.own_data(manifest.features, train, test)
    manifest = manifest.model_copy(update={"data": data})
    child = seal(context.out, manifest)

    context.report(0.8, "evaluating")
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


def new_manifest(context: Context, base: Manifest, train: Samples) -> Manifest:
    """The child's schema: one text in, one of the labels out."""
    from adapters import derive, texts
    from model_store.manifest import TensorSpec
    from model_store.step_specs import Classify, HashNgrams

    names = sorted(set(train.labels))
    low, high = int(context.params["low"]), int(context.params["high"])
    buckets = int(context.params["buckets"])
    text = texts.text_feature(base)
    pre = [HashNgrams(feature=text.name, tensor=TENSOR, unit=context.params["unit"], low=min(low, high), high=high,
                      buckets=buckets)]  # fmt: skip
    return derive.derived_manifest(
        context, base, RECIPE.relation, task="text-classification", modality="text", features=[text],
        labels=texts.labels_of(base, names), pre=pre, post=[Classify(tensor="probabilities", labels=names)],
        inputs=[TensorSpec(name=TENSOR, dtype="FP32", shape=[-1, buckets])],
        outputs=[TensorSpec(name="probabilities", dtype="FP32", shape=[-1, len(names)])],
        variation="fp32", adaptable="calibrate", reference={}, method="character n-grams, logistic regression",
    )  # fmt: skip


RECIPE = Recipe(
    name="text_ngrams",
    title_zh="文本分类 (字符 n 元组)",
    title_en="Text classification by character n-grams",
    summary_zh="适合中文工单与故障描述: 字符 n 元组加线性模型, 几秒即可训练, 模型很小。",
    summary_en="For work orders and fault reports in any language: character n-grams and a linear model, in seconds.",
    tasks=("text-classification",),
    modalities=("text",),
    relation="retrained",
    run=run,
    parent="optional",
    parent_tasks=("text-classification", "embedding"),
    levels=("none", "calibrate", "head", "lora"),  # no weights are taken, only the schema
    needs=Needs(min_rows=30, memory_mb=1024, minutes=0.3),
    parameters=(
        Parameter("unit", "choice", "char", choices=("char", "word"), zh="字符或词", en="characters or words"),
        Parameter("low", "integer", 1, 1, 6, zh="最短 n 元组", en="shortest n-gram"),
        Parameter("high", "integer", 3, 1, 6, zh="最长 n 元组", en="longest n-gram"),
        Parameter("buckets", "integer", 4096, 256, 65536, zh="散列桶数", en="hash buckets"),
        Parameter("strength", "number", 10.0, 0.01, 1000.0, zh="拟合强度 (正则化的倒数)", en="inverse regularisation"),
        Parameter("test_share", "number", 0.25, 0.1, 0.5, zh="留作评测的比例", en="share held out to measure on"),
    ),
)
