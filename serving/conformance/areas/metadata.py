"""Area metadata: the server's and the models' own description, and Triton's model configuration."""

from __future__ import annotations

from typing import Any

from serving.conformance.checks import Area, expect, oip, triton, v2
from serving.conformance.kit import ABSENT, Kit
from serving.conformance.tensors import KNOWN_DATATYPES
from serving.conformance.wire import Exchange

AREA = Area("metadata", "M", "元数据")
_SERVER = oip("Server Metadata Response JSON Object", '"name" : $string, "version" : $string, "extensions" : [ … ]')
_MODEL = oip("Model Metadata Response JSON Object", '"name", "platform", "inputs", "outputs"; "versions" #optional')
_TENSOR = oip("Model Metadata Response JSON Object", '$metadata_tensor: "name", "datatype", "shape" : [ $number, … ]')
_ERROR = oip("Model Metadata Response JSON Error Object", "must be indicated by an HTTP error status (typically 400)")
_CASE = v2("HTTP/REST", "All strings in all contexts are case-sensitive.")
_CONFIG = triton("model_configuration", "HTTP/REST", "A successful request is indicated by a 200 HTTP status code.")


@AREA.must("服务元数据字段齐全", "the server's metadata has name, version and extensions", _SERVER)
def server_metadata(kit: Kit) -> None:
    exchange = kit.get("v2")
    found = _object(exchange)
    for field in ("name", "version"):
        expect(isinstance(found.get(field), str), f"{field} is not a string", exchange)
    claimed = found.get("extensions")
    expect(isinstance(claimed, list), "extensions is not an array", exchange)
    assert isinstance(claimed, list)
    expect(all(isinstance(each, str) for each in claimed), "an extension is not a string", exchange)


@AREA.must("模型元数据字段齐全", "a model's metadata has name, platform, inputs and outputs", _MODEL)
def model_metadata(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject))
    found = _object(exchange)
    for field in ("name", "platform"):
        expect(isinstance(found.get(field), str), f"{field} is not a string", exchange)
    for field in ("inputs", "outputs"):
        expect(isinstance(found.get(field), list), f"{field} is not an array", exchange)


@AREA.must("模型名与所问一致", "the name is that of the model asked for", _MODEL)
def model_name(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject))
    expect(_object(exchange).get("name") == kit.subject, f"the name is not {kit.subject!r}", exchange)


@AREA.must("versions 若有则为文本列表", "versions, where given, is an array of strings", _MODEL)
def versions_are_strings(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject))
    found = _object(exchange).get("versions")
    lawful = found is None or (isinstance(found, list) and all(isinstance(each, str) for each in found))
    expect(lawful, f"versions is {found!r}", exchange)


@AREA.must("张量元数据的类型与形状合规", "every tensor has a name, a datatype of the table and a shape", _TENSOR)
def tensors_are_described(kit: Kit) -> None:
    for name in sorted(kit.served):
        exchange = kit.get(kit.path(kit.name_of(name)))
        for tensor in _tensors(exchange):
            _check_tensor(tensor, exchange)
    exchange = kit.get(kit.path(kit.subject))
    for tensor in _tensors(exchange):
        _check_tensor(tensor, exchange)


@AREA.must("元数据列出模型的全部输入与输出", "metadata lists every input and output", _MODEL, needs=("add-sub",))
def metadata_is_the_graphs(kit: Kit) -> None:
    model = kit.model("add-sub")
    exchange = kit.get(kit.path(kit.name_of("add-sub")))
    found = _object(exchange)
    for field, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        described = {tensor.get("name"): tensor.get("datatype") for tensor in found.get(field) or []}
        expect(described == {each.name: each.datatype for each in tensors}, f"{field}: {described}", exchange)


@AREA.must(
    "可变维度写作 -1",
    "variable-size dimensions are -1",
    oip("Model Metadata Response JSON Object", "Variable-size dimensions are specified as -1."),
    needs=("dynamic",),
)
def dynamic_dimensions(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.name_of("dynamic")))
    shapes = [tensor.get("shape") for tensor in _tensors(exchange)]
    expect(shapes == [[-1, -1], [-1, -1]], f"the shapes are {shapes}", exchange)


@AREA.must("不存在的模型: 错误状态与 error", "an unknown model's metadata is an error object", _ERROR)
def unknown_model(kit: Kit) -> None:
    _is_error(kit.get(kit.path(ABSENT)))


@AREA.must("名称区分大小写", "names are case-sensitive", _CASE)
def names_are_case_sensitive(kit: Kit) -> None:
    other = kit.subject.swapcase()
    exchange = kit.get(kit.path(other))
    expect(exchange.status >= 400, f"{other!r} is answered like {kit.subject!r}", exchange)


@AREA.extension("model_configuration", "配置扩展返回 JSON 对象", "the configuration is a JSON object", _CONFIG)
def configuration(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject, "config"))
    found = _object(exchange)
    expect(found.get("name") == kit.subject, "name is not the model's", exchange)
    for field in ("input", "output"):  # ModelConfig's own names, as JSON
        expect(isinstance(found.get(field), list), f"{field} is not an array", exchange)
        types = [str(each.get("data_type", "")) for each in found[field] if isinstance(each, dict)]
        expect(all(each.startswith("TYPE_") for each in types), f"{field}: data_type {types}", exchange)


@AREA.extension(
    "model_configuration",
    "不存在的模型的配置: error",
    "an unknown model's configuration is an error object",
    triton("model_configuration", "HTTP/REST", "A failed request must be indicated by an HTTP error status."),
)
def configuration_of_unknown_model(kit: Kit) -> None:
    _is_error(kit.get(kit.path(ABSENT, "config")))


def _object(exchange: Exchange) -> dict[str, Any]:
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)
    found = exchange.json()
    expect(isinstance(found, dict), "the body is not a JSON object", exchange)
    return dict(found)


def _tensors(exchange: Exchange) -> list[dict[str, Any]]:
    found = _object(exchange)
    tensors = [*(found.get("inputs") or []), *(found.get("outputs") or [])]
    expect(all(isinstance(tensor, dict) for tensor in tensors), "a tensor is not an object", exchange)
    return tensors


def _check_tensor(tensor: dict[str, Any], exchange: Exchange) -> None:
    name, shape = tensor.get("name"), tensor.get("shape")
    expect(isinstance(name, str), "a tensor has no name", exchange)
    expect(tensor.get("datatype") in KNOWN_DATATYPES, f"{name}: datatype {tensor.get('datatype')!r}", exchange)
    lawful = isinstance(shape, list) and all(type(size) is int and size >= -1 for size in shape)
    expect(lawful, f"{name}: shape {shape!r}", exchange)


def _is_error(exchange: Exchange) -> None:
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status} is no error status", exchange)
    exchange.error()
