"""Image recipes on scikit-learn's real handwritten digits, over a small convolutional base with fixed filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from sklearn.datasets import load_digits

from adapters import graphs, measure
from adapters.derive import write_golden
from model_store.bundle import Bundle, seal
from model_store.errors import Refusal
from model_store.manifest import Feature, Manifest, TensorSpec
from model_store.step_specs import DecodeImage, Vector
from tests.adapters.workbench import adapt, value_of, write_images


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """[N, 1, 16, 16] → 32 filters of 5×5 → ReLU → mean over 4×4 cells: an embedding of 512 numbers."""
    folder = tmp_path_factory.mktemp("base")
    filters = np.random.default_rng(0).normal(0, 0.2, (32, 1, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "filters"], ["maps"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("AveragePool", ["lit"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["cells"], ["embedding"]),
    ]
    inputs, outputs = [graphs.floats_in("image", 1, 16, 16)], [graphs.floats_in("embedding", 512)]
    graphs.save(graphs.graph_model("base", nodes, [graphs.constant("filters", filters)], inputs, outputs), folder)
    manifest = Manifest(
        name="base/small-conv", tier="base", family="parts", task="embedding", modality="image", adaptable="head",
        features=[Feature(name="image", kind="image")], post=[Vector(tensor="embedding")],
        pre=[DecodeImage(feature="image", tensor="image", mode="L", width=16, height=16)],
        inputs=[TensorSpec(name="image", dtype="FP32", shape=[-1, 1, 16, 16])],
        outputs=[TensorSpec(name="embedding", dtype="FP32", shape=[-1, 512])],
    )  # fmt: skip
    write_golden(folder, {"image": np.random.default_rng(1).random((2, 1, 16, 16), dtype=np.float32)})
    return seal(folder, manifest)


def digits(names: dict[int, str], of_each: int) -> tuple[list[np.ndarray], list[str]]:
    data = load_digits()
    images, labels = [], []
    for digit, name in names.items():
        for place in np.flatnonzero(data.target == digit)[:of_each]:
            images.append(np.kron(data.images[place] * 15, np.ones((2, 2))))
            labels.append(name)
    return images, labels


def test_a_new_head_on_a_frozen_base_classifies_and_keeps_the_bases_weights(base: Bundle, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", *digits({0: "zero", 3: "three", 8: "eight"}, 40))
    outcome, bundle, _ = adapt("image_head", data, tmp_path / "bundle", parent=base)
    assert value_of(outcome.child, "accuracy") > 0.9
    assert outcome.facts["parity"] < 1e-3
    assert bundle.manifest.parent is not None
    assert bundle.manifest.parent.relation == "finetune"
    assert filters_of(bundle) == filters_of(base)
    assert bundle.manifest.family == ""  # it predicts what the base's family does not
    assert outcome.notes[0].code == "PARENT_BY_CENTROID"


def filters_of(bundle: Bundle) -> bytes:
    import onnx

    return next(t.raw_data for t in onnx.load(bundle.model_path).graph.initializer if t.name == "filters")


@pytest.mark.parametrize("method", ["mahalanobis", "memory_bank"])
def test_anomalies_are_found_from_good_images_alone(base: Bundle, tmp_path: Path, method: str) -> None:
    data = write_images(tmp_path / "data", *digits({0: "good", 1: "scratch", 7: "dent"}, 60))
    params = {"method": method, "overkill": 0.1}
    outcome, bundle, _ = adapt("image_anomaly", data, tmp_path / "bundle", parent=base, params=params)
    assert outcome.child[0].name == "anomaly_auc"
    assert outcome.child[0].value > 0.95
    assert bundle.manifest.post[-1].threshold == outcome.facts["threshold"]


def test_which_folder_is_good_must_be_said_where_no_name_says_it(base: Bundle, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", *digits({0: "A", 1: "B"}, 40))
    with pytest.raises(Refusal) as refused:
        adapt("image_anomaly", data, tmp_path / "one", parent=base)
    assert refused.value.code == "NORMAL_LABEL_NEEDED"
    outcome, _, _ = adapt("image_anomaly", data, tmp_path / "two", parent=base, params={"normal": "A"})
    assert outcome.child[0].value > 0.95


def test_the_threshold_of_an_anomaly_model_can_be_moved_afterwards(base: Bundle, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", *digits({0: "good", 1: "scratch"}, 80))
    _, parent, _ = adapt("image_anomaly", data, tmp_path / "parent", parent=base)
    outcome, child, _ = adapt("tabular_calibrate", data, tmp_path / "child", parent=parent, params={"overkill": 0.3})
    assert child.manifest.post[-1].threshold < parent.manifest.post[-1].threshold
    assert value_of(outcome.child, "miss_rate") <= value_of(outcome.parent, "miss_rate")


def test_a_convolution_is_quantised_with_the_samples_as_calibration(base: Bundle, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", *digits({0: "zero", 3: "three"}, 40))
    _, parent, _ = adapt("image_head", data, tmp_path / "parent", parent=base)
    outcome, child, _ = adapt("quantise", data, tmp_path / "child", parent=parent)
    assert outcome.facts["kind"] == "static"
    assert child.manifest.variation == "int8"
    assert abs(value_of(outcome.child, "accuracy") - value_of(outcome.parent, "accuracy")) <= 0.02


def test_answers_come_from_the_bundles_own_image_decoding(base: Bundle, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", *digits({0: "zero", 3: "three"}, 40))
    _, bundle, _ = adapt("image_head", data, tmp_path / "bundle", parent=base)
    picture = next((data / "images" / "zero").iterdir()).read_bytes()
    (answer,) = measure.answers(bundle, [{"image": picture}])
    assert answer["label"] == "zero"
