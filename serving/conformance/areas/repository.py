"""Area repository: Triton's model repository. Loads and unloads the kit's own model only."""

from __future__ import annotations

from functools import partial
from typing import Any

from serving.conformance.areas.infer_json import SENT, check_add_sub
from serving.conformance.checks import Area, NotApplicable, expect, triton
from serving.conformance.kit import ABSENT, JSON_HEADERS, Kit
from serving.conformance.tensors import outputs_of
from serving.conformance.wire import Exchange

AREA = Area("repository", "R", "模型仓库")
CLAIM = "model_repository"
_index = partial(triton, "model_repository", "Index")
_ENTRY = _index('"name" : $string, "version" : $string #optional, "state" : $string, "reason" : $string')
_EVERY = _index("returns information about every model available in a model repository")
_READY = _index('"ready" : If true return only models ready for inferencing.')
_BAD_INDEX = _index("A failed index request must be indicated by an HTTP error status (typically 400).")
_LOAD = triton("model_repository", "Load", "A successful load request is indicated by a 200 HTTP status.")
_BAD_LOAD = triton("model_repository", "Load", "A failed load request must be indicated by an HTTP error status.")
_UNLOAD = triton("model_repository", "Unload", "A successful unload request is indicated by a 200 HTTP status.")
_BAD_UNLOAD = triton("model_repository", "Unload", "A failed unload request must be indicated by an HTTP error status.")


def _entries(kit: Kit, body: bytes = b"{}") -> list[dict[str, Any]]:
    exchange = kit.post("v2/repository/index", body, JSON_HEADERS)
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)
    found = exchange.json()
    expect(isinstance(found, list), "the index is not an array", exchange)
    expect(all(isinstance(each, dict) for each in found), "an entry is not an object", exchange)
    return list(found)


@AREA.extension(CLAIM, "索引项的字段", "an index entry's fields", _ENTRY)
def entries(kit: Kit) -> None:
    for entry in _entries(kit):
        for field in ("name", "state", "reason"):
            expect(isinstance(entry.get(field), str), f"{field} is not a string: {entry}")
        expect(isinstance(entry.get("version", ""), str), f"version is not a string: {entry}")


@AREA.extension(CLAIM, "索引含被测模型", "the index has the model", _EVERY)
def has_the_model(kit: Kit) -> None:
    names = [entry.get("name") for entry in _entries(kit)]
    expect(kit.subject in names, f"{kit.subject} is not among the {len(names)} entries")


@AREA.extension(CLAIM, "ready: true 只列就绪者", "ready: true lists ready models only", _READY)
def ready_only(kit: Kit) -> None:
    names = sorted({str(entry.get("name")) for entry in _entries(kit, b'{"ready": true}')})
    expect(kit.subject in names, f"{kit.subject} is ready and not listed")
    index = kit.last
    for name in names[:20]:
        ready = kit.get(kit.path(name, "ready"))
        expect(ready.status == 200, f"{name} is listed as ready, its readiness is {ready.status}", index)


@AREA.extension(CLAIM, "无效的索引请求: error", "an index request that is no JSON is refused", _BAD_INDEX)
def bad_index(kit: Kit) -> None:
    _is_error(kit.post("v2/repository/index", b'{"ready": tru', JSON_HEADERS))


@AREA.extension(CLAIM, "载入后可推理", "after a load the model answers", _LOAD, needs=("add-sub",))
def load(kit: Kit) -> None:
    _done(_order(kit, "load"))
    check_add_sub(outputs_of(kit.infer("add-sub", *SENT)))


@AREA.extension(CLAIM, "卸载再载入后可推理", "after unload and load the model answers", _UNLOAD, needs=("add-sub",))
def unload_and_load(kit: Kit) -> None:
    _done(_order(kit, "unload"))
    _done(_order(kit, "load", b'{"parameters": {}}'))
    check_add_sub(outputs_of(kit.infer("add-sub", *SENT)))


@AREA.extension(CLAIM, "载入不存在的模型: error", "loading an unknown model is refused", _BAD_LOAD)
def load_unknown(kit: Kit) -> None:
    _is_error(kit.post(f"v2/repository/models/{ABSENT}/load", b"", JSON_HEADERS))


@AREA.extension(CLAIM, "卸载不存在的模型: error", "unloading an unknown model is refused", _BAD_UNLOAD)
def unload_unknown(kit: Kit) -> None:
    exchange = kit.post(f"v2/repository/models/{ABSENT}/unload", b"", JSON_HEADERS)
    if exchange.status == 200:  # nothing of that name is loaded afterwards, which is what was asked for
        raise NotApplicable("unloading what is not loaded succeeds")
    _is_error(exchange)


def _order(kit: Kit, verb: str, body: bytes = b"") -> Exchange:
    return kit.post(f"v2/repository/models/{kit.name_of('add-sub')}/{verb}", body, JSON_HEADERS)


def _done(exchange: Exchange) -> None:
    if exchange.status in (401, 403):
        raise NotApplicable(f"the key may not load and unload: {exchange.status}")
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)


def _is_error(exchange: Exchange) -> None:
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status} is no error status", exchange)
    exchange.error()
