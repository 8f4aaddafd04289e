"""Row hashes: the same row however it is written, another row another hash, and files that are checked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model_store import fingerprint
from model_store.errors import Refusal
from model_store.manifest import Feature

FEATURES = [
    Feature(name="speed", kind="number"),
    Feature(name="note", kind="text"),
    Feature(name="wave", kind="series"),
]


@given(st.floats(-1e12, 1e12), st.text(max_size=20), st.lists(st.floats(-1e6, 1e6, width=32), max_size=5))
def test_a_csv_round_trip_and_the_order_of_cells_keep_the_hash(speed: float, note: str, wave: list[float]) -> None:
    row = {"speed": speed, "note": note, "wave": wave}
    again = {"wave": [float(repr(sample)) for sample in wave], "note": note.strip(), "speed": repr(speed)}
    assert fingerprint.row_hash(row, FEATURES) == fingerprint.row_hash(again, FEATURES)


def test_case_width_and_spaces_make_no_new_text_but_a_digit_does() -> None:
    one, same, other = ({"note": note} for note in ("Ｐump  LEAKS", "pump leaks", "pump leaks 2"))
    assert fingerprint.row_hash(one, FEATURES) == fingerprint.row_hash(same, FEATURES)
    assert fingerprint.row_hash(one, FEATURES) != fingerprint.row_hash(other, FEATURES)


def test_a_cell_does_not_slide_into_the_next_feature() -> None:
    features = [Feature(name="a", kind="text"), Feature(name="b", kind="text")]
    assert fingerprint.row_hash({"a": "xy", "b": ""}, features) != fingerprint.row_hash({"a": "x", "b": "y"}, features)


def test_a_picture_is_known_by_its_pixels_not_by_its_encoding() -> None:
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    encoded = []
    for kind in ("PNG", "BMP"):
        content = io.BytesIO()
        picture.save(content, kind)
        encoded.append(content.getvalue())
    feature = [Feature(name="image", kind="image")]
    first, second = (fingerprint.row_hash({"image": content}, feature) for content in encoded)
    assert first == second


def test_rows_trained_on_are_found_and_others_are_not(tmp_path: Path) -> None:
    rows = [{"speed": float(n), "note": "n", "wave": [n]} for n in range(100)]
    fingerprint.write_rows(tmp_path, fingerprint.row_hashes(rows[:60], FEATURES))
    known = fingerprint.read_rows(tmp_path)
    assert known is not None
    assert fingerprint.trained_on(rows, FEATURES, known).tolist() == [True] * 60 + [False] * 40


def test_a_split_has_one_fingerprint_in_any_order() -> None:
    hashes = fingerprint.row_hashes([{"speed": n} for n in range(10)], FEATURES)
    assert fingerprint.split_fingerprint(hashes) == fingerprint.split_fingerprint(hashes[::-1])
    assert fingerprint.split_fingerprint(hashes) != fingerprint.split_fingerprint(hashes[:9])


def test_a_file_that_is_cut_short_or_unsorted_is_refused(tmp_path: Path) -> None:
    assert fingerprint.read_rows(tmp_path) is None
    path = fingerprint.write_rows(tmp_path, np.array([3, 1, 2], np.uint64))
    for content in (path.read_bytes()[:-1], np.array([2, 1], "<u8").tobytes()):
        path.write_bytes(content)
        with pytest.raises(Refusal) as refused:
            fingerprint.read_rows(tmp_path)
        assert refused.value.code == "FINGERPRINT_INVALID"
