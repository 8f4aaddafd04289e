"""Many adapters on one base: exact, never mixed up, batched together where the graph takes an index, metered."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import quantize_dynamic

from model_store.adapter_file import check_adapter, read_adapter, seal_adapter, with_adapter_inside, write_adapter
from model_store.adapter_injection import branch_nodes, inject_sites, linear_nodes
from model_store.bundle import ADAPTER, Bundle, open_bundle, pack, seal, unpack
from model_store.errors import Refusal
from model_store.runtime import Graph, load_graph
from serving.adapters_on_base import AdaptedGraph, SlotTable, StackedAdapter
from serving.ports import ServedVersion
from tests.model_store.adapted import (
    FIRST,
    SECOND,
    adapter,
    adapter_bundle,
    answer,
    base_bundle,
    bundle_of,
    plain,
    rows,
    value,
)
from tests.serving.parts import FACTORY, KEY, OTHER, Node, running_node, until
from tests.serving.test_turn import Callers, json_of, request

EXACT = 1e-5
Array = np.ndarray[Any, Any]


def near(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() < EXACT)


def serve(node: Node, count: int, *, indexed: bool, trusted: bool = True) -> tuple[ServedVersion, list[ServedVersion]]:
    """A base and `count` adapters of it: `vendor/a0` …, with ranks 1 to 4 and every third on one site only."""
    base = base_bundle(node.folder / "base", indexed=indexed)
    served = node.bundles.add(base.path, trusted=trusted)
    made = [
        node.bundles.add(adapter_bundle(node.folder / f"a{seed}", base, tensors_of(seed), f"vendor/a{seed}").path)
        for seed in range(count)
    ]
    return served, made


def tensors_of(seed: int) -> dict[str, Array]:
    return adapter(seed, rank=1 + seed % 4, sites=(FIRST,) if seed % 3 == 2 else (FIRST, SECOND))


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True])
def test_an_adapter_answers_as_a_session_with_the_weights_merged(tmp_path: Path, indexed: bool) -> None:
    base = base_bundle(tmp_path / "base", indexed=indexed)
    graph, x = load_graph(base.model_path), rows(9)
    assert near(graph.run({"x": x})["y"], load_graph(_save(tmp_path / "plain.onnx", plain())).run({"x": x})["y"])
    for seed in range(6):
        tensors = tensors_of(seed)
        made = adapter_bundle(tmp_path / f"a{seed}", base, tensors, "vendor/a")
        check_adapter(open_bundle(made.path, verify=True), base)
        runner = _runner(graph, made, indexed)
        merged = load_graph(with_adapter_inside(base, tensors, tmp_path / f"merged{seed}.onnx"))
        assert near(runner.run({"x": x})["y"], merged.run({"x": x})["y"])
        assert near(runner.run({"x": x}, deadline_ms=10_000)["y"], answer(x, tensors))


def _save(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, str(path))
    return path


def _runner(graph: Graph, made: Bundle, indexed: bool) -> AdaptedGraph | StackedAdapter:
    if indexed:
        return StackedAdapter(SlotTable(graph), made.adapter_path, made.digest)
    return AdaptedGraph(graph, made.adapter_path)


def test_a_base_with_sites_takes_its_own_inputs_only_and_bundles_survive_packing(tmp_path: Path) -> None:
    base = base_bundle(tmp_path / "base", indexed=True)
    assert [spec.name for spec in base.manifest.inputs] == ["x"]
    made = adapter_bundle(tmp_path / "a", base, tensors_of(0), "vendor/a")
    again = unpack(pack(made, tmp_path / "a.zip"), tmp_path / "again")
    assert again.digest == made.digest
    assert again.manifest.adapter_of is not None
    assert again.manifest.adapter_of.ranks == {FIRST: 1, SECOND: 1}
    assert read_adapter(again.adapter_path).keys() == tensors_of(0).keys()
    assert "adapter_of" not in json.loads((base.path / "manifest.json").read_text()), "other bundles keep their digest"


def test_sites_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    for wrong, code in (
        (lambda: inject_sites(plain(), ["fc9"]), "ADAPTER_TARGET_UNKNOWN"),
        (lambda: inject_sites(plain(), []), "ADAPTER_SITES_INVALID"),
        (lambda: inject_sites(inject_sites(plain(), [FIRST]), [SECOND]), "ADAPTER_SITES_INVALID"),
        (lambda: inject_sites(plain(), [FIRST], heads=[SECOND], indexed=True), "ADAPTER_SITES_INVALID"),
        (lambda: inject_sites(_folded(), [FIRST], indexed=True), "ADAPTER_TARGET_NOT_BATCHED"),
    ):
        with pytest.raises(Refusal) as caught:
            wrong()
        assert caught.value.code == code
    lying = inject_sites(plain(), [FIRST])
    lying.metadata_props[0].value = json.dumps({"low_rank": [SECOND], "whole": [], "indexed": False})
    with pytest.raises(Refusal, match="ADAPTER_SITES_INVALID"):
        load_graph(_save(tmp_path / "lying.onnx", lying))
    folder = tmp_path / "a"
    base = bundle_of(tmp_path / "base", plain(), "vendor/plain")
    with pytest.raises(Refusal, match="BASE_TAKES_NO_ADAPTERS"):
        seal_adapter(folder, base.manifest, base, tensors_of(0))
    assert linear_nodes(plain()) == [FIRST, SECOND]


def _folded() -> onnx.ModelProto:
    """The rows of the linear node are not the batch's: `x[n, 2, 3]` is folded into `[1, 6n]` first … and back."""
    model = plain()
    del model.graph.input[:]
    model.graph.input.append(value("whole", onnx.TensorProto.FLOAT, ["n", "k"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 6], np.int64), "shape"))
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["whole", "shape"], ["x"]))
    return model


