"""Area robustness: broken, hostile and hurried callers. Whatever they send, the server answers, and goes on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.conformance.checks import Area, expect, oip, rfc, v2
from serving.conformance.kit import JSON_HEADERS, Kit
from serving.conformance.tensors import json_tensor, outputs_of
from serving.conformance.wire import Exchange, strict_json

AREA = Area("robustness", "X", "健壮性")
_FAILED = oip(
    "Inference Response JSON Error Object", "A failed inference request must be indicated by an HTTP error status."
)
_LIVE = v2("Server Live", "the inference server is able to receive and respond to metadata and inference requests")
_GRAMMAR = rfc(8259, "2", "JSON-text = ws value ws")
_UTF8 = rfc(8259, "8.1", "JSON text exchanged between systems MUST be encoded using UTF-8.")
_LIMITS = rfc(
    8259, "9", "An implementation may set limits on the maximum depth of nesting and on the range of numbers."
)
_NO_NAN = rfc(8259, "6", "Numeric values that cannot be represented (such as Infinity and NaN) are not permitted.")
_LENGTH = rfc(
    9112, "6.3", "a server that receives an invalid Content-Length MUST respond with 400 and close the connection"
)
_INCOMPLETE = rfc(
    9112, "6.3", "If the sender closes the connection, the recipient MUST consider the message to be incomplete."
)
_UNSIGNED = oip("Request Input", "Each dimension must be an integer representable as an unsigned 64-bit integer value.")
_ID = oip("Inference Request JSON Object", "if specified this identifier must be returned in the response")


def _post(kit: Kit, content: bytes, model: str | None = None) -> Exchange:
    name = kit.subject if model is None else kit.name_of(model)
    return kit.post(kit.path(name, "infer"), content, JSON_HEADERS)


def _refused(kit: Kit, exchange: Exchange) -> None:
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
    exchange.error()
    kit.need_works()


def _answered(kit: Kit, exchange: Exchange, *, below: int = 500) -> None:
    """Any answer that is not the server's own failure."""
    expect(bool(exchange.status), exchange.failure, exchange)
    expect(exchange.status < below, f"{exchange.status}", exchange)
    kit.need_works()


def _with_data(text: str, datatype: str = "FP32") -> bytes:
    head = f'{{"inputs":[{{"name":"input","shape":[1],"datatype":"{datatype}","data":['
    return f"{head}{text}]}}]}}".encode()


@AREA.must("非 UTF-8 的 JSON: error", "JSON that is not UTF-8 is refused", _UTF8, needs=("identity-bytes",))
def invalid_utf8(kit: Kit) -> None:
    content = _with_data("@", "BYTES").replace(b"@", b'"\xff\xfe\xc3"')
    _refused(kit, _post(kit, content, "identity-bytes"))


@AREA.should(
    "JSON 之外的写法: error", "what JSON's grammar does not have is refused", _GRAMMAR, needs=("identity-fp32",)
)
def beyond_grammar(kit: Kit) -> None:
    for text in ("1,", "01", "+1", ".5", "0x10", "'1'", "1 2"):
        _refused(kit, _post(kit, _with_data(text), "identity-fp32"))
    _refused(kit, _post(kit, _with_data("1") + b"}", "identity-fp32"))


@AREA.must("巨大的数: 有回答", "giant numbers are answered", _LIMITS, needs=("identity-fp32", "identity-int64"))
def giant_numbers(kit: Kit) -> None:
    for text, model, datatype in (
        ("1e400", "identity-fp32", "FP32"), ("-1e39", "identity-fp32", "FP32"), ("1" * 5000, "identity-fp32", "FP32"),
        ("9" * 400, "identity-int64", "INT64"), ("18446744073709551616", "identity-int64", "INT64"),
    ):  # fmt: skip
        exchange = _post(kit, _with_data(text, datatype), model)
        expect(bool(exchange.status), exchange.failure, exchange)
        if datatype == "INT64":
            expect(exchange.status >= 400, f"{text[:30]}… as INT64 is answered with {exchange.status}", exchange)
        kit.need_works()


@AREA.should("巨大的数不是 5xx", "giant numbers are the caller's mistake: no 5xx", _FAILED, needs=("identity-int64",))
def giant_numbers_are_4xx(kit: Kit) -> None:
    for text in ("9" * 400, "18446744073709551616"):
        _answered(kit, _post(kit, _with_data(text, "INT64"), "identity-int64"))


@AREA.should("NaN 文字: 不是 5xx", "a NaN literal is read or refused: no 5xx", _NO_NAN, needs=("identity-fp32",))
def nan_in(kit: Kit) -> None:
    for text in ("NaN", "Infinity", "-Infinity"):
        _answered(kit, _post(kit, _with_data(text), "identity-fp32"))


@AREA.should(
    "输出 NaN 时响应仍为 JSON", "a response is JSON even where the model yields NaN", _NO_NAN, needs=("divide",)
)
def nan_out(kit: Kit) -> None:
    zeros = np.zeros(2, np.float32)
    exchange = kit.infer("divide", ("a", "FP32", zeros), ("b", "FP32", zeros))
    expect(bool(exchange.status), exchange.failure, exchange)
    strict_json(exchange.body, exchange)


@AREA.must("字段类型不对: error", "fields of a wrong type are refused", _FAILED)
def wrong_types(kit: Kit) -> None:
    tensor = {"name": 7, "shape": [1], "datatype": "FP32", "data": [1]}
    wrong: tuple[Any, ...] = (None, 7, "x", [None], [7], ["x"], [[]], [tensor])
    for inputs in wrong:
        _refused(kit, kit.post_json(kit.subject, {"inputs": inputs}))


