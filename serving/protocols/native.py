"""The native surface, what a factory programmer types by hand: `/v1/use`, and choose and adapt over their ports.

`POST /v1/use/{vendor}/{name}[@selector]` takes named features as JSON (one row or many), a CSV, or one picture, and
answers results by name (or the CSV with the prediction's columns added). Choose and adapt belong to the market: a lone
node answers 501 and says where it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from model_store.bundle import open_bundle
from model_store.errors import BadInput, NotHere, Refusal, Unprocessable
from model_store.manifest import Manifest
from model_store.processing.columns import apply_matches, column_missing, match_columns
from model_store.processing.pipeline import Pipeline
from model_store.processing.tables import read_table, write_csv
from model_store.tensors import Array
from serving.calls import Inference
from serving.dataplane import DataPlane
from serving.digests import digest_of_bytes
from serving.errors import no_such_path, request_field, request_json, scope_missing
from serving.messages import Request, Response, json_response
from serving.multipart import Form, parse_form
from serving.ports import Adapting, Chooser, Ports, ServedVersion

MAX_ROWS = 10_000
ROWS_AT_ONCE = 16  # more rows, or any picture or text, are encoded in a thread: the loop is never held
CHUNK_ROWS = 256
PIPELINES_KEPT = 256
CSV_TYPE = (b"content-type", b"text/csv; charset=utf-8")
EVENT_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


class NativeProtocol:
    """Answers every request under `/v1`."""

    def __init__(self, dataplane: DataPlane, ports: Ports) -> None:
        self._dataplane, self._ports = dataplane, ports
        self._pipelines: OrderedDict[str, Pipeline] = OrderedDict()

    async def answer(self, request: Request) -> Response:
        """One response, or a `Refusal`."""
        parts = [part for part in request.path.split("/") if part][1:]
        match parts:
            case ["use", *name] if name:
                _method(request, "POST")
                return await self._use(request, "/".join(name))
            case ["sample-sets"]:
                _method(request, "POST")
                return await self._create_samples(request)
            case ["sample-sets", sample_set_id]:
                _method(request, "DELETE")
                return json_response(await self._chooser(request).delete_sample_set(request.principal, sample_set_id))
            case ["choose"]:
                _method(request, "POST")
                answer = await self._chooser(request).choose(request.principal, _json_object(request.body))
                return json_response(answer, 202)
            case ["choose", choice_id]:
                _method(request, "GET")
                return json_response(await self._chooser(request).get(request.principal, choice_id))
            case ["recipes"]:
                _method(request, "GET")
                cards = self._adapting(request).recipe_cards()
                return json_response({"items": cards, "total": len(cards)})
            case ["adapt", *rest]:
                return await self._adapt(request, rest)
        raise no_such_path(request.path)

    # --- use ----------------------------------------------------------------------------------------------------------

    async def _use(self, request: Request, path: str) -> Response:
        if "use" not in request.principal.scopes:
            raise scope_missing("use")
        name, _, selector = path.partition("@")
        served = self._ports.bundles.resolve(name, selector or None, request.principal)
        manifest = await self._dataplane.manifest_of(served)
        if not manifest.features or not manifest.pre:
            raise _tensors_only(served)
        kind = request.header(b"content-type").partition(";")[0].strip().lower()
        if kind in ("text/csv", "application/vnd.ms-excel", "application/parquet"):
            return await self._use_table(request, served, manifest)
        if kind.startswith("image/"):
            rows: list[Any] = [{_only(manifest, "image"): request.body}]
            single = True
        elif kind == "text/plain":
            rows, single = [{_only(manifest, "text"): request.body.decode("utf-8", "replace")}], True
        else:
            rows, single = _rows_of(_json_object(request.body))
        results, runs = await self._run(request, served, manifest, rows)
        return json_response(_body(served, results, runs, single))

    async def _use_table(self, request: Request, served: ServedVersion, manifest: Manifest) -> Response:
        """A table in, the table out with the prediction's columns added; JSON where that is asked for."""
        headings, rows = await self._dataplane.in_thread(read_table, request.body)
        if len(rows) > MAX_ROWS:
            raise _too_many_rows(len(rows))
        matches = match_columns(manifest.features, headings)
        for feature in manifest.features:
            if feature.name not in matches and feature.required and feature.default is None:
                raise column_missing(feature, headings)
        named = apply_matches(rows, matches)
        for step in manifest.pre:
            if step.op == "window":  # its group and order columns are no features; they keep their own headings
                for column in filter(None, (step.group, step.order)):
                    for place, row in enumerate(rows):
                        named[place][column] = row.get(column)
        results, runs = await self._run(request, served, manifest, named)
        wants_json = request.query.get("format") == "json" or "application/json" in request.header(b"accept")
        if wants_json:
            return json_response(_body(served, results, runs, single=False))
        flat = [_flat(result) for result in results]
        added = [name for name in (flat[0] if flat else {}) if name not in headings]
        merged = [{**row, **extra} for row, extra in zip(rows, flat, strict=True)]
        text = write_csv([*headings, *added], merged)
        heads = [CSV_TYPE, (b"x-usage-id", ",".join(run.usage_id for run in runs)[:2000].encode()),
                 (b"x-amount-micro", str(sum(run.amount_micro for run in runs)).encode())]  # fmt: skip
        return Response(200, text.encode(), heads)

    async def _run(
        self, request: Request, served: ServedVersion, manifest: Manifest, rows: list[Any]
    ) -> tuple[list[dict[str, Any]], list[Inference]]:
        """Encode, infer and decode, in chunks where there are many rows; one usage record a chunk."""
        pipeline = await self._pipeline(served)
        grouped = any(step.op == "window" for step in manifest.pre)
        size = min(CHUNK_ROWS, manifest.batching.max_rows) if manifest.batching.dynamic else 1
        heavy = manifest.modality in ("image", "text", "series") or len(rows) > ROWS_AT_ONCE
        images = manifest.modality == "image"
        key = request.header(b"idempotency-key") or None
        if key is not None and len(rows) > size:
            raise request_field(
                "Idempotency-Key",
                f"带幂等键的请求最多 {size} 行",
                f"a request with an Idempotency-Key has at most {size} rows",
            )
        deadline = request.header(b"x-deadline-ms")
        results: list[dict[str, Any]] = []
        runs: list[Inference] = []
        encoded: Mapping[str, Array] | None = None
        if grouped:  # windows look back over other rows: encode once, then cut
            encoded = await self._dataplane.in_thread(pipeline.encode, rows)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            if encoded is not None:
                tensors = {name: tensor[start : start + size] for name, tensor in encoded.items()}
            elif heavy:
                tensors = await self._dataplane.in_thread(pipeline.encode, chunk)
            else:
                tensors = pipeline.encode(chunk)
            ran = await self._dataplane.infer(
                request.principal,
                served,
                tensors,
                units={"images": len(chunk)} if images else None,
                deadline_ms=_deadline(deadline),
                idempotency_key=key,
                digest=digest_of_bytes(request.body, strong=key is not None),
            )
            runs.append(ran)
            results += pipeline.decode(ran.outputs, tensors)
        return results, runs

    async def _pipeline(self, served: ServedVersion) -> Pipeline:
        found = self._pipelines.get(served.digest)
        if found is None:
            found = await self._dataplane.in_thread(lambda: Pipeline(open_bundle(served.bundle)))
            self._pipelines[served.digest] = found
            while len(self._pipelines) > PIPELINES_KEPT:
                self._pipelines.popitem(last=False)
        return found

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
                _method(request, "POST")
                return json_response(await adapting.create(principal, _json_object(request.body)), 202)
            case [job_id]:
                _method(request, "GET")
                return json_response(await adapting.get(principal, job_id))
            case [job_id, "cancel"]:
                _method(request, "POST")
                return json_response(await adapting.cancel(principal, job_id))
            case [job_id, "events"]:
                _method(request, "GET")
                await adapting.get(principal, job_id)  # a stranger's job is a 404, not an empty stream
                stream = _events(adapting.events(principal, job_id))
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


