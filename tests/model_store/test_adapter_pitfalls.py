"""The nine pitfalls of adapters in ONNX Runtime (../shared/design/adaptation.md): each is real, and each is avoided."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from model_store.adapter_file import check_adapter, write_adapter
from model_store.adapter_injection import inject_sites
from model_store.adapter_targets import sites_of_modules
from model_store.bundle import seal
from model_store.errors import Refusal, Unprocessable
from model_store.manifest import AdapterOf, Manifest
from model_store.runtime import ActiveAdapter, load_graph
from serving.adapters_on_base import SlotTable, StackedAdapter, bind
from tests.model_store.adapted import FIRST, SECOND, adapter, answer, base_bundle, plain, rows


def session_of(tmp_path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime itself, as anybody would use it."""
    bundle = base_bundle(tmp_path / "base", indexed=False)
    return onnxruntime.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])


def near(one: Any, other: Any, within: float = 1e-5) -> bool:
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() < within)


def test_1_a_collected_adapter_would_answer_with_the_base_so_options_and_adapter_are_held_together(
    tmp_path: Path,
) -> None:
    tensors, x = adapter(1), rows(4)
    path = write_adapter(tmp_path / "a.onnx_adapter", tensors)
    graph = load_graph(base_bundle(tmp_path / "base", indexed=False).model_path)
    held = [ActiveAdapter(path) for _ in range(8)]
    gc.collect()
    for each in held:
        assert near(graph.run({"x": x}, adapter=each)["y"], answer(x, tensors))
        assert near(graph.run({"x": x}, deadline_ms=10_000, adapter=each)["y"], answer(x, tensors))


def test_2_bindings_ignore_active_adapters_so_runs_go_by_run(tmp_path: Path) -> None:
    session, tensors, x = session_of(tmp_path), adapter(1), rows(4)
    options, lora = onnxruntime.RunOptions(), onnxruntime.LoraAdapter()
    lora.Load(str(write_adapter(tmp_path / "a.onnx_adapter", tensors)))
    options.add_active_adapter(lora)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding, options)
    assert near(binding.copy_outputs_to_cpu()[0], answer(x)), "the pitfall is gone: bindings heed adapters now"
    graph = load_graph(tmp_path / "base" / "model.onnx")
    found = graph.run({"x": x}, adapter=ActiveAdapter(tmp_path / "a.onnx_adapter"))["y"]
    assert near(found, answer(x, tensors))


def test_3_no_caller_feeds_a_site_and_a_run_has_one_adapter(tmp_path: Path) -> None:
    """Of two active adapters the first wins, and an adapter beats a feed of its name: neither can come about."""
    for indexed in (False, True):
        graph = load_graph(base_bundle(tmp_path / f"base-{indexed}", indexed=indexed).model_path)
        assert graph.sites is not None
        for name in graph.sites.parameters:
            with pytest.raises(Refusal) as caught:
                graph.run({"x": rows(2), name: np.zeros((2, 2), np.float32)})
            assert caught.value.code == "TENSOR_UNKNOWN"
            assert name not in {spec.name for spec in graph.inputs}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda t: {**t, "fc9.lora_A": t[f"{FIRST}.lora_A"]}, "ADAPTER_SITE_UNKNOWN"),
        (lambda t: {**t, "w1": t[f"{FIRST}.lora_A"]}, "ADAPTER_SITE_UNKNOWN"),
        (lambda t: {name: value.astype(np.float16) for name, value in t.items()}, "ADAPTER_TENSOR_DTYPE"),
        (lambda t: {**t, f"{FIRST}.lora_A": t[f"{FIRST}.lora_A"].T.copy()}, "ADAPTER_TENSOR_SHAPE"),
        (lambda t: {**t, f"{FIRST}.lora_A": t[f"{FIRST}.lora_A"][:, :2].copy()}, "ADAPTER_TENSOR_SHAPE"),
        (lambda t: {**t, f"{SECOND}.lora_B": t[f"{SECOND}.lora_B"][:, :1].copy()}, "ADAPTER_TENSOR_SHAPE"),
        (lambda t: {name: value[..., None] for name, value in t.items()}, "ADAPTER_TENSOR_SHAPE"),
        (lambda t: {n: v for n, v in t.items() if n != f"{SECOND}.lora_B"}, "ADAPTER_INCOMPLETE"),
        (lambda t: {}, "ADAPTER_EMPTY"),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_4_what_a_run_would_refuse_is_refused_at_upload(tmp_path: Path, spoil: Any, code: str, indexed: bool) -> None:
    base = base_bundle(tmp_path / "base", indexed=indexed)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder / "adapter.onnx_adapter", spoil(adapter(1)))
    of = AdapterOf(name="vendor/base", version=1, digest=base.digest, ranks={FIRST: 4, SECOND: 4})
    spoilt = seal(
        folder, Manifest(name="vendor/a", inputs=base.manifest.inputs, outputs=base.manifest.outputs, adapter_of=of)
    )
    with pytest.raises(Unprocessable) as caught:
        check_adapter(spoilt, base)
    assert caught.value.code == code
    assert caught.value.zh
    assert caught.value.remedy_zh
    assert caught.value.remedy_en


