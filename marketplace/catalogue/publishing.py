"""Publishing spans blobs, the registry (MLflow) and the database, in an order that a crash cannot spoil:

    started → blob (by hash) → registered (pending in MLflow) → visible (database row) → done (pending tag dropped)

Each step is written to the `publication` row after it is done. `reconcile` at start finishes what is visible and
removes what is not. Nothing is callable before its row is visible, and a row is never visible without its bytes.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, col, select

from marketplace.catalogue.relations import Descent, find_descent
from marketplace.catalogue.tables import Listing, ModelVersion, Publication
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.organisations.tables import Organisation
from model_store.bundle import Bundle, open_bundle, pack
from model_store.errors import Conflict, Forbidden, Unprocessable
from model_store.inspection.inspector import inspect_bundle
from model_store.names import split_name

if TYPE_CHECKING:
    from marketplace.market import Market

OPEN_STEPS = ("started", "blob", "registered", "visible")
LIVE_STATES = ("draft", "inspected", "in_review", "listed")
OnStep = Callable[[str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing answers. `report` is the inspection report as a dictionary."""

    version_id: str
    name: str
    version: int
    state: str
    digest: str
    report: dict[str, Any]
    already: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "version_id": self.version_id,
            "name": self.name,
            "version": self.version,
            "state": self.state,
            "digest": self.digest,
            "already_published": self.already,
            "report": self.report,
        }


def publish(
    market: Market,
    folder: Path,
    *,
    organisation_id: str,
    published_by: str,
    private: bool,
    report: dict[str, Any] | None = None,
    existing: int | None = None,
    is_starter: bool = False,
    on_step: OnStep = lambda step: None,
) -> Published:
    """Inspect and publish the sealed bundle in `folder`; it stays where it is.

    `report`: an inspection report made elsewhere for this very digest (the starter shelf's), else it is inspected here.
    `existing`: a version number that an MLflow client has already created. Raises `Unprocessable` INSPECTION_FAILED
    (the report in `details`), `Forbidden` NOT_YOUR_NAME, `Conflict` LISTING_VISIBILITY, and what `find_descent` raises.
    The same bundle published again answers with the version that it already is.
    """
    bundle = open_bundle(folder)
    name = bundle.manifest.name
    with reading(market.engine) as session:
        check_owner(session, name, organisation_id)
        listing = _listing_named(session, name)
        if listing is not None:
            _check_visibility(listing, private)
            known = _same_bundle(session, listing, bundle.digest)
            if known is not None and existing is None:
                return _published(listing, known, already=True)
        descent = find_descent(session, market, bundle, organisation_id)
    report = report or inspect(folder, private=private)
    if not report["passed"]:
        raise inspection_failed(name, report)
    share = descent.measure(bundle) if descent else 0.0

    publication = _start(market, organisation_id, bundle, on_step)
    packed = market.settings.home / "tmp" / f"{publication}.zip"
    packed.parent.mkdir(parents=True, exist_ok=True)
    try:
        blob = market.blobs.put(pack(bundle, packed))
        _at(market, publication, "blob", on_step, blob=blob)
        number = market.store.create_pending(name, bundle, publication=publication, existing=existing)
        _at(market, publication, "registered", on_step, number=number)
    except BaseException:
        _fail(market, publication)
        raise
    finally:
        packed.unlink(missing_ok=True)
    keep_unpacked(market.settings.home, bundle)
    published = _make_visible(
        market,
        publication,
        bundle,
        number,
        blob,
        report,
        organisation_id,
        published_by,
        private,
        descent,
        share,
        is_starter,
    )
    on_step("visible")
    market.store.confirm(name, number)
    _at(market, publication, "done", on_step)
    market.catalogue_changed(published[0].id)
    return _published(*published)


def inspect(folder: Path, *, private: bool) -> dict[str, Any]:
    """The report on a bundle folder, as a dictionary."""
    return inspect_bundle(folder, private=private).as_dict()


