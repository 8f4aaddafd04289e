"""What every recipe does at its end: the derivative's manifest, card, golden samples and seal.

A derivative says what it was made from (parent, relation, filing chain), on what (a fingerprint, never the data), how
(recipe, parameters, seed, package versions) and how well beside its parent.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import yaml

from adapters.recipe import Context, Note, Outcome, Recipe
from adapters.samples import Samples
from model_store import fingerprint, golden
from model_store.bundle import Bundle, seal
from model_store.manifest import (
    WEIGHT_REUSING_RELATIONS,
    DataSource,
    Feature,
    Filing,
    Manifest,
    Metric,
    Parent,
    Relation,
)
from model_store.runtime import Graph, load_graph

GOLDEN_ROWS = 4
PACKAGES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx", "torch", "transformers", "peft")
Arrays = dict[str, npt.NDArray[Any]]


def package_versions() -> dict[str, str]:
    """The versions of what may have taken part, as installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def copy_bundle_files(parent: Bundle, out: Path, new_graph: bool = False) -> None:
    """The parent's files but those that every bundle writes anew, and the graph with its weights where it is replaced.

    `source/` does not come with a new graph: it would no longer be what the graph was made from.
    """
    anew = {"manifest.json", "card.md", "golden"}
    if new_graph:
        plain = onnx.load(parent.model_path, load_external_data=False)
        anew |= {"model.onnx", "source", *external_weights(plain)}
    for item in parent.path.iterdir():
        if item.name in anew:
            continue
        if item.is_dir():
            shutil.copytree(item, out / item.name)
        else:
            shutil.copy2(item, out / item.name)


def external_weights(model: onnx.ModelProto) -> set[str]:
    """The files beside the graph that hold its weights."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def filing_of(parent: Manifest | None, relation: Relation) -> Filing:
    """A derivative has no number of its own; its base's number comes down over reused weights only."""
    if parent is None:
        return Filing()
    number = parent.filing.base_model_filing_no or parent.filing.filing_no
    kept = number if relation in WEIGHT_REUSING_RELATIONS else None
    return Filing(genai_service=parent.filing.genai_service, base_model_filing_no=kept)


def filing_notes(parent: Manifest | None, relation: Relation) -> list[Note]:
    """What changing a filed model may mean for its filing."""
    if parent is None:
        return []
    filed = parent.filing.filing_no or parent.filing.base_model_filing_no
    notes = []
    if filed and relation in ("finetune", "adapter", "distilled"):
        notes.append(
            Note(
                "FILING_MAY_CHANGE",
                zh=f"基础模型已备案 ({filed})。对已备案模型再训练并向公众提供服务, 可能由登记变为需要重新备案; "
                "仅供本单位内部使用通常无须办理。请在对外提供前向网信部门确认。",
                en=f"The base is a filed model ({filed}). Serving a model fine-tuned from it to the public may need a"
                " filing (备案) where a registration (登记) was enough; internal use usually needs neither."
                " Ask the cyberspace administration before you serve it to others.",
            )
        )
    if filed and relation == "retrained":
        notes.append(
            Note(
                "NO_WEIGHTS_REUSED",
                zh="本模型重新训练, 未使用基础模型的权重, 因此不继承其备案, 也不享受模型券。",
                en="This model was trained anew and reuses no weights, so it inherits no filing and no voucher.",
            )
        )
    return notes


