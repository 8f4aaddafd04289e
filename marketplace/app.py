"""The ASGI application of a market: the data plane first, then the JSON API, the MLflow surface and the web pages."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles
from ulid import ULID

from marketplace.body_limit import BodyLimit
from marketplace.catalogue import api as catalogue_api
from marketplace.catalogue import publishing_api, rollouts_api
from marketplace.claims import api as claims_api
from marketplace.clock import now_ms
from marketplace.errors import add_error_handlers
from marketplace.findings import api as findings_api
from marketplace.keys import api as keys_api
from marketplace.ledger import api as ledger_api
from marketplace.market import Market
from marketplace.nodes import api as nodes_api
from marketplace.nodes import write_off_api
from marketplace.organisations import api as organisations_api
from marketplace.organisations import members_api
from marketplace.reports import api as reports_api
from marketplace.review import api as review_api
from marketplace.tracking.proxy import PREFIX as MLFLOW_PREFIX
from marketplace.tracking.proxy import MlflowProxy
from marketplace.usage import api as usage_api
from marketplace.vouchers import api as vouchers_api
from marketplace.web import (
    account,
    actions,
    adapting,
    case_file,
    choosing,
    city_hall,
    city_reports,
    claims_desk,
    console,
    findings_desk,
    pages,
    trying,
    vendor_desk,
)
from serving.app import ServingApp
from serving.remote.clock import NOW_HEADER
from serving.remote.wire import PREFIX

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

ENDPOINT_THREADS = 32
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}


def create_api(market: Market) -> FastAPI:
    """The FastAPI application: `/api/v1/**`, `/openapi.json`, `/mlflow/**` and the pages. No page comes from a CDN."""
    app = FastAPI(
        title="AlgoMart 算法超市",
        summary="Model-as-a-Service marketplace for manufacturing",
        version=importlib.metadata.version("algomart"),
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
        lifespan=_lifespan,
    )
    app.state.market = market
    app.state.mlflow = _mlflow_surface(market)
    add_error_handlers(app)
    for router in _routers():
        app.include_router(router, prefix="/api/v1")
    desks = (case_file, console, vendor_desk, claims_desk, findings_desk, city_reports, city_hall)
    for surface in (pages, trying, actions, account, choosing, adapting, *desks):
        app.include_router(surface.router)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    if app.state.mlflow is not None:
        app.mount(MLFLOW_PREFIX, app.state.mlflow)
    return app


def _mlflow_surface(market: Market) -> MlflowProxy | None:
    """The surface for MLflow clients, before our child or the foreign server; None where a market has neither."""
    if market.mlflow is not None:
        return MlflowProxy(market, market.mlflow.base_url, market.mlflow.headers)
    return MlflowProxy(market, market.settings.mlflow_uri, {}) if market.settings.mlflow_uri else None


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # SQL runs in these threads; more of them than database connections would only wait for each other.
    anyio.to_thread.current_default_thread_limiter().total_tokens = ENDPOINT_THREADS
    yield
    if app.state.mlflow is not None:
        await app.state.mlflow.aclose()


def create_app(market: Market) -> ServingApp:
    """The whole application: the data plane answers `/v2`, `/v1` and `/metrics` before any framework sees them."""
    if market.dataplane is None or market.ports is None:
        raise RuntimeError("a market is served with its data plane; see marketplace.start.open_dataplane")
    app = ServingApp(market.dataplane, market.ports, inner=RequestIds(BodyLimit(create_api(market))))
    market.feed.is_over = lambda: app.stopping
    return app


class RequestIds:
    """Gives each request an id (the client's `X-Request-Id` where it is lawful) and each response its header."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{ULID()}"
        scope["algomart.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
                message["headers"] = [*headers, (b"x-request-id", request_id.encode())]
                if scope["path"].startswith(PREFIX):  # a node learns from it what its own clock is off
                    message["headers"].append((NOW_HEADER.encode(), str(now_ms()).encode()))
            await send(message)

        await self._app(scope, receive, send_with_id)


def _routers() -> list[APIRouter]:
    shop = [organisations_api, members_api, keys_api, catalogue_api, rollouts_api, publishing_api, review_api]
    money = [vouchers_api, usage_api, ledger_api, claims_api, findings_api, reports_api, nodes_api, write_off_api]
    return [module.router for module in (*shop, *money)]