def test_5_options_cannot_drop_an_adapter_so_each_adapter_has_its_own(tmp_path: Path) -> None:
    graph = load_graph(base_bundle(tmp_path / "base", indexed=False).model_path)
    x, tensors = rows(4), {seed: adapter(seed) for seed in range(3)}
    loaded = {
        seed: ActiveAdapter(write_adapter(tmp_path / f"{seed}.onnx_adapter", each)) for seed, each in tensors.items()
    }
    for seed in (0, 1, 2, 1, 0):
        assert near(graph.run({"x": x}, adapter=loaded[seed])["y"], answer(x, tensors[seed]))
        assert near(graph.run({"x": x}, deadline_ms=10_000, adapter=loaded[seed])["y"], answer(x, tensors[seed]))
        assert near(graph.run({"x": x})["y"], answer(x)), "an adapter stayed in options that others use"


@pytest.mark.parametrize("fresh", ["gemm without bias", "matmul without add"])
def test_6_a_bias_that_was_dropped_because_it_was_zero_is_put_back(tmp_path: Path, fresh: str) -> None:
    model = plain()
    head = next(node for node in model.graph.node if node.name == SECOND)
    del head.input[2]
    if fresh == "matmul without add":
        weight = next(each for each in model.graph.initializer if each.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), "w2"))
        head.op_type = "MatMul"
        del head.attribute[:]
    onnx.save(inject_sites(model, [FIRST], heads=[SECOND]), tmp_path / "model.onnx")
    graph = load_graph(tmp_path / "model.onnx")
    assert graph.sites is not None
    weight_name, bias_name = graph.sites.whole
    draw, x = np.random.default_rng(5), rows(4)
    w = draw.normal(size=(16, 7)).astype(np.float32)  # seven labels where the base has three
    b = draw.normal(size=7).astype(np.float32)
    tensors = {**adapter(1, sites=(FIRST,)), weight_name: w.T.copy() if "gemm" in fresh else w, bias_name: b}
    path = write_adapter(tmp_path / "a.onnx_adapter", tensors)
    hidden = _hidden(tmp_path, x, tensors)
    assert near(graph.run({"x": x}, adapter=ActiveAdapter(path))["y"], hidden @ w + b)


def _hidden(tmp_path: Path, x: Any, tensors: dict[str, Any]) -> Any:
    from tests.model_store.adapted import weights

    w = weights()
    return np.tanh(x @ (w["w1"] + tensors[f"{FIRST}.lora_A"] @ tensors[f"{FIRST}.lora_B"]) + w["b1"])