def inspection_failed(name: str, report: dict[str, Any]) -> Unprocessable:
    """INSPECTION_FAILED, naming the first error and carrying the whole report."""
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    first: dict[str, Any] = errors[0] if errors else {"code": "", "zh": "", "en": ""}
    return Unprocessable(
        "INSPECTION_FAILED",
        zh=f"{name} 未通过检测, 共 {len(errors)} 处错误; 首先: {first['zh']} ({first['code']})",
        en=f"{name} did not pass inspection: {len(errors)} error(s), the first {first['code']}: {first['en']}",
        remedy_zh=str(first.get("remedy_zh") or "请按检测报告逐条修改后重新发布"),
        remedy_en=str(first.get("remedy_en") or "mend what the report lists and publish again; nothing was published"),
        field=str(first.get("where") or "file"),
        details={"report": report},
    )


def check_owner(session: Session, name: str, organisation_id: str) -> Organisation:
    """The organisation, if the vendor part of `name` is its own; else `Forbidden` NOT_YOUR_NAME."""
    organisation = session.get_one(Organisation, organisation_id)
    vendor, _ = split_name(name)
    if organisation.slug != vendor:
        raise Forbidden(
            "NOT_YOUR_NAME",
            zh=f"名称“{name}”的前缀不属于贵单位",
            en=f"the name {name} does not begin with your organisation's own prefix",
            remedy_zh=f"请使用 {organisation.slug or '贵单位的前缀'}/ 开头的名称",
            remedy_en=f"use a name that begins with {organisation.slug or 'your own prefix'}/",
            field="name",
        )
    return organisation


def reconcile(market: Market) -> dict[str, int]:
    """Finish or remove what a crash left half-published. Run at start, before anything is published.

    Visible rows are confirmed in the registry; whatever is registered but not visible is removed there, its row marked
    failed, and its blob deleted where no version names it.
    """
    finished = removed = 0
    with reading(market.engine) as session:
        rows = list(session.exec(select(Publication).where(col(Publication.step).in_(OPEN_STEPS))))
    for row in rows:
        if row.step == "visible" and row.registry_version is not None:
            market.store.confirm(row.name, row.registry_version)
            _at(market, row.id, "done", lambda step: None)
            finished += 1
        else:
            if row.registry_version is not None:
                market.store.remove(row.name, row.registry_version)
            _fail(market, row.id)
            removed += 1
    for stored in market.store.pending():  # registered, but killed before the row could say so
        with reading(market.engine) as session:
            publication = session.get(Publication, stored.publication)
            visible = publication is not None and publication.step in ("visible", "done")
        if visible:
            market.store.confirm(stored.name, stored.number)
        else:
            market.store.remove(stored.name, stored.number)
            removed += 1
    shutil.rmtree(market.settings.home / "tmp", ignore_errors=True)
    _delete_orphans(market)
    return {"finished": finished, "removed": removed}


def keep_unpacked(home: Path, bundle: Bundle) -> Path:
    """`$ALGOMART_HOME/bundles/<digest>`, made by copying (or linking) the bundle; immutable, atomic, at most once."""
    target = home / "bundles" / bundle.digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{bundle.digest}.{secrets.token_hex(4)}")
    shutil.copytree(bundle.path, partial)
    try:
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():
            raise
    return target


# --- steps ------------------------------------------------------------------------------------------------------------


def _start(market: Market, organisation_id: str, bundle: Bundle, on_step: OnStep) -> str:
    row = Publication(
        id=new_id("pub"),
        organisation_id=organisation_id,
        name=bundle.manifest.name,
        digest=bundle.digest,
        step="started",
    )
    with transaction(market.engine) as session:
        session.add(row)
    on_step("started")
    return row.id


def _at(market: Market, publication: str, step: str, on_step: OnStep, *, blob: str = "", number: int = 0) -> None:
    with transaction(market.engine) as session:
        row = session.get_one(Publication, publication)
        row.step, row.updated_at_ms = step, now_ms()
        if blob:
            row.details = {**row.details, "blob": blob}
        if number:
            row.registry_version = number
        session.add(row)
    on_step(step)


