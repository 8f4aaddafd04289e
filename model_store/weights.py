"""How much of a parent's weights a derivative really reuses: measured, not declared.

`python -m model_store.weights PARENT.onnx CHILD.onnx` prints `{"share": 0.97, …}`; `measure_reuse` runs that in a
limited subprocess, because a derivative is as untrusted as any upload. A parent tensor of at least `MIN_ELEMENTS`
counts as reused when the child holds the very same values, a fine-tuned version of them (same shape, relative change
at most `MAX_RELATIVE_CHANGE`), or an 8-bit version (same number of elements, correlation at least `MIN_CORRELATION`).
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_ELEMENTS = 16
MAX_RELATIVE_CHANGE = 0.5
MIN_CORRELATION = 0.98
MIN_SHARE = 0.5  # of the parent's elements: below it, a relation that claims reuse is refused
TIMEOUT_S, MEMORY_BYTES = 60, 4 << 30
Array = npt.NDArray[Any]


def measure_reuse(parent: Path, child: Path) -> float:
    """The share (0..1) of the parent graph's weight elements found in the child's; 0 where it cannot be measured."""
    if _sha256(parent) == _sha256(child):
        return 1.0
    command = [sys.executable, "-m", "model_store.weights", str(parent.resolve()), str(child.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True,
                              cwd=Path(__file__).resolve().parents[1])  # fmt: skip
        return float(json.loads(done.stdout)["share"])
    except (subprocess.SubprocessError, ValueError, KeyError, OSError):
        return 0.0


def reuse_share(parent: list[Array], child: list[Array]) -> float:
    """`measure_reuse` on the weight tensors themselves."""
    exact = {_fingerprint(array) for array in child}
    floats = [array for array in child if array.dtype.kind == "f"]
    small = [array for array in child if array.dtype in (np.int8, np.uint8)]
    reused = total = 0
    least = MIN_ELEMENTS if any(array.size >= MIN_ELEMENTS for array in parent) else 1  # a line has few weights
    for array in parent:
        if array.size < least:
            continue
        total += array.size
        if _fingerprint(array) in exact or (
            array.dtype.kind == "f"
            and (any(_tuned(array, other) for other in floats) or any(_quantised(array, other) for other in small))
        ):
            reused += array.size
    return reused / total if total else 0.0


def _fingerprint(array: Array) -> bytes:
    return hashlib.blake2b(array.tobytes() + str((array.dtype, array.size)).encode(), digest_size=16).digest()


def _tuned(parent: Array, child: Array) -> bool:
    if parent.shape != child.shape:
        return False
    change = float(np.linalg.norm(child.astype(np.float64) - parent))
    return change <= MAX_RELATIVE_CHANGE * float(np.linalg.norm(parent.astype(np.float64)) + 1e-12)


def _quantised(parent: Array, child: Array) -> bool:
    """Same count; correlated per output channel where shapes agree, since each channel may have its own scale."""
    if parent.size != child.size or parent.ndim != child.ndim:
        return False
    wanted, found = parent.astype(np.float64), child.astype(np.float64)
    if wanted.shape != found.shape:
        found = found.T if wanted.shape == found.T.shape else found.reshape(wanted.shape)
    for axis in range(wanted.ndim):
        kept = _correlations(
            *(np.moveaxis(array, axis, 0).reshape(wanted.shape[axis], -1) for array in (wanted, found))
        )
        if len(kept) and float(np.median(kept)) >= MIN_CORRELATION:
            return True
    return False


def _correlations(one: Array, other: Array) -> Array:
    """Pearson's r of each row of `one` with the same row of `other`, rows that do not vary left out."""
    one, other = (array - array.mean(axis=1, keepdims=True) for array in (one, other))
    size = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray((one * other).sum(axis=1)[size > 0] / size[size > 0])


def _weights_of(path: Path) -> list[Array]:
    """Every initialiser and Constant of the graph and its subgraphs; tree ensembles give their float attributes."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    found: list[Array] = []

    def walk(graph: Any) -> None:
        found.extend(numpy_helper.to_array(tensor) for tensor in graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    found.append(numpy_helper.to_array(attribute.t))
                elif attribute.type == onnx.AttributeProto.FLOATS:
                    found.append(np.asarray(attribute.floats, np.float32))
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    walk(attribute.g)

    walk(model.graph)
    return [array for array in found if array.dtype.kind in "fiu"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
    parent, child = (_weights_of(Path(argument)) for argument in sys.argv[1:3])
    print(json.dumps({"share": reuse_share(parent, child)}))


if __name__ == "__main__":
    main()
