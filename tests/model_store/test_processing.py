"""Processing: what a factory types becomes tensors, and what a graph answers becomes results; nothing else decides."""

import base64
import io
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from model_store.bundle import Bundle
from model_store.errors import BadInput, Refusal, TooLarge, Unprocessable
from model_store.manifest import Feature, Manifest
from model_store.processing.columns import apply_matches, column_missing, match_columns
from model_store.processing.pipeline import Pipeline
from model_store.processing.tables import read_table, write_csv
from model_store.processing.tokens import CHARACTERS_AT_ONCE

SPEED = {"name": "speed", "kind": "number", "title_zh": "转速", "unit": "rpm"}
GRADE = {"name": "grade", "kind": "category", "title_zh": "等级"}


def pipeline_of(features: list[dict[str, Any]], pre: list[dict[str, Any]], **more: Any) -> Pipeline:
    made = {step["tensor"] for step in pre if "tensor" in step} | {t for step in pre for t in step.get("tensors", [])}
    specs = [{"name": name, "dtype": "FP32", "shape": [-1, -1]} for name in sorted(made)]
    folder = more.pop("folder", Path("/nowhere"))
    manifest = Manifest.model_validate(
        {"name": "acme/p", "inputs": specs, "outputs": specs, "features": features, "pre": pre, **more}
    )
    return Pipeline(Bundle(folder, manifest, "0" * 64))


def refusal_of(pipeline: Pipeline, rows: list[dict[str, Any]]) -> Refusal:
    with pytest.raises(Refusal) as error:
        pipeline.encode(rows)
    assert error.value.zh
    assert error.value.remedy_zh
    assert error.value.remedy_en
    return error.value


# --- columns, categories, missing cells -------------------------------------------------------------------------------

TABLE = [
    {"op": "categories", "feature": "grade", "mapping": {"L": 0, "M": 1, "H": 2}},
    {"op": "impute", "values": {"load": 7.5}},
    {"op": "columns", "features": ["grade", "speed", "load"], "tensor": "x"},
]
LOAD = {"name": "load", "kind": "number", "required": False}


def test_named_cells_become_a_row_in_the_manifests_order() -> None:
    encoded = pipeline_of([SPEED, GRADE, LOAD], TABLE).encode(
        [{"speed": 1500, "grade": "M", "load": 2}, {"load": None, "grade": " h ", "speed": "1408.5"}]
    )
    assert encoded["x"].dtype == np.float32
    assert encoded["x"].tolist() == [[1, 1500, 2], [2, 1408.5, 7.5]]


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"grade": "M"}, "FEATURE_MISSING", "speed"),
        ({"grade": "M", "speed": ""}, "FEATURE_MISSING", "speed"),
        ({"grade": "M", "speed": "fast"}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": math.inf}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": math.nan}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": 10**400}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": [1, 2]}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": {"a": 1}}, "FEATURE_NOT_NUMBER", "speed"),
        ({"grade": "M", "speed": 1e300}, "FEATURE_OUT_OF_RANGE", "speed"),
        ({"grade": "XL", "speed": 1}, "CATEGORY_UNKNOWN", "grade"),
        ({"grade": "M", "speed": 1, "sped": 1}, "FEATURE_UNKNOWN", "sped"),
    ],
)
def test_a_wrong_cell_is_named_with_its_row(row: dict[str, Any], code: str, field: str) -> None:
    refusal = refusal_of(pipeline_of([SPEED, GRADE, LOAD], TABLE), [{"grade": "M", "speed": 1, "load": 1}, row])
    assert (refusal.code, refusal.field) == (code, field)
    assert "row 2" in refusal.en
    assert "第 2 行" in refusal.zh


def test_an_unknown_category_may_have_a_number_of_its_own() -> None:
    pre = [
        {"op": "categories", "feature": "grade", "mapping": {"1": 10}, "unknown": -1},
        {"op": "columns", "features": ["grade"], "tensor": "x"},
    ]
    assert pipeline_of([GRADE], pre).encode([{"grade": 1.0}, {"grade": "?"}])["x"].tolist() == [[10], [-1]]


