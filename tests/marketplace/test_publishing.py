"""Publishing: from a bundle to a version that can be called, or to nothing at all."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from marketplace import start
from marketplace.catalogue import submission
from marketplace.catalogue.publishing import publish
from marketplace.catalogue.relations import Lineage, decide_inheritance, decide_lineage
from marketplace.catalogue.tables import Listing, ModelVersion, Publication
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations.tables import AuditEvent
from marketplace.review import service as review
from model_store.bundle import Bundle
from model_store.errors import Conflict, Forbidden, NotFound, Refusal, Unavailable, Unprocessable
from model_store.weights import reuse_share
from serving.ports import Principal
from tests.marketplace.linear_models import linear_bundle, weights_of
from tests.marketplace.shelf import add_organisation

Make = Callable[..., Bundle]
OWN = Principal("key_1", "org_acme", "vendor", frozenset({"use"}))
STRANGER = Principal("key_2", "org_other", "enterprise", frozenset({"use"}))


@pytest.fixture
def vendors(market: Market) -> Market:
    with transaction(market.engine) as session:
        add_organisation(session, "acme")
        add_organisation(session, "other", "enterprise")
    return market


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(name, seed=…, bias=…, **facts)`: a new bundle in a folder of its own."""
    made: list[Bundle] = []

    def bundle(name: str = "acme/linear", **facts: Any) -> Bundle:
        made.append(linear_bundle(tmp_path / f"made-{len(made)}", name, **facts))
        return made[-1]

    return bundle


def published(market: Market, bundle: Bundle, private: bool = False, owner: str = "acme", **more: Any) -> Any:
    return publish(
        market, bundle.path, organisation_id=f"org_{owner}", published_by=f"mem_{owner}", private=private, **more
    )


def rows(market: Market, kind: type) -> list[Any]:
    with reading(market.engine) as session:
        return list(session.exec(select(kind)))


def shelve(market: Market, version_id: str) -> None:
    """Submit and approve a version."""
    with transaction(market.engine) as session:
        version = session.get_one(ModelVersion, version_id)
        listing = session.get_one(Listing, version.listing_id)
        opened = review.submit_version(session, version, listing, actor="v", at_ms=1)
        review.approve_review(session, opened.id, actor="o", at_ms=2)
    market.catalogue_changed(listing.id)


def nothing_is_left(market: Market) -> bool:
    versions = rows(market, ModelVersion) + rows(market, Listing) + market.store.pending()
    return not versions and not list(market.blobs.hashes()) and not market.store.versions("acme/linear")


# --- the way through --------------------------------------------------------------------------------------------------


def test_a_published_bundle_is_in_all_three_stores_and_waits_inspected(vendors, make):
    answer = published(vendors, bundle := make())
    (version,) = rows(vendors, ModelVersion)
    assert (answer.version, answer.state, version.number, version.state) == (1, "inspected", 1, "inspected")
    assert vendors.blobs.has(version.blob)
    (stored,) = vendors.store.versions("acme/linear")
    assert (stored.digest, stored.pending) == (bundle.digest, False)
    assert rows(vendors, Publication)[0].step == "done"
    assert [event.action for event in rows(vendors, AuditEvent)] == ["version.publish"]
    assert version.inspection["passed"]
    assert version.scorecard == version.inspection["scorecard"]


def test_its_own_organisation_may_call_it_at_once_and_nobody_else(vendors, make):
    published(vendors, make())
    served = vendors.bundles.resolve("acme/linear", None, OWN)
    assert (served.version, served.trusted, (served.bundle / "model.onnx").is_file()) == (1, False, True)
    with pytest.raises(NotFound):
        vendors.bundles.resolve("acme/linear", None, STRANGER)


def test_the_same_bundle_again_is_the_same_version(vendors, make):
    first, again = published(vendors, bundle := make()), published(vendors, bundle)
    assert (again.version_id, again.already, first.already) == (first.version_id, True, False)
    assert len(rows(vendors, ModelVersion)) == len(vendors.store.versions("acme/linear")) == 1


def test_another_bundle_is_the_next_version(vendors, make):
    assert [published(vendors, make(seed=seed)).version for seed in (1, 2, 3)] == [1, 2, 3]


