"""Calibrate a model's scores, or choose its threshold, on the factory's own rows. Nothing is trained: weights stay.

load → split → the parent's scores → fit on one part → append → measure both on the other part → bundle.
A binary classifier gets Platt or isotonic on its log-odds, one of several classes a temperature, a value an affine or
isotonic correction, an anomaly score a threshold. Sources: Platt (1999), Zadrozny & Elkan (2002), Guo et al. (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapters.recipe import Context, Needs, Note, Outcome, Parameter, Recipe
from model_store.errors import Refusal, Unprocessable
from model_store.manifest import TensorSpec
from model_store.step_specs import Affine, Anomaly, Classify, Isotonic, PostStep, Sigmoid, Softmax, Value

if TYPE_CHECKING:
    import onnx

    from adapters.samples import Samples
    from model_store.bundle import Bundle

MIN_PER_SIDE = 3  # hits and non-hits in the part that is fitted on
ISOTONIC_FROM_ROWS = 1000  # below, isotonic overfits and `auto` takes the two parameters of Platt
FEW_NORMAL_ROWS = 30


@dataclass(slots=True)
class Change:
    """What calibration does to the parent. `graph` None: the parent's graph as it is."""

    method: str
    post: list[PostStep]
    graph: onnx.ModelProto | None = None
    outputs: list[TensorSpec] | None = None
    threshold: float | None = None


def run(context: Context) -> Outcome:
    from adapters import derive, graphs, measure, samples, split
    from model_store.bundle import seal

    parent = context.parent
    assert parent is not None
    context.report(0.05, "loading")
    rows = samples.read_samples(context, parent.manifest)
    samples.check_enough(rows, RECIPE.needs.min_rows)
    parts = split.split_samples(rows, context.seed, test_share=float(context.params["test_share"]))
    fit, test = rows.take(parts.train), rows.take(parts.test)

    context.report(0.25, "calibrating")
    last = parent.manifest.post[-1] if parent.manifest.post else None
    if isinstance(last, Classify):
        change = calibrate_classes(context, parent, last, fit)
    elif isinstance(last, Value):
        change = calibrate_value(context, parent, last, fit)
    elif isinstance(last, Anomaly):
        change = choose_threshold(context, parent, last, fit)
    else:
        raise _not_calibratable(parent.manifest.name)

    context.report(0.6, "exporting")
    derive.copy_bundle_files(parent, context.out, new_graph=change.graph is not None)
    if change.graph is not None:
        graphs.save(change.graph, context.out)
    data = derive.own_data(parent.manifest.features, fit, test)
    manifest = derive.derived_manifest(
        context, parent.manifest, "calibrated", post=change.post, data=data,
        outputs=change.outputs or parent.manifest.outputs,
    )  # fmt: skip
    child = seal(context.out, manifest)

    context.report(0.75, "evaluating")
    before, after = measure.measure(parent, test, context.seed), measure.measure(child, test, context.seed)
    facts = {"rows": len(rows.rows), "rows_train": len(fit.rows), "rows_test": len(test.rows), "dropped": rows.dropped}
    return derive.finish(
        context, RECIPE, manifest, learnt=fit, child=after,
        golden_inputs=measure.golden_inputs(parent, fit.rows, context.seed),
        parent=before, notes=_notes(change, fit),
        facts={**facts, "method": change.method, "threshold": change.threshold},
    )  # fmt: skip


def calibrate_classes(context: Context, parent: Bundle, last: Classify, fit: Samples) -> Change:
    """Platt, isotonic or temperature before the parent's `classify`, and a threshold where there are two classes."""
    import numpy as np
    import onnx

    from adapters import graphs, measure

    manifest, model = parent.manifest, onnx.load(parent.model_path)
    before = [step for step in manifest.post[:-1] if step.tensor == last.tensor]
    kind = _kind_of(before, manifest.name)
    binary = len(last.labels) == 2
    method = str(context.params["method"])
    if method == "auto":
        method = ("isotonic" if len(fit.rows) >= ISOTONIC_FROM_ROWS else "platt") if binary else "temperature"
    if binary == (method == "temperature"):
        raise _method_unfit(method, "2" if binary else str(len(last.labels)))
    unknown = sorted(set(fit.labels) - set(last.labels))
    if unknown:
        raise _labels_unknown(manifest.name, unknown, last.labels)
    if not binary:
        return _by_temperature(model, parent, last, fit, kind)
    positive = measure.positive_label(manifest) or last.labels[1]
    column = last.labels.index(positive) if _columns(manifest.outputs, last.tensor) == 2 else None
    graph, name = graphs.append_positive_logit(model, last.tensor, column, kind)
    logits = _run_graph(parent, graph, name, fit).reshape(-1).astype(np.float64)
    hits = np.array([label == positive for label in fit.labels])
    if min(hits.sum(), (~hits).sum()) < MIN_PER_SIDE:
        raise _too_few_hits(positive)
    steps, scores = _two_class_steps(method, name, logits, hits)
    threshold = _threshold(context, scores[~hits], last.threshold)
    steps.append(Classify(tensor=name, labels=last.labels, threshold=threshold, positive=positive))
    return Change(method, steps, graph, [TensorSpec(name=name, dtype="FP32", shape=[-1, 1])], threshold)


