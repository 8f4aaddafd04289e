"""Triton's extensions that are not offered here, recognised so that the refusal says so and what to do instead."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from model_store.errors import NotHere
from serving.errors.requests import extension_not_offered, request_field, request_json, shared_memory_not_offered

# Of Triton's gRPC service, beside what `proto/inference.proto` has.
METHODS_NOT_OFFERED = (
    *(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")),
    "TraceSetting",
    "LogSettings",
)


def not_offered_at(path: str) -> NotHere | None:
    """The refusal where a path under `/v2` belongs to such an extension; None for any other path."""
    parts = path.split("/")[2:]
    if parts[:1] in (["systemsharedmemory"], ["cudasharedmemory"]):
        return shared_memory_not_offered("path")
    if parts[-2:] == ["trace", "setting"]:
        return _tracing_not_offered("path")
    return _logging_not_offered("path") if parts == ["logging"] else None


def not_offered_by(method: str) -> NotHere:
    """The refusal of one of `METHODS_NOT_OFFERED`."""
    if method == "TraceSetting":
        return _tracing_not_offered("method")
    return _logging_not_offered("method") if method == "LogSettings" else shared_memory_not_offered("method")


def _tracing_not_offered(field: str) -> NotHere:
    return extension_not_offered(
        field,
        "跟踪设置",
        "trace settings",
        "请使用应答中的 X-Request-Id 与 GET /api/v1/usage/{usage_id} 追踪一次调用",
        "follow a call by its X-Request-Id, and by GET /api/v1/usage/{usage_id}",
    )


def _logging_not_offered(field: str) -> NotHere:
    return extension_not_offered(
        field,
        "远程日志设置",
        "log settings from afar",
        "请在启动时设置 ALGOMART_LOG_LEVEL",
        "set ALGOMART_LOG_LEVEL at start",
    )


def check_load_body(body: bytes) -> None:
    """A load may carry nothing that would change the model: bundles are immutable.

    Raises `NotHere` EXTENSION_NOT_OFFERED, `BadInput` REQUEST_JSON, REQUEST_FIELD.
    """
    if not body.strip():
        return
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise request_json(str(error)) from error
    parameters = asked.get("parameters", {}) if isinstance(asked, dict) else None
    if not isinstance(parameters, dict):
        raise request_field("body", "须为 JSON 对象", "must be a JSON object, and `parameters` in it too")
    check_load_parameters(parameters)


def check_load_parameters(parameters: Iterable[str]) -> None:
    """As `check_load_body`, of the names of a load's parameters. Raises `NotHere` EXTENSION_NOT_OFFERED."""
    for name in parameters:
        raise extension_not_offered(
            f"parameters.{name}",
            "加载时改变配置或文件",
            "a change of configuration or files at loading",
            "请发布新版本",
            "publish a new version",
        )
