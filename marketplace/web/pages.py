"""The pages of the shop: shelf, coverage, model, compare, login. Forms are in `actions`, try-it is in `trying`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import SESSION_COOKIE, check_same_site, market_of, optional_actor
from marketplace.catalogue import api as catalogue
from marketplace.catalogue.coverage import counters, coverage
from marketplace.catalogue.labels import SCENARIOS
from marketplace.catalogue.search import AXES
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations import members
from marketplace.organisations.members_api import set_session_cookie
from marketplace.web.model_page import model_facts
from marketplace.web.rendering import PageRoute, page
from model_store.errors import BadInput, Refusal

STATIC = Path(__file__).parent / "static"
PAGE_SIZE = 24
COMPARED = 4
LOGIN_FIELDS = 20
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
def shelf(
    request: Request,
    q: str = Query("", max_length=500),
    page_number: int = Query(1, ge=1, le=10_000, alias="page"),
    market: Market = Depends(market_of),
) -> Response:
    """The shelf: search, facets, counters 3 / 15 / 200, cards."""
    actor = optional_actor(request)
    ticked = {axis: values for axis in AXES if (values := request.query_params.getlist(axis))}
    found = market.search.search(
        q,
        filters=ticked,
        organisation_id=actor.organisation_id if actor else "",
        page=page_number,
        page_size=PAGE_SIZE,
    )
    with reading(market.engine) as session:
        tiers = counters(session, now_ms())
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("page", "lang")]
    return page(
        request,
        "shelf.html",
        found=found,
        ticked=ticked,
        counters=tiers,
        scenarios=list(SCENARIOS),
        page_number=page_number,
        pages=-(-found.total // PAGE_SIZE),
        page_url=lambda number: "/?" + urlencode([*kept, ("page", number)]),
    )


@router.get("/models/{vendor}/{name}")
def model(vendor: str, name: str, request: Request, market: Market = Depends(market_of)) -> Response:
    """One model: card, metrics, features, versions, prices, lineage, snippets, try-it."""
    return page(request, "model.html", **model_facts(vendor, name, request, market))


@router.get("/coverage")
def coverage_map(request: Request, market: Market = Depends(market_of)) -> Response:
    """Which links of which industry chains have models, and which have none."""
    with reading(market.engine) as session:
        found = coverage(session, now_ms())
    cells = {(cell["chain"], cell["link"]): cell for cell in found["cells"]}
    return page(request, "coverage.html", found=found, cells=cells)


@router.get("/compare")
def compare(
    request: Request, m: list[str] = Query(default_factory=list, max_length=8), market: Market = Depends(market_of)
) -> Response:
    """Up to four models side by side."""
    models = []
    for name in [name.strip() for name in m if name.strip()][:COMPARED]:
        vendor, _, rest = name.partition("/")
        models.append(catalogue.get_model(vendor, rest, request, market))
    names = list(dict.fromkeys(metric["name"] for each in models for metric in each.get("metrics") or []))
    actor = optional_actor(request)
    found = market.search.search("", filters={}, organisation_id=actor.organisation_id if actor else "", page_size=100)
    return page(
        request, "compare.html", models=models, metric_names=names, names=[card["name"] for card in found.cards]
    )


@router.get("/login")
def login_form(request: Request, market: Market = Depends(market_of)) -> Response:
    return page(request, "login.html", demo=market.settings.demo, refusal=None, email="")


async def _fields(request: Request) -> dict[str, str]:
    """A posted form without files."""
    try:
        posted = parse_qs(
            (await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=LOGIN_FIELDS
        )
    except ValueError as error:  # a million empty fields would be taken apart on the event loop
        raise BadInput(
            "REQUEST_INVALID",
            zh=f"登录表单最多 {LOGIN_FIELDS} 个字段",
            en=f"the login form has at most {LOGIN_FIELDS} fields",
            remedy_zh="请使用登录页面",
            remedy_en="use the login page",
            field="form",
        ) from error
    return {name: values[-1] for name, values in posted.items()}


@router.post("/login")
def login(request: Request, fields: dict[str, str] = Depends(_fields), market: Market = Depends(market_of)) -> Response:
    """Log in and go where the visitor wanted to; never to another site."""
    check_same_site(request)
    email = fields.get("email", "")
    refused: Refusal | None = None
    token = ""
    try:
        with reading(market.engine) as session:
            member = members.check_login(session, email, fields.get("password", ""), now_ms())
        with transaction(market.engine) as session:
            token = members.open_session(session, member, now_ms())
    except Refusal as refusal:
        refused = refusal
    if refused is not None:
        facts: dict[str, Any] = {"refusal": refused.as_dict(""), "email": email, "demo": market.settings.demo}
        return page(request, "login.html", refused.status, **facts)
    wanted = request.query_params.get("next", "/")
    ours = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    response = RedirectResponse(wanted if ours else "/", 303)
    set_session_cookie(response, token, secure=market.settings.url.startswith("https"))
    return response


@router.post("/logout")
def logout(request: Request, market: Market = Depends(market_of)) -> Response:
    check_same_site(request)
    if token := request.cookies.get(SESSION_COOKIE):
        with transaction(market.engine) as session:
            members.logout(session, token)
    response = RedirectResponse("/", 303)
    response.delete_cookie(SESSION_COOKIE)
    return response
