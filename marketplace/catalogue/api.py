"""Routes of the catalogue: search, model pages, aliases, prices, lifecycle, filings, coverage."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from marketplace.access import Actor, market_of, optional_actor, require
from marketplace.body import Body
from marketplace.catalogue import aliases as alias_rows
from marketplace.catalogue import filings as filing_rows
from marketplace.catalogue import listings as rows
from marketplace.catalogue import prices as price_rows
from marketplace.catalogue.coverage import coverage as coverage_map
from marketplace.catalogue.lineage import lineage as walk_lineage
from marketplace.catalogue.search import AXES
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.review import service as review
from model_store.names import check_alias, path_name

router = APIRouter(tags=["catalogue"])
VENDOR = require("vendor", "enterprise", "operator", scope="publish")


class AliasTarget(Body):
    version: int = Field(ge=1)


class NewPrice(Body):
    kind: Literal["use", "derivative"] = "use"
    unit: str = "calls"
    micro_per_unit: int | None = Field(default=None, description="Micro-fen per unit (1 fen = 1,000,000)")
    fen_per_unit: str | None = Field(default=None, description='Or fen as text, such as "0.37"')
    effective_from_ms: int | None = Field(default=None, description="None: at once; never in the past")


class NewFiling(Body):
    number: str = Field(max_length=120)
    kind: Literal["备案", "登记"] = "备案"
    model_name: str = Field(max_length=200)
    holder: str = Field(max_length=200)
    valid_from: str = Field(description="YYYY-MM-DD, Asia/Shanghai")
    valid_until: str = ""


class FilingChoice(Body):
    filing: str | None = Field(default=None, description="Id or number of a register entry; null: none")


class Reason(Body):
    reason: str = Field(default="", max_length=500)


@router.get("/models")
def search_models(
    request: Request,
    q: str = Query("", max_length=500),
    sort: Literal["relevance", "new", "name", "price"] = "relevance",
    mine: bool = False,
    page: int = Query(1, ge=1, le=10_000),
    page_size: int = Query(24, ge=1, le=100),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Search the shelf. Facets: repeat `tier`, `task`, `modality`, `link`, `chain`, `scenario`, `licence`, `vendor`,
    `family`, `filing`, `price` as often as wanted: any value of one, all of several. `mine`: one's own, drafts too."""
    actor = optional_actor(request)
    found = market.search.search(
        q,
        filters={axis: values for axis in AXES if (values := request.query_params.getlist(axis))},
        organisation_id=actor.organisation_id if actor else "",
        mine=mine,
        sort=sort,
        page=page,
        page_size=page_size,
    )
    return {"items": found.cards, "total": found.total, "facets": found.facets, "page": page, "page_size": page_size}


@router.get("/coverage")
def coverage(market: Market = Depends(market_of)) -> dict[str, Any]:
    """Chain × link map, scenarios, and the counters 3 / 15 / 200, without starters and demonstrations."""
    with reading(market.engine) as session:
        return coverage_map(session, now_ms())


@router.get("/models/{vendor}/{name}")
def get_model(vendor: str, name: str, request: Request, market: Market = Depends(market_of)) -> dict[str, Any]:
    """A model's page as data."""
    with reading(market.engine) as session:
        actor = optional_actor(request)
        listing = rows.find_listing(session, f"{vendor}/{name}", actor)
        return rows.listing_detail(session, listing, actor, market.search.card(listing.id))


@router.get("/models/{vendor}/{name}/versions/{number}")
def get_version(
    vendor: str, name: str, number: int, request: Request, market: Market = Depends(market_of)
) -> dict[str, Any]:
    """One version with its manifest, inspection report and scorecard."""
    with reading(market.engine) as session:
        actor = optional_actor(request)
        listing = rows.find_listing(session, f"{vendor}/{name}", actor)
        version = rows.find_version(session, listing, number, actor)
        return rows.version_view(version, full=True) | {"name": listing.name}


