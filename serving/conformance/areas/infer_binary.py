"""Area infer-binary: Triton's binary tensor data, asked only where the server claims `binary_tensor_data`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from serving.conformance.areas.datatypes import SAMPLES
from serving.conformance.areas.infer_json import SENT, A, B, check_add_sub
from serving.conformance.checks import Area, expect, triton
from serving.conformance.kit import BINARY_HEADERS, Kit, Sent, binary_request
from serving.conformance.models import identity_name
from serving.conformance.tensors import (
    BINARY_LENGTH,
    array_of,
    binary_tensor,
    json_tensor,
    outputs_of,
    split_body,
)
from serving.conformance.wire import Exchange

AREA = Area("infer-binary", "B", "二进制推理")
CLAIM = "binary_tensor_data"
_about = partial(triton, "binary_data", "Binary Tensor Data Extension")
_LAYOUT = _about("organized in little-endian byte order, row major, without stride or padding between elements")
_NATIVE = _about("All tensor data types are representable as binary data in the native size of the data type.")
_BYTES = _about("an element is represented by a 4-byte unsigned integer giving the length followed by the bytes")
_BOOL = _about("For BOOL type element true is a single byte with value 1 and false is a single byte with value 0.")
_SIZE = _about('"binary_data_size" : indicating the size of the tensor binary data, in bytes')
_OUTPUT = _about('"binary_data" : true if the output should be returned as binary data')
_ALL = _about('"binary_data_output" : true if all outputs should be returned as binary data')
_OVERRIDE = _about('If "binary_data" is specified on an output it overrides this setting.')
_ORDER = _about("followed by the binary tensor data in the same order as the tensors are specified in the JSON")
_HEADER = _about("the Inference-Header-Content-Length header must be provided to give the length of the JSON object")
_FULL = _about("Content-Length continues to give the full body length")
_DEFAULT = _about("false (or not given) if the tensor should be returned as JSON")


_ALL_BINARY = {"binary_data_output": True}


def _of_bytes(items: list[bytes]) -> tuple[str, Sent]:
    return "identity-bytes", ("input", "BYTES", array_of("BYTES", [len(items)], items))


def _bytes_back(exchange: Exchange) -> list[Any]:
    return list(outputs_of(exchange)["output"].array)


def _check_kind(exchange: Exchange, **binary: bool) -> None:
    found = {name: output.binary for name, output in outputs_of(exchange).items()}
    expect(found == binary, f"returned as binary: {found}, asked for {binary}")


@AREA.extension(CLAIM, "二进制输入, JSON 输出", "binary inputs, JSON outputs by default", _DEFAULT, needs=("add-sub",))
def binary_in(kit: Kit) -> None:
    exchange = kit.infer_binary("add-sub", *SENT)
    check_add_sub(outputs_of(exchange))
    _check_kind(exchange, sum=False, difference=False)


@AREA.extension(CLAIM, "单个输出 binary_data", "binary_data on one output", _OUTPUT, needs=("add-sub",))
def binary_out(kit: Kit) -> None:
    exchange = kit.infer(
        "add-sub", *SENT, outputs=[{"name": "sum", "parameters": {"binary_data": True}}, {"name": "difference"}]
    )
    check_add_sub(outputs_of(exchange))
    _check_kind(exchange, sum=True, difference=False)


@AREA.extension(CLAIM, "binary_data_output 作用于全部", "binary_data_output for all", _ALL, needs=("add-sub",))
def binary_data_output(kit: Kit) -> None:
    exchange = kit.infer_binary("add-sub", *SENT, parameters=_ALL_BINARY)
    check_add_sub(outputs_of(exchange))
    _check_kind(exchange, sum=True, difference=True)


@AREA.extension(CLAIM, "binary_data 优先", "binary_data overrides binary_data_output", _OVERRIDE, needs=("add-sub",))
def override(kit: Kit) -> None:
    outputs = [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "difference"}]
    exchange = kit.infer_binary("add-sub", *SENT, parameters=_ALL_BINARY, outputs=outputs)
    check_add_sub(outputs_of(exchange))
    _check_kind(exchange, sum=False, difference=True)


@AREA.extension(CLAIM, "二进制与 JSON 输入混用", "one input binary, the other JSON", _SIZE, needs=("add-sub",))
def mixed_inputs(kit: Kit) -> None:
    for first_is_binary in (True, False):
        described, content = binary_tensor(*SENT[0 if first_is_binary else 1])
        other = json_tensor(*SENT[1 if first_is_binary else 0])
        head = json.dumps({"inputs": [described, other] if first_is_binary else [other, described]}).encode()
        headers = BINARY_HEADERS | {BINARY_LENGTH: str(len(head))}
        exchange = kit.post(kit.path(kit.name_of("add-sub"), "infer"), head + content, headers)
        check_add_sub(outputs_of(exchange))


@AREA.extension(CLAIM, "二进制数据依 JSON 中的次序", "binary data in the JSON's order", _ORDER, needs=("add-sub",))
def order(kit: Kit) -> None:
    exchange = kit.infer_binary("add-sub", SENT[1], SENT[0], parameters=_ALL_BINARY)
    check_add_sub(outputs_of(exchange))
    document, tail = split_body(exchange)
    parts = {"sum": A + B, "difference": A - B}
    wanted = b"".join(parts[each["name"]].astype("<i4").tobytes() for each in document["outputs"])
    expect(tail == wanted, "the binary data do not follow the order of the outputs")


@AREA.extension(CLAIM, "响应首部给出 JSON 长度", "the header gives the JSON's length", _HEADER, needs=("add-sub",))
def header(kit: Kit) -> None:
    exchange = kit.infer("add-sub", *SENT, parameters=_ALL_BINARY)
    outputs_of(exchange)
    expect(BINARY_LENGTH in exchange.headers, f"there is no {BINARY_LENGTH}")


@AREA.extension(CLAIM, "Content-Length 为全长", "Content-Length is the full length", _FULL, needs=("add-sub",))
def content_length(kit: Kit) -> None:
    exchange = kit.infer("add-sub", *SENT, parameters=_ALL_BINARY)
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}")
    length = exchange.headers.get("content-length")
    chunked = "chunked" in exchange.headers.get("transfer-encoding", "")
    expect(chunked or length == str(len(exchange.body)), f"it is {length}, the body has {len(exchange.body)}")


@AREA.extension(
    CLAIM, "BYTES: 空、中文与很长的元素", "BYTES: empty, Chinese and long elements", _BYTES, needs=("identity-bytes",)
)
def raw_bytes(kit: Kit) -> None:
    items = [b"", b"a\nb", "轴承 😀".encode(), b"x" * 70_000]
    expect(_bytes_back(kit.infer_binary(*_of_bytes(items), parameters=_ALL_BINARY)) == items, "the bytes changed")


@AREA.extension(
    CLAIM,
    "BYTES 不是 UTF-8: 原样返回或报错",
    "BYTES that are not UTF-8 come back as they went, or are refused: ONNX strings are UTF-8",
    _BYTES,
    needs=("identity-bytes",),
)
def not_utf8(kit: Kit) -> None:
    items = [b"\x00\xff\xfe", b"\xc3"]
    exchange = kit.infer_binary(*_of_bytes(items), parameters=_ALL_BINARY)
    if exchange.status == 200:
        expect(_bytes_back(exchange) == items, "the bytes came back changed")
    else:
        expect(exchange.status >= 400, f"{exchange.failure or exchange.status}", exchange)
        exchange.error()


@AREA.extension(CLAIM, "BOOL 一字节 0/1", "BOOL is one byte, 0 or 1", _BOOL, needs=("identity-bool",))
def boolean_bytes(kit: Kit) -> None:
    sent = np.array([True, False, True])
    exchange = kit.infer_binary("identity-bool", ("input", "BOOL", sent), parameters=_ALL_BINARY)
    outputs_of(exchange)
    _, tail = split_body(exchange)
    expect(tail == b"\x01\x00\x01", f"the bytes are {tail!r}")


def _round_trip(datatype: str) -> Callable[[Kit], None]:
    def run(kit: Kit) -> None:
        sent = array_of(datatype, [len(SAMPLES[datatype])], SAMPLES[datatype])
        model = identity_name(datatype)
        found = outputs_of(kit.infer_binary(model, ("input", datatype, sent), parameters=_ALL_BINARY))["output"]
        expect((found.datatype, found.shape) == (datatype, sent.shape), f"it is {found.datatype} {found.shape}")
        expect(np.array_equal(found.array, sent), f"sent {sent.tolist()}, got {found.array.tolist()}")

    return run


for _datatype in SAMPLES:
    if _datatype not in ("BOOL", "BYTES"):
        AREA.extension(
            CLAIM,
            f"{_datatype} 二进制往返不变",
            f"{_datatype} as binary comes back as it went",
            _LAYOUT,
            needs=(identity_name(_datatype),),
        )(_round_trip(_datatype))


def _refused(kit: Kit, body: bytes, length: str) -> None:
    path = kit.path(kit.name_of("add-sub"), "infer")
    exchange = kit.post(path, body, BINARY_HEADERS | {BINARY_LENGTH: length})
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
    exchange.error()
    kit.need_works()
    kit.last = exchange


@AREA.extension(CLAIM, "截断的二进制数据: error", "truncated binary data is refused", _SIZE, needs=("add-sub",))
def truncated(kit: Kit) -> None:
    body, length = binary_request(SENT)
    _refused(kit, body[:-5], str(length))
    _refused(kit, body[:length], str(length))


@AREA.extension(
    CLAIM, "字节数与形状不符: error", "a size that does not fit the shape is refused", _SIZE, needs=("add-sub",)
)
def wrong_size(kit: Kit) -> None:
    body, _ = binary_request(SENT)
    for size in (28, 36, 10**12):
        changed = body.replace(b'"binary_data_size": 32', f'"binary_data_size": {size}'.encode(), 1)
        _refused(kit, changed, str(_json_length(changed)))


@AREA.extension(CLAIM, "错误的 JSON 长度: error", "a JSON length that is wrong is refused", _HEADER, needs=("add-sub",))
def wrong_header(kit: Kit) -> None:
    body, length = binary_request(SENT)
    for wrong in (str(len(body) + 1), str(length - 3), "twelve", "-1", "99999999999999999999999"):
        _refused(kit, body, wrong)


@AREA.extension(
    CLAIM, "BYTES 元素越界: error", "a BYTES element beyond the end is refused", _BYTES, needs=("identity-bytes",)
)
def overlong_element(kit: Kit) -> None:
    content = b"\xff\xff\xff\x7fabc"
    inputs = [{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}]
    head = json.dumps({"inputs": inputs}).encode()
    headers = BINARY_HEADERS | {BINARY_LENGTH: str(len(head))}
    exchange = kit.post(kit.path(kit.name_of("identity-bytes"), "infer"), head + content, headers)
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
    exchange.error()
    kit.need_works()
    kit.last = exchange


_BF16_BITS = np.array([0x3FC0, 0xC000, 0x7F7F, 0x0080, 0x0001, 0x8000, 0x7F80, 0x7FC0], np.uint16)  # 1.5, -2, extremes


def _bf16(kit: Kit, content: bytes) -> Exchange:
    """An identity of eight BF16 elements with this binary data, its output asked for as binary."""
    size = {"binary_data_size": len(content)}
    tensor = {"name": "input", "shape": [len(_BF16_BITS)], "datatype": "BF16", "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": _ALL_BINARY}).encode()
    headers = BINARY_HEADERS | {BINARY_LENGTH: str(len(head))}
    return kit.post(kit.path(kit.name_of(identity_name("BF16")), "infer"), head + content, headers)


@AREA.extension(CLAIM, "BF16 逐位往返", "BF16 as binary comes back bit by bit", _NATIVE, needs=(identity_name("BF16"),))
def bf16_round_trip(kit: Kit) -> None:
    found = outputs_of(_bf16(kit, _BF16_BITS.astype("<u2").tobytes()))["output"]
    expect(found.datatype == "BF16", f"the datatype is {found.datatype}")
    expect(found.binary, "the output is not binary")
    same = np.array_equal(found.array, _BF16_BITS)
    expect(same, f"sent {[hex(bits) for bits in _BF16_BITS]}, got {[hex(int(bits)) for bits in found.array]}")


@AREA.extension(
    CLAIM, "BF16 每元素两字节", "BF16 of four bytes an element is refused", _NATIVE, needs=(identity_name("BF16"),)
)
def bf16_size(kit: Kit) -> None:
    exchange = _bf16(kit, np.ones(len(_BF16_BITS), "<f4").tobytes())
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status}, not an error status", exchange)
    exchange.error()


def _json_length(body: bytes) -> int:
    """Where the JSON object at the front of the body ends."""
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return end
