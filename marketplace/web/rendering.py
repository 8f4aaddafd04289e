"""How a page is made: language, words, headers, and refusals as pages instead of JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import yaml
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from marketplace.access import optional_actor
from marketplace.catalogue.labels import LINKS, MODALITIES, SCENARIOS, TASKS, TIERS
from marketplace.db import is_contended
from marketplace.errors import database_busy
from model_store.errors import BadInput, Refusal, Unauthenticated

FOLDER = Path(__file__).parent
LANGUAGE_COOKIE = "algomart_lang"
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LIVE_HEADERS = HEADERS | {"Content-Security-Policy": f"{_POLICY}; script-src 'self'; connect-src 'self'"}
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
    return f"{'-' if fen < 0 else ''}¥{abs(Decimal(fen)) / 100:,.2f}"


def exact_yuan_of_micro(micro: int) -> str:
    """Micro-fen as yuan with nothing cut off: 370000 → ¥0.0037, 100000000 → ¥1.00."""
    yuan = Decimal(micro) / 100_000_000
    whole = yuan == yuan.quantize(Decimal("0.01"))
    return f"¥{yuan:,.2f}" if whole else f"¥{yuan.normalize():,f}"


def shanghai_time(at_ms: int) -> str:
    return (datetime.fromtimestamp(at_ms / 1000, UTC) + timedelta(hours=_SHANGHAI_HOURS)).strftime("%Y-%m-%d %H:%M")


def yuan_of_micro(micro: int) -> str:
    """Micro-fen as yuan, down to the fen (a part of a fen is not shown)."""
    return yuan_of_fen(micro // 1_000_000)


def word_of(value: str, language: str) -> str:
    """A state, stage, field or unit as people say it; as it stands where there is no better word."""
    known = words().get(f"v_{value}")
    return known[language] if known else value.replace("_", " ")


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
    environment.filters |= {
        "fen": fen_of_micro,
        "yuan": yuan_of_fen,
        "micro_yuan": yuan_of_micro,
        "exact_yuan": exact_yuan_of_micro,
        "moment": shanghai_time,
    }
    return environment


def page(request: Request, template: str, status: int = 200, *, live: bool = False, **facts: Any) -> Response:
    """A whole document in the visitor's language, with the headers that let nothing foreign in.

    `live`: the page renews a part of itself, for which alone it may load our own copy of htmx; every other page runs no
    script at all.
    """
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
            w=lambda zh, en: en if language == "en" else zh,
            word_of=lambda value: word_of(str(value), language),
            unit_of=lambda value: word_of(f"per_{value}", language),
            live=live,
            label=lambda value: label_of(value, language),
            pick=lambda row, stem: row.get(f"{stem}_{language}") or row.get(f"{stem}_zh") or "",
            language=language,
            other_url=f"{quote(request.url.path)}?{urlencode([*rest, ('lang', other)])}",
            actor=actor,
            query=request.query_params,
            path=request.url.path,
            **facts,
        )
    )
    response = HTMLResponse(html, status, LIVE_HEADERS if live else HEADERS)
    if "lang" in request.query_params:
        response.set_cookie(LANGUAGE_COOKIE, language, max_age=31_536_000, httponly=True, samesite="lax")
    return response


def refused(request: Request, refusal: Refusal) -> Response:
    """A refusal as a page, with the way back to where the visitor was."""
    came_from = urlsplit(request.headers.get("referer", ""))
    back = came_from.path if came_from.netloc == request.headers.get("host") else ""
    response = page(request, "error.html", refusal.status, refusal=refusal.as_dict(""), back=back)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response


def _address_invalid(error: RequestValidationError) -> Refusal:
    field = str(error.errors()[0]["loc"][-1])
    return BadInput(
        "REQUEST_INVALID",
        zh=f"地址中的“{field}”不对",
        en=f"{field} in the address is not right",
        remedy_zh="请从页面上的链接进入",
        remedy_en="follow a link on a page instead",
        field=field,
    )


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
                return refused(request, refusal)
            except Refusal as refusal:
                return refused(request, refusal)
            except RequestValidationError as error:
                return refused(request, _address_invalid(error))
            except OperationalError as error:
                if not is_contended(error):
                    raise
                return refused(request, database_busy())

        return answer
