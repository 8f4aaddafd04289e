"""The choose pages: own samples → columns → progress → ranking with error bars, price and voucher's share → open."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import Actor, check_may, current_actor, market_of
from marketplace.choosing.samples import own_sample_set, sample_set_view
from marketplace.db import reading
from marketplace.market import Market
from marketplace.web.actions import posted
from marketplace.web.drawing import Interval, intervals
from marketplace.web.rendering import PageRoute, page
from model_store.errors import BadInput, Refusal, Unavailable
from serving.ports import Chooser, Principal

ANSWERS = (
    "label",
    "target",
    "answer",
    "class",
    "failure",
    "defect",
    "fault",
    "标签",
    "类别",
    "答案",
    "结果",
    "目标",
    "是否",
    "故障",
    "缺陷",
)
router = APIRouter(route_class=PageRoute, include_in_schema=False)


def principal_of(actor: Actor) -> Principal:
    """A person in the browser as the data plane knows callers."""
    return Principal(actor.id, actor.organisation_id, actor.kind, actor.scopes, actor.member_id)


def choosing_actor(request: Request) -> Actor:
    actor = current_actor(request)
    check_may(actor, scope="choose")
    return actor


def _chooser(market: Market) -> Chooser:
    if market.chooser is None:
        raise Unavailable("CHOOSING_UNAVAILABLE", zh="选型服务尚未就绪", en="choosing is not up yet",
                          remedy_zh="请稍后重试", remedy_en="try again in a moment")  # fmt: skip
    return market.chooser


@router.get("/choose")
def start(request: Request, actor: Actor = Depends(choosing_actor)) -> Response:
    """Where samples are uploaded."""
    return page(request, "choose.html", refusal=None)


@router.post("/choose")
async def upload(
    request: Request,
    actor: Actor = Depends(choosing_actor),
    form: FormData = Depends(posted),
    market: Market = Depends(market_of),
) -> Response:
    """Keep the samples for a day and go on to their columns."""
    file = form.get("file")
    try:
        if not isinstance(file, UploadFile) or not file.filename:
            raise BadInput(
                "SAMPLES_MISSING",
                zh="没有选择文件",
                en="no file was chosen",
                remedy_zh="请选择 CSV、Parquet 或 zip",
                remedy_en="choose a CSV, Parquet or zip file",
                field="file",
            )
        made = await _chooser(market).create_sample_set(
            principal_of(actor), filename=file.filename, content=await file.read(), form={}
        )
    except Refusal as refusal:
        return page(request, "choose.html", refusal.status, refusal=refusal.as_dict(""))
    return RedirectResponse(f"/choose/samples/{made['id']}", 303)


def _samples(market: Market, actor: Actor, sample_set_id: str) -> dict[str, Any]:
    with reading(market.engine) as session:
        return sample_set_view(own_sample_set(session, actor.organisation_id, sample_set_id))


@router.get("/choose/samples/{sample_set_id}")
def samples(
    sample_set_id: str,
    request: Request,
    model: str = "",
    actor: Actor = Depends(choosing_actor),
    market: Market = Depends(market_of),
) -> Response:
    """The columns of a sample set: which one is the label, and, for one model, which column is which input."""
    features: list[dict[str, Any]] = []
    if model:
        served = market.bundles.resolve(model, None, principal_of(actor))
        from marketplace.adapting.request import parent_manifest

        with reading(market.engine) as session:
            features = [feature.model_dump() for feature in parent_manifest(session, served).features]
    view = _samples(market, actor, sample_set_id)
    view["label_column"] = view["label_column"] or _likely_answer(view)
    return page(request, "samples.html", samples=view, model=model, features=features)


def _likely_answer(samples: dict[str, Any]) -> str:
    """The column that is probably the right answer, by its heading; the visitor may say otherwise."""
    if samples["kind"] != "table":
        return ""
    headings = [column["name"] for column in samples["columns"]]
    return next((name for name in headings for hint in ANSWERS if hint in name.lower()), "")


@router.post("/choose/samples/{sample_set_id}")
async def run(
    sample_set_id: str,
    actor: Actor = Depends(choosing_actor),
    form: FormData = Depends(posted),
    market: Market = Depends(market_of),
) -> Response:
    """Start a choice on a sample set."""
    wanted: dict[str, Any] = {"sample_set_id": sample_set_id}
    texts = {name: value for name, value in form.items() if isinstance(value, str) and value}
    if texts.get("label_column"):
        wanted["label_column"] = texts["label_column"]
    if texts.get("model"):
        wanted["models"] = [texts["model"]]
        wanted["columns"] = {name[2:]: value for name, value in texts.items() if name.startswith("c.")}
    choice = await _chooser(market).choose(principal_of(actor), wanted)
    return RedirectResponse(f"/choose/{choice['id']}", 303)


@router.post("/choose/samples/{sample_set_id}/delete")
async def delete(
    sample_set_id: str,
    request: Request,
    actor: Actor = Depends(choosing_actor),
    form: FormData = Depends(posted),
    market: Market = Depends(market_of),
) -> Response:
    """Delete the samples now, with a receipt."""
    receipt = await _chooser(market).delete_sample_set(principal_of(actor), sample_set_id)
    return page(request, "receipt.html", receipt=receipt)


@router.get("/choose/{choice_id}")
async def result(
    choice_id: str,
    request: Request,
    actor: Actor = Depends(choosing_actor),
    market: Market = Depends(market_of),
) -> Response:
    """A choice as it stands: progress, then the ranking."""
    choice = await _chooser(market).get(principal_of(actor), choice_id)
    running = choice["state"] in ("queued", "running")
    found = choice["result"]
    by_name = {f"{each['model']}@{each['version']}": each for each in found.get("candidates", [])}
    rankings = []
    for ranking in found.get("rankings", []):
        rows = [by_name[name] for name in ranking["order"]]
        bars = [Interval(row["model"], row["value"], row["low"], row["high"], row["tied_with_best"]) for row in rows]
        rankings.append(ranking | {"rows_of": rows, "chart": intervals(ranking["metric"], bars)})
    unranked = [each for each in found.get("candidates", []) if each.get("value") is None]
    facts: dict[str, Any] = {"choice": choice, "running": running, "rankings": rankings, "unranked": unranked}
    return await run_in_threadpool(lambda: page(request, "choice.html", live=running, **facts))
