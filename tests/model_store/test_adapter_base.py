"""A vendor's bundle becomes a base of adapters: `with_sites`, and `algomart sites` around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from marketplace.cli import app
from model_store.adapter_base import with_sites
from model_store.adapter_file import check_adapter, seal_adapter, with_adapter_inside
from model_store.adapter_targets import choose_targets, sites_of_modules
from model_store.bundle import Bundle, open_bundle, pack, seal
from model_store.errors import Refusal
from model_store.golden import Golden, read_golden, write_golden
from model_store.inspection.inspector import inspect_bundle
from model_store.manifest import Manifest
from model_store.runtime import load_graph
from tests.model_store.adapted import COLUMNS, FIRST, LABELS, adapter, answer, bundle_of, plain, rows

VECTOR = {"post": [{"op": "vector", "tensor": "y"}]}


def vendors(folder: Path, graph: onnx.ModelProto | None = None, **manifest: Any) -> Bundle:
    """What a vendor has: a plain graph with golden samples."""
    made = bundle_of(folder, graph or plain(), "vendor/base", **manifest)
    write_golden(folder, [Golden("0", {"x": rows(4)}, load_graph(made.model_path).run({"x": rows(4)}))])
    return seal(folder, made.manifest)


def _rows_mixed() -> onnx.ModelProto:
    """`plain` less the mean over the rows: an answer depends on what else is in the batch."""
    model = plain()
    model.graph.node[-1].output[0] = "each"
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["each"], ["mean"], keepdims=1, noop_with_empty_axes=0))
    model.graph.node.append(onnx.helper.make_node("Sub", ["each", "mean"], ["y"]))
    return model


def spaces_of(base: Bundle) -> dict[str, int]:
    sites = load_graph(base.model_path).sites
    assert sites is not None
    return {name: site.max_rank for name, site in sites.low_rank.items()}


def test_a_base_answers_as_before_and_takes_adapters(tmp_path: Path) -> None:
    made = with_sites(vendors(tmp_path / "v"), tmp_path / "base", ["fc1"], max_rank=4)
    base = open_bundle(made.bundle.path, verify=True)
    assert made.difference == 0
    assert made.bytes_per_rank == (COLUMNS + 16) * 4
    assert spaces_of(base) == {FIRST: 4}
    report = inspect_bundle(base.path, private=True)
    assert report.passed
    assert "INITIALIZER_AS_INPUT" not in {each.code for each in report.findings}, "its sites are meant to be inputs"
    tensors = adapter(1, rank=4, sites=(FIRST,))
    sealed = seal_adapter(tmp_path / "a", _manifest(base), base, tensors)
    check_adapter(sealed, base)
    alone = load_graph(with_adapter_inside(base, tensors, tmp_path / "alone.onnx"))
    assert np.abs(alone.run({"x": rows(5)})["y"] - answer(rows(5), tensors)).max() < 1e-5
    with pytest.raises(Refusal) as caught:
        seal_adapter(tmp_path / "b", _manifest(base), base, adapter(1, rank=5, sites=(FIRST,)))
    assert caught.value.code == "ADAPTER_RANK_TOO_LARGE"
    assert caught.value.details == {"rank": 5, "max_rank": 4}


def _manifest(base: Bundle) -> Manifest:
    return Manifest(name="factory/own", inputs=base.manifest.inputs, outputs=base.manifest.outputs)


def test_the_head_of_an_adapter_is_exact_and_zero_in_the_base(tmp_path: Path) -> None:
    base = with_sites(vendors(tmp_path / "v", **VECTOR), tmp_path / "base", ["all"], max_rank=4, classes=8).bundle
    assert [spec.name for spec in base.manifest.outputs] == ["y", "logits"]
    assert spaces_of(base)["classifier"] == 8, "a head's rank is its number of classes, whatever the others' bound"
    assert inspect_bundle(base.path, private=True).passed
    assert not load_graph(base.model_path).run({"x": rows(3)})["logits"].any()
    (golden,) = read_golden(base.path)
    assert golden.outputs["logits"].shape == (4, 8)
    draw = np.random.default_rng(2)
    weights, bias = draw.normal(size=(LABELS, 5)).astype(np.float32), draw.normal(size=5).astype(np.float32)
    tensors = {
        "classifier.lora_A": np.vstack([weights, bias[None]]),
        "classifier.lora_B": np.eye(5, 8, dtype=np.float32),
    }
    seal_adapter(tmp_path / "a", _manifest(base), base, tensors)
    alone = load_graph(with_adapter_inside(base, tensors, tmp_path / "alone.onnx"))
    found = alone.run({"x": rows(3)})
    assert np.abs(found["logits"][:, :5] - (answer(rows(3)) @ weights + bias)).max() < 1e-5
    assert not found["logits"][:, 5:].any()
    assert np.abs(found["y"] - answer(rows(3))).max() < 1e-5


@pytest.mark.parametrize("dynamo", [False, True])
def test_words_name_the_projections_of_an_encoder_from_either_exporter(tmp_path: Path, dynamo: bool) -> None:
    from tests.model_store.small_encoder import SmallEncoder, export

    folder = tmp_path / "v"
    folder.mkdir()
    export(SmallEncoder(), folder / "model.onnx", dynamo=dynamo)
    graph = load_graph(folder / "model.onnx")
    ids = np.random.default_rng(3).integers(0, 50, size=(4, 7))
    write_golden(folder, [Golden("0", {"ids": ids}, graph.run({"ids": ids}))])
    bundle = seal(folder, Manifest(name="vendor/encoder", inputs=graph.inputs, outputs=graph.outputs))
    made = with_sites(bundle, tmp_path / "base", ["q", "v"])
    modules = sites_of_modules(onnx.load(folder / "model.onnx"))
    wanted = {modules[f"layers.{at}.{name}"] for at in (0, 1) for name in ("query", "value")}
    assert set(made.sites.low_rank) == wanted
    every = with_sites(bundle, tmp_path / "all", ["all"]).sites.low_rank
    assert wanted < set(every)
    assert len(every) >= 9  # two layers of four, and the head; the pooler where its input is the batch's


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda f: vendors(f), "ADAPTER_TARGET_UNKNOWN", ["query"]),
        (lambda f: bundle_of(f, plain(), "vendor/base"), "BASE_NOT_ADAPTABLE", ["fc1"]),
        (lambda f: vendors(f, batching={"dynamic": False}), "BASE_NOT_ADAPTABLE", ["fc1"]),
        (lambda f: vendors(f, graph=_rows_mixed()), "BASE_ANSWERS_CHANGED", ["fc1"]),
        (lambda f: with_sites(vendors(f), f / "once", ["fc1"]).bundle, "BASE_NOT_ADAPTABLE", ["fc1"]),
    ],
)
def test_what_cannot_be_a_base_is_refused_with_the_reason(tmp_path: Path, spoil: Any, code: str, words: Any) -> None:
    with pytest.raises(Refusal) as caught:
        with_sites(spoil(tmp_path / "v"), tmp_path / "base", words)
    assert caught.value.code == code
    assert caught.value.remedy_zh
    assert caught.value.remedy_en
    assert not (tmp_path / "base").exists()
    assert [path for path in tmp_path.iterdir() if path.name != "v"] == [], "nothing half-made is left"


def test_all_leaves_out_what_rows_do_not_run_through() -> None:
    assert choose_targets(plain(), ["all"], {"x": 2}) == [FIRST]


def test_the_command_makes_a_base_of_a_zip_or_a_folder_and_says_what_to_mend(tmp_path: Path) -> None:
    archive = pack(vendors(tmp_path / "v", **VECTOR), tmp_path / "v.zip")
    run = CliRunner().invoke
    done = run(app, ["sites", str(archive), str(tmp_path / "base"), "--targets", "fc1, fc2", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (len(said["sites"]), said["max_rank"], said["classes"], said["difference"]) == (2, 16, 64, 0)
    assert open_bundle(tmp_path / "base", verify=True).digest == said["digest"]
    again = run(app, ["sites", str(tmp_path / "v"), str(tmp_path / "other"), "--targets", "fc1", "--classes", "0"])
    assert again.exit_code == 0
    assert "algomart publish" in again.output
    wrong = run(app, ["sites", str(tmp_path / "v"), str(tmp_path / "third"), "--targets", "query"])
    assert wrong.exit_code == 1
    assert "ADAPTER_TARGET_UNKNOWN" in wrong.output
    assert "fc1, fc2" in wrong.output, "the names there are"
    taken = run(app, ["sites", str(archive), str(tmp_path / "v"), "--targets", "fc1"])
    assert "BUNDLE_EXISTS" in taken.output
