"""`/v1`: what a factory programmer types by hand, through the whole node: key, lease, journal, graph."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from onnx import helper
from PIL import Image

from model_store.errors import NotFound
from serving.memory_admission import Purse
from serving.ports import Principal
from serving.protocols import use, use_rows
from tests.serving.parts import FLOAT, KEY, OTHER_KEY, READ_KEY, Node, double, model, running_node

INFO = helper.make_tensor_value_info
POWER = {"name": "power", "kind": "number", "title_zh": "功率", "unit": "W", "aliases": ["P"]}
GRADE = {"name": "grade", "kind": "category", "title_zh": "等级"}
CLASSIFIER = {
    "task": "tabular-classification",
    "modality": "tabular",
    "features": [POWER, GRADE],
    "pre": [
        {"op": "categories", "feature": "grade", "mapping": {"L": 0, "H": 1}},
        {"op": "columns", "features": ["power", "grade"], "tensor": "x"},
    ],
    "post": [{"op": "classify", "tensor": "y", "labels": ["ok", "fault"]}],
}


def passes(columns: int = 2) -> onnx.ModelProto:
    """y = x: the first column is the score of the first label."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [INFO("x", FLOAT, ["n", columns])],
        [INFO("y", FLOAT, ["n", columns])],
    )


def brightness() -> onnx.ModelProto:
    """Mean of an [n, 1, 4, 4] picture."""
    return model(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])],
        [INFO("x", FLOAT, ["n", 1, 4, 4])],
        [INFO("y", FLOAT, ["n", 1])],
    )


def last_of_window() -> onnx.ModelProto:
    """Sum over an [n, 1, 3] window."""
    return model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [INFO("x", FLOAT, ["n", 1, 3])],
        [INFO("y", FLOAT, ["n"])],
        {"axes": np.array([1, 2])},
    )


@asynccontextmanager
async def market(folder: Path, key: str = KEY, **settings: Any) -> AsyncIterator[tuple[Node, httpx.AsyncClient]]:
    async with running_node(folder, **settings) as node:
        node.add("acme/grader", passes(), micro=370_000, manifest=CLASSIFIER)
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app=node.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://node.test", headers=headers) as client:
            yield node, client


def refusal_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["message_zh"]
    assert error["remedy_zh"]
    return error


def table_of(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.text)))


USE = "/v1/use/acme/grader"


# --- JSON -------------------------------------------------------------------------------------------------------------


async def test_one_row_gives_one_result_with_its_charge(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        answer = (await client.post(USE, json={"inputs": {"power": 0.25, "grade": "H"}})).json()
        (usage,) = node.usage()
    assert (answer["model"], answer["version"]) == ("acme/grader", 1)
    assert answer["results"] == [answer["result"]]
    assert answer["result"]["label"] == "fault"
    assert answer["result"]["probabilities"] == {"ok": 0.25, "fault": 1.0}
    assert answer["charge"] == {"amount_micro": 370_000, "lease_kind": "subsidised"}
    assert answer["usage_id"] == usage.usage_id
    assert answer["latency_ms"] >= 0
    assert usage.units["rows"] == 1


async def test_many_rows_give_many_results_in_order(tmp_path: Path) -> None:
    rows = [{"power": place / 100, "grade": "L"} for place in range(100)]
    async with market(tmp_path) as (node, client):
        answer = (await client.post(USE, json={"inputs": rows})).json()
        assert [usage.units["rows"] for usage in node.usage()] == [100]
    assert [result["probabilities"]["ok"] for result in answer["results"]] == pytest.approx([r["power"] for r in rows])
    assert "result" not in answer


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", USE, "POST"),
        ("DELETE", "/v1/drift/acme/grader", "GET, HEAD"),
        ("PUT", "/v1/choose", "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("GET", "/v2/models/acme--grader/infer", "POST"),
        ("PATCH", "/v2", "GET, HEAD"),
    ],
)
async def test_another_method_than_a_path_takes_is_405_and_says_which_it_takes(
    tmp_path: Path, method: str, path: str, allowed: str
) -> None:
    async with market(tmp_path) as (_, client):
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert "METHOD_NOT_ALLOWED" in answer.text


