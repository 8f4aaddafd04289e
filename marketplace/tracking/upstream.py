"""The MLflow server behind the authorising layer: JSON calls and streamed artifacts, over one pooled client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from marketplace.tracking.refusals import too_large
from model_store.errors import Unavailable

MAX_ANSWER_BYTES = 64 << 20
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
Query = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What MLflow said. `body` is {} where it sent no JSON object."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def missing(self) -> bool:
        return self.status == 404 or self.body.get("error_code") == "RESOURCE_DOES_NOT_EXIST"


class Upstream:
    """`headers` carry the child's private token; nothing of the caller's request but its JSON or bytes goes on."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=dict(headers),
            trust_env=False,
            timeout=httpx.Timeout(120.0, connect=5.0),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(
        self, method: str, path: str, *, query: Query | None = None, body: dict[str, Any] | None = None
    ) -> Answer:
        """One JSON call, e.g. `GET /api/2.0/mlflow/runs/get`. `Unavailable` where no MLflow answers."""
        content = None if body is None else orjson.dumps(body)
        return await self.raw(method, path, query=query, content=content, headers={"Content-Type": "application/json"})

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A call with a body of any kind and an answer in JSON."""
        request = self._http.build_request(
            method, path, params=dict(query or {}), content=content, headers=dict(headers or {})
        )
        response = await self._send(request)
        try:
            received = bytearray()
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > MAX_ANSWER_BYTES:
                    raise too_large(MAX_ANSWER_BYTES)
        except httpx.HTTPError as error:
            raise unavailable(error) from error
        finally:
            await response.aclose()
        if response.status_code == 401:
            raise unavailable("HTTP 401")  # the child refuses us, not the caller
        try:
            parsed = orjson.loads(received) if received else {}
        except orjson.JSONDecodeError:
            if response.status_code >= 500:
                raise unavailable(f"HTTP {response.status_code}") from None
            parsed = {}
        return Answer(response.status_code, parsed if isinstance(parsed, dict) else {})

    async def put(self, path: str, content: AsyncIterator[bytes], size: str) -> Answer:
        """Stream an artifact up; `size` is its Content-Length or "" where unknown."""
        headers = {"Content-Length": size} if size else {}
        request = self._http.build_request("PUT", f"{ARTIFACTS}/{quote(path)}", content=content, headers=headers)
        response = await self._send(request)
        await response.aread()
        await response.aclose()
        if response.status_code >= 400:
            raise unavailable(f"HTTP {response.status_code}")
        return Answer(response.status_code, {})

    async def get(self, path: str) -> httpx.Response:
        """Open an artifact for reading; the caller closes it."""
        return await self._send(self._http.build_request("GET", f"{ARTIFACTS}/{quote(path)}"))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise unavailable(error) from error


def unavailable(why: object) -> Unavailable:
    return Unavailable(
        "REGISTRY_UNAVAILABLE",
        zh=f"模型登记服务 (MLflow) 暂不可用: {str(why)[:200]}",
        en=f"the model registry (MLflow) is not available: {str(why)[:200]}",
        remedy_zh="请稍后重试; 市场会自动重启登记服务",
        remedy_en="try again shortly; the market restarts it by itself",
        retry_after_s=3,
    )
