"""What a publication writes: listing, version and audit event, in the one transaction that makes it visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, select

from marketplace.catalogue.publication import mark
from marketplace.catalogue.relations import Descent, has_versions, set_lineage
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.ids import new_id
from marketplace.organisations import audit
from model_store.bundle import Bundle
from model_store.manifest import Manifest

if TYPE_CHECKING:
    from marketplace.market import Market

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Submission:
    """A bundle that may be published, with all that its row will say."""

    bundle: Bundle
    organisation_id: str
    published_by: str
    private: bool
    report: dict[str, Any]
    descent: Descent | None
    share: float  # of the parent's weights that are in it, measured
    is_starter: bool
    on_step: OnStep = field(default=lambda step: None)


def make_visible(
    market: Market, submission: Submission, publication: str, number: int, blob: str
) -> tuple[Listing, ModelVersion]:
    """One transaction: listing (made or brought up to date), version, audit, journal."""
    manifest, descent = submission.bundle.manifest, submission.descent
    with transaction(market.engine) as session:
        listing = listing_of(session, submission)
        session.add(listing)
        session.flush()  # the version's foreign key needs the listing's row
        version = ModelVersion(
            id=new_id("ver"),
            listing_id=listing.id,
            number=number,
            digest=submission.bundle.digest,
            blob=blob,
            state="inspected",
            manifest=manifest.model_dump(mode="json"),
            inspection=submission.report,
            scorecard=submission.report.get("scorecard") or {},
            parent_version_id=descent.version_id if descent else None,
            relation=descent.relation if descent else None,
            size_bytes=sum(file.bytes for file in manifest.files.values()),
            published_by=submission.published_by,
        )
        session.add(version)
        mark(session, publication, "visible", number=number)
        audit.record(
            session,
            actor=submission.published_by,
            organisation_id=submission.organisation_id,
            action="version.publish",
            subject=f"{manifest.name}@{number}",
            digest=submission.bundle.digest,
            private=submission.private,
            relation=descent.relation if descent else "",
            reused_share=round(submission.share, 4),
        )
    return listing, version


def listing_of(session: Session, submission: Submission) -> Listing:
    """The listing as it will be. What is on the shelf keeps its reviewed text until the next version is approved."""
    manifest = submission.bundle.manifest
    listing = listing_named(session, manifest.name)
    if listing is None:
        listing = Listing(
            id=new_id("lst"),
            organisation_id=submission.organisation_id,
            name=manifest.name,
            visibility="private" if submission.private else "public",
            is_starter=submission.is_starter,
        )
    elif listing.visibility == "private" and not submission.private:
        make_public(session, listing)
    if not has_versions(session, listing):
        set_lineage(listing, submission.descent, submission.share)
    if listing.status != "listed":
        describe(listing, manifest)
        listing.status = "draft"  # also where every version was retired or withdrawn: there is one again
    return listing


def make_public(session: Session, listing: Listing) -> None:
    """Versions that passed by the private rules only have to be published again before they can be submitted."""
    listing.visibility = "public"
    for version in session.exec(select(ModelVersion).where(ModelVersion.listing_id == listing.id)):
        if version.inspection.get("private", True):
            version.inspection = {**version.inspection, "passed": False, "passed_private_rules": True}
            session.add(version)


def open_to_public(
    market: Market, version_id: str, report: dict[str, Any], published_by: str
) -> tuple[Listing, ModelVersion]:
    """The very bundle of a private listing, published as public: the same version, now with the public report."""
    with transaction(market.engine) as session:
        version = session.get_one(ModelVersion, version_id)
        listing = session.get_one(Listing, version.listing_id)
        make_public(session, listing)
        version.inspection, version.scorecard = report, report.get("scorecard") or {}
        describe(listing, Manifest.model_validate(version.manifest))
        session.add_all([listing, version])
        audit.record(
            session,
            actor=published_by,
            organisation_id=listing.organisation_id,
            action="listing.open",
            subject=f"{listing.name}@{version.number}",
        )
    market.catalogue_changed(listing.id)
    return listing, version


def describe(listing: Listing, manifest: Manifest) -> None:
    """Bring a listing's searchable text up to a manifest: its newest version's, or the one that was just approved."""
    for name in ("title_zh", "title_en", "summary_zh", "summary_en", "tier", "task", "modality", "family", "licence"):
        setattr(listing, name, getattr(manifest, name))
    listing.chains, listing.keywords = list(manifest.chains), list(manifest.keywords)
    listing.links = [str(link) for link in manifest.links]
    listing.scenarios = [str(scenario) for scenario in manifest.scenarios]
    listing.genai_service = manifest.filing.genai_service
    listing.updated_at_ms = now_ms()


def listing_named(session: Session, name: str) -> Listing | None:
    return session.exec(select(Listing).where(Listing.name == name)).first()