def test_a_missing_cell_that_nothing_imputes_is_refused() -> None:
    pre = [{"op": "columns", "features": ["load"], "tensor": "x"}]
    assert refusal_of(pipeline_of([LOAD], pre), [{"load": 1}, {}]).code == "FEATURE_MISSING"


def test_a_default_fills_a_missing_cell() -> None:
    pre = [{"op": "columns", "features": ["speed"], "tensor": "x"}]
    assert pipeline_of([SPEED | {"default": 3}], pre).encode([{}])["x"].tolist() == [[3]]


def test_a_fraction_is_not_cut_off_for_an_integer_tensor() -> None:
    pre = [{"op": "columns", "features": ["speed"], "tensor": "x", "dtype": "INT64"}]
    pipeline = pipeline_of([SPEED], pre)
    assert pipeline.encode([{"speed": 3.0}])["x"].tolist() == [[3]]
    assert refusal_of(pipeline, [{"speed": 3.5}]).code == "FEATURE_OUT_OF_RANGE"


def test_no_rows_are_refused() -> None:
    assert (
        refusal_of(pipeline_of([SPEED], [{"op": "columns", "features": ["speed"], "tensor": "x"}]), []).code
        == "ROWS_EMPTY"
    )


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40))
def test_numbers_and_their_text_encode_alike(values: list[float]) -> None:
    pipeline = pipeline_of([SPEED], [{"op": "columns", "features": ["speed"], "tensor": "x"}])
    numbers = pipeline.encode([{"speed": value} for value in values])["x"]
    texts = pipeline.encode([{"speed": repr(value)} for value in values])["x"]
    assert numbers.tobytes() == texts.tobytes() == np.array(values, np.float32)[:, None].tobytes()


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20), st.data())
def test_a_row_encodes_the_same_alone_as_among_others(values: list[int], data: st.DataObject) -> None:
    pre = [
        {"op": "columns", "features": ["speed"], "tensor": "x"},
        {"op": "scale", "tensor": "x", "mean": [3], "scale": [7]},
    ]
    pipeline = pipeline_of([SPEED], pre)
    place = data.draw(st.integers(0, len(values) - 1))
    together = pipeline.encode([{"speed": value} for value in values])["x"][place]
    assert together.tolist() == pipeline.encode([{"speed": values[place]}])["x"][0].tolist()


def test_a_step_on_an_undeclared_feature_is_the_vendors_fault() -> None:
    with pytest.raises(Unprocessable) as error:
        pipeline_of([SPEED], [{"op": "columns", "features": ["torque"], "tensor": "x"}])
    assert error.value.code == "FEATURE_UNDECLARED"


def test_steps_that_do_not_fit_each_other_are_the_vendors_fault() -> None:
    pre = [
        {"op": "columns", "features": ["speed"], "tensor": "x"},
        {"op": "scale", "tensor": "x", "mean": [1, 2], "scale": [1, 2, 3]},
    ]
    assert refusal_of(pipeline_of([SPEED], pre), [{"speed": 1}]).code == "PROCESSING_MISFIT"


# --- series and windows -----------------------------------------------------------------------------------------------

WAVE = {"name": "wave", "kind": "series"}


@pytest.mark.parametrize(
    ("pad", "cell", "expected"),
    [
        ("refuse", [1, 2, 3, 4], [2, 3, 4]),
        ("edge", [5, 6], [5, 5, 6]),
        ("zero", "5; 6", [0, 5, 6]),
        ("refuse", "1 2,3", [1, 2, 3]),
    ],
)
def test_a_series_gives_its_last_samples(pad: str, cell: Any, expected: list[float]) -> None:
    pipeline = pipeline_of([WAVE], [{"op": "series", "features": ["wave"], "tensor": "x", "size": 3, "pad": pad}])
    assert pipeline.encode([{"wave": cell}])["x"].tolist() == [[expected]]