def test_an_int8_base_takes_float_adapters_where_the_branches_are_left_out_of_quantisation(tmp_path: Path) -> None:
    injected = inject_sites(plain(), [FIRST, SECOND])
    for name, graph, left_out in (("plain", plain(), []), ("base", injected, branch_nodes(injected))):
        _save(tmp_path / f"{name}32.onnx", graph)
        quantize_dynamic(tmp_path / f"{name}32.onnx", tmp_path / f"{name}8.onnx", nodes_to_exclude=left_out)
    base, x = load_graph(tmp_path / "base8.onnx"), rows(20)
    assert np.array_equal(base.run({"x": x})["y"], load_graph(tmp_path / "plain8.onnx").run({"x": x})["y"])
    tensors = {name: each / 2 for name, each in adapter(1).items()}
    found = AdaptedGraph(base, write_adapter(tmp_path / f"a{ADAPTER}", tensors)).run({"x": x})["y"]
    rounding = np.abs(base.run({"x": x})["y"] - answer(x)).max()  # of int8 itself
    assert np.abs(found - answer(x, tensors)).max() < 4 * rounding < np.abs(answer(x, tensors) - answer(x)).max()


@pytest.mark.parametrize("damage", ["cut", "not one", "another base"])
def test_a_damaged_adapter_is_refused_at_upload(tmp_path: Path, damage: str) -> None:
    base, other = base_bundle(tmp_path / "base", indexed=True), base_bundle(tmp_path / "other", indexed=True, seed=9)
    made = adapter_bundle(tmp_path / "a", other if damage == "another base" else base, tensors_of(0), "vendor/a")
    if damage != "another base":
        content = made.adapter_path.read_bytes()
        made.adapter_path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"PK\x03\x04" * 50)
        with pytest.raises(Refusal, match="BUNDLE_FILE_CHANGED"):
            open_bundle(made.path, verify=True)
    with pytest.raises(Refusal) as caught:
        check_adapter(seal(made.path, made.manifest), base)
    assert caught.value.code == ("ADAPTER_BASE_CHANGED" if damage == "another base" else "ADAPTER_FILE_INVALID")


# --- rows of many adapters in one run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed_graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(base_bundle(tmp_path_factory.mktemp("indexed") / "base", indexed=True).model_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [write_adapter(folder / f"{seed}{ADAPTER}", tensors_of(seed)) for seed in range(12)]


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(2, 6),
    batches=st.lists(
        st.lists(st.tuples(st.integers(-1, 11), st.integers(1, 3)), min_size=1, max_size=9), min_size=1, max_size=6
    ),
)
def test_a_mixed_run_answers_as_one_by_one(
    indexed_graph: Graph, files: list[Path], slots: int, batches: list[list[tuple[int, int]]]
) -> None:
    """With more adapters than slots, slots overwritten between runs, ranks that grow, and rows of the base."""
    table = SlotTable(indexed_graph, slots)
    loaded = [StackedAdapter(table, path, path.name) for path in files]
    for turn, batch in enumerate(batches):
        x = rows(sum(count for _, count in batch), seed=turn)
        members = [(loaded[seed] if seed >= 0 else None, count) for seed, count in batch]
        y = table.run(members, {"x": x})["y"] if len(members) > 1 else _alone(table, members[0], x)
        at = 0
        for seed, count in batch:
            own = x[at : at + count]
            assert near(y[at : at + count], answer(own, tensors_of(seed) if seed >= 0 else None))
            at += count


def _alone(table: SlotTable, member: tuple[StackedAdapter | None, int], x: Array) -> Array:
    return table.graph.run({"x": x})["y"] if member[0] is None else member[0].run({"x": x})["y"]


