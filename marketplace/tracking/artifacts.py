"""Artifacts over MLflow's proxy: which path is whose, streamed both ways under limits.

Paths are `<experiment>/<run>/artifacts/…`, `<experiment>/models/<logged model>/artifacts/…` and
`<experiment>/traces/<trace>/artifacts/…`. One's own experiments are read and written; what a registered version holds
is never changed again, and is read by whoever may download that version.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import httpx
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from marketplace.access import Actor
from marketplace.settings import Settings
from marketplace.tracking.refusals import bad_request, kept, not_found, too_large
from marketplace.tracking.sharing import may_download
from marketplace.tracking.tenancy import Tenancy
from marketplace.tracking.upstream import ARTIFACTS, Upstream, unavailable

MAX_PATH_CHARACTERS = 1024
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT = re.compile(r"[^/\\%\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True, slots=True)
class Place:
    """An artifact path taken apart. `kind` run | models | traces; `id` "" for an experiment's own root."""

    path: str
    experiment: str
    kind: str
    id: str


def parse_path(path: str) -> Place:
    """`BadInput` for a path that could lead elsewhere, or that is none of the three forms."""
    segments = path.strip("/").split("/")
    lawful = len(path) <= MAX_PATH_CHARACTERS and all(
        _SEGMENT.fullmatch(each) and each not in (".", "..") for each in segments
    )
    if not lawful or not segments[0].isascii() or not segments[0].isdigit():
        raise bad_request("文件路径无效", "the artifact path is not valid", "path")
    kind = segments[1] if len(segments) > 1 and segments[1] in ("models", "traces") else "run"
    at = 2 if kind != "run" else 1
    given = segments[at] if len(segments) > at else ""
    if given and not _ID.fullmatch(given):
        raise bad_request("文件路径无效", "the artifact path is not valid", "path")
    return Place("/".join(segments), segments[0], kind, given)


def folder_of_source(source: str, storage: str = "") -> str:
    """The artifact folder of a model version's source; "" for what lies elsewhere."""
    for each in (source, storage):
        parts = urlsplit(each)
        if parts.scheme == "mlflow-artifacts":
            return parts.path.strip("/")
    return ""


class Artifacts:
    """The artifact endpoints; one file, up or down, is at most `settings.max_upload_bytes`."""

    def __init__(self, upstream: Upstream, tenancy: Tenancy, engine: Engine, settings: Settings) -> None:
        self._upstream, self._tenancy, self._engine, self._settings = upstream, tenancy, engine, settings
        self.frozen: set[str] = set()  # folders that are being registered: what was inspected is what is kept

    async def get(self, actor: Actor, path: str) -> Response:
        """One file, streamed; never rendered by a browser."""
        place = parse_path(path)
        await self._check_read(actor, place)
        response = await self._upstream.get(place.path)
        if response.status_code != 200:
            await response.aclose()
            if response.status_code >= 500 and response.status_code != 500:
                raise unavailable(f"HTTP {response.status_code}")
            raise not_found("artifact", place.path)  # MLflow answers 500 for a file that is not there
        headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
        if size := response.headers.get("content-length"):
            if int(size) > self._settings.max_upload_bytes:
                await response.aclose()
                raise too_large(self._settings.max_upload_bytes)
            headers["Content-Length"] = size
        return StreamingResponse(
            _relayed(response, self._settings.max_upload_bytes), headers=headers, media_type="application/octet-stream"
        )

    async def list_folder(self, actor: Actor, path: str) -> Response:
        """`{"files": [{path, is_dir, file_size}]}` of a folder."""
        place = parse_path(path)
        await self._check_read(actor, place)
        answer = await self._upstream.call("GET", ARTIFACTS, query={"path": [place.path]})
        return JSONResponse(answer.body, status_code=answer.status)

    async def put(self, actor: Actor, path: str, request: Request) -> Response:
        """Store one file in an experiment of one's own."""
        place = parse_path(path)
        await self._check_write(actor, place)
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._settings.max_upload_bytes:
            raise too_large(self._settings.max_upload_bytes)
        await self._upstream.put(
            place.path, _bounded(request, self._settings.max_upload_bytes), declared if declared.isdigit() else ""
        )
        return JSONResponse({})

    async def delete(self, actor: Actor, path: str) -> Response:
        place = parse_path(path)
        await self._check_write(actor, place)
        answer = await self._upstream.call("DELETE", f"{ARTIFACTS}/{place.path}")
        return JSONResponse(answer.body, status_code=answer.status)

    async def covering(self, place: Place, *, above: bool = False) -> list[dict[str, Any]]:
        """The registered versions whose files the path belongs to; with `above`, also those it is a folder of."""
        if not place.id or place.kind == "traces":
            return []
        wanted = f"run_id='{place.id}'" if place.kind == "run" else f"source_path='models:/{place.id}'"
        answer = await self._upstream.call(
            "GET", "/api/2.0/mlflow/model-versions/search", query={"filter": [wanted], "max_results": ["200"]}
        )
        if not answer.ok:
            raise unavailable(f"HTTP {answer.status}")
        rows: list[dict[str, Any]] = answer.body.get("model_versions", [])
        if place.kind == "models":
            return rows
        folders = [(row, folder_of_source(str(row.get("source", "")))) for row in rows]
        return [
            row
            for row, folder in folders
            if folder and (_inside(place.path, folder) or (above and _inside(folder, place.path)))
        ]

    async def shared(self, actor: Actor, place: Place) -> bool:
        """Whether a version that the caller may download holds this path."""
        rows = await self.covering(place)
        return await anyio.to_thread.run_sync(may_download, self._engine, actor, rows) if rows else False

    async def _check_read(self, actor: Actor, place: Place) -> None:
        if await self._tenancy.owner(place.experiment) == actor.organisation_id:
            return
        kind = "logged model" if place.kind == "models" else place.kind
        inside = place.id and await self._tenancy.experiment_of(kind, place.id) == place.experiment
        if not (inside and await self.shared(actor, place)):
            raise not_found("artifact", place.path)

    async def _check_write(self, actor: Actor, place: Place) -> None:
        if await self._tenancy.owner(place.experiment) != actor.organisation_id or not place.id:
            raise not_found("artifact", place.path)
        rows = await self.covering(place, above=True)
        if rows or any(_inside(place.path, folder) or _inside(folder, place.path) for folder in self.frozen):
            named = f"{rows[0]['name']} {rows[0]['version']}" if rows else "…"
            raise kept(
                f"文件属于已注册的版本 {named}, 不可更改",
                f"the file belongs to the registered version {named} and stays as it is",
                "请记录新的模型并注册为新版本",
                "log a new model and register it as a new version",
            )


def _inside(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


async def _bounded(request: Request, limit: int) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large(limit)
        yield chunk


async def _relayed(response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
    sent = 0
    try:
        async for chunk in response.aiter_bytes():
            sent += len(chunk)
            if sent > limit:
                raise too_large(limit)
            yield chunk
    finally:
        await response.aclose()
