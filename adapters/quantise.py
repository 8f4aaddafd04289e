"""Int8 quantisation with ONNX Runtime's own quantiser, and how far the answers moved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from model_store.adapter_injection import HEAD, branch_nodes
from model_store.adapter_sites import SITES_KEY

Arrays = dict[str, npt.NDArray[Any]]
WEIGHTED = ("MatMul", "Gemm", "Conv")
Kind = Literal["dynamic", "static"]


def weighted_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each kind hold weights that can be int8 (a constant right-hand side)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def choose_kind(counts: dict[str, int]) -> Kind:
    """Static where there are convolutions (dynamic ones run slower than float), dynamic otherwise."""
    return "static" if counts.get("Conv") else "dynamic"


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser advises pre-processing on the root logger: only its level silences that, and only for so long."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


@_without_advice()
def quantise(source: Path, target: Path, kind: Kind, batches: Iterable[Arrays]) -> None:
    """Write the int8 graph. `batches`: input tensors to calibrate the activations of a static one on."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    model = onnx.load(source, load_external_data=False)
    has_sites = any(entry.key == SITES_KEY for entry in model.metadata_props)
    left_out = [*branch_nodes(model), HEAD] if has_sites else []  # what adapters put there stays float
    if kind == "dynamic":
        # By channel: half the error on MiniLM (0.12 against 0.27 of the spread). Reduced range (7 bits): without it a
        # CPU that lacks VNNI saturates, and answers otherwise than the one it was checked on. Gather: embeddings.
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            nodes_to_exclude=left_out,
        )
        return

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=list(WEIGHTED),
        nodes_to_exclude=left_out,
    )


def difference(before: Arrays, after: Arrays) -> float:
    """The root-mean-square difference of the float outputs over the spread of the parent's, the worst output's."""
    worst = 0.0
    for name, original in before.items():
        if original.dtype.kind != "f":
            continue
        moved = np.sqrt(np.mean((after[name].astype(np.float64) - original.astype(np.float64)) ** 2))
        spread = max(float(np.std(original.astype(np.float64))), 1e-6)
        worst = max(worst, float(moved) / spread)
    return worst