@router.get("/models/{vendor}/{name}/lineage")
def get_lineage(
    vendor: str,
    name: str,
    request: Request,
    version: int | None = Query(None, ge=1),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Ancestors and descendants of a version (the newest, if none is named)."""
    with reading(market.engine) as session:
        actor = optional_actor(request)
        listing = rows.find_listing(session, f"{vendor}/{name}", actor)
        seen = rows.versions_seen(session, listing, actor)
        number = version or (seen[0].number if seen else 0)
        return walk_lineage(session, rows.find_version(session, listing, number, actor), actor)


@router.put("/models/{vendor}/{name}/aliases/{alias}")
def put_alias(
    vendor: str,
    name: str,
    alias: str,
    body: AliasTarget,
    actor: Actor = Depends(VENDOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Point an alias at a version: `vendor/name@alias` runs it from now on."""
    check_alias(alias)
    with reading(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor)
        rows.find_version(session, listing, body.version, actor)
    market.store.set_alias(path_name(listing.name), alias, body.version)  # outbound: never inside a transaction
    with transaction(market.engine) as session:
        version = rows.find_version(session, listing, body.version, actor)
        alias_rows.set_alias(session, listing, alias, version, actor=actor.id)
    market.catalogue_changed(listing.id)
    return {"name": listing.name, "alias": alias, "version": body.version}


@router.delete("/models/{vendor}/{name}/aliases/{alias}")
def delete_alias(
    vendor: str, name: str, alias: str, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    with transaction(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor)
        alias_rows.delete_alias(session, listing, alias, actor=actor.id)
    market.store.delete_alias(path_name(listing.name), alias)
    market.catalogue_changed(listing.id)
    return {"name": listing.name, "alias": alias, "version": None}


@router.get("/models/{vendor}/{name}/prices")
def get_prices(vendor: str, name: str, request: Request, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Every price version, newest first."""
    with reading(market.engine) as session:
        listing = rows.find_listing(session, f"{vendor}/{name}", optional_actor(request))
        items = [price_rows.price_view(price) for price in price_rows.list_prices(session, listing.id)]
        return {"items": items, "total": len(items)}


@router.post("/models/{vendor}/{name}/prices", status_code=201)
def post_price(
    vendor: str, name: str, body: NewPrice, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Set a price from now (or later) on; what was used before stays at the price it was used at."""
    micro = body.micro_per_unit
    if micro is None:
        micro = price_rows.micro_of_fen(body.fen_per_unit or "")
    with transaction(market.engine) as session:
        price = price_rows.add_price(
            session,
            rows.own_listing(session, f"{vendor}/{name}", actor),
            kind=body.kind,
            unit=body.unit,
            micro_per_unit=micro,
            actor=actor.id,
            at_ms=now_ms(),
            effective_from_ms=body.effective_from_ms,
        )
        view = price_rows.price_view(price)
    market.catalogue_changed(price.listing_id)
    market.terms_changed(price.listing_id if body.kind == "use" else None)  # derivatives are listings of their own
    return view


@router.post("/models/{vendor}/{name}/versions/{number}/submit", status_code=201)
def submit(
    vendor: str, name: str, number: int, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Put an inspected version in the operator's review queue."""
    with transaction(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor)
        version = rows.find_version(session, listing, number, actor)
        opened = review.submit_version(session, version, listing, actor=actor.id, at_ms=now_ms())
        answer = {"name": listing.name, "version": number, "state": version.state, "review_id": opened.id}
    market.catalogue_changed(listing.id)
    return answer


def _end(market: Market, actor: Actor, name: str, number: int, event: str, reason: str) -> dict[str, Any]:
    with transaction(market.engine) as session:
        listing = rows.own_listing(session, name, actor, or_operator=event == "withdraw")
        version = rows.find_version(session, listing, number, actor)
        review.end_version(session, version, listing, event, actor=actor.id, at_ms=now_ms(), reason=reason)
        answer = {"name": listing.name, "version": number, "state": version.state, "status": listing.status}
    market.catalogue_changed(listing.id)
    return answer


@router.post("/models/{vendor}/{name}/versions/{number}/retire")
def retire(
    vendor: str,
    name: str,
    number: int,
    body: Reason | None = None,
    actor: Actor = Depends(VENDOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Stop selling a version."""
    return _end(market, actor, f"{vendor}/{name}", number, "retire", body.reason if body else "")


@router.post("/models/{vendor}/{name}/versions/{number}/withdraw")
def withdraw(
    vendor: str,
    name: str,
    number: int,
    body: Reason | None = None,
    actor: Actor = Depends(VENDOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Withdraw a version for cause: its vendor or the operator, at any time."""
    return _end(market, actor, f"{vendor}/{name}", number, "withdraw", body.reason if body else "")


@router.get("/filings")
def list_filings(market: Market = Depends(market_of)) -> dict[str, Any]:
    """The register of filed models."""
    with reading(market.engine) as session:
        items = [rows.filing_view(filing) for filing in filing_rows.list_filings(session)]
        return {"items": items, "total": len(items)}


@router.post("/filings", status_code=201)
def post_filing(
    body: NewFiling,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Enter a filing in the register."""
    with transaction(market.engine) as session:
        return rows.filing_view(filing_rows.register_filing(session, **body.model_dump(), actor=actor.id))


@router.put("/models/{vendor}/{name}/filing")
def put_filing(
    vendor: str,
    name: str,
    body: FilingChoice,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Bind a listing to its filing, after comparing both."""
    with transaction(market.engine) as session:
        listing = rows.find_listing(session, f"{vendor}/{name}", actor)
        filing = filing_rows.get_filing(session, body.filing) if body.filing else None
        filing_rows.attach_filing(session, listing, filing, actor=actor.id)
        answer = {"name": listing.name, "filing": rows.filing_view(filing) if filing else None}
    market.catalogue_changed(listing.id)
    market.terms_changed()  # derivatives carry it too
    return answer