def test_threads_that_fight_for_slots_never_read_anothers(indexed_graph: Graph, files: list[Path]) -> None:
    """Eight threads, three slots, twelve adapters: slots are overwritten all the time, never one that is being read."""
    table = SlotTable(indexed_graph, slots=4)
    loaded = [StackedAdapter(table, path, path.name) for path in files]
    start = threading.Barrier(8)

    def work(seed: int) -> int:
        draw = np.random.default_rng(seed)
        start.wait()
        for _ in range(150):
            chosen = draw.integers(0, len(loaded), size=draw.integers(1, 5))
            x = rows(len(chosen), seed=int(draw.integers(1 << 30)))
            y = table.run([(loaded[each], 1) for each in chosen], {"x": x})["y"]
            for row, each in enumerate(chosen):
                assert near(y[row : row + 1], answer(x[row : row + 1], tensors_of(int(each))))
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(8))


# --- the node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline_ms", [0.0, 1e-9], ids=["inline", "queued"])
@pytest.mark.parametrize("indexed", [False, True], ids=["one a run", "indexed"])
async def test_calls_of_many_adapters_at_once_each_get_their_own(
    tmp_path: Path, indexed: bool, inline_ms: float
) -> None:
    async with running_node(tmp_path, inline_ms=inline_ms) as node:
        base, made = serve(node, 8, indexed=indexed)
        kinds = [*made, base]

        async def call(turn: int) -> None:
            served, x = kinds[turn % len(kinds)], rows(1 + turn % 3, seed=turn)
            principal = (FACTORY, OTHER)[turn % 2]
            found = await node.dataplane.infer(principal, served, {"x": x})
            seed = made.index(served) if served in made else None
            assert near(found.outputs["y"], answer(x, None if seed is None else tensors_of(seed)))

        for start in range(0, 400, 100):
            await asyncio.gather(*(call(turn) for turn in range(start, start + 100)))
        names = {(record.model, record.adapter) for record in node.usage()}
        assert names == {(f"vendor/a{seed}@1", f"vendor/a{seed}@1") for seed in range(8)} | {("vendor/base@1", "")}
        assert sum(resident.slots is not None for resident in node.dataplane.residency.residents()) == int(indexed)


@pytest.mark.parametrize("indexed", [False, True])
async def test_rows_of_different_adapters_share_a_run_only_where_the_graph_takes_an_index(
    tmp_path: Path, indexed: bool
) -> None:
    async with running_node(tmp_path, inline_ms=1e-9, threads=1) as node:
        base, made = serve(node, 6, indexed=indexed)
        for served in [base, *made]:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        before = node.dataplane.queue.runs
        await asyncio.gather(*(node.dataplane.infer(FACTORY, each, {"x": rows(1)}) for each in [base, *made]))
        runs = node.dataplane.queue.runs - before
        assert runs < 7 if indexed else runs == 7


