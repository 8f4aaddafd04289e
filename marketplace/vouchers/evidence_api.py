"""Routes of evidence: a file of an application comes in, is read by its owner and operators, goes after its years."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from sqlmodel import Session

from marketplace.access import Actor, market_of, require
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.evidence import files, intake
from marketplace.evidence.intake import FORM, Upload
from marketplace.kept_blobs import kept_blobs
from marketplace.market import Market
from marketplace.vouchers import applications
from marketplace.vouchers.evidence_given import file_piece
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.subscriptions_api import within
from marketplace.vouchers.tables import Programme

router = APIRouter()
OPERATOR = require("operator", scope="admin")
APPLICANT = require("enterprise", "vendor", scope="manage")


async def received(
    request: Request, actor: Actor = Depends(APPLICANT), market: Market = Depends(market_of)
) -> AsyncIterator[Upload]:
    """A form with `code` and `file`, read once its sender is known to be allowed to apply."""
    async with intake.received(request, market) as upload:
        yield upload


@router.post("/applications/{application_id}/evidence", status_code=201, openapi_extra=FORM)
async def attach_evidence(
    application_id: str,
    upload: Upload = Depends(received),
    actor: Actor = Depends(APPLICANT),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Hand in one file of a draft, or of one that was sent back: PDF, PNG, JPEG, XLSX or OFD, by its content."""

    def judge(session: Session) -> tuple[files.Subject, tuple[str, ...]]:
        row = applications.get_application(session, application_id, actor.organisation_id)
        rules = rules_of(session.get_one(Programme, row.programme_id))
        applications.check_open(row)
        piece = file_piece(rules, upload.code)
        subject = files.Subject("application", row.id, row.organisation_id, piece.code, rules.retention_years)
        return subject, piece.types

    return await anyio.to_thread.run_sync(lambda: intake.take(market, upload, judge, actor=actor.id, at_ms=now_ms()))


@router.get("/evidence/{file_id}")
def get_evidence(
    file_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """What is known of a file: who handed it in and when, its hash, until when it is kept."""
    with reading(market.engine) as session:
        return files.file_view(files.get_file(session, file_id, within(actor)))


@router.get("/evidence/{file_id}/content")
def download_evidence(
    file_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> FileResponse:
    """The file itself, for who handed it in and for operators; always as a download."""
    with reading(market.engine) as session:
        row = files.get_file(session, file_id, within(actor))
        return FileResponse(market.blobs.path(row.sha256), headers=intake.download_headers(row))


@router.post("/evidence/{file_id}/withdraw")
def withdraw_evidence(
    file_id: str, actor: Actor = Depends(APPLICANT), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """It counts no longer, and is kept for its years all the same. Only while its application may be changed."""
    with transaction(market.engine) as session:
        row = files.get_file(session, file_id, actor.organisation_id)
        if row.of != "application":
            raise intake.fixed_refusal(row)
        applications.check_open(applications.get_application(session, row.subject_id, actor.organisation_id))
        return files.file_view(files.withdraw_file(session, row, actor=actor.id, at_ms=now_ms()))


@router.delete("/evidence/{file_id}")
def delete_evidence(
    file_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Remove a file whose years of keeping are over (409 EVIDENCE_RETAINED before); what it was stays told."""
    with transaction(market.engine) as session:
        row = files.get_file(session, file_id, None)
        view = files.file_view(files.delete_file(session, row, actor=actor.id, at_ms=now_ms()))
    with transaction(market.engine) as session:  # a writer, so that nobody names the content meanwhile
        if row.sha256 not in kept_blobs(session):
            market.blobs.delete(row.sha256)
    return view
