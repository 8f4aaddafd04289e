"""Whether a graph gives what its golden samples say, and the same for a row alone as for the row in a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_store.tensors import Array, as_bytes_array, oip_of_array


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output is from what was expected. `why` is empty where it is within tolerance."""

    output: str
    why_zh: str = ""
    why_en: str = ""
    worst_abs: float = 0.0
    worst_rel: float = 0.0

    @property
    def within(self) -> bool:
        return not self.why_en


def compare_outputs(
    expected: Mapping[str, Array], actual: Mapping[str, Array], rtol: float, atol: float
) -> list[Difference]:
    """One `Difference` for every expected output; names, types and shapes must agree exactly, NaN equals NaN."""
    return [compare_output(name, array, actual.get(name), rtol, atol) for name, array in expected.items()]


def compare_output(name: str, expected: Array, actual: Array | None, rtol: float, atol: float) -> Difference:
    """|actual - expected| ≤ atol + rtol · |expected| everywhere; text and booleans exactly."""
    if actual is None:
        return Difference(name, "计算图没有这个输出", "the graph has no such output")
    if oip_of_array(expected) != oip_of_array(actual):
        text = f"{oip_of_array(expected)} ≠ {oip_of_array(actual)}"
        return Difference(name, f"类型不同: {text}", f"types differ: {text}")
    if expected.shape != actual.shape:
        text = f"{list(expected.shape)} ≠ {list(actual.shape)}"
        return Difference(name, f"形状不同: {text}", f"shapes differ: {text}")
    if expected.dtype.kind in "OSU":
        same = bool(np.array_equal(as_bytes_array(expected), as_bytes_array(actual)))
        return Difference(name) if same else Difference(name, "文本不同", "texts differ")
    if expected.dtype.kind == "b":
        wrong = int(np.count_nonzero(expected != actual))
        return Difference(name) if not wrong else Difference(name, f"{wrong} 个元素不同", f"{wrong} elements differ")
    return _compare_numbers(name, expected, actual, rtol, atol)


def _compare_numbers(name: str, expected: Array, actual: Array, rtol: float, atol: float) -> Difference:
    if np.array_equal(expected, actual):
        return Difference(name)
    want, got = (array.astype(np.longdouble) for array in (expected, actual))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (want == got) | (np.isnan(want) & np.isnan(got))
        gap = np.where(same, 0, np.abs(got - want))
        # an infinite expectation would make the tolerance infinite
        outside = ~same & ~(np.isfinite(want) & (gap <= atol + rtol * np.abs(want)))
        finite = np.isfinite(gap)
        worst_abs = float(gap[finite].max(initial=0))
        relative = gap[finite] / np.maximum(np.abs(want[finite]), np.finfo(np.float64).tiny)
        worst_rel = float(relative.max(initial=0))
    wrong = int(np.count_nonzero(outside))
    if not wrong:
        return Difference(name, worst_abs=worst_abs, worst_rel=worst_rel)
    worst = "NaN/∞" if not np.all(finite) else f"{worst_abs:.3g}"
    share = f"{wrong}/{expected.size}"
    return Difference(
        name,
        f"{share} 个元素超出容差 (rtol {rtol:g}, atol {atol:g}), 最大偏差 {worst}",
        f"{share} elements are out of tolerance (rtol {rtol:g}, atol {atol:g}), worst {worst}",
        worst_abs if math.isfinite(worst_abs) else 0.0,
        worst_rel if math.isfinite(worst_rel) else 0.0,
    )


def rows_of(inputs: Mapping[str, Array]) -> int | None:
    """The number of rows, where all inputs share their first dimension; None where they do not."""
    sizes = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def take_rows(inputs: Mapping[str, Array], first: int, count: int) -> dict[str, Array]:
    """`count` rows from `first` on, starting over at the end, of every input."""
    return {name: array[np.arange(first, first + count) % array.shape[0]] for name, array in inputs.items()}


def join_rows(pieces: list[Mapping[str, Array]]) -> dict[str, Array] | None:
    """Outputs (or inputs) of several runs one below the other; None where their shapes do not allow it."""
    joined: dict[str, Array] = {}
    for name in pieces[0]:
        arrays = [piece[name] for piece in pieces if name in piece]
        if len(arrays) != len(pieces) or any(a.ndim == 0 or a.shape[1:] != arrays[0].shape[1:] for a in arrays):
            return None
        joined[name] = np.concatenate(arrays)
    return joined
