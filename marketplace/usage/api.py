"""Routes of usage and statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response, StreamingResponse

from marketplace.access import Actor, market_of, require
from marketplace.db import reading
from marketplace.market import Market
from marketplace.usage import statements
from marketplace.usage.queries import Filters, list_usage, trace, usage_csv
from model_store.errors import Forbidden

router = APIRouter(tags=["usage"])
_MEDIA = {
    "json": ("application/json", statements.as_json),
    "csv": ("text/csv; charset=utf-8", statements.as_csv),
    "xlsx": ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", statements.as_xlsx),
}


@router.get("/usage", response_model=None)
def get_usage(
    from_ms: int | None = None,
    until_ms: int | None = None,
    model: str = Query("", max_length=200),
    key_id: str = "",
    status: Literal["", "ok", "unresolved", "quarantined"] = "",
    lease_kind: Literal["", "subsidised", "self_pay", "free"] = "",
    purpose: Literal["", "use", "trial", "adapt"] = "",
    subscription_id: str = "",
    reservation_id: str = "",
    organisation_id: str = "",
    page: int = Query(1, ge=1, le=1_000_000),
    page_size: int = Query(100, ge=1, le=1_000),
    format: Literal["json", "csv"] = "json",
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any] | Response:
    """Metered usage: one's own and that of one's models; all of it for an operator. `format=csv` streams it whole."""
    filters = Filters(
        from_ms=from_ms,
        until_ms=until_ms,
        model=model,
        key_id=key_id,
        status=status,
        lease_kind=lease_kind,
        subscription_id=subscription_id,
        reservation_id=reservation_id,
        organisation_id=organisation_id,
        purpose=purpose,
    )
    if format == "csv":

        def lines() -> Iterator[str]:
            with reading(market.engine) as session:
                yield from usage_csv(session, actor, filters)

        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=headers)
    with reading(market.engine) as session:
        items, total = list_usage(session, actor, filters, limit=page_size, offset=(page - 1) * page_size)
        return {"items": items, "total": total, "page": page, "page_size": page_size}


@router.get("/usage/{usage_id}")
def get_trace(usage_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """From a usage id to price, filing on that day, voucher line, transfer, invoices, claim batch and payment."""
    with reading(market.engine) as session:
        return trace(session, actor, usage_id)


@router.get("/statements", response_model=None)
def get_statement(
    month: str = Query(description="YYYY-MM, Asia/Shanghai"),
    format: Literal["json", "csv", "xlsx"] = "json",
    role: Literal["", "buyer", "provider"] = Query("", description="Default: provider for vendors, else buyer"),
    organisation_id: str = Query("", description="Operators only; default: one's own"),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> Response:
    """The month's statement to download."""
    if organisation_id not in ("", actor.organisation_id) and not actor.is_operator:
        raise Forbidden(
            "NOT_YOUR_STATEMENT",
            zh="只能下载本单位的对账单",
            en="a statement is for the organisation itself",
            remedy_zh="请去掉 organisation_id",
            remedy_en="leave organisation_id out",
            field="organisation_id",
        )
    as_provider = (role or ("provider" if actor.kind == "vendor" else "buyer")) == "provider"
    with reading(market.engine) as session:
        found = statements.statement(
            session,
            organisation_id or actor.organisation_id,
            statements.read_month(month),
            as_provider=as_provider,
        )
    media, render = _MEDIA[format]
    name = f"statement-{found['month']}-{found['role']}.{format}"
    return Response(render(found), media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}"'})
