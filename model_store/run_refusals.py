"""What is refused of a run: its inputs, its time, its outputs, and what ONNX Runtime fails with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from model_store.errors import BadInput, DeadlineExceeded, Refusal, TooLarge, Unprocessable
from model_store.manifest import TensorSpec
from model_store.tensors import Array, oip_of_array, tensor_bytes


def check_output_bytes(outputs: Mapping[str, Array], max_output_bytes: int) -> None:
    """Raise `TooLarge` OUTPUT_TOO_LARGE if the outputs together hold more than `max_output_bytes`."""
    sizes = {name: tensor_bytes(array) for name, array in outputs.items()}
    if sum(sizes.values()) > max_output_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        raise TooLarge(
            "OUTPUT_TOO_LARGE",
            zh=f"输出共 {sum(sizes.values())} 字节, 上限 {max_output_bytes} 字节",
            en=f"the outputs hold {sum(sizes.values())} bytes; at most {max_output_bytes}",
            remedy_zh="请减少一次请求的行数, 或只要需要的输出",
            remedy_en="send fewer rows in one request, or ask for the outputs that you need",
            field=largest,
        )


def tensor_unknown(name: str, known: Sequence[str]) -> BadInput:
    return BadInput(
        "TENSOR_UNKNOWN",
        zh=f"模型没有名为“{name[:120]}”的输入",
        en=f"the model has no input named {name[:120]!r}",
        remedy_zh=f"可用输入: {_listed(known)}",
        remedy_en=f"its inputs are {_listed(known)}",
        field=name[:120],
    )


def output_unknown(name: str, known: Sequence[str]) -> BadInput:
    return BadInput(
        "OUTPUT_UNKNOWN",
        zh=f"模型没有名为“{name[:120]}”的输出",
        en=f"the model has no output named {name[:120]!r}",
        remedy_zh=f"可用输出: {_listed(known)}",
        remedy_en=f"its outputs are {_listed(known)}",
        field=name[:120],
    )


def tensor_missing(spec: TensorSpec, got: Sequence[str]) -> BadInput:
    return BadInput(
        "TENSOR_MISSING",
        zh=f"缺少输入“{spec.name}” ({spec.dtype} {spec.shape}); 收到: {_listed(got)}",
        en=f"input {spec.name!r} ({spec.dtype} {spec.shape}) is missing; got {_listed(got)}",
        remedy_zh=f"请加上输入“{spec.name}”",
        remedy_en=f"send {spec.name!r} too",
        field=spec.name,
    )


def tensor_dtype(spec: TensorSpec, array: Array) -> BadInput:
    got = oip_of_array(array) or str(array.dtype)
    return BadInput(
        "TENSOR_DTYPE",
        zh=f"输入“{spec.name}”应为 {spec.dtype}, 收到 {got}",
        en=f"input {spec.name!r} takes {spec.dtype}, got {got}",
        remedy_zh=f"请把“{spec.name}”转换为 {spec.dtype}",
        remedy_en=f"convert {spec.name!r} to {spec.dtype}",
        field=spec.name,
        details={"expected": spec.dtype, "got": got},
    )


def tensor_shape(spec: TensorSpec, got: Sequence[int]) -> BadInput:
    return BadInput(
        "TENSOR_SHAPE",
        zh=f"输入“{spec.name}”的形状应为 {spec.shape} (-1 为任意), 收到 {list(got)}",
        en=f"input {spec.name!r} takes shape {spec.shape} (-1: any), got {list(got)}",
        remedy_zh=f"请按 {spec.shape} 排列“{spec.name}”",
        remedy_en=f"arrange {spec.name!r} as {spec.shape}",
        field=spec.name,
        details={"expected": spec.shape, "got": list(got)},
    )


def deadline_exceeded(deadline_ms: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        "DEADLINE_EXCEEDED",
        zh=f"模型运行超过 {deadline_ms:.0f} 毫秒, 已终止",
        en=f"the run took longer than {deadline_ms:.0f} ms and was ended",
        remedy_zh="请减少一次请求的行数, 或放宽期限",
        remedy_en="send fewer rows in one request, or allow more time",
        field="deadline_ms",
    )


def run_failed(error: BaseException) -> Refusal:
    """`MODEL_OUT_OF_MEMORY` or `MODEL_RUN_FAILED`, by what ONNX Runtime said."""
    text = brief(error)
    lowered = text.lower()
    if isinstance(error, MemoryError) or "failed to allocate memory" in lowered or "bad_alloc" in lowered:
        return Unprocessable(
            "MODEL_OUT_OF_MEMORY",
            zh="模型运行所需内存超过允许的上限",
            en="the run needs more memory than it is allowed",
            remedy_zh="请减小输入, 或缩小模型",
            remedy_en="send a smaller input, or make the model smaller",
            field="model",
        )
    return Unprocessable(
        "MODEL_RUN_FAILED",
        zh=f"模型无法处理该输入: {text}",
        en=f"the model cannot process this input: {text}",
        remedy_zh="请检查输入的形状和取值是否符合模型说明",
        remedy_en="check that shapes and values are what the model's description asks for",
        field="inputs",
    )


def brief(error: BaseException, path: Path | None = None) -> str:
    """ONNX Runtime's message without its build paths and without ours."""
    text = str(error) or type(error).__name__
    if path is not None:
        text = text.replace(os.fspath(path), path.name).replace(os.fspath(path.parent), "")
    marker = "Status Message: "
    if marker in text:
        text = text.rsplit(marker, 1)[1]
    if text.startswith("/onnxruntime_src/") and " " in text:
        text = text.split(" ", 1)[1]
    return " ".join(text.split())[:300]


def _listed(names: Sequence[str], at_most: int = 12) -> str:
    shown = ", ".join(name[:60] for name in names[:at_most])
    return f"{shown} … ({len(names)})" if len(names) > at_most else shown or "–"
