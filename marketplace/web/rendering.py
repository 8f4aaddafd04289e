"""How a page is made: language, words, headers, and refusals as pages instead of JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from marketplace.access import optional_actor
from marketplace.catalogue.labels import LINKS, MODALITIES, SCENARIOS, TASKS, TIERS
from model_store.errors import Refusal, Unauthenticated

FOLDER = Path(__file__).parent
LANGUAGE_COOKIE = "algomart_lang"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SHANGHAI_HOURS = 8


@cache
def words() -> dict[str, dict[str, str]]:
    """Every message of the pages: `{key: {zh, en}}`."""
    found: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / "words.yaml").read_text(encoding="utf-8"))
    return found


def language_of(request: Request) -> str:
    """zh unless `?lang=en` is asked for, or was before."""
    asked = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE, "")
    return "en" if asked == "en" else "zh"


def fen_of_micro(micro: int) -> str:
    """Micro-fen as fen in plain decimals: 370000 → 0.37."""
    return format((Decimal(micro) / 1_000_000).normalize(), "f")


def yuan_of_fen(fen: int) -> str:
    return f"¥{Decimal(fen) / 100:,.2f}"


def shanghai_time(at_ms: int) -> str:
    return (datetime.fromtimestamp(at_ms / 1000, UTC) + timedelta(hours=_SHANGHAI_HOURS)).strftime("%Y-%m-%d %H:%M")


def label_of(value: str, language: str) -> str:
    """A facet value in the visitor's language."""
    for table in (TIERS, TASKS, MODALITIES):
        if value in table:
            return table[value][language == "en"]
    return (LINKS.get(value) or SCENARIOS.get(value) or value) if language == "en" else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"fen": fen_of_micro, "yuan": yuan_of_fen, "moment": shanghai_time}
    return environment


def page(request: Request, template: str, status: int = 200, **facts: Any) -> Response:
    """A whole document in the visitor's language, with the headers that let nothing foreign in."""
    language = language_of(request)
    try:
        actor = optional_actor(request)
    except Refusal:
        actor = None
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "lang"]
    other = "zh" if language == "en" else "en"
    html = (
        _environment()
        .get_template(template)
        .render(
            t=lambda key: words()[key][language],
            label=lambda value: label_of(value, language),
            pick=lambda row, stem: row.get(f"{stem}_{language}") or row.get(f"{stem}_zh") or "",
            language=language,
            other_url=f"{quote(request.url.path)}?{urlencode([*rest, ('lang', other)])}",
            actor=actor,
            query=request.query_params,
            **facts,
        )
    )
    response = HTMLResponse(html, status, HEADERS)
    if "lang" in request.query_params:
        response.set_cookie(LANGUAGE_COOKIE, language, max_age=31_536_000, httponly=True, samesite="lax")
    return response


class PageRoute(APIRoute):
    """A route whose refusals are pages; a visitor without a session is led to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Unauthenticated as refusal:
                if refusal.code == "KEY_MISSING":
                    return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
                return page(request, "error.html", refusal.status, refusal=refusal.as_dict(""))
            except Refusal as refusal:
                return page(request, "error.html", refusal.status, refusal=refusal.as_dict(""))

        return answer