def test_a_new_version_changes_the_shelf_only_when_it_is_approved(vendors, make):
    shelve(vendors, published(vendors, make()).version_id)
    published(vendors, make(seed=2, title_zh="改头换面", tier="base"))
    (listing,) = rows(vendors, Listing)
    assert (listing.title_zh, listing.tier, listing.status) == ("线性", "small", "listed")


def test_a_name_of_somebody_else_is_refused(vendors, make):
    with pytest.raises(Forbidden) as refusal:
        published(vendors, make("other/linear"))
    assert refusal.value.code == "NOT_YOUR_NAME"


# --- refused: nothing is left -----------------------------------------------------------------------------------------


def test_what_does_not_pass_inspection_is_not_published_and_the_report_says_what_to_mend(vendors, make):
    with pytest.raises(Unprocessable) as refusal:
        published(vendors, make(licence=""))
    assert refusal.value.code == "INSPECTION_FAILED"
    codes = {finding["code"] for finding in refusal.value.details["report"]["findings"]}
    assert "CARD_LICENCE_MISSING" in codes
    assert nothing_is_left(vendors)
    assert published(vendors, make(licence=""), private=True).state == "inspected"  # the card is advice there


def test_where_the_registry_is_away_nothing_is_left(vendors, make, monkeypatch):
    def away(*_: Any, **__: Any) -> int:
        raise Unavailable("REGISTRY_UNAVAILABLE", zh="-", en="-")

    monkeypatch.setattr(vendors.store, "create_pending", away)
    with pytest.raises(Unavailable):
        published(vendors, make())
    assert nothing_is_left(vendors)
    assert rows(vendors, Publication)[0].step == "failed"


