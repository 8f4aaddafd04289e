"""`/mlflow/**`: MLflow's own interface for unmodified clients, each call scoped to the caller's organisation.

    MLFLOW_TRACKING_URI=http://host:port/mlflow  MLFLOW_TRACKING_TOKEN=am_…

The market key is the bearer token. What `endpoints` does not name is refused; what it names reaches MLflow only once
every id in it is proved to be the caller's. The child never sees the caller's headers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio.to_thread
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from marketplace.access import Actor, actor_of, check_may, token_of
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.errors import broken
from marketplace.keys.authentication import find_key, key_refused
from marketplace.market import Market
from marketplace.tracking.artifacts import Artifacts
from marketplace.tracking.calls import Call, scope_ids
from marketplace.tracking.endpoints import find_endpoint
from marketplace.tracking.refusals import bad_request, mlflow_refusal, not_offered, too_large
from marketplace.tracking.registering import Registering
from marketplace.tracking.registry import RegistryRules
from marketplace.tracking.rules import TrackingRules
from marketplace.tracking.tenancy import Tenancy
from marketplace.tracking.upstream import ARTIFACTS, Answer, Upstream
from model_store.errors import Refusal

PREFIX = "/mlflow"
MAX_JSON_BYTES = 16 << 20
Rule = Callable[[Call], Awaitable[Answer]]
_log = logging.getLogger(__name__)


class MlflowProxy:
    """A raw ASGI application; mount it at `/mlflow`, or hand it every path that begins so."""

    def __init__(self, market: Market, base_url: str, headers: Mapping[str, str]) -> None:
        """`base_url`, `headers`: the MLflow server, and what authorises the market there."""
        self._market = market
        self._upstream = Upstream(base_url, headers)
        self._tenancy = Tenancy(self._upstream)
        self._artifacts = Artifacts(self._upstream, self._tenancy, market.engine, market.settings)
        self._registering = Registering(market, self._upstream, self._tenancy, base_url, dict(headers))
        self._tracking = TrackingRules(self._upstream, self._tenancy, self._artifacts)
        self._registry = RegistryRules(market, self._upstream, self._registering, self._artifacts)

    async def aclose(self) -> None:
        await self._upstream.aclose()
        self._registering.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the MLflow surface speaks HTTP only"
        request = Request(scope, receive)
        request_id = str(scope.get("algomart.request_id", ""))
        try:
            response = await self._answer(request, _inner_path(scope))
        except Refusal as refusal:
            response = mlflow_refusal(refusal, request_id)
        except ClientDisconnect:
            return
        except Exception:
            _log.exception("mlflow surface: unexpected error, request %s", request_id)
            response = mlflow_refusal(broken(), request_id)
        await response(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        if path in ("/health", "/health/") and request.method == "GET":
            return PlainTextResponse("OK")
        actor = await anyio.to_thread.run_sync(self._actor, token_of(request))
        if path == ARTIFACTS or path.startswith(f"{ARTIFACTS}/"):
            return await self._answer_artifact(request, actor, path.removeprefix(ARTIFACTS).removeprefix("/"))
        found = find_endpoint(request.method, path.removeprefix("/api/")) if path.startswith("/api/") else None
        if found is None:
            raise not_offered(f"{request.method} {path}")
        endpoint, params = found
        check_may(actor, scope="publish" if endpoint.writes else None)
        call = Call(actor, endpoint, path, params)
        if call.method == "GET":
            call.query = {key: request.query_params.getlist(key) for key in request.query_params}
        else:
            call.body = await _json_of(request)
        await scope_ids(call, self._tenancy)
        answer = await self._rule(endpoint.rule)(call)
        return JSONResponse(answer.body, status_code=answer.status)

    async def _answer_artifact(self, request: Request, actor: Actor, path: str) -> Response:
        check_may(actor, scope=None if request.method == "GET" else "publish")
        if not path and request.method == "GET":
            return await self._artifacts.list_folder(actor, request.query_params.get("path", ""))
        if path and request.method == "GET":
            return await self._artifacts.get(actor, path)
        if path and request.method == "PUT":
            return await self._artifacts.put(actor, path, request)
        if path and request.method == "DELETE":
            return await self._artifacts.delete(actor, path)
        raise not_offered(f"{request.method} {ARTIFACTS}")

    def _actor(self, token: str) -> Actor:
        if not token:
            raise key_refused("KEY_MISSING")
        with reading(self._market.engine) as session:
            return actor_of(find_key(session, token, now_ms()))

    def _rule(self, name: str) -> Rule:
        rules = self._registry if hasattr(self._registry, name or "forward") else self._tracking
        rule: Rule = getattr(rules, name or "forward")
        return rule


def _inner_path(scope: Scope) -> str:
    """The path below `/mlflow`, whether or not a mount has taken that away already."""
    path = str(scope["path"])
    return path.removeprefix(PREFIX) if path == PREFIX or path.startswith(f"{PREFIX}/") else path


async def _json_of(request: Request) -> dict[str, Any]:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_JSON_BYTES:
            raise too_large(MAX_JSON_BYTES)
    if not received:
        return {}
    try:
        body = orjson.loads(received)
    except orjson.JSONDecodeError as error:
        raise bad_request("请求不是有效的 JSON", "the request is not valid JSON") from error
    if not isinstance(body, dict):
        raise bad_request("请求应为 JSON 对象", "a JSON object is expected")
    return body
