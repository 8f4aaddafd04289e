"""One entrant, from training rows to a packed and inspected bundle.

encode (the bundle's own pre-processing) → fit → export → verify against the original on the test rows → measure on the
test rows through the bundle → golden samples from made-up rows, answered by the original → fingerprint, card, zip.
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters import graphs, measure, tables, verify
from adapters.derive import package_versions
from adapters.recipes.shelf.card import card_text
from adapters.recipes.shelf.family import SEED, Arrays, Entrant, Family, Lesson, Parts, Row, Trained
from adapters.samples import Samples
from model_store import fingerprint, golden
from model_store.bundle import Bundle, pack, seal
from model_store.graph_specs import specs_of
from model_store.inspection.inspector import inspect_bundle
from model_store.inspection.report import Report
from model_store.manifest import Batching, DataSource, FeatureReference, Manifest, Metric, TensorSpec
from model_store.step_specs import Classify, PostStep, Value, Vector

GOLDEN_ROWS = 4
QUANTILES = np.linspace(0, 1, 11)


@dataclass(slots=True)
class Made:
    """A finished bundle: its zip, what inspection said, and how long the graph is."""

    bundle: Bundle
    zip_path: Path
    report: Report
    parity: dict[str, verify.Parity]

    @property
    def main(self) -> Metric | None:
        return self.bundle.manifest.metrics[0] if self.bundle.manifest.metrics else None


def make(family: Family, entrant: Entrant, parts: Parts, work: Path, out: Path) -> Made:
    """Train `entrant`, write `out/<vendor>--<slug>.zip` and its report; `work` holds the unpacked bundle."""
    folder = work / f"{entrant.vendor}--{entrant.slug}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema = schema_of(family, entrant, parts)
    draft = Bundle(path=folder, manifest=schema, digest="")
    trained = entrant.fit(lesson_of(family, parts.train, encode(draft, parts.train.rows)))
    graphs.save(trained.graph, folder)
    manifest = with_graph(family, schema, trained)

    test_inputs = encode(draft, parts.test.rows)
    parity = verify.verify_graph(folder / "model.onnx", test_inputs, trained.answer(test_inputs))
    rows = family.generate(np.random.default_rng(SEED), GOLDEN_ROWS, parts.train)
    inputs = encode(draft, rows)
    golden.write_golden(folder, [golden.Golden("0", inputs, trained.answer(inputs))])

    hashes = fingerprint.row_hashes(parts.train.rows, family.features)
    fingerprint.write_rows(folder, hashes)
    manifest = manifest.model_copy(
        update={
            "features": with_examples(family, rows[0]),
            "data": provenance(family, parts, hashes),
            "reference": reference_of(manifest, parts.train),
            "recipe": {
                "name": f"shelf/{family.slug}", "params": trained.params, "seed": SEED, "packages": package_versions(),
                "parity": {name: round(found.max_rel, 9) for name, found in parity.items()},
                "split_zh": family.split.zh, "split_en": family.split.en,
            },
        }
    )  # fmt: skip
    bundle = seal(folder, manifest)
    manifest = manifest.model_copy(update={"metrics": measured(bundle, parts)})
    (folder / "card.md").write_text(card_text(family, entrant, manifest), encoding="utf-8")
    bundle = seal(folder, manifest)
    zip_path = pack(bundle, out / f"{folder.name}.zip")
    return Made(bundle, zip_path, inspect(bundle, out / f"{folder.name}.report.json"), parity)


def encode(bundle: Bundle, rows: list[Row]) -> Arrays:
    """Rows → tensors by the bundle's own pre-processing."""
    return measure.encode(bundle, rows)


def schema_of(family: Family, entrant: Entrant, parts: Parts) -> Manifest:
    """What the model takes and says of itself; shapes and post-processing come with the graph."""
    pre = (entrant.pre or family.pre)(parts.train)
    tensor = next(str(step.tensor) for step in reversed(pre) if hasattr(step, "tensor"))
    return Manifest(
        name=entrant.name, title_zh=entrant.title_zh, title_en=entrant.title_en, summary_zh=entrant.summary_zh,
        summary_en=entrant.summary_en, tier="small", task=family.task, modality=family.modality,
        chains=list(family.chains), links=list(family.links), scenarios=list(family.scenarios),
        keywords=list(family.keywords), licence=family.licence, family=family.slug, method=entrant.method,
        inputs=[TensorSpec(name=tensor, dtype="FP32", shape=[-1, -1])],
        outputs=[TensorSpec(name="y", dtype="FP32", shape=[-1, -1])],
        features=list(family.features), target=family.target, labels=list(family.labels),
        pre=pre, batching=Batching(dynamic=True), adaptable=entrant.adaptable,
    )  # fmt: skip


