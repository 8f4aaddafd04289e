"""Bad input, end to end: each gets a clear refusal in both languages with a stable code and a remedy; nothing is half
published, nothing is charged, and another factory's calls go on meanwhile.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import socket
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.killnine.books import faults_of_api, half_published
from tests.killnine.jobs import runner_of, start_job
from tests.killnine.town import wait_until
from tests.live import LiveMarket
from tests.marketplace.bundles import linear_manifest, linear_onnx
from tests.neighbours import SteadyCaller, ask, neighbour, starter

TABULAR = "lingnan/machine-failure-linear"  # six features, subscribed to by the factory
STEADY = "lingnan/steel-faults-linear"
PRIVATE = "demo-factory/bad-input"
V2 = "/v2/models/{}/infer"
FLAT = TABULAR.replace("/", "--")
JSON = {"content-type": "application/json"}
MIB = 1 << 20
Files = dict[str, tuple[str, bytes]]


@dataclass(frozen=True)
class Bad:
    """One request that must be refused. `first`: the code of the inspection's first error, where there is one."""

    name: str
    status: int
    code: str
    path: str
    content: Callable[[], bytes | Iterator[bytes]] | bytes | None = None
    files: Callable[[], Files] | None = None
    form: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    user: str = "factory"
    method: str = "POST"
    first: str = ""


# --- what is published ------------------------------------------------------------------------------------------------


def outside_data() -> bytes:
    """A graph whose weights claim to lie in /etc/passwd's folder."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="../../../etc/passwd")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [weights],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def disagreeing() -> bytes:
    """A graph that adds a text to a number."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array(["a"], object), "w")],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def custom_domain() -> bytes:
    model = onnx.load_from_string(linear_onnx())
    model.graph.node[0].domain = "evil.corp"
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))
    return bytes(model.SerializeToString())


def bundle(**entries: bytes) -> bytes:
    """A zip with a manifest and a graph; `entries` (dots in names as `__`) replace or add."""
    manifest = linear_manifest(PRIVATE).model_dump_json(by_alias=True).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ({"manifest.json": manifest, "model.onnx": linear_onnx()} | entries).items():
            archive.writestr(name, content)
    return stream.getvalue()


def bundle_with(name: str, content: bytes) -> bytes:
    return bundle(**{name: content})


