"""Routes of claims: batches, their lines and document, invoices, corrections, clawbacks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import Field
from sqlmodel import Session

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.claims import batches, clawbacks, corrections, invoices, views
from marketplace.claims.refusals import claim_not_found
from marketplace.claims.tables import ClaimBatch
from marketplace.clock import now_ms
from marketplace.db import reading, snapshot, transaction
from marketplace.evidence import intake
from marketplace.evidence.files import Subject
from marketplace.evidence.intake import FORM, Upload
from marketplace.evidence.tables import EvidenceFile
from marketplace.integrity.pack import write_pack
from marketplace.market import Market
from marketplace.uploads import scratch_folder
from marketplace.vouchers.subscriptions import get_subscription
from marketplace.vouchers.subsidies import retention_years

router = APIRouter(tags=["claims"])
CHUNK = 1 << 18  # bytes of a pack sent at a time
OPERATOR = require("operator", scope="admin")
BUYER = require("enterprise", "operator", scope="manage")


class NewBatch(Body):
    programme: str = Field(description="Id or code")
    from_day: str = Field(description="YYYY-MM-DD in Asia/Shanghai; both days count")
    to_day: str


class Note(Body):
    note: str = Field(default="", max_length=2_000)


class Payment(Body):
    reference: str = Field(min_length=1, max_length=200, description="Of the government's payment")
    paid_on: str = Field(description="YYYY-MM-DD")
    amount_fen: int


class NewInvoice(Body):
    subscription_id: str
    number: str
    amount_fen: int
    issued_on: str = Field(description="YYYY-MM-DD")


class NewCorrection(Body):
    usage_id: str = Field(max_length=60)
    reason: str = Field(min_length=1, max_length=2_000)


class NewClawback(Body):
    line_id: str = Field(max_length=60)
    amount_fen: int
    reason: str = Field(min_length=1, max_length=2_000)


# --- batches ----------------------------------------------------------------------------------------------------------


@router.get("/claims")
def list_claims(
    programme_id: str = "", actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Every claim batch, newest first."""
    with reading(market.engine) as session:
        items = [views.batch_view(session, row) for row in batches.list_batches(session, programme_id)]
    return {"items": items, "total": len(items)}


