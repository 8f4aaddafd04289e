"""Bounds of an inspection. All of them are refused with a finding that names the bound, never with an exception."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bundle may weigh and what the limited subprocess may spend on it.

    `memory_bytes` is what the subprocess may map beyond its own size at the start, to which twice the bundle's bytes
    are added; `wall_s` and `cpu_s` bound the whole inspection, `run_ms` one run of the graph.
    """

    files: int = 1024
    file_bytes: int = 2 * GIB
    bundle_bytes: int = 4 * GIB
    manifest_bytes: int = 8 * MIB
    model_bytes: int = 1 * GIB  # of the protobuf; larger weights belong in an external data file
    tensor_elements: int = 1 << 31
    nodes: int = 200_000  # after local functions are expanded
    graph_depth: int = 24
    functions: int = 2_000
    golden_cases: int = 256
    golden_bytes: int = 256 * MIB
    cpu_s: int = 90
    wall_s: float = 90.0
    memory_bytes: int = 2 * GIB
    written_bytes: int = 1 * MIB
    output_bytes: int = 256 * MIB
    run_ms: int = 20_000
    measure_s: float = 0.3  # spent on the cost model and the stability part, each, where the model is small

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT_LIMITS = Limits()