def wrong_golden() -> bytes:
    """Golden samples that the graph does not reproduce."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, arrays in (("inputs", {"x": np.ones((1, 4), np.float32)}), ("outputs", {"y": np.ones((1, 1))})):
            content = io.BytesIO()
            np.savez(content, **{key: value.astype(np.float32) for key, value in arrays.items()})
            archive.writestr(f"0/{name}.npz", content.getvalue())
    return stream.getvalue()


def published(content: Callable[[], bytes] | bytes, filename: str = "model.onnx") -> Callable[[], Files]:
    return lambda: {"file": (filename, content() if callable(content) else content)}


def publishing(name: str, content: Callable[[], bytes] | bytes, first: str, **changes: Any) -> Bad:
    """A private publication that the inspection refuses, with the code of its first finding."""
    facts: dict[str, Any] = {"status": 422, "code": "INSPECTION_FAILED", "path": "/api/v1/publish", "first": first,
                             "files": published(content), "form": {"name": PRIVATE, "private": "true"},
                             "user": "engineer"}  # fmt: skip
    return Bad(name, **(facts | changes))


def refused_upload(name: str, content: Callable[[], bytes] | bytes, status: int, code: str, **changes: Any) -> Bad:
    """A publication that is refused before there is anything to inspect."""
    return publishing(name, content, "", status=status, code=code, **changes)


PUBLISHED = [
    refused_upload("malformed", b"this is no model at all", 422, "MODEL_NOT_ONNX"),
    refused_upload("empty", b"", 422, "MODEL_NOT_ONNX"),
    refused_upload("cut in half", lambda: linear_onnx()[: len(linear_onnx()) // 2], 422, "MODEL_NOT_ONNX"),
    refused_upload("pickle", lambda: pickle.dumps({"weights": [1.0] * 100}), 422, "MODEL_IS_PICKLE"),
    refused_upload("old pickle", lambda: pickle.dumps({"weights": [1.0]}, protocol=0), 422, "MODEL_NOT_ONNX"),
    refused_upload("data elsewhere", outside_data, 422, "MODEL_EXTERNAL_DATA"),
    publishing("data outside", lambda: bundle_with("model.onnx", outside_data()), "EXTERNAL_DATA_OUTSIDE"),
    publishing("types disagree", disagreeing, "GRAPH_NOT_LOADED"),
    publishing("custom operator", custom_domain, "DOMAIN_NOT_ALLOWED"),
    publishing(
        "golden differs",
        linear_onnx,
        "GOLDEN_MISMATCH",
        files=lambda: {"file": ("m.onnx", linear_onnx()), "golden": ("golden.zip", wrong_golden())},
    ),
    publishing("program in a bundle", lambda: bundle_with("setup.py", b"import os"), "FILE_NOT_ALLOWED"),
    publishing("pickle in a bundle", lambda: bundle_with("weights.bin", pickle.dumps([1])), "FILE_IS_PICKLE"),
    publishing("checkpoint", lambda: bundle_with("archive/data.pkl", pickle.dumps([1])), "FILE_IS_PICKLE"),
    refused_upload("path outside", lambda: bundle_with("../outside.txt", b"x"), 400, "FILE_NAME_INVALID"),
    refused_upload("zip bomb", lambda: bundle_with("model.onnx", bytes(64 * MIB)), 413, "ZIP_BOMB"),
    refused_upload("half a zip", lambda: bundle()[: len(bundle()) // 2], 422, "BUNDLE_NOT_ZIP"),
    refused_upload("broken manifest", lambda: bundle_with("manifest.json", b"{"), 422, "MANIFEST_INVALID"),
    refused_upload("another's name", linear_onnx, 403, "NOT_YOUR_NAME", form={"name": "dongzhi/x", "private": "1"}),
    refused_upload("unlawful name", linear_onnx, 400, "NAME_INVALID", form={"name": "Not A Name", "private": "1"}),
    refused_upload("no name", linear_onnx, 400, "REQUEST_INVALID", form={"private": "true"}),
    refused_upload("no file", b"", 400, "REQUEST_INVALID", files=lambda: {"golden": ("g.zip", b"")}),
    refused_upload("key may not publish", linear_onnx, 403, "SCOPE_MISSING", user="caller"),
    refused_upload("no key", linear_onnx, 401, "KEY_MISSING", user=""),
]


# --- what is called ---------------------------------------------------------------------------------------------------


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "features", "datatype": "FP32", "shape": [1, 6], "data": [0.0] * 6} | changes


def inference(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | more).encode()


def calling(name: str, content: Callable[[], bytes] | bytes, status: int, code: str, **changes: Any) -> Bad:
    facts: dict[str, Any] = {"path": V2.format(FLAT), "content": content, "headers": JSON, "user": "caller"}
    return Bad(name, status, code, **(facts | changes))


def using(name: str, content: bytes, status: int, code: str, kind: str = "application/json", **changes: Any) -> Bad:
    facts: dict[str, Any] = {"path": f"/v1/use/{TABULAR}", "content": content, "headers": {"content-type": kind},
                             "user": "caller"}  # fmt: skip
    return Bad(name, status, code, **(facts | changes))


GOOD = inference(tensor())
BINARY = {"inference-header-content-length": "10", "content-type": "application/octet-stream"}
ROW = b'{"inputs": {"no_such_feature": 1}}'
CALLED = [
    calling("wrong dtype", inference(tensor(datatype="INT64", data=[0] * 6)), 400, "TENSOR_DTYPE"),
    calling("no dtype", inference(tensor(datatype="FLOAT")), 400, "REQUEST_FIELD"),
    calling("wrong shape", inference(tensor(shape=[1, 5], data=[0.0] * 5)), 400, "TENSOR_SHAPE"),
    calling("wrong rank", inference(tensor(shape=[6])), 400, "TENSOR_SHAPE"),
    calling("negative shape", inference(tensor(shape=[-1, 6])), 400, "REQUEST_FIELD"),
    calling("huge shape", inference(tensor(shape=[1 << 40, 6])), 400, "REQUEST_FIELD"),
    calling("values miscounted", inference(tensor(data=[0.0] * 5)), 400, "TENSOR_DATA"),
    calling("values are words", inference(tensor(data=["a"] * 6)), 400, "TENSOR_DATA"),
    calling("wrong name", inference(tensor(name="featrues")), 400, "TENSOR_UNKNOWN"),
    calling("no tensors", inference(), 400, "TENSOR_MISSING"),
    calling("unknown output", inference(tensor(), outputs=[{"name": "nothing"}]), 400, "OUTPUT_UNKNOWN"),
    calling("no json", b"{", 400, "REQUEST_JSON"),
    calling("empty body", b"", 400, "REQUEST_JSON"),
    calling("not an object", b"[]", 400, "REQUEST_FIELD"),
    calling("binary cut short", b'{"inputs":[', 400, "REQUEST_JSON", headers=BINARY),
    calling("unknown model", GOOD, 404, "MODEL_NOT_FOUND", path=V2.format("dongzhi--nothing")),
    calling("unknown version", GOOD, 404, "MODEL_NOT_FOUND", path=f"/v2/models/{FLAT}/versions/99/infer"),
    calling("unlawful model", GOOD, 404, "NO_SUCH_PATH", path=V2.format("..%2F..%2Fetc")),
    calling(
        "another's private model", GOOD, 404, "MODEL_NOT_FOUND", path=V2.format("demo-factory--kept"), user="vendor"
    ),
    calling("no key", GOOD, 401, "KEY_MISSING", user=""),
    calling("unknown key", GOOD, 401, "KEY_INVALID", headers=JSON | {"authorization": "Bearer am_nonsense"}),
    calling("revoked key", GOOD, 401, "KEY_REVOKED", user="revoked"),
    calling("key may not call", GOOD, 403, "SCOPE_MISSING", user="chooser"),
    calling("body over the limit", lambda: b" " * (64 * MIB + 1), 413, "BODY_TOO_LARGE"),
    calling(
        "body unpacks over the limit",
        lambda: gzip.compress(b" " * (65 * MIB), 1),
        413,
        "BODY_TOO_LARGE",
        headers=JSON | {"content-encoding": "gzip"},
    ),
    calling("body badly packed", b"no gzip", 400, "BODY_ENCODING", headers=JSON | {"content-encoding": "gzip"}),
    calling("deadline no number", GOOD, 400, "REQUEST_FIELD", headers=JSON | {"x-deadline-ms": "soon"}),
    calling("deadline passed", GOOD, 400, "REQUEST_FIELD", headers=JSON | {"x-deadline-ms": "0"}),
    calling("not subscribed", GOOD, 402, "SUBSCRIPTION_REQUIRED", user="stranger"),
    using("csv without the column", b"a,b\n1,2\n", 400, "COLUMN_MISSING", "text/csv"),
    using("csv without rows", b"", 400, "TABLE_EMPTY", "text/csv"),
    using("csv that is none", bytes(range(256)) * 4, 400, "TABLE_UNREADABLE", "text/csv"),
    using("unknown feature", ROW, 400, "FEATURE_UNKNOWN"),
    using("feature missing", b'{"inputs": {"torque": 1}}', 400, "FEATURE_MISSING"),
    using("no rows", b'{"inputs": []}', 400, "REQUEST_FIELD"),
    using("no json for a row", b"{", 400, "REQUEST_JSON"),
    using("unknown model by name", ROW, 404, "MODEL_NOT_FOUND", path="/v1/use/dongzhi/nothing"),
    using(
        "no picture",
        b"this is no picture",
        400,
        "IMAGE_UNREADABLE",
        "image/png",
        path="/v1/use/dongzhi/board-defects-conv",
    ),
    using("no such path", b"{}", 404, "NO_SUCH_PATH", path="/v1/nothing"),
]


HUGE = "9" * 30


def asking(name: str, path: str, code: str = "NUMBER_OUT_OF_RANGE", status: int = 400, **changes: Any) -> Bad:
    facts: dict[str, Any] = {"method": "GET", "user": "operator"}
    return Bad(name, status, code, path, **(facts | changes))


ASKED = [
    asking("instant beyond all time", f"/api/v1/usage?from_ms={HUGE}"),
    asking("version beyond all versions", f"/api/v1/models/{TABULAR}/versions/{HUGE}"),
    asking("transfer beyond all transfers", f"/api/v1/ledger/transfers/{HUGE}"),
    asking("page beyond all pages", f"/api/v1/vouchers?page={HUGE}", "REQUEST_INVALID"),
    asking("page that is no number", "/api/v1/models?page=next", "REQUEST_INVALID"),
    asking(
        "key that never ends",
        "/api/v1/keys",
        method="POST",
        headers=JSON,
        user="factory",
        content=json.dumps({"name": "a", "expires_at_ms": int(HUGE)}).encode(),
    ),
    asking(
        "form far too large",
        "/api/v1/login",
        "BODY_TOO_LARGE",
        413,
        method="POST",
        headers=JSON,
        user="",
        content=lambda: b" " * (3 * MIB),
    ),
    asking(
        "form of unsaid length too large",
        "/api/v1/login",
        "BODY_TOO_LARGE",
        413,
        method="POST",
        headers=JSON,
        user="",
        content=lambda: iter([b" " * MIB] * 3),
    ),
    asking("no json", "/api/v1/keys", "REQUEST_INVALID", method="POST", headers=JSON, content=b"{"),
    asking("wrong method", "/api/v1/pool", "METHOD_NOT_ALLOWED", 405, method="DELETE"),
    asking("no such path", "/api/v1/nothing", "NO_SUCH_PATH", 404),
]


def sampling(name: str, content: Callable[[], bytes] | bytes, status: int, code: str, **changes: Any) -> Bad:
    facts: dict[str, Any] = {"path": "/v1/sample-sets", "files": published(content, "rows.csv"), "user": "engineer"}
    return Bad(name, status, code, **(facts | changes))


def wishing(name: str, path: str, status: int, code: str, /, **wish: Any) -> Bad:
    return Bad(name, status, code, path, content=json.dumps(wish).encode(), headers=JSON, user="engineer")


TABLE = b"a,b\n" + b"1,2\n" * 30
SAMPLED = [
    sampling("too few rows", b"a,b\n1,2\n", 400, "SAMPLES_COUNT"),
    sampling("too many rows", b"a,b\n" + b"1,2\n" * 2000, 400, "SAMPLES_COUNT"),
    sampling("no such label", TABLE, 400, "COLUMN_MISSING", form={"label_column": "c"}),
    sampling("a line too short", TABLE + b"1\n", 400, "ROW_LENGTH"),
    sampling("no table", bytes(range(256)) * 10, 400, "TABLE_UNREADABLE"),
    sampling("half a zip", lambda: bundle()[:200], 400, "SAMPLES_UNREADABLE"),
    sampling("no pictures in it", lambda: bundle(), 400, "SAMPLES_COUNT"),
    sampling("table too large", lambda: b"1" * (65 * MIB), 413, "SAMPLES_TOO_LARGE"),
    sampling("no file", b"", 400, "REQUEST_FIELD", files=lambda: {"other": ("", b"")}),
    sampling("key may not choose", TABLE, 403, "SCOPE_MISSING", user="caller"),
    wishing("choose without samples", "/v1/choose", 400, "CHOOSE_REQUEST_INVALID"),
    wishing("choose on unknown samples", "/v1/choose", 404, "SAMPLES_NOT_FOUND", sample_set_id="smp_nothing"),
    wishing("adapt by an unknown recipe", "/v1/adapt", 404, "RECIPE_NOT_FOUND", recipe="alchemy"),
    wishing(
        "adapt on unknown samples",
        "/v1/adapt",
        404,
        "SAMPLE_SET_NOT_FOUND",
        recipe="tabular_retrain",
        sample_set_id="smp_nothing",
        name="x",
    ),
]


# --- who calls --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(live_market: LiveMarket) -> dict[str, httpx.Client]:
    """Keys of the factory made for this: one that may only call (`caller`), one for choosing, one revoked; and a
    stranger who has subscribed to something else."""
    factory = live_market.client("factory")
    found = {name: live_market.client(name) for name in ("", "factory", "engineer", "vendor", "operator")}
    for name, scopes in (("caller", ["use"]), ("chooser", ["choose"]), ("revoked", ["use"])):
        made = ask(factory.post("/api/v1/keys", json={"name": name, "scopes": scopes}))
        found[name] = live_market.client()
        found[name].headers["authorization"] = f"Bearer {made['key']}"
        found[name].headers["x-key-id"] = made["id"]
    found["stranger"] = neighbour(live_market, 82, STEADY)
    ask(found["revoked"].post(V2.format(FLAT), content=GOOD, headers=JSON))
    ask(factory.delete(f"/api/v1/keys/{found['revoked'].headers['x-key-id']}"))
    files = {"file": ("m.onnx", linear_onnx())}
    ask(found["engineer"].post("/api/v1/publish", files=files, data={"name": "demo-factory/kept", "private": "true"}))
    return found


@pytest.fixture(scope="module", autouse=True)
def others_do_not_notice(live_market: LiveMarket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Another factory calls all the while; each of its answers is right."""
    caller = SteadyCaller(
        neighbour(live_market, 81, STEADY), starter(STEADY, tmp_path_factory.mktemp("steady") / "b"), 3
    )
    caller.start()
    yield
    caller.stop()
    assert caller.failures == []
    assert caller.answered > 50


