"""Publishing over HTTP: an upload is counted while it comes in, made a bundle, inspected, published or refused whole.

The form is read here and not by the framework, so that a body over the limit is refused before it fills the disk, and
only after the caller is known to be allowed to publish.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from sqlmodel import select
from starlette.datastructures import FormData, UploadFile

from marketplace.access import Actor, market_of, require
from marketplace.catalogue.listings import find_version, may_see
from marketplace.catalogue.publishing import check_owner, inspect, publish
from marketplace.catalogue.publishing_gate import GATE
from marketplace.catalogue.relations import find_base
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.db import reading
from marketplace.market import Market
from marketplace.uploads import bounded_form, save, scratch_folder
from model_store.archive import extract
from model_store.bundle import Bundle, Limits, bare_bundle, seal, unpack
from model_store.errors import BadInput, TooLarge, Unprocessable
from model_store.names import canonical
from serving.errors.access import model_not_found

router = APIRouter(tags=["publishing"])
PUBLISHER = require(scope="publish")
ZIP_MAGIC = b"PK\x03\x04"
_TRUE = frozenset({"true", "1", "on", "yes"})
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "A zip of a bundle, or a .onnx"},
                        "name": {"type": "string", "description": "vendor/name; a bundle has one of its own"},
                        "private": {"type": "boolean", "default": False},
                        "golden": {"type": "string", "format": "binary", "description": "A zip of samples for a .onnx"},
                    },
                }
            }
        },
    }
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A form as it came: its files lie spooled on disk and go when the request ends."""

    file: BinaryIO
    name: str
    private: bool
    golden: BinaryIO | None


async def received(
    request: Request, actor: Actor = Depends(PUBLISHER), market: Market = Depends(market_of)
) -> AsyncIterator[Upload]:
    """The form, read under `max_upload_bytes`; `TooLarge` UPLOAD_TOO_LARGE, `BadInput` REQUEST_INVALID."""
    form = await bounded_form(
        request,
        market.settings.max_upload_bytes,
        files=2,
        fields=8,
        too_large=lambda: _too_large(market.settings.max_upload_bytes),
        invalid=lambda why: _form_invalid("file", why),
    )
    try:
        yield _upload_of(form)
    finally:
        await form.close()


def _upload_of(form: FormData) -> Upload:
    file, golden = form.get("file"), form.get("golden")
    if not isinstance(file, UploadFile):
        raise _form_invalid("file", "the multipart form has no file field")
    if golden is not None and not isinstance(golden, UploadFile):
        raise _form_invalid("golden", "golden is a zip file")
    return Upload(
        file=file.file,
        name=str(form.get("name") or ""),
        private=str(form.get("private") or "").lower() in _TRUE,
        golden=golden.file if golden is not None and golden.filename else None,  # a browser sends "" for no file
    )


@router.post("/publish", status_code=201, openapi_extra=_FORM)
async def publish_upload(
    upload: Upload = Depends(received), actor: Actor = Depends(PUBLISHER), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Inspect and publish. 201 with `{name, version, version_id, state, report}`; INSPECTION_FAILED carries the
    report; PUBLISHING_BUSY where the organisation has too many uploads under way.
    """

    def work() -> dict[str, Any]:
        with uploaded(market, actor, upload) as bundle:
            return publish(
                market,
                bundle.path,
                organisation_id=actor.organisation_id,
                published_by=actor.id,
                private=upload.private,
            ).as_dict()

    async with GATE.turn(actor.organisation_id):
        return await anyio.to_thread.run_sync(work)


@router.post("/inspect", openapi_extra=_FORM)
async def inspect_upload(
    upload: Upload = Depends(received), actor: Actor = Depends(PUBLISHER), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """The report that publishing would give; nothing is kept."""

    def work() -> dict[str, Any]:
        with uploaded(market, actor, upload) as bundle:
            with reading(market.engine) as session:
                base = find_base(session, market, bundle, actor.organisation_id)
            report = inspect(bundle.path, private=upload.private, base=base)
            return {"name": bundle.manifest.name, "digest": bundle.digest, "report": report}

    async with GATE.turn(actor.organisation_id):
        return await anyio.to_thread.run_sync(work)


@router.get("/versions/{version_id}/report")
def get_report(
    version_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """The inspection report of a version that the caller may see."""
    with reading(market.engine) as session:
        row = session.exec(select(ModelVersion).where(ModelVersion.id == version_id)).first()
        listing = session.get_one(Listing, row.listing_id) if row is not None else None
        if row is None or listing is None or not may_see(listing, actor):
            raise model_not_found(version_id)
        version = find_version(session, listing, row.number, actor)
        return {"name": listing.name, "version": version.number, "state": version.state, "report": version.inspection}


@contextmanager
def uploaded(market: Market, actor: Actor, upload: Upload) -> Iterator[Bundle]:
    """The upload as a sealed bundle in a folder of its own, gone afterwards whatever happens."""
    lawful = canonical(upload.name) if upload.name else ""
    if lawful:
        with reading(market.engine) as session:
            check_owner(session, lawful, actor.organisation_id)
    limit = market.settings.max_upload_bytes
    with scratch_folder(market.settings.home, "upload") as folder:
        saved = save(upload.file, folder / "upload", limit, lambda: _too_large(limit))
        samples = None
        if upload.golden is not None:
            archive = save(upload.golden, folder / "golden.zip", limit, lambda: _too_large(limit, "golden"))
            samples = folder / "golden"
            samples.mkdir()
            extract(archive, samples, Limits())
        yield _as_bundle(saved, lawful, folder / "bundle", samples)


def _as_bundle(saved: Path, name: str, folder: Path, golden: Path | None) -> Bundle:
    """A zip is a bundle and must carry the name that it is published under; everything else must be a graph."""
    with saved.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    if not is_zip:
        if not name:
            raise _form_invalid("name", "a bare .onnx has no name of its own: give vendor/name")
        return bare_bundle(saved, name, folder, golden)
    bundle = unpack(saved, folder, seal_if_unsealed=True)
    if golden is not None:
        raise Unprocessable(
            "GOLDEN_TWICE",
            zh="模型包自带 golden 目录, 不能另附样本",
            en="a bundle carries its own golden folder; golden samples go with a bare model.onnx only",
            remedy_zh="请把样本放入模型包的 golden/ 目录",
            remedy_en="put the samples into the bundle's golden/ folder",
            field="golden",
        )
    if name and bundle.manifest.name != name:
        # The name is the publisher's to choose: a bundle that was exported elsewhere is sealed again under it.
        return seal(bundle.path, bundle.manifest.model_copy(update={"name": name}))
    return bundle


def _form_invalid(field: str, why: str) -> BadInput:
    return BadInput(
        "REQUEST_INVALID",
        zh=f"上传表单中的“{field}”有误: {why[:200]}",
        en=f"the upload form's {field!r} is wrong: {why[:200]}",
        remedy_zh="请以 multipart/form-data 提交 file (及 name、private、golden)",
        remedy_en="send multipart/form-data with file (and name, private, golden)",
        field=field,
    )


def _too_large(limit: int, field: str = "file") -> TooLarge:
    return TooLarge(
        "UPLOAD_TOO_LARGE",
        zh=f"上传文件超过上限 {limit} 字节",
        en=f"the upload is over the limit of {limit} bytes",
        remedy_zh="请减小模型包, 或请运营方调整 ALGOMART_MAX_UPLOAD_BYTES",
        remedy_en="make the bundle smaller, or ask the operator to raise ALGOMART_MAX_UPLOAD_BYTES",
        field=field,
    )