def lesson_of(family: Family, train: Samples, inputs: Arrays) -> Lesson:
    positive = family.target.positive if family.target else None
    return Lesson(inputs, train, [label.name for label in family.labels], positive)


def with_graph(family: Family, schema: Manifest, trained: Trained) -> Manifest:
    """The schema with the graph's own tensors, and how its answer is read."""
    inputs, outputs = specs_of(trained.graph)
    return schema.model_copy(
        update={"inputs": inputs, "outputs": outputs, "post": trained.post or post_of(family, trained, outputs[0].name)}
    )


def post_of(family: Family, trained: Trained, tensor: str) -> list[PostStep]:
    """The last step that fits the family's task."""
    if family.task == "embedding":
        return [Vector(tensor=tensor)]
    if not family.labels:
        return [Value(tensor=tensor, decimals=3)]
    names = [label.name for label in family.labels]
    positive = family.target.positive if family.target else None
    if positive is None or trained.threshold is None:
        return [Classify(tensor=tensor, labels=names)]
    return [Classify(tensor=tensor, labels=names, positive=positive, threshold=trained.threshold)]


def measured(bundle: Bundle, parts: Parts) -> list[Metric]:
    """The task's metrics on the test rows that count, as serving would answer them; [] for an embedding."""
    if bundle.manifest.task == "embedding":
        return []
    found = measure.answers(bundle, parts.test.rows)
    test = parts.test
    if parts.scored is not None:
        found, test = [found[place] for place in parts.scored], test.take(parts.scored)
    return measure.measure_answers(bundle.manifest, found, test, SEED)


def with_examples(family: Family, row: Row) -> list[Any]:
    """Each feature with a made-up value for the try-it form (a picture as base64), unless the family gives one."""
    cells = {name: base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for name, cell in row.items()}
    return [
        feature if feature.example is not None else feature.model_copy(update={"example": cells[feature.name]})
        for feature in family.features
    ]


def provenance(family: Family, parts: Parts, train: fingerprint.Hashes) -> list[DataSource]:
    """Title, address and licence of the data, and a fingerprint of either side of the split."""
    test = fingerprint.row_hashes(parts.test.rows, family.features)
    where = {"title": family.source.title, "url": family.source.url, "licence": family.source.licence}
    return [
        DataSource(**where, rows=len(parts.train.rows), use="trained",
                   split_fingerprint=fingerprint.split_fingerprint(train)),
        DataSource(**where, rows=len(parts.test.rows), use="evaluated",
                   split_fingerprint=fingerprint.split_fingerprint(test)),
    ]  # fmt: skip


def reference_of(manifest: Manifest, train: Samples) -> dict[str, FeatureReference]:
    """Distributions of the training rows: of a number its values, of a text its length in characters, of a series its
    samples, of a picture its mean brightness in 0..1."""
    found = tables.reference(manifest, train.rows)
    for feature in manifest.features:
        if feature.kind in ("text", "series", "image"):
            values = np.concatenate([_measured_cell(row[feature.name], feature.kind) for row in train.rows])
            found[feature.name] = FeatureReference(
                kind=feature.kind, count=len(train.rows), mean=round(float(values.mean()), 6),
                std=round(float(values.std()), 6), minimum=float(values.min()), maximum=float(values.max()),
                quantiles=[round(float(value), 6) for value in np.quantile(values, QUANTILES)],
            )  # fmt: skip
    return found


def _measured_cell(cell: Any, kind: str) -> Any:
    if kind == "text":
        return np.array([len(str(cell))], np.float64)
    if kind == "series":
        return np.asarray(cell, np.float64)
    import io

    from PIL import Image

    with Image.open(io.BytesIO(cell)) as picture:
        return np.array([np.asarray(picture.convert("L"), np.float64).mean() / 255])


def inspect(bundle: Bundle, path: Path) -> Report:
    """Inspect the bundle as publishing would, and keep the report beside the zip with the digest that it is about."""
    report = inspect_bundle(bundle.path)
    text = json.dumps({"digest": bundle.digest, **report.as_dict()}, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    return report
