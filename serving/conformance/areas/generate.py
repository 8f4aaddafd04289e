"""Area generate: Triton's text-oriented endpoints, one JSON object in and one out, or a stream of events."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from serving.conformance.checks import Area, expect, triton
from serving.conformance.kit import ABSENT, JSON_HEADERS, Kit
from serving.conformance.tensors import flat
from serving.conformance.wire import Exchange, strict_json

AREA = Area("generate", "G", "文本生成接口")
CLAIM = "generate"
MODEL = "text"
_about = partial(triton, "generate")
_ONE = _about(
    "generate vs. generate_stream", "returns exactly 1 response JSON object with a Content-Type of application/json"
)
_STREAM = _about(
    "generate vs. generate_stream", "may return multiple responses, with a Content-Type of text/event-stream"
)
_DATA = _about(
    "generate vs. generate_stream",
    'each response will be a "data" chunk in the HTTP response body (Server-Sent Events)',
)
_SAME = _about(
    "generate vs. generate_stream", "Both URLs expect the same request, and generate the same response object."
)
_BEFORE = _about(
    "generate vs. generate_stream",
    "If the request fails before inference begins, then a JSON error will be returned with Content-Type of "
    "application/json, with the status code set to an error",
)
_RESPONSE = _about(
    "Generate Response JSON Object", '{ "model_name" : $string, "model_version" : $string, "text_output" : $string }'
)
_REQUEST = _about("Generate Request JSON Object", '{ "text_input" : $string, "parameters" : $parameters #optional }')
_MORE = _about("Generate Request JSON Object", "Any additional properties are passed either as parameters or tensors.")
_VERSION = _about("HTTP/REST", "POST v2/models/${MODEL_NAME}[/versions/${MODEL_VERSION}]/generate")
_ERROR = _about(
    "Generate Response JSON Error Object", "A failed generate request must be indicated by an HTTP error status."
)
_TEXTS = ("plain", "", '"quoted" \\ \t', "轴承 😀", "first line\n\nthird: data: line\r\n", "x" * 5000)


def _ask(kit: Kit, verb: str, document: Any, model: str | None = None, version: str | None = None) -> Exchange:
    path = kit.path(kit.name_of(MODEL) if model is None else model, verb, version)
    return kit.post(path, document if isinstance(document, bytes) else json.dumps(document).encode(), JSON_HEADERS)


def _media_type(exchange: Exchange) -> str:
    return exchange.headers.get("content-type", "").partition(";")[0].strip().lower()


def _one(exchange: Exchange) -> dict[str, Any]:
    """The object of a successful answer to `generate`."""
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)
    expect(_media_type(exchange) == "application/json", f"it says {exchange.headers.get('content-type')!r}", exchange)
    return _checked(exchange.json(), exchange)


def _events(exchange: Exchange) -> list[dict[str, Any]]:
    """The objects of a successful stream, by the text of Server-Sent Events: blank lines end an event."""
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)
    expect(_media_type(exchange) == "text/event-stream", f"it says {exchange.headers.get('content-type')!r}", exchange)
    text = exchange.body.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for event in text.split("\n\n"):
        lines = [line for line in event.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        data = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        strange = [line for line in lines if line.partition(":")[0] not in ("data", "event", "id", "retry")]
        expect(not strange, f"a line of the stream is no field: {strange[:1]}", exchange)
        expect(bool(data), "an event has no data", exchange)
        found.append(_checked(strict_json("\n".join(data).encode(), exchange), exchange))
    expect(bool(found), "the stream has no event", exchange)
    return found


def _checked(document: Any, exchange: Exchange) -> dict[str, Any]:
    expect(isinstance(document, dict), "the response is not a JSON object", exchange)
    assert isinstance(document, dict)
    for name in ("model_name", "model_version"):
        expect(isinstance(document.get(name), str), f"{name} is {document.get(name)!r}", exchange)
    return document


def _refused(kit: Kit, verb: str, document: Any, model: str | None = None) -> None:
    exchange = _ask(kit, verb, document, model)
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
    if verb == "generate_stream":
        expect(
            _media_type(exchange) == "application/json", f"it says {exchange.headers.get('content-type')!r}", exchange
        )
    exchange.error()


@AREA.extension(CLAIM, "generate: 一个 JSON 对象", "generate answers one JSON object: its fields", _ONE, needs=(MODEL,))
def one_object(kit: Kit) -> None:
    found = _one(_ask(kit, "generate", {"text_input": "a"}))
    expect(found["model_name"] == kit.name_of(MODEL), f"model_name is {found['model_name']!r}")
    expect(bool(found["model_version"]), "model_version is empty")


@AREA.extension(CLAIM, "generate: 文本原样返回", "generate: the model's text is text_output", _RESPONSE, needs=(MODEL,))
def text_comes_back(kit: Kit) -> None:
    for text in _TEXTS:
        found = _one(_ask(kit, "generate", {"text_input": text}))
        expect(found.get("text_output") == text, f"sent {text[:40]!r}, got {str(found.get('text_output'))[:60]!r}")


@AREA.extension(
    CLAIM, "generate_stream: 事件流", "generate_stream answers events of JSON objects", _STREAM, needs=(MODEL,)
)
def stream(kit: Kit) -> None:
    _events(_ask(kit, "generate_stream", {"text_input": "a"}))


@AREA.extension(
    CLAIM,
    "generate_stream: 文本完整",
    "generate_stream: the text arrives whole, line breaks too",
    _DATA,
    needs=(MODEL,),
)
def stream_text(kit: Kit) -> None:
    for text in _TEXTS:
        events = _events(_ask(kit, "generate_stream", {"text_input": text}))
        found = "".join(str(event.get("text_output", "")) for event in events)
        expect(found == text, f"sent {text[:40]!r}, got {found[:60]!r}")


@AREA.extension(CLAIM, "两个接口回答相同", "both answer the same object", _SAME, needs=(MODEL,))
def both_alike(kit: Kit) -> None:
    one = _one(_ask(kit, "generate", {"text_input": "alike"}))
    (*_, last) = _events(_ask(kit, "generate_stream", {"text_input": "alike"}))
    for name in ("model_name", "model_version", "text_output"):
        expect(one.get(name) == last.get(name), f"{name} is {one.get(name)!r}, in the stream {last.get(name)!r}")


@AREA.extension(CLAIM, "parameters 可为空", "empty parameters are lawful", _REQUEST, needs=(MODEL,))
def empty_parameters(kit: Kit) -> None:
    found = _one(_ask(kit, "generate", {"text_input": "a", "parameters": {}}))
    expect(found.get("text_output") == "a", f"text_output is {found.get('text_output')!r}")


@AREA.extension(CLAIM, "其他成员即输入张量", "members named as the inputs are tensors", _MORE, needs=("add-sub",))
def members_are_tensors(kit: Kit) -> None:
    sent = {"input0": [1, 2, 3, 4], "input1": [10, 20, 30, 40]}
    found = _one(_ask(kit, "generate", sent, kit.name_of("add-sub")))
    expect(flat(found.get("sum")) == [11, 22, 33, 44], f"sum is {found.get('sum')!r}")
    expect(flat(found.get("difference")) == [-9, -18, -27, -36], f"difference is {found.get('difference')!r}")


@AREA.extension(CLAIM, "指定版本", "a version in the path is the version that answers", _VERSION, needs=(MODEL,))
def of_a_version(kit: Kit) -> None:
    version = str(_one(_ask(kit, "generate", {"text_input": "a"}))["model_version"])
    found = _one(_ask(kit, "generate", {"text_input": "a"}, version=version))
    expect(found["model_version"] == version, f"asked for version {version}, answered by {found['model_version']}")


@AREA.extension(CLAIM, "缺少 text_input: error", "a request without its text is refused", _ERROR, needs=(MODEL,))
def without_text(kit: Kit) -> None:
    _refused(kit, "generate", {})
    _refused(kit, "generate", {"parameters": {}})


@AREA.extension(CLAIM, "JSON 有误: error", "what is no JSON object is refused", _ERROR, needs=(MODEL,))
def no_object(kit: Kit) -> None:
    for body in (b"", b"{", b"[]", b'"text"', b'{"text_input": }'):
        _refused(kit, "generate", body)


@AREA.extension(CLAIM, "模型不存在: error", "an unknown model is refused", _ERROR)
def unknown_model(kit: Kit) -> None:
    _refused(kit, "generate", {"text_input": "a"}, ABSENT)


@AREA.extension(
    CLAIM,
    "流在开始前失败: 普通 error",
    "a stream that fails before it begins is a plain error",
    _BEFORE,
    needs=(MODEL,),
)
def stream_refused(kit: Kit) -> None:
    _refused(kit, "generate_stream", {"text_input": "a"}, ABSENT)
    _refused(kit, "generate_stream", {})
    _refused(kit, "generate_stream", b"{")