def test_7_an_index_below_zero_would_be_another_tenants_adapter(tmp_path: Path) -> None:
    base = base_bundle(tmp_path / "base", indexed=True)
    graph, x = load_graph(base.model_path), rows(1)
    others = adapter(2)
    stacks = {name: np.stack([np.zeros_like(value), value]) for name, value in others.items()}
    leaked = graph.run({"x": x}, bound={**stacks, "adapter_idx": np.array([-1])})["y"]
    assert near(leaked, answer(x, others)), "the pitfall is gone: Gather refuses -1 now"
    for wrong in (-1, 2, 99, -3):
        with pytest.raises(IndexError):
            bind(stacks, np.array([wrong]))
    with pytest.raises(IndexError):
        bind(stacks, np.array([0, 1, -1]))
    table = SlotTable(graph, slots=2)
    stacked = StackedAdapter(table, write_adapter(tmp_path / "a.onnx_adapter", adapter(1)), "a")
    assert near(table.run([(stacked, 1), (None, 1)], {"x": rows(2)})["y"][1], answer(rows(2))[1])


@pytest.mark.parametrize("dynamo", [False, True])
def test_8_the_base_is_exported_in_eval_mode_and_targets_are_whole_module_names(tmp_path: Path, dynamo: bool) -> None:
    """The legacy exporter leaves a module in train mode (its dropout would be exported), and peft's target `dense` also
    hits `pooler.dense`: what is chosen here is `layers.0.dense` and `layers.1.dense`, exact against peft."""
    import torch

    from adapters.lora.peft_adapter import lora_parameters
    from tests.model_store.small_encoder import SmallEncoder, export, with_lora

    torch.manual_seed(1)
    base = SmallEncoder().train()
    export(base, tmp_path / "plain.onnx", dynamo=dynamo)
    model = onnx.load(tmp_path / "plain.onnx")
    assert not {"Dropout", "RandomUniformLike"} & {node.op_type for node in model.graph.node}
    sites = sites_of_modules(model)
    modules = ["layers.0.dense", "layers.1.dense"]
    assert {*modules, "pooler.dense", "layers.0.query", "head"} <= set(sites)
    onnx.save(inject_sites(model, [sites[each] for each in modules]), tmp_path / "model.onnx")
    tuned = with_lora(base, modules)
    tensors = lora_parameters(tuned, sites)
    assert {name.rpartition(".")[0] for name in tensors} == {sites[each] for each in modules}
    graph = load_graph(tmp_path / "model.onnx")
    ids = np.random.default_rng(3).integers(0, 50, size=(5, 7))
    with torch.no_grad():
        adapted = tuned(torch.tensor(ids)).numpy()
        with tuned.disable_adapter():
            bare = tuned(torch.tensor(ids)).numpy()
    found = graph.run({"ids": ids}, adapter=ActiveAdapter(write_adapter(tmp_path / "a.onnx_adapter", tensors)))["y"]
    assert near(found, adapted)
    assert near(graph.run({"ids": ids})["y"], bare)
    assert not near(adapted, bare, 1e-2)


def test_9_a_direct_export_folds_lora_away_so_sites_are_put_into_the_plain_base(tmp_path: Path) -> None:
    import torch

    from tests.model_store.small_encoder import SmallEncoder, export, with_lora

    torch.manual_seed(1)
    export(SmallEncoder(), tmp_path / "plain.onnx", dynamo=False)
    export(with_lora(SmallEncoder(), ["layers.0.dense"]), tmp_path / "direct.onnx", dynamo=False)
    direct = onnx.load(tmp_path / "direct.onnx")
    assert not any("lora" in tensor.name for tensor in direct.graph.initializer), "the pitfall is gone"
    plain_base = onnx.load(tmp_path / "plain.onnx")
    site = sites_of_modules(plain_base)["layers.0.dense"]
    injected = inject_sites(plain_base, [site])
    assert {f"{site}.lora_A", f"{site}.lora_B"} <= {tensor.name for tensor in injected.graph.initializer}
