"""What a hostile adapter can try (docs/decisions/0021): its file is numbers only, each kind of lie is refused, and what
is lawful but nasty stays in its owner's own rows."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.adapter_file import check_adapter, read_adapter, write_adapter
from model_store.bundle import ADAPTER, Bundle, seal
from model_store.errors import Refusal
from model_store.inspection.inspector import inspect_bundle
from model_store.runtime import load_graph
from serving import adapters_on_base
from serving.adapters_on_base import SlotTable, StackedAdapter
from tests.model_store.adapted import COLUMNS, FIRST, SECOND, adapter, adapter_bundle, answer, base_bundle, rows


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return base_bundle(tmp_path / "base", indexed=True)


def refused(made: Bundle, base: Bundle) -> str:
    """The code for this adapter, both where it is checked directly and in the limited inspection of an upload."""
    again = seal(made.path, made.manifest)
    with pytest.raises(Refusal) as caught:
        check_adapter(again, base)
    report = inspect_bundle(again.path, private=True, base=base.path)
    assert not report.passed
    assert caught.value.code in {each.code for each in report.findings}
    return caught.value.code


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(tmp_path: Path, base: Bundle, value: float) -> None:
    made = adapter_bundle(tmp_path / "a", base, adapter(1), "factory/own")
    tensors = adapter(1)
    tensors[f"{SECOND}.lora_B"][0, 0] = value
    write_adapter(made.path / ADAPTER, tensors)
    assert refused(made, base) == "ADAPTER_NOT_FINITE"


@pytest.mark.parametrize("claim", [COLUMNS * 1000, 1 << 40, -1, 0])
def test_a_shape_that_lies_about_its_data_is_refused(tmp_path: Path, base: Bundle, claim: int) -> None:
    made = adapter_bundle(tmp_path / "a", base, adapter(1), "factory/own")
    content = made.adapter_path.read_bytes()
    honest = struct.pack("<qq", COLUMNS, 4)
    assert content.count(honest) == 1
    made.adapter_path.write_bytes(content.replace(honest, struct.pack("<qq", claim, 4)))
    assert refused(made, base) in {"ADAPTER_FILE_INVALID", "ADAPTER_TENSOR_SHAPE"}


@pytest.mark.parametrize("where", ["behind", "inside"])
def test_ballast_in_the_file_is_refused(tmp_path: Path, base: Bundle, where: str) -> None:
    """A gigabyte that no parameter accounts for would be read into memory by every node."""
    made = adapter_bundle(tmp_path / "a", base, adapter(1), "factory/own")
    if where == "behind":
        made.adapter_path.write_bytes(made.adapter_path.read_bytes() + bytes(1 << 20))
        assert refused(made, base) == "ADAPTER_FILE_INVALID"
    else:
        write_adapter(made.adapter_path, {**adapter(1), "ballast.lora_A": np.zeros((1 << 18, 1), np.float32)})
        assert refused(made, base) == "ADAPTER_SITE_UNKNOWN"


@pytest.mark.parametrize("parameters", [1, 400])
def test_honest_files_are_within_the_bound_whatever_their_number_of_parameters(tmp_path: Path, parameters: int) -> None:
    tensors = {f"/{'encoder/' * 12}layer.{at}/query/MatMul.lora_A": rows(1) for at in range(parameters)}
    assert len(read_adapter(write_adapter(tmp_path / "a.onnx_adapter", tensors))) == parameters


def test_a_rank_above_the_bound_is_refused(tmp_path: Path, base: Bundle) -> None:
    made = adapter_bundle(tmp_path / "a", base, adapter(1), "factory/own")
    write_adapter(made.adapter_path, adapter(1, rank=513))
    assert refused(made, base) == "ADAPTER_RANK_TOO_LARGE"


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-41])
def test_huge_and_denormal_numbers_stay_in_their_owners_rows(tmp_path: Path, base: Bundle, size: float) -> None:
    table = SlotTable(load_graph(base.model_path))
    loaded: list[Any] = []
    for seed in (1, 2, 3):
        tensors = {name: np.full_like(each, size) if seed == 2 else each for name, each in adapter(seed).items()}
        made = adapter_bundle(tmp_path / f"a{seed}", base, tensors, f"factory/a{seed}")
        check_adapter(made, base)
        loaded.append(StackedAdapter(table, made.adapter_path, made.digest))
    x = rows(8)
    found = table.run([(loaded[0], 2), (loaded[1], 3), (None, 1), (loaded[2], 2)], {"x": x})["y"]
    assert np.abs(found[:2] - answer(x[:2], adapter(1))).max() < 1e-5
    assert np.abs(found[5] - answer(x[5:6])).max() < 1e-5
    assert np.abs(found[6:] - answer(x[6:], adapter(3))).max() < 1e-5
    # Its slot is overwritten by the next adapter: nothing of it is left for that one.
    small = SlotTable(load_graph(base.model_path), slots=2)
    made = adapter_bundle(tmp_path / "slim", base, adapter(5, rank=1), "factory/slim")  # padded where that one was
    second = StackedAdapter(small, made.adapter_path, made.digest)
    small.run([(loaded[1], 8)], {"x": x})
    assert np.abs(small.run([(second, 8)], {"x": x})["y"] - answer(x, adapter(5, rank=1))).max() < 1e-5


def test_one_wide_adapter_does_not_make_every_slot_wide(
    tmp_path: Path, base: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters_on_base, "MAX_STACK_BYTES", 64 << 10)
    table = SlotTable(load_graph(base.model_path))
    wide = adapter_bundle(tmp_path / "wide", base, adapter(1, rank=400, sites=(FIRST,)), "factory/wide")
    assert not table.has_room_for(StackedAdapter(table, wide.adapter_path, wide.digest))
    slim = adapter_bundle(tmp_path / "slim", base, adapter(2, rank=2), "factory/slim")
    assert table.has_room_for(StackedAdapter(table, slim.adapter_path, slim.digest))