async def test_a_version_or_an_alias_may_be_asked_for(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        node.add("acme/grader", passes(), manifest=CLASSIFIER, aliases=("champion",))
        row = {"inputs": {"power": 1, "grade": "L"}}
        assert (await client.post(f"{USE}@1", json=row)).json()["version"] == 1
        assert (await client.post(f"{USE}@champion", json=row)).json()["version"] == 2
        assert refusal_of(await client.post(f"{USE}@9", json=row), 404)["code"] == "MODEL_NOT_FOUND"


async def test_json_may_use_the_factorys_own_names_and_units(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, client):
        answer = (await client.post(USE, json={"inputs": {"功率(kW)": 0.0005, "等级": "l"}})).json()
    assert answer["result"]["probabilities"]["ok"] == 0.5
    assert answer["columns"]["power"] == {"heading": "功率(kW)", "how": "converted", "factor": 1000.0, "offset": 0.0}


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"inputs": {"power": 1}}, "FEATURE_MISSING", "grade"),
        ({"inputs": {"power": 1, "grade": "L", "colour": 3}}, "FEATURE_UNKNOWN", "colour"),
        ({"inputs": {"power": "much", "grade": "L"}}, "FEATURE_NOT_NUMBER", "power"),
        ({"inputs": []}, "REQUEST_FIELD", "inputs"),
        ({"inputs": [1]}, "REQUEST_FIELD", "inputs"),
        ({"rows": []}, "REQUEST_FIELD", "inputs"),
    ],
)
async def test_a_wrong_body_is_named_and_costs_nothing(tmp_path: Path, body: Any, code: str, field: str) -> None:
    async with market(tmp_path) as (node, client):
        error = refusal_of(await client.post(USE, json=body), 400)
        assert node.usage() == []
    assert (error["code"], error["field"]) == (code, field)


async def test_a_body_that_is_no_json_is_refused(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, client):
        assert refusal_of(await client.post(USE, content=b"{"), 400)["code"] == "REQUEST_JSON"
        assert refusal_of(await client.post(USE, content=b"[1]"), 400)["code"] == "REQUEST_JSON"


async def test_a_wrong_cell_in_the_last_of_many_rows_costs_nothing_and_is_counted_right(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"power": 1, "grade": "L"}] * 700 + [{"power": 1, "grade": "?"}]
    async with market(tmp_path) as (node, client):
        error = refusal_of(await client.post(USE, json={"inputs": rows}), 400)
        assert node.usage() == []
    assert error["code"] == "CATEGORY_UNKNOWN"
    assert "row 701:" in error["message"]
    assert "第 701 行" in error["message_zh"]


async def test_rows_past_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use_rows, "MAX_ROWS", 3)
    async with market(tmp_path) as (_, client):
        answer = await client.post(USE, json={"inputs": [{"power": 1, "grade": "L"}] * 4})
    assert refusal_of(answer, 400)["field"] == "inputs"


async def test_what_was_run_before_the_voucher_ran_out_is_told(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        node.admission.purses["org_factory"] = Purse(200_000, 200_000, 1)  # enough for one chunk
        rows = [{"power": 1, "grade": "L"}] * 300
        error = refusal_of(await client.post(USE, json={"inputs": rows}), 402)
        (usage,) = node.usage()
    assert error["details"]["rows_answered"] == 256
    assert error["details"]["usage_ids"] == [usage.usage_id]
    assert error["details"]["charged_micro"] == usage.amount_micro


async def test_chunks_that_are_not_kept_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use_rows, "ENCODED_BYTES_KEPT", 100)
    monkeypatch.setattr(use, "CHUNK_ROWS", 8)
    rows = [{"power": place, "grade": "L"} for place in range(50)]
    async with market(tmp_path) as (_, client):
        answer = (await client.post(USE, json={"inputs": rows})).json()
    assert [result["probabilities"]["ok"] for result in answer["results"]] == [float(place) for place in range(50)]
    assert len(answer["usage_ids"]) == 7


