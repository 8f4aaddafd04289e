"""The pages of the shop: shelf, model, login. Console and city hall are in `desks`, the try-it form in `trying`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import SESSION_COOKIE, check_same_site, market_of, optional_actor
from marketplace.catalogue import api as catalogue
from marketplace.catalogue.coverage import counters
from marketplace.catalogue.search import AXES
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations import members
from marketplace.organisations.api import set_session_cookie
from marketplace.web.rendering import PageRoute, page
from model_store.errors import NotFound, Refusal

STATIC = Path(__file__).parent / "static"
PAGE_SIZE = 24
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
        page_number=page_number,
        pages=-(-found.total // PAGE_SIZE),
        page_url=lambda number: "/?" + urlencode([*kept, ("page", number)]),
    )


def model_facts(vendor: str, name: str, request: Request, market: Market) -> dict[str, Any]:
    """What the model page shows: detail, lineage, snippets, example values."""
    detail = catalogue.get_model(vendor, name, request, market)
    try:
        lineage = catalogue.get_lineage(vendor, name, request, None, market)
    except NotFound:  # nothing published yet
        lineage = None
    features = detail["model"].get("features") or []
    example = {feature["name"]: feature.get("example") for feature in features}
    body = orjson.dumps({"inputs": example}).decode()
    url = f"{market.settings.url.rstrip('/')}/v1/use/{detail['name']}"
    return {
        "model": detail,
        "lineage": lineage,
        "features": features,
        "values": {feature: written(value) for feature, value in example.items()},
        "snippets": snippets(url, body),
        "outcome": None,
        "refusal": None,
    }


def written(value: Any) -> str:
    """An example as a form field holds it; a series as numbers between commas."""
    return ", ".join(str(each) for each in value) if isinstance(value, list) else "" if value is None else str(value)


def snippets(url: str, body: str) -> dict[str, str]:
    """The same call in four languages; the key comes from the environment."""
    quoted = orjson.dumps(body).decode()  # a lawful string literal in Python, C# and JavaScript alike
    shell = body.replace("'", "'\\''")
    return {
        "curl": f'curl {url} \\\n  -H "Authorization: Bearer $ALGOMART_KEY" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d '{shell}'",
        "Python": "import os, httpx\n\n"
        f'answer = httpx.post("{url}",\n    content={quoted},\n'
        '    headers={"Authorization": "Bearer " + os.environ["ALGOMART_KEY"],\n'
        '             "Content-Type": "application/json"})\nprint(answer.json())',
        "C#": "using System.Net.Http.Headers;\nusing System.Text;\n\nvar http = new HttpClient();\n"
        'http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", '
        'Environment.GetEnvironmentVariable("ALGOMART_KEY"));\n'
        f'var body = new StringContent({quoted}, Encoding.UTF8, "application/json");\n'
        f'var answer = await http.PostAsync("{url}", body);\n'
        "Console.WriteLine(await answer.Content.ReadAsStringAsync());",
        "Node": f'const answer = await fetch("{url}", {{\n  method: "POST",\n  headers: {{\n'
        '    Authorization: "Bearer " + process.env.ALGOMART_KEY,\n    "Content-Type": "application/json",\n  },\n'
        f"  body: {quoted},\n}});\nconsole.log(await answer.json());",
    }


@router.get("/models/{vendor}/{name}")
def model(vendor: str, name: str, request: Request, market: Market = Depends(market_of)) -> Response:
    """One model: card, metrics, features, versions, prices, lineage, snippets, try-it."""
    return page(request, "model.html", **model_facts(vendor, name, request, market))


@router.get("/login")
def login_form(request: Request, market: Market = Depends(market_of)) -> Response:
    return page(request, "login.html", demo=market.settings.demo, refusal=None, email="")


async def _fields(request: Request) -> dict[str, str]:
    """A posted form without files."""
    posted = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in posted.items()}


@router.post("/login")
def login(request: Request, fields: dict[str, str] = Depends(_fields), market: Market = Depends(market_of)) -> Response:
    """Log in and go where the visitor wanted to; never to another site."""
    check_same_site(request)
    email = fields.get("email", "")
    refused: Refusal | None = None
    token = ""
    with transaction(market.engine) as session:
        try:
            _, token = members.login(session, email, fields.get("password", ""), now_ms())
        except Refusal as refusal:
            refused = refusal
    if refused is not None:
        facts = {"refusal": refused.as_dict(""), "email": email, "demo": market.settings.demo}
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
