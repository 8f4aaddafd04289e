"""`POST /v1/use/{vendor}/{name}[@selector]`: named features in, results by name out.

Takes JSON (one row or many), a CSV or Parquet table, a picture, a text, or a form with one file; answers JSON, or the
table with the prediction's columns added. Every row is encoded before the first is run, so a wrong cell in the last row
costs nothing; what takes long is done in a thread, so the event loop is never held.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_store.errors import Refusal, Unprocessable
from model_store.manifest import Manifest
from model_store.processing.tables import write_csv
from serving.calls import Inference, with_what_was_run
from serving.dataplane import DataPlane
from serving.digests import digest_of_bytes
from serving.drift import Outside, shown
from serving.errors.access import scope_missing
from serving.errors.requests import request_field
from serving.messages import Request, Response, json_response
from serving.ports import Ports, ServedVersion
from serving.protocols.oip_request import priority_of
from serving.protocols.pipelines import Pipelines
from serving.protocols.use_rows import TABLE_TYPES, Asked, encode_chunks, read_rows

ROWS_AT_ONCE = 16  # more rows, or any picture, text or series, are encoded in a thread
BYTES_AT_ONCE = 32_768  # of a JSON body; a longer one is read in a thread
ROWS_RENDERED_AT_ONCE = 500
CHUNK_ROWS = 256
CSV_TYPE = (b"content-type", b"text/csv; charset=utf-8")


@dataclass(slots=True)
class Ran:
    """What a request's chunks came to."""

    results: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Inference] = field(default_factory=list)
    outside: list[Outside] = field(default_factory=list)  # of the training data

    @property
    def amount_micro(self) -> int:
        return sum(run.amount_micro for run in self.runs)


class Using:
    """The use endpoint over one data plane."""

    def __init__(self, dataplane: DataPlane, ports: Ports) -> None:
        self._dataplane, self._ports = dataplane, ports
        self._pipelines = Pipelines(dataplane)

    async def answer(self, request: Request, path: str) -> Response:
        """`path` is `vendor/name[@selector]`. Raises refusals; where rows were run before one, it says which."""
        if "use" not in request.principal.scopes:
            raise scope_missing("use")
        name, _, selector = path.partition("@")
        served = self._ports.bundles.resolve(name, selector or None, request.principal)
        manifest = await self._dataplane.manifest_of(served)
        if not manifest.features or not manifest.pre:
            raise _tensors_only(served)
        content_type = request.header(b"content-type")
        kind = content_type.partition(";")[0].strip().lower()
        if len(request.body) > BYTES_AT_ONCE or kind in TABLE_TYPES or kind.startswith("multipart/"):
            asked = await self._dataplane.in_thread(read_rows, content_type, request.body, manifest)
        else:
            asked = read_rows(content_type, request.body, manifest)
        ran = await self._run(request, served, manifest, asked.rows)
        seen = (served.name, served.version, request.principal.organisation, manifest, asked.rows)
        if len(asked.rows) > ROWS_AT_ONCE:
            ran.outside = await self._dataplane.in_thread(self._dataplane.drift.see, *seen)
        else:
            ran.outside = self._dataplane.drift.see(*seen)
        as_csv = _wants_csv(request, asked)
        if len(asked.rows) > ROWS_RENDERED_AT_ONCE:
            return await self._dataplane.in_thread(_render, served, asked, ran, as_csv)
        return _render(served, asked, ran, as_csv)

    async def drift(self, request: Request, path: str) -> Response:
        """How far one's own calls of a version have moved from its training data, since this node started."""
        if "use" not in request.principal.scopes:
            raise scope_missing("use")
        name, _, selector = path.partition("@")
        served = self._ports.bundles.resolve(name, selector or None, request.principal)
        found = await self._dataplane.joined.drift(served.name, served.version, request.principal.organisation)
        return json_response({"model": served.name, "version": served.version, **found})

    async def _run(
        self, request: Request, served: ServedVersion, manifest: Manifest, rows: Sequence[Mapping[str, Any]]
    ) -> Ran:
        """Encode everything, then infer and decode chunk by chunk; one usage record a chunk."""
        size = min(CHUNK_ROWS, manifest.batching.max_rows) if manifest.batching.dynamic else 1
        key = request.header(b"idempotency-key") or None
        if key is not None and len(rows) > size:
            raise request_field(
                "Idempotency-Key",
                f"带幂等键的请求最多 {size} 行",
                f"a request with an Idempotency-Key has at most {size} rows",
            )
        deadline_ms = _deadline(request.header(b"x-deadline-ms"))
        priority = priority_of(request.headers.get(b"x-priority")) or "normal"
        pipeline = await self._pipelines.of(served)
        heavy = manifest.modality != "tabular" or len(rows) > ROWS_AT_ONCE
        if heavy:
            chunks = await self._dataplane.in_thread(encode_chunks, pipeline, rows, size)
            digest = await self._dataplane.in_thread(_digest, request, key is not None)
        else:
            chunks = encode_chunks(pipeline, rows, size)
            digest = _digest(request, key is not None)
        ran = Ran()
        for place, kept in enumerate(chunks):
            chunk = rows[place * size : (place + 1) * size]
            tensors = kept if kept is not None else await self._dataplane.in_thread(pipeline.encode, chunk)
            try:
                done = await self._dataplane.infer(
                    request.principal,
                    served,
                    tensors,
                    deadline_ms=deadline_ms,
                    idempotency_key=key,
                    digest=digest,
                    priority=priority,
                )
                ran.runs.append(done)
                if heavy:
                    ran.results += await self._dataplane.in_thread(pipeline.decode, done.outputs, tensors)
                else:
                    ran.results += pipeline.decode(done.outputs, tensors)
            except Refusal as refusal:
                raise with_what_was_run(refusal, ran.runs, len(ran.results)) from refusal
        return ran


