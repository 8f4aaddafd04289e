"""Area errors: what a server must refuse, and how a refusal looks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from serving.conformance.areas.infer_json import SENT
from serving.conformance.checks import Area, expect, oip, rfc
from serving.conformance.kit import ABSENT, JSON_HEADERS, Kit
from serving.conformance.tensors import json_tensor
from serving.conformance.wire import Exchange

AREA = Area("errors", "E", "错误")
_FAILED = oip(
    "Inference Response JSON Error Object",
    'A failed inference request must be indicated by an HTTP error status. The HTTP body must contain {"error": …}.',
)
_TYPICALLY = oip("Inference Response JSON Error Object", "an HTTP error status (typically 400)")
_REQUIRED = oip("Inference Request JSON Object", '"name", "shape", "datatype" and "data" are not #optional')
_UNSIGNED = oip("Request Input", "Each dimension must be an integer representable as an unsigned 64-bit integer value.")

Make = Callable[[Kit], Exchange]
_MISTAKES: dict[str, tuple[Make, tuple[str, ...]]] = {}


def _mistake(zh: str, en: str, make: Make, needs: tuple[str, ...] = (), rule: Any = _FAILED) -> None:
    """A must: this request is refused with an error status and an error object, and the server goes on."""
    _MISTAKES[en] = make, needs

    def run(kit: Kit) -> None:
        exchange = make(kit)
        expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
        exchange.error()
        kit.need_works()

    AREA.must(zh, en, rule, needs=needs)(run)


def _body(content: bytes) -> Make:
    return lambda kit: kit.post(kit.path(kit.subject, "infer"), content, JSON_HEADERS)


def _without(field: str) -> Make:
    """The lawful request to add-sub, its first input without one field."""

    def change(inputs: list[dict[str, Any]]) -> None:
        del inputs[0][field]

    return _changed(change)


def _changed(change: Callable[[list[dict[str, Any]]], object], **more: Any) -> Make:
    def make(kit: Kit) -> Exchange:
        inputs = copy.deepcopy([json_tensor(*tensor) for tensor in SENT])
        change(inputs)
        return kit.post_json(kit.name_of("add-sub"), {"inputs": inputs, **more})

    return make


def _set(**fields: Any) -> Make:
    return _changed(lambda inputs: inputs[0].update(fields))


_ADD_SUB = ("add-sub",)
_mistake("不存在的模型", "an unknown model", lambda kit: kit.post_json(ABSENT, kit.subject_request()))
_mistake("空的请求体", "an empty body", _body(b""))
_mistake("不完整的 JSON", "JSON that breaks off", _body(b'{"inputs": [{"name": "x", "shape": [1'))
_mistake("不是 JSON", "what is no JSON", _body(b"inputs=1&x=2"))
_mistake("数组而非对象", "an array instead of an object", _body(b"[]"))
_mistake("缺少 inputs", "a request without inputs", _body(b'{"id": "1"}'))
_mistake("inputs 不是数组", "inputs that are no array", _body(b'{"inputs": {"name": "x"}}'))
_mistake("缺少一个输入", "an input that is missing", _changed(lambda inputs: inputs.pop()), _ADD_SUB)
_mistake(
    "多余的输入",
    "an input that the model does not have",
    _changed(lambda inputs: inputs.append(json_tensor("input9", "INT32", np.zeros((2, 4), np.int32)))),
    _ADD_SUB,
)
_mistake("输入名不符", "an input by a wrong name", _set(name="INPUT0"), _ADD_SUB)
_mistake("输入缺少 name", "an input without a name", _without("name"), _ADD_SUB, _REQUIRED)
_mistake("输入缺少 shape", "an input without a shape", _without("shape"), _ADD_SUB, _REQUIRED)
_mistake("输入缺少 datatype", "an input without a datatype", _without("datatype"), _ADD_SUB, _REQUIRED)
_mistake("输入缺少 data", "an input without data", _without("data"), _ADD_SUB, _REQUIRED)
_mistake("未知的 datatype", "a datatype that does not exist", _set(datatype="FP33"), _ADD_SUB)
_mistake("数据少于形状", "too few elements for the shape", _set(data=[1, 2, 3]), _ADD_SUB)
_mistake("数据多于形状", "too many elements for the shape", _set(data=list(range(9))), _ADD_SUB)
_mistake("参差的嵌套", "ragged nesting", _set(data=[[1, 2, 3, 4], [5, 6, 7]]), _ADD_SUB)
_mistake("负的维度", "a negative dimension", _set(shape=[-2, -4]), _ADD_SUB, _UNSIGNED)
_mistake("小数维度", "a dimension that is a fraction", _set(shape=[2.5, 4]), _ADD_SUB, _UNSIGNED)
_mistake("文本维度", "a dimension that is text", _set(shape=["two", 4]), _ADD_SUB, _UNSIGNED)
_mistake("形状不是数组", "a shape that is no array", _set(shape="2x4"), _ADD_SUB, _UNSIGNED)
_mistake("与模型不符的形状", "a shape that the model does not take", _set(shape=[4, 2]), _ADD_SUB)
_mistake(
    "不存在的输出",
    "an output that the model does not have",
    _changed(lambda inputs: None, outputs=[{"name": "product"}]),
    _ADD_SUB,
)


@AREA.should("调用者的错误为 4xx", "a caller's mistake is a 4xx, not the server's 5xx", _TYPICALLY)
def mistakes_are_4xx(kit: Kit) -> None:
    blamed: list[str] = []
    shown: Exchange | None = None
    for en, (make, needs) in _MISTAKES.items():
        if kit.served.issuperset(needs):
            exchange = make(kit)
            if not 400 <= exchange.status < 500:
                shown = shown or exchange
                blamed.append(f"{en}: {exchange.status or 'no answer'}")
    expect(not blamed, "; ".join(blamed), shown)


@AREA.should(
    "与模型不同的 datatype: 报错",
    "another datatype than the model's is refused",
    oip("Request Input", '"datatype" : The data-type of the input tensor elements'),
    needs=_ADD_SUB,
)
def other_datatype(kit: Kit) -> None:
    exchange = _set(datatype="FP32", data=[0.5] * 8)(kit)
    expect(exchange.status >= 400, f"FP32 for INT32 is answered with {exchange.status}", exchange)
    exchange.error()


@AREA.should(
    "对 infer 使用 GET: 405",
    "GET on infer is 405",
    rfc(9110, "15.5.6", "the method received is known by the origin server but not supported by the target resource"),
)
def get_infer(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject, "infer"))
    expect(exchange.status == 405, f"{exchange.failure or exchange.status}, not 405", exchange)


@AREA.should(
    "错误信息说明原因", "the message names what is wrong", oip("error", "The descriptive message for the error.")
)
def descriptive(kit: Kit) -> None:
    exchange = kit.post_json(ABSENT, kit.subject_request())
    expect(ABSENT in exchange.error(), "the message does not name the model that is missing", exchange)
    content = json.dumps({"inputs": 7}).encode()
    exchange = kit.post(kit.path(kit.subject, "infer"), content, JSON_HEADERS)
    expect("inputs" in exchange.error().lower(), "the message does not name the field that is wrong", exchange)
