"""Publishing over HTTP: what comes in, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from sqlmodel import select
from starlette.requests import ClientDisconnect

from marketplace.app import create_api
from marketplace.catalogue.publishing_gate import PublishingGate
from marketplace.catalogue.tables import ModelVersion
from marketplace.db import reading, transaction
from marketplace.keys.service import create_key
from marketplace.market import Market
from model_store.bundle import Bundle, pack
from tests.marketplace.linear_models import graph_of, linear_bundle, weights_of
from tests.marketplace.shelf import add_organisation


@pytest.fixture
def keys(market: Market) -> dict[str, dict[str, str]]:
    """Headers of a publisher, of one who may only use, and of another organisation."""
    with transaction(market.engine) as session:
        acme, other = add_organisation(session, "acme"), add_organisation(session, "other", "enterprise")
        made = {
            "publisher": create_key(session, acme, name="k", scopes=["use", "publish"], actor="t")[1],
            "user": create_key(session, acme, name="u", scopes=["use"], actor="t")[1],
            "other": create_key(session, other, name="o", scopes=["use", "publish"], actor="t")[1],
        }
    return {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return linear_bundle(tmp_path / "made", "acme/linear")


def zipped(bundle: Bundle) -> bytes:
    return pack(bundle, bundle.path.with_suffix(".zip")).read_bytes()


def onnx_bytes(seed: int = 0) -> bytes:
    return bytes(graph_of(weights_of(seed)).SerializeToString())


def golden_zip() -> bytes:
    x = np.ones((2, 16), np.float32)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, arrays in (("inputs", {"x": x}), ("outputs", {"y": x @ weights_of() + 0.5})):
            content = io.BytesIO()
            np.savez(content, **arrays)
            archive.writestr(f"0/{name}.npz", content.getvalue())
    return buffer.getvalue()


def send(client: TestClient, key: dict[str, str], content: bytes, route: str = "publish", **form: Any) -> Any:
    golden = form.pop("golden", None)
    files = {"file": ("upload", content)} | ({"golden": ("golden.zip", golden)} if golden else {})
    return client.post(f"/api/v1/{route}", headers=key, files=files, data=form)


def code_of(answer: Any) -> str:
    return f"{answer.status_code} {answer.json()['error']['code']}"


def nothing_is_left(market: Market) -> bool:
    with reading(market.engine) as session:
        versions = list(session.exec(select(ModelVersion)))
    scratch = market.settings.home / "tmp"
    return not versions and not list(market.blobs.hashes()) and not (scratch.is_dir() and list(scratch.iterdir()))


def test_a_zipped_bundle_is_published(client, keys, bundle):
    answer = send(client, keys["publisher"], zipped(bundle), name="acme/linear")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["name"], body["version"], body["state"], body["digest"]) == (
        "acme/linear",
        1,
        "inspected",
        bundle.digest,
    )
    assert body["report"]["passed"]
    page = client.get("/api/v1/models/acme/linear", headers=keys["publisher"]).json()
    assert [version["version"] for version in page["versions"]] == [1]


def test_a_bundle_has_a_name_of_its_own_and_may_be_given_another(client, keys, bundle):
    assert send(client, keys["publisher"], zipped(bundle)).json()["name"] == "acme/linear"
    assert send(client, keys["publisher"], zipped(bundle), name="acme--renamed").json()["name"] == "acme/renamed"


def test_a_bare_graph_is_published_privately_with_its_golden_samples(client, keys):
    answer = send(client, keys["publisher"], onnx_bytes(), name="acme/bare", private="true", golden=golden_zip())
    assert answer.status_code == 201, answer.text
    assert answer.json()["report"]["golden"]


def test_golden_samples_that_are_not_reproduced_are_an_error(client, market, keys):
    wrong = send(client, keys["publisher"], onnx_bytes(3), name="acme/bare", private="true", golden=golden_zip())
    assert code_of(wrong) == "422 INSPECTION_FAILED"
    assert nothing_is_left(market)


def test_what_fails_inspection_answers_with_the_report_and_leaves_nothing(client, market, keys):
    answer = send(client, keys["publisher"], onnx_bytes(), name="acme/bare")
    assert code_of(answer) == "422 INSPECTION_FAILED"
    report = answer.json()["error"]["details"]["report"]
    assert {"CARD_LICENCE_MISSING", "CARD_TASK_MISSING"} <= {finding["code"] for finding in report["findings"]}
    assert nothing_is_left(market)


def test_an_inspection_keeps_nothing(client, market, keys, bundle):
    answer = send(client, keys["publisher"], zipped(bundle), "inspect", name="acme/linear")
    assert (answer.status_code, answer.json()["report"]["passed"]) == (200, True)
    assert nothing_is_left(market)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pickle.dumps({"a": 1}, protocol=4), "422 MODEL_IS_PICKLE"),
        (b"\x89HDF rest of it", "422 MODEL_NOT_ONNX"),
        (b"", "422 MODEL_NOT_ONNX"),
        (onnx_bytes()[:-20], "422 MODEL_NOT_ONNX"),
        (b"PK\x03\x04 not really a zip", "422 BUNDLE_NOT_ZIP"),
    ],
)
def test_a_file_that_is_no_model_is_named_for_what_it_is(client, market, keys, content, expected):
    answer = send(client, keys["publisher"], content, name="acme/x", private="true")
    assert code_of(answer) == expected
    assert answer.json()["error"]["remedy_zh"]
    assert nothing_is_left(market)


def test_weights_in_another_file_do_not_pass_as_a_bare_graph(client, market, keys, tmp_path):
    model = graph_of(weights_of())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    answer = send(client, keys["publisher"], (tmp_path / "m.onnx").read_bytes(), name="acme/x", private="true")
    assert code_of(answer) == "422 MODEL_EXTERNAL_DATA"
    assert nothing_is_left(market)


def test_half_a_zip_is_refused_whole(client, market, keys, bundle):
    content = zipped(bundle)
    answer = send(client, keys["publisher"], content[: len(content) // 2], name="acme/linear")
    assert code_of(answer) == "422 BUNDLE_NOT_ZIP"
    assert nothing_is_left(market)


def test_an_upload_over_the_limit_is_refused_declared_or_not(client, market, keys):
    market.settings.max_upload_bytes = 1000
    assert code_of(send(client, keys["publisher"], b"x" * 5000, name="acme/x")) == "413 UPLOAD_TOO_LARGE"
    assert code_of(send(client, keys["publisher"], b"x" * (2 << 20), name="acme/x")) == "413 UPLOAD_TOO_LARGE"
    parts = iter([b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n', *[b"x" * 65536] * 40])
    answer = client.post(
        "/api/v1/publish",
        headers=keys["publisher"] | {"Content-Type": "multipart/form-data; boundary=b"},
        content=parts,
    )
    assert code_of(answer) == "413 UPLOAD_TOO_LARGE"
    assert nothing_is_left(market)


def test_a_connection_lost_halfway_leaves_nothing(market, keys):
    """The ASGI messages of a client that goes away in the middle of its file."""
    app = create_api(market)
    headers = [
        (b"authorization", keys["publisher"]["Authorization"].encode()),
        (b"content-type", b"multipart/form-data; boundary=b"),
        (b"content-length", b"5000000"),
    ]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 2_000_000
    messages = iter([{"type": "http.request", "body": head, "more_body": True}, {"type": "http.disconnect"}])
    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/publish", "headers": headers, "query_string": b"",
        "http_version": "1.1", "scheme": "http", "server": ("t", 80), "client": ("t", 1), "root_path": "", "app": app,
    }  # fmt: skip

    async def receive() -> Any:
        return next(messages)

    async def go() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        with contextlib.suppress(ClientDisconnect):  # the framework may let a vanished client's disconnect through
            await app(scope, receive, send)
        return sent

    asyncio.run(go())
    assert nothing_is_left(market)


def test_who_may_not_publish_is_told_so_before_the_file_is_read(client, market, keys):
    assert code_of(send(client, {}, b"x", name="acme/x")) == "401 KEY_MISSING"
    assert code_of(send(client, keys["user"], b"x", name="acme/x")) == "403 SCOPE_MISSING"
    assert code_of(send(client, keys["other"], onnx_bytes(), name="acme/x", private="true")) == "403 NOT_YOUR_NAME"
    assert nothing_is_left(market)


def test_a_form_without_its_parts_is_refused_by_name(client, keys):
    answer = client.post("/api/v1/publish", headers=keys["publisher"], data={"name": "acme/x"})
    assert (code_of(answer), answer.json()["error"]["field"]) == ("400 REQUEST_INVALID", "file")
    answer = send(client, keys["publisher"], onnx_bytes())
    assert (code_of(answer), answer.json()["error"]["field"]) == ("400 REQUEST_INVALID", "name")
    answer = send(client, keys["publisher"], onnx_bytes(), name="UPPER/x")
    assert code_of(answer) == "400 NAME_INVALID"


def test_a_report_is_read_by_those_who_see_the_version(client, keys, bundle):
    version = send(client, keys["publisher"], zipped(bundle), name="acme/linear").json()["version_id"]
    mine = client.get(f"/api/v1/versions/{version}/report", headers=keys["user"])
    assert (mine.status_code, mine.json()["name"], mine.json()["report"]["passed"]) == (200, "acme/linear", True)
    for key, wanted in ((keys["other"], version), (keys["publisher"], "ver_nothing")):
        assert code_of(client.get(f"/api/v1/versions/{wanted}/report", headers=key)) == "404 MODEL_NOT_FOUND"


def test_the_form_is_described_in_the_openapi_document(client):
    document = client.get("/openapi.json").json()
    form = document["paths"]["/api/v1/publish"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "name", "private", "golden"}


def test_more_uploads_at_once_than_the_bound_are_refused_with_when_to_come_back(
    client: TestClient, keys: dict[str, dict[str, str]], market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.catalogue.publishing_api.GATE", PublishingGate(at_once=0, waiting=0))
    for path in ("/api/v1/publish", "/api/v1/inspect"):
        answer = client.post(
            path, files={"file": ("m.onnx", onnx_bytes())}, data={"name": "acme/m"}, headers=keys["publisher"]
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "PUBLISHING_BUSY")
        assert answer.headers["retry-after"]
    assert nothing_is_left(market)
