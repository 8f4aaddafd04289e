"""One loaded version: what it is run with, what it holds, and how it is loaded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from model_store.bundle import Bundle, open_bundle
from model_store.manifest import Manifest
from model_store.mapped import MappedModel, find_mapped
from model_store.runtime import Graph, load_graph
from model_store.tensors import Array
from serving.adapters_on_base import AdaptedGraph, Member, SlotTable, StackedAdapter, WideAdapter
from serving.cost import CostEstimate, runs_in_bounded_time
from serving.ports import ServedVersion
from serving.settings import ServingSettings
from serving.tokens import count_tokens, token_tensor_of

WORKER_BASE_BYTES = 96 << 20  # a Python process with ONNX Runtime, before any graph
GRAPH_BASE_BYTES = 256 << 10  # a session with nothing in it
HOT_USES = 16  # calls after which a mapped graph is worth prepacking


class Runs(Protocol):
    """What a resident runs with: `model_store.runtime.Graph`, or `LimitedWorker` which has the same `run`."""

    def run(
        self,
        inputs: dict[str, Array],
        outputs: list[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]: ...


class Resident:
    """One loaded version. `references` counts calls in hand, and adapters that run on it; `graph` is None for what runs
    in a worker process.

    An adapter holds its `base`. Where the base's graph takes an index (it has `slots`), the base is what an adapter's
    calls `runs_on`: they may share a run, and what is known of batches and cost is the base's.

    `mapped`: its weights are a file's, not prepacked yet; that is done once `uses` reaches `hot_at` (0: never).
    """

    __slots__ = (
        "_indexed_base", "base", "batch_inputs", "batchable", "bytes", "cost", "counts_images", "digest", "graph",
        "hot_at", "last_used", "load_ms", "manifest", "mapped", "max_rows", "name", "owner", "pinned", "references",
        "runner", "slots", "token_tensor", "trusted", "uses",
    )  # fmt: skip

    def __init__(
        self, served: ServedVersion, manifest: Manifest, runner: Any, inline_allowed: bool, base: Resident | None = None
    ) -> None:
        self.name, self.owner, self.digest, self.trusted = served.name, served.owner, served.digest, served.trusted
        self.manifest = manifest
        self.runner = runner
        self.graph: Graph | AdaptedGraph | StackedAdapter | WideAdapter | None = (
            runner if isinstance(runner, Graph | AdaptedGraph | StackedAdapter | WideAdapter) else None
        )
        indexed = isinstance(runner, Graph) and runner.sites is not None and runner.sites.indexed
        self.slots = SlotTable(runner) if indexed else None
        self.base = base
        self._indexed_base = indexed_base = base if isinstance(runner, StackedAdapter) else None
        self.batch_inputs = [spec.name for spec in manifest.inputs if spec.shape and spec.shape[0] == -1]
        self.batchable = self.graph is not None and manifest.batching.dynamic and _all_batched(self.graph)
        self.max_rows = max(1, manifest.batching.max_rows)
        self.counts_images = manifest.modality == "image"  # a row is an image, also where it comes as a tensor
        self.token_tensor = token_tensor_of(manifest)
        self.cost: CostEstimate = (
            CostEstimate(manifest.cost, inline_allowed) if indexed_base is None else indexed_base.cost
        )
        self.bytes = 0
        self.mapped: MappedModel | None = None
        self.hot_at = 0
        self.load_ms = 0.0
        self.pinned = served.pinned
        self.references = 0
        self.uses = 0
        self.last_used = 0

    @property
    def runs_on(self) -> Resident:
        """Not an attribute: what holds itself is left to the garbage collector when it is unloaded."""
        return self._indexed_base or self

    def rows_of(self, inputs: dict[str, Array]) -> int:
        """Rows of a call: the largest first dimension among inputs whose first dimension is free; else 1."""
        rows = 0
        for name in self.batch_inputs:
            array = inputs.get(name)
            if array is not None and array.ndim and array.shape[0] > rows:
                rows = array.shape[0]
        return rows or 1

    def units_of(self, inputs: dict[str, Array], rows: int) -> dict[str, int]:
        """What a price may count beside calls, rows and milliseconds: images, and tokens in."""
        units: dict[str, int] = {}
        if self.counts_images:
            units["images"] = rows
        if self.token_tensor is not None and self.token_tensor in inputs:
            units["tokens_in"] = count_tokens(inputs[self.token_tensor])
        return units

    def run_together(
        self,
        residents: list[Resident],
        rows: list[int],
        inputs: dict[str, Array],
        outputs: list[str] | None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """One run of calls that all run on this: `residents` called, each for so many of the joined rows."""
        if self.slots is None:
            run: dict[str, Array] = self.runner.run(inputs, outputs, deadline_ms, max_output_bytes)
            return run
        members: list[Member] = [
            (each.runner if each is not self else None, count) for each, count in zip(residents, rows, strict=True)
        ]
        return self.slots.run(members, inputs, outputs, deadline_ms, max_output_bytes)


def _all_batched(graph: Graph | AdaptedGraph | StackedAdapter | WideAdapter) -> bool:
    specs = [*graph.inputs, *graph.outputs]
    return bool(graph.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in specs)


def load_resident(served: ServedVersion, settings: ServingSettings) -> Resident:
    """Open the bundle and load its graph: in this process if `served.trusted`, else in a limited worker.

    Blocking. Raises what `open_bundle`, `load_graph` and `LimitedWorker` raise.
    """
    started = time.perf_counter()
    bundle = open_bundle(served.bundle)
    mapped = mapped_model(served, settings)
    if served.trusted:
        path = bundle.model_path if mapped is None else mapped.path
        runner: Any = load_graph(path, threads=1, prepack=mapped is None)
        inline = runs_in_bounded_time(path)
    else:
        from model_store.worker import LimitedWorker  # only a node that runs unlisted graphs needs it

        runner = LimitedWorker(bundle.model_path, memory_bytes=settings.worker_memory_bytes)
        inline = False
    resident = Resident(served, bundle.manifest, runner, inline)
    resident.mapped, resident.hot_at = mapped, 0 if mapped is None else HOT_USES
    resident.load_ms = (time.perf_counter() - started) * 1000
    return resident


def load_adapter(served: ServedVersion, base: Resident | None, settings: ServingSettings) -> Resident:
    """Load an adapter beside the graph of its `base`; None: the base runs in limited workers, so this in its own.

    Blocking. Raises what `open_bundle`, `AdaptedGraph`, `StackedAdapter` and `LimitedWorker` raise.
    """
    started = time.perf_counter()
    bundle = open_bundle(served.bundle)
    if base is None:
        from model_store.worker import LimitedWorker

        assert served.base is not None, "an adapter has a base"
        runner: Any = LimitedWorker(
            open_bundle(served.base.bundle).model_path, settings.worker_memory_bytes, bundle.adapter_path
        )
    elif base.slots is not None:
        assert isinstance(base.graph, Graph), "an adapter runs on a graph, not on another adapter"
        runner = StackedAdapter(base.slots, bundle.adapter_path, served.digest)
        if not base.slots.has_room_for(runner):
            runner = WideAdapter(base.graph, runner)
    else:
        assert isinstance(base.graph, Graph), "an adapter runs on a graph, not on another adapter"
        runner = AdaptedGraph(base.graph, bundle.adapter_path)
    resident = Resident(served, bundle.manifest, runner, base is not None and base.cost.inline_allowed, base)
    resident.load_ms = (time.perf_counter() - started) * 1000
    return resident


def mapped_model(served: ServedVersion, settings: ServingSettings) -> MappedModel | None:
    """The form of a trusted version whose weights are mapped, where there is one."""
    if settings.mapped_folder is None or not served.trusted:
        return None
    return find_mapped(settings.mapped_folder, served.digest)


def estimate_bytes(bundle: Bundle, trusted: bool, mapped: MappedModel | None = None) -> int:
    """What it will hold in memory: as measured when it was mapped, or at inspection, else twice its weights' files.

    Of an adapter on a trusted base its own files: the graph, and the stacks that adapters share, are counted as the
    base's.
    """
    if mapped is not None:
        return max(mapped.mapped_bytes, GRAPH_BASE_BYTES)
    files = weights_bytes(bundle.path)
    if bundle.manifest.adapter_of is not None and trusted:
        return files
    cost = bundle.manifest.cost
    measured = cost.private_bytes if cost is not None else 2 * files
    return max(measured, files, GRAPH_BASE_BYTES) + (0 if trusted else WORKER_BASE_BYTES)


def weights_bytes(folder: Path) -> int:
    """The size of a bundle's graph and of the files beside it that hold its weights."""
    return sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".json", ".md", ".npz")
    )