def _two_class_steps(method: str, name: str, logits: Any, hits: Any) -> tuple[list[PostStep], Any]:
    """The post steps of a two-class calibration, and the calibrated scores of the rows fitted on."""
    import numpy as np

    from adapters import calibration

    if method == "platt":
        a, b = calibration.fit_platt(logits, hits)
        return [Sigmoid(tensor=name, a=a, b=b)], 1 / (1 + np.exp(-(a * logits + b)))
    probabilities = 1 / (1 + np.exp(-logits))
    least = 1 / (len(hits) + 2)  # a few rows never make anything certain (Laplace)
    x, y = calibration.fit_isotonic(probabilities, hits.astype(np.float64), low=least, high=1 - least)
    steps: list[PostStep] = [Sigmoid(tensor=name), Isotonic(tensor=name, x=x.tolist(), y=y.tolist())]
    return steps, np.interp(probabilities, x, y)


def _by_temperature(model: onnx.ModelProto, parent: Bundle, last: Classify, fit: Samples, kind: str) -> Change:
    import numpy as np

    from adapters import calibration, graphs

    graph, name, outputs = model, last.tensor, None
    if kind == "probability":
        graph, name = graphs.append_log(model, last.tensor, len(last.labels))
        outputs = [TensorSpec(name=name, dtype="FP32", shape=[-1, len(last.labels)])]
    logits = _run_graph(parent, graph, name, fit).astype(np.float64)
    wanted = np.array([last.labels.index(label) for label in fit.labels], np.int64)
    temperature = calibration.fit_temperature(logits, wanted)
    steps: list[PostStep] = [Softmax(tensor=name, temperature=temperature), last.model_copy(update={"tensor": name})]
    return Change("temperature", steps, graph if outputs else None, outputs)


def calibrate_value(context: Context, parent: Bundle, last: Value, fit: Samples) -> Change:
    """An affine or isotonic correction of the value, put just before the parent's `value` step."""
    import numpy as np

    from adapters import calibration, measure

    method = str(context.params["method"])
    if method == "auto":
        method = "affine"
    if method not in ("affine", "isotonic"):
        raise _method_unfit(method, "–")
    predicted = np.array([answer["value"] for answer in measure.answers(parent, fit.rows)], np.float64)
    step: PostStep
    if method == "affine":
        scale, offset = calibration.fit_affine(predicted, fit.values)
        step = Affine(tensor=last.tensor, scale=scale, offset=offset)
    else:
        x, y = calibration.fit_isotonic(predicted, fit.values)
        step = Isotonic(tensor=last.tensor, x=x.tolist(), y=y.tolist())
    return Change(method, [*parent.manifest.post[:-1], step, last])


def choose_threshold(context: Context, parent: Bundle, last: Anomaly, fit: Samples) -> Change:
    """The anomaly threshold that keeps overkill on the factory's normal rows within bounds."""
    import numpy as np

    from adapters import measure

    found = measure.answers(parent, fit.rows)
    scores = np.array([answer["anomaly_score"] for answer in found], np.float64)
    odd = measure.strange(parent.manifest, fit.labels)
    if (~odd).sum() < MIN_PER_SIDE:
        raise _too_few_hits("normal")
    threshold = _threshold(context, scores[~odd], last.threshold)
    assert threshold is not None
    post: list[PostStep] = [*parent.manifest.post[:-1], last.model_copy(update={"threshold": threshold})]
    return Change("threshold", post, threshold=threshold)


def _threshold(context: Context, normal_scores: Any, current: float | None) -> float | None:
    from adapters import calibration

    wanted = context.params["threshold"]
    if wanted == "keep":
        return current
    if wanted == "half":
        return 0.5
    return calibration.threshold_at_overkill(normal_scores, float(context.params["overkill"]))


def _kind_of(before: list[PostStep], name: str) -> str:
    """What the tensor holds before the parent's own steps, which calibration replaces: probabilities or logits."""
    if not before:
        return "probability"
    if isinstance(before[0], Softmax | Sigmoid) and all(isinstance(step, Isotonic) for step in before[1:]):
        return "logit"
    raise _not_calibratable(name)


