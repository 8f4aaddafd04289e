"""Review: from inspected to listed, returned, retired and withdrawn."""

import pytest
from sqlmodel import select

from marketplace.db import transaction
from marketplace.organisations.tables import Notice
from marketplace.review import service
from marketplace.review.tables import Review
from model_store.errors import Conflict, Forbidden, Refusal
from tests.marketplace.shelf import add_listing, add_organisation, add_version

NOW = 1_800_000_000_000


@pytest.fixture
def submitted(engine):
    """A listing with one version in the queue; answers (listing, version, review)."""
    with transaction(engine) as session:
        add_organisation(session, "city", "operator")
        add_organisation(session, "acme")
        listing = add_listing(session, "acme/steel", "draft")
        version = add_version(session, listing, 1, "inspected")
        review = service.submit_version(session, version, listing, actor="mem_vendor", at_ms=NOW)
    return listing, version, review


def test_a_submitted_version_waits_in_the_queue_and_the_operator_is_told(engine, submitted):
    with transaction(engine) as session:
        rows, total = service.list_reviews(session)
        assert [(r.submitted_by, v.state, x.name) for r, v, x in rows] == [("mem_vendor", "in_review", "acme/steel")]
        assert total == 1
        assert "REVIEW_WAITING" in session.exec(select(Notice.code).where(Notice.organisation_id == "org_city")).all()


def test_approval_lists_the_version_and_tells_the_vendor(engine, submitted):
    listing, version, review = submitted
    with transaction(engine) as session:
        service.approve_review(session, review.id, actor="mem_operator", at_ms=NOW + 1)
    with transaction(engine) as session:
        assert session.get_one(type(listing), listing.id).status == "listed"
        assert session.get_one(type(version), version.id).state == "listed"
        assert session.exec(select(Notice.code).where(Notice.organisation_id == "org_acme")).all() == ["VERSION_LISTED"]


def test_whoever_submitted_a_version_cannot_approve_it(engine, submitted):
    with pytest.raises(Forbidden) as refusal, transaction(engine) as session:
        service.approve_review(session, submitted[2].id, actor="mem_vendor", at_ms=NOW)
    assert refusal.value.code == "FOUR_EYES"


def test_a_review_is_decided_once(engine, submitted):
    with transaction(engine) as session:
        service.approve_review(session, submitted[2].id, actor="mem_operator", at_ms=NOW)
    with pytest.raises(Conflict) as refusal, transaction(engine) as session:
        service.return_review(session, submitted[2].id, actor="mem_operator", at_ms=NOW, note="late")
    assert refusal.value.code == "REVIEW_CLOSED"


def test_a_returned_version_can_be_submitted_again(engine, submitted):
    listing, version, review = submitted
    with transaction(engine) as session:
        service.return_review(session, review.id, actor="mem_operator", at_ms=NOW, note="卡片缺少许可")
        again = session.get_one(type(version), version.id)
        service.submit_version(
            session, again, session.get_one(type(listing), listing.id), actor="mem_vendor", at_ms=NOW
        )
        assert session.exec(select(Review.state).order_by(Review.id)).all() == ["returned", "open"]


@pytest.mark.parametrize(("event", "status"), [("retire", "retired"), ("withdraw", "withdrawn")])
def test_the_listing_leaves_the_shelf_with_its_last_listed_version(engine, submitted, event, status):
    listing, version, review = submitted
    with transaction(engine) as session:
        service.approve_review(session, review.id, actor="mem_operator", at_ms=NOW)
        row = session.get_one(type(version), version.id)
        service.end_version(session, row, session.get_one(type(listing), listing.id), event, actor="m", at_ms=NOW)
    with transaction(engine) as session:
        assert session.get_one(type(listing), listing.id).status == status


def test_withdrawing_closes_an_open_review(engine, submitted):
    listing, version, review = submitted
    with transaction(engine) as session:
        row = session.get_one(type(version), version.id)
        service.end_version(session, row, session.get_one(type(listing), listing.id), "withdraw", actor="m", at_ms=NOW)
        assert session.get_one(Review, review.id).state == "returned"


def test_a_private_or_uninspected_version_cannot_be_submitted(engine, submitted):
    with transaction(engine) as session:
        private = add_listing(session, "acme/private", "draft", visibility="private")
        hidden = add_version(session, private, 1, "inspected")
        raw = add_version(session, submitted[0], 2, "draft", inspection={"passed": False})
        for version, listing in ((hidden, private), (raw, submitted[0])):
            with pytest.raises(Refusal):
                service.submit_version(session, version, listing, actor="m", at_ms=NOW)
