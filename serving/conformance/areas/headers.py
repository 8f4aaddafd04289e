"""Area headers: HTTP around the protocol: content types, encodings, framing."""

from __future__ import annotations

import gzip
import json

from serving.conformance.checks import Area, expect, oip, rfc
from serving.conformance.kit import Kit
from serving.conformance.tensors import outputs_of
from serving.conformance.wire import Exchange

AREA = Area("headers", "N", "HTTP 首部")
_TYPE = oip("Inference Request Examples", "HTTP/1.1 200 OK; Content-Type: application/json")
_MEDIA = rfc(9110, "8.3.1", 'media-type = type "/" subtype parameters')
_NAMES = rfc(9110, "5.1", "Field names are case-insensitive.")
_CHUNKED = rfc(9112, "7.1", "A recipient MUST be able to parse and decode the chunked transfer coding.")
_PIPELINE = rfc(
    9112, "9.3.2", "it MUST send the corresponding responses in the same order that the requests were received"
)
_CONTINUE = rfc(9110, "10.1.1", "MUST send a 100 (Continue) response, or an immediate final status code")
_CODING = rfc(
    9110,
    "8.4",
    "An origin server MAY respond with 415 if a representation has a content coding that is not acceptable.",
)
_ACCEPT = rfc(9110, "12.5.3", "Accept-Encoding: a representation in a listed coding, or in none")


def _body(kit: Kit, identifier: str = "headers") -> bytes:
    return json.dumps(kit.subject_request(id=identifier)).encode()


def _path(kit: Kit) -> str:
    return kit.path(kit.subject, "infer")


def _is_answer(exchange: Exchange, identifier: str) -> None:
    outputs_of(exchange)
    expect(exchange.json().get("id") == identifier, f"the id is {exchange.json().get('id')!r}", exchange)


@AREA.should("回答的 Content-Type 为 JSON", "answers in JSON say application/json", _TYPE)
def content_type(kit: Kit) -> None:
    for exchange in (kit.get("v2"), kit.get(kit.path(kit.subject)), kit.infer_subject()):
        found = exchange.headers.get("content-type", "")
        expect(found.split(";")[0].strip().lower() == "application/json", f"it is {found!r}", exchange)


@AREA.should("错误的 Content-Type 为 JSON", "an error object says application/json", _TYPE)
def content_type_of_errors(kit: Kit) -> None:
    exchange = kit.post(_path(kit), b"{", {"content-type": "application/json"})
    found = exchange.headers.get("content-type", "")
    expect(found.split(";")[0].strip().lower() == "application/json", f"it is {found!r}", exchange)


@AREA.must("Content-Type 可带 charset", "a charset beside the content type does no harm", _MEDIA)
def charset(kit: Kit) -> None:
    _is_answer(kit.post(_path(kit), _body(kit), {"content-type": "application/json; charset=utf-8"}), "headers")


@AREA.should("没有 Content-Type 也可", "no content type does no harm, as Triton's clients send none", _TYPE)
def no_content_type(kit: Kit) -> None:
    _is_answer(kit.post(_path(kit), _body(kit)), "headers")


@AREA.must("首部名不分大小写", "header names in any case", _NAMES)
def any_case(kit: Kit) -> None:
    body = _body(kit)
    head = kit.wire.head("POST", _path(kit), {"CONTENT-TYPE": "application/json", "cOnTeNt-LeNgTh": str(len(body))})
    _is_answer(kit.raw(head + body)[0], "headers")


@AREA.must("分块请求体", "a chunked request", _CHUNKED)
def chunked(kit: Kit) -> None:
    body = _body(kit)
    head = kit.wire.head("POST", _path(kit), {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
    middle = len(body) // 2
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:]))
    _is_answer(kit.raw(head + parts + b"0\r\n\r\n")[0], "headers")


@AREA.must("管道请求按序回答", "pipelined requests are answered in their order", _PIPELINE)
def pipelined(kit: Kit) -> None:
    sent = b""
    for index in range(4):
        body = _body(kit, f"pipe-{index}")
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        sent += kit.wire.head("POST", _path(kit), fields) + body
    answers = kit.raw(sent, answers=4)
    expect(len(answers) == 4, "fewer answers than requests")
    for index, exchange in enumerate(answers):
        _is_answer(exchange, f"pipe-{index}")


@AREA.must("Expect: 100-continue", "Expect: 100-continue is met with 100 or a final status", _CONTINUE)
def expect_continue(kit: Kit) -> None:
    body = _body(kit)
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Expect": "100-continue"}
    # The body goes along, as a client does that has waited long enough; the interim answer may then be left out.
    first = kit.raw(kit.wire.head("POST", _path(kit), fields) + body)[0]
    if first.status == 100:
        found = kit.raw(kit.wire.head("POST", _path(kit), fields) + body, answers=2)
        _is_answer(found[-1], "headers")
    else:
        _is_answer(first, "headers")


@AREA.should("gzip 请求: 接受或 415", "a gzip request is decoded, or refused with an error", _CODING)
def gzip_request(kit: Kit) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    exchange = kit.post(_path(kit), gzip.compress(_body(kit), mtime=0), headers)
    if exchange.status == 200:
        _is_answer(exchange, "headers")
    else:
        expect(400 <= exchange.status < 500, f"{exchange.failure or exchange.status}", exchange)


@AREA.must("Accept-Encoding: gzip", "an answer to Accept-Encoding: gzip can be decoded", _ACCEPT)
def accept_encoding(kit: Kit) -> None:
    headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate"}
    _is_answer(kit.post(_path(kit), _body(kit), headers), "headers")