async def test_a_caller_cannot_choose_anothers_adapter(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        base, made = serve(node, 2, indexed=True)
        for served in (base, made[0]):
            for name, tensor in (
                ("adapter_idx", np.array([-1], np.int64)),
                (f"{FIRST}.lora_A", np.ones((1, 6, 1), np.float32)),
            ):
                with pytest.raises(Refusal) as caught:
                    await node.dataplane.infer(FACTORY, served, {"x": rows(1), name: tensor})
                assert caught.value.code == "TENSOR_UNKNOWN"


async def test_a_base_stays_while_adapters_need_it_and_goes_with_them(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        base, made = serve(node, 3, indexed=True)
        residency = node.dataplane.residency
        for served in made:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert {each.name for each in residency.residents()} == {"vendor/base", "vendor/a0", "vendor/a1", "vendor/a2"}
        assert residency.evict(made[0])
        assert {each.name for each in residency.residents()} == {"vendor/base", "vendor/a1", "vendor/a2"}
        held = await residency.acquire(made[1])
        assert not residency.evict(base), "an adapter of it is in use"
        residency.release(held)
        assert residency.evict(base)
        assert residency.residents() == []
        assert residency.held_bytes == 0
        found = await node.dataplane.infer(FACTORY, made[2], {"x": rows(2)})
        assert near(found.outputs["y"], answer(rows(2), tensors_of(2)))


@pytest.mark.parametrize("indexed", [False, True])
async def test_an_adapter_of_an_unreviewed_base_runs_in_a_limited_worker(tmp_path: Path, indexed: bool) -> None:
    async with running_node(tmp_path) as node:
        _, made = serve(node, 1, indexed=indexed, trusted=False)
        found = await node.dataplane.infer(FACTORY, made[0], {"x": rows(3)})
        assert near(found.outputs["y"], answer(rows(3), tensors_of(0)))
        assert all(resident.graph is None for resident in node.dataplane.residency.residents())


async def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        base = base_bundle(tmp_path / "base", indexed=True)
        made = adapter_bundle(tmp_path / "a", base, tensors_of(0), "vendor/a")
        with pytest.raises(Refusal, match="ADAPTER_BASE_MISSING"):
            node.bundles.add(made.path)


async def test_adapters_are_priced_and_read_like_any_model(tmp_path: Path) -> None:
    from serving.metering import PriceLine

    async with running_node(tmp_path) as node:
        serve(node, 2, indexed=True)
        node.admission.prices["vendor/a1"] = PriceLine("prc_a1", "vendor/a1", "calls", 700, 1, 2)
        transport = httpx.ASGITransport(app=node.app)  # type: ignore[arg-type]
        head = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://node", headers=head) as client:
            about = (await client.get("/v2/models/vendor--a1")).json()
            assert [each["name"] for each in about["inputs"]] == ["x"]
            body = {"inputs": [{"name": "x", "shape": [2, 6], "datatype": "FP32", "data": rows(2).ravel().tolist()}]}
            got = await client.post("/v2/models/vendor--a1/infer", json=body)
            assert got.status_code == 200, got.text
            y = np.array(got.json()["outputs"][0]["data"], np.float32).reshape(2, 3)
            assert near(y, answer(rows(2), tensors_of(1)).astype(np.float32))
            assert got.headers["x-amount-micro"] == "700"
        await until(node.usage)
        (record,) = node.usage()
        assert (record.adapter, record.amount_micro) == ("vendor/a1@1", 700)


def infer_of(name: str, x: Array) -> bytes:
    return request(name, json_of("x", "FP32", x))


@pytest.mark.parametrize("path", ["in one turn", "queued"])
async def test_a_run_of_many_adapters_is_counted_for_each_by_its_own_rows(tmp_path: Path, path: str) -> None:
    async with running_node(tmp_path, inline_ms=1e-9 if path == "queued" else 0.0, threads=1) as node:
        base, made = serve(node, 3, indexed=True)
        callers = Callers(node, 8)
        names = ["vendor--a0", "vendor--a1", "vendor--a1", "vendor--base", "vendor--a2"]
        for name in [*names, *names]:
            await callers.ask(infer_of(name, rows(1)))
        (resident,) = (each for each in node.dataplane.residency.residents() if each.base is None)
        resident.cost.classes.update(dict.fromkeys(range(20), 0.01))
        kinds = [*made, base]
        before = {each.name: node.dataplane.statistics.of(each.name, 1).as_triton() for each in kinds}
        asked = [rows(1 + turn % 2, seed=turn) for turn in range(len(names))]
        answers = await callers.ask(*(infer_of(name, x) for name, x in zip(names, asked, strict=True)))
        for name, x, (status, _, body) in zip(names, asked, answers, strict=True):
            said = json.loads(body)
            assert (status, said["model_name"]) == (200, name)
            y = np.array(said["outputs"][0]["data"], np.float32).reshape(len(x), 3)
            assert near(y, answer(x, None if name == "vendor--base" else tensors_of(int(name[-1]))).astype(np.float32))
        for served in kinds:
            now, then = node.dataplane.statistics.of(served.name, 1).as_triton(), before[served.name]
            own = [len(x) for name, x in zip(names, asked, strict=True) if name == served.name.replace("/", "--")]
            assert now["inference_count"] - then["inference_count"] == sum(own)
            assert now["inference_stats"]["success"]["count"] - then["inference_stats"]["success"]["count"] == len(own)
            assert now["execution_count"] > then["execution_count"]


async def test_an_adapter_too_wide_for_the_shared_stacks_runs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large adapter must not make every slot of the node as large."""
    async with running_node(tmp_path) as node:
        base = base_bundle(tmp_path / "base", indexed=True)
        node.bundles.add(base.path)
        ranks = (2, 64, 3)
        tensors = {rank: {name: each / 8 for name, each in adapter(rank, rank).items()} for rank in ranks}
        made = [
            node.bundles.add(adapter_bundle(tmp_path / f"a{rank}", base, tensors[rank], f"vendor/a{rank}").path)
            for rank in ranks
        ]
        table = SlotTable(load_graph(base.model_path))
        bound = table.bytes_with(dict.fromkeys((FIRST, SECOND), 4))
        monkeypatch.setattr("serving.adapters_on_base.MAX_STACK_BYTES", bound)
        for _ in range(2):
            found = await asyncio.gather(*(node.dataplane.infer(FACTORY, each, {"x": rows(3)}) for each in made))
            for rank, each in zip(ranks, found, strict=True):
                assert near(each.outputs["y"], answer(rows(3), tensors[rank]))
        (resident,) = (each for each in node.dataplane.residency.residents() if each.base is None)
        assert resident.slots is not None
        assert 0 < resident.slots.bytes <= bound