def send(users: dict[str, httpx.Client], bad: Bad) -> httpx.Response:
    client = users[bad.user]
    if bad.files is not None:
        return client.request(bad.method, bad.path, files=bad.files(), data=bad.form)
    content = bad.content() if callable(bad.content) else bad.content
    return client.request(bad.method, bad.path, content=content, headers=bad.headers)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The refusal's parts: beside `error` on the Open Inference surface, under it everywhere else."""
    body = answer.json()
    return body if isinstance(body["error"], str) else body["error"]


def assert_clear(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code), answer.text[:1500]
    for part in ("message", "message_zh", "remedy", "remedy_zh"):
        assert error[part], f"{part} is missing: {error}"
    assert any("\u4e00" <= letter <= "\u9fff" for letter in error["message_zh"]), error
    assert answer.headers["x-request-id"] == error["request_id"]
    return error


def nothing_published(market: LiveMarket, users: dict[str, httpx.Client]) -> None:
    assert users["engineer"].get(f"/api/v1/models/{PRIVATE}").status_code == 404
    assert half_published(market.home) == []
    assert [path.name for path in (market.home / "tmp").iterdir()] == []


@pytest.mark.parametrize("bad", PUBLISHED, ids=[bad.name for bad in PUBLISHED])
def test_what_must_not_be_published_is_refused_whole(live_market, users, bad):
    error = assert_clear(send(users, bad), bad.status, bad.code)
    if bad.first:
        findings = error["details"]["report"]["findings"]
        errors = [finding for finding in findings if finding["severity"] == "error"]
        assert errors[0]["code"] == bad.first, errors
        assert all(each[part] for each in errors for part in ("zh", "en", "remedy_zh", "remedy_en")), errors
    nothing_published(live_market, users)