def test_where_the_row_cannot_be_written_the_registry_and_the_blob_are_cleared(vendors, make, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(submission.audit, "record", broken)
    with pytest.raises(RuntimeError):
        published(vendors, make())
    monkeypatch.undo()
    assert nothing_is_left(vendors)
    assert published(vendors, make(seed=1)).state == "inspected"


# --- private and public -----------------------------------------------------------------------------------------------


def test_a_private_listing_opens_when_a_bundle_is_published_as_public(vendors, make):
    private = published(vendors, bundle := make(), private=True)
    public = published(vendors, bundle)
    assert (public.version_id, public.report["private"]) == (private.version_id, False)
    assert rows(vendors, Listing)[0].visibility == "public"
    shelve(vendors, public.version_id)
    assert vendors.bundles.resolve("acme/linear", None, STRANGER).trusted


def test_what_passed_only_the_private_rules_cannot_be_submitted_once_the_listing_is_public(vendors, make):
    careless = published(vendors, make(licence=""), private=True)
    published(vendors, make(seed=2))
    with pytest.raises(Conflict) as refusal:
        shelve(vendors, careless.version_id)
    assert refusal.value.code == "INSPECTION_NOT_PASSED"


def test_a_public_listing_takes_no_private_version(vendors, make):
    published(vendors, make())
    with pytest.raises(Conflict) as refusal:
        published(vendors, make(seed=2), private=True)
    assert refusal.value.code == "LISTING_IS_PUBLIC"


# --- relations --------------------------------------------------------------------------------------------------------


def parent_of(version: int = 1, relation: str = "finetune", digest: str = "") -> dict[str, Any]:
    return {"name": "acme/linear", "version": version, "relation": relation, "digest": digest}


@pytest.fixture
def base(vendors, make) -> Bundle:
    """A listed base of acme's, which others may derive from."""
    bundle = make()
    shelve(vendors, published(vendors, bundle).version_id)
    return bundle


def test_a_true_derivative_carries_its_root(vendors, make, base):
    child = make("other/tuned", bias=0.7, parent=parent_of(digest=base.digest))
    answer = published(vendors, child, private=True, owner="other")
    root, derivative = sorted(rows(vendors, Listing), key=lambda listing: listing.name)
    assert (derivative.parent_listing_id, derivative.root_base_listing_id) == (root.id, root.id)
    row = next(row for row in rows(vendors, ModelVersion) if row.id == answer.version_id)
    assert (row.relation, row.parent_version_id is not None) == ("finetune", True)
    stored = vendors.store.versions("other/tuned")[0]
    assert (stored.parent, stored.relation) == ("acme/linear@1", "finetune")


def test_retrained_is_recorded_and_carries_nothing(vendors, make, base):
    published(vendors, make("other/new", seed=9, parent=parent_of(relation="retrained")), private=True, owner="other")
    listing = next(row for row in rows(vendors, Listing) if row.name == "other/new")
    assert (listing.relation, listing.root_base_listing_id) == ("retrained", None)
    assert listing.parent_listing_id is not None


def test_a_claim_of_reuse_that_is_not_true_is_refused(vendors, make, base):
    with pytest.raises(Unprocessable) as refusal:
        published(vendors, make("other/fake", seed=9, parent=parent_of()), private=True, owner="other")
    assert refusal.value.code == "RELATION_NOT_TRUE"
    assert [row.name for row in rows(vendors, Listing)] == ["acme/linear"]


def test_a_parent_of_another_digest_or_not_to_be_seen_is_refused(vendors, make, base):
    published(vendors, make(name="acme/hidden", seed=4), private=True)
    for parent, code in (
        (parent_of(digest="0" * 64), "PARENT_CHANGED"),
        (parent_of() | {"name": "acme/hidden"}, "MODEL_NOT_FOUND"),
        (parent_of(version=7), "MODEL_NOT_FOUND"),
    ):
        with pytest.raises(Refusal) as refusal:
            published(vendors, make("other/child", bias=0.6, parent=parent), private=True, owner="other")
        assert refusal.value.code == code


def test_a_listing_keeps_the_lineage_of_its_first_version(vendors, make, base):
    """Else one true derivative would make an unrelated model of the same listing eligible for vouchers."""
    published(vendors, make("other/mine", seed=5), private=True, owner="other")
    with pytest.raises(Conflict) as refusal:
        published(vendors, make("other/mine", bias=0.9, parent=parent_of()), private=True, owner="other")
    assert refusal.value.code == "LINEAGE_CHANGED"
    assert next(row for row in rows(vendors, Listing) if row.name == "other/mine").root_base_listing_id is None


def test_what_a_crash_left_is_settled_once_the_registry_answers_again(market, monkeypatch):
    """A registry of its own may be away when the market starts: nobody should have to start it once more."""
    asked = []

    def away_at_first() -> list[Any]:
        asked.append(1)
        if len(asked) < 3:
            raise Unavailable("REGISTRY_UNAVAILABLE", zh="登记服务不可用", en="the registry is away")
        return []

    monkeypatch.setattr(start, "SETTLE_AGAIN_S", 0.0)
    monkeypatch.setattr(market.store, "pending", away_at_first)
    market.registry_settled.clear()
    start.settle_publications(market, threading.Event())
    assert len(asked) == 3
    market.await_registry(timeout_s=0)


def test_lineage_and_inheritance_are_decided_purely():
    assert decide_lineage(Lineage("a", "r"), Lineage("a", "r")) == "kept"
    assert decide_lineage(Lineage("a", "r"), Lineage("a", "")) == "changed"
    assert decide_lineage(Lineage(), Lineage("a", "r")) == "changed"
    assert decide_inheritance("retrained", 1.0) == "carries_nothing"
    assert decide_inheritance("finetune", 0.9) == "carries"
    assert decide_inheritance("finetune", 0.1) == "refused"
    assert decide_inheritance("distilled", 0.0) == "carries_nothing"


def test_reuse_is_measured_on_the_weights():
    parent = weights_of(0)
    quantised = np.round(parent / np.abs(parent).max() * 127).astype(np.int8)
    assert reuse_share([parent], [parent.copy()]) == 1.0
    assert reuse_share([parent], [parent * 1.05]) == 1.0
    assert reuse_share([parent], [quantised]) == 1.0
    assert reuse_share([parent], [weights_of(1)]) == 0.0
    assert reuse_share([parent, weights_of(2)], [parent]) == 0.5
    assert reuse_share([], [parent]) == 0.0