@AREA.must("很长的 id: 返回或 4xx", "an id of 50 kB is returned, or refused", _ID)
def long_id(kit: Kit) -> None:
    exchange = kit.infer_subject(id="i" * 50_000)
    if exchange.status == 200:
        expect(exchange.json().get("id") == "i" * 50_000, "the id came back changed", exchange)
    else:
        expect(400 <= exchange.status < 500, f"{exchange.failure or exchange.status}", exchange)
        exchange.error()


@AREA.must("大张量: 正确或 413", "a quarter of a million numbers: right, or 413", _LIMITS, needs=("dynamic",))
def large(kit: Kit) -> None:
    x = np.arange(250_000, dtype=np.float32).reshape(500, 500)
    exchange = kit.infer("dynamic", ("x", "FP32", x))
    if exchange.status != 413:
        expect(np.array_equal(outputs_of(exchange)["y"].array, x), "the numbers came back changed", exchange)


@AREA.must("并行请求各得其所", "sixty-four parallel callers each get their own answer", _ID, needs=("add-sub",))
def parallel(kit: Kit) -> None:
    def call(index: int) -> tuple[Exchange, int]:
        sent = np.full((1, 4), index, np.int32)
        tensors = [json_tensor("input0", "INT32", sent), json_tensor("input1", "INT32", sent)]
        body = json.dumps({"id": f"caller-{index}", "inputs": tensors}).encode()
        return kit.wire.send("POST", kit.path(kit.name_of("add-sub"), "infer"), body, JSON_HEADERS), index

    with ThreadPoolExecutor(16) as pool:
        for exchange, index in pool.map(call, range(64)):
            found: Any = outputs_of(exchange)
            expect(exchange.json().get("id") == f"caller-{index}", "an answer has another caller's id", exchange)
            expect(found["sum"].array.tolist() == [[2 * index] * 4], "an answer has another caller's data", exchange)


@AREA.must("无效的 Content-Length: 400", "an invalid Content-Length is 400", _LENGTH)
def invalid_length(kit: Kit) -> None:
    head = kit.wire.head("POST", kit.path(kit.subject, "infer"), {**JSON_HEADERS, "Content-Length": "twelve"})
    exchange = kit.raw(head + b"{}", end=True)[0]
    closed = exchange.status == 0 and "closed" in exchange.failure
    expect(exchange.status == 400 or closed, f"{exchange.failure or exchange.status}, not 400", exchange)
    kit.need_works()


@AREA.must("过短的 Content-Length: 不成功", "a Content-Length that is too short cuts the JSON: refused", _FAILED)
def short_length(kit: Kit) -> None:
    body = json.dumps(kit.subject_request()).encode()
    fields = {**JSON_HEADERS, "Content-Length": str(len(body) - 10)}
    exchange = kit.raw(kit.wire.head("POST", kit.path(kit.subject, "infer"), fields) + body, end=True)[0]
    expect(exchange.status != 200, "half a request is answered with 200", exchange)
    kit.need_works()


@AREA.must("请求中断: 不算成功", "a request that breaks off is not answered as if it were whole", _INCOMPLETE)
def long_length(kit: Kit) -> None:
    body = json.dumps(kit.subject_request()).encode()
    fields = {**JSON_HEADERS, "Content-Length": str(len(body) + 10)}
    exchange = kit.raw(kit.wire.head("POST", kit.path(kit.subject, "infer"), fields) + body, end=True)[0]
    expect(exchange.status != 200, "an incomplete request is answered with 200", exchange)
    kit.need_works()


@AREA.must("调用者中途离开", "callers who hang up do no harm", _LIVE)
def abandoned(kit: Kit) -> None:
    body = json.dumps(kit.subject_request()).encode()
    fields = {**JSON_HEADERS, "Content-Length": str(len(body))}
    whole = kit.wire.head("POST", kit.path(kit.subject, "infer"), fields) + body
    for part in (1, 20, len(whole) - 20, len(whole)):
        for _ in range(5):
            kit.wire.abandon(whole[:part])
    kit.need_works()


@AREA.should("奇怪的路径: 4xx", "odd paths are refused: 4xx", _FAILED)
def odd_paths(kit: Kit) -> None:
    for path in ("v2/models/%00/infer", "v2/models/..%2f..%2fetc/infer", "v2/models/" + "n" * 3000 + "/infer"):
        exchange = kit.post(path, b"{}", JSON_HEADERS)
        expect(400 <= exchange.status < 500, f"{path[:40]}: {exchange.failure or exchange.status}", exchange)
    kit.need_works()


# The last two end servers that have no bound on them.
@AREA.must("溢出的形状: error", "shapes that overflow are refused", _UNSIGNED, needs=("dynamic",))
def overflowing_shape(kit: Kit) -> None:
    for shape in ([1 << 62, 4], [1 << 32, 1 << 32], [(1 << 64) - 1, 1], [1 << 70, 1], [1 << 63, 2]):
        tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": [1.0]}
        _refused(kit, kit.post_json(kit.name_of("dynamic"), {"inputs": [tensor]}))


@AREA.must("极深的嵌套: 有回答", "nesting 100,000 deep is answered", _LIMITS, needs=("identity-fp32",))
def deep_nesting(kit: Kit) -> None:
    depth = 100_000
    _refused(kit, _post(kit, b"[" * depth))
    exchange = _post(kit, _with_data("[" * depth + "1" + "]" * depth), "identity-fp32")
    expect(bool(exchange.status), exchange.failure, exchange)
    kit.need_works()