def test_a_series_too_short_or_with_a_hole_is_refused() -> None:
    pipeline = pipeline_of([WAVE], [{"op": "series", "features": ["wave"], "tensor": "x", "size": 3}])
    assert refusal_of(pipeline, [{"wave": [1, 2]}]).code == "SERIES_TOO_SHORT"
    assert refusal_of(pipeline, [{"wave": [1, None, 2]}]).code == "FEATURE_MISSING"
    assert refusal_of(pipeline, [{"wave": [1, "x", 2]}]).code == "FEATURE_NOT_NUMBER"


def windows(pad: str, rows: list[dict[str, Any]], order: str | None = "cycle") -> list[Any]:
    step = {
        "op": "window",
        "features": ["speed"],
        "tensor": "x",
        "size": 3,
        "group": "unit",
        "order": order,
        "pad": pad,
    }
    return [window[0] for window in pipeline_of([SPEED], [step]).encode(rows)["x"].tolist()]


def test_each_row_ends_a_window_over_its_own_group_in_order() -> None:
    rows = [
        {"unit": "a", "cycle": 2, "speed": 20},
        {"unit": "b", "cycle": 1, "speed": 7},
        {"unit": "a", "cycle": 1, "speed": 10},
        {"unit": "a", "cycle": "3", "speed": 30},
    ]
    assert windows("edge", rows) == [[10, 10, 20], [7, 7, 7], [10, 10, 10], [10, 20, 30]]
    assert windows("zero", rows) == [[0, 10, 20], [0, 0, 7], [0, 0, 10], [10, 20, 30]]


def test_windows_may_be_ordered_by_time() -> None:
    rows = [
        {"unit": 1, "cycle": "2026-01-02T00:00:00", "speed": 2},
        {"unit": 1, "cycle": "2026-01-01 12:00", "speed": 1},
    ]
    assert windows("zero", rows) == [[0, 1, 2], [0, 0, 1]]


def test_rows_without_their_order_are_refused() -> None:
    with pytest.raises(BadInput) as error:
        windows("edge", [{"unit": 1, "cycle": None, "speed": 1}])
    assert (error.value.code, error.value.field) == ("COLUMN_MISSING", "cycle")


def test_a_window_longer_than_its_group_may_be_refused() -> None:
    with pytest.raises(BadInput) as error:
        windows("refuse", [{"unit": 1, "cycle": 1, "speed": 1}])
    assert error.value.code == "SERIES_TOO_SHORT"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-99, 99)), min_size=1, max_size=30))
def test_windows_agree_with_a_plain_reading(cells: list[tuple[int, int]]) -> None:
    rows = [{"unit": unit, "speed": value} for unit, value in cells]
    found = windows("edge", rows, order=None)
    for place, (unit, _) in enumerate(cells):
        past = [value for other, value in cells[: place + 1] if other == unit][-3:]
        assert found[place] == [past[0]] * (3 - len(past)) + past


def test_windows_without_end_are_refused() -> None:
    step = {"op": "window", "features": ["speed"], "tensor": "x", "size": 100_000_000}
    refusal = refusal_of(pipeline_of([SPEED], [step]), [{"speed": 1}] * 2)
    assert isinstance(refusal, TooLarge)
    assert refusal.code == "INPUT_TOO_LARGE"


def test_a_spectrum_shows_the_band_of_a_tone() -> None:
    pre = [
        {"op": "series", "features": ["wave"], "tensor": "x", "size": 64},
        {"op": "spectrum", "tensor": "x", "bins": 4},
    ]
    tone = np.sin(2 * np.pi * 20 * np.arange(64) / 64).tolist()  # of 32 bands the 20th: the third quarter
    assert pipeline_of([WAVE], pre).encode([{"wave": tone}])["x"][0].argmax() == 2


# --- pictures ---------------------------------------------------------------------------------------------------------

PHOTO = {"name": "photo", "kind": "image"}


