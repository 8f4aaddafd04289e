"""Running a bundle on samples exactly as serving would (its own pre- and post-processing) and measuring its answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from adapters import evaluate
from adapters.derive import generated_like
from adapters.samples import Samples, is_normal, known_labels, window_keys
from adapters.verify import parity_failed
from model_store.bundle import Bundle
from model_store.manifest import Manifest, Metric
from model_store.processing.pipeline import Pipeline
from model_store.runtime import Graph, load_graph

BATCH_ROWS = 64
GENERIC_TEXTS = ("设备运行异常, 请检查", "pump leaks oil at the seal", "更换轴承后恢复正常", "motor will not start")
Arrays = dict[str, npt.NDArray[Any]]


def encode(bundle: Bundle, rows: list[dict[str, Any]]) -> Arrays:
    """The graph's input tensors for all rows at once."""
    return dict(Pipeline(bundle).encode(named_for(bundle.manifest, rows)))


def named_for(manifest: Manifest, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what this bundle takes, and nothing else: a parent and its child may want different keys."""
    wanted = {feature.name for feature in manifest.features} | set(window_keys(manifest))
    return [{name: cell for name, cell in row.items() if name in wanted} for row in rows]


def outputs_of(bundle: Bundle, rows: list[dict[str, Any]]) -> Arrays:
    """The graph's raw outputs for all rows, run in batches that the bundle allows."""
    graph = load_graph(bundle.model_path)
    parts = [graph.run(inputs) for inputs in encoded_batches(bundle, rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def answers(bundle: Bundle, rows: list[dict[str, Any]], graph: Graph | None = None) -> list[dict[str, Any]]:
    """What the bundle answers to each row. `graph`: of an adapter, which has none of its own."""
    graph, pipeline = graph or load_graph(bundle.model_path), Pipeline(bundle)
    found: list[dict[str, Any]] = []
    for inputs in encoded_batches(bundle, rows):
        found += pipeline.decode(graph.run(inputs))
    return found


def _batch_rows(manifest: Manifest, rows: list[dict[str, Any]]) -> int:
    """Rows at a time: all of them where one row's window reaches into the rows before it."""
    if any(step.op == "window" for step in manifest.pre):
        return max(1, len(rows))
    if not manifest.batching.dynamic:
        return 1
    return min(BATCH_ROWS, manifest.batching.max_rows)


def measure(bundle: Bundle, samples: Samples, seed: int, graph: Graph | None = None) -> list[Metric]:
    """The metrics of the bundle's task on labelled samples, each with its 95% bootstrap interval.

    `graph`: as `answers` takes it.
    """
    return measure_answers(bundle.manifest, answers(bundle, samples.rows, graph), samples, seed)


def measure_answers(manifest: Manifest, found: list[dict[str, Any]], samples: Samples, seed: int) -> list[Metric]:
    """The same for answers already in hand."""
    if "value" in found[0]:
        predicted = np.array([answer["value"] for answer in found], np.float64)
        return evaluate.regression_metrics(samples.values, predicted, seed=seed)
    if "anomaly_score" in found[0]:
        scores = np.array([answer["anomaly_score"] for answer in found], np.float64)
        flagged = np.array([bool(answer["is_anomaly"]) for answer in found])
        return evaluate.anomaly_metrics(strange(manifest, samples.labels), scores, flagged, seed=seed)
    spellings = known_labels(manifest.labels)
    actual = [spellings.get(name.casefold(), name) for name in samples.labels]
    labels = [label.name for label in manifest.labels]
    probabilities = np.array([[answer["probabilities"].get(name, 0.0) for name in labels] for answer in found])
    positive = positive_label(manifest)
    return evaluate.classification_metrics(
        actual, [answer["label"] for answer in found], probabilities, labels, positive=positive, seed=seed
    )


def positive_label(manifest: Manifest) -> str | None:
    """The label that counts as a hit: said by the post-processing or the target; None for more than two classes."""
    if len(manifest.labels) != 2:
        return None
    for step in manifest.post:
        if step.op == "classify" and step.positive:
            return step.positive
    said = manifest.target.positive if manifest.target else None
    return said or manifest.labels[1].name


def strange(manifest: Manifest, labels: list[str]) -> npt.NDArray[np.bool_]:
    """Which rows are anomalies: those of the target's positive label; else all but the one label that the manifest
    names (the normal one); else all that do not read as normal."""
    positive = manifest.target.positive if manifest.target else None
    if positive is not None and positive in labels:
        return np.array([name == positive for name in labels])
    if len(manifest.labels) == 1:
        return np.array([name != manifest.labels[0].name for name in labels])
    return np.array([not is_normal(name) for name in labels])


def golden_inputs(bundle: Bundle, rows: list[dict[str, Any]], seed: int) -> Arrays:
    """Golden inputs that are nobody's row: float tensors in the samples' range, or general phrases for a text model."""
    inputs = encode(bundle, rows[: BATCH_ROWS * 4])
    if all(array.dtype.kind == "f" for array in inputs.values()):
        return generated_like(inputs, seed)
    feature = next(entry.name for entry in bundle.manifest.features if entry.kind == "text")
    return encode(bundle, [{feature: text} for text in GENERIC_TEXTS])


def encoded_batches(bundle: Bundle, rows: list[dict[str, Any]]) -> Iterator[Arrays]:
    """The graph's inputs in batches that the bundle allows."""
    rows = named_for(bundle.manifest, rows)
    pipeline, size = Pipeline(bundle), _batch_rows(bundle.manifest, rows)
    for at in range(0, len(rows), size):
        yield dict(pipeline.encode(rows[at : at + size]))


def embeddings(bundle: Bundle, rows: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """What an embedding bundle answers, [N, D]."""
    return np.array([answer["embedding"] for answer in answers(bundle, rows)], np.float64)


def check_parity(
    model_path: Path, inputs: Arrays, expected: npt.NDArray[Any], tolerance: float = 1e-3, odd_rows: float = 0.0
) -> float:
    """The largest difference of the exported graph from its original on `inputs`, over the size of the answers.

    `Unprocessable` PARITY_FAILED when it is above `tolerance`: a graph that answers differently is never shipped.
    """
    (output,) = load_graph(model_path).run(inputs).values()
    return check_answers(output, expected, tolerance, odd_rows)


def check_answers(
    output: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float = 1e-3, odd_rows: float = 0.0
) -> float:
    """The same for outputs already in hand. `odd_rows`: the share of rows that may differ, for trees: a cell within
    float32's rounding of a split may take the other branch."""
    if not expected.size:
        return 0.0
    difference = np.abs(output.reshape(expected.shape).astype(np.float64) - expected)
    by_row = np.sort((difference / np.maximum(1.0, np.abs(expected))).reshape(len(expected), -1).max(axis=1))
    worst = float(by_row[len(by_row) - 1 - int(odd_rows * len(by_row))])
    if worst <= tolerance:
        return worst
    raise parity_failed(f"相差 {worst:.2g}, 超过 {tolerance:g}", f"it is off by {worst:.2g}, more than {tolerance:g}")


def run_model(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """A graph that is only in memory, run once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return dict(load_graph(path).run(inputs))
