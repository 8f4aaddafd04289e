"""Routes for serving nodes elsewhere, and for the market's own workers: they carry a node's token, not a key.

Admission, catalogue, bundles and journals over HTTP; the embedded node goes through the same parts in process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response
from sqlmodel import col, select

from marketplace.access import Actor, market_of, require, token_of
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.nodes import journals
from marketplace.nodes.clocks import clock_skewed, decide_skew, note_skew
from marketplace.nodes.registry import CallingNode, list_nodes
from marketplace.organisations.tables import Organisation
from marketplace.usage.recovery import close_epoch, take_late
from marketplace.vouchers.nodes import LATE, check_journal, new_epoch, unsealed_epochs
from marketplace.vouchers.sale import find_sale
from marketplace.vouchers.tables import NodeEpoch
from marketplace.vouchers.write_offs import held_fen
from model_store.errors import BadInput, Conflict, NotFound
from serving.catalogue import Entry
from serving.errors.access import model_not_found
from serving.ports import Principal
from serving.remote.wire import LeaseAsk, WireChange, WireChanges, encode_catalogue

router = APIRouter(tags=["nodes"])
OPERATOR = require("operator", scope="admin")
PORTION_BYTES = 1 << 20
WAIT_S = 20.0
LOOK_S = 0.05


def node_of(request: Request) -> CallingNode:
    """The node that calls. Raises `Unauthenticated` NODE_TOKEN_INVALID."""
    return market_of(request).nodes.node_of(token_of(request))


@router.get("/nodes")
def get_nodes(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Every admitted node: whose it is, when it was heard of last, its epochs that are not sealed with the bytes of
    journal here and what their leases hold."""
    with reading(market.engine) as session:
        epochs: dict[str, list[NodeEpoch]] = {}
        for row in unsealed_epochs(session):
            epochs.setdefault(row.node, []).append(row)
        items = [
            {
                "name": row.name,
                "organisation_id": row.organisation_id,
                "state": "admitted" if row.revoked_at_ms is None else "revoked",
                "seen_at_ms": market.nodes.seen_at_ms.get(row.name),
                "epochs": [
                    {
                        "epoch": each.epoch,
                        "state": each.state,
                        "bytes": journals.size_of(market.journals, row.name, each.epoch),
                        "opened_at_ms": each.opened_at_ms,
                        "held_fen": held_fen(session, each),
                        "skew_ms": each.skew_ms,
                    }
                    for each in epochs.get(row.name, [])
                ],
            }
            for row in list_nodes(session)
        ]
    return {"items": items, "total": len(items)}


# --- epochs and journals ----------------------------------------------------------------------------------------------