def png(width: int, height: int, mode: str = "RGB", color: Any = (255, 0, 51)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def image_pipeline(**step: Any) -> Pipeline:
    return pipeline_of([PHOTO], [{"op": "image", "feature": "photo", "tensor": "x", "width": 4, "height": 2, **step}])


@pytest.mark.parametrize(
    "wrap",
    [bytes, lambda b: base64.b64encode(b).decode(), lambda b: "data:image/png;base64," + base64.b64encode(b).decode()],
)
def test_a_picture_becomes_channels_between_nought_and_one(wrap: Any) -> None:
    pixels = image_pipeline().encode([{"photo": wrap(png(8, 4))}])["x"]
    assert pixels.shape == (1, 3, 2, 4)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0, :, 0, 0], [1, 0, 0.2], atol=1e-6)


def test_a_letterbox_keeps_the_proportions_and_pads_with_black() -> None:
    pixels = image_pipeline(mode="L", fit="letterbox").encode([{"photo": png(5, 5, "L", 255)}])["x"]
    assert pixels[0, 0].tolist() == [[0, 1, 1, 0]] * 2


def test_grey_and_transparent_pictures_are_converted() -> None:
    assert image_pipeline().encode([{"photo": png(3, 3, "RGBA", (9, 9, 9, 9))}])["x"].shape == (1, 3, 2, 4)
    assert image_pipeline(mode="L", fit="center_crop").encode([{"photo": png(9, 3)}])["x"].shape == (1, 1, 2, 4)


@pytest.mark.parametrize("cell", [b"", b"GIF89a", png(8, 8)[:40], "no base64!", "", 5, {"b64": "x"}, b"\x00" * 99])
def test_what_is_no_picture_is_refused(cell: Any) -> None:
    assert refusal_of(image_pipeline(), [{"photo": cell}]).code in ("IMAGE_UNREADABLE", "FEATURE_MISSING")


def test_a_decompression_bomb_is_refused() -> None:
    assert refusal_of(image_pipeline(), [{"photo": png(9000, 9000, "1", 0)}]).code == "IMAGE_UNREADABLE"


def test_channels_are_normalised_with_their_own_mean() -> None:
    pre = [
        {"op": "image", "feature": "photo", "tensor": "x", "width": 1, "height": 1},
        {"op": "normalise", "tensor": "x", "mean": [1, 0, 0.2], "std": [1, 2, 0.1]},
    ]
    pixels = pipeline_of([PHOTO], pre).encode([{"photo": png(2, 2)}])["x"]
    np.testing.assert_allclose(pixels.ravel(), [0, 0, 0], atol=1e-5)


# --- text -------------------------------------------------------------------------------------------------------------

TEXT = {"name": "text", "kind": "text"}


def test_a_text_is_tokenised_padded_and_cut(tmp_path: Path) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "pump": 2, "leaks": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    step = {"op": "tokenise", "feature": "text", "max_length": 3, "tensors": ["input_ids", "attention_mask"]}
    pipeline = pipeline_of([TEXT], [step], folder=tmp_path)
    encoded = pipeline.encode([{"text": "pump leaks"}, {"text": "pump pump new pump"}])
    assert encoded["input_ids"].tolist() == [[2, 3, 0], [2, 2, 1]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_many_long_texts_are_tokenised_as_the_library_does_all_at_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "pump": 1, "leaks": 2, "[PAD]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["pump", "leaks " * 10_000, *("pump leaks " * (900 * place) for place in range(1, 11)), "new pump", ""] * 3
    assert sum(map(len, texts)) > CHARACTERS_AT_ONCE
    step = {
        "op": "tokenise", "feature": "text", "max_length": 5,
        "tensors": ["input_ids", "attention_mask", "token_type_ids"],
    }  # fmt: skip
    found = pipeline_of([TEXT], [step], folder=tmp_path).encode([{"text": text} for text in texts])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=3)
    wanted = tokenizer.encode_batch(texts)
    assert found["input_ids"].tolist() == [each.ids for each in wanted]
    assert found["attention_mask"].tolist() == [each.attention_mask for each in wanted]
    assert found["token_type_ids"].tolist() == [each.type_ids for each in wanted]


