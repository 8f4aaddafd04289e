"""The static check of model.onnx: parsed, bounded, walked; its weights and its declared tensors. Nothing is run.

Runs in the limited subprocess: protobuf and the checker are C++ that reads a stranger's bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx

from model_store.adapter_sites import SITES_KEY
from model_store.inspection.external_data import check_external
from model_store.inspection.files import check_head
from model_store.inspection.graph_walk import Walk, walk_model
from model_store.inspection.limits import Limits
from model_store.inspection.operators import (
    MAX_IR_VERSION,
    MAX_OPSET,
    MIN_IR_VERSION,
    domain_of,
)
from model_store.inspection.report import Findings
from model_store.manifest import Manifest, TensorSpec
from model_store.tensors import OIP_OF_ONNX


def check_graph(root: Path, manifest: Manifest | None, limits: Limits, findings: Findings) -> dict[str, Any]:
    """Judge `root`/model.onnx; returns its facts ({} where it cannot be parsed), findings go to `findings`.

    Facts: {inputs, outputs: [{name, dtype, shape}], ops: {op: count}, opset: {domain: version}, ir_version, functions,
    params, bytes, random}. `manifest` None: declared tensors are not compared.
    """
    path = root / "model.onnx"
    model = _parse(path, limits, findings)
    if model is None:
        return {}
    _check_versions(model, findings)
    walk = walk_model(model, limits, findings)
    if walk.too_big:
        return {}
    weight_bytes, params = _check_tensors(root, walk, limits, findings)
    inputs, outputs = _signature(model, findings)
    if manifest is not None and not findings.failed:
        compare_tensors("inputs", manifest.inputs, inputs, findings)
        compare_tensors("outputs", manifest.outputs, outputs, findings)
    if not findings.failed:
        _run_checker(path, walk, findings)
    return {
        "inputs": [_spec_facts(spec) for spec in inputs],
        "outputs": [_spec_facts(spec) for spec in outputs],
        "ops": dict(sorted(walk.ops.items())),
        "opset": {domain_of(item.domain): item.version for item in model.opset_import},
        "ir_version": model.ir_version,
        "functions": len(model.functions),
        "params": params,
        "bytes": path.stat().st_size + weight_bytes,
        "random": walk.random,
    }


def _parse(path: Path, limits: Limits, findings: Findings) -> onnx.ModelProto | None:
    before = len(findings)
    if not path.is_file() or path.is_symlink():
        findings.error(
            "MODEL_MISSING",
            "包内没有 model.onnx",
            "there is no model.onnx in the bundle",
            "请把模型导出为 ONNX 并命名为 model.onnx",
            "export the model to ONNX and name it model.onnx",
        )
        return None
    check_head(path, "model.onnx", findings)
    if len(findings) > before or path.stat().st_size > limits.model_bytes:
        return None  # said already, here or by `check_files`
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # DecodeError; its home moves between protobuf versions
        _not_a_model("protobuf 解析失败 (文件可能不完整)", "it does not parse as protobuf (cut short?)", findings)
        return None
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        _not_a_model("缺少计算图、opset 或输出", "graph, opset or outputs are missing (cut short?)", findings)
        return None
    return model


def _not_a_model(zh: str, en: str, findings: Findings) -> None:
    findings.error(
        "MODEL_NOT_ONNX",
        f"不是完整的 ONNX 模型: {zh}",
        f"not a complete ONNX model: {en}",
        "请重新导出并完整上传 (用 onnx.checker.check_model 自查)",
        "export again and upload all of it (onnx.checker.check_model tells)",
        "model.onnx",
    )


def _check_versions(model: onnx.ModelProto, findings: Findings) -> None:
    if not MIN_IR_VERSION <= model.ir_version <= MAX_IR_VERSION:
        findings.error(
            "IR_VERSION_UNSUPPORTED",
            f"IR 版本 {model.ir_version} 不受支持 (支持 {MIN_IR_VERSION}–{MAX_IR_VERSION})",
            f"IR version {model.ir_version} is not supported ({MIN_IR_VERSION} to {MAX_IR_VERSION} are)",
            "请设置 model.ir_version 或用较新 (较旧) 的 onnx 重新导出",
            "set model.ir_version, or export again with a newer (older) onnx",
            "model.onnx",
        )
    seen: dict[str, tuple[str, int]] = {}
    imports = [("model", item) for item in model.opset_import]
    imports += [(f"function {each.name}", item) for each in model.functions for item in each.opset_import]
    for place, item in imports[:10_000]:
        domain, said = domain_of(item.domain), (item.domain, item.version)
        # Word for word the same twice contradicts nothing: skl2onnx writes it so for every pipeline.
        if place == "model" and seen.get(domain, said) != said:
            findings.error(
                "OPSET_REPEATED",
                f"域 {domain} 的 opset 声明了两次",
                f"the opset of domain {domain} is declared twice",
                "请在 model.opset_import 中每个域只保留一条",
                "keep one entry for each domain in model.opset_import",
                place,
            )
        seen[domain] = said
        highest = MAX_OPSET.get(domain)
        if highest is not None and not 1 <= item.version <= highest:
            findings.error(
                "OPSET_UNSUPPORTED",
                f"域 {domain} 的 opset {item.version} 不受支持 (1–{highest})",
                f"opset {item.version} of domain {domain} is not supported (1 to {highest} are)",
                f"请以 opset_version={highest} 或更低重新导出",
                f"export again with opset_version={highest} or lower",
                place,
            )
    if model.training_info:
        findings.add(
            "TRAINING_INFO_IGNORED",
            "info",
            "模型含训练信息, 推理时不使用",
            "the model carries training information, which inference does not use",
        )


def _check_tensors(root: Path, walk: Walk, limits: Limits, findings: Findings) -> tuple[int, int]:
    """Bounds of every constant; returns the bytes of external weights and the number of elements in all."""
    external = params = 0
    for tensor, place in walk.tensors:
        where = f"{place}:{tensor.name}" if tensor.name else place
        if any(size < 0 for size in tensor.dims):
            findings.error(
                "TENSOR_SHAPE_INVALID",
                "常量张量的形状含负数",
                "a constant tensor has a negative dimension",
                "请重新导出",
                "export again",
                where,
            )
            continue
        elements = math.prod(tensor.dims)
        if elements > limits.tensor_elements:
            findings.error(
                "TENSOR_TOO_LARGE",
                f"常量张量声明了 {elements} 个元素, 上限 {limits.tensor_elements}",
                f"a constant tensor claims {elements} elements, at most {limits.tensor_elements} are accepted",
                "请减小模型",
                "make the model smaller",
                where,
            )
            continue
        params += elements
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            external += check_external(root, tensor, elements, where, findings)
    return external, params


def _signature(model: onnx.ModelProto, findings: Findings) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs (without initializers) and outputs; a type that the protocol cannot carry is an error."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    has_sites = any(entry.key == SITES_KEY for entry in model.metadata_props)  # those are inputs on purpose
    if model.ir_version >= 4 and len(inputs) < len(model.graph.input) and not has_sites:
        findings.add(
            "INITIALIZER_AS_INPUT",
            "advice",
            "部分权重同时列为输入, 会妨碍优化",
            "some weights are listed as inputs too, which keeps them from being optimised",
            "导出时设置 keep_initializers_as_inputs=False",
            "export with keep_initializers_as_inputs=False",
        )
    return (
        [spec for value in inputs if (spec := _spec_of(value, findings)) is not None],
        [spec for value in model.graph.output if (spec := _spec_of(value, findings)) is not None],
    )


def _spec_of(value: onnx.ValueInfoProto, findings: Findings) -> TensorSpec | None:
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type if kind == "tensor_type" else 0
    if element not in OIP_OF_ONNX:
        found = f"tensor({element})" if kind == "tensor_type" else str(kind)
        findings.error(
            "TENSOR_TYPE_UNSUPPORTED",
            f"类型 {found} 无法通过推理协议传输",
            f"type {found} cannot be carried by the inference protocol",
            "请导出只含普通张量的模型 (skl2onnx 请设 options={'zipmap': False})",
            "export a model with plain tensors only (with skl2onnx: options={'zipmap': False})",
            value.name,
        )
        return None
    dims = value.type.tensor_type.shape.dim
    shape = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in dims]
    return TensorSpec(name=value.name, dtype=OIP_OF_ONNX[element], shape=shape)


def compare_tensors(kind: str, declared: list[TensorSpec], found: list[TensorSpec], findings: Findings) -> None:
    """Declared and real tensors must agree in number, name, order, type and rank, and in every dimension that both fix.

    A graph that leaves a shape open (an output whose rank shape inference did not find) agrees with any declaration.
    """
    if [spec.name for spec in declared] != [spec.name for spec in found]:
        findings.error(
            "TENSOR_MISMATCH",
            f"manifest.json 的 {kind} 是 {[s.name for s in declared]}, 计算图的是 {[s.name for s in found]}",
            f"{kind} in manifest.json are {[s.name for s in declared]}, those of the graph {[s.name for s in found]}",
            "请使清单与计算图的名称和顺序一致",
            "make names and order in the manifest those of the graph",
            f"manifest.{kind}",
        )
        return
    for said, real in zip(declared, found, strict=True):
        same_rank = not real.shape or len(said.shape) == len(real.shape)
        same_dims = same_rank and all(b == -1 or a == b for a, b in zip(said.shape, real.shape, strict=False))
        if said.dtype != real.dtype or not same_dims:
            findings.error(
                "TENSOR_MISMATCH",
                f"manifest.json 声明 {said.dtype} {said.shape}, 计算图是 {real.dtype} {real.shape}",
                f"manifest.json declares {said.dtype} {said.shape}, the graph has {real.dtype} {real.shape}",
                "请使清单与计算图一致 (动态维度写 -1)",
                "make the manifest agree with the graph (-1 for a dynamic dimension)",
                f"manifest.{kind}.{said.name}",
            )


def _run_checker(path: Path, walk: Walk, findings: Findings) -> None:
    """onnx.checker, last: what it says is less plain than our own findings. By path where weights are external."""
    external = any(tensor.external_data for tensor, _ in walk.tensors)
    try:
        onnx.checker.check_model(str(path) if external else path.read_bytes())
    except Exception as error:  # ValidationError, or a plain C++ exception for some malformed fields
        text = str(error).strip().replace("\n", " ")[:400]
        findings.error(
            "MODEL_INVALID",
            f"onnx.checker 不接受该模型: {text}",
            f"onnx.checker does not accept the model: {text}",
            "请按提示修改后重新导出",
            "mend what it names and export again",
            "model.onnx",
        )


def _spec_facts(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape}