def _fail(market: Market, publication: str) -> None:
    _at(market, publication, "failed", lambda step: None)


def _make_visible(
    market: Market,
    publication: str,
    bundle: Bundle,
    number: int,
    blob: str,
    report: dict[str, Any],
    organisation_id: str,
    published_by: str,
    private: bool,
    descent: Descent | None,
    share: float,
    is_starter: bool,
) -> tuple[Listing, ModelVersion]:
    """One transaction: listing (made or brought up to date), version, audit, publication."""
    manifest = bundle.manifest
    with transaction(market.engine) as session:
        listing = _listing_named(session, manifest.name) or Listing(
            id=new_id("lst"),
            organisation_id=organisation_id,
            name=manifest.name,
            visibility="private" if private else "public",
            is_starter=is_starter,
        )
        describe(listing, bundle)
        if descent is not None:
            descent.apply(listing, share)
        version = ModelVersion(
            id=new_id("ver"),
            listing_id=listing.id,
            number=number,
            digest=bundle.digest,
            blob=blob,
            state="inspected",
            manifest=manifest.model_dump(mode="json"),
            inspection=report,
            scorecard=report.get("scorecard") or {},
            parent_version_id=descent.version_id if descent else None,
            relation=descent.relation if descent else None,
            size_bytes=sum(file.bytes for file in manifest.files.values()),
            published_by=published_by,
        )
        session.add(listing)
        session.flush()  # the version's foreign key needs the listing's row
        session.add(version)
        row = session.get_one(Publication, publication)
        row.step, row.registry_version, row.updated_at_ms = "visible", number, now_ms()
        session.add(row)
        audit.record(
            session,
            actor=published_by,
            organisation_id=organisation_id,
            action="version.publish",
            subject=f"{manifest.name}@{number}",
            digest=bundle.digest,
            private=private,
        )
    return listing, version


def describe(listing: Listing, bundle: Bundle) -> None:
    """Bring a listing's searchable text up to the manifest of its newest version."""
    manifest = bundle.manifest
    for field in ("title_zh", "title_en", "summary_zh", "summary_en", "tier", "task", "modality", "family", "licence"):
        setattr(listing, field, getattr(manifest, field))
    listing.chains, listing.keywords = list(manifest.chains), list(manifest.keywords)
    listing.links = [str(link) for link in manifest.links]
    listing.scenarios = [str(scenario) for scenario in manifest.scenarios]
    listing.genai_service = manifest.filing.genai_service
    listing.updated_at_ms = now_ms()


def _listing_named(session: Session, name: str) -> Listing | None:
    return session.exec(select(Listing).where(Listing.name == name)).first()


def _same_bundle(session: Session, listing: Listing, digest: str) -> ModelVersion | None:
    rows = select(ModelVersion).where(ModelVersion.listing_id == listing.id, ModelVersion.digest == digest)
    return session.exec(rows.where(col(ModelVersion.state).in_(LIVE_STATES))).first()


def _check_visibility(listing: Listing, private: bool) -> None:
    if (listing.visibility == "private") == private:
        return
    was_zh, was_en = ("私有", "private") if listing.visibility == "private" else ("公开", "public")
    raise Conflict(
        "LISTING_VISIBILITY",
        zh=f"“{listing.name}”已作为{was_zh}模型存在",
        en=f"{listing.name} exists already as a {was_en} model",
        remedy_zh="请换一个名称, 或以相同的可见性发布新版本",
        remedy_en="use another name, or publish the new version with the same visibility",
        field="private",
    )


def _published(listing: Listing, version: ModelVersion, already: bool = False) -> Published:
    return Published(
        version.id, listing.name, version.number, version.state, version.digest, version.inspection, already
    )


def _delete_orphans(market: Market) -> None:
    """Blobs that no version names: left by a publication that failed between two steps."""
    with reading(market.engine) as session:
        named = set(session.exec(select(ModelVersion.blob)))
    for sha256 in list(market.blobs.hashes()):
        if sha256 not in named:
            _log.info("removing blob %s that no version names", sha256)
            market.blobs.delete(sha256)
