"""Whether an exported graph still answers as its original does: numbers within a tolerance, and the same verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.errors import Unprocessable
from model_store.runtime import load_graph

TOLERANCE = 1e-3
MIN_AGREEMENT = 0.999
BATCH_ROWS = 256
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Parity:
    """`max_abs`, `max_rel` (over the larger of 1 and the size of the answer), share of rows of the same verdict."""

    rows: int
    max_abs: float
    max_rel: float
    agreement: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def compare(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> Parity:
    """`expected` and `found` of one size, [N] or [N, K]. With two columns or more the verdict is the largest column."""
    wanted = np.asarray(expected, np.float64).reshape(len(expected), -1)
    given = np.asarray(found, np.float64).reshape(len(found), -1)
    if wanted.shape != given.shape:
        raise parity_failed(f"{given.shape} ≠ {wanted.shape}", f"its shape is {given.shape}, not {wanted.shape}")
    if not wanted.size:
        return Parity(0, 0.0, 0.0, 1.0)
    gap = np.abs(wanted - given)
    relative = gap / np.maximum(1.0, np.abs(wanted))
    agreement = float((wanted.argmax(1) == given.argmax(1)).mean()) if wanted.shape[1] > 1 else 1.0
    return Parity(len(wanted), float(gap.max()), float(relative.max()), agreement)


def verify_graph(
    model_path: Path,
    inputs: Arrays,
    expected: Arrays,
    *,
    tolerance: float = TOLERANCE,
    min_agreement: float = MIN_AGREEMENT,
) -> dict[str, Parity]:
    """Run `model_path` on `inputs` and compare each output named in `expected` with what the original answered.

    Raises `Unprocessable` PARITY_FAILED when a number is further off than `tolerance` (relative) or fewer than
    `min_agreement` of the rows keep their verdict: a graph that answers differently is never shipped.
    """
    found = run_all(model_path, inputs)
    result: dict[str, Parity] = {}
    for name, wanted in expected.items():
        parity = compare(wanted, found[name])
        if not parity.max_rel <= tolerance:  # also where it is not a number
            raise parity_failed(
                f"{name} 相差 {parity.max_rel:.2g}, 超过允许的 {tolerance:g}",
                f"{name} is off by {parity.max_rel:.2g}, more than {tolerance:g}",
            )
        if parity.agreement < min_agreement:
            raise parity_failed(
                f"{name} 仅 {parity.agreement:.2%} 的行判定一致",
                f"{name} keeps the verdict of {parity.agreement:.2%} of the rows only",
            )
        result[name] = parity
    return result


def run_all(model_path: Path, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """All rows through the graph, a batch at a time."""
    graph = load_graph(model_path)
    rows = len(next(iter(inputs.values())))
    parts = [
        graph.run({name: array[at : at + BATCH_ROWS] for name, array in inputs.items()})
        for at in range(0, rows, BATCH_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def parity_failed(zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "PARITY_FAILED",
        zh=f"导出的模型与原模型不一致: {zh}",
        en=f"the exported graph does not answer as its original: {en}",
        remedy_zh="请换一种方法或参数重新导出",
        remedy_en="export again with another method or parameters",
        field="model.onnx",
    )