async def test_the_same_idempotency_key_is_charged_once(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        calls = [
            await client.post(USE, json={"inputs": {"power": 1, "grade": "L"}}, headers={"Idempotency-Key": "k1"})
            for _ in range(2)
        ]
        assert calls[0].json()["usage_id"] == calls[1].json()["usage_id"]
        assert len(node.usage()) == 1
        many = {"inputs": [{"power": 1, "grade": "L"}] * 300}
        answer = await client.post(USE, json=many, headers={"Idempotency-Key": "k2"})
    assert refusal_of(answer, 400)["field"] == "Idempotency-Key"


async def test_one_body_read_in_two_ways_is_two_requests_and_not_a_free_repeat(tmp_path: Path) -> None:
    """A body may hold several forms with a boundary each; its bytes alone do not say what was asked."""
    table = b"power,grade\r\n" + b"1,L\r\n"
    forms = [
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n%b\r\n--%b--\r\n'
        % (mark, content, mark)
        for mark, content in ((b"A", table), (b"B", table + b"2,H\r\n" * 99))
    ]
    async with market(tmp_path) as (node, client):
        first, second = [
            await client.post(
                USE,
                content=b"".join(forms),
                headers={"Content-Type": f"multipart/form-data; boundary={mark}", "Idempotency-Key": "k1"},
            )
            for mark in "AB"
        ]
        assert first.status_code == 200
        assert refusal_of(second, 409)["code"] == "IDEMPOTENCY_CONFLICT"
        assert len(node.usage()) == 1


@pytest.mark.parametrize(("deadline", "status"), [("soon", 400), ("-1", 504), ("0", 504)])
async def test_a_deadline_that_is_no_time_is_refused(tmp_path: Path, deadline: str, status: int) -> None:
    async with market(tmp_path) as (node, client):
        row = {"inputs": {"power": 1, "grade": "L"}}
        refusal_of(await client.post(USE, json=row, headers={"X-Deadline-Ms": deadline}), status)
        assert node.usage() == []


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_a_key_without_the_scope_may_not_use(tmp_path: Path) -> None:
    async with market(tmp_path, READ_KEY) as (_, client):
        assert refusal_of(await client.post(USE, json={}), 403)["code"] == "SCOPE_MISSING"


async def test_a_private_model_is_not_there_for_others_and_runs_in_its_worker_for_its_owner(tmp_path: Path) -> None:
    row = {"inputs": {"power": 1, "grade": "L"}}
    async with market(tmp_path) as (node, client):
        node.add("other/mine", passes(), manifest=CLASSIFIER, owner="org_other", private=True, trusted=False)
        assert refusal_of(await client.post("/v1/use/other/mine", json=row), 404)["code"] == "MODEL_NOT_FOUND"
        answer = await client.post("/v1/use/other/mine", json=row, headers={"Authorization": f"Bearer {OTHER_KEY}"})
        assert answer.json()["result"]["label"] == "ok"


async def test_a_model_of_bare_tensors_points_to_its_protocol(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        node.add("acme/double", double())
        error = refusal_of(await client.post("/v1/use/acme/double", json={"inputs": {}}), 422)
    assert error["code"] == "TENSORS_ONLY"
    assert "/v2/models/acme--double/infer" in error["remedy"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", USE), ("POST", "/v1/use"), ("POST", "/v1/nothing"), ("PUT", "/v1/choose")]
)
async def test_another_method_or_path_is_refused(tmp_path: Path, method: str, path: str) -> None:
    async with market(tmp_path) as (_, client):
        assert (await client.request(method, path)).status_code in (400, 404, 405)


# --- tables -----------------------------------------------------------------------------------------------------------

CSV = "编号,功率(kW),等级,label\r\n007,0.00025,H,mine\r\n12E5,0.001,L,\r\n"


async def test_a_csv_comes_back_unchanged_with_the_predictions_behind(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        answer = await client.post(USE, content=CSV.encode("gbk"), headers={"Content-Type": "text/csv"})
        (usage,) = node.usage()
    first, second = table_of(answer)
    assert [first["编号"], second["编号"], first["功率(kW)"]] == ["007", "12E5", "0.00025"]
    assert [first["label"], second["label"]] == ["mine", ""]
    assert [first["predicted_label"], second["predicted_label"]] == ["fault", "ok"]
    assert float(first["probability_ok"]) == 0.25
    assert answer.headers["x-usage-id"] == usage.usage_id
    assert answer.headers["x-amount-micro"] == "370000"
    assert json.loads(answer.headers["x-columns-converted"])["power"]["heading"] == "功率(kW)"


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "*/*", "csv"),
        ("?format=json", "*/*", "json"),
        ("", "application/json", "json"),
        ("?format=csv", "application/json", "csv"),
    ],
)
async def test_the_caller_says_what_a_table_is_answered_with(
    tmp_path: Path, query: str, accept: str, kind: str
) -> None:
    async with market(tmp_path) as (_, client):
        headers = {"Content-Type": "text/csv", "Accept": accept}
        answer = await client.post(f"{USE}{query}", content=CSV.encode(), headers=headers)
    assert kind in answer.headers["content-type"]
    if kind == "json":
        assert answer.json()["columns"]["grade"]["how"] == "alias"
        assert len(answer.json()["results"]) == 2


async def test_json_may_be_answered_as_csv(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, client):
        answer = await client.post(f"{USE}?format=csv", json={"inputs": [{"power": 2, "grade": "L"}]})
    assert table_of(answer)[0] | {"score": "2.0"} == table_of(answer)[0]


