"""Make an int8 variation of a model: smaller, usually faster, and no worse than a bound that is checked, or refused.

load → quantise (dynamic, or static with the samples as calibration) → the same rows through parent and child → gate on
output difference and on the loss of the task's metric → bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.recipe import Context, Needs, Note, Outcome, Parameter, Recipe
from model_store.errors import Refusal, Unprocessable
from model_store.manifest import Metric

if TYPE_CHECKING:
    from adapters.samples import Samples
    from model_store.bundle import Bundle

MAX_CALIBRATION_BATCHES = 16


def run(context: Context) -> Outcome:
    import onnx

    from adapters import derive, measure, quantise, split
    from model_store.bundle import seal

    parent = context.parent
    assert parent is not None
    context.report(0.05, "loading")
    rows, labelled = _rows(context, parent)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    calibration, test = rows.take(parts.train), rows.take(parts.test)
    counts = quantise.weighted_nodes(onnx.load(parent.model_path))
    if not counts:
        raise _nothing_to_quantise(parent.manifest.name)

    context.report(0.2, "quantising")
    kind = context.params["kind"] if context.params["kind"] != "auto" else quantise.choose_kind(counts)
    derive.copy_bundle_files(parent, context.out, new_graph=True)
    batches = list(measure.encoded_batches(parent, calibration.rows))[:MAX_CALIBRATION_BATCHES]
    quantise.quantise(parent.model_path, context.out / "model.onnx", kind, batches)
    data = derive.own_data(parent.manifest.features, calibration, test, use="reference")
    manifest = derive.derived_manifest(
        context, parent.manifest, "quantized", variation="int8", adaptable="calibrate", data=data,
        title_zh=f"{parent.manifest.title_zh or parent.manifest.name} (int8)",
        title_en=f"{parent.manifest.title_en or parent.manifest.name} (int8)", golden_rtol=5e-2, golden_atol=2e-2,
        reference=parent.manifest.reference,
    )  # fmt: skip
    child = seal(context.out, manifest)

    context.report(0.6, "evaluating")
    moved = quantise.difference(measure.outputs_of(parent, test.rows), measure.outputs_of(child, test.rows))
    before = measure.measure(parent, test, context.seed) if labelled else []
    after = measure.measure(child, test, context.seed) if labelled else []
    lost = metric_loss(before, after)
    # Two rows that changed sides say nothing of a model: with few rows they are allowed whatever the bound.
    allowed = max(float(context.params["max_metric_loss"]), 2 / len(test.rows))
    check_gate(moved, lost, float(context.params["max_difference"]), allowed)
    sizes = {"parent_bytes": derive.graph_bytes(parent), "bytes": derive.graph_bytes(child)}
    facts = {"rows": len(rows.rows), "rows_test": len(test.rows), "kind": kind, "output_difference": moved, **sizes}
    golden = measure.golden_inputs(parent, calibration.rows, context.seed)
    return derive.finish(
        context, RECIPE, manifest, learnt=None, golden_inputs=golden, child=after, parent=before,
        notes=_notes(labelled, sizes),
        facts={**facts, "metric_loss": lost, "quantised_nodes": counts},
    )  # fmt: skip


def metric_loss(before: list[Metric], after: list[Metric]) -> float:
    """How much worse the first metric (the task's main one) has become; as a share of the parent's for an error."""
    if not before:
        return 0.0
    main, other = before[0], after[0]
    if main.higher_is_better:
        return main.value - other.value
    return (other.value - main.value) / max(abs(main.value), 1e-9)


def check_gate(moved: float, lost: float, max_difference: float, max_loss: float) -> None:
    """`Unprocessable` QUANTISATION_TOO_LOSSY when the child differs from its parent by more than was allowed."""
    if moved <= max_difference and lost <= max_loss:
        return
    raise Unprocessable(
        "QUANTISATION_TOO_LOSSY",
        zh=f"int8 差异过大: 输出差异 {moved:.3f} (上限 {max_difference:g}), 指标下降 {lost:.3f} (上限 {max_loss:g})",
        en=f"the int8 variation is too far from its parent: outputs moved by {moved:.3f} (at most {max_difference:g}),"
        f" the metric lost {lost:.3f} (at most {max_loss:g})",
        remedy_zh="请改用另一种量化方式 (dynamic/static), 增加校准样本, 或放宽上限",
        remedy_en="try the other kind (dynamic or static), add calibration samples, or allow more",
        details={"output_difference": moved, "metric_loss": lost},
    )


def _rows(context: Context, parent: Bundle) -> tuple[Samples, bool]:
    """The samples, labelled where the parent's target is found among them; an embedding has no target."""
    from adapters import samples

    if parent.manifest.task in ("embedding", "tensor"):
        return samples.Samples(samples.read_rows(context, parent.manifest)), False
    try:
        return samples.read_samples(context, parent.manifest), True
    except Refusal as refusal:
        if refusal.code != "LABEL_COLUMN_NEEDED":
            raise
    return samples.Samples(samples.read_rows(context, parent.manifest)), False


def _notes(labelled: bool, sizes: dict[str, int]) -> list[Note]:
    ratio = sizes["bytes"] / max(1, sizes["parent_bytes"])
    notes = [Note("SIZE", zh=f"模型文件为原来的 {ratio:.0%}。", en=f"The graph is {ratio:.0%} of its parent's size.")]
    if not labelled:
        zh, en = "样本无标签, 仅检查了输出差异。", "The samples have no labels; only the outputs were compared."
        notes.append(Note("NOT_MEASURED", zh=zh, en=en))
    return notes


def _nothing_to_quantise(name: str) -> Refusal:
    return Unprocessable(
        "NOTHING_TO_QUANTISE",
        zh=f"{name} 没有可量化为 int8 的算子 (矩阵乘或卷积)",
        en=f"{name} has no operator that can be int8 (matrix product or convolution)",
        remedy_zh="树模型本身已经很小, 无须量化",
        remedy_en="tree models are small as they are",
        field="model",
    )


_PARAMETERS = (
    Parameter("kind", "choice", "auto", choices=("auto", "dynamic", "static"), zh="量化方式", en="kind"),
    Parameter("max_difference", "number", 0.15, 0.0, 2.0,
              zh="输出差异上限 (占输出离散程度)", en="largest difference of outputs, over their spread"),
    Parameter("max_metric_loss", "number", 0.02, 0.0, 0.5, zh="指标下降上限", en="largest loss of the metric"),
    Parameter("test_share", "number", 0.5, 0.1, 0.8, zh="留作评测的比例", en="share held out to measure on"),
)  # fmt: skip

RECIPE = Recipe(
    name="quantise",
    title_zh="int8 量化",
    title_en="Quantise to int8",
    summary_zh="把模型量化为 int8, 体积约为四分之一; 与原模型逐项比对, 超过允许差异即拒绝。",
    summary_en="An int8 variation at about a quarter of the size, compared with its parent and refused beyond a bound.",
    tasks=(
        "tabular-classification",
        "tabular-regression",
        "series-classification",
        "series-regression",
        "series-forecasting",
        "text-classification",
        "image-classification",
        "anomaly-detection",
        "embedding",
    ),
    modalities=("tabular", "series", "text", "image"),
    relation="quantized",
    run=run,
    data="any",
    needs_labels=False,
    needs=Needs(min_rows=20, memory_mb=3072, minutes=0.5),
    parameters=_PARAMETERS,
)
