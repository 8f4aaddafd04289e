"""`python -m tests.bench.bench_minilm_sites BUNDLE`: what adapter sites cost MiniLM's own calls, in turns.

BUNDLE: the zip that `python -m adapters.recipes.shelf.minilm --out DIR` makes. Also: how long an adapter of rank 8
takes to load beside the graph.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from adapters.lora.weights import packaged_weights
from adapters.recipes.shelf import minilm
from model_store.adapter_file import write_adapter
from model_store.adapter_injection import HEAD
from model_store.bundle import unpack
from model_store.runtime import Graph, load_graph
from serving.adapters_on_base import SlotTable, StackedAdapter

SHAPES = ((1, 8), (1, 32), (8, 16), (32, 24))
ROUNDS = 60


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        base = unpack(Path(sys.argv[1]), Path(work) / "base")
        source = packaged_weights()
        assert source is not None, "the pinned package is needed"
        network = minilm.pooled(source)
        minilm.write_graph(network, minilm.encode(base.path, base.manifest, minilm.PHRASES), Path(work) / "plain.onnx")
        graphs = {"plain": load_graph(Path(work) / "plain.onnx"), "sites": load_graph(base.model_path)}
        for rows, length in SHAPES:
            print(f"{rows} x {length} tokens: {compare(graphs, rows, length)}")
        print(f"an adapter of rank 8 loads in {load_ms(graphs['sites'], Path(work)):.2f} ms")


def compare(graphs: dict[str, Graph], rows: int, length: int) -> str:
    feed = {"input_ids": np.full((rows, length), 2000), "attention_mask": np.ones((rows, length), np.int64)}
    took: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(ROUNDS):
        for name in sorted(graphs, reverse=bool(turn % 2)):
            started = time.perf_counter()
            graphs[name].run(feed)
            took[name].append((time.perf_counter() - started) * 1000)
    ratio = statistics.median(b / a for a, b in zip(took["plain"], took["sites"], strict=True))
    return f"plain {statistics.median(took['plain']):.2f} ms, with sites {ratio:.3f} of it"


def load_ms(graph: Graph, folder: Path) -> float:
    assert graph.sites is not None
    draw, tensors = np.random.default_rng(0), {}
    for site in graph.sites.low_rank.values():
        rank = 4 if site.name == HEAD else 8
        tensors[site.a] = draw.normal(size=(site.features_in, rank)).astype(np.float32)
        tensors[site.b] = draw.normal(size=(rank, site.features_out)).astype(np.float32)
    path, table = write_adapter(folder / "a.onnx_adapter", tensors), SlotTable(graph)
    took = []
    for turn in range(ROUNDS):
        started = time.perf_counter()
        StackedAdapter(table, path, str(turn))
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


if __name__ == "__main__":
    main()
