"""Adapters as files beside a base: ONNX Runtime's adapter format in a bundle whose manifest names the base.

An adapter bundle has `adapter.onnx_adapter` where another has model.onnx, and everything else that a bundle may have:
its own tensors, labels, processing, tokenizer, golden samples. It is numbers only: the graph that runs is the base's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model_store.adapter_sites import AdapterSites, read_sites
from model_store.bundle import ADAPTER, Bundle, seal
from model_store.errors import Unprocessable
from model_store.graph_specs import overridable_specs_of, read_model_proto
from model_store.manifest import AdapterOf, Manifest, TensorSpec
from model_store.ort import onnxruntime
from model_store.runtime import Graph
from model_store.tensors import NUMPY_OF, Array, oip_of_array, oip_of_ort_type

FORMAT_BYTES = 4096  # at most, of the file's own frame and of each parameter's name, shape and padding


def write_adapter(path: Path, tensors: Mapping[str, Array]) -> Path:
    """Write parameters by name (`A[in, rank]`, `B[rank, out]`, whole ones as they are); FP32, FP16 or FP64."""
    adapter = onnxruntime.AdapterFormat()
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in sorted(tensors.items())
    }
    adapter.set_parameters(values)
    adapter.export_adapter(os.fspath(path))
    return path


def read_adapter(path: Path) -> dict[str, Array]:
    """Every parameter of an adapter file, copied. Raises `Unprocessable` ADAPTER_FILE_INVALID."""
    try:
        values = onnxruntime.AdapterFormat.read_adapter(os.fspath(path)).get_parameters()
        described = {name: _described(name, value) for name, value in values.items()}
        claimed = sum(NUMPY_OF[each.dtype].itemsize * int(np.prod(each.shape)) for each in described.values())
        size, room = path.stat().st_size, FORMAT_BYTES * (1 + len(described))
        if not claimed <= size <= claimed + room:  # a shape larger than what stands behind it, or ballast
            raise ValueError(f"{claimed} bytes of parameters in a file of {size}")
        return {name: np.array(value.numpy(), dtype=NUMPY_OF[described[name].dtype]) for name, value in values.items()}
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, Unprocessable) as error:
        raise _file_invalid(str(error)) from error


def _described(name: str, value: onnxruntime.OrtValue) -> TensorSpec:
    shape = [int(side) for side in value.shape()]
    if min(shape, default=1) < 0:
        raise ValueError(f"{name}: {shape}")
    return TensorSpec(name=name, dtype=oip_of_ort_type(value.data_type(), name), shape=shape)


def parameters_for(graph: Graph, path: Path) -> dict[str, Array]:
    """What `Graph.run(bound=…)` takes to run every row with this adapter, whatever form the graph's sites have.

    Raises `Unprocessable` ADAPTER_FILE_INVALID.
    """
    tensors = read_adapter(path)
    if graph.sites is None or not graph.sites.indexed:
        return tensors
    return {name: tensor[None] for name, tensor in tensors.items()}  # the only slot, and the index's default


def specs_of_tensors(tensors: Mapping[str, Array]) -> dict[str, TensorSpec]:
    """Name → dtype and shape."""
    found = {}
    for name, array in tensors.items():
        dtype = oip_of_array(array)
        if dtype is None:
            raise _file_invalid(f"{name}: {array.dtype}")
        found[name] = TensorSpec(name=name, dtype=dtype, shape=list(array.shape))
    return found


def sites_of_bundle(base: Bundle) -> AdapterSites | None:
    """The adapter sites of a base, from its file; nothing is loaded.

    Raises what `read_model_proto` and `read_sites` raise.
    """
    model = read_model_proto(base.model_path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return read_sites(metadata, overridable_specs_of(model))


def seal_adapter(
    folder: Path, manifest: Manifest, base: Bundle, tensors: Mapping[str, Array], base_version: int = 1
) -> Bundle:
    """Write `tensors` into `folder` as an adapter of `base` and seal it; other files may lie there already.

    `base_version`: its number where it is published. Raises what `AdapterSites.ranks_of` and `seal` raise, and
    `Unprocessable` BASE_TAKES_NO_ADAPTERS, ADAPTER_NOT_FINITE.
    """
    ranks = _sites_or_refuse(base).ranks_of(specs_of_tensors(tensors))
    _check_finite(tensors)
    of = AdapterOf(name=base.manifest.name, version=base_version, digest=base.digest, ranks=ranks)
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder / ADAPTER, tensors)
    return seal(folder, manifest.model_copy(update={"adapter_of": of}))


def check_adapter(adapter: Bundle, base: Bundle) -> None:
    """Refuse an adapter bundle that does not fit its base: at upload, for a run would only refuse it later.

    Raises `Unprocessable` ADAPTER_BASE_CHANGED, BASE_TAKES_NO_ADAPTERS, ADAPTER_FILE_INVALID, ADAPTER_NOT_FINITE,
    ADAPTER_RANKS_WRONG, and what `AdapterSites.ranks_of` raises.
    """
    of = adapter.manifest.adapter_of
    if of is None or of.digest != base.digest:
        raise _base_changed(adapter, base)
    sites = _sites_or_refuse(base)
    tensors = read_adapter(adapter.adapter_path)
    ranks = sites.ranks_of(specs_of_tensors(tensors))
    _check_finite(tensors)
    if ranks != of.ranks:
        raise Unprocessable(
            "ADAPTER_RANKS_WRONG",
            zh=f"清单写明的秩 {of.ranks} 与适配器文件中的 {ranks} 不符",
            en=f"the manifest says ranks {of.ranks}, the adapter file has {ranks}",
            remedy_zh="请用 seal_adapter 重新封装",
            remedy_en="seal the bundle again with seal_adapter",
            field="adapter_of.ranks",
        )


def with_adapter_inside(base: Bundle, tensors: Mapping[str, Array], path: Path) -> Path:
    """Write the base's graph with the adapter as its default to `path`: a model of its own, for inspection and for
    whoever may not share the base. External weights of the base are taken into the file.
    """
    import onnx
    from onnx import numpy_helper

    sites = _sites_or_refuse(base)
    sites.ranks_of(specs_of_tensors(tensors))
    model = onnx.load(os.fspath(base.model_path))
    for initializer in model.graph.initializer:
        found = tensors.get(initializer.name)
        if found is not None:
            stacked = found[None] if sites.indexed else found
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stacked), initializer.name))
    onnx.save(model, os.fspath(path))
    return path


def _check_finite(tensors: Mapping[str, Array]) -> None:
    for name, array in tensors.items():
        wrong = int(array.size - np.isfinite(array).sum())
        if wrong:
            raise Unprocessable(
                "ADAPTER_NOT_FINITE",
                zh=f"适配器参数“{name[:120]}”中有 {wrong} 个 NaN 或无穷大",
                en=f"the adapter's {name[:120]!r} holds {wrong} NaN or infinite numbers",
                remedy_zh="训练可能已发散: 请降低学习率后重新训练",
                remedy_en="the training has probably diverged: train again with a lower learning rate",
                field=name[:120],
            )


def _sites_or_refuse(base: Bundle) -> AdapterSites:
    sites = sites_of_bundle(base)
    if sites is None:
        raise Unprocessable(
            "BASE_TAKES_NO_ADAPTERS",
            zh=f"模型 {base.manifest.name} 没有适配点, 不能挂载适配器",
            en=f"{base.manifest.name} has no adapter sites, so it takes no adapters",
            remedy_zh="请用 model_store.adapter_injection 注入适配点后发布基座, 或发布合并后的模型",
            remedy_en="publish the base with sites (model_store.adapter_injection), or publish the merged model",
            field="adapter_of",
        )
    return sites


def _base_changed(adapter: Bundle, base: Bundle) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_BASE_CHANGED",
        zh=f"适配器 {adapter.manifest.name} 不是为这个版本的 {base.manifest.name} 制作的 (摘要不符)",
        en=f"the adapter {adapter.manifest.name} was not made for this version of {base.manifest.name} (other digest)",
        remedy_zh="请在该版本的基座上重新训练或重新封装适配器",
        remedy_en="train or seal the adapter again on this version of the base",
        field="adapter_of.digest",
    )


def _file_invalid(why: str) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_FILE_INVALID",
        zh="adapter.onnx_adapter 不是完整的 ONNX Runtime 适配器文件",
        en="adapter.onnx_adapter is not a complete ONNX Runtime adapter file",
        remedy_zh="请用 onnxruntime.AdapterFormat (或 model_store.adapter_file.write_adapter) 重新写出",
        remedy_en="write it again with onnxruntime.AdapterFormat (or model_store.adapter_file.write_adapter)",
        field=ADAPTER,
        details={"reason": " ".join(why.split())[-200:]},
    )