@pytest.mark.parametrize(
    "step",
    [
        {"op": "tokenise", "feature": "text", "tensors": ["input_ids"]},
        {"op": "hash_ngrams", "feature": "text", "tensor": "input_ids"},
        {"op": "strings", "feature": "text", "tensor": "input_ids"},
    ],
)
def test_a_text_that_would_fill_the_memory_is_refused_by_its_row(tmp_path: Path, step: dict[str, Any]) -> None:
    """A tokenizer took 150 bytes a character, before it cut: 9 GB for a body at its limit."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    refusal = refusal_of(pipeline_of([TEXT], [step], folder=tmp_path), [{"text": "pump"}, {"text": "a" * 100_001}])
    assert isinstance(refusal, TooLarge)
    assert refusal.code == "FEATURE_TEXT_TOO_LONG"
    assert "row 2" in refusal.en
    assert "第 2 行" in refusal.zh


def test_a_broken_tokenizer_is_the_vendors_fault(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    step = {"op": "tokenise", "feature": "text", "tensors": ["input_ids"]}
    assert refusal_of(pipeline_of([TEXT], [step], folder=tmp_path), [{"text": "x"}]).code == "TOKENIZER_INVALID"


def test_ngrams_do_not_tell_case_and_width_apart() -> None:
    pipeline = pipeline_of([TEXT], [{"op": "hash_ngrams", "feature": "text", "tensor": "x", "buckets": 64}])
    one, same, other, empty = pipeline.encode([{"text": t} for t in ("轴承A异响", "轴承ａ异响", "电机过热", "")])["x"]
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    assert float(np.linalg.norm(one)) == pytest.approx(1, abs=1e-6)
    assert not empty.any()


def test_strings_go_to_the_graph_as_bytes() -> None:
    pipeline = pipeline_of([TEXT], [{"op": "strings", "feature": "text", "tensor": "x"}])
    assert pipeline.encode([{"text": "轴承"}, {"text": 5}])["x"].tolist() == [["轴承".encode()], [b"5"]]


# --- results ----------------------------------------------------------------------------------------------------------


def decode(post: list[dict[str, Any]], outputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    inputs = more.pop("given", {})
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    pipeline = pipeline_of([SPEED], [{"op": "columns", "features": ["speed"], "tensor": "x"}], post=post, **more)
    return pipeline.decode(arrays, {name: np.asarray(value) for name, value in inputs.items()})


def test_logits_become_a_label_with_probabilities() -> None:
    post = [{"op": "softmax", "tensor": "y"}, {"op": "classify", "tensor": "y", "labels": ["ok", "bad"]}]
    (result,) = decode(post, {"y": [[0, math.log(3)]]})
    assert result["label"] == "bad"
    assert result["score"] == pytest.approx(0.75)
    assert result["probabilities"] == pytest.approx({"ok": 0.25, "bad": 0.75})


@pytest.mark.parametrize(("threshold", "label"), [(0.2, "bad"), (0.3, "bad"), (0.31, "ok")])
def test_a_threshold_moves_the_verdict(threshold: float, label: str) -> None:
    step = {"op": "classify", "tensor": "y", "labels": ["ok", "bad"], "threshold": threshold, "positive": "bad"}
    arrays = {"y": [[0.7, np.float64(np.float32(0.3))]]}
    (result,) = decode([step | {"threshold": float(np.float32(threshold))}], arrays)
    assert result["label"] == label


def test_the_positive_ones_probability_alone_is_enough() -> None:
    step = {"op": "classify", "tensor": "y", "labels": ["bad", "ok"], "positive": "bad", "threshold": 0.5}
    results = decode([{"op": "sigmoid", "tensor": "y"}, step], {"y": [[4], [-4]]})
    assert [result["label"] for result in results] == ["bad", "ok"]
    assert sum(results[0]["probabilities"].values()) == pytest.approx(1)


def test_a_value_is_unscaled_clipped_calibrated_and_rounded() -> None:
    target = {"name": "life", "kind": "number", "unit": "cycles"}
    post = [
        {"op": "affine", "tensor": "y", "scale": 10, "offset": 5},
        {"op": "clip", "tensor": "y", "low": 0, "high": 125},
        {"op": "isotonic", "tensor": "y", "x": [0, 125], "y": [0, 250]},
        {"op": "value", "tensor": "y", "decimals": 1},
    ]
    assert decode(post, {"y": [[1.0], [99.0], [-9.0]]}, target=target) == [
        {"value": 30.0, "unit": "cycles"},
        {"value": 250.0, "unit": "cycles"},
        {"value": 0.0, "unit": "cycles"},
    ]


def test_an_anomaly_is_a_score_at_or_over_the_threshold() -> None:
    results = decode([{"op": "anomaly", "tensor": "y", "threshold": 0.5}], {"y": [0.5, 0.25]})
    assert [result["is_anomaly"] for result in results] == [True, False]
    assert results[0] == {"anomaly_score": 0.5, "is_anomaly": True, "threshold": 0.5}


def test_an_embedding_is_the_mean_over_the_mask_with_unit_length() -> None:
    post = [{"op": "vector", "tensor": "y", "mean_pool": "mask"}]
    (result,) = decode(post, {"y": [[[3, 4], [100, 100]]]}, given={"mask": [[1, 0]]})
    assert result["embedding"] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("post", "outputs", "code"),
    [
        ([{"op": "value", "tensor": "z"}], {"y": [1]}, "OUTPUT_MISSING"),
        ([{"op": "value", "tensor": "y"}], {"y": 1.0}, "OUTPUT_MISFIT"),
        ([{"op": "value", "tensor": "y"}], {"y": [1, 2]}, "OUTPUT_MISFIT"),
        ([{"op": "value", "tensor": "y"}], {"y": [[1, 2]]}, "OUTPUT_MISFIT"),
        ([{"op": "classify", "tensor": "y", "labels": ["a", "b"]}], {"y": [[1, 2, 3]]}, "LABELS_COUNT"),
        ([{"op": "isotonic", "tensor": "y", "x": [1, 2], "y": [1]}], {"y": [1]}, "PROCESSING_MISFIT"),
    ],
)
def test_outputs_that_do_not_fit_are_the_vendors_fault(post: list[Any], outputs: dict[str, Any], code: str) -> None:
    with pytest.raises(Unprocessable) as error:
        decode(post, outputs, given={"x": [[1.0]]})
    assert error.value.code == code


def test_outputs_of_text_are_no_scores() -> None:
    pipeline = pipeline_of([SPEED], [], post=[{"op": "value", "tensor": "y"}])
    with pytest.raises(Unprocessable) as error:
        pipeline.decode({"y": np.array([b"a"], object)})
    assert error.value.code == "OUTPUT_MISFIT"


# --- matching columns -------------------------------------------------------------------------------------------------


def feature(name: str, unit: str | None = None, **more: Any) -> Feature:
    return Feature(name=name, kind="number", unit=unit, **more)


@pytest.mark.parametrize(
    ("wanted", "heading", "how", "seven_becomes"),
    [
        (feature("speed", "rpm"), "speed", "exact", 7),
        (feature("speed", title_zh="转速"), "转速", "alias", 7),
        (feature("speed", aliases=["主轴转速"]), "主轴转速", "alias", 7),
        (feature("rotational_speed", "rpm"), "Rotational Speed [rpm]", "normalised", 7),
        (feature("speed", "rpm", title_zh="转速"), "转速（ｒｐｍ）", "normalised", 7),
        (feature("air temperature", "K"), "Air temperature [K]", "normalised", 7),
        (feature("air_temperature", "K"), "Air temperature (°C)", "converted", 280.15),
        (feature("air_temperature", "°C"), "air-temperature (K)", "converted", -266.15),
        (feature("t", "°C", title_zh="温度"), "温度(°F)", "converted", (7 - 32) * 5 / 9),
        (feature("power", "W"), "Power (kW)", "converted", 7000),
        (feature("power", "W"), "Power (mW)", "converted", 0.007),
        (feature("length", "m"), "length/mm", "converted", 0.007),
        (feature("wear", "s", title_zh="刀具磨损"), "刀具磨损 min", "converted", 420),
        (feature("pressure", "bar"), "pressure_MPa", "converted", 70),
        (feature("torque", "Nm"), "torque_Nm", "normalised", 7),
        (feature("speed", "rpm"), "speed (whatever)", "normalised", 7),
        (feature("flow", None), "flow (l/min)", "normalised", 7),
    ],
)
def test_a_heading_is_matched_and_its_unit_converted(
    wanted: Feature, heading: str, how: str, seven_becomes: float
) -> None:
    match = match_columns([wanted], ["other", heading])[wanted.name]
    assert (match.heading, match.how) == (heading, how)
    (row,) = apply_matches([{heading: "7", "other": 1}], {wanted.name: match})
    assert float(row[wanted.name]) == pytest.approx(seven_becomes)
    assert list(row) == [wanted.name]


@pytest.mark.parametrize(
    ("wanted", "heading"),
    [
        (feature("speed", "rpm"), "speed (K)"),  # another quantity is another column
        (feature("speed", "rpm"), "speeds"),
        (feature("input"), "input/output"),
        (feature("s"), "s2"),
    ],
)
def test_what_is_another_column_is_not_matched(wanted: Feature, heading: str) -> None:
    assert match_columns([wanted], [heading]) == {}


def test_a_heading_serves_one_feature_and_the_surest_match_wins() -> None:
    features = [feature("a", aliases=["b"]), feature("b")]
    assert {name: match.heading for name, match in match_columns(features, ["b", "A"]).items()} == {"a": "A", "b": "b"}


def test_a_match_by_hand_comes_first_and_converts_too() -> None:
    found = match_columns([feature("power", "W")], ["power", "消耗(kW)"], by_hand={"power": "消耗(kW)"})
    assert (found["power"].heading, found["power"].how, found["power"].factor) == ("消耗(kW)", "by_hand", 1000)


@given(
    st.lists(st.text(max_size=12), max_size=6, unique=True),
    st.lists(st.text(min_size=1, max_size=12), max_size=6, unique=True),
)
def test_matching_uses_no_heading_twice_and_invents_none(headings: list[str], names: list[str]) -> None:
    found = match_columns([feature(name) for name in names], headings)
    used = [match.heading for match in found.values()]
    assert len(used) == len(set(used))
    assert set(used) <= set(headings)
    assert all(found[name].heading == name for name in names if name in headings)


def test_a_cell_that_cannot_be_converted_is_named() -> None:
    match = match_columns([feature("power", "W")], ["power (kW)"])
    with pytest.raises(BadInput) as error:
        apply_matches([{"power (kW)": "1"}, {"power (kW)": "n/a"}], match)
    assert (error.value.code, error.value.field) == ("CELL_NOT_NUMBER", "power (kW)")


def test_a_missing_column_is_told_with_the_headings_there_were() -> None:
    refusal = column_missing(feature("speed", title_zh="转速"), ["a", "b"])
    assert (refusal.code, refusal.field) == ("COLUMN_MISSING", "speed")
    assert "a, b" in refusal.remedy_en
    assert "转速" in refusal.zh


# --- tables -----------------------------------------------------------------------------------------------------------

CSV = "转速,等级\r\n1500,L\r\n,\r\n 7.5 ,高\r\n"
ROWS = [{"转速": 1500, "等级": "L"}, {"转速": 7.5, "等级": "高"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_of_any_usual_kind_is_read(encoding: str, delimiter: str) -> None:
    headings, rows = read_table(CSV.replace(",", delimiter).encode(encoding), "x.csv")
    assert (headings, rows) == (["转速", "等级"], ROWS)


def test_quotes_and_line_breaks_within_a_cell_are_kept() -> None:
    assert read_table(b'a,b\n"1,5","x\ny ""z"""\n')[1] == [{"a": "1,5", "b": 'x\ny "z"'}]