def _body(served: ServedVersion, results: list[dict[str, Any]], runs: list[Inference], single: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": served.name,
        "version": served.version,
        "results": results,
        "usage_id": runs[0].usage_id if runs else "",
        "usage_ids": [run.usage_id for run in runs],
        "charge": {
            "amount_micro": sum(run.amount_micro for run in runs),
            "lease_kind": runs[0].lease_kind if runs else "free",
        },
        "latency_ms": round(sum(run.queue_ms + run.compute_ms for run in runs), 3),
    }
    if single and results:
        body["result"] = results[0]
    return body


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as columns: probabilities become probability_<label>, a vector is left out."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        if name == "probabilities":
            flat |= {f"probability_{label}": share for label, share in value.items()}
        elif not isinstance(value, (list, dict)):
            flat[name] = value
    return flat


def _rows_of(body: Mapping[str, Any]) -> tuple[list[Any], bool]:
    inputs = body.get("inputs")
    if isinstance(inputs, dict):
        return [inputs], True
    if isinstance(inputs, list) and inputs and all(isinstance(row, dict) for row in inputs):
        if len(inputs) > MAX_ROWS:
            raise _too_many_rows(len(inputs))
        return inputs, False
    raise request_field(
        "inputs",
        "inputs 须为一行特征 {…} 或多行 [{…}, …]",
        "inputs must be one row of features {…} or several [{…}, …]",
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise request_json(str(error)) from error
    if not isinstance(found, dict):
        raise request_json("a JSON object is wanted")
    return found


def _only(manifest: Manifest, kind: str) -> str:
    """The one feature of this kind; what a raw body gives."""
    found = [feature.name for feature in manifest.features if feature.kind == kind]
    if len(found) == 1:
        return found[0]
    raise BadInput(
        "CONTENT_TYPE_UNFIT",
        zh=f"该模型不接受单个 {kind} 作为请求体",
        en=f"this model does not take one {kind} as the body",
        remedy_zh='请以 JSON 发送 {"inputs": {…}}',
        remedy_en='send JSON: {"inputs": {…}}',
        field="Content-Type",
    )


def _deadline(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise request_field(
            "X-Deadline-Ms", "时限须为毫秒数", "the deadline must be a number of milliseconds"
        ) from None


def _method(request: Request, wanted: str) -> None:
    if request.method != wanted:
        raise request_field("method", f"此路径只接受 {wanted}", f"this path takes {wanted} only")


def _tensors_only(served: ServedVersion) -> Refusal:
    path = f"/v2/models/{served.name.replace('/', '--', 1)}/infer"
    return Unprocessable(
        "TENSORS_ONLY",
        zh=f"{served.name} 只有张量接口, 没有命名特征",
        en=f"{served.name} takes bare tensors and names no features",
        remedy_zh=f"请使用 POST {path}",
        remedy_en=f"use POST {path}",
        field="model",
    )


def _too_many_rows(count: int) -> Refusal:
    return request_field(
        "inputs", f"共 {count} 行, 一次最多 {MAX_ROWS} 行", f"{count} rows; at most {MAX_ROWS} in one request"
    )
