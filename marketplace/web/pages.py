"""The pages of the shop: shelf, coverage, model, compare, login. Forms are in `actions`, try-it is in `trying`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
from fastapi import APIRouter, Depends, Query
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import SESSION_COOKIE, Actor, check_same_site, market_of, optional_actor
from marketplace.catalogue import api as catalogue
from marketplace.catalogue.coverage import counters, coverage
from marketplace.catalogue.search import AXES
from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.authentication import decide_key_state
from marketplace.keys.service import list_keys
from marketplace.market import Market
from marketplace.organisations import members
from marketplace.organisations.api import set_session_cookie
from marketplace.vouchers import subscriptions
from marketplace.vouchers.quote import quote_calls
from marketplace.web.choosing import principal_of
from marketplace.web.drawing import Interval, intervals
from marketplace.web.rendering import PageRoute, page
from model_store.errors import NotFound, Refusal
from serving.ports import Principal

STATIC = Path(__file__).parent / "static"
PAGE_SIZE = 24
COMPARED = 4
CARD_CHARACTERS = 20_000
_MARKDOWN = MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image")
VISITOR = Principal("", "", "", frozenset(), "")
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
        "card": _card(detail, request, market),
        "chart": intervals(
            "95%",
            [
                Interval(metric["name"], metric["value"], metric["low"], metric["high"], best=True)
                for metric in (detail["model"].get("metrics") or [])[:6]
                if metric.get("low") is not None and abs(metric["high"]) <= 1
            ],
        ),
    } | _terms(optional_actor(request), detail, market)


def _card(detail: dict[str, Any], request: Request, market: Market) -> Markup:
    """The card, rendered without its front matter and title, which the page has already; raw HTML in it is shown as
    text and pictures are left out, so that a vendor's card cannot bring anything in. Empty where nothing is listed yet.
    """
    actor = optional_actor(request)
    try:
        served = market.bundles.resolve(detail["name"], None, principal_of(actor) if actor else VISITOR)
        text = (Path(served.bundle) / "card.md").read_text(encoding="utf-8")[:CARD_CHARACTERS]
    except (Refusal, OSError):
        return Markup("")
    if text.startswith("---"):
        text = text.partition("\n---")[2].partition("\n")[2]
    lines = text.strip().splitlines()
    body = "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines)
    return Markup(_MARKDOWN.render(body))  # noqa: S704 - the renderer escapes what the vendor wrote


def _terms(actor: Actor | None, detail: dict[str, Any], market: Market) -> dict[str, Any]:
    """What a member's organisation would pay, the contract it has, and the key that its snippets may use."""
    if actor is None or actor.organisation_status != "approved":
        return {"quote": None, "contract": None, "key_prefix": ""}
    with reading(market.engine) as session:
        listing = session.get_one(Listing, detail["listing_id"])
        contract = subscriptions.active_subscription(session, actor.organisation_id, listing.id)
        usable = [
            key for key in list_keys(session, actor.organisation_id) if decide_key_state(key, now_ms()) == "active"
        ]
        return {
            "quote": quote_calls(session, listing, actor.organisation_id, 1000, now_ms()),
            "contract": contract,
            "key_prefix": usable[0].prefix if usable else "",
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
def login_form(
    request: Request, invitation: str = Query("", max_length=256), market: Market = Depends(market_of)
) -> Response:
    if invitation:
        return RedirectResponse(f"/password?{urlencode({'kind': 'invitation', 'token': invitation})}", 303)
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
