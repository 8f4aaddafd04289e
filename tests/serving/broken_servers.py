"""Servers that break the protocol in one way each: a sound application whose answers are spoilt on their way out.

What spoils an answer gets the path, the request (headers and body) and the sound answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Answer = tuple[int, dict[bytes, bytes], bytes]
Break = Callable[[str, bytes, Answer], Answer]


def with_json(change: Callable[[Any], Any]) -> Break:
    """Spoil the JSON of successful answers, not that of streams."""

    def spoil(path: str, sent: bytes, answer: Answer) -> Answer:
        status, headers, body = answer
        if status != 200 or not body or b"inference-header-content-length" in headers or body.startswith(b"data:"):
            return answer
        return status, headers, json.dumps(change(json.loads(body))).encode()

    return spoil


def on(part: str, spoil: Break) -> Break:
    return lambda path, sent, answer: spoil(path, sent, answer) if part in path else answer


def set_status(status: int, body: bytes = b"{}") -> Break:
    return lambda path, sent, answer: (status, answer[1], body)


def where_error(spoil: Break) -> Break:
    return lambda path, sent, answer: spoil(path, sent, answer) if answer[0] >= 400 else answer


def where_sent(text: bytes, spoil: Break) -> Break:
    return lambda path, sent, answer: spoil(path, sent, answer) if text in sent else answer


def outputs(change: Callable[[dict[str, Any]], None]) -> Break:
    def each(document: Any) -> Any:
        for tensor in document.get("outputs", []):
            change(tensor)
        return document

    return on("/infer", with_json(each))


def without(field: str) -> Callable[[Any], Any]:
    return lambda document: {name: value for name, value in document.items() if name != field}


def as_doubles(tensor: dict[str, Any]) -> None:
    if "INT64" in tensor.get("datatype", ""):
        tensor["data"] = [int(float(item)) for item in tensor["data"]]


def big_endian(path: str, sent: bytes, answer: Answer) -> Answer:
    status, headers, body = answer
    length = int(headers.get(b"inference-header-content-length", len(body)))
    tail = b"".join(body[at : at + 4][::-1] for at in range(length, len(body), 4))
    return status, headers, body[:length] + tail


def no_length(path: str, sent: bytes, answer: Answer) -> Answer:
    return (
        answer[0],
        {name: value for name, value in answer[1].items() if not name.startswith(b"inference-")},
        answer[2],
    )


def says(content_type: bytes) -> Break:
    return lambda path, sent, answer: (answer[0], answer[1] | {b"content-type": content_type}, answer[2])


def listed_without_state(path: str, sent: bytes, answer: Answer) -> Answer:
    return answer[0], answer[1], json.dumps([{"name": each["name"]} for each in json.loads(answer[2])]).encode()


def frozen_counts(document: Any) -> Any:
    for entry in document.get("model_stats", []):
        entry["inference_count"] = entry["inference_stats"]["success"]["count"] = 1
    return document


def gzip_named(path: str, sent: bytes, answer: Answer) -> Answer:
    return answer[0], answer[1] | {b"content-encoding": b"gzip"}, answer[2]


BF16_WHOLE = b'{"outputs": [{"name": "output", "datatype": "BF16", "shape": [2], "data": [1, -2]}]}'


def widened(answer: Answer) -> Answer:
    """BF16 of four bytes an element, as of a server that answers it as floats."""
    status, headers, body = answer
    length = int(headers.get(b"inference-header-content-length", len(body)))
    tail = b"".join(b"\0\0" + body[at : at + 2] for at in range(length, len(body), 2))
    head = body[:length].replace(b'"binary_data_size":16', b'"binary_data_size":32')
    return status, headers, head + tail


def events_of_errors(path: str, sent: bytes, answer: Answer) -> Answer:
    return 200, answer[1] | {b"content-type": b"text/event-stream"}, b"data: " + answer[2] + b"\n\n"


BROKEN: dict[str, tuple[str, Break, str]] = {
    "unknown-is-ready": ("health", where_error(on("/ready", set_status(200))), "an unknown model is not ready: 4xx"),
    "never-live": ("health", on("/live", set_status(204)), "the liveness probe answers 200"),
    "no-extensions": (
        "metadata",
        with_json(without("extensions")),
        "the server's metadata has name, version and extensions",
    ),
    "fixed-dimensions": (
        "metadata",
        with_json(lambda found: json.loads(json.dumps(found).replace("-1", "1"))),
        "variable-size dimensions are -1",
    ),
    "no-id": ("infer-json", on("/infer", with_json(without("id"))), "the request's id is returned"),
    "one-off": (
        "infer-json",
        outputs(lambda tensor: tensor.update(data=[each + 1 for each in tensor["data"]])),
        "flat data: right values",
    ),
    "all-outputs": (
        "infer-json",
        outputs(lambda tensor: tensor.update(name="sum")),
        "only the outputs asked for are returned",
    ),
    "big-endian": ("infer-binary", big_endian, "binary_data_output for all"),
    "no-header": ("infer-binary", no_length, "the header gives the JSON's length"),
    "detail": ("errors", where_error(set_status(422, b'{"detail": []}')), "an empty body"),
    "all-is-well": ("errors", where_error(set_status(200, b'{"outputs": []}')), "an input that is missing"),
    "blames-itself": (
        "errors",
        where_error(lambda path, sent, answer: (500, answer[1], answer[2])),
        "a caller's mistake is a 4xx, not the server's 5xx",
    ),
    "doubles": ("datatypes", outputs(as_doubles), "INT64 comes back as it went"),
    "ascii": (
        "datatypes",
        outputs(lambda tensor: tensor.update(data=[str(each)[:100] for each in tensor["data"]])),
        "BYTES comes back as it went",
    ),
    "flat-shape": (
        "shapes",
        outputs(lambda tensor: tensor.update(shape=[len(tensor["data"])])),
        "a scalar has the shape []",
    ),
    "nested-parameters": (
        "parameters",
        on("/infer", with_json(lambda found: found | {"parameters": {"a": {"b": 1}}})),
        "parameters in a response are text, numbers or booleans",
    ),
    "refuses-parameters": (
        "parameters",
        where_sent(b'"parameters": {}', set_status(400)),
        "empty parameters are lawful in all three places",
    ),
    "version-zero": (
        "versions",
        on("/infer", with_json(lambda found: found | {"model_version": "0"})),
        "inference on a version says that version",
    ),
    "any-version": (
        "versions",
        where_error(on("/versions/", set_status(200, b'{"name": "x"}'))),
        "an unknown version's metadata is an error object",
    ),
    "no-state": ("repository", on("/index", listed_without_state), "an index entry's fields"),
    "loads-anything": (
        "repository",
        where_error(on("/load", set_status(200))),
        "loading an unknown model is refused",
    ),
    "frozen": ("statistics", on("/stats", with_json(frozen_counts)), "three calls raise success by three"),
    "bf16-as-floats": (
        "infer-binary",
        where_sent(b'"BF16"', lambda path, sent, answer: widened(answer)),
        "BF16 as binary comes back bit by bit",
    ),
    "bf16-cut": (
        "datatypes",
        where_sent(b'"BF16"', set_status(200, BF16_WHOLE)),
        "BF16 as JSON: right, or an error",
    ),
    "generates-nothing": (
        "generate",
        on("/generate", with_json(lambda found: found | {"text_output": ""})),
        "generate: the model's text is text_output",
    ),
    "generates-like-infer": (
        "generate",
        on("/generate", with_json(lambda found: {"outputs": [found]})),
        "generate answers one JSON object: its fields",
    ),
    "stream-as-json": ("generate", on("/generate_stream", says(b"application/json")), "both answer the same object"),
    "stream-of-lines": (
        "generate",
        on("/generate_stream", lambda path, sent, answer: (*answer[:2], answer[2].removeprefix(b"data: "))),
        "generate_stream answers events of JSON objects",
    ),
    "stream-breaks-lines": (
        "generate",
        on("/generate_stream", lambda path, sent, answer: (*answer[:2], answer[2].replace(rb"\n", b"\n"))),
        "generate_stream: the text arrives whole, line breaks too",
    ),
    "stream-of-errors": (
        "generate",
        where_error(on("/generate_stream", events_of_errors)),
        "a stream that fails before it begins is a plain error",
    ),
    "generates-for-anyone": (
        "generate",
        where_error(on("/generate", set_status(200))),
        "an unknown model is refused",
    ),
    "html": ("headers", says(b"text/html"), "answers in JSON say application/json"),
    "charset": ("headers", where_sent(b"charset", set_status(415)), "a charset beside the content type does no harm"),
    "no-gzip": ("headers", where_sent(b"gzip", gzip_named), "an answer to Accept-Encoding: gzip can be decoded"),
    "deep": (
        "robustness",
        where_sent(b"[" * 1000, set_status(500, b"Internal Server Error")),
        "nesting 100,000 deep is answered",
    ),
    "overflows": (
        "robustness",
        where_sent(b"4611686018427387904", set_status(200, b'{"outputs": []}')),
        "shapes that overflow are refused",
    ),
}


class Spoiler:
    """`/HOW/v2/…` is answered by the sound application as `/v2/…`, spoilt HOW; `sound` leaves it as it is."""

    def __init__(self, sound: Callable[..., Awaitable[None]], key: str) -> None:
        self._sound, self._key = sound, key

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._sound(scope, receive, send)
            return
        how, _, rest = scope["path"].removeprefix("/").partition("/")
        sent = bytearray(b"".join(b"%b: %b\n" % field for field in scope["headers"]))
        status, headers, parts = 0, {}, list[bytes]()

        async def listen() -> Any:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def keep(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                parts.append(message.get("body", b""))

        authorized = [*scope["headers"], (b"authorization", f"Bearer {self._key}".encode())]
        await self._sound({**scope, "path": f"/{rest}", "headers": authorized}, listen, keep)
        answer: Answer = status, headers, b"".join(parts)
        if how in BROKEN and status:
            answer = BROKEN[how][1](f"/{rest}", bytes(sent), answer)
        status, headers, body = answer
        fields = [*(headers | {b"content-length": str(len(body)).encode()}).items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})