@router.get("/node/epochs")
def get_epochs(node: CallingNode = Depends(node_of), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The caller's open epochs, oldest first, with the bytes of their journals that are here."""
    with reading(market.engine) as session:
        found = [row.epoch for row in unsealed_epochs(session, node.name)]
    items = [{"epoch": each, "bytes": journals.size_of(market.journals, node.name, each)} for each in found]
    return {"node": node.name, "items": items, "now_ms": now_ms()}


@router.post("/node/epochs")
def post_epoch(node: CallingNode = Depends(node_of), market: Market = Depends(market_of)) -> dict[str, int]:
    """A new epoch for the caller; 409 EPOCH_OPEN while an older one's journal is not closed."""
    with transaction(market.engine) as session:
        return {"epoch": new_epoch(session, node.name, now_ms())}


@router.put("/node/epochs/{epoch}/journal")
async def put_journal(
    epoch: int,
    request: Request,
    offset: int = Query(ge=0),
    crc32c: int = Query(ge=0, lt=1 << 32),
    clock_ms: int = Query(0, ge=0, lt=1 << 53),
    node: CallingNode = Depends(node_of),
    market: Market = Depends(market_of),
) -> dict[str, int]:
    """Append a portion (at most 1 MiB) of the journal that begins at `offset`; answers the bytes that are safe here.

    `clock_ms`: what the node's clock says; far off, the portion's paid usage is quarantined (`clocks`).
    """
    skew = decide_skew(clock_ms, now_ms(), market.settings.max_clock_skew_seconds * 1000)
    content = await request.body()
    if not 0 < len(content) <= PORTION_BYTES:
        raise BadInput(
            "JOURNAL_PORTION",
            zh=f"每次须发送 1 至 {PORTION_BYTES} 字节",
            en=f"a portion has 1 to {PORTION_BYTES} bytes",
            remedy_zh="请分段发送",
            remedy_en="send the journal in portions",
            field="body",
        )

    def take() -> int:
        with market.nodes.journal(node.name):
            with reading(market.engine) as session:
                check_journal(session, node.name, epoch)
            note_skew(market.engine, market.journals, node.name, epoch, skew)
            return journals.append(market.journals, node.name, epoch, offset, crc32c, content)

    return {"size": await anyio.to_thread.run_sync(take)}


@router.post("/node/epochs/{epoch}/close")
def post_close(
    epoch: int,
    size: int = Query(ge=0),
    node: CallingNode = Depends(node_of),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The node has sealed this journal and sent all `size` bytes: ingest the rest and settle its leases. Repeatable."""
    with market.nodes.journal(node.name):
        here = journals.size_of(market.journals, node.name, epoch)
        if here != size:
            raise Conflict(
                "JOURNAL_OFFSET",
                zh=f"日志共 {size} 字节, 仅收到 {here} 字节",
                en=f"the journal has {size} bytes and {here} of them are here",
                remedy_zh=f"请从 {here} 处续传后再关闭",
                remedy_en=f"go on at {here}, then close it",
                field="size",
                details={"size": here},
            )
        with reading(market.engine) as session:
            states = {row.epoch: row.state for row in unsealed_epochs(session, node.name)}
        if states.get(epoch) in LATE:
            take_late(market.engine, market.journals, node.name, epoch)
        elif epoch in states:
            close_epoch(market.engine, market.journals, node.name, epoch)
    return {"epoch": epoch, "state": "sealed"}


# --- admission --------------------------------------------------------------------------------------------------------


@router.post("/node/principals")
async def post_principal(
    request: Request, node: CallingNode = Depends(node_of), market: Market = Depends(market_of)
) -> Response:
    """Who is behind a market key (the body is the key): refused as a call with that key would be."""
    assert market.admission is not None
    principal = await market.admission.authenticate((await request.body()).decode("latin-1"))
    node.check_serves(principal.organisation)
    return _json(msgspec.json.encode(principal))


@router.post("/node/leases")
async def post_lease(
    request: Request, node: CallingNode = Depends(node_of), market: Market = Depends(market_of)
) -> Response:
    """Open or extend a lease: `serving.ports.Admission.open_lease` over HTTP, with its refusals."""
    assert market.admission is not None
    try:
        ask = msgspec.json.decode(await request.body(), type=LeaseAsk)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            "REQUEST_INVALID",
            zh=f"请求有误: {error}",
            en=str(error),
            remedy_zh="请使用同一版本的节点程序",
            remedy_en="run the node with the market's own version",
        ) from error
    node.check_serves(ask.organisation)
    entry = market.bundles.entry(ask.listing_id)
    entry = next(_entries_for(node, [] if entry is None else [entry]), None)
    if entry is None:
        raise model_not_found(ask.listing_id)
    principal = await anyio.to_thread.run_sync(_principal, market, ask)
    skew = decide_skew(ask.clock_ms, now_ms(), market.settings.max_clock_skew_seconds * 1000)
    if skew and not await anyio.to_thread.run_sync(_costs_nothing, market, ask):
        raise clock_skewed(skew)
    served = next((served for _, served in entry.versions.values()), None)
    if served is None:
        raise model_not_found(entry.name)
    lease = await market.admission.open_lease(
        principal,
        served,
        node=node.name,
        epoch=ask.epoch,
        need_micro=ask.need_micro,
        purpose=ask.purpose,
        held=ask.held,
    )
    return _json(msgspec.json.encode(lease))


def _principal(market: Market, ask: LeaseAsk) -> Principal:
    """The organisation as the market knows it: what a node says of its role counts for nothing."""
    with reading(market.engine) as session:
        organisation = session.get(Organisation, ask.organisation)
    if organisation is None:
        raise model_not_found(ask.listing_id)
    return Principal(ask.key_id, organisation.id, organisation.kind, frozenset({"use"}))


def _costs_nothing(market: Market, ask: LeaseAsk) -> bool:
    if ask.purpose == "trial":
        return True
    with reading(market.engine) as session:
        listing = session.get_one(Listing, ask.listing_id)
        return bool(find_sale(session, listing, ask.organisation, now_ms()).free)


# --- catalogue and bundles --------------------------------------------------------------------------------------------


@router.get("/node/catalogue")
def get_catalogue(
    listing: list[str] = Query(default=[], max_length=200),
    node: CallingNode = Depends(node_of),
    market: Market = Depends(market_of),
) -> Response:
    """What the node may serve: everything, or these listings and the adapters on them."""
    feed = market.feed
    number = feed.latest  # before reading: a change meanwhile is told once more, never missed
    entries: Iterable[Entry] = market.bundles.entries()
    if listing:
        wanted = {each for one in listing for each in market.bundles.listings_with(one)}
        entries = (entry for entry in entries if entry.listing_id in wanted)
    return _json(encode_catalogue(feed.start, number, _entries_for(node, entries)))


@router.get("/node/changes")
async def get_changes(
    start: str = Query("", max_length=64),
    after: int = Query(0, ge=0),
    node: CallingNode = Depends(node_of),
    market: Market = Depends(market_of),
) -> Response:
    """Changes of catalogue, terms and keys after that number; waits up to 20 s for the first."""
    feed = market.feed
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while feed.start == start and feed.latest == after and not feed.is_over():
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(LOOK_S)
    found = feed.since(start, after)
    changes = [WireChange(each.kind, list(each.ids)) for each in found or ()]
    number = found[-1].number if found else (after if found is not None else feed.latest)
    return _json(msgspec.json.encode(WireChanges(feed.start, number, found is None, changes)))


@router.get("/node/bundles/{digest}")
def get_bundle(digest: str, node: CallingNode = Depends(node_of), market: Market = Depends(market_of)) -> FileResponse:
    """The bundle of a version that the node may serve, as the zip that was published."""
    serves = {
        each.digest
        for entry in _entries_for(node, market.bundles.entries())
        for _, served in entry.versions.values()
        for each in (served, served.base)
        if each is not None
    }
    with reading(market.engine) as session:
        blob = session.exec(select(ModelVersion.blob).where(col(ModelVersion.digest) == digest)).first()
    if digest not in serves or blob is None:
        raise NotFound(
            "BLOB_NOT_FOUND",
            zh="没有这个模型包",
            en="there is no such bundle",
            remedy_zh="请重新读取目录",
            remedy_en="read the catalogue again",
            field="digest",
        )
    return FileResponse(market.blobs.path(blob), media_type="application/zip")


def _entries_for(node: CallingNode, entries: Iterable[Entry]) -> Iterator[Entry]:
    """What a node may hold: everything; or, of an organisation, its own listings and what is listed of public ones."""
    for entry in entries:
        if node.organisation in ("", entry.owner):
            yield entry
        elif not entry.private:
            listed = {number: each for number, each in entry.versions.items() if each[0] == "listed"}
            if listed:
                yield replace(entry, versions=listed)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