def test_codes_stay_text_and_numbers_become_numbers() -> None:
    assert read_table(b"a,b,c,d,e\n007,12,1e3,1_000,nan\n")[1] == [
        {"a": "007", "b": 12, "c": 1000.0, "d": "1_000", "e": "nan"}
    ]


def test_a_table_read_as_text_is_written_back_unchanged() -> None:
    content = "编号,值\r\n12E5,1.50\r\n007,+5\r\n"
    headings, rows = read_table(content.encode(), as_text=True)
    assert write_csv(headings, rows) == content


def repeated(value: Any, count: int) -> bytes:
    """A Parquet table of one column that holds one value `count` times, stored once."""
    column = pa.array([value])
    if not pa.types.is_list(column.type):
        column = column.dictionary_encode()
    stream = io.BytesIO()
    parquet.write_table(pa.table({"a": column.take(pa.array([0] * count))}), stream, compression="zstd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "count"),
    [("x" * 1_000_000, 20_000), (["x" * 100_000] * 500, 20), ([1] * 1_000_000, 20)],
    ids=["one long text", "lists of long texts", "long lists"],
)
def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused(value: Any, count: int) -> None:
    """515 bytes were 20 GB in the market's own process. No more than a part of it may ever be unpacked."""
    content = repeated(value, count)
    assert len(content) < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge) as refused:
        read_table(content, "bomb.parquet")
    assert refused.value.code == "TABLE_TOO_LARGE"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kilobytes: one gigabyte


