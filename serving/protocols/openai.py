"""OpenAI's surface over the same data plane: `/v1/models` and `/v1/embeddings`, for text-embedding models.

A model is `vendor/name[@version or alias]` (`vendor--name` is understood too). Text is cut at the model's own limit of
tokens, as `/v1/use` cuts it; tokens are counted by the model's tokenizer, after the cut, and metered as `tokens_in`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson

from model_store.errors import Refusal, Unprocessable
from model_store.manifest import Feature, Manifest
from model_store.processing.pipeline import Pipeline
from model_store.step_specs import Tokenise, Vector
from model_store.tensors import Array
from serving.calls import Inference, with_what_was_run
from serving.dataplane import DataPlane
from serving.digests import digest_of_bytes
from serving.errors.rendering import refusal_text
from serving.errors.requests import no_such_path, request_field, request_json
from serving.messages import JSON_TYPE, Request, Response, check_method, json_response
from serving.ports import Ports, ServedVersion
from serving.protocols.oip import deadline_of
from serving.protocols.oip_about import check_scope
from serving.protocols.pipelines import Pipelines
from serving.tokens import count_tokens

MAX_INPUTS = 2048  # as OpenAI's own
MAX_CHARACTERS = 2_000_000  # of all inputs; they take a tokenizer a second or two
CHUNK_ROWS = 256
_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: str | list[Any]
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str = ""


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """What makes a model one: the feature that takes the text, and the length of its vectors (-1: not declared)."""

    feature: str
    width: int


def is_openai_path(path: str) -> bool:
    return path in ("/v1/models", "/v1/embeddings") or path.startswith("/v1/models/")


def openai_error_body(refusal: Refusal, request_id: str) -> bytes:
    """`{"error": {message, type, param, code}}`; our own parts of a refusal stand beside these four."""
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    shape = {"message": refusal_text(refusal), "type": kind, "param": refusal.field, "code": refusal.code}
    return orjson.dumps({"error": refusal.as_dict(request_id) | shape}, default=str)


class OpenAI:
    """Answers `/v1/models` and `/v1/embeddings`."""

    def __init__(self, dataplane: DataPlane, ports: Ports) -> None:
        self._dataplane, self._ports = dataplane, ports
        self._pipelines = Pipelines(dataplane)

    async def answer(self, request: Request) -> Response:
        """One response, or a `Refusal`."""
        path = request.path.rstrip("/")
        if path == "/v1/embeddings":
            check_method(request.method, "POST")
            return await self._embed(request)
        check_method(request.method, "GET")
        if path == "/v1/models":
            return await self._dataplane.in_thread(self._list, request)
        name, _, selector = path.removeprefix("/v1/models/").partition("@")
        if not is_openai_path(path):
            raise no_such_path(request.path)
        served = self._ports.bundles.resolve(name, selector or None, request.principal)
        return await self._dataplane.in_thread(lambda: json_response(_model(served)))

    def _list(self, request: Request) -> Response:
        models = [_model(served) for served in self._ports.bundles.visible(request.principal)]
        return json_response({"object": "list", "data": models})

    # --- embeddings ---------------------------------------------------------------------------------------------------

    async def _embed(self, request: Request) -> Response:
        check_scope(request.principal, "use")
        asked, texts = await self._dataplane.in_thread(_read, request.body)
        name, _, selector = asked.model.partition("@")
        served = self._ports.bundles.resolve(name, selector or None, request.principal)
        manifest = await self._dataplane.manifest_of(served)
        embedding = text_embedding(served, manifest)
        if asked.dimensions is not None and asked.dimensions != embedding.width:
            raise _dimensions_fixed(embedding.width)
        pipeline = await self._pipelines.of(served)
        size = min(CHUNK_ROWS, manifest.batching.max_rows) if manifest.batching.dynamic else 1
        rows = [{embedding.feature: text} for text in texts]
        chunks = await self._dataplane.in_thread(
            lambda: [pipeline.encode(rows[start : start + size]) for start in range(0, len(rows), size)]
        )
        runs = await self._run(request, served, chunks)
        content = await self._dataplane.in_thread(_render, served, asked, pipeline, chunks, runs)
        usage_ids = ",".join(run.usage_id for run in runs[:64])
        amount = sum(run.amount_micro for run in runs)
        bill = [(b"x-usage-id", usage_ids.encode()), (b"x-amount-micro", str(amount).encode())]
        return Response(200, content, [JSON_TYPE, *bill])

    async def _run(self, request: Request, served: ServedVersion, chunks: list[dict[str, Array]]) -> list[Inference]:
        """One run, and one usage record, for each chunk."""
        key = request.header(b"idempotency-key") or None
        if key is not None and len(chunks) > 1:
            raise request_field(
                "Idempotency-Key",
                "带幂等键的请求须能一次运行完",
                "goes with a request of one run only: send fewer inputs at once",
            )
        digest = await self._dataplane.in_thread(digest_of_bytes, request.body, key is not None)
        deadline_ms = deadline_of(request.headers.get(b"x-deadline-ms"))
        runs: list[Inference] = []
        for chunk in chunks:
            try:
                done = await self._dataplane.infer(
                    request.principal,
                    served,
                    chunk,
                    deadline_ms=deadline_ms,
                    idempotency_key=key,
                    digest=digest,
                )
            except Refusal as refusal:
                raise with_what_was_run(refusal, runs, sum(run.rows for run in runs)) from refusal
            runs.append(done)
        return runs


def text_embedding(served: ServedVersion, manifest: Manifest) -> TextEmbedding:
    """How this model embeds text. Raises `Unprocessable` MODEL_NOT_EMBEDDING where it does not."""
    tokenise = [step for step in manifest.pre if isinstance(step, Tokenise) and "attention_mask" in step.tensors]
    vectors = [step for step in manifest.post if isinstance(step, Vector)]
    needed = [feature.name for feature in manifest.features if _is_needed(feature)]
    if len(tokenise) != 1 or not vectors or not set(needed) <= {tokenise[0].feature}:
        raise Unprocessable(
            "MODEL_NOT_EMBEDDING",
            zh=f"{served.name} 不是文本向量模型",
            en=f"{served.name} is no text-embedding model",
            remedy_zh=f"请在货架上选择任务为 embedding 的文本模型; 该模型请用 POST /v1/use/{served.name}",
            remedy_en=f"choose a text model of the task embedding; use this one by POST /v1/use/{served.name}",
            field="model",
        )
    widths = {spec.name: spec.shape[-1] for spec in manifest.outputs if spec.shape}
    return TextEmbedding(tokenise[0].feature, widths.get(vectors[-1].tensor, -1))


def _is_needed(feature: Feature) -> bool:
    return feature.required and feature.default is None


def _read(body: bytes) -> tuple[EmbeddingsRequest, list[str]]:
    try:
        asked = msgspec.json.decode(body, type=EmbeddingsRequest)
    except msgspec.ValidationError as error:
        raise request_field("body", f"不符合 OpenAI 的格式: {error}", f"is not as OpenAI has it: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise request_json(str(error)) from error
    if asked.encoding_format not in ("float", "base64"):
        raise request_field("encoding_format", "须为 float 或 base64", "must be float or base64")
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 0 < len(texts) <= MAX_INPUTS:
        raise request_field("input", f"须为 1 至 {MAX_INPUTS} 条文本", f"must be 1 to {MAX_INPUTS} texts")
    kept: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise request_field(
                "input", "须为文本: 词元编号属于别的分词器", "must be text: token ids belong to another tokenizer"
            )
        if not text:
            raise request_field("input", "不得含空文本", "must hold no empty text")
        kept.append(text)
    if sum(map(len, kept)) > MAX_CHARACTERS:
        raise request_field(
            "input", f"合计最多 {MAX_CHARACTERS} 个字符", f"must hold {MAX_CHARACTERS} characters at most"
        )
    return asked, kept


def _render(
    served: ServedVersion,
    asked: EmbeddingsRequest,
    pipeline: Pipeline,
    chunks: list[dict[str, Array]],
    runs: list[Inference],
) -> bytes:
    vectors = [
        np.asarray(result["embedding"], "<f4")
        for chunk, run in zip(chunks, runs, strict=True)
        for result in pipeline.decode(run.outputs, chunk)
    ]
    as_text = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(count_tokens(chunk["attention_mask"]) for chunk in chunks)  # as the engine counts and charges them
    answer = {
        "object": "list",
        "data": data,
        "model": served.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _model(served: ServedVersion) -> dict[str, Any]:
    """`created` is when its bundle came to this node, in Unix seconds; 0 where it has not yet."""
    try:
        created = int(served.bundle.stat().st_mtime)
    except OSError:
        created = 0
    return {"id": served.name, "object": "model", "created": created, "owned_by": served.name.partition("/")[0]}


def _dimensions_fixed(width: int) -> Refusal:
    own = f" ({width})" if width > 0 else ""
    return request_field(
        "dimensions", f"须省略或等于模型自身的维数{own}", f"must be left out, or be the model's own{own}"
    )
