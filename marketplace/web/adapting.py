"""The adapt pages: pick a recipe, a base and data → live progress and curve → beside the parent → call it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import Actor, check_may, current_actor, market_of
from marketplace.choosing.service import MarketChooser
from marketplace.choosing.tables import SampleSet
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.market import Market
from marketplace.web.actions import posted
from marketplace.web.choosing import principal_of
from marketplace.web.drawing import curve
from marketplace.web.rendering import PageRoute, page
from model_store.errors import Refusal, Unavailable
from serving.ports import Adapting

router = APIRouter(route_class=PageRoute, include_in_schema=False)
RUNNING = frozenset({"queued", "running", "registering"})
NOT_A_CURVE = frozenset({"progress", "stage", "epoch", "step"})


def adapting_actor(request: Request) -> Actor:
    actor = current_actor(request)
    check_may(actor, scope="adapt")
    return actor


def _adapting(market: Market) -> Adapting:
    if market.adapting is None:
        raise Unavailable("ADAPTING_UNAVAILABLE", zh="适配服务尚未就绪", en="adapting is not up yet",
                          remedy_zh="请稍后重试", remedy_en="try again in a moment")  # fmt: skip
    return market.adapting


@router.get("/adapt")
async def jobs(
    request: Request,
    model: str = "",
    sample_set: str = "",
    label_column: str = "",
    actor: Actor = Depends(adapting_actor),
    market: Market = Depends(market_of),
) -> Response:
    """Start an adaptation, and those that were started before."""
    return await _jobs(request, actor, market, model=model, sample_set=sample_set, label_column=label_column)


async def _jobs(
    request: Request, actor: Actor, market: Market, status: int = 200, refusal: Any = None, **chosen: str
) -> Response:
    adapting = _adapting(market)
    mine = await adapting.list(principal_of(actor))

    def render() -> Response:
        with reading(market.engine) as session:
            from sqlmodel import col, select

            query = select(SampleSet).where(SampleSet.organisation_id == actor.organisation_id)
            query = query.where(col(SampleSet.deleted_at_ms).is_(None), col(SampleSet.expires_at_ms) > now_ms())
            kept = list(session.exec(query.order_by(col(SampleSet.created_at_ms).desc()).limit(20)))
        served = {each.name for each in market.bundles.visible(principal_of(actor))}
        facts = {"jobs": mine, "recipes": _offered(market, adapting, chosen.get("model", ""), actor),
                 "samples": kept, "models": sorted(served), "refusal": refusal, "chosen": chosen}  # fmt: skip
        return page(request, "adapt.html", status, **facts)

    return await run_in_threadpool(render)


def _offered(market: Market, adapting: Adapting, model: str, actor: Actor) -> list[dict[str, Any]]:
    """The recipes; for a chosen model those that can adapt it."""
    cards = list(adapting.recipe_cards())
    if not model:
        return cards
    from marketplace.adapting.request import parent_manifest

    served = market.bundles.resolve(model, None, principal_of(actor))
    with reading(market.engine) as session:
        task = parent_manifest(session, served).task
    return [card for card in cards if task in card["parent_tasks"] or task in card["tasks"]] or cards


@router.post("/adapt")
async def create(
    request: Request,
    actor: Actor = Depends(adapting_actor),
    form: FormData = Depends(posted),
    market: Market = Depends(market_of),
) -> Response:
    """Start a job; what is wrong is shown above the form as it was filled in."""
    texts = {name: value for name, value in form.items() if isinstance(value, str) and value.strip()}
    chosen = {"model": texts.get("model", ""), "sample_set": texts.get("sample_set_id", ""),
              "label_column": texts.get("label_column", ""), "recipe": texts.get("recipe", "")}  # fmt: skip
    asked = ("recipe", "model", "sample_set_id", "label_column", "name")
    wanted: dict[str, Any] = {name: text for name, text in texts.items() if name in asked}
    try:
        file = form.get("file")
        if isinstance(file, UploadFile) and file.filename and isinstance(market.chooser, MarketChooser):
            principal, content = principal_of(actor), await file.read()
            made = await market.chooser.create_sample_set(principal, filename=file.filename, content=content, form={})
            wanted["sample_set_id"] = made["id"]
        job = await _adapting(market).create(principal_of(actor), wanted)
    except Refusal as refusal:
        return await _jobs(request, actor, market, refusal.status, refusal.as_dict(""), **chosen)
    return RedirectResponse(f"/adapt/{job['id']}", 303)


@router.get("/adapt/{job_id}")
async def job(
    job_id: str, request: Request, actor: Actor = Depends(adapting_actor), market: Market = Depends(market_of)
) -> Response:
    """One job: progress and curves while it runs; beside its parent when it is done."""
    found = await _adapting(market).get(principal_of(actor), job_id)
    running = found["state"] in RUNNING
    parents = {metric["name"]: metric for metric in found["result"].get("parent_metrics", [])}
    facts: dict[str, Any] = {"job": found, "running": running, "parents": parents, "curves": _curves(found["history"])}
    return await run_in_threadpool(lambda: page(request, "job.html", live=running, **facts))


def _curves(history: list[dict[str, Any]]) -> dict[str, Any]:
    """A picture for each number that the run reported at least twice, by name."""
    points: dict[str, list[tuple[float, float]]] = {}
    for place, entry in enumerate(history):
        for name, value in entry.items():
            if name not in NOT_A_CURVE and isinstance(value, int | float):
                points.setdefault(name, []).append((float(entry.get("epoch", entry.get("step", place))), float(value)))
    return {name: drawn for name, line in points.items() if (drawn := curve(name, line))}


@router.post("/adapt/{job_id}/cancel")
async def cancel(
    job_id: str,
    actor: Actor = Depends(adapting_actor),
    form: FormData = Depends(posted),
    market: Market = Depends(market_of),
) -> Response:
    await _adapting(market).cancel(principal_of(actor), job_id)
    return RedirectResponse(f"/adapt/{job_id}", 303)
