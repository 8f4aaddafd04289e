"""City hall's reports: what can be taken away, as of which day, in which form."""

from __future__ import annotations

from datetime import date

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from marketplace.access import Actor, require
from marketplace.reports import api as reports
from marketplace.web.rendering import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
OPERATOR = require("operator", scope="admin")


@router.get("/city/reports")
def all_reports(request: Request, as_of: str = Query("", max_length=40), actor: Actor = Depends(OPERATOR)) -> Response:
    """Every report with links to its files; `as_of` is a day, anything else is left out."""
    try:
        day = date.fromisoformat(as_of).isoformat() if as_of else ""
    except ValueError:
        day = ""
    return page(request, "city_reports.html", reports=reports.list_reports(actor)["items"], day=day)