def _columns(outputs: list[TensorSpec], tensor: str) -> int:
    """The width of an output tensor: 1 for [N] and [N, 1]."""
    shape = next(spec.shape for spec in outputs if spec.name == tensor)
    return shape[1] if len(shape) > 1 else 1


def _run_graph(parent: Bundle, graph: onnx.ModelProto, output: str, fit: Samples) -> Any:
    """One output of a changed graph on the samples, fed by the parent's own pre-processing."""
    import tempfile
    from pathlib import Path

    import numpy as np
    import onnx

    from adapters import measure
    from model_store.runtime import load_graph

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, Path(folder) / "model.onnx")
        session = load_graph(Path(folder) / "model.onnx")
        parts = [session.run(inputs, [output])[output] for inputs in measure.encoded_batches(parent, fit.rows)]
    return np.concatenate(parts)


def _notes(change: Change, fit: Samples) -> list[Note]:
    if change.threshold is None or len(fit.rows) >= FEW_NORMAL_ROWS:
        return []
    zh = f"阈值仅由 {len(fit.rows)} 行样本确定, 误差较大, 请补充样本后重做。"
    en = f"The threshold rests on {len(fit.rows)} rows only; repeat it with more samples."
    return [Note("THRESHOLD_ON_FEW_ROWS", zh=zh, en=en)]


def _not_calibratable(name: str) -> Refusal:
    return Unprocessable(
        "NOT_CALIBRATABLE",
        zh=f"{name} 的输出后处理无法校准",
        en=f"the post-processing of {name} leaves nothing that can be calibrated",
        remedy_zh="请选择输出类别概率、数值或异常分数的模型",
        remedy_en="choose a model that answers class probabilities, a value or an anomaly score",
        field="model",
    )


def _method_unfit(method: str, classes: str) -> Refusal:
    return Unprocessable(
        "METHOD_UNFIT",
        zh=f"校准方法 {method} 不适用于该模型 (类别数 {classes})",
        en=f"calibration method {method} does not fit this model ({classes} classes)",
        remedy_zh="请使用 auto; 二分类可用 platt、isotonic, 多分类用 temperature, 数值用 affine、isotonic",
        remedy_en="use auto; platt or isotonic for two classes, temperature for more, affine or isotonic for values",
        field="params.method",
    )


def _labels_unknown(name: str, unknown: list[str], lawful: list[str]) -> Refusal:
    return Unprocessable(
        "LABELS_UNKNOWN",
        zh=f"样本中有 {name} 不认识的标签: {', '.join(unknown[:10])}",
        en=f"the samples hold labels that {name} does not know: {', '.join(unknown[:10])}",
        remedy_zh=f"校准只能使用模型的标签: {', '.join(lawful[:30])}; 新增类别请用再训练配方",
        remedy_en=f"calibration keeps the model's labels: {', '.join(lawful[:30])}; retrain to add classes",
        field="label_column",
    )


def _too_few_hits(positive: str) -> Refusal:
    return Unprocessable(
        "SAMPLES_ONE_SIDED",
        zh=f"样本中“{positive}”或其余类别过少, 两侧各需至少 {MIN_PER_SIDE} 行用于拟合",
        en=f"too few rows of {positive!r} or of the rest: each side needs at least {MIN_PER_SIDE} to fit on",
        remedy_zh="请补充样本",
        remedy_en="add samples",
        field="sample_set_id",
    )


RECIPE = Recipe(
    name="tabular_calibrate",
    title_zh="校准与阈值",
    title_en="Calibrate and choose the threshold",
    summary_zh="用企业自有样本校准概率或数值, 按给定过杀率选择阈值; 不训练, 权重不变。",
    summary_en="Calibrates scores or values on your own rows, sets the threshold for a given overkill; weights stay.",
    tasks=(
        "tabular-classification",
        "tabular-regression",
        "series-classification",
        "series-regression",
        "text-classification",
        "image-classification",
        "anomaly-detection",
    ),
    modalities=("tabular", "series", "text", "image"),
    relation="calibrated",
    run=run,
    data="any",
    needs=Needs(min_rows=20, memory_mb=1024, minutes=0.3),
    parameters=(
        Parameter(
            "method",
            "choice",
            "auto",
            choices=("auto", "platt", "isotonic", "temperature", "affine"),
            zh="校准方法",
            en="calibration method",
        ),
        Parameter(
            "threshold",
            "choice",
            "overkill",
            choices=("overkill", "half", "keep"),
            zh="阈值: 按过杀率 / 0.5 / 不变",
            en="threshold: by overkill, 0.5, or the parent's",
        ),
        Parameter("overkill", "number", 0.05, 0.0, 0.5, zh="允许的过杀率 (良品误判)", en="good rows refused, at most"),
        Parameter("test_share", "number", 0.4, 0.1, 0.6, zh="留作评测的比例", en="share held out to measure on"),
    ),
)
