"""The bundle under trial and what the steps of a trial hand on to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_store.adapter_file import check_adapter, parameters_for
from model_store.bundle import Bundle
from model_store.errors import Refusal
from model_store.golden import Golden
from model_store.inspection.limits import Limits
from model_store.inspection.report import Findings
from model_store.inspection.sealed import SealedSet
from model_store.manifest import Manifest
from model_store.processing.pipeline import Pipeline
from model_store.runtime import Graph, load_graph
from model_store.tensors import Array

Send = Callable[[str, Any], None]


@dataclass(slots=True)
class Subject:
    """`base`: of an adapter, whose graph it is tried on. `inputs`: a batch to measure with; `from_samples`: it comes
    from golden samples or examples, not from chance.
    """

    root: Path
    bundle: Bundle
    private: bool
    limits: Limits
    sealed: list[SealedSet]
    send: Send
    findings: Findings = field(default_factory=Findings)
    golden: list[Golden] = field(default_factory=list)
    pipeline: Pipeline | None = None
    inputs: dict[str, Array] | None = None
    from_samples: bool = False
    base: Bundle | None = None

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def model_path(self) -> Path:
        """The graph that runs."""
        return (self.base or self.bundle).model_path

    def load(self, trusted: bool) -> Graph:
        """The graph, with the adapter in every run where there is one; raises as `load_graph`, `check_adapter`."""
        graph = load_graph(self.model_path, trusted=trusted)
        if self.base is not None:
            check_adapter(self.bundle, self.base)
            graph.bind(parameters_for(graph, self.bundle.adapter_path))
        return graph

    def run(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One run within the deadline and the output bound; raises as `Graph.run`."""
        return graph.run(inputs, deadline_ms=self.limits.run_ms, max_output_bytes=self.limits.output_bytes)

    def say_refusal(self, refusal: Refusal, code: str, where: str) -> None:
        """A refusal of runtime or reader as an error; what ran out (time, memory) has a code of its own."""
        lowered = refusal.en.lower()
        if refusal.code == "DEADLINE_EXCEEDED":
            self._say_timed_out(where)
        elif refusal.code == "MODEL_OUT_OF_MEMORY" or "bad_alloc" in lowered or "failed to allocate" in lowered:
            say_out_of_memory(self.findings, where)
        elif refusal.code == "OUTPUT_TOO_LARGE":
            self.findings.error(
                refusal.code, refusal.zh, refusal.en, "请让输出更小", "make the outputs smaller", refusal.field or where
            )
        else:
            self.findings.error(code, refusal.zh, refusal.en, refusal.remedy_zh, refusal.remedy_en, where)

    def _say_timed_out(self, where: str) -> None:
        seconds = f"{self.limits.run_ms / 1000:g}"
        self.findings.error(
            "GRAPH_TIMED_OUT",
            f"计算图运行超过 {seconds} 秒仍未结束, 已终止",
            f"the graph had not finished after {seconds} s and was ended",
            "请检查 Loop 的结束条件与输入规模",
            "check the condition of its loops and the size of its inputs",
            where,
        )


def say_out_of_memory(findings: Findings, where: str = "model.onnx") -> None:
    findings.error(
        "GRAPH_OUT_OF_MEMORY",
        "计算图申请的内存超过上限",
        "the graph asks for more memory than it is allowed",
        "请检查 ConstantOfShape、Expand、Tile 等算子的规模, 或缩小模型",
        "check how much ConstantOfShape, Expand and Tile allocate, or make the model smaller",
        where,
    )
