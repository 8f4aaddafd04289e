"""Series recipes on real turbofan engines (NASA) and real valve records (SKAB)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from adapters import measure
from model_store.bundle import Bundle
from tests.adapters.workbench import SHARED, adapt, value_of, write_table

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
KEYS = {"group": "engine", "order": "cycle"}


@pytest.fixture(scope="module")
def engines() -> pd.DataFrame:
    """Every fourth cycle of 20 engines with some of their sensors and the remaining life."""
    names = ["engine", "cycle", *(f"setting{i}" for i in range(3)), *(f"s{i}" for i in range(1, 22))]
    frame = pd.read_csv(SHARED / "cmapss_fd001" / "train_FD001.txt.gz", sep=r"\s+", header=None, names=names)
    frame["remaining"] = frame.groupby("engine")["cycle"].transform("max") - frame["cycle"]
    frame = frame[(frame["engine"] <= 20) & (frame["cycle"] % 4 == 0)]
    return frame[["engine", "cycle", "s2", "s3", "s4", "s7", "s11", "s12", "s15", "remaining"]].reset_index(drop=True)


@pytest.fixture(scope="module")
def remaining_life(engines: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("engines")
    params = {**KEYS, "window": 10, "cap": 125, "iterations": 60}
    data = write_table(folder / "data", engines[engines["engine"] <= 10])
    return adapt("series_window", data, folder / "bundle", label_column="remaining", params=params)[1]


def test_remaining_life_is_learnt_from_windows_of_whole_engines(engines: pd.DataFrame, tmp_path: Path) -> None:
    params = {**KEYS, "window": 10, "cap": 125, "iterations": 60}
    data = write_table(tmp_path / "data", engines.sample(frac=1, random_state=2))  # order comes from its column
    outcome, bundle, _ = adapt("series_window", data, tmp_path / "b", label_column="remaining", params=params)
    assert value_of(outcome.child, "rmse") < 30
    assert outcome.facts["parity"] < 1e-3
    assert bundle.manifest.task == "series-regression"
    assert [note.code for note in outcome.notes] == ["SPLIT_BY_GROUPS"]
    assert "engine" not in {feature.name for feature in bundle.manifest.features}


def test_another_factory_trains_on_the_same_schema_beside_the_parent(
    engines: pd.DataFrame, remaining_life: Bundle, tmp_path: Path
) -> None:
    params = {**KEYS, "window": 12, "cap": 125, "method": "linear"}
    data = write_table(tmp_path / "data", engines[engines["engine"] > 10])
    outcome, bundle, _ = adapt("series_window", data, tmp_path / "b", parent=remaining_life, params=params)
    assert [metric.name for metric in outcome.parent] == [metric.name for metric in outcome.child]
    assert bundle.manifest.inputs[0].shape == [-1, 7, 12]


def test_a_series_value_is_calibrated_on_the_factorys_own_rows(
    engines: pd.DataFrame, remaining_life: Bundle, tmp_path: Path
) -> None:
    frame = engines[engines["engine"] > 10].assign(remaining=lambda rows: rows["remaining"].clip(upper=125) * 2)
    data = write_table(tmp_path / "data", frame)
    outcome, _, _ = adapt("tabular_calibrate", data, tmp_path / "b", parent=remaining_life)
    assert value_of(outcome.child, "rmse") < value_of(outcome.parent, "rmse")


@pytest.mark.parametrize("record", [1, 3])
def test_valve_anomalies_are_found_from_normal_rows(tmp_path: Path, record: int) -> None:
    frame = pd.read_csv(SHARED / "skab_valve1" / f"{record}.csv", sep=";").drop(columns="changepoint")
    params = {"order": "datetime", "window": 8, "overkill": 0.1, "test_share": 0.6}
    data = write_table(tmp_path / "data", frame)
    outcome, bundle, _ = adapt("series_anomaly", data, tmp_path / "b", label_column="anomaly", params=params)
    assert outcome.child[0].name == "anomaly_auc"
    assert outcome.child[0].value > 0.8
    assert outcome.facts["parity"] < 1e-3
    assert bundle.manifest.task == "anomaly-detection"
    row = {feature.name: 0.0 for feature in bundle.manifest.features}
    (answer,) = measure.answers(bundle, [row])
    assert answer["is_anomaly"] is True


def test_the_last_part_of_every_machine_can_be_held_out_instead_of_whole_machines(
    engines: pd.DataFrame, tmp_path: Path
) -> None:
    params = {**KEYS, "window": 10, "method": "linear", "hold_out": "last"}
    data = write_table(tmp_path / "data", engines[engines["engine"] <= 6])
    outcome, _, _ = adapt("series_window", data, tmp_path / "b", label_column="remaining", params=params)
    assert [note.code for note in outcome.notes] == ["SPLIT_BY_ORDER"]


def test_without_groups_the_future_is_held_out(tmp_path: Path) -> None:
    frame = pd.read_csv(SHARED / "skab_valve1" / "0.csv", sep=";").drop(columns=["changepoint", "anomaly"])
    frame["next"] = frame["Pressure"].shift(-1).ffill()
    params = {"order": "datetime", "window": 8, "method": "linear"}
    data = write_table(tmp_path / "data", frame)
    outcome, _, _ = adapt("series_window", data, tmp_path / "b", label_column="next", params=params)
    assert [note.code for note in outcome.notes] == ["SPLIT_BY_ORDER", "ROWS_IN_ORDER"]  # dates: sorted by the caller