def _digest(request: Request, keyed: bool) -> str:
    """The request's digest. Under an Idempotency-Key the content type counts too: the same bytes under another boundary
    are other rows, and would run as an unpaid repeat of the first.
    """
    if not keyed:
        return digest_of_bytes(request.body)
    return digest_of_bytes(request.header(b"content-type").encode() + b"\0" + request.body, strong=True)


def _deadline(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise request_field(
            "X-Deadline-Ms", "时限须为毫秒数", "the deadline must be a number of milliseconds"
        ) from None


# --- answering --------------------------------------------------------------------------------------------------------


def _wants_csv(request: Request, asked: Asked) -> bool:
    """`?format=` decides, else `Accept`, else a table gets a table."""
    wanted = request.query.get("format")
    if wanted in ("csv", "json"):
        return wanted == "csv"
    accept = request.header(b"accept")
    if "text/csv" in accept or "application/json" in accept:
        return "text/csv" in accept
    return asked.is_table


def _render(served: ServedVersion, asked: Asked, ran: Ran, as_csv: bool) -> Response:
    return _csv_response(asked, ran) if as_csv else json_response(_body(served, asked, ran), headers=_charged(ran))


def _charged(ran: Ran) -> list[tuple[bytes, bytes]]:
    ids = ",".join(run.usage_id for run in ran.runs[:64])
    return [(b"x-usage-id", ids.encode()), (b"x-amount-micro", str(ran.amount_micro).encode())]


def _csv_response(asked: Asked, ran: Ran) -> Response:
    """The table as it came with the prediction's columns behind it; a name already taken becomes `predicted_<name>`."""
    flat = [_flat(result) for result in ran.results]
    taken = set(asked.headings)
    names = {name: f"predicted_{name}" if name in taken else name for name in (flat[0] if flat else {})}
    given = asked.given if asked.given is not None else [{} for _ in flat]
    headings = asked.headings if asked.given is not None else []
    merged = [
        {**row, **{names.get(name, name): value for name, value in extra.items()}}
        for row, extra in zip(given, flat, strict=True)
    ]
    heads = [CSV_TYPE, *_charged(ran)]
    converted = {name: seen for name, seen in _matched(asked).items() if seen["how"] == "converted"}
    if ran.outside:
        heads.append((b"x-outside-training", json.dumps(shown(ran.outside)).encode()[:4000]))
    if converted:
        heads.append((b"x-columns-converted", json.dumps(converted).encode()[:4000]))
    return Response(200, write_csv([*headings, *names.values()], merged).encode(), heads)


def _body(served: ServedVersion, asked: Asked, ran: Ran) -> dict[str, Any]:
    first = ran.runs[0] if ran.runs else None
    body: dict[str, Any] = {
        "model": served.name,
        "version": served.version,
        "results": ran.results,
        "usage_id": first.usage_id if first else "",
        "usage_ids": [run.usage_id for run in ran.runs],
        "charge": {"amount_micro": ran.amount_micro, "lease_kind": first.lease_kind if first else "free"},
        "latency_ms": round(sum(run.queue_ms + run.compute_ms for run in ran.runs), 3),
    }
    if ran.outside:
        body["outside_training"] = shown(ran.outside)
    if asked.matches:
        body["columns"] = _matched(asked)
    if asked.single and ran.results:
        body["result"] = ran.results[0]
    return body


def _matched(asked: Asked) -> dict[str, dict[str, Any]]:
    """How each feature was found among the caller's columns; `value · factor + offset` is what the model was given."""
    return {
        name: {"heading": match.heading, "how": match.how, "factor": match.factor, "offset": match.offset}
        for name, match in asked.matches.items()
    }


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as columns: probabilities become probability_<label>, a vector is left out."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        if name == "probabilities":
            flat |= {f"probability_{label}": share for label, share in value.items()}
        elif not isinstance(value, (list, dict)):
            flat[name] = value
    return flat


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