def test_a_parquet_column_that_repeats_itself_is_read() -> None:
    headings, rows = read_table(repeated("inner race, 0.007 inch", 50_000))
    assert (headings, len(rows), rows[-1]) == (["a"], 50_000, {"a": "inner race, 0.007 inch"})


def test_parquet_is_read(tmp_path: Path) -> None:
    table = pa.table({"转速": [1500, None], "值": [1.5, math.nan], "波形": [[1.0, 2.0], [3.0]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    headings, rows = read_table((tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert headings == ["转速", "值", "波形"]
    assert rows == [{"转速": 1500, "值": 1.5, "波形": [1.0, 2.0]}, {"转速": None, "值": None, "波形": [3.0]}]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "TABLE_EMPTY"),
        (b"a,b\n", "TABLE_EMPTY"),
        (b"a,a\n1,2\n", "HEADING_TWICE"),
        (b"a,\n1,2\n", "HEADING_TWICE"),
        (b"a,b\n1\n", "ROW_LENGTH"),
        (b"a,b\n1,2,3\n", "ROW_LENGTH"),
        (b"a\0b\n1\n", "TABLE_UNREADABLE"),
        (b"PK\x03\x04 an Excel file", "TABLE_UNREADABLE"),
        (b"PAR1 cut short", "TABLE_UNREADABLE"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(content: bytes, code: str) -> None:
    with pytest.raises(BadInput) as error:
        read_table(content, "x.csv")
    assert error.value.code == code
    assert error.value.remedy_zh


def test_a_table_over_its_bounds_is_refused() -> None:
    with pytest.raises(TooLarge) as error:
        read_table(b"a\n" + b"1\n" * 11, max_rows=10)
    assert error.value.code == "TABLE_TOO_LARGE"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_refusal(content: bytes) -> None:
    try:
        headings, rows = read_table(content)
    except Refusal:
        return
    assert rows
    assert all(list(row) == headings for row in rows)


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8), min_size=2, max_size=2),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_read_again(cells: list[list[str]]) -> None:
    rows = [dict(zip(["甲", "b"], row, strict=True)) for row in cells if any(cell.strip() for cell in row)]
    if rows:
        assert read_table(write_csv(["甲", "b"], rows).encode(), as_text=True) == (["甲", "b"], rows)
