"""Area parameters: the protocol's parameters, and the extensions that define some."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.conformance.areas.infer_json import SENT, check_add_sub
from serving.conformance.checks import Area, expect, oip, triton
from serving.conformance.kit import Kit
from serving.conformance.models import mlp
from serving.conformance.tensors import json_tensor, outputs_of

AREA = Area("parameters", "P", "参数")
_ZERO = oip("Parameters", "The $parameters JSON describes zero or more name/value pairs.")
_SCALAR = oip("Parameters", "$parameter = $string : $string | $number | $boolean")
_OWN = oip("Parameters", "A server can implement server-specific parameters to provide non-standard capabilities.")
_TIMEOUT = triton("schedule_policy", "Dynamic Batcher", '"timeout" : timeout value for the request, in microseconds')
_PRIORITY = triton("schedule_policy", "Dynamic Batcher", "Priority value zero indicates the default priority level.")
_CUSTOM = triton("parameters", "Parameters Extension", "allows an inference request to provide custom parameters")
_COUNT = triton("classification", "Classification Extension", '"<count>" of the returned tensor equals the parameter')


@AREA.must("三处均可为空的 parameters", "empty parameters are lawful in all three places", _ZERO, needs=("add-sub",))
def empty(kit: Kit) -> None:
    inputs = [json_tensor(*tensor) | {"parameters": {}} for tensor in SENT]
    outputs: list[Any] = [{"name": name, "parameters": {}} for name in ("sum", "difference")]
    document = {"inputs": inputs, "outputs": outputs, "parameters": {}}
    check_add_sub(outputs_of(kit.post_json(kit.name_of("add-sub"), document)))


@AREA.should("未知参数不影响推理", "a parameter that the server does not know does no harm", _OWN, needs=("add-sub",))
def unknown(kit: Kit) -> None:
    more = {"x_text": "a", "x_number": 1.5, "x_whole": 7, "x_boolean": True}
    inputs = [json_tensor(*tensor) | {"parameters": more} for tensor in SENT]
    document = {"inputs": inputs, "parameters": more}
    check_add_sub(outputs_of(kit.post_json(kit.name_of("add-sub"), document)))


@AREA.must("响应参数为标量", "parameters in a response are text, numbers or booleans", _SCALAR)
def of_response(kit: Kit) -> None:
    exchange = kit.infer_subject()
    outputs_of(exchange)
    found = exchange.json()
    for holder in (found, *found["outputs"]):
        parameters = holder.get("parameters", {}) or {}
        lawful = isinstance(parameters, dict) and all(
            isinstance(each, str | int | float) for each in parameters.values()
        )
        expect(lawful, f"parameters are {parameters!r}")


@AREA.should("parameters 不是对象: 报错", "parameters that are no object are refused", _ZERO)
def no_object(kit: Kit) -> None:
    exchange = kit.infer_subject(parameters=[1, 2])
    expect(exchange.status >= 400, f"a list is answered with {exchange.status}", exchange)
    exchange.error()


@AREA.extension("schedule_policy", "timeout 参数 (微秒)", "timeout is understood: microseconds", _TIMEOUT)
def timeout(kit: Kit) -> None:
    outputs_of(kit.infer_subject(parameters={"timeout": 20_000_000}))


@AREA.extension("schedule_policy", "priority 参数", "priority is understood: 0 and 1", _PRIORITY)
def priority(kit: Kit) -> None:
    for level in (0, 1):
        outputs_of(kit.infer_subject(parameters={"priority": level}))


@AREA.extension("parameters", "自定义参数被接受", "custom parameters are accepted", _CUSTOM)
def custom(kit: Kit) -> None:
    outputs_of(kit.infer_subject(parameters={"my_custom_parameter": 42, "another": "text", "third": True}))


def _classified(kit: Kit, count: int, rows: list[list[float]]) -> list[Any]:
    x = np.array(rows, np.float32)
    asked = [{"name": "y", "parameters": {"classification": count}}]
    found = kit.outputs("mlp", ("x", "FP32", x), outputs=asked)["y"]
    expect(found.datatype == "BYTES", f"the datatype is {found.datatype}, not BYTES")
    expect(found.array.size == len(rows) * count, f"{found.array.size} classes, {len(rows)} × {count} asked for")
    return list(found.array.reshape(-1))


@AREA.extension("classification", "前 n 个类别, 值:序号", "the top n classes as value:index", _COUNT, needs=("mlp",))
def classification(kit: Kit) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 0.0, 1.0]]
    values = mlp(np.array(rows, np.float32))
    found = _classified(kit, 2, rows)
    for row in range(2):
        wanted = np.argsort(-values[row], kind="stable")[:2]
        for place, index in enumerate(wanted):
            text = str(found[2 * row + place])
            parts = text.split(":")
            expect(len(parts) in (2, 3), f"{text!r} is no value:index[:label]")
            expect(parts[1] == str(index), f"{text!r}: the index is not {index}")
            expect(
                abs(float(parts[0]) - float(values[row][index])) < 1e-3,
                f"{text!r}: the value is not {values[row][index]}",
            )