async def test_a_form_with_a_file_and_parquet_are_read_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"power": [0.5], "grade": ["H"]}), buffer)
    async with market(tmp_path) as (_, client):
        form = await client.post(USE, files={"file": ("数据.csv", CSV.encode(), "text/csv")})
        columnar = await client.post(USE, content=buffer.getvalue())
    assert len(table_of(form)) == 2
    assert table_of(columnar)[0]["label"] == "fault"


async def test_a_missing_column_is_told_with_the_headings_there_were(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        answer = await client.post(USE, content=b"power,colour\n1,red\n", headers={"Content-Type": "text/csv"})
        assert node.usage() == []
    error = refusal_of(answer, 400)
    assert (error["code"], error["field"]) == ("COLUMN_MISSING", "grade")
    assert "power, colour" in error["remedy"]


WINDOWED = {
    "task": "series-regression",
    "modality": "series",
    "features": [{"name": "s1", "kind": "number"}],
    "target": {"name": "life", "kind": "number", "unit": "cycles"},
    "pre": [
        {"op": "window", "features": ["s1"], "tensor": "x", "size": 3, "group": "unit", "order": "cycle", "pad": "zero"}
    ],
    "post": [{"op": "value", "tensor": "y"}],
}


async def test_windows_reach_over_the_chunks_of_a_long_table(tmp_path: Path) -> None:
    lines = ["Unit,cycle,s1", *(f"{place % 2},{place},{place}" for place in range(600))]
    async with market(tmp_path) as (node, client):
        node.add("acme/life", last_of_window(), manifest=WINDOWED)
        post = {"url": "/v1/use/acme/life", "headers": {"Content-Type": "text/csv"}}
        found = table_of(await client.post(content="\n".join(lines).encode(), **post))  # type: ignore[arg-type]
        error = refusal_of(await client.post(content=b"cycle,s1\n1,2\n", **post), 400)  # type: ignore[arg-type]
    assert [float(row["value"]) for row in found] == [
        float(sum(past for past in (place, place - 2, place - 4) if past >= 0)) for place in range(600)
    ]
    assert found[0]["unit"] == "cycles"
    assert (error["code"], error["field"]) == ("COLUMN_MISSING", "unit")


# --- pictures ---------------------------------------------------------------------------------------------------------

PICTURED = {
    "task": "anomaly-detection",
    "modality": "image",
    "features": [{"name": "photo", "kind": "image"}],
    "pre": [{"op": "image", "feature": "photo", "tensor": "x", "mode": "L", "width": 4, "height": 4}],
    "post": [{"op": "anomaly", "tensor": "y", "threshold": 0.5}],
}


def picture(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 8), grey).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_picture_may_be_the_body_a_form_or_base64(tmp_path: Path) -> None:
    async with market(tmp_path) as (node, client):
        node.add("acme/bright", brightness(), manifest=PICTURED)
        path = "/v1/use/acme/bright"
        encoded = base64.b64encode(picture(255)).decode()
        answers = [
            await client.post(path, content=picture(255), headers={"Content-Type": "image/png"}),
            await client.post(path, files={"file": ("a.png", picture(255))}),
            await client.post(path, json={"inputs": {"photo": encoded}}),
            await client.post(path, json={"inputs": [{"photo": encoded}, {"photo": encoded}]}),
        ]
        assert [usage.units["images"] for usage in node.usage()] == [1, 1, 1, 2]
        broken = await client.post(path, content=picture(9)[:40], headers={"Content-Type": "image/png"})
        wrong = await client.post(USE, content=picture(9), headers={"Content-Type": "image/png"})
    assert all(result["is_anomaly"] for answer in answers for result in answer.json()["results"])
    assert refusal_of(broken, 400)["code"] == "IMAGE_UNREADABLE"
    assert refusal_of(wrong, 400)["code"] == "CONTENT_TYPE_UNFIT"


# --- choose and adapt -------------------------------------------------------------------------------------------------


