"""Fine-tune a transformer base on the factory's own texts by low-rank adapters (LoRA).

load → split → check that the weights are those of the parent's graph → train adapters and head → verify against torch →
measure beside the parent's nearest class centre → bundle.
Where the parent's graph has adapter sites and room for the head, the child is an *adapter*: a few hundred kilobytes
that run on the parent's own graph. Else the adapters are merged and exported, and the child is a finetune: one graph
that holds the base's weights, changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Outcome, Parameter, Recipe
from model_store.errors import Unprocessable

if TYPE_CHECKING:
    from pathlib import Path

    from adapters.samples import Samples
    from model_store.adapter_sites import AdapterSites
    from model_store.bundle import Bundle
    from model_store.manifest import Manifest
    from model_store.runtime import Graph

TENSORS = ("input_ids", "attention_mask")
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

    sites = sites_for(parent, len(set(train.labels)), int(context.params["rank"]))
    manifest = new_manifest(context, base, train, as_adapter=sites is not None)
    derive.copy_bundle_files(parent, context.out, new_graph=True)  # brings the tokenizer
    draft = derive.draft(context, manifest)
    encoded = [measure.encode(draft, part.rows) for part in (train, test)]
    context.report(0.05, "training")
    model = train_model(context, source, parent, encoded[0], train.labels, sites)
    graph = None
    if sites is None:
        parity = export_merged(context, model, encoded[0], encoded[1])
    else:
        manifest, graph = write_as_adapter(context, model, parent, sites, manifest)
        parity = check_adapted(context, graph, model, encoded[1], len(set(train.labels)))

    data = derive.own_data(manifest.features, train, test)
    manifest = manifest.model_copy(update={"data": data})
    child = seal(context.out, manifest)
    context.report(0.9, "evaluating")
    after = measure.measure(child, test, context.seed, graph)
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
        parent=before, notes=notes, facts={**facts, "repeated": repeated, "parity": parity}, graph=graph,
    )  # fmt: skip


def sites_for(parent: Bundle, classes: int, rank: int) -> AdapterSites | None:
    """The parent's sites where they take this head and this rank; None: the adapters are merged."""
    from model_store.adapter_file import sites_of_bundle

    sites = sites_of_bundle(parent)
    if sites is None or not sites.head or {spec.name for spec in parent.manifest.inputs} != set(TENSORS):
        return None
    lowest = min((site.max_rank for name, site in sites.low_rank.items() if name != sites.head), default=0)
    return sites if classes <= sites.low_rank[sites.head].max_rank and rank <= lowest else None


def train_model(
    context: Context, source: Path, parent: Bundle, train: dict[str, Any], labels: list[str], sites: AdapterSites | None
) -> Any:
    """The trained `PooledClassifier`, its adapters where the parent has sites (None: at every matrix)."""
    import numpy as np

    from adapters.lora import classifier, peft_adapter

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
    targets = None if sites is None else list(peft_adapter.sites_of_encoder(encoder, parent, sites))
    model = classifier.build(encoder, len(order), settings, targets)
    classifier.start_head(model, vectors, wanted, context.seed)

    def report(share: float, **metrics: float) -> None:
        context.report(0.05 + 0.75 * share, "training", **metrics)

    classifier.train(model, train["input_ids"], train["attention_mask"], wanted, settings, report)
    return model


def export_merged(context: Context, model: Any, train: dict[str, Any], test: dict[str, Any]) -> float:
    """Merge, write model.onnx and source/adapter.safetensors; returns how far ONNX is from torch."""
    from adapters import measure
    from adapters.lora import classifier

    context.report(0.82, "exporting")
    classifier.save_adapter(model, context.out / "source")
    classifier.merge(model)
    classifier.export(model, context.out / "model.onnx", train["input_ids"], train["attention_mask"])
    context.report(0.86, "verifying")
    expected = classifier.probabilities(model, test["input_ids"], test["attention_mask"])
    return measure.check_parity(context.out / "model.onnx", {name: test[name] for name in TENSORS}, expected)


def write_as_adapter(
    context: Context, model: Any, parent: Bundle, sites: AdapterSites, manifest: Manifest
) -> tuple[Manifest, Graph]:
    """Write the adapter file; the manifest naming its base, and the parent's graph with the adapter in every run."""
    from adapters.lora import peft_adapter
    from model_store.adapter_file import parameters_for, seal_adapter
    from model_store.runtime import load_graph

    context.report(0.82, "exporting")
    tensors = peft_adapter.classifier_parameters(model, parent, sites)
    made = seal_adapter(context.out, manifest, parent, tensors, context.parent_version)
    graph = load_graph(parent.model_path)
    graph.bind(parameters_for(graph, made.adapter_path))
    return made.manifest, graph


def check_adapted(context: Context, graph: Graph, model: Any, test: dict[str, Any], classes: int) -> float:
    """How far the parent's graph with the adapter is from torch; `Unprocessable` PARITY_FAILED."""
    from scipy.special import softmax

    from adapters import measure
    from adapters.lora import classifier

    context.report(0.86, "verifying")
    expected = classifier.probabilities(model, test["input_ids"], test["attention_mask"])
    logits = graph.run({name: test[name] for name in TENSORS}, ["logits"])["logits"]
    return measure.check_answers(softmax(logits[:, :classes], axis=1), expected)


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


def new_manifest(context: Context, base: Manifest, train: Samples, as_adapter: bool) -> Manifest:
    """The child's schema: one text in, tokens by the base's own tokenizer, one of the labels out."""
    from adapters import derive, texts
    from model_store.manifest import TensorSpec
    from model_store.step_specs import Classify, PostStep, Softmax, Take, Tokenise

    names = sorted(set(train.labels))
    file = next((step.file for step in base.pre if isinstance(step, Tokenise)), "tokenizer.json")
    text = texts.text_feature(base)
    step = Tokenise(feature=text.name, file=file, max_length=int(context.params["max_length"]), tensors=list(TENSORS))
    post: list[PostStep] = [Classify(tensor="probabilities", labels=names)]
    changes: dict[str, Any] = {
        "inputs": [TensorSpec(name=name, dtype="INT64", shape=[-1, -1]) for name in TENSORS],
        "outputs": [TensorSpec(name="probabilities", dtype="FP32", shape=[-1, len(names)])],
        "post": post, "adaptable": "calibrate", "method": "transformer, LoRA merged",
    }  # fmt: skip
    if as_adapter:
        room: list[PostStep] = [Take(tensor="logits", columns=len(names)), Softmax(tensor="logits")]
        post = [*room, Classify(tensor="logits", labels=names)]
        changes = {
            "inputs": base.inputs, "outputs": base.outputs, "post": post, "adaptable": "none",
            "method": "transformer, LoRA adapter",
        }  # fmt: skip
    return derive.derived_manifest(
        context, base, "adapter" if as_adapter else RECIPE.relation, task="text-classification", modality="text",
        features=[text], labels=texts.labels_of(base, names), pre=[step], tier="small", variation="fp32", reference={},
        **changes,
    )  # fmt: skip


RECIPE = Recipe(
    name="text_lora",
    title_zh="文本分类 LoRA 微调",
    title_en="Text classification by LoRA",
    summary_zh="在真实的 Transformer 基础模型上用低秩适配器微调; 基座有适配点时得到适配器, 否则合并后导出。适合工单。",
    summary_en="Fine-tunes a transformer base by low-rank adapters: an adapter where the base has sites, else merged.",
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
