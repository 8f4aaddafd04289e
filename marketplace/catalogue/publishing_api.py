"""Publishing over HTTP: an upload is streamed to disk under limits, made a bundle, inspected, published or refused
whole.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from sqlmodel import select

from marketplace.access import Actor, market_of, require
from marketplace.catalogue.listings import find_version
from marketplace.catalogue.publishing import check_owner, inspect, publish
from marketplace.catalogue.source import model_not_found
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.db import reading
from marketplace.market import Market
from model_store.archive import extract
from model_store.bundle import Bundle, Limits, bare_bundle, seal, unpack
from model_store.errors import TooLarge, Unprocessable
from model_store.names import canonical

router = APIRouter(tags=["publishing"])
CHUNK_BYTES = 1 << 20
ZIP_MAGIC = b"PK\x03\x04"


@router.post("/publish", status_code=201)
def publish_upload(
    file: UploadFile = File(description="A zip of a bundle, or a bare model.onnx"),
    name: str = Form(description="vendor/name"),
    private: bool = Form(default=False),
    golden: UploadFile | None = File(default=None, description="A zip of golden samples, for a bare model.onnx"),
    actor: Actor = Depends(require(scope="publish")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Inspect and publish. 201 with `{name, version, version_id, state, report}`; INSPECTION_FAILED carries the
    report.
    """
    with uploaded(market, actor, file, name, golden) as bundle:
        return publish(
            market,
            bundle.path,
            organisation_id=actor.organisation_id,
            published_by=actor.id,
            private=private,
        ).as_dict()


@router.post("/inspect")
def inspect_upload(
    file: UploadFile = File(),
    name: str = Form(),
    private: bool = Form(default=False),
    golden: UploadFile | None = File(default=None),
    actor: Actor = Depends(require(scope="publish")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The report that publishing would give; nothing is kept."""
    with uploaded(market, actor, file, name, golden) as bundle:
        return {"name": bundle.manifest.name, "digest": bundle.digest, "report": inspect(bundle.path, private=private)}


@router.get("/versions/{version_id}/report")
def get_report(
    version_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """The inspection report of a version that the caller may see."""
    with reading(market.engine) as session:
        row = session.exec(select(ModelVersion).where(ModelVersion.id == version_id)).first()
        if row is None:
            raise model_not_found(version_id)
        listing = session.get_one(Listing, row.listing_id)
        version = find_version(session, listing, row.number, actor)
        return {"name": listing.name, "version": version.number, "state": version.state, "report": version.inspection}


@contextmanager
def uploaded(market: Market, actor: Actor, file: UploadFile, name: str, golden: UploadFile | None) -> Iterator[Bundle]:
    """The upload as a sealed bundle in a folder of its own, gone afterwards whatever happens."""
    lawful = canonical(name)
    with reading(market.engine) as session:
        check_owner(session, lawful, actor.organisation_id)
    market.await_registry()  # until then, what lies in tmp is swept
    folder = market.settings.home / "tmp" / f"upload-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        saved = _save(file, folder / "upload", market.settings.max_upload_bytes, "file")
        samples = None
        if golden is not None:
            archive = _save(golden, folder / "golden.zip", market.settings.max_upload_bytes, "golden")
            samples = folder / "golden"
            samples.mkdir()
            extract(archive, samples, Limits())
        yield _as_bundle(saved, lawful, folder / "bundle", samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_bundle(saved: Path, name: str, folder: Path, golden: Path | None) -> Bundle:
    """A zip is a bundle and must carry the name that it is published under; everything else must be a graph."""
    with saved.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    if not is_zip:
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
    if bundle.manifest.name != name:
        # The name is the publisher's to choose: a bundle that was exported elsewhere is sealed again under it.
        return seal(bundle.path, bundle.manifest.model_copy(update={"name": name}))
    return bundle


def _save(upload: UploadFile, target: Path, limit: int, field: str) -> Path:
    written = 0
    with target.open("wb") as out:
        while chunk := upload.file.read(CHUNK_BYTES):
            written += len(chunk)
            if written > limit:
                raise TooLarge(
                    "UPLOAD_TOO_LARGE",
                    zh=f"上传文件超过上限 {limit} 字节",
                    en=f"the upload is over the limit of {limit} bytes",
                    remedy_zh="请减小模型包, 或请运营方调整 ALGOMART_MAX_UPLOAD_BYTES",
                    remedy_en="make the bundle smaller, or ask the operator to raise ALGOMART_MAX_UPLOAD_BYTES",
                    field=field,
                )
            out.write(chunk)
    return target