class Desk:
    """Chooser and adapting of a market with one job and no models: it says back what it was asked."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def create_sample_set(
        self, principal: Principal, *, filename: str, content: bytes, form: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "id": "smp_1",
            "filename": filename,
            "bytes": len(content),
            "form": dict(form),
            "for": principal.organisation,
        }

    async def delete_sample_set(self, principal: Principal, sample_set_id: str) -> dict[str, Any]:
        self.deleted.append(sample_set_id)
        return {"id": sample_set_id, "deleted": True}

    async def choose(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": "chs_1", "asked": dict(request)}

    async def create(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": "job_1", "asked": dict(request)}

    async def get(self, principal: Principal, some_id: str) -> dict[str, Any]:
        if some_id not in ("chs_1", "job_1"):
            raise NotFound(
                "JOB_NOT_FOUND", zh="没有此任务", en="no such job", remedy_zh="请检查", remedy_en="check the id"
            )
        return {"id": some_id, "state": "done"}

    async def list(self, principal: Principal) -> list[dict[str, Any]]:
        return [{"id": "job_1"}]

    async def cancel(self, principal: Principal, job_id: str) -> dict[str, Any]:
        return {"id": job_id, "state": "cancelled"}

    def recipe_cards(self) -> list[dict[str, Any]]:
        return [{"name": "tabular_retrain"}]

    async def events(self, principal: Principal, job_id: str) -> AsyncIterator[dict[str, Any]]:
        for progress in (0.5, 1.0):
            yield {
                "id": job_id,
                "state": "running" if progress < 1 else "succeeded",
                "progress": progress,
                "stage": "训练",
            }


@asynccontextmanager
async def market_with_desk(folder: Path, key: str = KEY) -> AsyncIterator[tuple[Desk, httpx.AsyncClient]]:
    desk = Desk()
    async with market(folder, key) as (node, client):
        node.app.ports.chooser = node.app.ports.adapting = desk  # type: ignore[assignment]
        yield desk, client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/sample-sets"), ("DELETE", "/v1/sample-sets/x"), ("POST", "/v1/choose"), ("GET", "/v1/choose/x"),
        ("GET", "/v1/recipes"), ("POST", "/v1/adapt"), ("GET", "/v1/adapt"), ("GET", "/v1/adapt/x"),
        ("POST", "/v1/adapt/x/cancel"), ("GET", "/v1/adapt/x/events"),
    ],
)  # fmt: skip
async def test_a_lone_node_says_where_the_market_is(tmp_path: Path, method: str, path: str) -> None:
    async with market(tmp_path) as (_, client):
        error = refusal_of(await client.request(method, path), 501)
    assert error["code"] == "NOT_HERE"
    assert "http://market.test" in error["remedy"]


async def test_samples_are_uploaded_as_a_form_and_deleted(tmp_path: Path) -> None:
    async with market_with_desk(tmp_path) as (desk, client):
        form = {"files": {"file": ("样本.csv", b"a,b\n1,2\n", "text/csv")}, "data": {"label_column": "故障"}}
        made = await client.post("/v1/sample-sets", **form)  # type: ignore[arg-type]
        assert made.status_code == 201
        assert made.json() == {
            "id": "smp_1", "filename": "样本.csv", "bytes": 8, "form": {"label_column": "故障"}, "for": "org_factory",
        }  # fmt: skip
        assert refusal_of(await client.post("/v1/sample-sets"), 400)["field"] == "file"
        assert (await client.delete("/v1/sample-sets/smp_1")).json()["deleted"]
        assert desk.deleted == ["smp_1"]


async def test_choosing_and_adapting_reach_the_market(tmp_path: Path) -> None:
    async with market_with_desk(tmp_path) as (_, client):
        chosen = await client.post("/v1/choose", json={"sample_set": "smp_1"})
        assert (chosen.status_code, chosen.json()["asked"]) == (202, {"sample_set": "smp_1"})
        assert (await client.get("/v1/choose/chs_1")).json()["state"] == "done"
        assert (await client.get("/v1/recipes")).json()["total"] == 1
        made = await client.post("/v1/adapt", json={"recipe": "tabular_retrain"})
        assert (made.status_code, made.json()["id"]) == (202, "job_1")
        assert (await client.get("/v1/adapt")).json() == {"items": [{"id": "job_1"}], "total": 1}
        assert (await client.post("/v1/adapt/job_1/cancel")).json()["state"] == "cancelled"
        assert refusal_of(await client.get("/v1/adapt/job_2"), 404)["code"] == "JOB_NOT_FOUND"


async def test_progress_is_told_as_events_until_the_end(tmp_path: Path) -> None:
    async with market_with_desk(tmp_path) as (_, client):
        answer = await client.get("/v1/adapt/job_1/events")
        assert answer.headers["content-type"].startswith("text/event-stream")
        refusal_of(await client.get("/v1/adapt/job_2/events"), 404)
    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in answer.text.strip().split("\n\n")]
    assert [event["event"] for event in events] == ["running", "succeeded"]
    assert json.loads(events[1]["data"]) == {"id": "job_1", "state": "succeeded", "progress": 1.0, "stage": "训练"}


async def test_choosing_and_adapting_need_their_scopes(tmp_path: Path) -> None:
    async with market_with_desk(tmp_path, OTHER_KEY) as (_, client):
        assert refusal_of(await client.post("/v1/choose", json={}), 403)["code"] == "SCOPE_MISSING"
        assert refusal_of(await client.get("/v1/recipes"), 403)["code"] == "SCOPE_MISSING"
