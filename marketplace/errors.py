"""How the market's JSON API renders a refusal: `{"error": {code, message, message_zh, remedy, …, request_id}}`.

The tree of refusals is drawn in `model_store.errors`; here framework errors become leaves of it too.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from marketplace.db import is_contended
from model_store.errors import BadInput, Broken, NotFound, Refusal, Unavailable
from serving.errors.requests import body_too_large

_log = logging.getLogger("algomart.market")
# pydantic's error types → the rule in Chinese; `{}` takes the limit. Others fall back on pydantic's English.
_RULES_ZH = {
    "missing": "必填",
    "string_too_short": "至少 {min_length} 个字符",
    "string_too_long": "最多 {max_length} 个字符",
    "int_parsing": "须为整数",
    "int_type": "须为整数",
    "int_from_float": "须为整数",
    "float_parsing": "须为数字",
    "bool_parsing": "须为 true 或 false",
    "string_type": "须为文本",
    "list_type": "须为列表",
    "dict_type": "须为对象",
    "json_invalid": "不是有效的 JSON",
    "literal_error": "只能是 {expected}",
    "greater_than_equal": "不能小于 {ge}",
    "less_than_equal": "不能大于 {le}",
    "greater_than": "须大于 {gt}",
    "less_than": "须小于 {lt}",
    "extra_forbidden": "没有这个字段",
    "too_long": "最多 {max_length} 项",
    "model_attributes_type": "须为 JSON 对象",
}


def refusal_response(refusal: Refusal, request_id: str) -> JSONResponse:
    """The refusal as JSON with its status, the request id, and when to come back."""
    headers = {"X-Request-Id": request_id}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="algomart"'
    return JSONResponse({"error": refusal.as_dict(request_id)}, status_code=refusal.status, headers=headers)


def refusal_of_validation(errors: list[dict[str, Any]]) -> BadInput:
    """One `BadInput` REQUEST_INVALID from pydantic's findings: the first in words, all of them in `details.errors`."""
    found = [
        {
            "field": ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0]),
            "rule": error["type"],
            "message": error["msg"],
            "message_zh": _rule_zh(error),
        }
        for error in errors[:20]
    ]
    first = found[0]
    return BadInput(
        "REQUEST_INVALID",
        zh=f"请求中的“{first['field']}”有误: {first['message_zh']}",
        en=f"{first['field']}: {first['message']}",
        remedy_zh="请对照 /openapi.json 修改后重试",
        remedy_en="compare the request with /openapi.json and send it again",
        field=first["field"],
        details={"errors": found},
    )


def refusal_of_http(error: HTTPException, path: str) -> Refusal:
    """A refusal for what the framework itself answers (no such route, wrong method …)."""
    if error.status_code == 404:
        return NotFound(
            "NO_SUCH_PATH",
            zh=f"没有这个地址: {path[:120]}",
            en=f"there is nothing at {path[:120]}",
            remedy_zh="接口清单见 /openapi.json",
            remedy_en="/openapi.json lists what there is",
        )
    if error.status_code == 413 and str(error.detail).isdigit():  # as `body_limit` says it
        return body_too_large(int(str(error.detail)))
    refusal = BadInput(
        "METHOD_NOT_ALLOWED" if error.status_code == 405 else "REQUEST_REFUSED",
        zh=f"请求无法处理: {error.detail}",
        en=str(error.detail),
        remedy_zh="接口清单见 /openapi.json",
        remedy_en="/openapi.json lists paths, methods and bodies",
    )
    refusal.status = error.status_code  # type: ignore[misc]  # the framework's own status, on this one refusal
    return refusal


def add_error_handlers(app: FastAPI) -> None:
    """Render every failure of the JSON API in the one shape."""

    @app.exception_handler(Refusal)
    async def _refusal(request: Request, error: Refusal) -> Response:
        return refusal_response(error, request_id_of(request))

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return refusal_response(refusal_of_validation([dict(e) for e in error.errors()]), request_id_of(request))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return refusal_response(refusal_of_http(error, request.url.path), request_id_of(request))

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, error: ClientDisconnect) -> Response:
        _log.info("REQUEST_INCOMPLETE: the client hung up before its request ended, %s", request_id_of(request))
        return refusal_response(incomplete(), request_id_of(request))

    @app.exception_handler(OverflowError)
    @app.exception_handler(DataError)
    async def _beyond(request: Request, error: Exception) -> Response:
        _log.warning("a value that the database cannot hold, request %s", request_id_of(request), exc_info=error)
        return refusal_response(out_of_range(), request_id_of(request))

    @app.exception_handler(OperationalError)
    async def _contended(request: Request, error: OperationalError) -> Response:
        if not is_contended(error):
            return await _broken(request, error)
        _log.warning("DATABASE_BUSY: another writer came first, request %s", request_id_of(request), exc_info=error)
        return refusal_response(database_busy(), request_id_of(request))

    @app.exception_handler(Exception)
    async def _broken(request: Request, error: Exception) -> Response:
        _log.exception("unexpected error, request %s", request_id_of(request), exc_info=error)
        return refusal_response(broken(), request_id_of(request))


def incomplete() -> BadInput:
    """Hardly anybody reads it; what came of the request is dropped."""
    return BadInput(
        "REQUEST_INCOMPLETE",
        zh="请求未传完连接就断开了, 已丢弃",
        en="the connection ended before the request did; what had come of it is dropped",
        remedy_zh="请重新发送完整的请求",
        remedy_en="send the whole request again",
    )


def out_of_range() -> BadInput:
    """SQLite says OverflowError, PostgreSQL DataError: beyond 64 bits, or a text with a NUL in it."""
    return BadInput(
        "NUMBER_OUT_OF_RANGE",
        zh="请求中有数值超出了可表示的范围",
        en="a number in the request is beyond what can be kept",
        remedy_zh="请检查请求中的编号、时间与金额 (64 位整数以内)",
        remedy_en="check numbers, instants and amounts in the request: they fit 64 bits",
    )


def database_busy() -> Unavailable:
    """The database ended the request's transaction for another writer's sake; all of it was taken back."""
    return Unavailable(
        "DATABASE_BUSY",
        zh="数据库正忙于其他更改, 本次更改未生效",
        en="the database is busy with another change; this one was not made",
        remedy_zh="请稍后重试",
        remedy_en="send it again",
        retry_after_s=1,
    )


def broken() -> Broken:
    return Broken(
        "INTERNAL_ERROR",
        zh="平台内部错误, 已记录",
        en="something broke on our side; it has been logged",
        remedy_zh="请稍后重试; 若再次出现, 请把请求编号告诉平台运营方",
        remedy_en="try again; if it happens again, tell the operator the request id",
    )


def request_id_of(request: Request) -> str:
    return str(request.scope.get("algomart.request_id", ""))


def _rule_zh(error: dict[str, Any]) -> str:
    template = _RULES_ZH.get(str(error["type"]))
    if template is None:
        return str(error["msg"])
    try:
        return template.format(**error.get("ctx", {}))
    except KeyError:
        return str(error["msg"])