@pytest.mark.parametrize("bad", ASKED, ids=[bad.name for bad in ASKED])
def test_a_question_that_makes_no_sense_is_answered_with_what_is_wrong(users, bad):
    assert_clear(send(users, bad), bad.status, bad.code)


@pytest.mark.parametrize("bad", SAMPLED, ids=[bad.name for bad in SAMPLED])
def test_samples_and_wishes_that_cannot_be_met_are_refused(live_market, users, bad):
    kept = sorted((live_market.home / "samples").iterdir())
    assert_clear(send(users, bad), bad.status, bad.code)
    assert sorted((live_market.home / "samples").iterdir()) == kept


@pytest.mark.parametrize("bad", CALLED, ids=[bad.name for bad in CALLED])
def test_a_wrong_call_is_refused_in_both_languages_with_the_remedy(users, bad):
    answer = send(users, bad)
    assert_clear(answer, bad.status, bad.code)
    assert "x-usage-id" not in answer.headers


# --- uploads that never end -------------------------------------------------------------------------------------------


def raw_upload(market: LiveMarket, body: bytes, declared: int, *, hang_up: bool = False) -> bytes:
    """Send so much of a multipart upload on a bare socket; what came back until either side hung up."""
    head = (
        f"POST /api/v1/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {market.keys['engineer']}\r\n"
        f"Connection: close\r\nContent-Type: multipart/form-data; boundary=edge\r\nContent-Length: {declared}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", market.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        if hang_up:
            return b""
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return answer


def multipart(content: bytes, end: bytes = b"\r\n--edge--\r\n") -> bytes:
    fields = b"".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("name", PRIVATE), ("private", "true"))
    )
    start = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
    return fields + start + content + end


