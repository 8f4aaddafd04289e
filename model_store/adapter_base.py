"""A vendor's bundle → the same bundle as a base of adapters: sites in its graph, and proof that its answers stay."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from model_store.adapter_injection import HEAD, LOGITS, add_head, inject_sites
from model_store.adapter_sites import INDEX, SITES_KEY, AdapterSites
from model_store.adapter_targets import batched_ranks, choose_targets
from model_store.bundle import MANIFEST, MODEL, Bundle, seal, settle
from model_store.errors import Unprocessable
from model_store.golden import Golden, read_golden, write_golden
from model_store.graph_specs import read_model_proto
from model_store.inspection.parity import compare_outputs
from model_store.manifest import TensorSpec
from model_store.runtime import Graph, load_graph
from model_store.step_specs import Vector
from model_store.tensors import NUMPY_OF, Array

CLASSES = 64  # room in the head of a base that answers pooled vectors
MAX_RANK = 16
PROBES = 3  # rows of the trial in which each row has an adapter of its own
ALONE_RTOL, ALONE_ATOL = 1e-3, 1e-4  # of a row in a mixed run beside the same row by itself


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """`difference`: the largest of the golden outputs, with sites and without. `bytes_per_rank`: of one adapter."""

    bundle: Bundle
    sites: AdapterSites
    difference: float
    bytes_per_rank: int


def with_sites(
    bundle: Bundle, out: Path, targets: Sequence[str], max_rank: int = MAX_RANK, classes: int | None = None
) -> AdapterBase:
    """Write `bundle` with adapter sites to `out` (new, or empty); the rows of a run choose their adapters.

    `targets`: as `choose_targets` takes them. `classes`: room in the head, 0 for none; by default CLASSES where the
    bundle answers a pooled vector. The golden samples must come out as before, and rows with different adapters in one
    run as each by itself. Raises `Unprocessable` BASE_NOT_ADAPTABLE, BASE_ANSWERS_CHANGED, what `choose_targets`,
    `inject_sites`, `load_graph` and `Graph.run` raise; `Conflict` BUNDLE_EXISTS.
    """
    golden = _golden_of(bundle)
    plain = read_model_proto(bundle.model_path)
    if any(entry.key == SITES_KEY for entry in plain.metadata_props):
        raise _not_adaptable("已经带有适配点", "it has adapter sites already")
    if any(tensor.external_data for tensor in plain.graph.initializer):
        raise _not_adaptable("权重在 model.onnx 之外的文件中", "its weights are in files beside model.onnx")
    pooled = _pooled_vector(bundle)
    room = (CLASSES if pooled else 0) if classes is None else classes
    if room and not pooled:
        raise _not_adaptable("不输出池化向量, 不能带分类头", "it answers no pooled vector that a head could go on")
    model = add_head(plain, pooled, room) if room else plain
    batched = batched_ranks(model, golden[0].inputs)
    chosen = [name for name in choose_targets(model, targets, batched) if name != HEAD]
    graph = inject_sites(
        model, [*chosen, *([HEAD] if room else [])], indexed=True, batched=batched, max_rank=max_rank,
        head=HEAD if room else "",
    )  # fmt: skip
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        _copy_files(bundle, partial)
        onnx.save(graph, str(partial / MODEL))
        loaded = load_graph(partial / MODEL)
        difference = _check_golden(bundle, loaded, golden)
        _check_rows_apart(loaded, golden[0].inputs)
        added = [spec for spec in loaded.outputs if room and spec.name == LOGITS]
        write_golden(partial, [_with_zeros(pair, added) for pair in golden])
        outputs = [*bundle.manifest.outputs, *added]
        made = settle(seal(partial, bundle.manifest.model_copy(update={"outputs": outputs, "cost": None})), out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    assert loaded.sites is not None, "sites were put into it"
    return AdapterBase(made, loaded.sites, difference, _bytes_per_rank(loaded.sites))


def _golden_of(bundle: Bundle) -> list[Golden]:
    """Its samples, of a bundle that can be a base at all."""
    if bundle.manifest.adapter_of is not None:
        raise _not_adaptable("它本身是适配器", "it is an adapter itself")
    if not bundle.manifest.batching.dynamic:
        raise _not_adaptable("清单声明不能合批 (batching.dynamic)", "its manifest says rows are not batched")
    golden = read_golden(bundle.path)
    if not golden:
        raise _not_adaptable("没有样例 (golden/), 无法核对", "it has no golden samples to check the answers by")
    return golden


def _pooled_vector(bundle: Bundle) -> str:
    """The output that holds one vector a row, "" where there is none."""
    shapes = {spec.name: spec.shape for spec in bundle.manifest.outputs}
    for step in bundle.manifest.post:
        if isinstance(step, Vector) and step.mean_pool is None and len(shapes.get(step.tensor, [])) == 2:
            return step.tensor
    return ""


def _copy_files(bundle: Bundle, folder: Path) -> None:
    shutil.copytree(bundle.path, folder, ignore=lambda _, names: {MANIFEST, MODEL, "golden"} & set(names))


def _check_golden(bundle: Bundle, graph: Graph, golden: Sequence[Golden]) -> float:
    worst = 0.0
    before = load_graph(bundle.model_path)
    for pair in golden:
        now, was = graph.run(pair.inputs), before.run(pair.inputs)
        for each in compare_outputs(was, now, bundle.manifest.golden_rtol, bundle.manifest.golden_atol):
            if not each.within:
                raise _answers_changed(f"{each.output}: {each.why_zh}", f"{each.output}: {each.why_en}")
            worst = max(worst, each.worst_abs)
    return worst


def _check_rows_apart(graph: Graph, inputs: Mapping[str, Array]) -> None:
    """Three adapters drawn by chance: each row of a mixed run answers as by itself, and otherwise than the base."""
    assert graph.sites is not None
    draw = np.random.default_rng(0)
    stacks: dict[str, Array] = {}
    for site in graph.sites.low_rank.values():
        rank, kind = min(4, site.max_rank), NUMPY_OF[site.dtype]
        stacks[site.a] = (draw.normal(size=(PROBES, site.features_in, rank)) / site.features_in**0.5).astype(kind)
        stacks[site.b] = (draw.normal(size=(PROBES, rank, site.features_out)) / rank**0.5).astype(kind)
    rows = {name: np.resize(array, (PROBES, *array.shape[1:])) for name, array in inputs.items()}
    mixed = graph.run(rows, bound={**stacks, INDEX: np.arange(PROBES)})
    base = graph.run(rows)
    if all(np.array_equal(mixed[name], base[name]) for name in mixed):
        raise _answers_changed("适配器不改变任何输出", "an adapter changes no output")
    for row in range(PROBES):
        only = {name: array[row : row + 1] for name, array in rows.items()}
        alone = graph.run(only, bound={name: stack[row : row + 1] for name, stack in stacks.items()})
        got = {name: array[row : row + 1] for name, array in mixed.items()}
        for each in compare_outputs(alone, got, ALONE_RTOL, ALONE_ATOL):
            if not each.within:
                raise _answers_changed(f"混合批次 {each.output}: {each.why_zh}", f"mixed {each.output}: {each.why_en}")


def _with_zeros(pair: Golden, added: Sequence[TensorSpec]) -> Golden:
    rows = len(next(iter(pair.outputs.values())))
    zeros = {spec.name: np.zeros((rows, spec.shape[-1]), NUMPY_OF[spec.dtype]) for spec in added}
    return Golden(pair.name, pair.inputs, {**pair.outputs, **zeros})


def _bytes_per_rank(sites: AdapterSites) -> int:
    return sum(
        (site.features_in + site.features_out) * NUMPY_OF[site.dtype].itemsize
        for name, site in sites.low_rank.items()
        if name != sites.head
    )


def _not_adaptable(zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "BASE_NOT_ADAPTABLE",
        zh=f"该模型包不能加适配点: {zh}",
        en=f"this bundle cannot get adapter sites: {en}",
        remedy_zh="请用带样例、可合批、权重在 model.onnx 内的编码器模型包 (分类头需要 post 中有 vector)",
        remedy_en="use an encoder's bundle with golden samples, a free batch dimension and its weights in model.onnx (a"
        " head needs a vector step in post)",
        field="model.onnx",
    )


def _answers_changed(zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "BASE_ANSWERS_CHANGED",
        zh=f"加入适配点后, 答案未能保持: {zh}",
        en=f"with its sites the base does not answer as it must: {en}",
        remedy_zh="请减少 --targets (例如 q,v), 或以动态批次重新导出模型",
        remedy_en="choose fewer --targets (q,v for example), or export the model again with a dynamic batch dimension",
        field="model.onnx",
    )
