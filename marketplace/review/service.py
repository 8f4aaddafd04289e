"""Review: a vendor submits an inspected version, the operator lists or returns it; later it is retired or withdrawn."""

from __future__ import annotations

from sqlmodel import Session, col, func, select

from marketplace.catalogue.publishing import describe
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.ids import new_id
from marketplace.organisations import audit, notices
from marketplace.review.tables import Review
from model_store.errors import Conflict, Forbidden, NotFound
from model_store.lifecycle import decide_transition
from model_store.manifest import Manifest


def submit_version(session: Session, version: ModelVersion, listing: Listing, *, actor: str, at_ms: int) -> Review:
    """Put an inspected public version in the queue. Raises `Conflict` where its state or its report forbids it."""
    if listing.visibility == "private":
        raise Conflict(
            "PRIVATE_NEEDS_NO_REVIEW",
            zh="私有模型无需上架审核, 本单位可直接调用",
            en="a private model needs no review; your organisation may call it at once",
            remedy_zh="如需上架, 请以公开方式重新发布",
            remedy_en="publish it without --private to sell it",
        )
    if not version.inspection.get("passed", False):
        raise Conflict(
            "INSPECTION_NOT_PASSED",
            zh="该版本尚未通过检测, 不能提交审核",
            en="this version has not passed inspection and cannot be submitted",
            remedy_zh="请按检测报告修改后重新发布",
            remedy_en="mend what the inspection report lists and publish again",
        )
    version.state = decide_transition(version.state, "submit")
    review = Review(id=new_id("rev"), version_id=version.id, submitted_by=actor, created_at_ms=at_ms)
    session.add_all([version, review])
    _record(session, actor, "version.submit", listing, version)
    notices.notify_operators(
        session,
        "REVIEW_WAITING",
        zh=f"{listing.name}@{version.number} 等待审核",
        en=f"{listing.name}@{version.number} waits for review",
        link="/city/reviews",
    )
    return review


def approve_review(session: Session, review_id: str, *, actor: str, at_ms: int, note: str = "") -> Listing:
    """List the version. Whoever submitted it cannot approve it."""
    review, version, listing = _open_review(session, review_id)
    if review.submitted_by == actor:
        raise Forbidden(
            "FOUR_EYES",
            zh="提交人不能审核自己提交的版本",
            en="whoever submitted a version cannot approve it",
            remedy_zh="请由另一位运营人员审核",
            remedy_en="another operator has to decide",
        )
    version.state = decide_transition(version.state, "approve")
    describe(listing, Manifest.model_validate(version.manifest))
    listing.status = "listed"
    listing.updated_at_ms = at_ms
    _close(session, review, "approved", actor, at_ms, note)
    session.add_all([version, listing])
    _record(session, actor, "version.list", listing, version)
    _tell(session, listing, version, "VERSION_LISTED", "已上架", "is listed", note)
    return listing


def return_review(session: Session, review_id: str, *, actor: str, at_ms: int, note: str) -> Listing:
    """Send the version back with what to mend."""
    review, version, listing = _open_review(session, review_id)
    version.state = decide_transition(version.state, "return")
    listing.updated_at_ms = at_ms
    _close(session, review, "returned", actor, at_ms, note)
    session.add_all([version, listing])
    _record(session, actor, "version.return", listing, version, note=note)
    _tell(session, listing, version, "VERSION_RETURNED", "被退回修改", "has been returned", note)
    return listing


def end_version(
    session: Session, version: ModelVersion, listing: Listing, event: str, *, actor: str, at_ms: int, reason: str = ""
) -> Listing:
    """Retire (no longer sold) or withdraw (gone at once, for cause) a version; an open review of it is closed.

    The listing leaves the shelf with its last listed version.
    """
    version.state = decide_transition(version.state, event)
    session.add(version)
    for review in session.exec(select(Review).where(Review.version_id == version.id, Review.state == "open")):
        _close(session, review, "returned", actor, at_ms, reason or event)
    session.flush()
    states = set(session.exec(select(ModelVersion.state).where(ModelVersion.listing_id == listing.id)))
    if "listed" not in states and listing.status != "draft":
        listing.status = "retired" if "retired" in states else "withdrawn"
    if states == {"withdrawn"}:
        listing.status = "withdrawn"
    listing.updated_at_ms = at_ms
    session.add(listing)
    _record(session, actor, f"version.{event}", listing, version, reason=reason)
    done = {"retire": ("已下架", "has been retired"), "withdraw": ("已撤回", "has been withdrawn")}[event]
    _tell(session, listing, version, f"VERSION_{event.upper()}", *done, reason)
    return listing


def list_reviews(
    session: Session, *, state: str = "open", limit: int = 200, offset: int = 0
) -> tuple[list[tuple[Review, ModelVersion, Listing]], int]:
    """Oldest first, so that nobody waits behind a newcomer."""
    query = (
        select(Review, ModelVersion, Listing)
        .join(ModelVersion, col(ModelVersion.id) == col(Review.version_id))
        .join(Listing, col(Listing.id) == col(ModelVersion.listing_id))
    )
    counted = select(func.count()).select_from(Review)
    if state:
        query, counted = query.where(Review.state == state), counted.where(Review.state == state)
    rows = session.exec(query.order_by(col(Review.created_at_ms)).limit(limit).offset(offset))
    return [(review, version, listing) for review, version, listing in rows], session.exec(counted).one()


def _open_review(session: Session, review_id: str) -> tuple[Review, ModelVersion, Listing]:
    review = session.get(Review, review_id)
    if review is None:
        raise NotFound(
            "REVIEW_NOT_FOUND",
            zh=f"没有编号为 {review_id[:60]} 的审核",
            en=f"there is no review {review_id[:60]}",
            remedy_zh="请在审核队列中核对",
            remedy_en="look at the review queue",
        )
    if review.state != "open":
        raise Conflict(
            "REVIEW_CLOSED",
            zh="该审核已有结论",
            en="this review has been decided",
            remedy_zh="请刷新审核队列",
            remedy_en="look at the review queue again",
            details={"state": review.state},
        )
    version = session.get_one(ModelVersion, review.version_id)
    return review, version, session.get_one(Listing, version.listing_id)


def _close(session: Session, review: Review, state: str, actor: str, at_ms: int, note: str) -> None:
    review.state, review.decided_by, review.decided_at_ms, review.note = state, actor, at_ms, note
    session.add(review)


def _record(session: Session, actor: str, action: str, listing: Listing, version: ModelVersion, **details: str) -> None:
    audit.record(
        session,
        actor=actor,
        organisation_id=listing.organisation_id,
        action=action,
        subject=f"{listing.name}@{version.number}",
        version_id=version.id,
        **details,
    )


def _tell(session: Session, listing: Listing, version: ModelVersion, code: str, zh: str, en: str, note: str) -> None:
    notices.notify(
        session,
        listing.organisation_id,
        code,
        zh=f"{listing.name}@{version.number} {zh}" + (f": {note}" if note else ""),
        en=f"{listing.name}@{version.number} {en}" + (f": {note}" if note else ""),
        link=f"/models/{listing.name}",
    )
