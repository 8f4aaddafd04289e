"""Area health: liveness and readiness of server and models."""

from __future__ import annotations

from serving.conformance.checks import Area, expect, oip, v2
from serving.conformance.kit import ABSENT, Kit
from serving.conformance.wire import Exchange

AREA = Area("health", "H", "健康")
_STATUS = v2("Health", "A 200 status code indicates true and a 4xx status code indicates false.")
_PATHS = v2("HTTP/REST", "A compliant server must implement the health, metadata, and inference APIs.")


@AREA.must("存活探针回答 200", "the liveness probe answers 200", _STATUS)
def live(kit: Kit) -> None:
    _is_true(kit.get("v2/health/live"))


@AREA.must("就绪探针回答 200", "the readiness probe answers 200", _STATUS)
def ready(kit: Kit) -> None:
    _is_true(kit.get("v2/health/ready"))


@AREA.must("模型就绪探针回答 200", "a served model's readiness is 200", _PATHS)
def model_ready(kit: Kit) -> None:
    _is_true(kit.get(kit.path(kit.subject, "ready")))


@AREA.must("不存在的模型不就绪 (4xx)", "an unknown model is not ready: 4xx", _STATUS)
def unknown_model_is_not_ready(kit: Kit) -> None:
    exchange = kit.get(kit.path(ABSENT, "ready"))
    expect(400 <= exchange.status < 500, f"{exchange.status} is not a 4xx", exchange)


@AREA.must(
    "GET 探针不改变状态, 可反复调用",
    "probes are plain GETs: ten in a row say the same",
    v2("Health", "A health request is made with an HTTP GET to a health endpoint."),
)
def probes_are_stable(kit: Kit) -> None:
    for _ in range(10):
        _is_true(kit.get("v2/health/live"))
        _is_true(kit.get("v2/health/ready"))


@AREA.should(
    "存活回答为空或 {live}",
    "the liveness body is empty, or an object with a boolean",
    oip("Server Live Response JSON Object", '"live" : $bool (the earlier text: the body should be empty)'),
)
def live_body(kit: Kit) -> None:
    _empty_or_boolean(kit.get("v2/health/live"), "live")


@AREA.should(
    "就绪回答为空或 {live/ready}",
    "the readiness body is empty, or an object with a boolean",
    oip("Server Ready Response JSON Object", '"live" : $bool (the earlier text: the body should be empty)'),
)
def ready_body(kit: Kit) -> None:
    _empty_or_boolean(kit.get("v2/health/ready"), "live", "ready")


@AREA.should(
    "模型就绪回答为空或 {name, ready}",
    "the body of a model's readiness is empty, or has its name and a boolean",
    oip("Model Ready Response JSON Object", '"name" : $string, "ready": $bool (earlier: should be empty)'),
)
def model_ready_body(kit: Kit) -> None:
    exchange = kit.get(kit.path(kit.subject, "ready"))
    _empty_or_boolean(exchange, "ready")
    if exchange.body.strip():
        expect(exchange.json().get("name") == kit.subject, "name is not the model's", exchange)


def _is_true(exchange: Exchange) -> None:
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)


def _empty_or_boolean(exchange: Exchange, *fields: str) -> None:
    if not exchange.body.strip():
        return
    found = exchange.json()
    expect(isinstance(found, dict), "the body is not an object", exchange)
    expect(any(found.get(field) is True for field in fields), f"{' or '.join(fields)} is not true", exchange)
