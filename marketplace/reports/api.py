"""Routes of the reports, for operators: the list, one report, and the pack of all of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from marketplace.access import Actor, market_of, require
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.market import Market
from marketplace.reports.pack import facts_of, find, instant_of, write_pack, write_report
from marketplace.reports.register import REPORTS
from marketplace.reports.writing import MEDIA

router = APIRouter(prefix="/reports", tags=["reports"])
OPERATOR = require("operator", scope="admin")
Form = Literal["csv", "xlsx", "json"]
_ID = Query("", max_length=100)
_TIME = Query("", max_length=40)


@router.get("")
def list_reports(actor: Actor = Depends(OPERATOR)) -> dict[str, Any]:
    """Every report with its columns, and whether the same `as_of` always answers the same."""
    return {"items": [report.view() for report in REPORTS.values()], "total": len(REPORTS)}


@router.get("/pack")
def get_pack(
    as_of: str = _TIME,
    programme: str = _ID,
    from_day: str = _TIME,
    formats: list[Form] = Query(["csv"], alias="format"),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> FileResponse:
    """All reports in a zip with a manifest: SHA-256 and rows of each file."""
    folder = _folder()
    try:
        with reading(market.engine) as session:
            facts = facts_of(session, market.blobs, instant_of(as_of, now_ms()), programme, from_day)
            path = write_pack(facts, folder, list(dict.fromkeys(formats)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _file(path, folder, "application/zip", f"algomart-reports-{facts.as_of_ms}.zip")


@router.get("/{name}")
def get_report(
    name: str,
    as_of: str = _TIME,
    programme: str = _ID,
    from_day: str = _TIME,
    form: Form = Query("csv", alias="format"),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> FileResponse:
    """One report as it was at `as_of`: a day (its end, Asia/Shanghai) or an instant with its zone; "": just now."""
    report, folder = find(name), _folder()
    try:
        with reading(market.engine) as session:
            facts = facts_of(session, market.blobs, instant_of(as_of, now_ms()), programme, from_day)
            path, _ = write_report(report, facts, form, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _file(path, folder, MEDIA[form], f"{name}-{facts.as_of_ms}.{form}")


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="algomart-report-"))


def _file(path: Path, folder: Path, media: str, filename: str) -> FileResponse:
    """Sent from disk; the folder goes once it is sent."""
    cleaning = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(path, media_type=media, filename=filename, background=cleaning)