@router.post("/claims", status_code=201)
def create_claim(
    body: NewBatch, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """A batch of a programme and period, to look at; it takes nothing before it is frozen."""
    with transaction(market.engine) as session:
        row = batches.create(session, body.programme, body.from_day, body.to_day, member=actor.member_id)
        return _full(session, row)


@router.get("/claims/{claim_id}")
def get_claim(claim_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """A batch with its lines; while assembling, what freezing it now would claim and what it would leave out."""
    with reading(market.engine) as session:
        return _full(session, batches.get_batch(session, claim_id))


@router.get("/claims/{claim_id}/document")
def get_document(claim_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> FileResponse:
    """The frozen document, byte for byte: its SHA-256 is the batch's."""
    with reading(market.engine) as session:
        sha256 = batches.get_batch(session, claim_id).sha256
    if not sha256:
        raise claim_not_found("冻结文件", "frozen document of", claim_id)
    return FileResponse(market.blobs.path(sha256), media_type="application/json", filename=f"{claim_id}.json")


@router.get("/claims/{claim_id}/pack")
def get_pack(claim_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> StreamingResponse:
    """All that an auditor needs, as a zip: `algomart verify` judges it without this market."""
    with scratch_folder(market.settings.home, "pack") as folder, snapshot(market.engine) as session:
        batch = session.get(ClaimBatch, claim_id)
        if batch is None:
            raise claim_not_found("申报批次", "claim batch", claim_id)
        if not batch.sha256:
            raise claim_not_found("冻结文件", "frozen document of", claim_id)
        # Opened, it needs no name: it goes with the last chunk, with whoever hangs up, and with this process.
        file = write_pack(session, batch, market.blobs, folder / "pack.zip").open("rb")
    headers = {
        "content-disposition": f'attachment; filename="{claim_id}.zip"',
        "content-length": str(os.fstat(file.fileno()).st_size),
    }
    return StreamingResponse(_chunks(file), media_type="application/zip", headers=headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


@router.post("/claims/{claim_id}/pay")
def enter_payment(
    claim_id: str, body: Payment, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """What the government paid; another person confirms it."""
    with transaction(market.engine) as session:
        row = batches.get_batch(session, claim_id)
        batches.enter_payment(
            session,
            row,
            reference=body.reference,
            paid_on=body.paid_on,
            amount_fen=body.amount_fen,
            member=actor.member_id,
            at_ms=now_ms(),
        )
        return _full(session, row)


@router.post("/claims/{claim_id}/lines/{line_id}/{decision}")
def decide_line(
    claim_id: str,
    line_id: str,
    decision: Literal["return", "reject"],
    body: Note,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """return (it may be claimed again) or reject (for good), with the reason as `note`, before the approval."""
    with transaction(market.engine) as session:
        row = batches.get_batch(session, claim_id)
        line = batches.get_line(session, row, line_id)
        batches.decide_line(session, row, line, decision, member=actor.member_id, at_ms=now_ms(), reason=body.note)
        return _full(session, row)


@router.post("/claims/{claim_id}/{decision}")
def decide_claim(
    claim_id: str,
    decision: Literal[
        "freeze", "discard", "submit", "review", "publish", "approve", "return", "unpay", "confirm-payment", "reconcile"
    ],
    body: Note | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """freeze → submit → review → publish (公示) → approve (another person); confirm-payment (another) → reconcile."""
    at, member = now_ms(), actor.member_id
    with transaction(market.engine) as session:
        row = batches.get_batch(session, claim_id)
        if decision == "freeze":
            batches.freeze(session, row, market.blobs, member=member, at_ms=at)
        elif decision == "confirm-payment":
            batches.confirm_payment(session, row, member=member, at_ms=at)
        else:
            batches.advance(session, row, decision, member=member, at_ms=at, note=body.note if body else "")
        return _full(session, row)


def _full(session: Any, row: ClaimBatch) -> dict[str, Any]:
    view = views.batch_view(session, row, with_lines=True)
    if row.state == "assembling":
        found = batches.candidates(session, row, now_ms())
        view["candidates"] = [views.candidate_view(session, each) for each in found]
    return view


# --- invoices ---------------------------------------------------------------------------------------------------------


@router.get("/invoices")
def list_invoices(actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """One's own, as buyer or provider; all of them for an operator."""
    with reading(market.engine) as session:
        rows = invoices.list_invoices(session, None if actor.is_operator else actor.organisation_id)
        return {"items": [views.invoice_view(session, row) for row in rows], "total": len(rows)}


@router.post("/invoices", status_code=201)
def enter_invoice(
    body: NewInvoice, actor: Actor = Depends(BUYER), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Enter an invoice of one's own contract; a claim may need invoices that cover it."""
    with transaction(market.engine) as session:
        within = None if actor.is_operator else actor.organisation_id
        contract = get_subscription(session, body.subscription_id, within)
        row = invoices.enter(
            session,
            contract,
            number=body.number,
            amount_fen=body.amount_fen,
            issued_on=body.issued_on,
            actor=actor.id,
        )
        return views.invoice_view(session, row)


async def received(
    request: Request, actor: Actor = Depends(BUYER), market: Market = Depends(market_of)
) -> AsyncIterator[Upload]:
    """A form with a `file`, read once its sender is known to be allowed to enter invoices."""
    async with intake.received(request, market) as upload:
        yield upload


@router.post("/invoices/{invoice_id}/file", status_code=201, openapi_extra=FORM)
async def attach_invoice(
    invoice_id: str,
    upload: Upload = Depends(received),
    actor: Actor = Depends(BUYER),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The invoice itself, as a file: its hash stands in the claim that it backs."""
    owner = None if actor.is_operator else actor.organisation_id

    def judge(session: Session) -> tuple[Subject, tuple[str, ...]]:
        row = invoices.get_invoice(session, invoice_id, owner)
        years = retention_years(session, row.subscription_id)
        return Subject("invoice", row.id, row.organisation_id, "invoice", years), ()

    def then(session: Session, file: EvidenceFile) -> None:
        row = invoices.get_invoice(session, invoice_id, owner)
        row.sha256 = file.sha256
        session.add(row)

    return await anyio.to_thread.run_sync(
        lambda: intake.take(market, upload, judge, actor=actor.id, at_ms=now_ms(), then=then)
    )


# --- corrections and clawbacks ----------------------------------------------------------------------------------------


@router.get("/corrections")
def list_corrections(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The register of corrections, with both persons of each."""
    with reading(market.engine) as session:
        rows = corrections.list_corrections(session)
        return {"items": [views.correction_view(row) for row in rows], "total": len(rows)}


@router.post("/corrections", status_code=201)
def propose_correction(
    body: NewCorrection, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Propose to take back what one usage record was charged; another person posts it."""
    with transaction(market.engine) as session:
        return views.correction_view(corrections.propose(session, body.usage_id, body.reason, member=actor.member_id))


@router.post("/corrections/{correction_id}/{decision}")
def decide_correction(
    correction_id: str,
    decision: Literal["post", "decline"],
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """post (P13, by another person than who proposed it) or decline."""
    with transaction(market.engine) as session:
        row = corrections.get_correction(session, correction_id)
        return views.correction_view(corrections.decide(session, row, decision, member=actor.member_id, at_ms=now_ms()))


@router.get("/clawbacks")
def list_clawbacks(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The register of clawbacks."""
    with reading(market.engine) as session:
        rows = clawbacks.list_clawbacks(session)
        return {"items": [views.clawback_view(row) for row in rows], "total": len(rows)}


@router.post("/clawbacks", status_code=201)
def open_clawback(
    body: NewClawback, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Open a clawback of what was paid for a line; another person confirms it."""
    with transaction(market.engine) as session:
        row = clawbacks.open_clawback(session, body.line_id, body.amount_fen, body.reason, member=actor.member_id)
        return views.clawback_view(row)


@router.post("/clawbacks/{clawback_id}/{decision}")
def decide_clawback(
    clawback_id: str,
    decision: Literal["confirm", "drop", "demand", "recover", "write-off"],
    body: Note | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """confirm (P14, another person) → demand → recover, or write-off (two persons say so)."""
    with transaction(market.engine) as session:
        row = clawbacks.get_clawback(session, clawback_id)
        note = body.note if body else ""
        row = clawbacks.decide(session, row, decision, member=actor.member_id, at_ms=now_ms(), note=note)
        return views.clawback_view(row)
