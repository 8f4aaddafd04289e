"""How a file comes in and goes out: a bounded form, its content among the blobs, a row; a download that never runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from fastapi import Request
from sqlmodel import Session
from starlette.datastructures import UploadFile

from marketplace.db import reading, transaction
from marketplace.evidence.files import Subject, Taken, add_file, file_view, saved_name
from marketplace.evidence.kinds import MEDIA, kind_of
from marketplace.evidence.tables import EvidenceFile
from marketplace.uploads import bounded_form, save, scratch_folder
from model_store.errors import BadInput, Conflict, TooLarge

if TYPE_CHECKING:
    from marketplace.market import Market

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "code": {"type": "string", "description": "Of the programme's evidence_schema"},
                        "file": {"type": "string", "format": "binary", "description": "PDF, PNG, JPEG, XLSX or OFD"},
                    },
                }
            }
        },
    }
}
Judge = Callable[[Session], tuple[Subject, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Upload:
    """A form as it came: its file lies spooled on disk and goes when the request ends."""

    code: str
    name: str
    file: BinaryIO


@asynccontextmanager
async def received(request: Request, market: Market) -> AsyncIterator[Upload]:
    """The form, read under `evidence_file_bytes`; `TooLarge` EVIDENCE_TOO_LARGE, `BadInput` REQUEST_INVALID."""
    limit = market.settings.evidence_file_bytes
    form = await bounded_form(
        request, limit, files=1, fields=8, too_large=lambda: _too_large(limit), invalid=_form_invalid
    )
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            raise _form_invalid("the multipart form has no file")
        yield Upload(str(form.get("code") or "").strip(), file.filename, file.file)
    finally:
        await form.close()


def take(
    market: Market,
    upload: Upload,
    judge: Judge,
    *,
    actor: str,
    at_ms: int,
    then: Callable[[Session, EvidenceFile], None] | None = None,
) -> dict[str, Any]:
    """Keep an uploaded file. `judge` says what it is for and which kinds are taken; it refuses before anything is kept,
    and again in the transaction that names it.

    The content goes among the blobs outside the transaction: flushing it to disk must not hold up every other write.
    What a refusal leaves there, nothing names, and the next start sweeps it.
    """
    with reading(market.engine) as session:
        _, allowed = judge(session)
    limit = market.settings.evidence_file_bytes
    with scratch_folder(market.settings.home, "evidence") as folder:
        path = save(upload.file, folder / "file", limit, lambda: _too_large(limit))
        kind, size = kind_of(path, allowed), path.stat().st_size
        taken = Taken(market.blobs.put(path), kind, size, upload.name)
        with transaction(market.engine) as session:
            subject, _ = judge(session)
            quota = market.settings.evidence_quota_bytes
            row = add_file(session, subject, taken, quota_bytes=quota, actor=actor, at_ms=at_ms)
            if then is not None:
                then(session, row)
            view = file_view(row)
        if not market.blobs.has(taken.sha256):  # the same content was deleted elsewhere before this row named it
            market.blobs.put(path)
    return view


def fixed_refusal(row: EvidenceFile) -> Conflict:
    """What backs an invoice or a declaration stands as it was handed in."""
    return Conflict(
        "EVIDENCE_FIXED",
        zh="发票与其他补贴申报的附件不能撤回",
        en="the file of an invoice or of a declared subsidy is not withdrawn",
        remedy_zh="可再上传更正后的文件",
        remedy_en="hand in the right one beside it",
        details={"of": row.of},
    )


def download_headers(row: EvidenceFile) -> dict[str, str]:
    """Always a download, under a name of our own; the browser neither guesses nor runs anything."""
    return {
        "content-type": MEDIA[row.kind],
        "content-disposition": f"attachment; filename=\"{saved_name(row)}\"; filename*=UTF-8''{quote(row.name)}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "private, no-store",
    }


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        "EVIDENCE_TOO_LARGE",
        zh=f"文件超过上限 {limit} 字节",
        en=f"the file is over the limit of {limit} bytes",
        remedy_zh="请压缩或拆分, 或请运营方调整 ALGOMART_EVIDENCE_FILE_BYTES",
        remedy_en="make it smaller or split it, or ask the operator to raise ALGOMART_EVIDENCE_FILE_BYTES",
        field="file",
    )


def _form_invalid(why: str) -> BadInput:
    return BadInput(
        "REQUEST_INVALID",
        zh=f"上传表单有误: {why[:200]}",
        en=f"the upload form is wrong: {why[:200]}",
        remedy_zh="请以 multipart/form-data 提交 code 与 file",
        remedy_en="send multipart/form-data with code and file",
        field="file",
    )