def test_an_upload_that_breaks_off_leaves_nothing_behind(live_market, users):
    whole = multipart(linear_onnx())
    logged = len(live_market.log)
    for sent in (100, len(whole) // 2, len(whole) - 1):
        raw_upload(live_market, whole[:sent], len(whole), hang_up=True)
    wait_until(lambda: live_market.log[logged:].count("REQUEST_INCOMPLETE") == 3, 20, "each was noticed")
    nothing_published(live_market, users)
    assert "Traceback" not in live_market.log[logged:]


def test_a_form_without_its_end_is_refused(live_market, users):
    whole = multipart(linear_onnx(), end=b"")
    answer = raw_upload(live_market, whole, len(whole))
    assert answer.startswith(b"HTTP/1.1 4"), answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message_zh"]
    assert error["remedy_zh"]
    nothing_published(live_market, users)


def test_an_upload_over_the_limit_is_refused_by_its_length_alone(live_market, users):
    answer = raw_upload(live_market, b"", 2 << 30)
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "UPLOAD_TOO_LARGE"
    nothing_published(live_market, users)


def test_the_name_that_was_refused_can_still_be_published(live_market, users):
    """Nothing of the refused uploads stands in the way; afterwards the name is the engineer's to withdraw."""
    form = {"name": "demo-factory/after-all", "private": "true"}
    made = ask(users["engineer"].post("/api/v1/publish", files={"file": ("m.onnx", linear_onnx())}, data=form))
    assert (made["version"], made["state"]) == (1, "inspected")


# --- vouchers ---------------------------------------------------------------------------------------------------------

FILED = "dongzhi/machine-failure-boosting"  # 0.37 fen a row, a third of it the voucher's
FACE_FEN = 30


def with_voucher(market: LiveMarket, number: int) -> httpx.Client:
    """A further factory with a voucher of its own over `FACE_FEN`, that takes a filed model and never pays alone."""
    client, operator = neighbour(market, number, STEADY), market.client("operator")
    owner = market.client()
    login = {"email": f"n{number}@example.com", "password": "a long sentence of ours"}
    ask(owner.post("/api/v1/login", json=login))
    body = {"programme": "demo-deduct", "requested_fen": FACE_FEN, "purpose": "test"}
    application = ask(owner.post("/api/v1/applications", json=body))["id"]
    ask(owner.post(f"/api/v1/applications/{application}/submit"))
    for step in ("check", "approve", "publish", "confirm"):
        ask(operator.post(f"/api/v1/applications/{application}/{step}", json={"note": "test"}))
    voucher = ask(operator.post("/api/v1/vouchers", json={"application_id": application}))["id"]
    ask(market.client("operator2").post(f"/api/v1/vouchers/{voucher}/approve", json={"note": "test"}))
    terms = {"listing": FILED, "contract_fen": 1_000, "on_voucher_end": "refuse"}
    ask(owner.post("/api/v1/subscriptions", json=terms))
    client.headers["x-voucher"] = voucher
    return client


def call_filed(client: httpx.Client, rows: int) -> httpx.Response:
    body = inference({"name": "features", "datatype": "FP32", "shape": [rows, 6], "data": [1.0] * 6 * rows})
    return client.post(V2.format(FILED.replace("/", "--")), content=body, headers=JSON)


def posted(market: LiveMarket, client: httpx.Client, calls: int) -> dict[str, Any]:
    """The voucher once so many calls are posted against it."""
    operator, voucher = market.client("operator"), client.headers["x-voucher"]

    def rows() -> list[Any]:
        query = {"model": f"{FILED}@1", "page_size": 1000}
        found = ask(operator.get("/api/v1/usage", params=query))["items"]
        return [row for row in found if row["voucher_id"] == voucher]

    wait_until(lambda: len(rows()) >= calls, 30, "the calls are posted")
    assert len(rows()) == calls
    found = ask(operator.get(f"/api/v1/vouchers/{voucher}"))
    assert found["used_fen"] == sum(row["amount_micro"] for row in rows()) // 3_000_000
    return found


def test_an_exhausted_voucher_is_refused_and_pays_not_a_fen_over_its_face(live_market, users):
    client = with_voucher(live_market, 83)
    answers = [call_filed(client, 10) for _ in range(40)]
    served = [answer for answer in answers if answer.status_code == 200]
    refused = answers[len(served) :]
    assert {answer.status_code for answer in refused} == {402}
    for answer in refused:
        assert_clear(answer, 402, "VOUCHER_EXHAUSTED")
    assert len(served) == 24  # 3.7 fen a call, 1.2333 of it the voucher's: the 25th would make 30.83
    assert posted(live_market, client, len(served))["used_fen"] <= FACE_FEN


def test_an_expired_voucher_pays_nothing(live_market, users):
    client = with_voucher(live_market, 84)
    lapse(live_market, client.headers["x-voucher"])
    assert_clear(call_filed(client, 10), 402, "VOUCHER_EXPIRED")
    assert posted(live_market, client, 0)["used_fen"] == 0


def lapse(market: LiveMarket, voucher: str) -> None:
    """As if its year had passed: nothing in the API turns the calendar."""
    with sqlite3.connect(market.home / "market.db", timeout=30) as database:
        database.execute("UPDATE voucher SET use_by = '2020-01-01' WHERE id = ?", (voucher,))


def test_a_suspended_voucher_pays_nothing_until_it_is_resumed(live_market, users):
    client, operator = with_voucher(live_market, 85), live_market.client("operator")
    assert call_filed(client, 10).status_code == 200
    ask(operator.post(f"/api/v1/vouchers/{client.headers['x-voucher']}/suspend", json={"note": "test"}))
    assert_clear(call_filed(client, 10), 402, "VOUCHER_SUSPENDED")
    ask(operator.post(f"/api/v1/vouchers/{client.headers['x-voucher']}/resume"))
    assert call_filed(client, 10).status_code == 200
    assert posted(live_market, client, 2)["used_fen"] == 2


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_whose_process_is_killed_fails_clearly_and_publishes_nothing(live_market, users):
    engineer = users["engineer"]
    job = start_job(engineer, "killed")
    wait_until(lambda: runner_of(live_market.pid, job["id"]), 60, "the training runs")
    runner = runner_of(live_market.pid, job["id"])
    assert runner is not None
    runner.kill()
    path = f"/v1/adapt/{job['id']}"
    wait_until(lambda: ask(engineer.get(path))["state"] not in ("queued", "running"), 60, "the job ends")
    ended = ask(engineer.get(path))
    assert (ended["state"], ended["error"]["code"]) == ("failed", "JOB_KILLED")
    assert all(ended["error"][part] for part in ("message", "message_zh", "remedy", "remedy_zh"))
    assert engineer.get("/api/v1/models/demo-factory/killed").status_code == 404
    assert [each.name for each in (live_market.home / "jobs" / job["id"]).iterdir() if each.is_dir()] == []
    nothing_published(live_market, users)


# --- money ------------------------------------------------------------------------------------------------------------


def test_not_one_of_these_calls_was_charged(live_market, users):
    """The last of this file: one good call is found in the ledger, and of all the bad ones before it none."""
    made = ask_for_usage(users["caller"].post(V2.format(FLAT), content=GOOD, headers=JSON))
    factory, key = users["factory"], users["caller"].headers["x-key-id"]

    def rows() -> list[Any]:
        return list(ask(factory.get("/api/v1/usage", params={"key_id": key}))["items"])

    wait_until(rows, 30, "the good call is posted")
    assert [row["usage_id"] for row in rows()] == [made]
    assert ask(users["vendor"].get("/api/v1/usage", params={"model": "demo-factory/kept"}))["items"] == []
    assert faults_of_api(live_market.client("operator")) == []


def ask_for_usage(answer: httpx.Response) -> str:
    ask(answer)
    return str(answer.headers["x-usage-id"])
