"""Area datatypes: each type of the table goes through an identity and comes back, its extremes included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.conformance.checks import Area, expect, oip, rfc
from serving.conformance.kit import Kit
from serving.conformance.models import identity_name
from serving.conformance.tensors import DTYPES, array_of, outputs_of

AREA = Area("datatypes", "D", "数据类型")
_TABLE = oip("Tensor Data Types", "Tensor data types are shown in the following table along with the size of each.")
_COERCE = oip("Tensor Data", "coerce each element to the required type or return an error if unexpected")
_FP16 = oip("Tensor Data", "fp16 is problematic to communicate explicitly")
SAMPLES: dict[str, Sequence[Any]] = {
    "BOOL": [True, False, True],
    **{
        name: [int(np.iinfo(DTYPES[name]).min), 0, 1, int(np.iinfo(DTYPES[name]).max)]
        for name in ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
    },
    "FP16": [0.5, -2.0, 65504.0],
    "FP32": [0.1, -1.5, 3.4028234e38, 1.1754944e-38, 16777216.0],
    "FP64": [0.1, -1.5, 1.7976931348623157e308, 2.2250738585072014e-308, 9007199254740993.0],
    "BYTES": ["", "plain", '"quoted" \\ \n', "轴承 😀", "x" * 300],
}


def round_trip(datatype: str) -> Callable[[Kit], None]:
    """The check of one type, as JSON."""

    def run(kit: Kit) -> None:
        sent = array_of(datatype, [len(SAMPLES[datatype])], SAMPLES[datatype])
        found = kit.outputs(identity_name(datatype), ("input", datatype, sent))["output"]
        expect(found.datatype == datatype, f"the datatype is {found.datatype}")
        expect(found.shape == sent.shape, f"the shape is {found.shape}")
        expect(np.array_equal(found.array, sent), f"sent {sent.tolist()}, got {found.array.tolist()}")

    return run


for _datatype in SAMPLES:
    _add = AREA.should if _datatype == "FP16" else AREA.must
    _add(
        f"{_datatype} 往返不变",
        f"{_datatype} comes back as it went",
        _FP16 if _datatype == "FP16" else _TABLE,
        needs=(identity_name(_datatype),),
    )(round_trip(_datatype))


@AREA.must(
    "整数写法的浮点数",
    "an integer is a lawful FP32 element",
    oip("Tensor Data", "Each element of the array may be an integer, floating-point number, string or boolean value."),
    needs=("identity-fp32",),
)
def integers_are_floats(kit: Kit) -> None:
    inputs = [{"name": "input", "shape": [3], "datatype": "FP32", "data": [1, -2, 30]}]
    found = outputs_of(kit.post_json(kit.name_of("identity-fp32"), {"inputs": inputs}))["output"]
    expect(found.array.tolist() == [1, -2, 30], f"got {found.array.tolist()}")


@AREA.must(
    "JSON 数字的各种写法",
    "every way to write a JSON number is read",
    rfc(8259, "6", "number = [ minus ] int [ frac ] [ exp ]"),
    needs=("identity-fp64",),
)
def number_forms(kit: Kit) -> None:
    body = b'{"inputs":[{"name":"input","shape":[5],"datatype":"FP64","data":[1e2,-0.5E-1,1E+1,-0,12.50]}]}'
    path = kit.path(kit.name_of("identity-fp64"), "infer")
    found = outputs_of(kit.post(path, body, {"content-type": "application/json"}))["output"]
    expect(found.array.tolist() == [100, -0.05, 10, 0, 12.5], f"got {found.array.tolist()}")


def _refused_or_coerced(kit: Kit, model: str, datatype: str, item: Any, lawful: Sequence[Any]) -> None:
    inputs = [{"name": "input", "shape": [1], "datatype": datatype, "data": [item]}]
    exchange = kit.post_json(kit.name_of(model), {"inputs": inputs})
    if exchange.status == 200:
        found = outputs_of(exchange)["output"].array.tolist()
        expect(found[0] in lawful, f"{item!r} as {datatype} became {found[0]!r}")
    else:
        expect(exchange.status >= 400, f"{exchange.failure or exchange.status}")
        exchange.error()


@AREA.must("文本当作 INT32: 转换或报错", "text as INT32: coerced, or an error", _COERCE, needs=("identity-int32",))
def text_as_integer(kit: Kit) -> None:
    _refused_or_coerced(kit, "identity-int32", "INT32", "17", [17])
    _refused_or_coerced(kit, "identity-int32", "INT32", "seventeen", [])


@AREA.should("超范围整数不悄悄回绕", "300 as UINT8 does not become 44", _COERCE, needs=("identity-uint8",))
def out_of_range(kit: Kit) -> None:
    _refused_or_coerced(kit, "identity-uint8", "UINT8", 300, [255])
    _refused_or_coerced(kit, "identity-uint8", "UINT8", -1, [0])


@AREA.should("小数当作 INT64 不悄悄截断", "a fraction as INT64 is not cut silently", _COERCE, needs=("identity-int64",))
def fraction_as_integer(kit: Kit) -> None:
    _refused_or_coerced(kit, "identity-int64", "INT64", 1.5, [])


@AREA.must("null 当作 INT32: 报错", "null as INT32 is an error", _COERCE, needs=("identity-int32",))
def null_as_integer(kit: Kit) -> None:
    _refused_or_coerced(kit, "identity-int32", "INT32", None, [])


@AREA.should(
    "数字当作 BYTES: 转换或报错", "a number as BYTES: coerced, or an error", _COERCE, needs=("identity-bytes",)
)
def number_as_text(kit: Kit) -> None:
    _refused_or_coerced(kit, "identity-bytes", "BYTES", 17, ["17"])


@AREA.should("BF16 的 JSON: 正确或报错", "BF16 as JSON: right, or an error", _COERCE, needs=(identity_name("BF16"),))
def bf16_as_json(kit: Kit) -> None:
    inputs = [{"name": "input", "shape": [2], "datatype": "BF16", "data": [1.5, -2.0]}]
    exchange = kit.post_json(kit.name_of(identity_name("BF16")), {"inputs": inputs})
    if exchange.status == 200:
        found = outputs_of(exchange)["output"]
        expect((found.datatype, found.array.tolist()) == ("BF16", [1.5, -2.0]), f"{found.datatype} {found.array}")
    else:
        expect(400 <= exchange.status < 500, f"{exchange.failure or exchange.status}", exchange)
        exchange.error()
