"""Choosing over HTTP on a live market with its starter shelf: every clause of what a factory is promised."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live import LiveMarket
from tests.web.samples import write_milling_rows

FAMILY = {"dongzhi/machine-failure-boosting", "lingnan/machine-failure-linear", "lingnan/machine-failure-network",
          "pearl/machine-failure-forest"}  # fmt: skip


def upload(client: httpx.Client, name: str, content: bytes, **form: str) -> dict[str, Any]:
    answer = client.post("/v1/sample-sets", files={"file": (name, content)}, data=form)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def chosen(client: httpx.Client, sample_set_id: str, **wish: Any) -> dict[str, Any]:
    choice = client.post("/v1/choose", json={"sample_set_id": sample_set_id, **wish})
    assert choice.status_code == 202, choice.text
    for _ in range(600):
        found = client.get(f"/v1/choose/{choice.json()['id']}").json()
        if found["state"] in ("done", "failed"):
            assert found["state"] == "done", found["error"]
            return dict(found["result"])
        time.sleep(0.1)
    raise AssertionError("the choice never ended")


@pytest.fixture(scope="module")
def factory(live_market: LiveMarket) -> httpx.Client:
    return live_market.client("factory")


@pytest.fixture(scope="module")
def milling(factory: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_milling_rows(tmp_path_factory.mktemp("milling") / "milling.csv")
    return str(upload(factory, path.name, path.read_bytes(), label_column="设备故障")["id"])


def test_a_family_is_ranked_with_intervals_latency_price_and_the_voucher_s_share(factory, milling) -> None:
    result = chosen(factory, milling)
    (ranking,) = result["rankings"]
    by_name = {each["model"]: each for each in result["candidates"]}
    assert by_name.keys() >= FAMILY
    assert ranking["order"][0] == ranking["best"]
    for each in (by_name[name] for name in FAMILY):
        assert each["low"] <= each["value"] <= each["high"]
        assert each["latency_ms"]["p50"] > 0
        price = each["price"]
        assert (
            price["gross_micro"] == 1000 * price["micro_per_unit"] == price["voucher_micro"] + price["self_paid_micro"]
        )
    filed = by_name["dongzhi/machine-failure-boosting"]["price"]
    assert (filed["ratio"], filed["voucher_micro"]) == ("1/3", 370_000_000 // 3)
    assert by_name["lingnan/machine-failure-linear"]["price"]["voucher_micro"] == 0  # not filed: no voucher


def test_a_winner_is_only_called_one_where_no_other_is_tied(factory, milling) -> None:
    result = chosen(factory, milling)
    (ranking,) = result["rankings"]
    tied = [each["model"] for each in result["candidates"] if each["tied_with_best"]]
    assert ranking["clear_winner"] == (len(tied) == 1)
    assert f"{tied[0]}@1" in ranking["order"]


def test_who_is_left_out_is_told_why_and_adapting_is_suggested(factory, milling) -> None:
    result = chosen(factory, milling)
    reasons = {each["model"]: each["reason"] for each in result["left_out"]}
    assert reasons["dongzhi/board-defects-conv"] == "OTHER_MODALITY"
    assert reasons["dongzhi/steel-faults-boosting"] == "COLUMNS_MISSING"
    assert all(each["zh"] and each["en"] for each in result["left_out"])
    assert {each["recipe"] for each in result["adapt_first"]} >= {"tabular_calibrate"}


def test_headings_in_chinese_with_units_find_their_inputs(factory, milling) -> None:
    result = chosen(factory, milling, models=["dongzhi/machine-failure-boosting"])
    (only,) = result["candidates"]
    matched = {match["feature"]: match["column"] for match in only["matches"]}
    assert matched["torque"] == "扭矩[Nm]"
    assert matched["product_type"] == "产品等级"


def test_columns_are_matched_by_hand_where_the_headings_say_nothing(factory, tmp_path: Path) -> None:
    path = write_milling_rows(tmp_path / "m.csv")
    text = path.read_text(encoding="utf-8").replace("扭矩[Nm]", "C7")
    samples = upload(factory, "m.csv", text.encode(), label_column="设备故障")["id"]
    model = "dongzhi/machine-failure-boosting"
    alone = chosen(factory, samples, models=[model])
    assert [each["reason"] for each in alone["left_out"]] == ["COLUMNS_MISSING"]
    (by_hand,) = chosen(factory, samples, models=[model], columns={"torque": "C7"})["candidates"]
    assert by_hand["model"] == model


def test_samples_without_answers_get_no_accuracy(factory, tmp_path: Path) -> None:
    rows = list(csv.reader(write_milling_rows(tmp_path / "m.csv").open(encoding="utf-8")))
    buffer = io.StringIO()
    csv.writer(buffer).writerows(row[:-1] for row in rows)
    result = chosen(factory, upload(factory, "m.csv", buffer.getvalue().encode())["id"])
    assert (result["labelled"], result["rankings"]) == (False, [])
    for each in result["candidates"]:
        assert each.get("value") is None
        assert {"coverage", "agreement", "latency_ms", "price"} <= each.keys()


def test_pictures_in_label_folders_are_ranked(factory) -> None:
    random, buffer = np.random.default_rng(4), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(24):
            label, picture = ("ok", "short")[number % 2], io.BytesIO()
            Image.fromarray(random.integers(0, 255, (64, 64), dtype=np.uint8)).save(picture, "PNG")
            archive.writestr(f"{label}/{number}.png", picture.getvalue())
    samples = upload(factory, "boards.zip", buffer.getvalue())
    assert samples["kind"] == "images"
    result = chosen(factory, samples["id"])
    assert {"dongzhi/board-defects-conv", "pearl/board-defects-deep"} & {each["model"] for each in result["candidates"]}


def test_trials_are_metered_and_free_and_return_metrics_only(factory, milling) -> None:
    result = chosen(factory, milling, models=["lingnan/machine-failure-linear"])
    assert not {"predictions", "outputs", "answers"} & result["candidates"][0].keys()
    deadline = time.monotonic() + 30
    while not (rows := factory.get("/api/v1/usage", params={"purpose": "trial", "page_size": 5}).json()["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {(row["purpose"], row["amount_micro"], row["lease_kind"]) for row in rows} == {("trial", 0, "free")}


def test_deleted_samples_are_gone_with_a_receipt_and_nobody_else_s(live_market, factory, tmp_path: Path) -> None:
    content = write_milling_rows(tmp_path / "m.csv", rows=30).read_bytes()
    samples = upload(factory, "m.csv", content)["id"]
    stranger = live_market.client("vendor")
    assert stranger.delete(f"/v1/sample-sets/{samples}").status_code == 404
    assert stranger.post("/v1/choose", json={"sample_set_id": samples}).status_code == 404
    receipt = factory.delete(f"/v1/sample-sets/{samples}")
    assert receipt.status_code == 200
    assert receipt.json()
    gone = factory.post("/v1/choose", json={"sample_set_id": samples})
    assert gone.status_code == 404
    assert not list((live_market.home / "samples").rglob(f"*{samples}*"))


def test_the_same_samples_are_adapted_and_the_derivative_is_called(factory, milling) -> None:
    name = "demo-factory/chosen-then-adapted"
    wanted = {"recipe": "tabular_calibrate", "model": "lingnan/machine-failure-linear", "name": name}
    job = factory.post("/v1/adapt", json=wanted | {"sample_set_id": milling, "label_column": "设备故障"})
    assert job.status_code == 202, job.text
    for _ in range(600):
        found = factory.get(f"/v1/adapt/{job.json()['id']}").json()
        if found["state"] in ("done", "failed", "cancelled"):
            break
        time.sleep(0.2)
    assert found["state"] == "done", found["error"]
    assert {metric["name"] for metric in found["result"]["metrics"]} & {
        metric["name"] for metric in found["result"]["parent_metrics"]
    }
    row = found["result"]["call"]["inputs"]
    answer = factory.post(f"/v1/use/{name}", json={"inputs": row})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["label"] in ("ok", "failure")
