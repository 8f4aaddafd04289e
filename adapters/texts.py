"""What the text recipes share: schema, repeated texts, the linear head, and the parent measured without adaptation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters import evaluate, linear, measure, samples
from adapters.recipe import Context, Note
from adapters.samples import Samples
from model_store.errors import BadInput
from model_store.manifest import Feature, Label, Manifest, Metric, Target, TensorSpec

Floats = npt.NDArray[np.floating[Any]]


def base_manifest(context: Context) -> Manifest:
    """The schema to learn: the parent's text feature, and the sample table's own label column as target."""
    table = samples.read_table(context)
    parent = context.parent.manifest if context.parent else None
    same_task = parent is not None and parent.task == "text-classification"
    label = samples.find_label_column(context, parent if same_task else None, table.headings)
    feature = text_feature(parent) if parent else Feature(name="text", kind="text", title_zh="文本", title_en="Text")
    if feature.name not in context.columns and not any(
        heading.casefold() in {name.casefold() for name in (feature.name, *feature.aliases)}
        for heading in table.headings
    ):
        context.columns = {**context.columns, feature.name: longest_text_column(table, label)}
    target = Target(name=label, kind="category", title_zh=label, title_en=label)
    if parent is not None:
        changes: dict[str, Any] = {"target": parent.target if same_task and parent.target else target}
        if not same_task:
            changes |= {"labels": [], "family": ""}  # another target than the embedding's family has none
        return parent.model_copy(update={**changes, "task": "text-classification", "features": [feature]})
    return Manifest(
        name=context.name, task="text-classification", modality="text", features=[feature], target=target,
        licence="proprietary", title_zh=f"{context.name} · 文本分类", title_en=f"{context.name} · text classification",
        summary_zh=f"由企业自有文本训练, 目标列为 {label}。",
        summary_en=f"Trained on the factory's own texts; predicts {label}.",
        inputs=[TensorSpec(name="ngrams", dtype="FP32", shape=[-1, -1])],
        outputs=[TensorSpec(name="probabilities", dtype="FP32", shape=[-1, -1])],
    )  # fmt: skip


def text_feature(manifest: Manifest) -> Feature:
    """The one text feature of a text model."""
    return next(feature for feature in manifest.features if feature.kind == "text")


def longest_text_column(table: samples.Table, label: str) -> str:
    """The heading whose cells are the longest texts on average; `BadInput` COLUMN_MISSING where there is no text."""
    lengths: dict[str, float] = {}
    for name in table.headings:
        cells = [row[name] for row in table.rows if isinstance(row[name], str)]
        if name != label and cells:
            lengths[name] = sum(map(len, cells)) / len(table.rows)
    if lengths:
        return max(lengths, key=lambda name: lengths[name])
    raise BadInput(
        "COLUMN_MISSING",
        zh="样本中没有文本列",
        en="the samples have no column of text",
        remedy_zh="请上传含文本列的样本, 或在 columns 中指定 text",
        remedy_en="upload samples with a column of text, or say which it is in columns",
        field="columns.text",
    )


def labels_of(base: Manifest, names: Sequence[str]) -> list[Label]:
    """Labels in the order of `names`, with the base's titles where it knows them."""
    known = {label.name: label for label in base.labels}
    return [known.get(name, Label(name=name)) for name in names]


def without_repeats(rows: Samples, manifest: Manifest) -> tuple[Samples, int]:
    """The first row of each text, and how many repeats were left out. Case, width and spaces make no new text."""
    name, seen, kept = text_feature(manifest).name, set(), []
    for place, row in enumerate(rows.rows):
        text = " ".join(unicodedata.normalize("NFKC", str(row[name] or "")).casefold().split())
        if text and text not in seen:
            seen.add(text)
            kept.append(place)
    fewer = rows.take(kept)
    for row in fewer.rows:
        row[name] = str(row[name])
    fewer.dropped = rows.dropped
    checked = samples.labelled(fewer.rows, fewer.labels)
    checked.dropped += rows.dropped
    return checked, len(rows.rows) - len(kept)


def fit_linear(x: Floats, labels: Sequence[str], strength: float, seed: int) -> Any:
    """Multinomial logistic regression, classes weighted by their rarity."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced", random_state=seed)
    return model.fit(x.astype(np.float64), list(labels))


def weights_of(model: Any) -> tuple[Any, Any]:
    """(weights [D, K], bias [K]) of a fitted logistic regression, two columns where there are two classes."""
    weights, bias = np.asarray(model.coef_).T.astype(np.float32), np.asarray(model.intercept_).astype(np.float32)
    return linear.two_columns(weights, bias) if weights.shape[1] == 1 else (weights, bias)


def log_loss(model: Any, x: Floats, labels: Sequence[str]) -> float:
    """Mean negative log-likelihood of the labels."""
    places = {name: place for place, name in enumerate(model.classes_)}
    chosen = model.predict_proba(x)[np.arange(len(labels)), [places[name] for name in labels]]
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def measure_parent(context: Context, train: Samples, test: Samples) -> tuple[list[Metric], list[Note]]:
    """The parent on the same test rows: as it is where it classifies; an embedding by its nearest class centre."""
    parent = context.parent
    if parent is None:
        return [], []
    if parent.manifest.task != "embedding":
        return measure.measure(parent, test, context.seed), []
    metrics = measure_by_centroids(parent, train, test, context.seed)
    return metrics, [centroid_note(parent.manifest.name)]


def measure_by_centroids(parent: Any, train: Samples, test: Samples, seed: int) -> list[Metric]:
    """A frozen embedding as a classifier: the label of the nearest class centre (cosine) of the training rows."""
    vectors = {part: _unit(measure.embeddings(parent, rows.rows)) for part, rows in (("train", train), ("test", test))}
    names = sorted(set(train.labels))
    centres = np.stack([vectors["train"][[label == name for label in train.labels]].mean(0) for name in names])
    closeness = vectors["test"] @ _unit(centres).T
    shifted = np.exp(10 * (closeness - closeness.max(1, keepdims=True)))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    predicted = [names[place] for place in closeness.argmax(1)]
    positive = names[1] if len(names) == 2 else None
    return evaluate.classification_metrics(test.labels, predicted, probabilities, names, positive=positive, seed=seed)


def centroid_note(name: str) -> Note:
    return Note(
        "PARENT_BY_CENTROID",
        zh=f"{name} 只输出向量; 其对照指标取最近类中心法, 未经适配。",
        en=f"{name} answers embeddings only; its figures are those of the nearest class centre, without adaptation.",
    )


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))
