"""`inference.GRPCInferenceService`: a skin over `DataPlane` that says what REST says (`oip_about`, `oip_request`).

A model is `vendor--name` or `vendor/name`; a version is a number or an alias.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import json_format

from model_store.errors import NotFound, NotHere, Refusal
from model_store.manifest import Manifest
from serving.asgi import PASSED_RPC, Siblings
from serving.dataplane import Inference
from serving.digests import digest_of_bytes
from serving.errors.node import deadline_exceeded
from serving.errors.requests import no_such_path
from serving.messages import Response
from serving.ports import Principal
from serving.protocols.grpc_call import GrpcCall
from serving.protocols.grpc_codec import decode_infer, encode_inference, parse
from serving.protocols.grpc_messages import (
    INFERENCE,
    Method,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from serving.protocols.oip import deadline_of
from serving.protocols.oip_about import check_scope
from serving.protocols.oip_classification import check_classes, classified
from serving.protocols.oip_extensions import check_load_parameters
from serving.protocols.oip_request import InferRequest, priority_of
from serving.remote.link import refusal_of

if TYPE_CHECKING:
    from serving.app import ServingApp

DECODE_IN_THREAD_BYTES = 64 << 10  # as typed contents these may be as many values
ENCODE_IN_THREAD_ELEMENTS = 32_768
ENCODE_IN_THREAD_BYTES = 1 << 20
WATCH_S = 1.0
OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})  # as /v2/health/*: without a key
PASSED_ON = (b"authorization", b"x-api-key", b"idempotency-key", b"x-priority")
Document = dict[str, Any]


class Answered(msgspec.Struct):
    """A request that was run: `content` is the message to send."""

    usage_id: str
    amount_micro: int
    content: bytes


class GrpcInference:
    """Answers the methods of the inference service and of gRPC's health service."""

    def __init__(self, app: ServingApp) -> None:
        self._app, self._dataplane, self._about = app, app.dataplane, app.oip.about
        self._documents: dict[str, Callable[[Principal, Any], Awaitable[Document]]] = {
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    # --- infer --------------------------------------------------------------------------------------------------------

    async def infer(self, call: GrpcCall, principal: Principal) -> None:
        """ModelInfer: one request, one answer; usage id and amount in the trailing metadata too. Raises `Refusal`."""
        answered = await self._answer(call, principal, await call.read(), _whole)
        call.tell(x_usage_id=answered.usage_id, x_amount_micro=str(answered.amount_micro))
        await call.write(answered.content)

    async def stream(self, call: GrpcCall, principal: Principal) -> None:
        """ModelStreamInfer: one after the other, answered in their order. A refused request is an `error_message`, and
        the stream goes on; a key that no longer holds ends it, by `Unauthenticated`."""
        while (content := await call.next()) is not None:
            principal = await self._app.authenticate(call.headers)
            try:
                answer = (await self._answer(call, principal, content, _streamed)).content
            except Refusal as refusal:
                self._dataplane.statistics.refused(refusal.code)
                self._dataplane.statistics.answered(refusal.status)
                refusal.forget_frames()
                answer = await self._dataplane.in_thread(_refused, content, refusal, self._app.refusal_text(refusal))
            await call.write(answer)

    async def answer_passed(self, headers: Mapping[bytes, bytes], principal: Principal, content: bytes) -> Response:
        """The request of a call that another process has taken (`_elsewhere`). Raises `Refusal`."""
        done = await self._infer(headers, None, principal, content, _whole)
        told = [(b"x-usage-id", done.usage_id.encode()), (b"x-amount-micro", str(done.amount_micro).encode())]
        return Response(200, done.content, told)

    async def _answer(
        self, call: GrpcCall, principal: Principal, content: bytes, wrap: Callable[[Any], bytes]
    ) -> Answered:
        """Here, or where the call's key of idempotency belongs."""
        key, siblings = call.headers.get(b"idempotency-key"), self._app.siblings
        if key and siblings is not None and siblings.is_elsewhere(key):
            return await self._elsewhere(siblings, key, call, content, wrap)
        return await self._infer(call.headers, call.time_left_ms(), principal, content, wrap)

    async def _elsewhere(
        self, siblings: Siblings, key: bytes, call: GrpcCall, content: bytes, wrap: Callable[[Any], bytes]
    ) -> Answered:
        left, asked = call.time_left_ms(), deadline_of(call.headers.get(b"x-deadline-ms"))
        deadline = min((each for each in (left, asked) if each is not None), default=None)
        headers = {
            name.decode(): call.headers[name].decode("latin-1") for name in PASSED_ON if name in call.headers
        } | {"x-request-id": call.request_id}
        if self._dataplane.tracing is not None:
            headers |= self._dataplane.tracing.passed_on()
        if deadline is not None:
            if deadline <= 0:
                raise deadline_exceeded(deadline)
            headers["x-deadline-ms"] = f"{max(deadline, 0.001):.3f}"
        status, told, answer = await siblings.ask_owner(key, PASSED_RPC, headers, content)
        if status != 200:
            raise refusal_of(status, answer)
        if wrap is not _whole:
            answer = wrap(parse(ModelInferResponse, answer))
        return Answered(told["x-usage-id"], int(told["x-amount-micro"]), answer)

    async def _infer(
        self,
        headers: Mapping[bytes, bytes],
        time_left_ms: float | None,
        principal: Principal,
        content: bytes,
        wrap: Callable[[Any], bytes],
    ) -> Answered:
        check_scope(principal, "use")
        plane, key = self._dataplane, headers.get(b"idempotency-key")
        if len(content) > DECODE_IN_THREAD_BYTES:
            model, request, digest = await plane.in_thread(_decode, content, bool(key))
        else:
            model, request, digest = _decode(content, bool(key))
        served = self._about.resolve(principal, *model)
        manifest = await plane.manifest_of(served) if request.classes else None
        if request.classes and manifest is not None:
            check_classes(request.classes, manifest, request.inputs)
        limits = (time_left_ms, deadline_of(headers.get(b"x-deadline-ms")), request.timeout_ms)
        inference = await plane.infer(
            principal,
            served,
            request.inputs,
            request.outputs,
            deadline_ms=min((limit for limit in limits if limit is not None), default=None),
            idempotency_key=key.decode("latin-1") if key else None,
            digest=digest,
            priority=request.priority or priority_of(headers.get(b"x-priority")) or "normal",
        )
        shown = self._about.shown(principal, served)
        if manifest is not None or _is_large(inference):
            encoded = await plane.in_thread(_encode, shown, served.version, request, inference, manifest, wrap)
        else:
            encoded = _encode(shown, served.version, request, inference, manifest, wrap)
        plane.statistics.answered(200)
        return Answered(inference.usage_id, inference.amount_micro, encoded)

    # --- about --------------------------------------------------------------------------------------------------------

    async def tell(self, method: Method, call: GrpcCall, principal: Principal | None) -> None:
        """Every other method: one request, one document. `principal` may be None for `OPEN_METHODS` only."""
        request = parse(method.request, await call.read())
        if principal is None:
            document = {"live": True} if method.name == "ServerLive" else {"ready": self._is_ready(call)}
        else:
            document = await self._documents[method.name](principal, request)
        answer = await self._dataplane.in_thread(_message_of, method.answer, document)
        self._dataplane.statistics.answered(200)
        call.tell()
        await call.write(answer)

    async def _model_ready(self, principal: Principal, request: Any) -> Document:
        try:
            await self._about.check_ready(principal, request.name, request.version or None)
        except NotFound:
            return {"ready": False}
        return {"ready": True}

    async def _server_metadata(self, principal: Principal, request: Any) -> Document:
        return self._about.server()

    async def _model_metadata(self, principal: Principal, request: Any) -> Document:
        return await self._about.metadata(principal, request.name, request.version or None)

    async def _model_config(self, principal: Principal, request: Any) -> Document:
        return {"config": await self._about.config(principal, request.name, request.version or None)}

    async def _model_statistics(self, principal: Principal, request: Any) -> Document:
        if request.name:
            return await self._about.statistics(principal, request.name, request.version or None)
        known = await self._dataplane.joined.statistics()
        return await self._dataplane.in_thread(self._about.all_statistics, principal, known)

    async def _repository_index(self, principal: Principal, request: Any) -> Document:
        unloaded = await self._about.unloaded()
        return {"models": await self._dataplane.in_thread(self._about.index, principal, unloaded)}

    async def _load(self, principal: Principal, request: Any) -> Document:
        try:
            check_load_parameters(request.parameters)
            await self._about.load(principal, request.model_name)
        except (NotFound, NotHere) as refusal:
            refusal.details["loading"] = request.model_name
            raise
        return {}

    async def _unload(self, principal: Principal, request: Any) -> Document:
        await self._about.unload(principal, request.model_name)
        return {}

    # --- health -------------------------------------------------------------------------------------------------------

    async def check(self, method: Method, call: GrpcCall) -> None:
        """grpc.health.v1.Health/Check. Raises `NotFound` NO_SUCH_PATH for a service that is not served here."""
        service = parse(method.request, await call.read()).service
        status = self._status_of(call, service)
        if status == "SERVICE_UNKNOWN":
            raise no_such_path(service)
        await call.write(_message_of(method.answer, {"status": status}))

    async def watch(self, method: Method, call: GrpcCall) -> None:
        """grpc.health.v1.Health/Watch: the status now, and whenever it changes."""
        service = parse(method.request, await call.read()).service
        said = ""
        while not call.is_over:
            status = self._status_of(call, service)
            if status != said:
                await call.write(_message_of(method.answer, {"status": status}))
                said = status
            if await call.stopped_within(WATCH_S) and said != "SERVING":
                return

    def _status_of(self, call: GrpcCall, service: str) -> str:
        if service not in ("", INFERENCE):
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._is_ready(call) else "NOT_SERVING"

    def _is_ready(self, call: GrpcCall) -> bool:
        return not call.is_stopping and self._app.is_ready()


def _decode(content: bytes, strong: bool) -> tuple[tuple[str, str | None], InferRequest, str]:
    message, request = decode_infer(content)
    if strong:  # one request may be serialised in several ways, and a repeat must be known as one
        content = message.SerializeToString(deterministic=True)
    return (message.model_name, message.model_version or None), request, digest_of_bytes(content, strong)


def _is_large(inference: Inference) -> bool:
    """Writing it would hold the event loop."""
    outputs = inference.outputs.values()
    return (
        sum(array.size for array in outputs) > ENCODE_IN_THREAD_ELEMENTS
        or sum(array.nbytes for array in outputs) > ENCODE_IN_THREAD_BYTES
    )


def _encode(
    model: str,
    version: int,
    request: InferRequest,
    inference: Inference,
    manifest: Manifest | None,
    wrap: Callable[[Any], bytes],
) -> bytes:
    """`manifest` where classifications are asked for."""
    if manifest is not None and request.classes:
        ranked = classified(inference.outputs, request.classes, manifest)
        inference = msgspec.structs.replace(inference, outputs=ranked)
    return wrap(encode_inference(model, version, request, inference))


def _whole(response: Any) -> bytes:
    content: bytes = response.SerializeToString()
    return content


def _streamed(response: Any) -> bytes:
    response.parameters["triton_final_response"].bool_param = True  # one answer to one request
    return _whole(ModelStreamInferResponse(infer_response=response))


def _refused(content: bytes, refusal: Refusal, text: str) -> bytes:
    answer = ModelStreamInferResponse(error_message=text)
    answer.infer_response.parameters["algomart_code"].string_param = refusal.code
    answer.infer_response.parameters["triton_final_response"].bool_param = True
    with contextlib.suppress(Refusal):  # so that the caller knows which
        answer.infer_response.id = parse(ModelInferRequest, content).id
    return _whole(answer)


def _message_of(answer: Any, document: Document) -> bytes:
    return _whole(json_format.ParseDict(document, answer(), ignore_unknown_fields=True))