def derived_manifest(context: Context, base: Manifest, relation: Relation, **changes: Any) -> Manifest:
    """`base` (the parent's manifest, or one made for the occasion) as this derivative's, with `changes` on top.

    Facts measured on the parent (metrics, cost, reference data, files) do not come along.
    """
    parent = context.parent
    link = None
    if parent is not None:
        link = Parent(
            name=parent.manifest.name, version=context.parent_version, relation=relation, digest=parent.digest
        )
    plain = base.model_dump()
    plain.update(
        name=context.name,
        parent=link.model_dump() if link else None,
        filing=filing_of(parent.manifest if parent else None, relation).model_dump(),
        data=[],
        metrics=[],
        cost=None,
        recipe={},
        files={},
    )
    if parent is not None:
        plain["title_zh"] = f"{base.title_zh or base.name} (适配)"
        plain["title_en"] = f"{base.title_en or base.name} (adapted)"
    plain.update({name: _plain(value) for name, value in changes.items()})
    return Manifest.model_validate(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.model_dump() if hasattr(value, "model_dump") else value


def own_data(
    features: Sequence[Feature], train: Samples, test: Samples, use: Literal["trained", "reference"] = "trained"
) -> list[DataSource]:
    """The factory's own rows, as provenance: how many, and fingerprints of the two sides of the split."""
    title, licence = "企业自有样本 / the factory's own samples", "proprietary"
    sides: list[tuple[Literal["trained", "reference", "evaluated"], Samples]] = [(use, train), ("evaluated", test)]
    return [
        DataSource(
            title=title,
            licence=licence,
            rows=len(side.rows),
            use=side_use,
            split_fingerprint=fingerprint.split_fingerprint(fingerprint.row_hashes(side.rows, features)),
        )
        for side_use, side in sides
    ]


def remember_rows(out: Path, manifest: Manifest, train: Samples) -> None:
    """Add the hashes of the rows learnt from to those that came with the parent: choosing warns when it meets them."""
    hashes = fingerprint.row_hashes(train.rows, manifest.features)
    known = fingerprint.read_rows(out)
    fingerprint.write_rows(out, hashes if known is None else np.union1d(known, hashes))


def generated_like(inputs: Mapping[str, npt.NDArray[Any]], seed: int, rows: int = GOLDEN_ROWS) -> Arrays:
    """Made-up float tensors in the range of `inputs`: each position drawn by itself between its 5% and 95% quantiles.

    So a golden sample is in the right range and is nobody's row.
    """
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for name, array in inputs.items():
        if array.dtype.kind != "f":
            raise TypeError(f"{name}: only float tensors can be generated, not {array.dtype}")
        low, high = np.quantile(array, 0.05, axis=0), np.quantile(array, 0.95, axis=0)
        made[name] = (low + (high - low) * random.random((rows, *array.shape[1:]))).astype(array.dtype)
    return made


def write_golden(folder: Path, inputs: Mapping[str, npt.NDArray[Any]], graph: Graph | None = None) -> None:
    """golden/0: `inputs` and what `graph` (model.onnx by default) answers to them."""
    outputs = (graph or load_graph(folder / "model.onnx")).run(dict(inputs))
    golden.write_golden(folder, [golden.Golden("0", dict(inputs), dict(outputs))])


def finish(
    context: Context,
    recipe: Recipe,
    manifest: Manifest,
    *,
    learnt: Samples | None,
    golden_inputs: Mapping[str, npt.NDArray[Any]],
    child: list[Metric],
    parent: list[Metric],
    notes: list[Note],
    facts: dict[str, Any],
    graph: Graph | None = None,
) -> Outcome:
    """Write card, golden samples and fingerprint beside the graph in `context.out`, seal the bundle, hand it back.

    `learnt`: the rows that were learnt from, None where none were. `graph`: what an adapter runs on.
    """
    notes = [*notes, *filing_notes(context.parent.manifest if context.parent else None, recipe.relation)]
    made = {
        "name": recipe.name, "params": dict(context.params), "seed": context.seed, "packages": package_versions(),
        "parent_metrics": [metric.model_dump() for metric in parent], "facts": facts,
    }  # fmt: skip
    full = manifest.model_copy(update={"metrics": child, "recipe": made})
    write_golden(context.out, golden_inputs, graph)
    if learnt is not None:
        remember_rows(context.out, manifest, learnt)
    (context.out / "card.md").write_text(card_text(full, recipe, parent, notes), encoding="utf-8")
    bundle = seal(context.out, full)
    context.report(1.0, "sealed")
    return Outcome(bundle=bundle.path, child=child, parent=parent, notes=notes, facts=facts)


def card_text(manifest: Manifest, recipe: Recipe, parent: list[Metric], notes: list[Note]) -> str:
    """`card.md`: Hub-style front matter, then Chinese and English."""
    front: dict[str, Any] = {
        "license": manifest.licence or "other",
        "pipeline_tag": manifest.task,
        "tags": ["algomart", recipe.name, *manifest.keywords],
    }
    if manifest.parent:
        front["base_model"] = manifest.parent.name
        front["base_model_relation"] = manifest.parent.relation
    before = {metric.name: metric for metric in parent}
    lines = ["| 指标 metric | 本模型 this | 基础模型 parent | 行数 rows |", "| --- | --- | --- | --- |"]
    for metric in manifest.metrics:
        other = before.get(metric.name)
        lines.append(f"| {metric.name} | {_shown(metric)} | {_shown(other) if other else '–'} | {metric.rows} |")
    relation = manifest.parent.relation if manifest.parent else recipe.relation
    made_from = f"{manifest.parent.name}@{manifest.parent.version}" if manifest.parent else "–"
    body = [
        f"# {manifest.title_zh or manifest.name} · {manifest.title_en or manifest.name}",
        f"由 {made_from} 经配方“{recipe.title_zh}”得到 ({relation})。企业样本不在包内, 仅保留指纹。",
        f"Made from {made_from} by the recipe “{recipe.title_en}” ({relation}). The factory's samples are not in"
        " the bundle, only their fingerprint.",
        "\n".join(lines),
        *(f"- {note.zh}\n- {note.en}" for note in notes),
    ]
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n" + "\n\n".join(body) + "\n"


def _shown(metric: Metric) -> str:
    interval = f" [{metric.low:.4g}, {metric.high:.4g}]" if metric.low is not None and metric.high is not None else ""
    return f"{metric.value:.4g}{interval}"


def draft(context: Context, manifest: Manifest) -> Bundle:
    """A bundle that has no graph yet: enough for its pre-processing."""
    return Bundle(path=context.out, manifest=manifest, digest="")


def graph_bytes(bundle: Bundle) -> int:
    """The size of a bundle's graph with the weights beside it."""
    beside = external_weights(onnx.load(bundle.model_path, load_external_data=False))
    return bundle.model_path.stat().st_size + sum((bundle.path / name).stat().st_size for name in beside)
