"""Open Inference Protocol V2 over REST, with Triton's extensions: a skin over `DataPlane`.

A model is `vendor--name` in a path (`vendor/name` is understood too); a version is a number or an alias. What the real
`tritonclient` sends is the test: no content type, an empty body on the index, gzip bodies, 200 for every success.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec
import orjson

from model_store.errors import BadInput, NotFound, NotHere
from model_store.manifest import Manifest
from model_store.names import path_name
from serving.dataplane import DataPlane, Inference
from serving.digests import digest_of_bytes
from serving.errors.node import deadline_exceeded
from serving.errors.requests import no_such_path, request_field, request_json
from serving.messages import JSON_TYPE, Request, Response, check_method, json_response
from serving.ports import Ports, Principal, ServedVersion
from serving.protocols.oip_about import About, check_scope
from serving.protocols.oip_classification import check_classes, classified
from serving.protocols.oip_extensions import check_load_body, not_offered_at
from serving.protocols.oip_generate import GenerateRequest, decode_generate, encode_generate
from serving.protocols.oip_request import InferRequest, decode_request, priority_of
from serving.protocols.oip_response import check_binary_needs, encode_response, response_head
from serving.protocols.oip_turn import Answer, Turn
from serving.small_calls import LATER, Later

T = TypeVar("T")
JSON_IN_THREAD_BYTES = 128 << 10  # decoding more than this would hold the event loop
BINARY_IN_THREAD_BYTES = 2 << 20
ENCODE_IN_THREAD_ELEMENTS = 32_768
BINARY_TYPE = (b"content-type", b"application/octet-stream")
EVENT_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")
MAX_HEADS = 10_000


class Target(msgspec.Struct, frozen=True, gc=False):
    """What a path under /v2/models names: model, version or alias, and the verb after it ("" for metadata)."""

    name: str
    selector: str | None
    verb: str


def path_of(target: Target) -> str:
    """The path that names it."""
    version = "" if target.selector is None else f"/versions/{target.selector}"
    verb = f"/{target.verb}" if target.verb else ""
    return f"/v2/models/{target.name}{version}{verb}"


def parse_model_path(path: str) -> Target | None:
    """`/v2/models/{m}[/versions/{v}][/{verb}]` → `Target`; None for another path. `{m}` may be `vendor/name`."""
    parts = path.split("/")
    if len(parts) < 4 or parts[1] != "v2" or parts[2] != "models" or not parts[3]:
        return None
    name, rest = parts[3], parts[4:]
    if "--" not in name and "/" not in name and rest and rest[0] and rest[0] not in _VERBS and rest[0] != "versions":
        name, rest = f"{name}/{rest[0]}", rest[1:]
    selector: str | None = None
    if len(rest) >= 2 and rest[0] == "versions":
        selector, rest = rest[1], rest[2:]
    verb = rest[0] if rest else ""
    if len(rest) > 1 or (verb and verb not in _VERBS) or selector == "":
        return None
    return Target(name, selector, verb)


_VERBS = frozenset({"infer", "generate", "generate_stream", "ready", "config", "stats"})


class OpenInference:
    """Answers every request under `/v2` but health, which `ServingApp` answers without a key."""

    def __init__(self, dataplane: DataPlane, ports: Ports, version: str = "") -> None:
        self._dataplane, self._ports = dataplane, ports
        self.about = About(dataplane, ports, version)
        self.turn = Turn(dataplane)
        self._heads: dict[str, bytes] = {}

    async def answer(self, request: Request) -> Response:
        """One response, or a `Refusal`."""
        path, method = request.path.rstrip("/"), request.method
        target = parse_model_path(path)
        if target is not None and (target.name, target.verb) != ("stats", ""):
            if target.verb == "infer":
                check_method(method, "POST")
                try:
                    return await self._infer(request, target)
                except BadInput as refusal:
                    if refusal.code == "TENSOR_SHAPE":
                        refusal.details["model"] = target.name
                    raise
            if target.verb in ("generate", "generate_stream"):
                check_method(method, "POST")
                return await self._generate(request, target)
            check_method(method, "GET")
            return await self._about(request, target)
        if path == "/v2":
            check_method(method, "GET")
            return json_response(self.about.server())
        if path == "/v2/models/stats":
            check_method(method, "GET")
            known = await self._dataplane.joined.statistics()
            return await self._in_thread(lambda asker: self.about.all_statistics(asker, known), request.principal)
        if path == "/v2/repository/index":
            check_method(method, "POST")
            _check_index_body(request.body)
            unloaded = await self.about.unloaded()
            return await self._in_thread(lambda asker: self.about.index(asker, unloaded), request.principal)
        parts = path.split("/")
        if parts[1:4] == ["v2", "repository", "models"] and parts[-1] in ("load", "unload") and len(parts) in (6, 7):
            check_method(method, "POST")
            return await self._load_or_unload(request, "/".join(parts[4:-1]), parts[-1])
        raise not_offered_at(path) or no_such_path(request.path)

    # --- infer --------------------------------------------------------------------------------------------------------

    def take(
        self,
        answer: Answer,
        principal: Principal,
        target: Target,
        body: bytes,
        header_length: int | None,
        deadline_ms: float | None = None,
        priority: str | None = None,
        held_ms: float | None = None,
    ) -> bool | Later:
        """Take a small request that needs no waiting, to be run and answered at the end of this turn of the event loop.

        False where it must wait for something, `LATER` where only for its turn, if it can be held (`held_ms`: so long
        already); then nothing was done. Raises `Refusal`, also where it would wait in vain.
        """
        check_scope(principal, "use")
        try:
            served = self._ports.bundles.resolve(target.name, target.selector, principal)
        except NotFound:
            if self._dataplane.settings.triton_compat:  # perhaps a name without its vendor
                return False
            raise
        if held_ms is not None and self._dataplane.finds_turn_full(served, held_ms, deadline_ms):
            return LATER
        self._dataplane.check_full(principal, served)
        request = decode_request(body, header_length)
        if request.classes is not None:
            return False
        if request.timeout_ms is not None:
            deadline_ms = request.timeout_ms if deadline_ms is None else min(deadline_ms, request.timeout_ms)
        if held_ms and deadline_ms is not None and held_ms >= deadline_ms:
            raise deadline_exceeded(deadline_ms)
        call = self._dataplane.admit_now(
            principal,
            served,
            request.inputs,
            request.outputs,
            digest=digest_of_bytes(body),
            deadline_ms=deadline_ms,
            priority=request.priority or priority or "normal",
            held_ms=held_ms,
            comes_again=True,
        )
        if call is None:
            return False
        if call is LATER:
            return LATER
        if held_ms:
            call.held_ms = held_ms
        answer.call, answer.request, answer.head = call, request, self._head(served)
        self.turn.take(answer)
        return True

    async def _infer(self, request: Request, target: Target) -> Response:
        check_scope(request.principal, "use")
        served = self.about.resolve(request.principal, target.name, target.selector)
        body, key = request.body, request.header(b"idempotency-key") or None
        header_length = header_length_of(request.headers.get(b"inference-header-content-length"))
        json_bytes = len(body) if header_length is None else header_length
        deadline_ms = deadline_of(request.headers.get(b"x-deadline-ms"))
        if json_bytes > JSON_IN_THREAD_BYTES or len(body) > BINARY_IN_THREAD_BYTES:
            call, digest = await self._dataplane.in_thread(_decode, body, header_length, key is not None)
        else:
            call, digest = _decode(body, header_length, key is not None)
        if call.timeout_ms is not None:
            deadline_ms = call.timeout_ms if deadline_ms is None else min(deadline_ms, call.timeout_ms)
        manifest = await self._dataplane.manifest_of(served)
        check_binary_needs(call, {spec.name: spec.dtype for spec in manifest.outputs})
        if call.classes:
            check_classes(call.classes, manifest, call.inputs)
        inference = await self._dataplane.infer(
            request.principal,
            served,
            call.inputs,
            call.outputs,
            deadline_ms=deadline_ms,
            idempotency_key=key,
            digest=digest,
            priority=call.priority or priority_of(request.headers.get(b"x-priority")) or "normal",
        )
        if self._dataplane.settings.triton_compat:
            head = response_head(self.about.shown(request.principal, served), served.version)
        else:
            head = self._head(served)

        def encode() -> tuple[bytes, int | None]:
            outputs = classified(inference.outputs, call.classes, manifest) if call.classes else inference.outputs
            return encode_response(head, call, outputs, self._dataplane.settings.triton_compat)

        content, json_length = await self._encoded(inference, encode)
        headers = [JSON_TYPE if json_length is None else BINARY_TYPE, *_bill(inference)]
        if json_length is not None:
            headers.append((b"inference-header-content-length", str(json_length).encode()))
        return Response(200, content, headers)

    async def _generate(self, request: Request, target: Target) -> Response:
        """One answer, as JSON or as the one event of a stream; what is refused is no stream, but a plain refusal."""
        check_scope(request.principal, "use")
        served = self.about.resolve(request.principal, target.name, target.selector)
        manifest = await self._dataplane.manifest_of(served)
        body, key = request.body, request.header(b"idempotency-key") or None
        if len(body) > JSON_IN_THREAD_BYTES:
            call, digest = await self._dataplane.in_thread(_decode_generate, body, manifest, key is not None)
        else:
            call, digest = _decode_generate(body, manifest, key is not None)
        inference = await self._dataplane.infer(
            request.principal,
            served,
            call.inputs,
            deadline_ms=deadline_of(request.headers.get(b"x-deadline-ms")),
            idempotency_key=key,
            digest=digest,
            priority=priority_of(request.headers.get(b"x-priority")) or "normal",
        )
        model, version = self.about.shown(request.principal, served), served.version
        literals = self._dataplane.settings.triton_compat
        content = await self._encoded(
            inference, lambda: encode_generate(model, version, call, inference.outputs, literals)
        )
        if target.verb == "generate":
            return Response(200, content, [JSON_TYPE, *_bill(inference)])
        headers = [EVENT_TYPE, (b"cache-control", b"no-store"), *_bill(inference)]
        return Response(200, headers=headers, stream=_one_event(content))

    async def _encoded(self, inference: Inference, encode: Callable[[], T]) -> T:
        """In a thread where there is much to write."""
        if sum(array.size for array in inference.outputs.values()) > ENCODE_IN_THREAD_ELEMENTS:
            return await self._dataplane.in_thread(encode)
        return encode()

    def _head(self, served: ServedVersion) -> bytes:
        head = self._heads.get(served.version_id)
        if head is None:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            head = self._heads[served.version_id] = response_head(path_name(served.name), served.version)
        return head

    # --- about a model ------------------------------------------------------------------------------------------------

    async def _about(self, request: Request, target: Target) -> Response:
        principal, name, selector = request.principal, target.name, target.selector
        if target.verb == "ready":
            await self.about.check_ready(principal, name, selector)
            return Response(200)
        if target.verb == "stats":
            return json_response(await self.about.statistics(principal, name, selector))
        tell = self.about.config if target.verb else self.about.metadata
        return json_response(await tell(principal, name, selector))

    async def _in_thread(self, tell: Callable[[Principal], object], principal: Principal) -> Response:
        """Thousands of models take milliseconds, to list and to write."""
        return await self._dataplane.in_thread(lambda: json_response(tell(principal)))

    async def _load_or_unload(self, request: Request, name: str, verb: str) -> Response:
        if verb == "load":
            try:
                check_load_body(request.body)
                await self.about.load(request.principal, name)
            except (BadInput, NotFound, NotHere) as refusal:
                refusal.details["loading"] = name
                raise
        else:
            await self.about.unload(request.principal, name)
        return Response(200)


def _check_index_body(body: bytes) -> None:
    """The real client sends nothing at all where it has nothing to say; else it must be an object."""
    if not body.strip():
        return
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise request_json(str(error)) from error
    if not isinstance(asked, dict):
        raise request_field("body", "须为 JSON 对象", "must be a JSON object")


def _decode(body: bytes, header_length: int | None, strong: bool) -> tuple[InferRequest, str]:
    return decode_request(body, header_length), digest_of_bytes(body, strong)


def _decode_generate(body: bytes, manifest: Manifest, strong: bool) -> tuple[GenerateRequest, str]:
    return decode_generate(body, manifest), digest_of_bytes(body, strong)


async def _one_event(content: bytes) -> AsyncIterator[bytes]:
    yield b"data: " + content + b"\n\n"


def _bill(inference: Inference) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-usage-id", inference.usage_id.encode()),
        (b"x-amount-micro", str(inference.amount_micro).encode()),
    ]


def header_length_of(value: bytes | None) -> int | None:
    """`Inference-Header-Content-Length` as a number; `BadInput` REQUEST_FIELD where it is none."""
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise request_field("Inference-Header-Content-Length", "须为非负整数", "must be a non-negative integer")
    return int(value)


def deadline_of(value: bytes | None) -> float | None:
    """`X-Deadline-Ms` in milliseconds; `BadInput` REQUEST_FIELD where it is not a positive number."""
    if value is None:
        return None
    try:
        deadline = float(value)
        if not 0 < deadline < 1e9 or b"_" in value:  # Python reads 1_000
            raise ValueError
    except ValueError as error:
        raise request_field("X-Deadline-Ms", "须为正的毫秒数", "must be a positive number of milliseconds") from error
    return deadline
