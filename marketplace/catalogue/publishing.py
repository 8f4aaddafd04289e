"""Publishing spans blobs, the registry (MLflow) and the database, in an order that a crash cannot spoil:

    started → blob (by hash) → registered (pending in MLflow) → visible (database row) → done (pending tag dropped)

Nothing is callable before its row is visible, and a row is never visible without its bytes. Each step is journalled
(`publication`) after it is done; `reconcile` settles at start what a crash left.

A public version waits `inspected` until its vendor submits it; a private one needs no review. Either may be called by
its own organisation at once. A private listing becomes public when a bundle is published to it as public: that bundle
has then passed the public inspection, and those that had only passed the private one must be published again.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, col, select

from marketplace.catalogue.publication import advance, open_publication, undo
from marketplace.catalogue.publication import reconcile as reconcile
from marketplace.catalogue.relations import check_lineage_kept, find_base, find_descent
from marketplace.catalogue.submission import OnStep, Submission, listing_named, make_visible, open_to_public
from marketplace.catalogue.submission import describe as describe
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.db import reading
from marketplace.organisations.tables import Organisation
from model_store.bundle import Bundle, open_bundle, pack
from model_store.errors import Conflict, Forbidden, Refusal, Unprocessable
from model_store.inspection.inspector import inspect_bundle
from model_store.names import split_name

if TYPE_CHECKING:
    from marketplace.market import Market

LIVE_STATES = ("draft", "inspected", "in_review", "listed")
Register = Callable[[Bundle, str], int]
_log = logging.getLogger(__name__)
_LOCKS = [threading.Lock() for _ in range(64)]  # one publisher of a name at a time; names share by hash


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
    register: Register | None = None,
    is_starter: bool = False,
    on_step: OnStep = lambda step: None,
) -> Published:
    """Inspect and publish the sealed bundle in `folder`; it stays where it is.

    `report`: an inspection report made elsewhere for this very digest (the starter shelf's), else it is inspected here.
    `register(bundle, publication)`: how the version comes into the registry, pending (an MLflow client makes its own);
    the number. Raises `Unprocessable` INSPECTION_FAILED (the report in `details`), `Forbidden` NOT_YOUR_NAME,
    `Conflict` LISTING_IS_PUBLIC, LINEAGE_CHANGED, and what `find_descent` raises; then nothing is published.
    The same bundle published again answers with the version that it already is, unless `register` makes a new one.
    """
    bundle = open_bundle(folder)
    name = bundle.manifest.name
    with reading(market.engine) as session:
        check_owner(session, name, organisation_id)
        descent = find_descent(session, market, bundle, organisation_id)
        base = find_base(session, market, bundle, organisation_id)
        listing = listing_named(session, name)
        known = None
        if listing is not None:
            _check_visibility(listing, private)
            known = None if register else _same_bundle(session, listing, bundle.digest)
            if known is not None and (listing.visibility == "private") == private:
                return _published(listing, known, already=True)
    report = report or inspect(folder, private=private, base=base)
    if not report["passed"]:
        raise inspection_failed(name, report)
    if known is not None:
        return _published(*open_to_public(market, known.id, report, published_by), already=True)
    share = descent.measure(bundle) if descent else 0.0
    submission = Submission(bundle, organisation_id, published_by, private, report, descent, share, is_starter, on_step)
    with _LOCKS[zlib.crc32(name.encode()) % len(_LOCKS)]:
        return _carry_out(market, submission, register)


def _carry_out(market: Market, submission: Submission, register: Register | None) -> Published:
    """The steps, each announced to `on_step` before and after its journal entry; undone where one fails."""
    bundle, name, on_step = submission.bundle, submission.bundle.manifest.name, submission.on_step
    market.await_registry()
    with reading(market.engine) as session:
        listing = listing_named(session, name)
        if listing is not None:
            check_lineage_kept(session, listing, submission.descent, submission.share)
            same = None if register else _same_bundle(session, listing, bundle.digest)
            if same is not None:  # another request was faster
                return _published(listing, same, already=True)
    publication = open_publication(market, submission.organisation_id, bundle)
    on_step("started")
    try:
        blob = _keep_packed(market, publication, bundle)
        on_step("blob kept")
        advance(market, publication, "blob", blob=blob)
        on_step("blob")
        kept = Bundle(keep_unpacked(market.settings.home, bundle), bundle.manifest, bundle.digest)
        on_step("unpacked")
        number = (
            register(kept, publication)
            if register
            else market.store.create_pending(name, kept, publication=publication)
        )
        on_step("version made")
        advance(market, publication, "registered", number=number)
        on_step("registered")
        made = make_visible(market, submission, publication, number, blob)
    except BaseException:
        _undo(market, publication)
        raise
    on_step("visible")
    market.catalogue_changed(made[0].id)
    try:
        market.store.confirm(name, number)
        on_step("confirmed")
        advance(market, publication, "done")
    except Refusal as refusal:  # it is published; the next start drops the pending tag
        _log.warning("%s@%d is published, but could not be confirmed: %s", name, number, refusal)
    on_step("done")
    return _published(*made)


def _undo(market: Market, publication: str) -> None:
    """As `undo`; where a part is down, the journal stays open and the next start takes it back."""
    try:
        undo(market, publication)
    except Exception:
        _log.exception("publication %s could not be undone now", publication)


def inspect(folder: Path, *, private: bool, base: Path | None = None) -> dict[str, Any]:
    """The report on a bundle folder, as a dictionary; `private` says by which rules it was judged, `base` is an
    adapter's."""
    return inspect_bundle(folder, private=private, base=base).as_dict() | {"private": private}


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


def keep_unpacked(home: Path, bundle: Bundle) -> Path:
    """`$ALGOMART_HOME/bundles/<digest>`, made by copying the bundle; immutable, atomic, at most once."""
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


def _keep_packed(market: Market, publication: str, bundle: Bundle) -> str:
    packed = market.settings.home / "tmp" / f"{publication}.zip"
    packed.parent.mkdir(parents=True, exist_ok=True)
    try:
        return market.blobs.put(pack(bundle, packed))
    finally:
        packed.unlink(missing_ok=True)


def _same_bundle(session: Session, listing: Listing, digest: str) -> ModelVersion | None:
    rows = select(ModelVersion).where(ModelVersion.listing_id == listing.id, ModelVersion.digest == digest)
    return session.exec(rows.where(col(ModelVersion.state).in_(LIVE_STATES))).first()


def _check_visibility(listing: Listing, private: bool) -> None:
    if private and listing.visibility == "public":
        raise Conflict(
            "LISTING_IS_PUBLIC",
            zh=f"“{listing.name}”是公开模型, 不能发布私有版本",
            en=f"{listing.name} is a public listing; it takes no private version",
            remedy_zh="请换一个名称, 或以公开方式发布",
            remedy_en="use another name, or publish the version as public",
            field="private",
        )


def _published(listing: Listing, version: ModelVersion, already: bool = False) -> Published:
    return Published(
        version.id, listing.name, version.number, version.state, version.digest, version.inspection, already
    )
