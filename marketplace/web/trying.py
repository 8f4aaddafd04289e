"""The try-it form: its fields become one row, or its table many, run as a call of the member's organisation."""

from __future__ import annotations

import base64
import math
from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from marketplace.access import Actor, check_may, current_actor, market_of
from marketplace.market import Market
from marketplace.web.model_page import model_facts
from marketplace.web.rendering import PageRoute, page
from model_store.bundle import open_bundle
from model_store.errors import Refusal, Unavailable
from model_store.manifest import Feature
from model_store.processing.columns import apply_matches, match_columns
from model_store.processing.pipeline import Pipeline
from model_store.processing.tables import read_table
from serving.ports import Principal

MAX_ROWS = 1000
SHOWN_RESULTS = 50
router = APIRouter(route_class=PageRoute, include_in_schema=False)


async def rows_of(form: FormData, features: dict[str, Feature]) -> list[dict[str, Any]]:
    """A table in the field `table` as its rows, under the model's own names; else the fields `f.<feature>` as one row.

    An empty field is left out, save a picture, for which the card's example stands in; what cannot be read is left to
    the pipeline. Raises what `read_table` raises, at most `MAX_ROWS` rows.
    """
    table = form.get("table")
    if isinstance(table, UploadFile) and (content := await table.read()):
        headings, rows = await run_in_threadpool(read_table, content, table.filename or "", max_rows=MAX_ROWS)
        return apply_matches(rows, match_columns(list(features.values()), headings))
    row: dict[str, Any] = {}
    for name, feature in features.items():
        given = form.get(f"f.{name}")
        if isinstance(given, UploadFile):
            content = await given.read()
            if content or isinstance(feature.example, str):
                row[name] = content or base64.b64decode(feature.example)
        elif given is not None and given.strip():
            row[name] = _read(given.strip(), feature.kind)
    return [row]


def _read(text: str, kind: str) -> Any:
    try:
        if kind == "series":
            return [float(part) for part in text.replace(",", " ").split()]
        if kind in ("number", "integer"):
            number = float(text)
            return int(number) if math.isfinite(number) and kind == "integer" and number.is_integer() else number
    except ValueError:
        pass
    return text


async def try_model(market: Market, actor: Actor, name: str, form: FormData) -> dict[str, Any]:
    """`{results, rows, outside, usage_id, amount_micro}` of one metered call; `results` are the first `SHOWN_RESULTS`.

    Raises refusals.
    """
    dataplane = market.dataplane
    if dataplane is None:
        raise Unavailable(
            "DATAPLANE_UNAVAILABLE",
            zh="调用服务尚未就绪",
            en="the serving part is not up yet",
            remedy_zh="请稍后重试",
            remedy_en="try again in a moment",
        )
    principal = Principal(actor.id, actor.organisation_id, actor.kind, actor.scopes, actor.member_id)
    served = market.bundles.resolve(name, None, principal)
    pipeline = await dataplane.in_thread(lambda: Pipeline(open_bundle(served.bundle)))
    rows = await rows_of(form, pipeline.features)
    tensors = await dataplane.in_thread(pipeline.encode, rows)
    units = {"images": len(rows)} if pipeline.manifest.modality == "image" else None
    ran = await dataplane.infer(principal, served, tensors, units=units)
    results = pipeline.decode(ran.outputs, tensors)
    outside = dataplane.drift.see(served.name, served.version, actor.organisation_id, pipeline.manifest, rows)
    return {
        "outside": outside,
        "results": results[:SHOWN_RESULTS],
        "rows": len(results),
        "usage_id": ran.usage_id,
        "amount_micro": ran.amount_micro,
    }


@router.post("/models/{vendor}/{name}/try")
async def try_it(vendor: str, name: str, request: Request, market: Market = Depends(market_of)) -> Response:
    """Run the form's row and show the page with the result, or with what was wrong and the fields as they were."""
    actor = await run_in_threadpool(current_actor, request)
    check_may(actor, scope="use")
    facts = await run_in_threadpool(model_facts, vendor, name, request, market)
    form = await request.form()
    status = 200
    try:
        facts["outcome"] = await try_model(market, actor, facts["model"]["name"], form)
    except Refusal as refusal:
        facts["refusal"], status = refusal.as_dict(""), refusal.status
    given = {key[2:]: value for key, value in form.items() if key.startswith("f.") and isinstance(value, str)}
    facts["values"] |= {key: value for key, value in given.items() if key in facts["values"]}
    return page(request, "model.html", status, **facts)
