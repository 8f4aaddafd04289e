"""The native surface, what a factory programmer types by hand: `/v1/use`, and choose and adapt over ports.

Choose and adapt belong to the market: a lone node answers 501 and says where it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from model_store.errors import NotHere, Refusal
from serving.dataplane import DataPlane
from serving.errors.access import scope_missing
from serving.errors.requests import no_such_path, request_field
from serving.messages import Request, Response, check_method, json_response
from serving.multipart import Form, parse_form
from serving.ports import Adapting, Chooser, Ports
from serving.protocols.use import Using
from serving.protocols.use_rows import json_object

EVENT_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


class NativeProtocol:
    """Answers every request under `/v1`."""

    def __init__(self, dataplane: DataPlane, ports: Ports) -> None:
        self._dataplane, self._ports = dataplane, ports
        self._using = Using(dataplane, ports)

    async def answer(self, request: Request) -> Response:
        """One response, or a `Refusal`."""
        parts = [part for part in request.path.split("/") if part][1:]
        match parts:
            case ["use", *name] if name:
                check_method(request.method, "POST")
                return await self._using.answer(request, "/".join(name))
            case ["drift", *name] if name:
                check_method(request.method, "GET")
                return await self._using.drift(request, "/".join(name))
            case ["sample-sets"]:
                check_method(request.method, "POST")
                return await self._create_samples(request)
            case ["sample-sets", sample_set_id]:
                check_method(request.method, "DELETE")
                return json_response(await self._chooser(request).delete_sample_set(request.principal, sample_set_id))
            case ["choose"]:
                check_method(request.method, "POST")
                answer = await self._chooser(request).choose(request.principal, json_object(request.body))
                return json_response(answer, 202)
            case ["choose", choice_id]:
                check_method(request.method, "GET")
                return json_response(await self._chooser(request).get(request.principal, choice_id))
            case ["recipes"]:
                check_method(request.method, "GET")
                cards = self._adapting(request).recipe_cards()
                return json_response({"items": cards, "total": len(cards)})
            case ["adapt", *rest]:
                return await self._adapt(request, rest)
        raise no_such_path(request.path)

    # --- choose and adapt ---------------------------------------------------------------------------------------------

    async def _create_samples(self, request: Request) -> Response:
        chooser = self._chooser(request)
        form: Form = await self._dataplane.in_thread(parse_form, request.header(b"content-type"), request.body)
        if form.file is None:
            raise request_field("file", "缺少样本文件 file", "the samples are missing: send them as the file `file`")
        answer = await chooser.create_sample_set(
            request.principal, filename=form.file.filename, content=form.file.content, form=form.fields
        )
        return json_response(answer, 201)

    async def _adapt(self, request: Request, rest: list[str]) -> Response:
        adapting, principal = self._adapting(request), request.principal
        match rest:
            case []:
                if request.method == "GET":
                    jobs = await adapting.list(principal)
                    return json_response({"items": jobs, "total": len(jobs)})
                check_method(request.method, "POST")
                return json_response(await adapting.create(principal, json_object(request.body)), 202)
            case [job_id]:
                check_method(request.method, "GET")
                return json_response(await adapting.get(principal, job_id))
            case [job_id, "cancel"]:
                check_method(request.method, "POST")
                return json_response(await adapting.cancel(principal, job_id))
            case [job_id, "events"]:
                check_method(request.method, "GET")
                await adapting.get(principal, job_id)  # a stranger's job is a 404, not an empty stream
                stream = _events(adapting.events(principal, job_id)) if request.method == "GET" else None
                return Response(200, headers=[EVENT_TYPE, (b"cache-control", b"no-store")], stream=stream)
        raise no_such_path(request.path)

    def _chooser(self, request: Request) -> Chooser:
        if "choose" not in request.principal.scopes:
            raise scope_missing("choose")
        if self._ports.chooser is None:
            raise self._not_here("choose")
        return self._ports.chooser

    def _adapting(self, request: Request) -> Adapting:
        if "adapt" not in request.principal.scopes:
            raise scope_missing("adapt")
        if self._ports.adapting is None:
            raise self._not_here("adapt")
        return self._ports.adapting

    def _not_here(self, what: str) -> Refusal:
        where = self._ports.market_url
        return NotHere(
            "NOT_HERE",
            zh=f"本节点不提供 {what}",
            en=f"this node does not offer {what}",
            remedy_zh=f"请使用市场: {where}" if where else "请使用市场的地址",
            remedy_en=f"ask the market: {where}" if where else "ask the market",
        )


async def _events(changes: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for change in changes:
        yield b"event: " + str(change.get("state", "progress")).encode() + b"\ndata: " + orjson.dumps(change) + b"\n\n"
